//! Folders built from decisions: tensors whose names, types and shapes fit a config, so that what is in them is looked at;
//! and then, in some, one thing that does not fit.

use super::folder::{open, safetensors};
use super::input::{Input, Noise};
use crate::{Checkpoint, FormatError, TensorSpec};
use billfish_tensor::{DType, Packing};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// A folder in the making.
pub(super) struct Folder {
    pub quantization: Map<String, Value>,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

/// Rows, columns and what packs them.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub k: usize,
    pub n: usize,
    pub bits: u32,
    pub group_size: i64,
}

impl Shape {
    /// Sizes that are mostly small and odd.
    pub fn read(input: &mut Input<'_>, widths: &[u32]) -> Self {
        let mut size = || match input.byte() {
            byte @ 0..200 => 1 + usize::from(byte % 72),
            byte => usize::from(byte - 199) * 8,
        };
        let (k, n) = (size(), size());
        Self { k, n, bits: input.pick(widths), group_size: input.pick(&[-1, 1, 2, 7, 8, 16, 32, 64, 128, k as i64, 100_000]) }
    }

    pub fn groups(self) -> usize {
        usize::try_from(self.group_size).map_or(1, |rows| self.k.div_ceil(rows.max(1)))
    }
}

impl Folder {
    pub fn new(quantization: Value) -> Self {
        let quantization = quantization.as_object().cloned().unwrap_or_default();
        Self { quantization, tensors: vec![] }
    }

    /// Sets a key in some folders.
    pub fn maybe(&mut self, input: &mut Input<'_>, key: &str, values: &[Value]) {
        let choice = input.below(values.len() + 1);
        if let Some(value) = choice.checked_sub(1).map(|i| &values[i]) {
            self.quantization.insert(key.into(), value.clone());
        }
    }

    pub fn add(&mut self, name: String, dtype: DType, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.push(((name, dtype, shape.to_vec()), bytes));
    }

    pub fn fill(&mut self, input: &mut Input<'_>, name: String, dtype: DType, shape: &[usize]) {
        let bytes = input.fill(shape.iter().product::<usize>() * dtype.size());
        self.add(name, dtype, shape, bytes);
    }

    /// Floats, in most folders finite ones of a usual size.
    pub fn floats(&mut self, input: &mut Input<'_>, name: String, shape: &[usize]) {
        let dtype = input.pick(&[DType::F16, DType::BF16, DType::F32]);
        if input.byte() % 8 == 7 {
            return self.fill(input, name, dtype, shape);
        }
        let values = input.fill(shape.iter().product());
        let bytes = values.into_iter().flat_map(|b| {
            let value = f32::from(b.cast_signed()) / 64.0;
            match dtype {
                DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            }
        });
        self.add(name, dtype, shape, bytes.collect());
    }

    /// A `g_idx`: none, in order, in any order, or anything.
    pub fn order(&mut self, input: &mut Input<'_>, name: String, shape: Shape) {
        let rows = usize::try_from(shape.group_size).map_or(shape.k, |rows| rows.max(1));
        let mut groups: Vec<i32> = (0..shape.k).map(|i| (i / rows) as i32).collect();
        match input.below(5) {
            0 | 1 => return,
            2 => {}
            3 => {
                let mut noise = Noise::new(input.byte().into());
                (1..shape.k).for_each(|i| groups.swap(i, usize::from(noise.byte()) % (i + 1)));
            }
            _ => return self.fill(input, name, DType::I32, &[shape.k]),
        }
        self.add(name, DType::I32, &[shape.k], groups.into_iter().flat_map(i32::to_le_bytes).collect());
    }

    pub fn bias(&mut self, input: &mut Input<'_>, name: String, n: usize) {
        match input.below(4) {
            0 => self.floats(input, name, &[n]),
            1 => self.add(name, DType::F16, &[n], vec![0; 2 * n]),
            _ => {}
        }
    }

    /// `qweight` and `qzeros` in words down the rows and along the columns, `scales`, perhaps `g_idx` and a bias.
    pub fn gptq(&mut self, input: &mut Input<'_>, name: &str, shape: Shape, packing: Packing, word: u32) {
        let Shape { k, n, bits, .. } = shape;
        let dtype = match word {
            8 => DType::I8,
            16 => DType::I16,
            64 => DType::I64,
            _ => DType::I32,
        };
        let words = |count| if word == 32 { packing.words(bits, count) } else { usize::div_ceil(count, (word / bits) as usize) };
        self.fill(input, format!("{name}.qweight"), dtype, &[words(k), n]);
        self.fill(input, format!("{name}.qzeros"), dtype, &[shape.groups(), words(n)]);
        self.floats(input, format!("{name}.scales"), &[shape.groups(), n]);
        self.order(input, format!("{name}.g_idx"), shape);
        self.bias(input, format!("{name}.bias"), n);
    }

