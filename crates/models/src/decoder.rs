//! The decoder: one forward pass for every architecture.

use crate::batch::{self, BatchLogits, Given, Logits, Part};
use crate::cache::CacheUse;
use crate::feed_forward::{FeedForward, MoeScratch};
use crate::head::HeadRounding;
use crate::load::{LoadOptions, ModuleUse};
use crate::pass::{OverCache, Pass};
use crate::rope::Angles;
use crate::sequence::{Cache, RESERVED_AHEAD, Sequence};
use crate::{DecoderConfig, ModelError};
use billfish_kernels::{
    Activations, Asking, AttentionScratch, Backend, Floats, Input, KvPool, KvScales, KvShape, MatmulScratch, PackedDense, Product, Table,
    Weight,
};
use billfish_tensor::ActivationScale;
use std::sync::Arc;

/// The rows that tokens become, and the head that logits come from.
pub(crate) enum Vocabulary {
    /// One matrix for both: the row of a token is its column of the head.
    Tied { rows: Arc<PackedDense>, head: Weight },
    /// A table `[vocab, hidden]` and a head.
    Separate { table: Table, head: Weight },
}

impl Vocabulary {
    pub(crate) fn head(&self) -> &Weight {
        match self {
            Vocabulary::Tied { head, .. } | Vocabulary::Separate { head, .. } => head,
        }
    }

    /// Writes the row of `token`.
    fn embed(&self, token: usize, row: &mut [f32]) {
        match self {
            Vocabulary::Tied { rows, .. } => rows.column(token, row),
            Vocabulary::Separate { table, .. } => table.row(token, row),
        }
    }
}

/// Weights of two norms.
pub(crate) type NormPair = (Vec<f32>, Vec<f32>);

/// Attention of one layer.
pub(crate) struct Attention {
    pub query: Weight,
    pub key: Weight,
    pub value: Weight,
    pub output: Weight,
    /// Norms of queries and keys, `[head_dim]` each.
    pub qk_norms: Option<NormPair>,
    /// Scales of keys and values that the folder brings.
    pub cache_scales: Option<Arc<KvScales>>,
    /// Tokens that a token sees, itself included.
    pub window: Option<usize>,
}

/// One layer.
pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    pub mlp_norm: Vec<f32>,
    pub feed_forward: FeedForward,
    /// Norms of the outputs of attention and MLP.
    pub output_norms: Option<NormPair>,
}

/// A loaded model.
pub struct Model {
    pub(crate) config: DecoderConfig,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) options: LoadOptions,
    pub(crate) modules: Vec<ModuleUse>,
    pub(crate) head: Option<HeadRounding>,
    pub(crate) cache: Option<CacheUse>,
}

/// Buffers of the forward pass, kept from call to call so that a decode step allocates nothing once they have grown.
#[derive(Default)]
pub struct Scratch {
    pub(crate) matmul: MatmulScratch,
    pub(crate) attention: AttentionScratch,
    pub(crate) angles: Angles,
    pub(crate) residual: Floats,
    pub(crate) normed: Floats,
    pub(crate) query: Floats,
    pub(crate) key: Floats,
    pub(crate) value: Floats,
    pub(crate) mixed: Floats,
    pub(crate) gate: Floats,
    pub(crate) up: Floats,
    pub(crate) output: Floats,
    pub(crate) moe: MoeScratch,
    pub(crate) logits: Floats,
    pub(crate) given: Vec<Given>,
}

impl Scratch {
    /// How many tokens each expert has had, `[layers, experts]`, since the buffers were made; empty without experts. In the
    /// last layer only those tokens have any whose logits were asked for.
    pub fn expert_usage(&self) -> &[u64] {
        self.moe.usage()
    }
}

impl Model {
    /// Sizes and rules.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Runs on another backend and with other options from now on; the weights stay as they are, because their layout
    /// depends on neither. Caches made before keep the storage they were made with.
    pub fn reconfigure(&mut self, backend: Arc<Backend>, options: LoadOptions) {
        self.backend = backend;
        self.options = options;
    }

