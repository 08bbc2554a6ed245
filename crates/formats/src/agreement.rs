//! Whether a module is quantized as its config says. The tensors decide; a config that says otherwise is worth a warning.

use crate::selection::Says;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, QuantConfig};
use std::collections::BTreeSet;

const DENSE: &str = "a module is dense though the quantization config does not leave it out: its tensors are followed";

/// What the names of a checkpoint's tensors tell about which kinds of modules are quantized.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// Names of quantized modules with every number replaced: `model.layers.#.mlp.up_proj`.
    kinds: BTreeSet<String>,
}

impl Agreement {
    pub(crate) fn new(quantized: &[String]) -> Self {
        Self { kinds: quantized.iter().map(|m| kind(m)).collect() }
    }

    /// Warns when `module` is quantized against the config, or dense against it.
    pub(crate) fn check(&self, config: &QuantConfig, module: &str, quantized: bool, warnings: &Warnings) -> Result<(), FormatError> {
        let rules = config.rules_for(module)?;
        let warn = |message: &str| warnings.about(WarningKind::Rules, message, module);
        let head = module == "lm_head" || module.ends_with(".lm_head");
        // Entries of the list are parts of names: full names, or names inside a block.
        let listed = config.modules.iter().any(|m| module.contains(m.as_str()));
        if rules.differ() {
            let message = "vLLM and GPTQModel apply different rules of `dynamic` to a module";
            warn(&format!("{message}: its tensors show it {}", if quantized { "quantized" } else { "dense" }));
        }
        let skipped = rules.for_tensors(false).is_some();
        let says = config.selection.says(module);
        let included = rules.for_tensors(true).is_some() || (matches!(says, Says::Quantized | Says::Linear) && !skipped);
        if quantized {
            if let (Says::Dense(key), false) = (says, rules.for_tensors(true).is_some()) {
                warn(&format!("`{key}` leaves a module dense, but it is quantized: its tensors are followed"));
            } else if skipped && !included {
                warn("a rule of `dynamic` leaves a module dense, but it is quantized: its tensors are followed");
            } else if head && !config.lm_head && !included {
                warn("`lm_head` is false in the quantization config, but the head is quantized: its tensors are followed");
            } else if !head && !config.modules.is_empty() && !listed && !included {
                warn("a quantized module is not in `modules_in_block_to_quantize`: its tensors are followed");
            }
        } else if !skipped && !matches!(says, Says::Dense(_)) {
            if says == Says::Quantized {
                warn(DENSE);
            } else if head && config.lm_head {
                warn("`lm_head` is true in the quantization config, but the head is dense: its tensors are followed");
            } else if !head && (listed || (config.modules.is_empty() && self.kinds.contains(&kind(module)))) {
                warn(DENSE);
            }
        }
        Ok(())
    }
}

/// A module's name with every number replaced: modules of one kind differ in their layer only.
pub(crate) fn kind(module: &str) -> String {
    let part = |p: &str| if p.bytes().all(|b| b.is_ascii_digit()) { "#".to_string() } else { p.to_string() };
    module.split('.').map(part).collect::<Vec<_>>().join(".")
}