    /// The same with eight interleaved columns in a word.
    pub fn awq(&mut self, input: &mut Input<'_>, name: &str, shape: Shape) {
        let (words, groups) = (shape.n.div_ceil(8), shape.groups());
        self.fill(input, format!("{name}.qweight"), DType::I32, &[shape.k, words]);
        self.fill(input, format!("{name}.qzeros"), DType::I32, &[groups, words]);
        self.floats(input, format!("{name}.scales"), &[groups, words * 8]);
        self.bias(input, format!("{name}.bias"), words * 8);
    }

    /// compressed-tensors; `padded` leaves bits of words unused, as its first writers did.
    pub fn compressed(&mut self, input: &mut Input<'_>, name: &str, shape: Shape, packed: bool, padded: bool) {
        let Shape { k, n, bits, .. } = shape;
        let words = |count| if padded { usize::div_ceil(count, (32 / bits) as usize) } else { Packing::Continuous.words(bits, count) };
        let groups = shape.groups();
        if packed {
            self.fill(input, format!("{name}.weight_packed"), DType::I32, &[n, words(k)]);
        } else {
            self.codes(input, format!("{name}.weight"), bits, &[n, k]);
        }
        self.floats(input, format!("{name}.weight_scale"), &[n, groups]);
        match input.below(3) {
            0 => {}
            1 => self.fill(input, format!("{name}.weight_zero_point"), DType::I32, &[words(n), groups]),
            _ => self.codes(input, format!("{name}.weight_zero_point"), bits, &[n, groups]),
        }
        if packed {
            let size = [n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect();
            self.add(format!("{name}.weight_shape"), DType::I64, &[2], size);
        }
        self.order(input, format!("{name}.weight_g_idx"), shape);
        self.bias(input, format!("{name}.bias"), n);
    }

    /// Signed bytes, in most folders such as `bits` bits hold.
    fn codes(&mut self, input: &mut Input<'_>, name: String, bits: u32, shape: &[usize]) {
        let any = input.byte() % 8 == 7;
        let mut bytes = input.fill(shape.iter().product());
        if !any {
            bytes.iter_mut().for_each(|b| *b = (b.cast_signed() >> (8 - bits.min(8))).cast_unsigned());
        }
        self.add(name, DType::I8, shape, bytes);
    }

    /// In some folders: a tensor is gone, has another type or another shape, or its bytes are others.
    pub fn damage(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        if self.tensors.is_empty() || kind < 128 {
            return;
        }
        let at = input.below(self.tensors.len());
        let ((_, dtype, shape), bytes) = &mut self.tensors[at];
        match kind % 6 {
            0 => return drop(self.tensors.remove(at)),
            1 => *dtype = input.pick(&[DType::I32, DType::F16, DType::I64, DType::U8, DType::BF16, DType::I8, DType::F32, DType::Bool]),
            2 => shape.push(input.below(3)),
            3 => drop(shape.pop()),
            4 => {
                let axis = input.below(shape.len().max(1));
                if let Some(extent) = shape.get_mut(axis) {
                    *extent = (*extent + input.below(9)).saturating_sub(4);
                }
            }
            _ => shape.reverse(),
        }
        bytes.resize(shape.iter().product::<usize>() * dtype.size(), 0);
    }

    /// The folder, its config inside `config.json` or in a file of its own.
    pub fn open(self, input: &mut Input<'_>) -> Result<Checkpoint, FormatError> {
        let tensors = safetensors(&self.tensors)?;
        let mut files = vec![("model.safetensors", tensors)];
        let quantization = Value::Object(self.quantization);
        if quantization.as_object().is_none_or(Map::is_empty) {
            files.push(("config.json", b"{}".to_vec()));
        } else if input.flag() {
            files.push(("quantize_config.json", quantization.to_string().into_bytes()));
            files.push(("config.json", b"{}".to_vec()));
        } else {
            files.push(("config.json", json!({"quantization_config": quantization}).to_string().into_bytes()));
        }
        open(files)
    }
}
