//! The quantization config of a checkpoint: every key understood, known to be harmless, or listed.

use crate::cache_scales::CacheScheme;
use crate::compressed_config;
use crate::dynamic::{Dynamic, Match};
use crate::json::show;
use crate::keys::{self, Keys};
use crate::selection::Selection;
use crate::warning::{WarningKind, Warnings};
use crate::{FormatError, Writer, ZeroLabel};
use billfish_tensor::{ActivationScale, Packing};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// Rows of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupSize {
    /// One group holds all rows (`-1` in files).
    Channel,
    /// This many rows, at least 1.
    Rows(usize),
}

impl GroupSize {
    /// Rows of a full group of a matrix of `k` rows.
    pub fn rows(self, k: usize) -> usize {
        match self {
            GroupSize::Channel => k,
            GroupSize::Rows(rows) => rows,
        }
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupSize::Channel => f.write_str("-1"),
            GroupSize::Rows(rows) => rows.fmt(f),
        }
    }
}

/// `checkpoint_format`: how zero points are stored and codes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointFormat {
    /// `gptq` (v1): zero points are stored less one.
    Gptq,
    /// `gptq_v2`: zero points are stored as they are.
    GptqV2,
    /// `gptq_p`: planar packing, zero points as they are.
    GptqP,
    /// AWQ's gemm layout: packed along the outputs.
    AwqGemm,
    /// AWQ's gemv layout: packed along the inputs, outputs first.
    AwqGemv,
    /// The layout of AutoAWQ's gemv_fast and of llm-awq: 16-bit words of four interleaved outputs, zero points as floats.
    AwqFast,
    /// Tiles of a tensor-core kernel: 4 bit, symmetric, no act-order.
    Marlin,
    /// compressed-tensors, integer codes in words.
    PackQuantized,
    /// compressed-tensors, integer codes in bytes.
    IntQuantized,
    /// compressed-tensors, 8-bit floats. Not read.
    FloatQuantized,
    /// compressed-tensors, 4-bit floats with 8-bit float scales. Not read.
    Nvfp4,
    /// compressed-tensors, 4-bit floats with powers of two as scales. Not read.
    Mxfp4,
}

impl CheckpointFormat {
    /// Its name: that of a config, after the method where that is another than GPTQ.
    pub fn name(self) -> &'static str {
        match self {
            CheckpointFormat::Gptq => "gptq",
            CheckpointFormat::GptqV2 => "gptq_v2",
            CheckpointFormat::GptqP => "gptq_p",
            CheckpointFormat::AwqGemm => "awq gemm",
            CheckpointFormat::AwqGemv => "awq gemv",
            CheckpointFormat::AwqFast => "awq gemv_fast",
            CheckpointFormat::Marlin => "marlin",
            CheckpointFormat::PackQuantized => "compressed-tensors pack-quantized",
            CheckpointFormat::IntQuantized => "compressed-tensors int-quantized",
            CheckpointFormat::FloatQuantized => "compressed-tensors float-quantized",
            CheckpointFormat::Nvfp4 => "compressed-tensors nvfp4-pack-quantized",
            CheckpointFormat::Mxfp4 => "compressed-tensors mxfp4-pack-quantized",
        }
    }

    pub(crate) fn is_gptq(self) -> bool {
        matches!(self, CheckpointFormat::Gptq | CheckpointFormat::GptqV2 | CheckpointFormat::GptqP)
    }

    fn from_name(name: &str) -> Option<Self> {
        let named = [CheckpointFormat::Gptq, CheckpointFormat::GptqV2, CheckpointFormat::GptqP, CheckpointFormat::Marlin];
        named.into_iter().find(|f| f.name() == name)
    }
}

/// How one module was quantized: the config with the module's rule applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Width of a code, 2 to 8.
    pub bits: u32,
    /// Rows of a group.
    pub group_size: GroupSize,
    /// Whether zero points should all be the midpoint.
    pub sym: bool,
    /// Whether the rows of a group may stand anywhere.
    pub desc_act: bool,
    /// The format, after what `bits` implies: 5, 6 and 7 bit exist in the planar layout only.
    pub format: CheckpointFormat,
    /// The scale that 8-bit activations are to have.
    pub activation_scale: ActivationScale,
}

