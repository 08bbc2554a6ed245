//! What each width and group size of a module costs, on one scale for all modules: the divergence of the predictions.
//!
//! Each unit of modules is rounded alone, to two of the choices, and the divergence that this causes is measured. A
//! divergence grows as the square of a small disturbance does, and so does the error of an output; so the line through both
//! points, with logarithms on both axes, gives the divergence for the output error of any other choice. Those errors cost
//! one solution for a few columns each, by the method that will be used.

use super::predictions::divergences;
use crate::finite::check_finite;
use crate::gptq::{Hessian, Prepared, Settings};
use crate::hidden::batches;
use crate::module::dense_weight;
use crate::{QuantizeError, Recipe, module_bytes};
use billfish_formats::{Checkpoint, Dynamic};
use billfish_kernels::{Activations, Backend, Matrix, PackedDense, Part, Weight};
use billfish_models::{DecoderConfig, Linear, LoadOptions, LoneLayer};
use billfish_tensor::DenseTensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Columns of a module that are quantized to learn its error.
const COLUMNS: usize = 128;
/// Most choices; each is solved for each unit.
const MOST: usize = 64;
/// The width beside the least at which divergences are measured.
const MIDDLE: u32 = 4;

/// A width and a group size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// Width of a code.
    pub bits: u32,
    /// Inputs of a group; all of them if none.
    pub group_size: Option<usize>,
}

/// What is to be measured.
pub struct Study<'a> {
    /// The dense folder.
    pub source: &'a Checkpoint,
    /// How codes will be chosen and stored. The width, the group size and the rules in it do not matter.
    pub recipe: &'a Recipe,
    /// The choices there are.
    pub candidates: &'a [Choice],
    /// Token ids of calibration sequences.
    pub samples: &'a [Vec<u32>],
    /// On how many of the sequences, the first ones, predictions are compared.
    pub probes: usize,
    /// What it runs on.
    pub backend: Arc<Backend>,
}

/// One choice and its price.
#[derive(Clone, Debug, PartialEq)]
pub struct Priced {
    /// The choice.
    pub choice: Choice,
    /// `|x·(W - Wq)|² / |x·W|²`, the mean over the kinds of modules in the unit.
    pub error: f64,
    /// The divergence that it is expected to cause, in nats.
    pub loss: f64,
    /// Bytes of the codes, scales and zero points.
    pub bytes: u64,
}

/// Modules that always get the same settings, because programs fuse them: query, key and value; gate and up; all experts
/// of a layer.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The modules.
    pub modules: Vec<Linear>,
    /// The choices that sizes and format allow.
    pub options: Vec<Priced>,
}

