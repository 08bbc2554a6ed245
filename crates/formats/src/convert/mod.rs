//! Writing a folder again in another format: codes move, nothing is rounded unless the caller allows it.
//!
//! A first pass reads every module that may lose something and lists what the target cannot hold; a second writes. Tensors go through memory one
//! module at a time; everything is written beside the target and renamed at the end.

mod awq;
mod compressed;
mod configs;
mod encode;
mod marlin;
mod output;
mod size;
mod tensors;

pub use configs::rule_patterns;
pub use encode::ModuleShape;
pub use output::check_free;
pub use size::{Sizes, folder_sizes, module_tensors};
pub use tensors::gptq_tensors;

use crate::cache_scales::is_cache_scale;
use crate::checkpoint::{BiasRule, Checkpoint, LinearWeight};
use crate::error::clip;
use crate::{FormatError, ModuleReport, TensorSpec};
use billfish_tensor::{DType, QuantMatrix};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// GPTQ with zero points stored less one; 2, 3, 4, 8 bit.
    Gptq,
    /// GPTQ with zero points as they are; 2, 3, 4, 8 bit.
    GptqV2,
    /// Planar GPTQ, zero points as they are; 2 to 8 bit.
    GptqP,
    /// AWQ gemm: 4 bit of one group size, no act-order.
    Awq,
    /// compressed-tensors `pack-quantized`, 2 to 8 bit.
    CompressedTensors,
    /// Marlin: 4 bit, symmetric, groups of 128 rows or one a column, no act-order.
    Marlin,
    /// No quantization: weights as floats of this type.
    Dense(DType),
}

const LEGAL: &str = "gptq, gptq_v2, gptq_p, awq, compressed-tensors, marlin or dense";

impl Target {
    /// Its name, if the target is quantized; for GPTQ the value of `checkpoint_format`.
    fn format(self) -> Option<&'static str> {
        match self {
            Target::Gptq => Some("gptq"),
            Target::GptqV2 => Some("gptq_v2"),
            Target::GptqP => Some("gptq_p"),
            Target::Awq => Some("awq"),
            Target::CompressedTensors => Some("compressed-tensors"),
            Target::Marlin => Some("marlin"),
            Target::Dense(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Dense(dtype) => write!(f, "dense {dtype}"),
            other => f.write_str(other.format().unwrap_or_default()),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    /// `dense` is `F32`, which holds every quantized weight exactly.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gptq" => Ok(Target::Gptq),
            "gptq_v2" => Ok(Target::GptqV2),
            "gptq_p" => Ok(Target::GptqP),
            "awq" => Ok(Target::Awq),
            "compressed-tensors" => Ok(Target::CompressedTensors),
            "marlin" => Ok(Target::Marlin),
            "dense" => Ok(Target::Dense(DType::F32)),
            other => Err(format!("expected {LEGAL}, found `{}`", clip(other))),
        }
    }
}

/// Weights or zero points of one module that the target cannot hold as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The module.
    pub module: String,
    /// What is lost, in words.
    pub what: String,
    /// How many values.
    pub count: usize,
    /// Group (or row, for weights) and column of the first.
    pub first: (usize, usize),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {} {}, the first at [{}, {}]", self.module, self.count, self.what, self.first.0, self.first.1)
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Quantized modules of the source.
    pub modules: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of all tensors written.
    pub bytes: u64,
    /// What was lost; empty unless losses were allowed.
    pub losses: Vec<Loss>,
    /// Scales of a cache that were left out, because the target's config cannot say that they are not for 8-bit floats.
    pub left_out: Vec<String>,
}

/// Reads a quantized module of the source.
fn read(source: &Checkpoint, r: &ModuleReport) -> Result<QuantMatrix, FormatError> {
    match source.linear(&r.module, r.in_features, r.out_features, BiasRule::Optional)? {
        LinearWeight::Quantized(m) => Ok(m),
        LinearWeight::Dense { .. } => {
            let remedy = "the folder changed while it was read, convert it again";
            Err(FormatError::tensor(source.name(), &r.module, "a quantized module", "a dense one", remedy))
        }
    }
}

/// A tensor of the output and where it comes from.
struct Planned {
    spec: TensorSpec,
    origin: Origin,
}

enum Origin {
    /// The same tensor of the source.
    Copy,
    /// Part of the module with this index.
    Module(usize),
}

