//! One module: quantized or not, and with which numbers.

use super::python::{boolean, given, int, quant_method, required, text, truthy};
use super::rules::Rules;
use super::{FusedModules, FusedTrap, MethodError, NameMap, Note, Platform, Verdict, WeightType, check_marlin, check_marlin_moe, modules};
use serde_json::{Map, Value};

/// What kind of layer a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A linear layer, perhaps fused.
    Linear,
    /// The output head.
    Head,
    /// The experts of a mixture, fused to one layer.
    Experts(MoeShape),
    /// Anything else: embeddings, norms, attention.
    Other,
}

/// What a kernel for experts looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeShape {
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate size of one rank.
    pub intermediate_per_rank: usize,
    /// Whether the activation is SiLU.
    pub silu: bool,
    /// Whether the router's weight is applied to the input.
    pub router_weight_on_input: bool,
}

/// The config as the method `gptq` or `gptq_marlin` reads it.
#[derive(Clone, Debug)]
pub struct ModuleConfig {
    marlin: bool,
    scheme: ResolvedScheme,
    sym_in_config: bool,
    lm_head: bool,
    modules: Vec<String>,
    rules: Rules,
    notes: Vec<Note>,
}

/// With which numbers a module is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedScheme {
    /// The method whose kernels run: `gptq`, `gptq_marlin`, `awq`, `awq_marlin`, `cpu_awq`, `ipex` or, for experts, also
    /// `moe_wna16`.
    pub method: &'static str,
    /// Width of a code.
    pub bits: i64,
    /// Rows of a group, or -1.
    pub group_size: i64,
    /// Whether `g_idx` is followed.
    pub desc_act: bool,
    /// Whether zero points are taken for the midpoint and never read.
    pub sym: bool,
    /// Whether stored zero points are true values (`gptq_v2`) and not less one.
    pub v2: bool,
}

/// Why a module is not quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unquantized {
    /// The list of quantized modules has no entry for it.
    NotListed,
    /// A rule of `dynamic` leaves it dense.
    Skipped {
        /// The rule as written.
        rule: String,
    },
    /// The config lists it as left dense.
    NotConverted,
    /// It is the head, and `lm_head` is not true.
    Head,
    /// It is no kind of layer that the method quantizes.
    Layer,
}

/// The verdict on a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is quantized.
    Quantized {
        /// With which numbers.
        scheme: ResolvedScheme,
        /// What happens beside it.
        notes: Vec<Note>,
    },
    /// It is not.
    Unquantized(Unquantized),
}

impl ModuleConfig {
    /// Reads a config for `method`, one of `gptq` and `gptq_marlin`.
    ///
    /// # Errors
    /// [`MethodError`]: a required key is missing, the method does not have the width, or a value is of another kind.
    pub fn read(method: &str, config: &Map<String, Value>) -> Result<Self, MethodError> {
        let (marlin, method) = match method {
            "gptq" => (false, "gptq"),
            "gptq_marlin" => (true, "gptq_marlin"),
            "moe_wna16" if !matches!(quant_method(config).as_str(), "gptq" | "awq") => return Err(MethodError::MoeWna16),
            other => return Err(MethodError::NotDescribed { method: crate::error::clip(other) }),
        };
        let wrong = |key: &str, expected, value: &Value| MethodError::Value { key: key.into(), expected, found: text(value) };
        let bits = required(config, "bits")?;
        let group_size = required(config, "group_size")?;
        let desc_act = truthy(Some(required(config, "desc_act")?));
        // `gptq` never looks at `sym`: it always reads zero points
        let sym = if marlin { required(config, "sym")? } else { &Value::Bool(false) };
        let group_size = int(group_size).ok_or_else(|| wrong("group_size", "a number", group_size))?;
        let mut notes = vec![];
        let bits_number = check_width(marlin, bits, sym)?;
        if !marlin && bits_number == 4 {
            let warning = "Currently, the 4-bit gptq_gemm kernel for GPTQ is buggy. Please switch to gptq_marlin or gptq_bitblas.";
            notes.push(Note::Warning(warning.into()));
        }
        let v2 = !marlin && config.get("checkpoint_format").and_then(Value::as_str) == Some("gptq_v2");
        let scheme = ResolvedScheme {
            method,
            bits: bits_number,
            group_size,
            // here only: an override that makes the group -1 leaves `desc_act` as it is
            desc_act: desc_act && !(marlin && group_size == -1),
            sym: marlin,
            v2,
        };
        Ok(Self {
            marlin,
            scheme,
            sym_in_config: truthy(given(config, "sym")),
            lm_head: truthy(config.get("lm_head")),
            modules: modules::read(config.get("modules_in_block_to_quantize"))?,
            rules: Rules::read(config.get("dynamic"))?,
            notes,
        })
    }

    /// What the method says when it reads the config.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The list of quantized modules.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Puts `inferred` ([`super::infer_modules`]) in place of a list that the config does not give.
    pub fn infer_modules(&mut self, inferred: Vec<String>) {
        if self.modules.is_empty() {
            self.modules = inferred;
        }
    }

    /// Renames the list of quantized modules; patterns of `dynamic` stay as they are.
    pub fn rename_modules(&mut self, map: &NameMap) {
        self.modules = self.modules.iter().filter_map(|name| map.apply(name)).collect();
    }