impl Unit {
    /// Weights of the modules.
    pub fn weights(&self) -> u64 {
        self.modules.iter().map(|l| l.in_features as u64 * l.out_features as u64).sum()
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// In the order of the layers.
    pub units: Vec<Unit>,
    /// Predictions that were compared.
    pub predictions: usize,
}

/// Squared errors, and the squares that they are errors of, by kind of module.
type Sums = BTreeMap<String, [f64; 2]>;

/// The modules of a unit that one step of a layer has.
struct Portion {
    modules: Vec<Linear>,
    /// What the method gives.
    errors: BTreeMap<Choice, Sums>,
    /// What plain rounding to the references gives.
    rounded: BTreeMap<Choice, Sums>,
    /// The divergences that it caused.
    measured: Vec<f64>,
}

/// Rows that follow from rounding one portion.
pub(super) struct Variant {
    unit: usize,
    portion: usize,
    pub rows: Vec<f32>,
}

/// Measures a folder, one layer in memory at a time. `progress` hears the layers begun and in all.
///
/// # Errors
/// [`QuantizeError::Setting`] if there is nothing to measure with or no choice for a module, otherwise what reading and
/// running give.
pub fn study(job: &Study<'_>, progress: &mut dyn FnMut(usize, usize)) -> Result<Sensitivity, QuantizeError> {
    if job.samples.is_empty() {
        return Err(QuantizeError::setting("calibration", "a text of some sequences", "none", "name a longer text or shorter sequences"));
    }
    if let Some(first) = job.source.quantized_modules().first() {
        let found = format!("`{first}`, quantized already");
        return Err(QuantizeError::setting(
            "model",
            "a folder of 16- or 32-bit floats",
            found,
            "plan with the folder that this one was made from",
        ));
    }
    if job.candidates.len() > MOST {
        let (expected, found) = (format!("at most {MOST} choices"), job.candidates.len().to_string());
        return Err(QuantizeError::setting("candidates", expected, found, "name fewer widths or group sizes"));
    }
    let references = references(job.candidates);
    if references.is_empty() {
        return Err(QuantizeError::setting("candidates", "widths and group sizes to choose from", "none", "name some"));
    }
    let config = DecoderConfig::from_json(&format!("{}/config.json", job.source.name()), job.source.config())?;
    check_finite(job.source, &|count, body| job.backend.pool().run(count, body))?;
    // experts in one tensor are seen one by one
    let unstacked = config.unstacked(job.source)?;
    let job = &Study { source: unstacked.as_ref().unwrap_or(job.source), backend: Arc::clone(&job.backend), ..*job };
    let lengths: Vec<usize> = job.samples.iter().map(Vec::len).collect();
    let probes = &lengths[..job.probes.clamp(1, lengths.len())];
    let mut rows = billfish_models::embed(job.source, &config, &job.samples.concat())?;
    let mut running = Running { job, config: &config, references, lengths: &lengths, probes, units: vec![], variants: vec![] };
    let options = LoadOptions { activations: Activations::Strict, ..LoadOptions::default() };
    for index in 0..config.layers {
        progress(index, config.layers);
        let mut layer = LoneLayer::load(job.source, &config, index, Arc::clone(&job.backend), options)?;
        // what was disturbed below is not disturbed again
        for v in &mut running.variants {
            run(&mut layer, &mut v.rows, probes, config.hidden_size);
        }
        running.layer(&mut layer, index, &rows)?;
        run(&mut layer, &mut rows, &lengths, config.hidden_size);
    }
    let predictions = probes.iter().sum();
    let Running { mut units, variants, .. } = running;
    let klds = divergences(job, &config, &rows[..predictions * config.hidden_size], &variants)?;
    for (v, kld) in variants.iter().zip(klds) {
        units[v.unit][v.portion].measured.push(kld);
    }
    let units = units.into_iter().map(|portions| unit(job, portions)).collect::<Result<_, _>>()?;
    Ok(Sensitivity { units, predictions })
}

/// The choices to measure divergences with: the least width and a middle one, in the largest groups. The output errors of
/// all other choices then lie between theirs or below, where squares are proportional.
fn references(candidates: &[Choice]) -> Vec<Choice> {
    let Some(group_size) = candidates.iter().map(|c| c.group_size).max_by_key(|g| g.unwrap_or(usize::MAX)) else { return vec![] };
    let widths = || candidates.iter().filter(|c| c.group_size == group_size).map(|c| c.bits);
    let least = widths().min();
    let middle = widths().filter(|b| Some(*b) != least).min_by_key(|b| b.abs_diff(MIDDLE));
    least.into_iter().chain(middle).map(|bits| Choice { bits, group_size }).collect()
}

/// Runs sequences through a layer.
fn run(layer: &mut LoneLayer, rows: &mut [f32], lengths: &[usize], hidden: usize) {
    for (sequences, tokens) in batches(lengths) {
        layer.run(&mut rows[tokens.start * hidden..tokens.end * hidden], &lengths[sequences]);
    }
}

/// A choice in the place of a recipe's.
pub(super) fn settings(recipe: &Recipe, choice: Choice) -> Result<Settings, QuantizeError> {
    let recipe = Recipe { bits: choice.bits, group_size: choice.group_size, dynamic: Dynamic::default(), ..recipe.clone() };
    // without rules no module is left out
    recipe.settings("")?.ok_or_else(|| matrix_error("", &"no settings"))
}

pub(super) fn matrix_error(module: &str, found: &dyn std::fmt::Display) -> QuantizeError {
    QuantizeError::setting(module, "a matrix", found.to_string(), "this is a defect of the program; report it")
}

fn dense(l: &Linear, weight: &[f32], bias: Option<Vec<f32>>) -> Result<Weight, QuantizeError> {
    let tensor = DenseTensor::from_f32(vec![l.out_features, l.in_features], weight).map_err(|e| matrix_error(&l.name, &e))?;
    Ok(Weight::Dense(Arc::new(PackedDense::new(&tensor, bias).map_err(|e| matrix_error(&l.name, &e))?)))
}

/// A study in progress.
struct Running<'a> {
    job: &'a Study<'a>,
    config: &'a DecoderConfig,
    references: Vec<Choice>,
    lengths: &'a [usize],
    probes: &'a [usize],
    units: Vec<Vec<Portion>>,
    variants: Vec<Variant>,
}