    /// Precision of activations.
    pub fn activations(&self) -> Activations {
        self.options.activations
    }

    /// Modules whose activations have one scale a token, as their config asks; none with precisions above 8 bit.
    pub fn token_scaled_modules(&self) -> usize {
        let asked = |m: &&ModuleUse| m.activation_scale == ActivationScale::Token;
        if self.options.activations == Activations::Int8 { self.modules.iter().filter(asked).count() } else { 0 }
    }

    /// What each linear module became.
    pub fn modules(&self) -> &[ModuleUse] {
        &self.modules
    }

    /// The packed cache that the weights came from or went to, if one was asked for.
    pub fn cache(&self) -> Option<&CacheUse> {
        self.cache.as_ref()
    }

    /// What rounding the head did, if it was asked for.
    pub fn head_rounding(&self) -> Option<HeadRounding> {
        self.head
    }

    /// Storage of keys and values.
    pub fn kv_type(&self) -> billfish_kernels::KvType {
        self.options.kv()
    }

    /// Whether keys and values are stored by scales that the folder brings.
    pub fn applies_cache_scales(&self) -> bool {
        self.kv_type().takes_scales() && self.layers.iter().any(|l| l.attention.cache_scales.is_some())
    }

    /// Bytes of keys and values that a pass reads when its last token stands at position `length - 1`: each layer's once,
    /// those outside its window left out, and without `logits` those of the last layer, which nobody asks for.
    pub fn kv_bytes_read(&self, length: usize, logits: bool) -> usize {
        let layers = self.config.layers;
        let layer = self.kv_bytes_per_token() / layers.max(1);
        let read = self.config.windows.iter().take(layers - usize::from(!logits));
        read.map(|w| layer * length.min(w.unwrap_or(usize::MAX))).sum()
    }