impl Scheme {
    /// How codes and zero points are packed.
    pub fn packing(&self) -> Packing {
        if self.format == CheckpointFormat::GptqP { Packing::Planar } else { Packing::Continuous }
    }
}

/// The quantization config of a checkpoint.
#[derive(Clone, Debug)]
pub struct QuantConfig {
    /// The file that the config was read from.
    pub file: String,
    /// Width of a code where no rule says otherwise.
    pub bits: u32,
    /// Rows of a group where no rule says otherwise.
    pub group_size: GroupSize,
    /// Whether quantization is symmetric where no rule says otherwise.
    pub sym: bool,
    /// Whether rows were reordered where no rule says otherwise (false with one group per column, where it means nothing).
    pub desc_act: bool,
    /// The format of the checkpoint.
    pub format: CheckpointFormat,
    /// Which program wrote the checkpoint.
    pub writer: Option<Writer>,
    /// Whether the config says that the head is quantized.
    pub lm_head: bool,
    /// `modules_in_block_to_quantize`, flattened; empty when absent.
    pub modules: Vec<String>,
    /// Per-module rules.
    pub dynamic: Dynamic,
    /// What it says of the cache of keys and values.
    pub cache_scheme: Option<CacheScheme>,
    /// `pack_dtype`: bits of a word of codes, where the config says so.
    pub(crate) pack_dtype: Option<u32>,
    /// The other ways in which a config names modules.
    pub(crate) selection: Selection,
    /// Whether codes that do not fill a word were written with unused bits, where the shape does not tell and the config does.
    pub(crate) padded_words: Option<bool>,
    /// How the caller wants zero points read, whatever the files say.
    pub(crate) forced_zeros: Option<ZeroLabel>,
    /// Width and group size of modules whose tensors are followed against the config.
    pub(crate) shown: BTreeMap<String, (u32, GroupSize)>,
    raw_desc_act: bool,
}

impl QuantConfig {
    /// Reads the config of one file. `prefix` is where in the file it stands (`quantization_config.`).
    pub(crate) fn read(file: &str, prefix: &str, map: &Map<String, Value>, warnings: &Warnings) -> Result<Self, FormatError> {
        let mut keys = Keys::new(file, prefix, map);
        let method = check_method(&mut keys)?;
        if method == Method::CompressedTensors {
            return compressed_config::read(file, prefix, keys, warnings);
        }
        let mut selection = Selection::default();
        selection.not_converted(&mut keys)?;
        if method == Method::AutoRound {
            selection.extra(file, prefix, &mut keys, warnings)?;
        }
        let format = match method {
            Method::Awq => check_awq(&mut keys)?,
            Method::AutoRound => check_packing_format(&mut keys, warnings)?,
            Method::Marlin => {
                let remedy = "correct the key, or `quant_method`";
                keys.only(&["checkpoint_format", "format"], |v| v == "marlin", "`marlin`, as `quant_method`", remedy)?;
                CheckpointFormat::Marlin
            }
            _ => check_format(&mut keys)?,
        };
        if method != Method::Gptq {
            let ok = if method == Method::Marlin { |v: &Value| v == true } else { |v: &Value| v == false };
            keys.only(&["is_marlin_format"], ok, "what `quant_method` says", "correct the key, or `quant_method`")?;
        }
        let bits = match method {
            // The first folders of this kind say nothing beside their group size.
            Method::Marlin => keys.optional(&["bits", "w_bit", "wbits"], check_bits)?.unwrap_or(4),
            _ => keys.required(&["bits", "w_bit", "wbits"], "write the width of the codes, such as 4", check_bits)?,
        };
        if bits != 4 && (method == Method::Awq || format == CheckpointFormat::AwqGemm) {
            let remedy = "use a 4-bit checkpoint, or a GPTQ one of this width";
            return Err(keys.wrong("bits", format!("4 in the {} layout", format.name()), bits.to_string(), remedy));
        }
        let group_size =
            keys.required(&["group_size", "q_group_size"], "write the rows of a group, such as 128, or -1", check_group_size)?;
        let raw_desc_act = keys.optional(&["desc_act"], keys::boolean)?.unwrap_or(false);
        let sym = check_sym(&mut keys, warnings)?;
        let pack_dtype = keys.optional(&["pack_dtype"], check_pack_dtype)?;
        keys.only(&["data_type"], |v| v == "int", "`int`", "codes of another type are not read")?;
        let lm_head = keys.optional(&["lm_head"], keys::boolean)?.unwrap_or(false);
        let modules = keys.optional(&["modules_in_block_to_quantize"], keys::names)?.unwrap_or_default();
        let writer = keys.optional(&["meta"], keys::writer)?.flatten();
        let dynamic = match keys.optional(&["dynamic"], keys::map)? {
            Some(map) => Dynamic::read(file, &map, warnings)?,
            None => Dynamic::default(),
        };
        keys.warn_of_the_rest(warnings);
        let desc_act = raw_desc_act && group_size != GroupSize::Channel;
        let base = Scheme { bits, group_size, sym, desc_act, format, activation_scale: ActivationScale::default() };
        let config = Self { writer, lm_head, modules, dynamic, pack_dtype, raw_desc_act, ..Self::new(file, base, selection, None) };
        if config.scheme_of(None).format != format {
            warnings.add(
                WarningKind::Config,
                format!("{bits} bit exists in the planar layout only: read as gptq_p although the config says {}", format.name()),
            );
        }
        Ok(config)
    }