impl Running<'_> {
    /// Studies the modules of a layer that `rows` go into.
    fn layer(&mut self, layer: &mut LoneLayer, index: usize, rows: &[f32]) -> Result<(), QuantizeError> {
        let (job, hidden) = (self.job, self.config.hidden_size);
        let experts = self.config.moe.as_ref().filter(|m| m.layers[index]).map_or(0, |m| m.routing.experts);
        let mut routed = None;
        for step in 0..layer.steps() {
            let groups = layer.groups(step);
            let mut hessians: Vec<Hessian> = groups.iter().map(|g| Hessian::new(g.first().map_or(0, |l| l.in_features))).collect();
            for (sequences, tokens) in batches(self.lengths) {
                let rows = &rows[tokens.start * hidden..tokens.end * hidden];
                let add = &mut |_: usize, group: usize, inputs: &[f32]| hessians[group].add(&job.backend, inputs);
                layer.observe(rows, &self.lengths[sequences], step..step + 1, job.recipe.all_experts, &|_, _| true, add);
            }
            let all: Vec<(Vec<Linear>, Hessian)> = groups.into_iter().zip(hessians).collect();
            // experts of a layer are one unit in both steps in which they are
            let (together, apart) = all.split_at(if step >= 2 { experts } else { 0 });
            if !together.is_empty() {
                let at = *routed.get_or_insert(self.units.len());
                self.portion(layer, at, together, rows)?;
            }
            for one in apart {
                self.portion(layer, self.units.len(), std::slice::from_ref(one), rows)?;
            }
        }
        Ok(())
    }

    /// Studies modules of one step that belong to unit `at`; each with what it sees.
    fn portion(&mut self, layer: &mut LoneLayer, at: usize, groups: &[(Vec<Linear>, Hessian)], rows: &[f32]) -> Result<(), QuantizeError> {
        let (job, hidden) = (self.job, self.config.hidden_size);
        let mut portion = Portion { modules: vec![], errors: BTreeMap::new(), rounded: BTreeMap::new(), measured: vec![] };
        let plainly = |choice| Ok::<_, QuantizeError>(Settings { propagate: false, sweeps: 0, ..settings(job.recipe, choice)? });
        for (modules, hessian) in groups {
            let sampled = modules.iter().map(|l| some_columns(job, self.config, l)).collect::<Result<Vec<_>, _>>()?;
            let of = |choices: &[Choice], how: &dyn Fn(Choice) -> Result<Settings, QuantizeError>, sums: &mut _| {
                add_errors(job, choices, how, (modules, &sampled, hessian), sums)
            };
            of(job.candidates, &|choice| settings(job.recipe, choice), &mut portion.errors)?;
            of(&self.references, &plainly, &mut portion.rounded)?;
            portion.modules.extend(modules.iter().cloned());
        }
        if at == self.units.len() {
            self.units.push(vec![]);
        }
        for &choice in &self.references {
            let settings = plainly(choice)?;
            for (modules, hessian) in groups {
                let ready = Prepared::new(&job.backend, hessian, &settings);
                for l in modules {
                    let (weight, bias) = dense_weight(job.source, self.config, l)?;
                    let found = ready.solve(&job.backend, &weight, &settings).weights(l.in_features, settings.group_size);
                    layer.replace(&l.name, dense(l, &found, bias)?);
                }
            }
            let mut rows = rows[..self.probes.iter().sum::<usize>() * hidden].to_vec();
            run(layer, &mut rows, self.probes, hidden);
            self.variants.push(Variant { unit: at, portion: self.units[at].len(), rows });
        }
        for l in &portion.modules {
            let (weight, bias) = dense_weight(job.source, self.config, l)?;
            layer.replace(&l.name, dense(l, &weight, bias)?);
        }
        self.units[at].push(portion);
        Ok(())
    }
}

