//! Everything that is wrong or odd with a folder, with evidence, consequence and remedy.

use crate::engines::{EngineVerdict, engines};
use crate::{Error, read_tokenizer};
use billfish_formats::{BiasRule, Checkpoint, LinearWeight, ModuleReport, WarningKind};
use billfish_models::DecoderConfig;
use billfish_tensor::{QuantMatrix, RowOrder, ScaleValues};
use std::collections::BTreeMap;
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Billfish reads it, but something is odd or others will not.
    Warning,
    /// The folder cannot be run, or would compute something else than was meant.
    Error,
}

impl Severity {
    /// `note`, `warning` or `error`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that a reader of the folder should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a file, a module, a tensor.
    pub subject: String,
    /// What was found.
    pub evidence: String,
    /// What follows from it.
    pub consequence: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}; {}; {}", self.severity.name(), self.subject, self.evidence, self.consequence, self.remedy)
    }
}

/// Modules that many programs fuse into one, so that they must be alike.
const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// Smallest normal half: a scale below it has lost bits.
const F16_NORMAL: f32 = 6.103_515_6e-5;

/// The result of an examination.
#[derive(Clone, Debug)]
pub struct Examination {
    /// What was found, worst first.
    pub findings: Vec<Finding>,
    /// What other programs would do with the folder.
    pub engines: Vec<EngineVerdict>,
}

impl Examination {
    /// Whether nothing worse than a note was found.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.severity == Severity::Note)
    }
}

struct Doctor<'a> {
    checkpoint: &'a Checkpoint,
    findings: Vec<Finding>,
    modules: Vec<ModuleReport>,
}

/// Examines a folder in full: every module is read. `progress` hears the bytes done and in all.
pub fn examine(checkpoint: &Checkpoint, progress: &mut dyn FnMut(u64, u64)) -> Examination {
    let mut doctor = Doctor { checkpoint, findings: vec![], modules: vec![] };
    doctor.architecture();
    doctor.tokenizer();
    doctor.modules(progress);
    doctor.warnings();
    let mut findings = doctor.findings;
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.subject.cmp(&b.subject)));
    Examination { findings, engines: engines(checkpoint, &doctor.modules) }
}

