//! Whether two folders hold the same weights, whatever format each is in: every one is compared exactly.

use crate::FormatError;
use crate::checkpoint::Checkpoint;
use crate::values::{Entry, Place, Values, entries, place};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// What two folders store one tensor as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encodings {
    /// The tensor.
    pub tensor: String,
    /// Its encoding in either folder, in words.
    pub found: [String; 2],
}

/// A tensor with other values.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDifference {
    /// The tensor; `m.weight` for quantized module `m`.
    pub tensor: String,
    /// Elements in all.
    pub weights: u64,
    /// Elements that differ.
    pub differing: u64,
    /// The first of them, in the order of a dense weight: output by output.
    pub first: Place,
    /// Its value in either folder, in words.
    pub values: [String; 2],
}

/// The place where two folders differ most.
#[derive(Clone, Debug, PartialEq)]
pub struct Largest {
    /// The place.
    pub place: Place,
    /// The value in either folder.
    pub values: [f64; 2],
    /// How far they are apart; infinite when only one of them is a number.
    pub difference: f64,
}

/// The outcome of [`verify()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// Names of the folders.
    pub folders: [String; 2],
    /// SHA-256 of the weights of either folder, in hexadecimal; see [`verify()`].
    pub hashes: [String; 2],
    /// Tensors that both folders have; a quantized weight counts as one.
    pub tensors: usize,
    /// Those that are quantized in at least one of the folders.
    pub modules: usize,
    /// Elements compared.
    pub weights: u64,
    /// Elements that differ.
    pub differing: u64,
    /// Tensors with other values, by name.
    pub differences: Vec<TensorDifference>,
    /// The largest difference between numbers.
    pub largest: Option<Largest>,
    /// Tensors of equal shape that are stored otherwise, whether their values differ or not.
    pub encodings: Vec<Encodings>,
    /// Tensors that cannot be compared: of different shapes, or not both of numbers.
    pub mismatched: Vec<Encodings>,
    /// Tensors that the first and the second folder lack.
    pub missing: [Vec<String>; 2],
}

impl Certificate {
    /// Whether both folders hold the same weights.
    pub fn equal(&self) -> bool {
        self.differing == 0 && self.mismatched.is_empty() && self.missing.iter().all(Vec::is_empty)
    }
}

/// The hashes of both folders: one state while they are equal, which is nearly always to the end.
struct Hashes {
    states: [Sha256; 2],
    forked: bool,
}

impl Hashes {
    fn both(&mut self, bytes: &[u8]) {
        self.states[0].update(bytes);
        if self.forked {
            self.states[1].update(bytes);
        }
    }

    fn one(&mut self, side: usize, bytes: &[u8]) {
        if !self.forked {
            self.states[1] = self.states[0].clone();
            self.forked = true;
        }
        self.states[side].update(bytes);
    }

    fn finish(self) -> [String; 2] {
        let forked = self.forked;
        let [a, b] = self.states.map(|s| s.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>());
        [a.clone(), if forked { b } else { a }]
    }
}

/// What a tensor's elements are hashed behind.
fn head(name: &str, values: &Values<'_>) -> Vec<u8> {
    let mut head = (name.len() as u64).to_le_bytes().to_vec();
    head.extend(name.as_bytes());
    let kind = values.raw_type().map_or("number", |t| t.name());
    head.extend((kind.len() as u64).to_le_bytes());
    head.extend(kind.as_bytes());
    head.extend((values.shape.len() as u64).to_le_bytes());
    head.extend(values.shape.iter().flat_map(|&d| (d as u64).to_le_bytes()));
    head
}

/// Bits in the byte order of the hash.
fn bytes(bits: &mut [u64]) -> &[u8] {
    bits.iter_mut().for_each(|b| *b = b.to_le());
    bytemuck::cast_slice(bits)
}

struct Run<'a> {
    hashes: Hashes,
    certificate: Certificate,
    /// Bytes of the files behind us.
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

