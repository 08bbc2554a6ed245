//! From a folder to a model: every expected tensor read and packed, every tensor that is there accounted for.

use crate::decoder::{Attention, Layer, Model, NormPair, Vocabulary};
use crate::feed_forward::{FeedForward, GateUp, Mlp, Moe, SharedExpert};
use crate::head::{self, HeadRounding};
use crate::plan::{self, EMBEDDING, ExpertsPlan, FINAL_NORM, FeedForwardPlan, GateUpPlan, HEAD, Linear, MoePlan, Norm};
use crate::{DecoderConfig, ModelError, MoeConfig};
use billfish_formats::{BiasRule, Checkpoint, LinearWeight};
use billfish_kernels::{Activations, Backend, Expert, Experts, KvType, PackedDense, PackedMatrix, Weight, share_orders};
use billfish_tensor::{ActivationScale, DenseTensor};
use std::sync::Arc;

/// How a model is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Precision of activations.
    pub activations: Activations,
    /// Storage of keys and values; by default f16, and f32 with strict activations.
    pub kv_type: Option<KvType>,
    /// Round a float output head to 8 bits. An approximation, never made unasked.
    pub quantize_head: bool,
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
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Width of a code as the folder has it, none if the module is dense.
    pub bits: Option<u32>,
    /// Whether it is the output head, which runs for those tokens only whose logits are asked for.
    pub head: bool,
    /// The scale that 8-bit activations have.
    pub activation_scale: ActivationScale,
    /// The part of all tokens that it runs for: less than 1 for an expert, counted as if all were chosen as often.
    pub share: f64,
}

impl ModuleUse {
    fn of(module: &str, weight: &Weight, head: bool) -> Self {
        let (bits, activation_scale) = match weight {
            Weight::Quantized(w) => (Some(w.bits()), w.activation_scale()),
            Weight::Dense(_) => (None, ActivationScale::Block),
        };
        ModuleUse {
            module: module.into(),
            kernel: weight.kernel(),
            bytes: weight.bytes(),
            in_features: weight.in_features(),
            out_features: weight.out_features(),
            bits,
            head,
            activation_scale,
            share: 1.0,
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
    total: u64,
    modules: Vec<ModuleUse>,
    quantize_head: bool,
    head: Option<HeadRounding>,
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
        let quantize_head = options.quantize_head;
        let total = checkpoint.total_bytes();
        let mut loader = Loader { checkpoint, progress, done: 0, total, modules: vec![], quantize_head, head: None };
        // the largest dense weights first: while one is packed it exists twice, which is cheapest while nothing else does
        let vocabulary = loader.vocabulary(&config)?;
        let layers = (0..config.layers).map(|i| loader.layer(&config, i)).collect::<Result<Vec<_>, _>>()?;
        let norm = loader.norm(&Norm { name: FINAL_NORM.into(), size: config.hidden_size })?;
        for name in checkpoint.unread().iter().filter(|n| plan::is_computed(n)) {
            checkpoint.mark_read(name);
        }
        let Loader { modules, head, .. } = loader;
        Ok(Model { config, vocabulary, layers, norm, backend, options, modules, head })
    }
}

impl Loader<'_> {
    fn account(&mut self, prefix: &str) {
        let names = ["qweight", "qzeros", "scales", "g_idx", "weight", "bias", "weight_packed", "weight_scale", "scaled_zeros", "B", "s"];
        let bytes = names.iter().filter_map(|n| self.checkpoint.info(&format!("{prefix}.{n}"))).map(|i| i.bytes as u64).sum::<u64>();
        self.done += bytes;
        (self.progress)(Progress { done: self.done, total: self.total });
    }

    fn linear(&mut self, l: &Linear) -> Result<Weight, ModelError> {
        let rule = if l.bias { BiasRule::Required } else { BiasRule::Absent };
        let stored = self.checkpoint.linear(&l.name, l.in_features, l.out_features, rule)?;
        let packed = match stored {
            LinearWeight::Quantized(m) => PackedMatrix::new(&m).map(Weight::Quantized),
            LinearWeight::Dense { weight, bias } => PackedDense::new(&weight, bias).map(|w| Weight::Dense(Arc::new(w))),
        };
        let weight = packed.map_err(|source| ModelError::Pack { module: l.name.clone(), source })?;
        self.modules.push(ModuleUse::of(&l.name, &weight, l.name == HEAD));
        self.account(&l.name);
        Ok(weight)
    }