impl Doctor<'_> {
    fn find(&mut self, severity: Severity, subject: &str, evidence: impl Into<String>, consequence: &str, remedy: &str) {
        let [subject, consequence, remedy] = [subject, consequence, remedy].map(str::to_string);
        self.findings.push(Finding { severity, subject, evidence: evidence.into(), consequence, remedy });
    }

    fn architecture(&mut self) {
        let config = match DecoderConfig::from_json("config.json", self.checkpoint.config()) {
            Ok(config) => config,
            Err(e) => return self.find(Severity::Error, "config.json", e.to_string(), "the folder does not run", "see the message"),
        };
        let compared = config.compare(self.checkpoint);
        for module in &compared.missing {
            let remedy = "download or write the folder again";
            self.find(Severity::Error, module, "none of its tensors is in the folder", "the folder does not run", remedy);
        }
        if let Some(first) = compared.unused.first() {
            let evidence =
                format!("{} tensors belong to no module of a {}, the first is `{first}`", compared.unused.len(), config.model_type());
            let remedy = "check that config.json belongs to these tensors";
            self.find(Severity::Warning, "tensors", evidence, "they are not read", remedy);
        }
        if config.tie_word_embeddings && self.checkpoint.info("lm_head.weight").is_some() {
            let same = self.same_bytes("lm_head.weight", "model.embed_tokens.weight", &[config.vocab_size, config.hidden_size]);
            if same == Some(false) {
                let evidence = "`tie_word_embeddings` is true, but lm_head.weight differs from the embedding";
                let remedy = "set `tie_word_embeddings` to false if the head is meant, or remove lm_head.weight";
                self.find(Severity::Error, "lm_head", evidence, "readers that believe the config ignore this head", remedy);
            }
        }
    }

    fn same_bytes(&self, a: &str, b: &str, shape: &[usize]) -> Option<bool> {
        let read = |name| self.checkpoint.dense(name, shape).ok();
        Some(read(a)?.bytes() == read(b)?.bytes())
    }

    fn tokenizer(&mut self) {
        let rows = self.checkpoint.config().get("vocab_size").and_then(serde_json::Value::as_u64).unwrap_or(0) as usize;
        let tokenizer = match read_tokenizer(self.checkpoint) {
            Ok(t) => t,
            Err(e @ Error::File { .. }) => {
                return self.find(Severity::Error, "tokenizer.json", e.to_string(), "text cannot be run", "see the message");
            }
            Err(e) => return self.find(Severity::Error, "tokenizer", e.to_string(), "text cannot be run", "see the message"),
        };
        let tokens = tokenizer.vocab_size();
        if tokens > rows {
            let evidence = format!("{tokens} tokens, but the embedding has {rows} rows");
            self.find(
                Severity::Error,
                "tokenizer.json",
                evidence,
                "the folder does not run",
                "use the tokenizer that belongs to this model",
            );
        } else if tokens < rows {
            let evidence = format!("{tokens} tokens, {rows} rows of the embedding");
            self.find(Severity::Note, "tokenizer.json", evidence, "the rows beyond are padding and decode to nothing", "nothing to do");
        }
        let eos = tokenizer.eos_ids().to_vec();
        if eos.is_empty() {
            let evidence = "no end-of-sequence token in generation_config.json, config.json or tokenizer_config.json";
            self.find(
                Severity::Warning,
                "end of sequence",
                evidence,
                "replies end at the limit only",
                "add `eos_token_id` to generation_config.json",
            );
        }
        for id in eos.iter().filter(|id| **id as usize >= rows.max(1)) {
            let evidence = format!("the end-of-sequence id {id} is not below {rows}, the rows of the embedding");
            self.find(Severity::Error, "end of sequence", evidence, "the model can never say it", "correct `eos_token_id`");
        }
        if let Err(e) = tokenizer.chat_template(None) {
            let remedy = "copy chat_template.jinja from the original model, if it is a chat model";
            self.find(Severity::Note, "chat template", e.to_string(), "`chat` does not work", remedy);
        }
    }

    fn modules(&mut self, progress: &mut dyn FnMut(u64, u64)) {
        let names = self.checkpoint.quantized_modules();
        let mut reports: BTreeMap<String, (ModuleReport, RowOrder)> = BTreeMap::new();
        let total: u64 = self.checkpoint.total_bytes();
        let mut done = 0;
        for name in names {
            let read = self.checkpoint.describe(&name).and_then(|r| {
                let weight = self.checkpoint.linear(&name, r.in_features, r.out_features, BiasRule::Optional)?;
                Ok((r, weight))
            });
            match read {
                Ok((report, LinearWeight::Quantized(m))) => {
                    self.module(&report, &m);
                    done += report.bytes;
                    reports.insert(name, (report, m.row_order()));
                }
                Ok(_) => {}
                Err(e) => self.find(Severity::Error, &name, e.to_string(), "the folder does not run", "see the message"),
            }
            progress(done, total);
        }
        self.fused(&reports);
        self.modules = reports.into_values().map(|(report, _)| report).collect();
        // dense modules too: whether the config agrees with their tensors
        let dense: Vec<String> =
            self.checkpoint.tensor_names().filter_map(|t| t.strip_suffix("_proj.weight")).map(|t| format!("{t}_proj")).collect();
        for name in dense {
            if let Err(e) = self.checkpoint.is_quantized(&name) {
                self.find(Severity::Error, &name, e.to_string(), "the folder does not run", "see the message");
            }
        }
    }

    fn module(&mut self, r: &ModuleReport, m: &QuantMatrix) {
        let name = r.module.as_str();
        let scales = m.scales();
        let all = || (0..scales.len()).map(|i| scales.get(i));
        let zero = all().filter(|s| *s == 0.0).count();
        if zero > 0 {
            let evidence = format!("{zero} of {} scales are 0", scales.len());
            self.find(
                Severity::Warning,
                name,
                evidence,
                "their groups are all 0",
                "check that the layer was quantized with enough calibration text",
            );
        }
        let tiny = all().filter(|s| *s != 0.0 && s.abs() < F16_NORMAL).count();
        if tiny > 0 && matches!(scales, ScaleValues::F16(_)) {
            let evidence = format!("{tiny} of {} scales are denormal halves", scales.len());
            self.find(
                Severity::Warning,
                name,
                evidence,
                "they have few bits, and programs that flush denormals read 0",
                "quantize again with larger groups or bf16 scales",
            );
        }
        let order = m.row_order();
        if r.act_order {
            let full = order.group_rows.iter().max().copied().unwrap_or(0);
            let odd = order.group_rows.iter().filter(|&&rows| rows != full).count();
            if odd > 1 || (odd == 1 && m.in_features().is_multiple_of(full.max(1) as usize)) {
                let evidence = format!("`g_idx` gives {odd} of {} groups another number of rows than {full}", order.group_rows.len());
                self.find(
                    Severity::Warning,
                    name,
                    evidence,
                    "programs that sort rows into equal groups compute something else",
                    "Billfish reads it as written",
                );
            }
        }
    }

    /// Modules that others fuse must be alike.
    fn fused(&mut self, reports: &BTreeMap<String, (ModuleReport, RowOrder)>) {
        let mut parents: Vec<(&str, &[&str])> = vec![];
        for tensor in self.checkpoint.tensor_names() {
            let module = tensor.rsplit_once('.').map_or("", |(m, _)| m);
            for parts in FUSED {
                if let Some(parent) = module.strip_suffix(parts[0]).filter(|p| p.ends_with('.')) {
                    parents.push((parent, parts));
                }
            }
        }
        parents.sort_unstable();
        parents.dedup();
        for (parent, parts) in parents {
            let members: Vec<Option<&(ModuleReport, RowOrder)>> = parts.iter().map(|p| reports.get(&format!("{parent}{p}"))).collect();
            let subject = format!("{parent}{{{}}}", parts.join(","));
            let remedy = "Billfish runs them as they are; for vLLM, quantize them alike";
            let Some(first) = members[0] else {
                if members.iter().any(Option::is_some) {
                    let evidence = "some are quantized and some are not";
                    self.find(Severity::Warning, &subject, evidence, "vLLM fuses them and refuses the folder", remedy);
                }
                continue;
            };
            if members.iter().any(Option::is_none) {
                self.find(
                    Severity::Warning,
                    &subject,
                    "some are quantized and some are not",
                    "vLLM fuses them and refuses the folder",
                    remedy,
                );
                continue;
            }
            let same = |f: fn(&ModuleReport) -> (u32, usize, bool)| members.iter().flatten().all(|m| f(&m.0) == f(&first.0));
            if !same(|r| (r.bits, r.groups, r.sym)) {
                let evidence = "their bits, groups or symmetry differ";
                self.find(Severity::Warning, &subject, evidence, "vLLM fuses them and fails or computes nonsense", remedy);
            }
            if members.iter().flatten().any(|m| m.1 != first.1) {
                let evidence = "their `g_idx` differ";
                self.find(Severity::Warning, &subject, evidence, "vLLM keeps the last one it reads for all of them", remedy);
            }
        }
    }

    /// What reading has listed.
    fn warnings(&mut self) {
        for w in self.checkpoint.warnings() {
            let consequence = match w.kind {
                WarningKind::Files => "it is left aside",
                WarningKind::Config => "the config may not say what its writer meant",
                WarningKind::Rules => "other programs may quantize or read these modules otherwise",
                WarningKind::Tensors => "other programs may read other weights",
            };
            self.find(
                Severity::Warning,
                self.checkpoint.name(),
                w.to_string(),
                consequence,
                "correct the folder, or be sure that this is meant",
            );
        }
    }
}