    /// A config that says how modules are quantized, and nothing else.
    pub(crate) fn new(file: &str, base: Scheme, selection: Selection, padded_words: Option<bool>) -> Self {
        let Scheme { bits, group_size, sym, desc_act, format, .. } = base;
        let (writer, lm_head, modules, dynamic, pack_dtype) = (None, false, vec![], Dynamic::default(), None);
        let file = file.into();
        Self {
            file,
            bits,
            group_size,
            sym,
            desc_act,
            format,
            writer,
            lm_head,
            modules,
            dynamic,
            cache_scheme: None,
            pack_dtype,
            selection,
            padded_words,
            forced_zeros: None,
            shown: BTreeMap::new(),
            raw_desc_act: desc_act,
        }
    }

    /// Which rules match a module of the checkpoint.
    ///
    /// # Errors
    /// As [`crate::Rule::matches`].
    pub fn rules_for(&self, module: &str) -> Result<Match<'_>, FormatError> {
        self.dynamic.find(module)
    }

    /// The scheme of a module whose tensors are quantized, under the rule that made it so.
    ///
    /// # Errors
    /// As [`QuantConfig::rules_for`].
    pub fn scheme(&self, module: &str) -> Result<Scheme, FormatError> {
        if let Some(&(bits, group_size)) = self.shown.get(module) {
            let said = self.said(module)?;
            let over =
                crate::Overrides { bits: Some(bits), group_size: Some(group_size), sym: Some(said.sym), desc_act: Some(said.desc_act) };
            return Ok(self.scheme_of(Some(&over)));
        }
        self.said(module)
    }

    /// The scheme of a module as the config says it.
    fn said(&self, module: &str) -> Result<Scheme, FormatError> {
        if let Some(scheme) = self.selection.scheme(module) {
            return Ok(scheme);
        }
        let rule = self.rules_for(module)?.for_tensors(true).map(crate::Rule::overrides);
        Ok(self.scheme_of(rule.or_else(|| self.selection.overrides(module))))
    }

    fn scheme_of(&self, over: Option<&crate::Overrides>) -> Scheme {
        let group_size = over.and_then(|o| o.group_size).unwrap_or(self.group_size);
        let bits = over.and_then(|o| o.bits).unwrap_or(self.bits);
        let desc_act = over.and_then(|o| o.desc_act).unwrap_or(self.raw_desc_act);
        Scheme {
            bits,
            group_size,
            sym: over.and_then(|o| o.sym).unwrap_or(self.sym),
            // With one group the order of rows means nothing; a rule may have brought the two together.
            desc_act: desc_act && group_size != GroupSize::Channel,
            format: if matches!(bits, 5..=7) && self.format.is_gptq() { CheckpointFormat::GptqP } else { self.format },
            activation_scale: ActivationScale::default(),
        }
    }
}

/// What is read, for messages.
const READ: &str = "`gptq` (2, 3, 4, 8 bit in the continuous layout; 5, 6, 7 bit, and any width marked gptq_p, in the planar layout; \
                    4 bit in the marlin layout)";

/// Who describes the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Gptq,
    Awq,
    CompressedTensors,
    AutoRound,
    Marlin,
}