/// Compares every weight of two folders, exactly: of quantized modules `(code - zero) * scale` as `f64`, which no
/// rounding touches; of dense tensors the number, whatever its type. A module may be quantized in one folder and dense
/// in the other. Rows are inputs as they stand in the files: `g_idx` gives each its group, and none is moved.
/// Memory is bounded by the largest packed module of either folder. `progress` hears bytes done and bytes in all.
///
/// The hash of a folder is SHA-256 over its tensors sorted by name, module `m` as `m.weight` of shape `[N, K]`: length
/// and bytes of the name, of `number` (of the type's name for a tensor without floats), the number of extents and the
/// extents, then every element row by row as `f64` (as the element's own bits, widened to 64). All integers have 64 bits,
/// everything is little-endian, -0 counts as 0 and every NaN is `f64::NAN`. So equal weights have equal hashes in every
/// format.
///
/// # Errors
/// [`FormatError`] when either folder cannot be read.
pub fn verify(a: &Checkpoint, b: &Checkpoint, progress: &mut dyn FnMut(u64, u64)) -> Result<Certificate, FormatError> {
    let folders = [a, b];
    let entries = folders.map(entries);
    let names: BTreeSet<&String> = entries.iter().flat_map(|e| e.keys()).collect();
    let mut run = Run {
        hashes: Hashes { states: [Sha256::new(), Sha256::new()], forked: false },
        certificate: Certificate {
            folders: folders.map(|f| f.name().to_string()),
            hashes: [String::new(), String::new()],
            tensors: 0,
            modules: 0,
            weights: 0,
            differing: 0,
            differences: vec![],
            largest: None,
            encodings: vec![],
            mismatched: vec![],
            missing: [vec![], vec![]],
        },
        done: 0,
        total: a.total_bytes() + b.total_bytes(),
        progress,
    };
    for name in names {
        match [entries[0].get(name), entries[1].get(name)] {
            [Some(of_a), Some(of_b)] => {
                // a dense shape is certain, that of a quantized module may end in padding
                let dense = match of_b {
                    Entry::Stored => b.info(name).map(|i| i.shape.as_slice()),
                    Entry::Quantized(_) => None,
                };
                let of_a = Values::open(a, name, of_a, dense)?;
                let of_b = Values::open(b, name, of_b, Some(&of_a.shape))?;
                run.pair(name, of_a, of_b)?;
            }
            one => {
                for (side, entry) in one.into_iter().enumerate() {
                    match entry {
                        Some(entry) => run.alone(side, name, Values::open(folders[side], name, entry, None)?)?,
                        None => run.certificate.missing[side].push(name.clone()),
                    }
                }
            }
        }
    }
    (run.progress)(run.total, run.total);
    run.certificate.hashes = run.hashes.finish();
    Ok(run.certificate)
}

impl Run<'_> {
    fn tell(&mut self, bytes: u64, part: usize, whole: usize) {
        let now = self.done + (bytes as f64 * part as f64 / whole.max(1) as f64) as u64;
        (self.progress)(now.min(self.total), self.total);
    }

    /// Hashes a tensor that has no equal to be compared with.
    fn alone(&mut self, side: usize, name: &str, mut values: Values<'_>) -> Result<(), FormatError> {
        self.hashes.one(side, &head(name, &values));
        let (len, step) = (values.len(), values.chunk());
        let mut bits = vec![];
        for start in (0..len).step_by(step) {
            values.read(start, step.min(len - start), &mut bits)?;
            self.hashes.one(side, bytes(&mut bits));
            self.tell(values.bytes, start, len);
        }
        self.done += values.bytes;
        Ok(())
    }

    fn pair(&mut self, name: &str, mut a: Values<'_>, mut b: Values<'_>) -> Result<(), FormatError> {
        let c = &mut self.certificate;
        c.tensors += 1;
        c.modules += usize::from(a.is_quantized() || b.is_quantized());
        if a.shape != b.shape || a.raw_type() != b.raw_type() {
            let found = [&a, &b].map(|v| format!("{} {:?}", v.encoding, v.shape));
            c.mismatched.push(Encodings { tensor: name.into(), found });
            self.alone(0, name, a)?;
            return self.alone(1, name, b);
        }
        if a.encoding != b.encoding {
            c.encodings.push(Encodings { tensor: name.into(), found: [a.encoding.clone(), b.encoding.clone()] });
        }
        self.hashes.both(&head(name, &a));
        let numbers = a.raw_type().is_none();
        let (len, step, size) = (a.len(), a.chunk(), a.bytes + b.bytes);
        let mut difference: Option<TensorDifference> = None;
        let (mut left, mut right) = (vec![], vec![]);
        for start in (0..len).step_by(step) {
            let count = step.min(len - start);
            a.read(start, count, &mut left)?;
            b.read(start, count, &mut right)?;
            if left == right {
                self.hashes.both(bytes(&mut left));
            } else {
                for (i, (&x, &y)) in left.iter().zip(&right).enumerate().filter(|(_, (x, y))| x != y) {
                    let at = || place(name, &a.shape, start + i);
                    let words = |bits: u64| if numbers { f64::from_bits(bits).to_string() } else { format!("{bits:#x}") };
                    let first = || TensorDifference {
                        tensor: name.into(),
                        weights: len as u64,
                        differing: 0,
                        first: at(),
                        values: [words(x), words(y)],
                    };
                    difference.get_or_insert_with(first).differing += 1;
                    if numbers {
                        self.largest([x, y].map(f64::from_bits), at);
                    }
                }
                self.hashes.one(0, bytes(&mut left));
                self.hashes.one(1, bytes(&mut right));
            }
            self.tell(size, start, len);
        }
        self.done += size;
        self.certificate.weights += len as u64;
        self.certificate.differing += difference.as_ref().map_or(0, |d| d.differing);
        self.certificate.differences.extend(difference);
        Ok(())
    }

    fn largest(&mut self, values: [f64; 2], at: impl Fn() -> Place) {
        let apart = (values[0] - values[1]).abs();
        let difference = if apart.is_nan() { f64::INFINITY } else { apart };
        if self.certificate.largest.as_ref().is_none_or(|l| difference > l.difference) {
            self.certificate.largest = Some(Largest { place: at(), values, difference });
        }
    }
}
