//! The factors of one layer, found before anything of it is rounded.

use super::{Folding, Found, Magnitudes, ScaleSearch};
use crate::gptq::{Hessian, Settings};
use crate::report::Scaling;
use crate::room::Room;
use crate::{QuantizeError, Recipe};
use billfish_formats::Checkpoint;
use billfish_kernels::Backend;
use billfish_models::{FoldSite, Linear, Look, Wanted};
use std::collections::BTreeMap;
use std::ops::Range;

/// What the search needs besides the layer.
pub(crate) struct Given<'a> {
    pub source: &'a Checkpoint,
    pub recipe: &'a Recipe,
    pub backend: &'a Backend,
    /// How many Hessians there may be at the same time.
    pub room: Room,
    /// Reads the weight of a module, `[N, K]`.
    pub weight: &'a dyn Fn(&Linear) -> Result<Vec<f32>, QuantizeError>,
}

/// Shows the rows that some groups of some steps see.
pub(crate) type Observe<'a> = &'a mut dyn FnMut(Range<usize>, Wanted<'_>, Look<'_>) -> Result<(), QuantizeError>;

/// Finds and folds the factors of a layer with these `sites`.
pub(crate) fn fold(given: &Given<'_>, sites: &[FoldSite], observe: Observe<'_>) -> Result<Folding, QuantizeError> {
    let mut inputs = Inputs::new(given, sites)?;
    let mut folding = Folding::default();
    if inputs.list.is_empty() {
        return Ok(folding);
    }
    inputs.look(given, observe)?;
    for (at, site) in sites.iter().enumerate() {
        fold_site(given, site, inputs.of_site(at), &mut inputs, observe, &mut folding)?;
    }
    Ok(folding)
}

/// What a group of quantized modules sees.
struct Input<'a> {
    /// Number of its site.
    site: usize,
    step: usize,
    group: usize,
    modules: Vec<(&'a Linear, Settings)>,
    magnitudes: Magnitudes,
    hessian: Option<Hessian>,
}

/// The inputs of a layer in the order in which they are used. Magnitudes are summed up in the first run, Hessians as many at
/// a time as there is room for: the layer is the same in every run.
struct Inputs<'a> {
    list: Vec<Input<'a>>,
    /// So many of them have had their Hessians.
    looked: usize,
}

impl<'a> Inputs<'a> {
    fn new(given: &Given<'_>, sites: &'a [FoldSite]) -> Result<Self, QuantizeError> {
        let mut list = vec![];
        for (at, site) in sites.iter().enumerate() {
            let mut groups: BTreeMap<usize, Vec<(&Linear, Settings)>> = BTreeMap::new();
            for (group, reader) in &site.readers {
                if let (Some(group), Some(settings)) = (group, given.recipe.settings(&reader.name)?) {
                    groups.entry(*group).or_default().push((reader, settings));
                }
            }
            list.extend(groups.into_iter().map(|(group, modules)| {
                let size = modules.first().map_or(0, |(l, _)| l.in_features);
                Input { site: at, step: site.step, group, modules, magnitudes: Magnitudes::new(size), hessian: None }
            }));
        }
        Ok(Self { list, looked: 0 })
    }

    /// Which of them are those of a site.
    fn of_site(&self, site: usize) -> Range<usize> {
        self.list.partition_point(|i| i.site < site)..self.list.partition_point(|i| i.site <= site)
    }

    /// Sums up the Hessians of the next ones, and in the first run the magnitudes of all.
    fn look(&mut self, given: &Given<'_>, observe: Observe<'_>) -> Result<(), QuantizeError> {
        let size = |input: &Input<'_>| input.magnitudes.sums().len();
        let from = self.looked;
        let to = from + given.room.groups(self.list[from..].iter().map(size));
        self.list[..from].iter_mut().for_each(|input| input.hessian = None);
        self.list[from..to].iter_mut().for_each(|input| input.hessian = Some(Hessian::new(size(input))));
        self.looked = to;
        let shown = if from == 0 { 0..self.list.len() } else { from..to };
        let places: BTreeMap<(usize, usize), usize> = shown.map(|at| ((self.list[at].step, self.list[at].group), at)).collect();
        let (Some((first, _)), Some((last, _))) = (places.keys().next(), places.keys().next_back()) else { return Ok(()) };
        observe(*first..last + 1, &|step, group| places.contains_key(&(step, group)), &mut |step, group, rows| {
            let Some(input) = places.get(&(step, group)).map(|at| &mut self.list[*at]) else { return };
            if from == 0 {
                input.magnitudes.add(rows);
            }
            if let Some(hessian) = &mut input.hessian {
                hessian.add(given.backend, rows);
            }
        })
    }

    /// The Hessian of one, which is handed out once.
    fn hessian(&mut self, at: usize, given: &Given<'_>, observe: Observe<'_>) -> Result<Hessian, QuantizeError> {
        while self.looked <= at {
            self.look(given, observe)?;
        }
        let size = self.list[at].magnitudes.sums().len();
        Ok(self.list[at].hessian.take().unwrap_or_else(|| Hessian::new(size)))
    }
}

/// Finds and folds the factors of one site, whose quantized readers see the inputs `at`.
fn fold_site(
    given: &Given<'_>,
    site: &FoldSite,
    at: Range<usize>,
    inputs: &mut Inputs<'_>,
    observe: Observe<'_>,
    folding: &mut Folding,
) -> Result<(), QuantizeError> {
    let names: Vec<String> = inputs.list[at.clone()].iter().flat_map(|i| &i.modules).map(|(l, _)| l.name.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let maker = &site.maker;
    let channel = |input: usize| maker.channel(input);
    let mut note = Scaling { maker: maker.name().into(), alpha: 0.0, error: 1.0, left_out: None };
    // what saw too little says nothing about factors
    let enough: Vec<usize> = at.filter(|&i| inputs.list[i].magnitudes.rows() >= given.recipe.fallback_rows.max(1)).collect();
    if enough.is_empty() {
        note.left_out = Some(format!("fewer than {} rows were seen", given.recipe.fallback_rows));
    } else {
        let dense = |l: &Linear| !matches!(given.recipe.settings(&l.name), Ok(Some(_)));
        let place = folding.place(given.source, site, &dense)?;
        let seen: Vec<&Magnitudes> = enough.iter().map(|&i| &inputs.list[i].magnitudes).collect();
        let modules = enough.iter().map(|&i| inputs.list[i].modules.len()).sum();
        let mut search = ScaleSearch::new(&seen, modules, maker.channels(), &channel, &|wanted| place.storable(wanted));
        for i in enough {
            let hessian = inputs.hessian(i, given, observe)?;
            let modules = inputs.list[i].modules.iter().map(|(l, settings)| Ok(((given.weight)(l)?, *settings)));
            search.add(given.backend, &hessian, &modules.collect::<Result<Vec<_>, QuantizeError>>()?, &channel);
        }
        let Found { alpha, scales, error } = search.found();
        (note.alpha, note.error) = (alpha, error);
        if alpha > 0.0 {
            folding.take(place, &scales);
        }
    }
    names.iter().for_each(|name| folding.remember(name, note.clone()));
    Ok(())
}