const METHODS: [(&str, Method); 6] = [
    ("gptq", Method::Gptq),
    ("awq", Method::Awq),
    ("compressed-tensors", Method::CompressedTensors),
    ("auto-round", Method::AutoRound),
    ("intel/auto-round", Method::AutoRound),
    ("marlin", Method::Marlin),
];

fn check_method(keys: &mut Keys<'_>) -> Result<Method, FormatError> {
    let read = |file: &str, key: &str, value: &Value| {
        let found = METHODS.iter().find(|(name, _)| value.as_str().is_some_and(|s| s.eq_ignore_ascii_case(name)));
        found.map(|(_, method)| *method).ok_or_else(|| {
            let expected = format!("{READ}, `awq`, `compressed-tensors`, `auto-round` or `marlin`");
            let remedy = "this quantization method is not read yet; use such a checkpoint of the model or the dense original";
            FormatError::config(file, key, expected, show(value), remedy)
        })
    };
    // Each by itself: the two may differ in case.
    let first = keys.optional(&["quant_method"], read)?;
    let second = keys.optional(&["method"], read)?;
    match (first, second) {
        (Some(a), Some(b)) if a != b => {
            Err(keys.wrong("method", "the same as `quant_method`".into(), "another method".into(), "remove the wrong one of the two keys"))
        }
        (a, b) => Ok(a.or(b).unwrap_or(Method::Gptq)),
    }
}

/// AWQ: every key that names the layout must name the same one.
fn check_awq(keys: &mut Keys<'_>) -> Result<CheckpointFormat, FormatError> {
    let read = |file: &str, key: &str, value: &Value| {
        let name = value.as_str().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            "gemm" => Ok(CheckpointFormat::AwqGemm),
            "gemv" => Ok(CheckpointFormat::AwqGemv),
            "gemv_fast" | "llm-awq" => Ok(CheckpointFormat::AwqFast),
            "marlin" => Ok(CheckpointFormat::Marlin),
            _ => {
                let (expected, remedy) =
                    ("`gemm`, `gemv`, `gemv_fast`, `llm-awq` or `marlin`", "save the checkpoint in AutoAWQ's gemm layout");
                Err(FormatError::config(file, key, expected, show(value), remedy))
            }
        }
    };
    let mut format: Option<CheckpointFormat> = None;
    for name in ["version", "checkpoint_format", "format"] {
        match (format, keys.optional(&[name], read)?) {
            (Some(before), Some(now)) if before != now => {
                let remedy = "remove the wrong one of the keys that name the layout";
                return Err(keys.wrong(name, format!("{} as another key says", before.name()), now.name().into(), remedy));
            }
            (before, now) => format = before.or(now),
        }
    }
    let text = |file: &str, key: &str, value: &Value| {
        let text = value.as_str().map(|s| s.eq_ignore_ascii_case("llm-awq"));
        text.ok_or_else(|| FormatError::config(file, key, "the name of a program", show(value), "correct or remove the key"))
    };
    // Its own folders are in its own layout, but for the oldest: the tensors of a module decide.
    let own = keys.optional(&["backend"], text)?.unwrap_or(false).then_some(CheckpointFormat::AwqFast);
    Ok(format.or(own).unwrap_or(CheckpointFormat::AwqGemm))
}

/// AutoRound: which of the other layouts the tensors have.
fn check_packing_format(keys: &mut Keys<'_>, warnings: &Warnings) -> Result<CheckpointFormat, FormatError> {
    let read = |file: &str, key: &str, value: &Value| match value.as_str() {
        Some("auto_round:auto_gptq") => Ok(CheckpointFormat::Gptq),
        Some("auto_round" | "auto_round:gptqmodel") => Ok(CheckpointFormat::GptqV2),
        Some("auto_round:auto_awq" | "auto_round:awq") => Ok(CheckpointFormat::AwqGemm),
        _ => Err(FormatError::config(
            file,
            key,
            "`auto_round:auto_gptq`, `auto_round`, `auto_round:gptqmodel` or `auto_round:auto_awq`",
            show(value),
            "export the checkpoint in one of these formats",
        )),
    };
    match keys.optional(&["packing_format"], read)? {
        Some(format) => Ok(format),
        None => {
            let message = "the quantization config does not say `packing_format`: read as auto_round:auto_gptq (zero points less one)";
            warnings.add(WarningKind::Config, message);
            Ok(CheckpointFormat::Gptq)
        }
    }
}