    /// A float head as 8-bit integers.
    fn rounded(&mut self, module: &str, weight: &DenseTensor, bias: Option<Vec<f32>>) -> Result<Weight, ModelError> {
        let wrong = |reason: String| ModelError::Head { module: module.into(), reason };
        let (matrix, rounding) = head::round(weight, bias).map_err(|e| wrong(e.to_string()))?;
        let packed = PackedMatrix::new(&matrix).map_err(|source| ModelError::Pack { module: module.into(), source })?;
        let weight = Weight::Quantized(packed);
        self.head = Some(HeadRounding { bytes_after: weight.bytes(), ..rounding });
        self.modules.push(ModuleUse::of(module, &weight, true));
        Ok(weight)
    }

    fn norm(&mut self, n: &Norm) -> Result<Vec<f32>, ModelError> {
        let values = self.checkpoint.dense(&format!("{}.weight", n.name), &[n.size])?.to_f32();
        self.account(&n.name);
        Ok(values)
    }

    fn norms(&mut self, pair: Option<&[Norm; 2]>) -> Result<Option<NormPair>, ModelError> {
        pair.map(|[a, b]| Ok((self.norm(a)?, self.norm(b)?))).transpose()
    }

    fn vocabulary(&mut self, c: &DecoderConfig) -> Result<Vocabulary, ModelError> {
        let own = Linear { name: HEAD.into(), in_features: c.hidden_size, out_features: c.vocab_size, bias: false };
        let head = match plan::has_own_head(c, self.checkpoint) {
            true if self.quantize_head => match self.checkpoint.linear(HEAD, own.in_features, own.out_features, BiasRule::Absent)? {
                LinearWeight::Dense { weight, bias } => Some(self.rounded(HEAD, &weight, bias)?),
                LinearWeight::Quantized(m) => {
                    let reason = format!("it is quantized to {} bits already; leave the option out", m.bits());
                    return Err(ModelError::Head { module: HEAD.into(), reason });
                }
            },
            true => Some(self.linear(&own)?),
            false => None,
        };
        let table = self.checkpoint.dense(&format!("{EMBEDDING}.weight"), &[c.vocab_size, c.hidden_size])?;
        let vocabulary = match head {
            Some(head) => Vocabulary::Separate { table, head },
            None => {
                self.checkpoint.mark_read("lm_head.weight");
                if self.quantize_head {
                    // tokens still become the rows as they are
                    let head = self.rounded(EMBEDDING, &table, None)?;
                    Vocabulary::Separate { table, head }
                } else {
                    let packed = PackedDense::new(&table, None).map_err(|source| ModelError::Pack { module: EMBEDDING.into(), source })?;
                    let rows = Arc::new(packed);
                    let head = Weight::Dense(Arc::clone(&rows));
                    self.modules.push(ModuleUse::of(EMBEDDING, &head, true));
                    Vocabulary::Tied { rows, head }
                }
            }
        };
        self.account(EMBEDDING);
        Ok(vocabulary)
    }

