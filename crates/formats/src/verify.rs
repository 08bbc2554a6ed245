//! Whether two folders hold the same weights, whatever format each is in: every one is compared exactly.

use crate::FormatError;
use crate::checkpoint::Checkpoint;
use crate::values::{Elements, Entry, Place, Values, entries, place};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;

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

/// Most elements of a row that are hashed together.
const PIECE: usize = 1 << 16;
/// Elements that are looked at together, about.
const CHUNK: usize = 1 << 18;
/// Stretches of elements between two reports of progress.
const WAVE: usize = 16;

/// Appends the hash of each piece of `elements`, which begin at a piece's first element and end at a piece's last; rows
/// have `row` elements.
fn hash_pieces(elements: &Elements, start: usize, row: usize, out: &mut Vec<u8>) {
    let (mut from, mut bytes) = (0, vec![]);
    while from < elements.len() {
        let in_row = (start + from) % row;
        let to = from + PIECE.min(row - in_row).min(elements.len() - from);
        bytes.clear();
        elements.put(from..to, &mut bytes);
        out.extend_from_slice(&Sha256::digest(&bytes));
        from = to;
    }
}

/// Whole pieces, whole rows where rows are shorter than a chunk: about a chunk each.
fn stretches(values: [&Values<'_>; 2]) -> Vec<Range<usize>> {
    let (len, row) = (values[0].len(), values[0].row());
    if row == 0 || len == 0 {
        return vec![];
    }
    let whole_rows = row <= CHUNK || values.iter().any(|v| v.is_quantized());
    // a few columns at a time cost a quantized module as much as many
    let step = if whole_rows { row.saturating_mul((CHUNK / row).max(16)) } else { PIECE };
    let in_row = |start: usize| if whole_rows { len } else { start - start % row + row };
    let (mut out, mut start) = (vec![], 0);
    while start < len {
        let end = start.saturating_add(step).min(in_row(start)).min(len);
        out.push(start..end);
        start = end;
    }
    out
}

/// What was found in one stretch.
#[derive(Default)]
struct Found {
    /// Hashes of the pieces of both folders; those of the second are left out if they are the same.
    hashes: [Vec<u8>; 2],
    differing: u64,
    /// The first element that differs, and both values.
    first: Option<(usize, [u64; 2])>,
    /// The largest difference between numbers, where it is, and both values.
    largest: Option<(f64, usize, [f64; 2])>,
}

impl Found {
    fn in_stretch(a: &Values<'_>, b: Option<&Values<'_>>, stretch: Range<usize>) -> Result<Found, FormatError> {
        let (mut scratch, mut found) = (vec![], Found::default());
        let (start, count, row) = (stretch.start, stretch.len(), a.row());
        let left = a.read(start, count, &mut scratch)?;
        hash_pieces(&left, start, row, &mut found.hashes[0]);
        let Some(b) = b else { return Ok(found) };
        let right = b.read(start, count, &mut scratch)?;
        let mut at = left.difference(&right, 0);
        if at.is_some() {
            hash_pieces(&right, start, row, &mut found.hashes[1]);
        }
        while let Some(i) = at {
            let bits = [left.wide(i), right.wide(i)];
            found.differing += 1;
            found.first.get_or_insert((start + i, bits));
            if a.raw_type().is_none() {
                let values = bits.map(f64::from_bits);
                let apart = (values[0] - values[1]).abs();
                let difference = if apart.is_nan() { f64::INFINITY } else { apart };
                if found.largest.is_none_or(|(l, ..)| difference > l) {
                    found.largest = Some((difference, start + i, values));
                }
            }
            at = left.difference(&right, i + 1);
        }
        Ok(found)
    }
}

/// A way to do pieces of work that do not depend on each other: `workers(count, body)` calls `body(0)` to
/// `body(count - 1)`, each once, on any thread in any order, and returns when all are done. This crate starts no thread:
/// who has some hands them in, others take [`serially`].
pub type Workers<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// One piece of work after the other, on the caller's thread.
pub fn serially(count: usize, body: &(dyn Fn(usize) + Sync)) {
    (0..count).for_each(body);
}

struct Run<'a> {
    hashes: Hashes,
    certificate: Certificate,
    workers: Workers<'a>,
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
/// extents, then the SHA-256 of each piece. A piece is 65,536 elements of one row, or what the row has left; hashed are a
/// byte and the elements: 4 and each as `f32` if all are `f32`s exactly, 8 and each as `f64` if not, 0 and each element's
/// own bits, widened to 64, for a tensor without floats. All integers have 64 bits, everything is little-endian, -0 counts
/// as 0 and every NaN is the quiet one without a payload. So equal weights have equal hashes in every format, and pieces
/// can be hashed at once: `workers` does.
///
/// # Errors
/// [`FormatError`] when either folder cannot be read.
pub fn verify(
    a: &Checkpoint,
    b: &Checkpoint,
    workers: Workers<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Certificate, FormatError> {
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
        workers,
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
                let opened = [OnceLock::new(), OnceLock::new()];
                workers(2, &|side| {
                    let values = if side == 0 { Values::open(a, name, of_a, dense) } else { Values::open(b, name, of_b, None) };
                    opened[side].get_or_init(|| values);
                });
                // who did not run finds it out here
                let [first, second] = opened.map(OnceLock::into_inner);
                let first = first.unwrap_or_else(|| Values::open(a, name, of_a, dense))?;
                let second = match second {
                    // a size that may end in padding gives way to one that does not
                    Some(Ok(second)) if second.shape == first.shape => second,
                    _ => Values::open(b, name, of_b, Some(&first.shape))?,
                };
                run.pair(name, first, second)?;
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

    /// What is found in each stretch of a tensor, in order.
    fn stretches(&mut self, a: &Values<'_>, b: Option<&Values<'_>>, take: &mut dyn FnMut(&mut Self, Found)) -> Result<(), FormatError> {
        let size = a.bytes + b.map_or(0, |b| b.bytes);
        for wave in stretches([a, b.unwrap_or(a)]).chunks(WAVE) {
            let found: Vec<OnceLock<Result<Found, FormatError>>> = wave.iter().map(|_| OnceLock::new()).collect();
            (self.workers)(wave.len(), &|i| {
                found[i].get_or_init(|| Found::in_stretch(a, b, wave[i].clone()));
            });
            for found in found {
                let done = found.into_inner().unwrap_or_else(|| Ok(Found::default()));
                take(self, done?);
            }
            self.tell(size, wave.last().map_or(0, |last| last.end), a.len());
        }
        self.done += size;
        Ok(())
    }

    /// Hashes a tensor that has no equal to be compared with.
    fn alone(&mut self, side: usize, name: &str, values: Values<'_>) -> Result<(), FormatError> {
        self.hashes.one(side, &head(name, &values));
        self.stretches(&values, None, &mut |run, found| run.hashes.one(side, &found.hashes[0]))
    }

    fn pair(&mut self, name: &str, a: Values<'_>, b: Values<'_>) -> Result<(), FormatError> {
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
        let words = |bits: u64| if numbers { f64::from_bits(bits).to_string() } else { format!("{bits:#x}") };
        let weights = a.len() as u64;
        let mut difference: Option<TensorDifference> = None;
        self.stretches(&a, Some(&b), &mut |run, found| {
            let [left, right] = &found.hashes;
            if found.differing == 0 {
                return run.hashes.both(left);
            }
            run.hashes.one(0, left);
            run.hashes.one(1, right);
            if let Some((at, bits)) = found.first {
                let first = || TensorDifference {
                    tensor: name.into(),
                    weights,
                    differing: 0,
                    first: place(name, &a.shape, at),
                    values: bits.map(words),
                };
                difference.get_or_insert_with(first).differing += found.differing;
            }
            if let Some((difference, at, values)) = found.largest
                && run.certificate.largest.as_ref().is_none_or(|l| difference > l.difference)
            {
                run.certificate.largest = Some(Largest { place: place(name, &a.shape, at), values, difference });
            }
        })?;
        self.certificate.weights += weights;
        self.certificate.differing += difference.as_ref().map_or(0, |d| d.differing);
        self.certificate.differences.extend(difference);
        Ok(())
    }
}
