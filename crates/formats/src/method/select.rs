//! The method: hooks that may replace a checkpoint's own, the user's choice, and what an engine checks of the winner.

use super::python::{given, int, list, quant_method, truthy};
use super::{MethodError, WeightType, check_marlin};
use crate::error::clip;
use serde_json::{Map, Value};

/// Where a model would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// An NVIDIA GPU of this compute capability: 80 is 8.0.
    Cuda {
        /// Ten times the major number plus the minor one.
        capability: u32,
    },
    /// An AMD GPU.
    Rocm,
    /// A CPU.
    Cpu,
}

impl Platform {
    /// The compute capability, where there is one.
    pub fn capability(self) -> Option<u32> {
        match self {
            Platform::Cuda { capability } => Some(capability),
            Platform::Rocm | Platform::Cpu => None,
        }
    }
}

/// Type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// IEEE half.
    F16,
    /// Truncated single.
    BF16,
    /// Single.
    F32,
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Activation::F16 => "torch.float16",
            Activation::BF16 => "torch.bfloat16",
            Activation::F32 => "torch.float32",
        }
    }
}

/// What happens beside the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// An informational line, in vLLM's words.
    Info(String),
    /// A warning, in vLLM's words.
    Warning(String),
    /// Something that vLLM does not say.
    Silent(String),
}

/// The method that vLLM takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Its name; `None` when the model counts as not quantized.
    pub method: Option<String>,
    /// What happens beside it.
    pub notes: Vec<Note>,
}

/// Every method of the version, in its order.
const KNOWN: [&str; 30] = [
    "awq",
    "deepspeedfp",
    "tpu_int8",
    "fp8",
    "ptpc_fp8",
    "fbgemm_fp8",
    "fp_quant",
    "modelopt",
    "modelopt_fp4",
    "bitblas",
    "gguf",
    "gptq_marlin_24",
    "gptq_marlin",
    "gptq_bitblas",
    "awq_marlin",
    "gptq",
    "compressed-tensors",
    "bitsandbytes",
    "hqq",
    "experts_int8",
    "ipex",
    "quark",
    "moe_wna16",
    "torchao",
    "auto-round",
    "rtn",
    "inc",
    "mxfp4",
    "petit_nvfp4",
    "cpu_awq",
];

const DEPRECATED: [&str; 14] = [
    "bitblas",
    "gptq_marlin_24",
    "gptq_bitblas",
    "hqq",
    "ipex",
    "auto-round",
    "rtn",
    "deepspeedfp",
    "ptpc_fp8",
    "fbgemm_fp8",
    "fp_quant",
    "experts_int8",
    "petit_nvfp4",
    "tpu_int8",
];

/// The method for a checkpoint with the quantization config `config`, when the user asked for `user`.
///
/// Hooks are asked in a fixed order, and the first that claims the checkpoint wins over both the config and the user.
/// Only if none does, the config's `quant_method` stands, and the user must not have asked for anything else.
///
/// # Errors
/// [`MethodError::Mismatch`], [`MethodError::Unknown`] or [`MethodError::Deprecated`].
pub fn select(
    config: Option<&Map<String, Value>>,
    user: Option<&str>,
    platform: Platform,
    allow_deprecated: bool,
) -> Result<Selection, MethodError> {
    let user = user.map(|name| clip(name.to_lowercase()));
    let mut notes = vec![];
    let method = match config {
        None => user,
        Some(config) => choose(config, user.as_deref(), platform, &mut notes)?,
    };
    if let Some(name) = method.as_deref() {
        if !KNOWN.contains(&name) {
            return Err(MethodError::Unknown { method: name.into(), known: list(&KNOWN) });
        }
        if DEPRECATED.contains(&name) && !allow_deprecated {
            return Err(MethodError::Deprecated { method: name.into() });
        }
        if DEPRECATED.contains(&name) {
            let warning = format!("The quantization method {name} is deprecated and will be removed in future versions of vLLM.");
            notes.push(Note::Warning(warning));
        }
        if name == "gptq" && platform == Platform::Cpu {
            notes.push(Note::Silent("the method gptq has no operation on CPUs: loading ends at the first module".into()));
        }
    }
    Ok(Selection { method, notes })
}

