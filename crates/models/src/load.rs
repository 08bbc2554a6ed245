//! From a folder to a model: every expected tensor read and packed, every tensor that is there accounted for.

use crate::cache::{self, Parts, Place, Recorder};
use crate::decoder::{Attention, Layer, Model, NormPair, Vocabulary};
use crate::feed_forward::{FeedForward, GateUp, Mlp, Moe, SharedExpert};
use crate::head::{self, HeadRounding};
use crate::packing::{self, Account};
use crate::plan::{self, EMBEDDING, ExpertsPlan, FINAL_NORM, FeedForwardPlan, GateUpPlan, HEAD, Linear, MoePlan, Norm};
use crate::{DecoderConfig, ModelError, MoeConfig};
use billfish_formats::{BiasRule, Checkpoint, LinearWeight, Rows};
use billfish_kernels::{
    Activations, Backend, DenseLayout, Expert, Experts, KvScales, KvType, PackedDense, PackedMatrix, Pool, Table, Weight, share_orders,
};
use billfish_tensor::{ActivationScale, DType, DenseTensor};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
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
    /// How a dense module's weights are stored, none if the module is quantized.
    pub dense: Option<DType>,
    /// Whether it runs for those tokens only whose logits are asked for: the output head does, and of the last layer all that
    /// keys and values do not come from.
    pub asked: bool,
    /// The scale that 8-bit activations have.
    pub activation_scale: ActivationScale,
    /// The part of all tokens that it runs for: less than 1 for an expert, counted as if all were chosen as often.
    pub share: f64,
}

