//! What a quantized module is, for people who inspect a folder. Codes are not read.

use crate::checkpoint::Checkpoint;
use crate::dialect::Decoded;
use crate::module::Module;
use crate::{CheckpointFormat, Evidence, FormatError, GroupSize, ZeroDialect};
use billfish_tensor::{DType, Groups, Packing, QuantMatrix, Zeros};

/// The entry of a list of the config that decides about a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The list: `modules_to_not_convert`, `ignore`, `extra_config`, `config_groups` or `block_name_to_quantize`.
    pub key: &'static str,
    /// The entry as written.
    pub entry: String,
    /// Whether it leaves the module dense.
    pub dense: bool,
}

impl std::fmt::Display for ListEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` of `{}`", self.entry, self.key)
    }
}

/// How the rules of a config apply to a module: those of `dynamic`, and its lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleReport {
    /// The rule that the tensors show was applied, as written.
    pub applied: Option<String>,
    /// What vLLM applies: the first rule that matches.
    pub in_order: Option<String>,
    /// What GPTQModel applies: negative rules first.
    pub negatives_first: Option<String>,
    /// The entry of another list that decides about the module.
    pub listed: Option<ListEntry>,
}

impl RuleReport {
    /// Whether the two readings apply different rules.
    pub fn differ(&self) -> bool {
        self.in_order != self.negatives_first
    }
}

impl Checkpoint {
    /// How the rules of the config apply to a module whose tensors show it quantized or dense.
    ///
    /// # Errors
    /// [`FormatError::Config`] for a pattern that cannot be decided.
    pub fn rules(&self, module: &str, quantized: bool) -> Result<RuleReport, FormatError> {
        let Some(config) = self.quantization() else { return Ok(RuleReport::default()) };
        let found = config.rules_for(module)?;
        let text = |r: Option<&crate::Rule>| r.map(|r| r.text().to_string());
        Ok(RuleReport {
            applied: text(found.for_tensors(quantized)),
            in_order: text(found.in_order()),
            negatives_first: text(found.negatives_first()),
            listed: config.selection.entry(module),
        })
    }
}

/// What one quantized module is.
#[derive(Clone, Debug)]
pub struct ModuleReport {
    /// Its name.
    pub module: String,
    /// The format of its tensors.
    pub format: CheckpointFormat,
    /// Why it cannot be read, if it cannot.
    pub refusal: Option<String>,
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Width of a code.
    pub bits: u32,
    /// Rows of a group, as configured.
    pub group_size: GroupSize,
    /// Number of groups.
    pub groups: usize,
    /// Whether the config calls it symmetric.
    pub sym: bool,
    /// Whether every true zero point is the midpoint.
    pub midpoint: bool,
    /// How zero points are stored.
    pub zeros: ZeroDialect,
    /// What decided that.
    pub evidence: Evidence,
    /// The evidence in words.
    pub reason: String,
    /// Stored zero points of all ones under a v1 reading: 0 or `2^bits`, as the dialect says.
    pub wrapped_zeros: usize,
    /// Zero points that the file does not hold any more; `refusal` then says why the module is not read.
    pub lost_zeros: usize,
    /// The dialect that most modules of the folder show, if the numbers of this one show another: the folder is mixed.
    pub mixed_zeros: Option<ZeroDialect>,
    /// Whether rows of a group stand apart (`g_idx` is needed).
    pub act_order: bool,
    /// Whether there is a bias.
    pub bias: bool,
    /// Rules that apply to it.
    pub rule: RuleReport,
    /// Type of the scales.
    pub scales: DType,
    /// How codes are packed.
    pub packing: Packing,
    /// Bytes of all its tensors on disk.
    pub bytes: u64,
}

impl ModuleReport {
    /// Bits on disk for one weight, everything included.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / (self.in_features as f64 * self.out_features as f64)
    }
}

pub(crate) fn describe(checkpoint: &Checkpoint, name: &str) -> Result<ModuleReport, FormatError> {
    let module = Module::find(checkpoint, name, None)?;
    let decoded = module.zero_points()?;
    report(checkpoint, &module, &decoded)
}

/// A module with its report, its zero points found out once for both. The matrix has no bias.
pub(crate) fn describe_and_read(checkpoint: &Checkpoint, name: &str) -> Result<(ModuleReport, QuantMatrix), FormatError> {
    let module = Module::find(checkpoint, name, None)?;
    module.check_readable()?;
    let decoded = module.zero_points()?;
    let report = report(checkpoint, &module, &decoded)?;
    Ok((report, module.read_with(decoded, None)?))
}

fn report(checkpoint: &Checkpoint, module: &Module<'_>, decoded: &Decoded) -> Result<ModuleReport, FormatError> {
    let name = module.name;
    let bias = checkpoint.find(&format!("{name}.bias"));
    let rule = checkpoint.rules(name, true)?;
    let tensors = [&module.codes, &module.scales].into_iter().chain(&module.zeros).chain(&module.g_idx).chain(&module.others).chain(&bias);
    Ok(ModuleReport {
        module: name.into(),
        format: module.scheme.format,
        refusal: module.refusal().or(decoded.refusal.clone()),
        in_features: module.k,
        out_features: module.n,
        bits: module.scheme.bits,
        group_size: module.scheme.group_size,
        groups: module.count,
        sym: module.scheme.sym,
        midpoint: decoded.zeros == Zeros::Midpoint,
        zeros: decoded.dialect,
        evidence: decoded.evidence,
        reason: decoded.reason.clone(),
        wrapped_zeros: decoded.wrapped,
        lost_zeros: decoded.lost,
        mixed_zeros: decoded.mixed,
        act_order: matches!(module.groups, Groups::Index { .. }),
        bias: bias.is_some(),
        rule,
        scales: module.scales.info.dtype,
        packing: module.packing(),
        bytes: tensors.map(|t| t.info.bytes as u64).sum(),
    })
}
