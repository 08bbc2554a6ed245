//! Dense tensors that take a part of the factors: norms, biases, and modules that are left as they are.

use crate::QuantizeError;
use crate::gptq::rounded;
use billfish_formats::{Checkpoint, TensorSpec};
use billfish_tensor::DType;
use half::{bf16, f16};

/// Numbers that the type they are stored in holds exactly, `[channels]` or `[N, K]`.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    dtype: DType,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Stored {
    pub fn read(source: &Checkpoint, name: &str, shape: &[usize]) -> Result<Self, QuantizeError> {
        let tensor = source.dense(name, shape)?;
        Ok(Self { dtype: tensor.dtype(), shape: shape.to_vec(), values: tensor.to_f32() })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Numbers of one of the first dimension.
    fn each(&self) -> usize {
        self.shape[1..].iter().product()
    }

    fn holds(&self, value: f64) -> bool {
        rounded(self.dtype, value) == value
    }

    /// Whether a channel can be divided without a loss.
    pub fn divides(&self, channel: usize, scale: f64) -> bool {
        let each = self.each();
        self.values[channel * each..(channel + 1) * each].iter().all(|&v| self.holds(f64::from(v) / scale))
    }

    /// Whether an input can be multiplied without a loss.
    pub fn multiplies(&self, input: usize, scale: f64) -> bool {
        self.values[input..].iter().step_by(self.each()).all(|&v| self.holds(f64::from(v) * scale))
    }

    /// The factor that a channel of one number has once it was divided by `scale` and stored: 1 where nothing would be left.
    pub fn ratio(&self, channel: usize, scale: f64) -> f64 {
        let old = f64::from(self.values[channel]);
        let new = rounded(self.dtype, old / scale);
        match old == 0.0 {
            true => scale,
            false if new != 0.0 && new.is_finite() => old / new,
            false => 1.0,
        }
    }

    /// Divides each channel.
    pub fn divide(&mut self, scales: &[f64]) {
        let (each, dtype) = (self.each(), self.dtype);
        for (values, s) in self.values.chunks_exact_mut(each).zip(scales) {
            values.iter_mut().for_each(|v| *v = rounded(dtype, f64::from(*v) / s) as f32);
        }
    }

    /// Multiplies each input.
    pub fn multiply(&mut self, scale: impl Fn(usize) -> f64) {
        let (each, dtype) = (self.each(), self.dtype);
        for row in self.values.chunks_exact_mut(each) {
            row.iter_mut().enumerate().for_each(|(i, v)| *v = rounded(dtype, f64::from(*v) * scale(i)) as f32);
        }
    }

    /// The bytes as a file has them.
    pub fn bytes(&self) -> Vec<u8> {
        let of = |v: &f32| match self.dtype {
            DType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        };
        self.values.iter().flat_map(of).collect()
    }

    /// The tensor as a file has it.
    pub fn tensor(&self, name: &str) -> (TensorSpec, Vec<u8>) {
        ((name.into(), self.dtype, self.shape.clone()), self.bytes())
    }
}