impl ModuleUse {
    fn of(module: &str, weight: &Weight, asked: bool) -> Self {
        let (bits, dense, activation_scale) = match weight {
            Weight::Quantized(w) => (Some(w.bits()), None, w.activation_scale()),
            Weight::Dense(w) => (None, Some(w.dtype()), ActivationScale::Block),
        };
        ModuleUse {
            module: module.into(),
            kernel: weight.kernel(),
            bytes: weight.bytes(),
            in_features: weight.in_features(),
            out_features: weight.out_features(),
            bits,
            dense,
            asked,
            activation_scale,
            share: 1.0,
        }
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    pool: &'a Pool,
    /// How weights that are not quantized are laid out.
    dense: DenseLayout,
    account: Account<'a>,
    /// Linear modules that are packed already.
    packed: HashMap<String, Weight>,
    modules: Vec<ModuleUse>,
    quantize_head: bool,
    head: Option<HeadRounding>,
    /// What a packed cache gave; then nothing is read.
    stored: Option<Parts>,
    /// Where what was packed is kept for the next time.
    recorder: Option<(Recorder, &'a Place)>,
    /// Modules that are not read, because others will take their places.
    absent: Option<&'a dyn Fn(&str) -> bool>,
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
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Model, ModelError> {
        Self::assemble(checkpoint, backend, options, None, None, progress).map(|(model, _)| model)
    }

    /// The same from a packed cache in `dir`, which is made if it is not there, or is wrong. The model has the same bits
    /// either way; [`Model::cache`] tells which it was.
    ///
    /// # Errors
    /// [`ModelError::Cache`] if the folder is not on disk or the cache cannot be written, else as [`Model::load`].
    pub fn load_cached(
        checkpoint: &Checkpoint,
        backend: Arc<Backend>,
        options: LoadOptions,
        dir: &Path,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Model, ModelError> {
        let mut place = Place::find(checkpoint, options.quantize_head, dir, backend.pool())?;
        if let Some(parts) = place.read(backend.pool()) {
            match Self::assemble(checkpoint, Arc::clone(&backend), options, Some(parts), None, progress) {
                Ok((model, _)) => {
                    place.remember();
                    return Ok(Model { cache: Some(place.usage), ..model });
                }
                Err(ModelError::Cache { path, reason }) => place.refuse(&format!("`{path}`: {reason}")),
                Err(other) => return Err(other),
            }
        }
        let recorder = Some((place.recorder()?, &place));
        let (model, recorder) = Self::assemble(checkpoint, Arc::clone(&backend), options, None, recorder, progress)?;
        if let Some(recorder) = recorder {
            place.keep(recorder, model.head, checkpoint, backend.pool())?;
        }
        place.remember();
        Ok(Model { cache: Some(place.usage), ..model })
    }

    /// Puts a model together from a folder, or from what a packed cache gave; gives back the recorder.
    fn assemble(
        checkpoint: &Checkpoint,
        backend: Arc<Backend>,
        options: LoadOptions,
        mut stored: Option<Parts>,
        recorder: Option<(Recorder, &Place)>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Model, Option<Recorder>), ModelError> {
        let config = DecoderConfig::from_json(&format!("{}/config.json", checkpoint.name()), checkpoint.config())?;
        let quantize_head = options.quantize_head;
        let (account, pool, dense) = (Account::new(checkpoint, progress), backend.pool(), backend.isa().dense_layout());
        let packed = HashMap::new();
        let packed = stored.as_mut().map_or(packed, |s| std::mem::take(&mut s.weights));
        let mut loader =
            Loader { checkpoint, pool, dense, account, packed, modules: vec![], quantize_head, head: None, stored, recorder, absent: None };
        // the largest weights first, by all threads: while a quantized one is packed it exists twice, which is cheapest
        // while nothing else does
        let vocabulary = loader.vocabulary(&config)?;
        if loader.stored.is_none() {
            loader.packed = packing::pack_all(checkpoint, &config.layer_linears(checkpoint), dense, pool, &loader.account)?;
        }
        let layers = (0..config.layers).map(|i| loader.layer(&config, i)).collect::<Result<Vec<_>, _>>()?;
        let norm = loader.norm(&Norm { name: FINAL_NORM.into(), size: config.hidden_size })?;
        for name in checkpoint.unread().iter().filter(|n| plan::is_computed(n)) {
            checkpoint.mark_read(name);
        }
        if let Some(stored) = &mut loader.stored {
            stored.account(checkpoint);
            loader.account.all();
        }
        let Loader { modules, head, recorder, .. } = loader;
        let recorder = recorder.map(|(recorder, _)| recorder);
        Ok((Model { config, vocabulary, layers, norm, backend, options, modules, head, cache: None }, recorder))
    }
}

/// Reads one layer alone; the linear modules that are `absent` get placeholders.
pub(crate) fn layer(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    i: usize,
    pool: &Pool,
    absent: &dyn Fn(&str) -> bool,
) -> Result<Layer, ModelError> {
    let mut nobody = |_| ();
    let mut loader = Loader {
        checkpoint,
        pool,
        // one layer is not worth the time that making it narrow takes
        dense: DenseLayout::Stored,
        account: Account::new(checkpoint, &mut nobody),
        packed: HashMap::new(),
        modules: vec![],
        quantize_head: false,
        head: None,
        stored: None,
        recorder: None,
        absent: Some(absent),
    };
    loader.layer(config, i)
}

impl Loader<'_> {
    fn linear(&mut self, l: &Linear) -> Result<Weight, ModelError> {
        let weight = match self.packed.remove(&l.name) {
            Some(w) if (w.in_features(), w.out_features()) == (l.in_features, l.out_features) => w,
            _ if self.stored.is_some() => return Err(cache::lacks(&l.name)),
            _ if self.absent.is_some_and(|absent| absent(&l.name)) => {
                Weight::Dense(Arc::new(PackedDense::placeholder(l.in_features, l.out_features)))
            }
            _ => {
                let weight = packing::pack(self.checkpoint, l, self.dense, Some(self.pool))?;
                self.account.add(&l.name);
                weight
            }
        };
        self.modules.push(ModuleUse::of(&l.name, &weight, l.name == HEAD));
        self.record(|r| r.weight(&l.name, &weight))?;
        Ok(weight)
    }

    /// Keeps something in the packed cache, if one is made.
    fn record(&mut self, keep: impl FnOnce(&mut Recorder) -> std::io::Result<()>) -> Result<(), ModelError> {
        self.recorder.as_mut().map_or(Ok(()), |(recorder, place)| keep(recorder).map_err(|e| place.cannot_write(e)))
    }

    /// A float head as 8-bit integers.
    fn rounded(&mut self, module: &str, weight: &DenseTensor, bias: Option<Vec<f32>>) -> Result<Weight, ModelError> {
        let wrong = |reason: String| ModelError::Head { module: module.into(), reason };
        let (matrix, rounding) = head::round(weight, bias).map_err(|e| wrong(e.to_string()))?;
        let packed = PackedMatrix::packed_by(&matrix, self.pool).map_err(|source| ModelError::Pack { module: module.into(), source })?;
        let weight = Weight::Quantized(packed);
        self.head = Some(HeadRounding { bytes_after: weight.bytes(), ..rounding });
        self.modules.push(ModuleUse::of(module, &weight, true));
        self.record(|r| r.weight(module, &weight))?;
        Ok(weight)
    }

    /// The rows that tokens become.
    fn table(&mut self, rows: &Rows<'_>) -> Result<Table, ModelError> {
        let table = Table::from_rows(rows.dtype(), rows.shape(), self.pool, &packing::reads(rows)).map_err(|e| e.of(EMBEDDING))?;
        self.record(|r| r.rows(&table))?;
        Ok(table)
    }

    fn norm(&mut self, n: &Norm) -> Result<Vec<f32>, ModelError> {
        self.vector(&n.name, &format!("{}.weight", n.name), n.size)
    }

    /// Some numbers of `module`: the tensor of that name.
    fn vector(&mut self, module: &str, tensor: &str, size: usize) -> Result<Vec<f32>, ModelError> {
        self.stored_or(module, size, |loader| {
            let values = loader.checkpoint.dense(tensor, &[size])?.to_f32();
            loader.account.add(module);
            Ok(values)
        })
    }

    /// Numbers that a packed cache has under `name`, or that are read and kept there.
    fn stored_or(
        &mut self,
        name: &str,
        size: usize,
        read: impl FnOnce(&Self) -> Result<Vec<f32>, ModelError>,
    ) -> Result<Vec<f32>, ModelError> {
        if let Some(stored) = &mut self.stored {
            return stored.vectors.remove(name).filter(|v| v.len() == size).ok_or_else(|| cache::lacks(name));
        }
        let values = read(self)?;
        self.record(|r| r.vector(name, &values))?;
        Ok(values)
    }

    /// The scales of the keys and values of layer `i`, which are tensors of these names.
    fn cache_scales(&mut self, names: &[String; 2], i: usize, heads: usize) -> Result<Arc<KvScales>, ModelError> {
        let mut read = |name: &str, what: &str| {
            // one tensor may be both
            let key = format!("model.layers.{i}.self_attn.{what}");
            self.stored_or(&key, heads, |loader| {
                let scales = loader.checkpoint.cache_scale(name, heads)?;
                loader.account.tensors(&[name]);
                Ok(scales)
            })
        };
        Ok(Arc::new(KvScales { keys: read(&names[0], "k_scale")?, values: read(&names[1], "v_scale")? }))
    }

    fn norms(&mut self, pair: Option<&[Norm; 2]>) -> Result<Option<NormPair>, ModelError> {
        pair.map(|[a, b]| Ok((self.norm(a)?, self.norm(b)?))).transpose()
    }

    fn vocabulary(&mut self, c: &DecoderConfig) -> Result<Vocabulary, ModelError> {
        if let Some(stored) = &mut self.stored {
            let (vocabulary, module) = stored.vocabulary(&mut self.packed, c.hidden_size, c.vocab_size)?;
            self.head = stored.head;
            self.modules.push(ModuleUse::of(module, vocabulary.head(), true));
            return Ok(vocabulary);
        }
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
        let table = self.checkpoint.dense_rows(&format!("{EMBEDDING}.weight"), [c.vocab_size, c.hidden_size])?;
        let vocabulary = match head {
            Some(head) => Vocabulary::Separate { table: self.table(&table)?, head },
            None => {
                self.checkpoint.mark_read("lm_head.weight");
                if self.quantize_head {
                    // tokens still become the rows as they are
                    let head = self.rounded(EMBEDDING, &table.all()?, None)?;
                    Vocabulary::Separate { table: self.table(&table)?, head }
                } else {
                    let size = (c.hidden_size, c.vocab_size);
                    let rows = PackedDense::from_rows(table.dtype(), size, None, self.dense, Some(self.pool), &packing::reads(&table));
                    let rows = rows.map_err(|e| e.of(EMBEDDING))?;
                    let rows = Arc::new(rows);
                    let head = Weight::Dense(Arc::clone(&rows));
                    self.modules.push(ModuleUse::of(EMBEDDING, &head, true));
                    self.record(|r| r.weight(EMBEDDING, &head))?;
                    Vocabulary::Tied { rows, head }
                }
            }
        };
        self.account.add(EMBEDDING);
        Ok(vocabulary)
    }

    fn layer(&mut self, c: &DecoderConfig, i: usize) -> Result<Layer, ModelError> {
        let p = plan::layer(c, self.checkpoint, i);
        let first = self.modules.len();
        let (mut query, mut key, mut value) = (self.linear(&p.query)?, self.linear(&p.key)?, self.linear(&p.value)?);
        share_orders([&mut query, &mut key, &mut value].into_iter());
        let output = self.linear(&p.output)?;
        let qk_norms = self.norms(p.qk_norms.as_ref())?;
        let cache_scales = p.cache_scales.as_ref().map(|names| self.cache_scales(names, i, c.kv_heads)).transpose()?;
        let feed_forward = match &p.feed_forward {
            FeedForwardPlan::Moe(plan) => FeedForward::Moe(Box::new(self.moe(c.hidden_size, plan)?)),
            FeedForwardPlan::Mlp { gate_up, down } => {
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
        };
        let others = self.modules[first..].iter_mut().filter(|m| m.module != p.key.name && m.module != p.value.name);
        others.for_each(|m| m.asked = i + 1 == c.layers);
        Ok(Layer {
            feed_forward,
            attention_norm: self.norm(&p.attention_norm)?,
            attention: Attention { query, key, value, output, qk_norms, cache_scales, window: c.windows[i] },
            mlp_norm: self.norm(&p.mlp_norm)?,
            output_norms: self.norms(p.output_norms.as_ref())?,
        })
    }

    fn moe(&mut self, hidden: usize, plan: &MoePlan) -> Result<Moe, ModelError> {
        let c = &plan.config;
        let router = self.linear(&plan.router)?;
        let correction = match &plan.correction {
            Some(name) => Some(self.vector(name, name, c.routing.experts)?),
            None => None,
        };
        let first = self.modules.len();
        let mut experts: Vec<Expert> = match &plan.experts {
            ExpertsPlan::Each(list) => list.iter().map(|parts| self.expert(parts)).collect::<Result<_, _>>()?,
            ExpertsPlan::Stacked { gate_up, down, .. } => self.stacked(gate_up, down, hidden, c)?,
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
        Ok(Moe { config: c.clone(), router, correction, experts, shared })
    }

    fn expert(&mut self, [gate, up, down]: &[Linear; 3]) -> Result<Expert, ModelError> {
        Ok(Expert { gate: self.linear(gate)?, up: self.linear(up)?, down: self.linear(down)? })
    }

    /// Experts that stand in two tensors, one read after another.
    fn stacked(&mut self, gate_up: &str, down: &str, hidden: usize, c: &MoeConfig) -> Result<Vec<Expert>, ModelError> {
        let (count, width) = (c.routing.experts, c.width);
        let both = [count, 2 * width, hidden];
        let mut experts = Vec::with_capacity(count);
        for e in 0..count {
            experts.push(Expert {
                gate: self.of_stack(gate_up, ".gate", both, e, 0..width)?,
                up: self.of_stack(gate_up, ".up", both, e, width..2 * width)?,
                down: self.of_stack(down, "", [count, hidden, width], e, 0..hidden)?,
            });
        }
        self.account.tensors(&[gate_up, down]);
        Ok(experts)
    }

    /// Rows of matrix `e` of a stack.
    fn of_stack(&mut self, stack: &str, part: &str, shape: [usize; 3], e: usize, rows: Range<usize>) -> Result<Weight, ModelError> {
        let module = format!("{stack}[{e}]{part}");
        let size = (shape[2], rows.len());
        let weight = match self.packed.remove(&module) {
            Some(w) if (w.in_features(), w.out_features()) == size => w,
            _ if self.stored.is_some() => return Err(cache::lacks(&module)),
            _ => {
                let weight = self.checkpoint.dense_of_stack(stack, shape, e, rows)?;
                let packed = PackedDense::new(&weight, None).map_err(|source| ModelError::Pack { module: module.clone(), source })?;
                Weight::Dense(Arc::new(packed))
            }
        };
        self.modules.push(ModuleUse::of(&module, &weight, false));
        self.record(|r| r.weight(&module, &weight))?;
        Ok(weight)
    }
}