/// The width of the words that codes are packed in.
pub(crate) fn check_pack_dtype(file: &str, key: &str, value: &Value) -> Result<u32, FormatError> {
    let widths = [("int32", 32), ("int8", 8), ("int16", 16), ("int64", 64)];
    widths.iter().find(|(name, _)| value == name).map(|(_, width)| *width).ok_or_else(|| {
        FormatError::config(file, key, "`int8`, `int16`, `int32` or `int64`", show(value), "write the checkpoint with 32-bit words")
    })
}

fn check_format(keys: &mut Keys<'_>) -> Result<CheckpointFormat, FormatError> {
    let read = |file: &str, key: &str, value: &Value| {
        value.as_str().and_then(CheckpointFormat::from_name).ok_or_else(|| {
            FormatError::config(
                file,
                key,
                format!("gptq, gptq_v2, gptq_p or marlin: {READ}"),
                show(value),
                "save the checkpoint in one of these formats with the program that wrote it",
            )
        })
    };
    let marlin = keys.optional(&["is_marlin_format"], keys::boolean)?;
    match keys.optional(&["checkpoint_format", "format"], read)? {
        // AutoGPTQ before 0.8 has this key, and later versions follow it, too.
        _ if marlin == Some(true) => Ok(CheckpointFormat::Marlin),
        Some(format) => Ok(format),
        // `version` names the format in some configs and a release in others: only the first kind counts.
        None => Ok(keys.version().and_then(CheckpointFormat::from_name).unwrap_or(CheckpointFormat::Gptq)),
    }
}

fn check_sym(keys: &mut Keys<'_>, warnings: &Warnings) -> Result<bool, FormatError> {
    let sym = keys.optional(&["sym"], keys::boolean)?;
    let zero_point = keys.optional(&["zero_point"], keys::boolean)?;
    match (sym, zero_point) {
        (Some(a), Some(b)) if a == b => {
            Err(keys.wrong("zero_point", format!("{} beside sym {a}", !a), b.to_string(), "remove the wrong one of the two keys"))
        }
        (Some(sym), _) => Ok(sym),
        (None, Some(zero_point)) => Ok(!zero_point),
        (None, None) => {
            warnings.add(WarningKind::Config, "the quantization config does not say `sym`: read as true, checked against the zero points");
            Ok(true)
        }
    }
}

/// A width of codes.
pub(crate) fn check_bits(file: &str, key: &str, value: &Value) -> Result<u32, FormatError> {
    match value.as_u64() {
        Some(bits @ 2..=8) => Ok(bits as u32),
        _ => Err(FormatError::config(file, key, "an integer from 2 to 8", show(value), "use a checkpoint of one of these widths")),
    }
}

/// A group size.
pub(crate) fn check_group_size(file: &str, key: &str, value: &Value) -> Result<GroupSize, FormatError> {
    match value.as_i64() {
        Some(-1) => Ok(GroupSize::Channel),
        Some(rows @ 1..) if usize::try_from(rows).is_ok() => Ok(GroupSize::Rows(rows as usize)),
        _ => Err(FormatError::config(file, key, "-1 (one group a column) or at least 1", show(value), "correct the group size")),
    }
}

impl QuantConfig {
    /// The keys, of those that change what the tensors mean, in which two configs differ.
    pub(crate) fn differing_keys(&self, other: &QuantConfig) -> Vec<&'static str> {
        let rules = |c: &QuantConfig| -> Vec<(String, crate::Overrides)> {
            c.dynamic.rules().iter().map(|r| (r.text().to_string(), r.overrides().clone())).collect()
        };
        let pairs = [
            ("bits", self.bits != other.bits),
            ("group_size", self.group_size != other.group_size),
            ("sym", self.sym != other.sym),
            ("desc_act", self.desc_act != other.desc_act),
            ("checkpoint_format", self.format != other.format),
            ("lm_head", self.lm_head != other.lm_head),
            ("dynamic", rules(self) != rules(other)),
            ("modules_in_block_to_quantize", self.modules != other.modules),
        ];
        pairs.into_iter().filter(|(_, differ)| *differ).map(|(key, _)| key).collect()
    }
}