    /// Which rule of `dynamic` applies to a name.
    ///
    /// # Errors
    /// [`MethodError::Pattern`] when a pattern needs too many steps.
    pub fn dynamic(&self, name: &str) -> Result<Verdict<'_>, MethodError> {
        self.rules.find(name)
    }

    /// The parts of module `prefix` whose own name another rule matches than the fused name: the checkpoint was written
    /// by the one, and is read by the other. Nothing is said at load time; what follows is a wrong shape, a missing
    /// tensor, or garbage.
    ///
    /// # Errors
    /// As [`ModuleConfig::dynamic`].
    pub fn fused_traps(&self, prefix: &str, parts: &[String]) -> Result<Vec<FusedTrap>, MethodError> {
        let read = self.dynamic(prefix)?.rule();
        let mut traps = vec![];
        for part in parts {
            let written = self.dynamic(part)?.rule();
            if written != read {
                traps.push(FusedTrap { part: part.clone(), written: written.map(Into::into), read: read.map(Into::into) });
            }
        }
        Ok(traps)
    }

    /// What becomes of the module `prefix`, a name of the *model*: fused where the model fuses.
    ///
    /// # Errors
    /// [`MethodError`]: some parts of a fused module are listed and others not (even when a rule would skip it), an
    /// override leads to a width that the method does not have, or Marlin kernels lack the type or group size.
    pub fn resolve(&self, layer: Layer, prefix: &str, fused: &FusedModules, platform: Platform) -> Result<Resolution, MethodError> {
        match layer {
            Layer::Linear => {}
            Layer::Head if self.lm_head => {}
            Layer::Head => return Ok(Resolution::Unquantized(Unquantized::Head)),
            Layer::Other => return Ok(Resolution::Unquantized(Unquantized::Layer)),
            Layer::Experts(shape) => return self.experts(shape, prefix, platform),
        }
        let listed = fused.quantized(&self.modules, prefix)?;
        let verdict = self.dynamic(prefix)?;
        if !listed {
            return Ok(Resolution::Unquantized(Unquantized::NotListed));
        }
        if let Verdict::Skip { rule } = verdict {
            return Ok(Resolution::Unquantized(Unquantized::Skipped { rule: rule.into() }));
        }
        let scheme = self.overridden(verdict, prefix)?;
        if let Some(weight) = WeightType::of_gptq(scheme.bits, true).filter(|_| self.marlin) {
            check_marlin(platform, weight, scheme.group_size, false)?;
        }
        Ok(Resolution::Quantized { scheme, notes: vec![] })
    }

    /// Experts: the list of modules is not asked, and the plain method ignores the rules, too.
    fn experts(&self, shape: MoeShape, prefix: &str, platform: Platform) -> Result<Resolution, MethodError> {
        let ResolvedScheme { bits, group_size, desc_act, .. } = self.scheme;
        let fallback = |sym| ResolvedScheme { method: "moe_wna16", bits, group_size, desc_act: false, sym, v2: false };
        let mut notes = vec![];
        if !self.marlin {
            if !self.sym_in_config {
                notes.push(Note::Silent("experts are read as symmetric: their zero points are ignored".into()));
            }
        } else if check_marlin_moe(platform, shape, group_size) {
            return Ok(match self.dynamic(prefix)? {
                Verdict::Skip { rule } => Resolution::Unquantized(Unquantized::Skipped { rule: rule.into() }),
                verdict => Resolution::Quantized { scheme: self.overridden(verdict, prefix)?, notes },
            });
        } else {
            let warning = format!("Layer '{prefix}' is not supported by GPTQMoeMarlin. Falling back to Moe WNA16 kernels.");
            notes.push(Note::Warning(warning));
        }
        if desc_act {
            notes.push(Note::Silent("experts are read in the order of their rows: `g_idx` is ignored".into()));
        }
        Ok(Resolution::Quantized { scheme: fallback(true), notes })
    }

    /// The scheme with a rule's keys; values of the wrong kind count as not given.
    fn overridden(&self, verdict: Verdict<'_>, prefix: &str) -> Result<ResolvedScheme, MethodError> {
        let Verdict::Override { keys, .. } = verdict else { return Ok(self.scheme.clone()) };
        if prefix.is_empty() {
            return Ok(self.scheme.clone());
        }
        let mut scheme = self.scheme.clone();
        let base = Value::from(scheme.bits);
        let bits = keys.get("bits").filter(|value| int(value).is_some()).unwrap_or(&base);
        let sym = keys.get("sym").filter(|value| self.marlin && value.is_boolean());
        scheme.bits = check_width(self.marlin, bits, sym.unwrap_or(&Value::Bool(true)))?;
        scheme.group_size = keys.get("group_size").and_then(int).unwrap_or(scheme.group_size);
        scheme.desc_act = keys.get("desc_act").and_then(Value::as_bool).unwrap_or(scheme.desc_act);
        Ok(scheme)
    }
}

/// Checks that the method has a width.
fn check_width(marlin: bool, bits: &Value, sym: &Value) -> Result<i64, MethodError> {
    let number = int(bits);
    // 1 is True there, and any other number is not
    let symmetric = int(sym) == Some(1);
    match number {
        Some(bits @ (4 | 8)) if marlin && symmetric => Ok(bits),
        Some(bits @ (2 | 3 | 4 | 8)) if !marlin => Ok(bits),
        _ if marlin => {
            let sym = sym.as_bool().map_or_else(|| text(sym), boolean);
            Err(MethodError::MarlinConfig { bits: text(bits), sym })
        }
        _ => Err(MethodError::GptqBits { bits: text(bits) }),
    }
}
