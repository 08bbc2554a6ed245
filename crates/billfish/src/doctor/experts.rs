//! Experts of one layer that are not stored alike.

use super::findings::Findings;
use crate::experts::expert_layers;
use billfish_formats::{Checkpoint, ModuleReport};

pub(super) fn examine(checkpoint: &Checkpoint, reports: &[ModuleReport], found: &mut Findings) {
    for layer in expert_layers(checkpoint, reports).iter().filter(|l| !l.differing.is_empty()) {
        let others: usize = layer.differing.iter().map(|(_, numbers)| numbers.len()).sum();
        let evidence =
            format!("{others} of {} experts differ from the rest ({}): {}", layer.count, layer.scheme, layer.differences().join("; "));
        let consequence = "vLLM, and programs built like it, keep the experts of a layer in one tensor and read all of them by one scheme: \
                           they refuse the folder or compute nonsense; GPTQModel keeps experts apart";
        found.warning(
            &layer.name,
            evidence,
            consequence,
            "Billfish runs them as they are; for vLLM, quantize the experts of a layer alike",
        );
    }
}
