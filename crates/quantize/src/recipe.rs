//! What a folder is quantized to: one setting for most modules, rules for others.

use crate::QuantizeError;
use crate::gptq::{Grid, Order, Search, Settings};
use billfish_formats::{Dynamic, GroupSize, Target};
use billfish_tensor::DType;

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Each weight's nearest level; scales still weighted by what the inputs are.
    Rtn,
    /// Errors passed on to later inputs.
    Gptq,
    /// Weights scaled by what the inputs are, ranges clipped, each weight's nearest level.
    Awq,
    /// The scales of AWQ, then GPTQ.
    AwqGptq,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
            Method::AwqGptq => "awq+gptq",
        }
    }

    /// Whether factors are looked for that inputs are divided by.
    pub fn scales(self) -> bool {
        matches!(self, Method::Awq | Method::AwqGptq)
    }
}

/// What a layer's modules see while they are calibrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sequential {
    /// What the modules before them give once they are quantized, which later ones can make up for.
    #[default]
    Quantized,
    /// What the dense network gives. Statistics of it serve for any width.
    Dense,
}

impl Sequential {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Sequential::Quantized => "quantized",
            Sequential::Dense => "dense",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Width of a code, 2 to 8.
    pub bits: u32,
    /// Inputs of a group; all of them if none.
    pub group_size: Option<usize>,
    /// Whether zero points are the midpoint.
    pub sym: bool,
    /// The format to write.
    pub target: Target,
    /// Keep asymmetric zero points at 1 or more, which programs that store `zero - 1` can hold.
    pub portable: bool,
    /// How codes are chosen.
    pub method: Method,
    /// The order of the inputs.
    pub order: Order,
    /// How scales are found.
    pub search: Search,
    /// The part of the mean diagonal of a Hessian that is added to its diagonal.
    pub damp: f64,
    /// Sweeps of coordinate descent after the loop.
    pub sweeps: usize,
    /// Quantize the output head too.
    pub lm_head: bool,
    /// Rules for modules, as a quantization config has them: negative rules come first.
    pub dynamic: Dynamic,
    /// Rows that a module must have seen for its Hessian to be used.
    pub fallback_rows: u64,
    /// Let the Hessian of every expert see all tokens, not only those that are routed to it.
    pub all_experts: bool,
    /// What modules see.
    pub sequential: Sequential,
    /// Take a folder that is quantized already: its weights are dequantized, exactly but for scales of 32 bits, whose products
    /// are rounded to `f32`.
    pub requantize: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: Some(128),
            sym: true,
            target: Target::Gptq,
            portable: false,
            method: Method::Gptq,
            order: Order::Gar,
            search: Search::Hessian,
            damp: 0.01,
            sweeps: 2,
            lm_head: false,
            dynamic: Dynamic::default(),
            fallback_rows: 64,
            all_experts: false,
            sequential: Sequential::Quantized,
            requantize: false,
        }
    }
}

impl Recipe {
    /// How `module` is quantized, or none if a rule leaves it dense.
    ///
    /// # Errors
    /// [`QuantizeError::Format`] for a pattern that cannot be decided, [`QuantizeError::Setting`] for a width or a zero
    /// point rule that cannot be.
    pub fn settings(&self, module: &str) -> Result<Option<Settings>, QuantizeError> {
        let found = self.dynamic.find(module)?;
        let rule = found.negatives_first();
        if rule.is_some_and(|r| r.skips()) {
            return Ok(None);
        }
        let overrides = rule.map(|r| r.overrides().clone()).unwrap_or_default();
        let bits = overrides.bits.unwrap_or(self.bits);
        if !(2..=8).contains(&bits) {
            return Err(QuantizeError::setting("bits", "2 to 8", bits.to_string(), "choose a width that codes can have"));
        }
        let group_size = match overrides.group_size {
            Some(GroupSize::Channel) => None,
            Some(GroupSize::Rows(rows)) => Some(rows),
            None => self.group_size,
        };
        let sym = overrides.sym.unwrap_or(self.sym);
        let order = match overrides.desc_act {
            Some(true) => Order::Desc,
            Some(false) if self.order == Order::Desc => Order::Gar,
            _ => self.order,
        };
        // v1 stores a zero point less one
        let lowest_zero = u16::from(!sym && (self.portable || self.target == Target::Gptq));
        let grid = Grid { bits, sym, signed: sym && self.search == Search::Hessian, lowest_zero, stored: DType::F16 };
        let (propagate, sweeps) = match self.method {
            Method::Rtn | Method::Awq => (false, 0),
            Method::Gptq | Method::AwqGptq => (true, self.sweeps),
        };
        let clip = self.method == Method::Awq && self.search == Search::Hessian;
        Ok(Some(Settings { grid, group_size, order, search: self.search, damp: self.damp, propagate, sweeps, clip }))
    }
}
