//! AutoRound modules: each may have numbers of its own, and each is read by the method that has a kernel for them.

use super::module::{Layer, Resolution, ResolvedScheme, Unquantized};
use super::python::{given, int, required, text, truthy};
use super::{FusedModules, MethodError, Platform, WeightType, check_marlin, check_marlin_moe};
use crate::json::show;
use fancy_regex::Regex;
use serde_json::{Map, Value};

/// Bits, group size, symmetric.
type Numbers = (i64, i64, bool);

/// The config as the method `auto-round` reads it.
#[derive(Clone, Debug)]
pub struct AutoRoundConfig {
    base: Numbers,
    awq: bool,
    /// Whether Marlin kernels may be taken.
    marlin: bool,
    ipex: bool,
    blocks: Vec<String>,
    extra: Vec<Extra>,
}

#[derive(Clone, Debug)]
struct Extra {
    key: String,
    /// A key with characters that names do not have is a pattern; one that does not compile is passed over.
    regex: Option<Regex>,
    bits: Option<i64>,
    group_size: Option<i64>,
    sym: Option<bool>,
}

impl AutoRoundConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// [`MethodError`]: a required key is missing, or a value is none of those that the method has.
    pub fn read(config: &Map<String, Value>) -> Result<Self, MethodError> {
        let wrong = |key: &str, expected, value: &Value| MethodError::Value { key: key.into(), expected, found: text(value) };
        let among = |key: &'static str, value: Option<&Value>, default: &'static str, legal: &'static [&'static str]| match value {
            None => Ok(default),
            Some(value) => legal.iter().find(|l| value == **l).copied().ok_or_else(|| MethodError::Unsupported {
                key,
                found: text(value),
                supported: legal.join(", "),
            }),
        };
        let (bits, group_size, sym) = (required(config, "bits")?, required(config, "group_size")?, required(config, "sym")?);
        let Some(width @ (2 | 3 | 4 | 8)) = int(bits) else {
            return Err(MethodError::Unsupported { key: "weight_bits", found: text(bits), supported: "2, 3, 4, 8".into() });
        };
        let group_size = int(group_size).ok_or_else(|| wrong("group_size", "a number", group_size))?;
        among("data_type", config.get("data_type"), "int", &["int"])?;
        let formats = &["auto_round:auto_gptq", "auto_round:auto_awq"];
        let format = among("packing_format", config.get("packing_format"), "auto_round:auto_gptq", formats)?;
        let backends = &["auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin", "ipex"];
        let backend = among("backend", config.get("backend").or_else(|| config.get("vllm_backend")), "auto", backends)?;
        let blocks = match given(config, "block_name_to_quantize").or_else(|| given(config, "to_quant_block_names")) {
            None => vec![],
            Some(Value::String(names)) => names.split(',').map(String::from).collect(),
            Some(Value::Array(names)) => {
                let name = |v: &Value| v.as_str().map(String::from).ok_or_else(|| wrong("block_name_to_quantize", "names", v));
                names.iter().map(name).collect::<Result<_, _>>()?
            }
            Some(other) => return Err(wrong("block_name_to_quantize", "names", other)),
        };
        let extra = match given(config, "extra_config") {
            None => vec![],
            Some(Value::Object(map)) => map.iter().map(|(key, value)| Extra::read(key, value)).collect::<Result<_, _>>()?,
            Some(other) => return Err(MethodError::Value { key: "extra_config".into(), expected: "an object", found: show(other) }),
        };
        let awq = !format.contains("gptq") && !backend.contains("gptq");
        let marlin = backend == "auto" || backend.contains("marlin");
        Ok(Self { base: (width, group_size, truthy(Some(sym))), awq, marlin, ipex: backend == "ipex", blocks, extra })
    }

    /// What becomes of the module `prefix`, a name of the *model*: fused where the model fuses.
    ///
    /// # Errors
    /// [`MethodError::Inconsistent`] when the parts of a fused module have different numbers, otherwise what the method of
    /// its numbers refuses.
    pub fn resolve(&self, layer: Layer, prefix: &str, fused: &FusedModules, platform: Platform) -> Result<Resolution, MethodError> {
        if layer == Layer::Other {
            return Ok(Resolution::Unquantized(Unquantized::Layer));
        }
        let whole = format!("model.{prefix}");
        let left_out = self.extra.iter().any(|e| (e.key == prefix || e.key == whole) && e.bits.is_some_and(|bits| bits >= 16));
        let (bits, group_size, sym) = if left_out { (16, -1, true) } else { self.numbers(layer, prefix, fused)? };
        if bits >= 16 {
            return Ok(Resolution::Unquantized(if layer == Layer::Head { Unquantized::Head } else { Unquantized::NotConverted }));
        }
        let scheme = |method| ResolvedScheme { method, bits, group_size, desc_act: false, sym, v2: self.awq };
        let quantized = |method| Ok(Resolution::Quantized { scheme: scheme(method), notes: vec![] });
        if platform == Platform::Cpu || self.ipex {
            let linear = !matches!(layer, Layer::Experts(_));
            return if linear { quantized("ipex") } else { Ok(Resolution::Unquantized(Unquantized::Layer)) };
        }
        let weight = match (self.awq, bits) {
            (false, bits) => WeightType::of_gptq(bits, sym),
            (true, 4) => Some(WeightType::Uint4),
            (true, 8) => Some(WeightType::Uint8),
            _ => None,
        };
        let fits = |weight| check_marlin(platform, weight, group_size, !sym).is_ok();
        let mut marlin = self.marlin && weight.is_some_and(fits);
        if let Layer::Experts(shape) = layer {
            marlin = marlin && check_marlin_moe(platform, shape, group_size);
            return quantized(match (marlin, self.awq) {
                (true, true) => "awq_marlin",
                (true, false) => "gptq_marlin",
                (false, _) => "moe_wna16",
            });
        }
        match (marlin, self.awq) {
            (true, true) => quantized("awq_marlin"),
            (true, false) => quantized("gptq_marlin"),
            (false, true) if bits != 4 => Err(MethodError::AwqBits { bits: bits.to_string() }),
            (false, true) => quantized("awq"),
            (false, false) if !matches!(bits, 2 | 3 | 4 | 8) => Err(MethodError::GptqBits { bits: bits.to_string() }),
            (false, false) => quantized("gptq"),
        }
    }

    /// Numbers of a module.
    fn numbers(&self, layer: Layer, prefix: &str, fused: &FusedModules) -> Result<Numbers, MethodError> {
        if let Some(extra) = self.extra.iter().find(|e| e.key == prefix) {
            return Ok(extra.over(self.base));
        }
        let inside = self.blocks.iter().any(|block| prefix.starts_with(block.as_str()));
        let quantized = if self.blocks.is_empty() { layer != Layer::Head } else { inside };
        let base = if quantized { self.base } else { (16, -1, true) };
        let same = |what, mut found: Vec<Numbers>, parts: String| {
            let first = found.pop();
            match found.iter().all(|f| Some(f) == first.as_ref()) {
                true => Ok(first),
                false => Err(MethodError::Inconsistent { what, prefix: prefix.into(), parts }),
            }
        };
        if let Layer::Experts(_) = layer {
            let parts = self.extra.iter().filter(|e| e.key.starts_with(prefix)).map(|e| e.over(base)).collect();
            if let Some(numbers) = same("MoE layer", parts, "all sub-layers".into())? {
                return Ok(numbers);
            }
        }
        if let Some(parts) = fused.parts_once(prefix).filter(|_| !self.extra.is_empty()) {
            let found = parts.iter().map(|part| self.of(part, base)).collect();
            let names: Vec<&str> = parts.iter().map(String::as_str).collect();
            if let Some(numbers) = same("module", found, super::python::list(&names))? {
                return Ok(numbers);
            }
        }
        Ok(self.of(prefix, base))
    }

    /// Numbers under a key that is the name, or else under the first pattern that is found in it.
    fn of(&self, name: &str, base: Numbers) -> Numbers {
        let exact = self.extra.iter().find(|e| e.key == name);
        let found = |e: &&Extra| e.regex.as_ref().is_some_and(|regex| regex.is_match(name).unwrap_or(false));
        exact.or_else(|| self.extra.iter().find(found)).map_or(base, |extra| extra.over(base))
    }
}

impl Extra {
    fn read(key: &str, value: &Value) -> Result<Self, MethodError> {
        let Value::Object(map) = value else {
            let key = crate::error::clip(format!("extra_config.{key}"));
            return Err(MethodError::Value { key, expected: "an object", found: show(value) });
        };
        let special = key.contains(|c| r"*+?^$()[]{}|\".contains(c));
        let regex = if special { Regex::new(key).ok() } else { None };
        let number = |name: &str| map.get(name).and_then(int);
        let sym = map.get("sym").map(|sym| truthy(Some(sym)));
        Ok(Self { key: key.into(), regex, bits: number("bits"), group_size: number("group_size"), sym })
    }

    fn over(&self, (bits, group_size, sym): Numbers) -> Numbers {
        (self.bits.unwrap_or(bits), self.group_size.unwrap_or(group_size), self.sym.unwrap_or(sym))
    }
}