fn choose(
    config: &Map<String, Value>,
    user: Option<&str>,
    platform: Platform,
    notes: &mut Vec<Note>,
) -> Result<Option<String>, MethodError> {
    let format = config.get("checkpoint_format").and_then(Value::as_str).unwrap_or("");
    let asked = |names: &[&str]| user.is_some_and(|user| names.contains(&user));
    let free_or = |names: &[&str]| user.is_none() || asked(names);
    let serialized =
        [("bitblas", format == "bitblas" || truthy(config.get("is_bitblas_format"))), ("gptq_marlin_24", format == "marlin_24")];
    for (name, is) in serialized {
        if is && free_or(&["gptq", name]) {
            notes.push(Note::Info(format!("The model is serialized in {name} format. Using {name} kernel.")));
            return Ok(Some(name.into()));
        }
    }
    let converts = [
        ("gptq_marlin", "gptq", ["marlin", "gptq_marlin"], gptq_marlin_fits(config, platform)),
        ("gptq_bitblas", "gptq", ["bitblas", "gptq_bitblas"], gptq_bitblas_fits(config, platform)),
        ("awq_marlin", "awq", ["marlin", "awq_marlin"], awq_marlin_fits(config, platform)),
    ];
    for (name, plain, valid, fits) in converts {
        if fits && free_or(&valid) {
            notes.push(Note::Info(format!("The model is convertible to {name} during runtime. Using {name} kernel.")));
            return Ok(Some(name.into()));
        }
        if fits && asked(&[plain]) {
            notes.push(Note::Info(format!(
                "Detected that the model can run with {name}, however you specified quantization={plain} explicitly, so forcing {plain}. \
                 Use quantization={name} for faster inference"
            )));
        }
    }
    if asked(&["moe_wna16"]) && moe_wna16_fits(config, platform) {
        return Ok(Some("moe_wna16".into()));
    }
    let own = quant_method(config);
    if own == "awq" && platform == Platform::Cpu {
        return Ok(Some("cpu_awq".into()));
    }
    let own = Some(own).filter(|name| !name.is_empty());
    match user {
        Some(user) if own.as_deref() != Some(user) => {
            Err(MethodError::Mismatch { config: own.unwrap_or_else(|| "None".into()), user: user.into() })
        }
        _ => Ok(own),
    }
}

/// Bits, group size and type of a symmetric GPTQ config that gives all that a conversion needs.
fn convertible(config: &Map<String, Value>) -> Option<(WeightType, i64)> {
    let [bits, group_size, sym, _] = ["bits", "group_size", "sym", "desc_act"].map(|key| given(config, key));
    let weight = WeightType::of_gptq(int(bits?)?, int(sym?)? == 1)?;
    given(config, "desc_act")?;
    Some((weight, int(group_size?)?))
}

fn gptq_marlin_fits(config: &Map<String, Value>, platform: Platform) -> bool {
    let supported = |(weight, group_size)| check_marlin(platform, weight, group_size, false).is_ok();
    quant_method(config) == "gptq" && convertible(config).is_some_and(supported)
}

fn gptq_bitblas_fits(config: &Map<String, Value>, platform: Platform) -> bool {
    let capable = platform.capability().is_some_and(|c| Some(c) >= min_capability("gptq_bitblas"));
    capable && convertible(config).is_some_and(|(_, group_size)| super::MARLIN_GROUP_SIZES.contains(&group_size))
}

fn awq_marlin_fits(config: &Map<String, Value>, platform: Platform) -> bool {
    let [bits, group_size, zero_point] = ["bits", "group_size", "zero_point"].map(|key| given(config, key));
    let (Some(bits), Some(group_size), Some(_)) = (bits.and_then(int), group_size.and_then(int), zero_point) else { return false };
    let weight = match bits {
        4 => WeightType::Uint4,
        8 => WeightType::Uint8,
        _ => return false,
    };
    let cuda = matches!(platform, Platform::Cuda { .. });
    cuda && quant_method(config) == "awq" && check_marlin(platform, weight, group_size, truthy(zero_point)).is_ok()
}

fn moe_wna16_fits(config: &Map<String, Value>, platform: Platform) -> bool {
    let bits = given(config, "bits").and_then(int);
    match quant_method(config).as_str() {
        "gptq" => !truthy(config.get("desc_act")) && matches!(bits, Some(4 | 8)),
        "awq" => bits == Some(4) && platform.capability().is_some_and(|c| Some(c) >= min_capability("awq")),
        _ => false,
    }
}

/// The least compute capability of a method for GPTQ or AWQ checkpoints; `None` for other methods.
pub fn min_capability(method: &str) -> Option<u32> {
    match method {
        "gptq" => Some(60),
        "gptq_bitblas" | "moe_wna16" => Some(70),
        "gptq_marlin" | "awq" | "awq_marlin" => Some(75),
        _ => None,
    }
}

/// What the engine checks once the method is chosen: the type of activations and the GPU.
///
/// # Errors
/// [`MethodError::Dtype`] or [`MethodError::Capability`]. Methods other than those for GPTQ and AWQ pass.
pub fn check_engine(method: &str, platform: Platform, activation: Activation) -> Result<(), MethodError> {
    let supported: &[Activation] = match method {
        "gptq" | "awq" => &[Activation::F16],
        "gptq_marlin" | "awq_marlin" | "gptq_bitblas" | "moe_wna16" | "cpu_awq" => &[Activation::F16, Activation::BF16],
        _ => return Ok(()),
    };
    if let (Some(minimum), Some(capability)) = (min_capability(method), platform.capability())
        && capability < minimum
    {
        return Err(MethodError::Capability { method: method.into(), minimum, capability });
    }
    if supported.contains(&activation) {
        return Ok(());
    }
    let names: Vec<&str> = supported.iter().map(|a| a.name()).collect();
    Err(MethodError::Dtype { dtype: activation.name().into(), method: method.into(), supported: format!("[{}]", names.join(", ")) })
}
