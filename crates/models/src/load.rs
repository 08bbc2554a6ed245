//! From a folder to a model: every expected tensor read and packed, every tensor that is there accounted for.

use crate::architecture::Architecture;
use crate::decoder::{Attention, GateUp, Layer, Mlp, Model, Vocabulary};
use crate::{DecoderConfig, ModelError};
use billfish_formats::{BiasRule, Checkpoint, LinearWeight};
use billfish_kernels::{Activations, Backend, KvType, PackedDense, PackedMatrix, Weight};
use std::sync::Arc;

/// How a model is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Precision of activations.
    pub activations: Activations,
    /// Storage of keys and values; by default f16, and f32 with strict activations.
    pub kv_type: Option<KvType>,
}

impl LoadOptions {
    pub(crate) fn kv(&self) -> KvType {
        self.kv_type.unwrap_or(if self.activations == Activations::Strict { KvType::F32 } else { KvType::F16 })
    }
}

/// How far a load has come, in bytes of the folder's tensors.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What one linear module became.
#[derive(Clone, Debug)]
pub struct ModuleUse {
    /// Its name in the folder.
    pub module: String,
    /// Name of the kernel's layout.
    pub kernel: &'static str,
    /// Bytes in memory.
    pub bytes: usize,
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
    modules: Vec<ModuleUse>,
}

impl Model {
    /// Loads and checks a model. `progress` hears of every module.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, tensor or key that is wrong.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Arc<Backend>,
        options: LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model, ModelError> {
        let config = DecoderConfig::from_json(&format!("{}/config.json", checkpoint.name()), checkpoint.config())?;
        let mut loader = Loader { checkpoint, progress, done: 0, modules: vec![] };
        // the largest dense weights first: while one is packed it exists twice, which is cheapest while nothing else does
        let vocabulary = loader.vocabulary(&config)?;
        let layers = (0..config.layers).map(|i| loader.layer(&config, i)).collect::<Result<Vec<_>, _>>()?;
        let norm = loader.norm("model.norm", config.hidden_size)?;
        for name in checkpoint.unread() {
            // tables that old checkpoints carry and every reader computes anew
            if [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"]
                .iter()
                .any(|s| name.ends_with(s))
            {
                checkpoint.mark_read(&name);
            }
        }
        let modules = loader.modules;
        Ok(Model { config, vocabulary, layers, norm, backend, options, modules })
    }
}

impl Loader<'_> {
    fn account(&mut self, prefix: &str) {
        let names = ["qweight", "qzeros", "scales", "g_idx", "weight", "bias"];
        let bytes = names.iter().filter_map(|n| self.checkpoint.info(&format!("{prefix}.{n}"))).map(|i| i.bytes as u64).sum::<u64>();
        self.done += bytes;
        (self.progress)(Progress { done: self.done, total: self.checkpoint.total_bytes() });
    }

    fn linear(&mut self, module: &str, k: usize, n: usize, bias: bool) -> Result<Weight, ModelError> {
        let rule = if bias { BiasRule::Required } else { BiasRule::Absent };
        let stored = self.checkpoint.linear(module, k, n, rule)?;
        let packed = match stored {
            LinearWeight::Quantized(m) => PackedMatrix::new(&m).map(Weight::Quantized),
            LinearWeight::Dense { weight, bias } => PackedDense::new(&weight, bias).map(|w| Weight::Dense(Arc::new(w))),
        };
        let weight = packed.map_err(|source| ModelError::Pack { module: module.into(), source })?;
        self.modules.push(ModuleUse { module: module.into(), kernel: weight.kernel(), bytes: weight.bytes() });
        self.account(module);
        Ok(weight)
    }

    fn norm(&mut self, name: &str, size: usize) -> Result<Vec<f32>, ModelError> {
        let values = self.checkpoint.dense(&format!("{name}.weight"), &[size])?.to_f32();
        self.account(name);
        Ok(values)
    }

