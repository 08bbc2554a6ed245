//! Which well-known programs would run a folder, which would refuse it, and which would compute something else.
//!
//! Sources: what those programs did with checkpoints of each kind on a CPU in November 2026 (vLLM 0.32.0, GPTQModel 7.7.0,
//! mistral.rs 9e92262, ONNX Runtime GenAI), and what `vllm.rs` makes of the description of vLLM 0.14.1.

use crate::experts::expert_of;
use crate::vllm::VllmReport;
use billfish_formats::{CheckpointFormat, GroupSize, ModuleReport, ZeroDialect};

/// What a program would do with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Run it.
    Runs,
    /// Refuse it.
    Refuses,
    /// Run it and compute something else.
    Wrong,
}

impl Outcome {
    /// `runs`, `refuses` or `wrong`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Runs => "runs",
            Outcome::Refuses => "refuses",
            Outcome::Wrong => "wrong",
        }
    }
}

/// One program's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineVerdict {
    /// The program and its version.
    pub engine: &'static str,
    /// What it would do.
    pub outcome: Outcome,
    /// Why.
    pub why: String,
}

/// What matters to other programs, over all quantized modules.
struct Traits {
    format: CheckpointFormat,
    widths: Vec<u32>,
    symmetric: bool,
    act_order: bool,
    mixed: bool,
    experts: bool,
    /// Whether any zero points are stored as they are.
    v2: bool,
    /// A module whose zero points are stored otherwise than the config says.
    mislabelled: Option<String>,
}

fn traits(modules: &[ModuleReport]) -> Option<Traits> {
    let first = modules.first()?;
    let mut widths: Vec<u32> = modules.iter().map(|m| m.bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let same = |m: &ModuleReport| m.bits == first.bits && m.group_size == first.group_size;
    let v2 = |m: &ModuleReport| m.zeros == ZeroDialect::V2;
    let label = |m: &ModuleReport| matches!(m.format, CheckpointFormat::Gptq | CheckpointFormat::GptqV2).then_some(m.format);
    let wrong = |m: &&ModuleReport| label(m).is_some_and(|l| v2(m) != (l == CheckpointFormat::GptqV2));
    Some(Traits {
        v2: modules.iter().any(|m| label(m).is_some() && v2(m)),
        mislabelled: modules.iter().find(wrong).map(|m| m.module.clone()),
        format: first.format,
        symmetric: modules.iter().all(|m| m.midpoint),
        act_order: modules.iter().any(|m| m.act_order && m.group_size != GroupSize::Channel),
        mixed: !modules.iter().all(same),
        experts: modules.iter().any(|m| expert_of(&m.module).is_some()),
        widths,
    })
}

/// The verdicts on a folder with these quantized modules; none if there are none.
pub fn engines(modules: &[ModuleReport], vllm: Option<&VllmReport>) -> Vec<EngineVerdict> {
    use Outcome::{Refuses, Runs, Wrong};
    let Some(t) = traits(modules) else { return vec![] };
    let gptq = matches!(t.format, CheckpointFormat::Gptq | CheckpointFormat::GptqV2 | CheckpointFormat::GptqP);
    let awq = t.format == CheckpointFormat::AwqGemm;
    let widths = t.widths.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let mut out = vec![];
    let mut say = |engine, outcome, why: &str| out.push(EngineVerdict { engine, outcome, why: why.into() });

    if let Some(vllm) = vllm {
        say("vLLM 0.14.1, CUDA", vllm.outcome, &vllm.why);
    }
    let cpu = "vLLM 0.32, CPU";
    match t.format {
        CheckpointFormat::Gptq | CheckpointFormat::GptqV2 if t.experts => {
            say(cpu, Refuses, "quantized experts run on a CPU from 0.33 on, with AMX only");
        }
        CheckpointFormat::Gptq | CheckpointFormat::GptqV2 if t.widths != [4] || t.mixed => {
            say(cpu, Refuses, &format!("it runs 4-bit GPTQ of one kind, this has {widths} bits"));
        }
        CheckpointFormat::Gptq | CheckpointFormat::GptqV2 if !t.symmetric => say(cpu, Refuses, "it runs symmetric GPTQ only"),
        CheckpointFormat::Gptq | CheckpointFormat::GptqV2 if t.act_order => say(cpu, Refuses, "act-order is no longer supported"),
        CheckpointFormat::Gptq | CheckpointFormat::GptqV2 => say(cpu, Runs, "4-bit symmetric"),
        CheckpointFormat::GptqP => say(cpu, Refuses, "the planar packing is not known there"),
        CheckpointFormat::AwqGemm => say(cpu, Runs, "4-bit AWQ"),
        CheckpointFormat::AwqGemv | CheckpointFormat::AwqFast | CheckpointFormat::Marlin => {
            say(cpu, Refuses, &format!("the {} layout is not known there", t.format.name()));
        }
        CheckpointFormat::PackQuantized if t.widths == [4] => say(cpu, Runs, "4-bit compressed-tensors"),
        CheckpointFormat::PackQuantized => say(cpu, Refuses, &format!("it runs 4-bit pack-quantized weights, this has {widths} bits")),
        _ => say(cpu, Runs, "compressed-tensors"),
    }
    if gptq || awq {
        let path = if t.widths == [4] { "with its own kernel" } else { "on its reference path only" };
        match &t.mislabelled {
            Some(module) => {
                say("GPTQModel 7.7.0, CPU", Wrong, &format!("it follows the label, and the zero points of `{module}` are stored otherwise"))
            }
            None => say("GPTQModel 7.7.0, CPU", Runs, path),
        }
        say("mistral.rs 9e92262, CPU", Refuses, "GPTQ and AWQ run on CUDA only there");
        if t.v2 {
            say("ONNX Runtime GenAI 2026-11", Wrong, "it reads v2 zero points as v1");
        } else if gptq && t.act_order && !t.symmetric {
            say("ONNX Runtime GenAI 2026-11", Wrong, "asymmetric with act-order is off by a relative error of 1.4");
        }
    } else if !matches!(t.format, CheckpointFormat::AwqGemv | CheckpointFormat::AwqFast | CheckpointFormat::Marlin) {
        say("mistral.rs 9e92262, CPU", Refuses, "unknown quantization method compressed-tensors");
    }
    say("llama.cpp", Refuses, "it loads GGUF files only");
    out
}
