//! Which kernel runs a linear layer of the method `gptq_marlin`, and of others that choose from the same list.

use super::{Activation, MethodError, Platform, WeightType, check_marlin, check_marlin_shape};

/// A linear layer as kernels look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLayer {
    /// Type of its codes.
    pub weight: WeightType,
    /// Type of activations.
    pub activation: Activation,
    /// Rows of a group, or -1.
    pub group_size: i64,
    /// Whether there are zero points at run time.
    pub zero_points: bool,
    /// Whether rows are in act-order.
    pub act_order: bool,
    /// Rows of the whole matrix.
    pub input_size: usize,
    /// Rows of one rank.
    pub rows: usize,
    /// Columns of one rank.
    pub columns: usize,
}

type Check = fn(Platform, &KernelLayer) -> Result<(), String>;

/// In the order in which they are asked. Left out are those that need 8-bit activations, another platform, or a package that
/// does not come with vLLM (CutlassW4A8, Dynamic4bit, XPU, BitBLAS, Conch).
const KERNELS: [(&str, Check); 5] = [
    ("MacheteLinearKernel", machete),
    ("AllSparkLinearKernel", all_spark),
    ("MarlinLinearKernel", marlin),
    ("ExllamaLinearKernel", exllama),
    ("CPUWNA16LinearKernel", cpu),
];

/// The kernel that vLLM 0.14.1 would take.
///
/// # Errors
/// [`MethodError::NoKernel`] when none of them can; the reasons are in our words, for the kernels of the platform.
pub fn choose_kernel(platform: Platform, layer: &KernelLayer) -> Result<&'static str, MethodError> {
    let mut reasons = String::new();
    for (name, check) in KERNELS {
        match check(platform, layer) {
            Ok(()) => return Ok(name),
            Err(reason) => reasons += &format!("\n {name} cannot implement due to: {reason}"),
        }
    }
    Err(MethodError::NoKernel { reasons })
}

fn need(holds: bool, what: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

fn multiple(what: &str, size: usize, of: usize) -> Result<(), String> {
    need(size.is_multiple_of(of), format!("{what} must be a multiple of {of}, not {size}"))
}

fn groups(group_size: i64, legal: &[i64]) -> Result<(), String> {
    need(legal.contains(&group_size), format!("group size {group_size} is none of {legal:?}"))
}

fn types(weight: WeightType, legal: &[WeightType]) -> Result<(), String> {
    need(legal.contains(&weight), format!("type {} is not supported", weight.name()))
}

fn machete(platform: Platform, l: &KernelLayer) -> Result<(), String> {
    need(platform == Platform::Cuda { capability: 90 }, "it needs compute capability 9.0")?;
    match l.zero_points {
        true => types(l.weight, &[WeightType::Uint4, WeightType::Uint8])?,
        false => types(l.weight, &[WeightType::Uint4b8, WeightType::Uint8b128])?,
    }
    need(l.activation != Activation::F32, "activations must have 16 bits")?;
    groups(l.group_size, &[-1, 64, 128])?;
    need(!l.act_order || l.rows == l.input_size, "act-order is not supported when rows are split over ranks")?;
    multiple("rows of a rank", l.rows, 64)?;
    multiple("columns of a rank", l.columns, 128)
}

fn all_spark(platform: Platform, l: &KernelLayer) -> Result<(), String> {
    need(matches!(platform, Platform::Cuda { capability: 80..=89 }), "it needs compute capability 8.0 to 8.9")?;
    need(!l.act_order && !l.zero_points, "neither act-order nor zero points are supported")?;
    types(l.weight, &[WeightType::Uint8b128])?;
    need(l.activation != Activation::F32, "activations must have 16 bits")?;
    groups(l.group_size, &[-1])?;
    multiple("rows of a rank", l.rows, 16)?;
    multiple("columns of a rank", l.columns, 16)
}

fn marlin(platform: Platform, l: &KernelLayer) -> Result<(), String> {
    need(matches!(platform, Platform::Cuda { capability: 75.. }), "it needs CUDA and compute capability 7.5")?;
    check_marlin(platform, l.weight, l.group_size, l.zero_points).map_err(|e| e.to_string())?;
    check_marlin_shape(l.columns, l.rows, l.input_size, l.group_size).map_err(|e| e.to_string())
}

fn exllama(platform: Platform, l: &KernelLayer) -> Result<(), String> {
    need(matches!(platform, Platform::Cuda { capability: 60.. } | Platform::Rocm), "it needs CUDA or ROCm")?;
    need(!l.act_order || l.rows == l.input_size, "act-order is not supported when rows are split over ranks")?;
    multiple("columns of a rank", l.columns, if l.weight.bits() == 4 { 8 } else { 4 })?;
    need(l.activation == Activation::F16, "Exllama only supports float16 activations")?;
    types(l.weight, &[WeightType::Uint4b8, WeightType::Uint8b128])?;
    // -1 divides everything here, and fails later
    match usize::try_from(l.group_size) {
        Ok(group) if group > 0 => multiple("rows", l.input_size, group),
        _ => Ok(()),
    }
}

fn cpu(platform: Platform, l: &KernelLayer) -> Result<(), String> {
    need(platform == Platform::Cpu, "CPUWNA16 only supported on CPU")?;
    types(l.weight, &[WeightType::Uint4, WeightType::Uint4b8])?;
    need(l.group_size == -1 || l.group_size % 2 == 0, format!("group size {} is not even", l.group_size))?;
    multiple("rows of a rank", l.rows, 32)?;
    multiple("columns of a rank", l.columns, 32)?;
    need(!l.zero_points, "AWQ is not supported in CPUWNA16LinearKernel")
}