    fn layer(&mut self, c: &DecoderConfig, i: usize) -> Result<Layer, ModelError> {
        let p = plan::layer(c, self.checkpoint, i);
        let (mut query, mut key, mut value) = (self.linear(&p.query)?, self.linear(&p.key)?, self.linear(&p.value)?);
        share_orders([&mut query, &mut key, &mut value].into_iter());
        let output = self.linear(&p.output)?;
        let qk_norms = self.norms(p.qk_norms.as_ref())?;
        let feed_forward = match (&p.feed_forward, &c.moe) {
            (FeedForwardPlan::Moe(plan), Some(moe)) => FeedForward::Moe(Box::new(self.moe(c.hidden_size, moe, plan)?)),
            (FeedForwardPlan::Mlp { gate_up, down }, _) => {
                let gate_up = match gate_up {
                    GateUpPlan::Fused(one) => GateUp::Fused(self.linear(one)?),
                    GateUpPlan::Separate([gate, up]) => {
                        let (mut gate, mut up) = (self.linear(gate)?, self.linear(up)?);
                        share_orders([&mut gate, &mut up].into_iter());
                        GateUp::Separate { gate, up }
                    }
                };
                FeedForward::Mlp(Box::new(Mlp { gate_up, down: self.linear(down)? }))
            }
            (FeedForwardPlan::Moe(_), None) => unreachable!("only a mixture of experts plans experts"),
        };
        Ok(Layer {
            feed_forward,
            attention_norm: self.norm(&p.attention_norm)?,
            attention: Attention { query, key, value, output, qk_norms, window: c.windows[i] },
            mlp_norm: self.norm(&p.mlp_norm)?,
            output_norms: self.norms(p.output_norms.as_ref())?,
        })
    }

    fn moe(&mut self, hidden: usize, c: &MoeConfig, plan: &MoePlan) -> Result<Moe, ModelError> {
        let router = self.linear(&plan.router)?;
        let correction = match &plan.correction {
            Some(name) => Some(self.checkpoint.dense(name, &[c.routing.experts])?.to_f32()),
            None => None,
        };
        let first = self.modules.len();
        let mut experts: Vec<Expert> = match &plan.experts {
            ExpertsPlan::Each(list) => list.iter().map(|parts| self.expert(parts)).collect::<Result<_, _>>()?,
            ExpertsPlan::Stacked { gate_up, down } => self.stacked(gate_up, down, hidden, c)?,
        };
        let share = c.routing.top_k as f64 / c.routing.experts as f64;
        self.modules[first..].iter_mut().for_each(|m| m.share = share);
        let mut shared = match &plan.shared {
            None => None,
            Some(parts) => {
                let expert = self.expert(parts)?;
                let gate = plan.shared_gate.as_ref().map(|gate| self.linear(gate)).transpose()?;
                Some(SharedExpert { expert, gate })
            }
        };
        // all of them read the same rows
        let all = experts.iter_mut().chain(shared.as_mut().map(|s| &mut s.expert));
        share_orders(all.flat_map(|e| [&mut e.gate, &mut e.up]));
        let experts = Experts::new(experts).map_err(|source| ModelError::Pack { module: plan.router.name.clone(), source })?;
        Ok(Moe { router, correction, experts, shared })
    }

    fn expert(&mut self, [gate, up, down]: &[Linear; 3]) -> Result<Expert, ModelError> {
        Ok(Expert { gate: self.linear(gate)?, up: self.linear(up)?, down: self.linear(down)? })
    }

    /// Experts that stand in two tensors, one read after another.
    fn stacked(&mut self, gate_up: &str, down: &str, hidden: usize, c: &MoeConfig) -> Result<Vec<Expert>, ModelError> {
        let (count, width) = (c.routing.experts, c.width);
        let mut pack = |name: &str, part: &str, e: usize, weight: &DenseTensor| {
            let module = format!("{name}[{e}]{part}");
            let packed = PackedDense::new(weight, None).map_err(|source| ModelError::Pack { module: module.clone(), source })?;
            let weight = Weight::Dense(Arc::new(packed));
            self.modules.push(ModuleUse::of(&module, &weight, false));
            Ok::<_, ModelError>(weight)
        };
        let mut experts = Vec::with_capacity(count);
        for e in 0..count {
            let half = |rows| self.checkpoint.dense_of_stack(gate_up, [count, 2 * width, hidden], e, rows);
            let (gate, up) = (half(0..width)?, half(width..2 * width)?);
            let (gate, up) = (pack(gate_up, ".gate", e, &gate)?, pack(gate_up, ".up", e, &up)?);
            let down = pack(down, "", e, &self.checkpoint.dense_of_stack(down, [count, hidden, width], e, 0..hidden)?)?;
            experts.push(Expert { gate, up, down });
        }
        for name in [gate_up, down] {
            self.done += self.checkpoint.info(name).map_or(0, |i| i.bytes as u64);
        }
        (self.progress)(Progress { done: self.done, total: self.total });
        Ok(experts)
    }
}
