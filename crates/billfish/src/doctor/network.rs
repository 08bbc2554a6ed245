//! The network that `config.json` describes against the tensors: what is missing, what is left over, the head.

use super::findings::Findings;
use billfish_formats::Checkpoint;
use billfish_models::DecoderConfig;

pub(super) const HEAD: &str = "lm_head";
const HEAD_WEIGHT: &str = "lm_head.weight";
const EMBEDDING_WEIGHT: &str = "model.embed_tokens.weight";

pub(super) fn examine(checkpoint: &Checkpoint, decoder: &DecoderConfig, found: &mut Findings) {
    let compared = decoder.compare(checkpoint);
    for module in &compared.missing {
        if module == HEAD {
            let evidence = "there is no head, but `tie_word_embeddings` is not true";
            let consequence = "the folder does not run; programs that do not check run it with a random head";
            found.error(HEAD, evidence, consequence, "if the head is the embedding, set `tie_word_embeddings` to true (`--fix` does)");
            continue;
        }
        found.error(module, "none of its tensors is in the folder", "the folder does not run", "download or write the folder again");
    }
    if let Some(first) = compared.unused.first() {
        let count = compared.unused.len();
        let evidence = format!("{count} tensors belong to no module of a {}, the first is `{first}`", decoder.model_type());
        found.warning("tensors", evidence, "they are not read", "check that config.json belongs to these tensors");
    }
    if let Some(note) = decoder.cache_note(checkpoint, None) {
        found.note("cache", note, "keys and values are stored as --kv-cache-dtype says", "nothing to do");
    }
    if decoder.tie_word_embeddings {
        tied(checkpoint, found);
    }
    for linear in decoder.linears(checkpoint) {
        let tensor = format!("{}.weight", linear.name);
        let expected = [linear.out_features, linear.in_features];
        // quantized modules are read in full elsewhere
        if let Some(info) = checkpoint.info(&tensor).filter(|i| i.shape != expected && !checkpoint.has_codes(&linear.name)) {
            let evidence = format!("shape {:?}, but config.json makes it {expected:?}", info.shape);
            let remedy = "check vocab_size, hidden_size and their kin in config.json against the tensors";
            found.error(&tensor, evidence, "the folder does not run", remedy);
        }
    }
}

/// A head beside a config that says there is none of its own.
fn tied(checkpoint: &Checkpoint, found: &mut Findings) {
    if checkpoint.has_codes(HEAD) {
        let evidence = "`tie_word_embeddings` is true, but there is a quantized head";
        let consequence = "Billfish runs the quantized head; programs that believe the config run the embedding in its place";
        return found.warning(HEAD, evidence, consequence, "set `tie_word_embeddings` to false (`--fix` does)");
    }
    match checkpoint.same_tensor(HEAD_WEIGHT, EMBEDDING_WEIGHT) {
        Ok(Some(false)) => {
            let evidence = "`tie_word_embeddings` is true, but lm_head.weight differs from the embedding";
            let remedy = "set `tie_word_embeddings` to false if the head is meant (`--fix` does), or remove lm_head.weight";
            found.error(HEAD, evidence, "readers that believe the config ignore this head", remedy);
        }
        Ok(Some(true)) => {
            let evidence = "lm_head.weight is a copy of the embedding, and `tie_word_embeddings` is true";
            found.note(HEAD, evidence, "it takes room and changes nothing", "nothing to do");
        }
        Ok(None) => {}
        Err(e) => found.stops(HEAD, &e),
    }
}
