//! What a run cost, in one line.

use billfish::machine::{cpu_features, peak_memory};
use billfish::{Completion, LoadedModel};
use serde_json::{Value, json};

/// The layouts in use, most bytes first, such as `k4n16-w4, dense-bf16`.
pub fn layouts(model: &LoadedModel) -> String {
    let mut bytes: Vec<(&str, usize)> = vec![];
    for m in model.model.modules() {
        match bytes.iter_mut().find(|(k, _)| *k == m.kernel) {
            Some((_, b)) => *b += m.bytes,
            None => bytes.push((m.kernel, m.bytes)),
        }
    }
    bytes.sort_by_key(|(_, b)| std::cmp::Reverse(*b));
    let names: Vec<&str> = bytes.iter().map(|(k, _)| *k).collect();
    names.join(", ")
}

/// The kernels in use and where they run, such as `k4n16-w4, dense-bf16 on avx512 (avx2 fma avx512vnni)`: the instruction
/// set that was chosen, and the features that the processor has.
pub fn kernels(model: &LoadedModel) -> String {
    format!("{} on {} ({})", layouts(model), model.model.backend().isa().name(), cpu_features().join(" "))
}

/// The packed cache for programs; null without one.
pub fn cache(model: &LoadedModel) -> Value {
    model.model.cache().map_or(Value::Null, |c| json!({"path": c.path.display().to_string(), "made": c.made}))
}

/// Prints the line to standard error.
pub fn print(model: &LoadedModel, done: &Completion, seed: u64) {
    let t = &done.timings;
    let memory = peak_memory().map_or_else(|| "unknown".into(), |b| format!("{:.0} MB", b as f64 / 1e6));
    eprintln!(
        "[{}: load {:.2} s | prompt {} tokens, {:.1} tokens/s | generation {} tokens, {:.1} tokens/s | peak memory {memory} | {}, {} threads, {}, {} KV cache | seed {seed}]",
        model.name,
        model.load_time.as_secs_f64(),
        t.prompt_tokens,
        t.prompt_rate(),
        done.tokens.len(),
        t.generation_rate(),
        kernels(model),
        model.model.backend().threads(),
        model.precision(),
        model.model.kv_type().name(),
    );
}

/// Tokens of each expert, layer by layer: those of a layer without experts are empty.
pub fn usage<'u>(model: &LoadedModel, usage: &'u [u64]) -> Vec<&'u [u64]> {
    let Some(moe) = &model.model.config().moe else { return vec![] };
    let layers = usage.chunks(moe.routing.experts).zip(&moe.layers);
    layers.map(|(counts, sparse)| if *sparse { counts } else { &[] }).collect()
}

/// Prints to standard error how often experts were used, a line a layer: how many of them, and the busiest.
pub fn experts(model: &LoadedModel, counts: &[u64]) {
    let Some(moe) = &model.model.config().moe else {
        return eprintln!("[experts: this model has none]");
    };
    for (layer, counts) in usage(model, counts).into_iter().enumerate().filter(|(_, counts)| !counts.is_empty()) {
        let tokens = counts.iter().sum::<u64>() / moe.routing.top_k as u64;
        let used = counts.iter().filter(|&&n| n > 0).count();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&e| std::cmp::Reverse(counts[e]));
        let share = |e: &usize| format!("{e} ({:.0} %)", 100.0 * counts[*e] as f64 / tokens.max(1) as f64);
        let busiest = order.iter().take(4).map(share).collect::<Vec<_>>().join(", ");
        eprintln!("[layer {layer}: {tokens} tokens, {used} of {} experts used, busiest {busiest}]", counts.len());
    }
}