/// Some of a module's columns, evenly spread.
fn some_columns(job: &Study<'_>, config: &DecoderConfig, l: &Linear) -> Result<Vec<f32>, QuantizeError> {
    let (weight, _) = dense_weight(job.source, config, l)?;
    let (k, count) = (l.in_features, l.out_features.min(COLUMNS));
    let columns = (0..count).map(|i| i * l.out_features / count);
    Ok(columns.flat_map(|c| weight[c * k..(c + 1) * k].iter().copied()).collect())
}

/// Adds the errors of some columns of modules of one input under each choice.
fn add_errors(
    job: &Study<'_>,
    choices: &[Choice],
    how: &dyn Fn(Choice) -> Result<Settings, QuantizeError>,
    (modules, sampled, hessian): (&[Linear], &[Vec<f32>], &Hessian),
    sums: &mut BTreeMap<Choice, Sums>,
) -> Result<(), QuantizeError> {
    let k = hessian.size();
    let h = hessian.ordered(&(0..k).collect::<Vec<_>>());
    let rows = hessian.rows() as f64;
    let mut prepared: Option<(Option<usize>, Prepared)> = None;
    for &choice in choices {
        let settings = how(choice)?;
        let few = hessian.rows() < job.recipe.fallback_rows;
        let settings = if few { Settings { propagate: false, sweeps: 0, ..settings } } else { settings };
        let (_, ready) = match prepared.take().filter(|(group, _)| *group == choice.group_size) {
            Some(ready) => prepared.insert(ready),
            None => prepared.insert((choice.group_size, Prepared::new(&job.backend, hessian, &settings))),
        };
        for (l, weight) in modules.iter().zip(sampled) {
            let found = ready.solve(&job.backend, weight, &settings).weights(k, settings.group_size);
            let errors: Vec<f64> = found.iter().zip(weight).map(|(q, w)| f64::from(*q) - f64::from(*w)).collect();
            let weight: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
            let kind = l.name.rsplit('.').next().unwrap_or(&l.name);
            let sums = sums.entry(choice).or_default().entry(kind.into()).or_default();
            sums[0] += energy(&job.backend, &errors, &h) * rows;
            sums[1] += energy(&job.backend, &weight, &h) * rows;
        }
    }
    Ok(())
}

/// `Σ w · H · wᵀ` over rows of `w`.
fn energy(backend: &Backend, rows: &[f64], h: &[f64]) -> f64 {
    let k = h.len().isqrt();
    let mut through = vec![0.0; rows.len()];
    backend.gemm(1.0, Matrix::new(rows, rows.len() / k, k, k), Matrix::new(h, k, k, k), &mut through, k, Part::All);
    rows.iter().zip(&through).map(|(a, b)| a * b).sum()
}

/// The mean over kinds of modules of the error relative to the output.
fn relative(sums: &Sums) -> f64 {
    let ratios = sums.values().map(|[error, all]| if *all > 0.0 { error / all } else { 0.0 });
    ratios.sum::<f64>() / sums.len().max(1) as f64
}