    fn vocabulary(&mut self, config: &DecoderConfig) -> Result<Vocabulary, ModelError> {
        const EMBEDDING: &str = "model.embed_tokens";
        const HEAD: &str = "lm_head";
        let has = |name: &str| self.checkpoint.info(name).is_some();
        // a quantized head of a tied model is what its writer meant; a dense one is a copy of the embedding
        let tied = config.tie_word_embeddings && !has("lm_head.qweight");
        let head = if tied { None } else { Some(self.linear(HEAD, config.hidden_size, config.vocab_size, false)?) };
        let table = self.checkpoint.dense(&format!("{EMBEDDING}.weight"), &[config.vocab_size, config.hidden_size])?;
        let vocabulary = match head {
            Some(head) => Vocabulary::Separate { table, head },
            None => {
                self.checkpoint.mark_read("lm_head.weight");
                let packed = PackedDense::new(&table, None).map_err(|source| ModelError::Pack { module: EMBEDDING.into(), source })?;
                let rows = Arc::new(packed);
                let head = Weight::Dense(Arc::clone(&rows));
                self.modules.push(ModuleUse { module: EMBEDDING.into(), kernel: head.kernel(), bytes: head.bytes() });
                Vocabulary::Tied { rows, head }
            }
        };
        self.account(EMBEDDING);
        Ok(vocabulary)
    }

    fn layer(&mut self, c: &DecoderConfig, i: usize) -> Result<Layer, ModelError> {
        let arch: &Architecture = c.architecture;
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut query = self.linear(&at("self_attn.q_proj"), c.hidden_size, q, c.qkv_bias)?;
        let mut key = self.linear(&at("self_attn.k_proj"), c.hidden_size, kv, c.qkv_bias)?;
        let mut value = self.linear(&at("self_attn.v_proj"), c.hidden_size, kv, c.qkv_bias)?;
        share(&mut [&mut query, &mut key, &mut value]);
        let output = self.linear(&at("self_attn.o_proj"), q, c.hidden_size, c.o_bias)?;
        let qk_norms = match arch.qk_norm {
            true => Some((self.norm(&at("self_attn.q_norm"), c.head_dim)?, self.norm(&at("self_attn.k_norm"), c.head_dim)?)),
            false => None,
        };
        let gate_up = if arch.fused_gate_up {
            GateUp::Fused(self.linear(&at("mlp.gate_up_proj"), c.hidden_size, 2 * c.intermediate_size, c.mlp_bias)?)
        } else {
            let mut gate = self.linear(&at("mlp.gate_proj"), c.hidden_size, c.intermediate_size, c.mlp_bias)?;
            let mut up = self.linear(&at("mlp.up_proj"), c.hidden_size, c.intermediate_size, c.mlp_bias)?;
            share(&mut [&mut gate, &mut up]);
            GateUp::Separate { gate, up }
        };
        let down = self.linear(&at("mlp.down_proj"), c.intermediate_size, c.hidden_size, c.mlp_bias)?;
        let output_norms = match arch.sandwich_norms {
            true => {
                Some((self.norm(&at("post_self_attn_layernorm"), c.hidden_size)?, self.norm(&at("post_mlp_layernorm"), c.hidden_size)?))
            }
            false => None,
        };
        Ok(Layer {
            attention_norm: self.norm(&at("input_layernorm"), c.hidden_size)?,
            attention: Attention { query, key, value, output, qk_norms, window: c.windows[i] },
            mlp_norm: self.norm(&at("post_attention_layernorm"), c.hidden_size)?,
            mlp: Mlp { gate_up, down },
            output_norms,
        })
    }
}

/// Lets weights with equal row orders share one, so that their common input is permuted and quantized once.
fn share(weights: &mut [&mut Weight]) {
    for i in 1..weights.len() {
        let (before, rest) = weights.split_at_mut(i);
        if let Weight::Quantized(w) = &mut *rest[0] {
            for other in before.iter() {
                if let Weight::Quantized(other) = &**other {
                    w.share_order(other);
                }
            }
        }
    }
}