    /// Keys and values of one token, in bytes.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.kv_shape().token_bytes()
    }

    /// What a block of a pool holds that sequences of this model can lie in.
    pub fn kv_shape(&self) -> KvShape {
        let c = &self.config;
        KvShape { layers: c.layers, kv_heads: c.kv_heads, head_dim: c.head_dim, kind: self.options.kv() }
    }

    /// An empty sequence planned to reach `length` tokens, to be run over a pool of [this shape](Model::kv_shape); its slot
    /// is another than those of sequences that are in the pool with it. The dynamic rope rule asks for the length: its
    /// frequencies are those of a sequence of that many tokens from the first token on, so that results do not depend on how
    /// the sequence was cut into passes.
    pub fn new_sequence(&self, slot: u32, length: usize) -> Sequence {
        Sequence::new(slot, self.config.rope.frequencies(length))
    }

    /// An empty cache for a sequence planned to reach `length` tokens, with room for them, but for no more than
    /// [`RESERVED_AHEAD`]; it grows by itself beyond that, or before with [`Cache::reserve`].
    pub fn new_cache(&self, length: usize) -> Cache {
        let mut cache = Cache::new(KvPool::new(self.kv_shape(), 1), self.new_sequence(0, length));
        cache.reserve(length.min(RESERVED_AHEAD));
        cache
    }

    /// Keeps the first `keep` tokens of `cache` for a sequence now planned to reach `length` tokens, and returns how many
    /// were kept: none if the new plan gives other rope frequencies, because the old keys were rotated by the old ones.
    /// Room is made as for a new cache, and what the plan does not need is given back.
    pub fn reuse(&self, cache: &mut Cache, keep: usize, length: usize) -> usize {
        let frequencies = self.config.rope.frequencies(length);
        let keep = if frequencies == cache.sequence.frequencies { keep } else { 0 };
        cache.sequence.frequencies = frequencies;
        let kept = cache.truncate(keep);
        cache.shrink(length);
        cache.reserve(length.min(RESERVED_AHEAD));
        kept
    }

    /// Runs `tokens` after those in `cache` and adds them to it. Returns the logits asked for, `[rows, vocab]`.
    ///
    /// A row depends on the tokens up to it and on nothing else: not on how they were cut into calls, nor on threads,
    /// nor on the instruction set.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id outside the vocabulary (nothing is run), [`ModelError::NotANumber`] if the logits
    /// are not finite.
    pub fn forward<'s>(&self, cache: &mut Cache, tokens: &[u32], want: Logits, scratch: &'s mut Scratch) -> Result<&'s [f32], ModelError> {
        self.check(tokens, cache.len())?;
        cache.make_room(tokens.len());
        let Cache { pool, sequence } = cache;
        self.forward_batch(pool, &mut [Part { sequence, tokens, want }], scratch)?.of(0)
    }

    /// Checks that tokens, the first at position `start`, are in the vocabulary.
    ///
    /// # Errors
    /// [`ModelError::Token`] for the first that is not.
    pub fn check(&self, tokens: &[u32], start: usize) -> Result<(), ModelError> {
        let vocabulary = self.config.vocab_size;
        let wrong = tokens.iter().position(|&t| t as usize >= vocabulary);
        wrong.map_or(Ok(()), |i| Err(ModelError::Token { token: tokens[i], position: start + i, vocabulary }))
    }

    /// Makes room for passes over so many tokens, which the first of them then need not do.
    pub fn make_room(&self, tokens: usize, scratch: &mut Scratch) {
        self.pass(tokens).room(scratch);
    }

    fn pass(&self, m: usize) -> Pass<'_> {
        Pass { config: &self.config, backend: &self.backend, activations: self.options.activations, m }
    }

    /// Runs parts of several sequences in one pass, which reads the weights once for all of them. Each sequence lies in
    /// blocks of the pool, which must have room for its new tokens, and may bring any number of tokens; its logits are those
    /// that it would have alone, to the last bit.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id outside the vocabulary: nothing is run. Whether logits are finite is checked where
    /// they are [taken](BatchLogits::of).
    ///
    /// # Panics
    /// If the pool has another shape, a sequence lacks the blocks for its tokens, or two sequences would write to one block.
    pub fn forward_batch<'s>(
        &self,
        pool: &mut KvPool,
        parts: &mut [Part<'_>],
        scratch: &'s mut Scratch,
    ) -> Result<BatchLogits<'s>, ModelError> {
        let c = &self.config;
        parts.iter().try_for_each(|p| self.check(p.tokens, p.sequence.len()))?;
        let m = parts.iter().map(|p| p.tokens.len()).sum();
        batch::list(parts, &mut scratch.given);
        if m == 0 {
            return Ok(BatchLogits { given: &scratch.given, logits: &[], vocabulary: c.vocab_size });
        }
        let pass = self.pass(m);
        pass.room(scratch);
        scratch.angles.clear();
        let mut rows = scratch.residual.chunks_exact_mut(c.hidden_size);
        for p in &*parts {
            p.tokens.iter().zip(&mut rows).for_each(|(token, row)| self.vocabulary.embed(*token as usize, row));
            c.rope.angles(p.sequence.frequencies(), p.sequence.len(), p.tokens.len(), &mut scratch.angles);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            // behind the keys and values of the last layer only those rows go on that become logits
            let last = i + 1 == self.layers.len();
            let sequences = parts.iter().map(|p| {
                let tokens = p.tokens.len();
                Asking { table: p.sequence.table(), tokens, queries: if last { p.want.rows(tokens) } else { tokens } }
            });
            pass.layer(layer, i, scratch, OverCache { pool, layer: i, sequences });
        }
        parts.iter_mut().for_each(|p| pool.count(p.sequence.table_mut(), p.tokens.len()));

        let Scratch { matmul, residual, logits, given, .. } = scratch;
        let rows = batch::count(given);
        let logits = logits.room(rows * c.vocab_size);
        if rows > 0 {
            let input = Input::Normed { rows: &residual[..rows * c.hidden_size], weight: &self.norm, eps: c.rms_norm_eps };
            self.backend.matmul(matmul, input, rows, self.options.activations, &mut [Product::new(self.vocabulary.head(), logits)]);
        }
        Ok(BatchLogits { given, logits, vocabulary: c.vocab_size })
    }
}