/// Writes `source` to the new folder `out` as `target`. Files that are no tensors and no quantization config are kept.
/// `progress` hears the bytes of tensors done and in all, over both passes.
///
/// # Errors
/// [`FormatError::Lossy`] listing what the target cannot hold, unless `allow_lossy`; a width, size or order of rows that
/// the target lacks is always one. [`FormatError::NotFound`] when `out` exists and is not an empty folder; otherwise what reading and writing give.
/// Nothing is left behind then.
pub fn convert(
    source: &Checkpoint,
    out: &Path,
    target: Target,
    allow_lossy: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Converted, FormatError> {
    output::check_free(out)?;
    let names = source.quantized_modules();
    let modules: Vec<ModuleReport> = names.iter().map(|n| source.describe(n)).collect::<Result<_, _>>()?;
    let first_pass: u64 = modules.iter().map(|m| m.bytes).sum();
    let (planned, left_out) = plan(source, &modules, target);
    let total = first_pass + planned.iter().map(|p| output::bytes_of(&p.spec)).sum::<u64>();

    let lossy = |found: String| FormatError::Lossy { folder: source.name().into(), target: target.to_string(), found };
    let refusals: Vec<String> = modules.iter().filter_map(|m| encode::refusal(&m.into(), target)).collect();
    if !refusals.is_empty() {
        return Err(lossy(list(&refusals)));
    }
    let config = configs::quantization(source, &modules, target)?;
    let (mut losses, mut done) = (vec![], 0);
    for module in &modules {
        if !encode::is_exact(module, target) {
            losses.extend(encode::losses(&module.module, &read(source, module)?, target));
        }
        done += module.bytes;
        progress(done, total);
    }
    if !allow_lossy && !losses.is_empty() {
        return Err(lossy(list(&losses)));
    }

    let mut folder = output::Folder::create(out)?;
    folder.copy_files(source)?;
    folder.write_config(source, config)?;
    let shards = output::split(planned, |p| &p.spec);
    let mut bytes = 0;
    let tensors = shards.iter().map(Vec::len).sum();
    for (i, shard) in shards.iter().enumerate() {
        let specs: Vec<TensorSpec> = shard.iter().map(|p| p.spec.clone()).collect();
        let mut writer = folder.shard(i, shards.len(), &specs)?;
        let mut encoded: Option<(usize, QuantMatrix)> = None;
        for p in shard {
            let mut write = |piece: &[u8]| -> Result<(), FormatError> {
                writer.write(&p.spec.0, piece)?;
                bytes += piece.len() as u64;
                progress(done + bytes, total);
                Ok(())
            };
            match p.origin {
                Origin::Copy => source.copy_bytes(&p.spec.0, &mut write)?,
                Origin::Module(at) => {
                    let matrix = match encoded.take() {
                        Some((i, matrix)) if i == at => matrix,
                        _ => read(source, &modules[at])?,
                    };
                    let part = p.spec.0.rsplit('.').next().unwrap_or_default();
                    encode::write(&matrix, target, part, &mut write)?;
                    encoded = Some((at, matrix));
                }
            }
        }
        writer.finish()?;
    }
    folder.write_index(&shards)?;
    folder.finish()?;
    Ok(Converted { modules: modules.len(), tensors, bytes, losses, left_out })
}

/// Every tensor of the output, sorted by name as the source's are, and those of the source that are left out.
fn plan(source: &Checkpoint, modules: &[ModuleReport], target: Target) -> (Vec<Planned>, Vec<String>) {
    let mut planned = vec![];
    for (i, module) in modules.iter().enumerate() {
        for (part, dtype, shape) in encode::specs(&module.into(), target) {
            planned.push(Planned { spec: (format!("{}.{part}", module.module), dtype, shape), origin: Origin::Module(i) });
        }
    }
    let scheme = source.quantization().and_then(|q| q.cache_scheme.as_ref());
    // without their scheme, scales of a cache are taken for those of 8-bit floats
    let unexplained = target != Target::CompressedTensors && scheme.is_some_and(|s| !s.floats);
    let (left_out, kept): (Vec<&str>, Vec<&str>) =
        source.tensor_names().filter(|t| !source.is_part(t)).partition(|t| unexplained && is_cache_scale(t));
    for tensor in kept {
        if let Some(info) = source.info(tensor) {
            planned.push(Planned { spec: (tensor.into(), info.dtype, info.shape.clone()), origin: Origin::Copy });
        }
    }
    planned.sort_by(|a, b| a.spec.0.cmp(&b.spec.0));
    (planned, left_out.into_iter().map(String::from).collect())
}

/// The first things and how many more there are.
fn list(things: &[impl ToString]) -> String {
    const MOST: usize = 8;
    let mut text = things.iter().take(MOST).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if things.len() > MOST {
        text += &format!("; and {} more modules", things.len() - MOST);
    }
    text
}
