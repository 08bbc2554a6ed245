//! Where the shapes of a module's tensors and its quantization config cannot both be right.

use crate::{Checkpoint, CheckpointFormat, GroupSize};
use billfish_tensor::{DType, Packing};
use std::fmt;

/// A module of the GPTQ layout whose tensors have another width or other groups than its config says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The module.
    pub module: String,
    /// Width and group size as the config says.
    pub said: (u32, GroupSize),
    /// Width as the tensors show.
    pub bits: u32,
    /// Rows and groups of the tensors.
    pub rows: usize,
    /// Groups of the tensors.
    pub groups: usize,
    /// The group size that gives this many groups; `None` if no size does.
    pub group_size: Option<GroupSize>,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bits, group_size) = self.said;
        write!(f, "the config says {bits} bit and group_size {group_size}, the tensors hold {} bit and ", self.bits)?;
        write!(f, "{} groups over {} rows", self.groups, self.rows)?;
        match self.group_size {
            Some(size) => write!(f, ", which is group_size {size}"),
            None => write!(f, ", which no group size gives"),
        }
    }
}

impl Checkpoint {
    /// The modules whose tensors contradict their config, as far as shapes alone tell.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        self.quantized_modules().iter().filter_map(|module| self.contradiction(module)).collect()
    }

    /// The same folder with the tensors followed wherever they contradict the config and leave one reading.
    pub fn following_tensors(mut self) -> Self {
        let found = self.contradictions();
        if let Some(config) = self.quantization_mut() {
            for c in found {
                if let Some(group_size) = c.group_size {
                    config.shown.insert(c.module, (c.bits, group_size));
                }
            }
        }
        self
    }

    fn contradiction(&self, module: &str) -> Option<Contradiction> {
        let said = self.quantization()?.scheme(module).ok()?;
        if !matches!(said.format, CheckpointFormat::Gptq | CheckpointFormat::GptqV2 | CheckpointFormat::GptqP) {
            return None;
        }
        let part = |name: &str| {
            let info = self.info(&format!("{module}.{name}"))?;
            let words = matches!(info.dtype, DType::I32 | DType::U32) || name == "scales";
            match info.shape[..] {
                [a, b] if words => Some((a, b)),
                _ => None,
            }
        };
        let ((words, n), (groups, zero_words), (count, columns)) = (part("qweight")?, part("qzeros")?, part("scales")?);
        if count != groups || columns != n || n == 0 || count == 0 {
            return None;
        }
        let k = match self.info(&format!("{module}.g_idx")).map(|i| i.shape.as_slice()) {
            Some([k]) => Some(*k),
            _ => None,
        };
        let packing =
            |bits| if said.format == CheckpointFormat::GptqP || matches!(bits, 5..=7) { Packing::Planar } else { Packing::Continuous };
        let fits = |bits: &u32| packing(*bits).words(*bits, n) == zero_words && k.is_none_or(|k| packing(*bits).words(*bits, k) == words);
        let bits = match fits(&said.bits) {
            true => said.bits,
            false => {
                let mut fitting = (2..=8).filter(fits);
                let one = fitting.next()?;
                fitting.next().is_none().then_some(one)?
            }
        };
        let rows = k.unwrap_or((words as u128 * 32 / u128::from(bits)) as usize);
        let gives = |size: usize| rows.div_ceil(size) == count;
        let group_size = match said.group_size {
            size if rows > 0 && gives(size.rows(rows)) => Some(size),
            _ if count == 1 => Some(GroupSize::Channel),
            _ => {
                let least = rows.div_ceil(count).max(1);
                // sizes are powers of two wherever the rows do not divide evenly
                let powers = Some(least.next_power_of_two()).filter(|_| !rows.is_multiple_of(count));
                powers.into_iter().chain([least]).find(|&size| gives(size)).map(GroupSize::Rows)
            }
        };
        let said = (said.bits, said.group_size);
        (Some(said) != group_size.map(|size| (bits, size))).then(|| Contradiction {
            module: module.into(),
            said,
            bits,
            rows,
            groups: count,
            group_size,
        })
    }
}