/// What was learnt of a unit, as prices.
fn unit(job: &Study<'_>, portions: Vec<Portion>) -> Result<Unit, QuantizeError> {
    let modules: Vec<Linear> = portions.iter().flat_map(|p| p.modules.iter().cloned()).collect();
    let lines: Vec<Vec<[f64; 2]>> =
        portions.iter().map(|p| p.rounded.values().zip(&p.measured).map(|(sums, kld)| [relative(sums), *kld]).collect()).collect();
    let (mut options, mut refusal) = (vec![], None);
    for &choice in job.candidates {
        // a short last group is legal, but not every program reads it
        let whole = modules.iter().all(|l| choice.group_size.is_none_or(|g| l.in_features.is_multiple_of(g)));
        let settings = settings(job.recipe, choice)?;
        let bytes = modules.iter().map(|l| module_bytes(l, &settings, job.recipe.target)).sum::<Result<u64, _>>();
        match bytes {
            Ok(bytes) if whole => {
                let errors: Vec<f64> = portions.iter().map(|p| p.errors.get(&choice).map_or(0.0, relative)).collect();
                let loss = lines.iter().zip(&errors).map(|(points, error)| on_line(points, *error)).sum();
                let error = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
                options.push(Priced { choice, error, loss, bytes });
            }
            Ok(_) => refusal = refusal.or(Some("groups that do not divide its inputs".to_string())),
            Err(e) => refusal = Some(e.to_string()),
        }
    }
    if options.is_empty() {
        let name = modules.first().map_or("", |l| l.name.as_str());
        let remedy = "allow other widths or group sizes, or another format";
        return Err(QuantizeError::setting(name, "a width and a group size that can be", refusal.unwrap_or_default(), remedy));
    }
    Ok(Unit { modules, options })
}

/// The divergence for an output error, from up to two measured points `[error, divergence]`, the one of the larger error
/// first: on the line through them in logarithms, and proportional outside of them.
fn on_line(points: &[[f64; 2]], error: f64) -> f64 {
    let usable: Vec<[f64; 2]> = points.iter().copied().filter(|p| p.iter().all(|v| *v > 0.0)).collect();
    match usable.as_slice() {
        // nothing that was tried could be seen in the predictions
        [] => 0.0,
        [[high, top], [low, bottom]] if low < high && (*low..=*high).contains(&error) => {
            let part = (error / low).ln() / (high / low).ln();
            (bottom.ln() + part * (top / bottom).ln()).exp()
        }
        [first, .., last] => {
            let near = if error > first[0] { first } else { last };
            near[1] * error / near[0]
        }
        [one] => one[1] * error / one[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_between_and_outside_of_what_was_measured() {
        // a slope of one and a half between the points
        let points = [[1e-2, 8e-3], [1e-4, 8e-6]];
        for (error, expected) in [(1e-2, 8e-3), (1e-4, 8e-6), (1e-3, 8e-3 / 31.622_776_6), (2e-2, 1.6e-2), (1e-5, 8e-7), (0.0, 0.0)] {
            let found = on_line(&points, error);
            assert!((found - expected).abs() <= 1e-8 * expected, "{error}: {found}");
        }
        assert!((on_line(&points[..1], 1e-3) - 8e-4).abs() <= 1e-8 * 8e-4);
        assert_eq!((on_line(&[], 1.0), on_line(&[[0.0, 0.0]], 1.0)), (0.0, 0.0));
    }

    #[test]
    fn the_widest_groups_are_measured_at_two_widths() {
        let of = |list: &[(u32, usize)]| {
            let choices: Vec<Choice> = list.iter().map(|&(bits, g)| Choice { bits, group_size: Some(g) }).collect();
            references(&choices).iter().map(|c| (c.bits, c.group_size.unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(of(&[(2, 32), (3, 32), (4, 32), (8, 32), (2, 128), (3, 128), (4, 128)]), [(2, 128), (4, 128)]);
        assert_eq!(of(&[(4, 32), (8, 64), (4, 64)]), [(4, 64), (8, 64)]);
        assert_eq!(of(&[(4, 32)]), [(4, 32)]);
        assert_eq!(of(&[]), []);
    }
}
