//! The factors of one layer, found before anything of it is rounded.

use super::{Folding, Found, Readers, Seen, scales};
use crate::gptq::Settings;
use crate::report::Scaling;
use crate::{QuantizeError, Recipe};
use billfish_formats::Checkpoint;
use billfish_kernels::Backend;
use billfish_models::{FoldSite, Linear, LookSteps};
use std::collections::BTreeMap;

/// What the search needs besides the layer.
pub(crate) struct Given<'a> {
    pub source: &'a Checkpoint,
    pub recipe: &'a Recipe,
    pub backend: &'a Backend,
    /// Reads the weight of a module, `[N, K]`.
    pub weight: &'a dyn Fn(&Linear) -> Result<Vec<f32>, QuantizeError>,
}

/// Shows the rows that the groups of all steps see.
pub(crate) type Observe<'a> = &'a mut dyn FnMut(LookSteps<'_>);

/// Finds and folds the factors of a layer with these `sites`.
pub(crate) fn fold(given: &Given<'_>, sites: &[FoldSite], observe: Observe<'_>) -> Result<Folding, QuantizeError> {
    let mut seen: BTreeMap<(usize, usize), Seen> = BTreeMap::new();
    for site in sites {
        for (group, reader) in &site.readers {
            if let Some(group) = group
                && settings(given, reader)?.is_some()
            {
                seen.entry((site.step, *group)).or_insert_with(|| Seen::new(reader.in_features));
            }
        }
    }
    let mut folding = Folding::default();
    if !seen.is_empty() {
        observe(&mut |step, group, rows| {
            if let Some(seen) = seen.get_mut(&(step, group)) {
                seen.add(given.backend, rows);
            }
        });
    }
    for site in sites {
        fold_site(given, site, &mut seen, &mut folding)?;
    }
    Ok(folding)
}

fn settings(given: &Given<'_>, l: &Linear) -> Result<Option<Settings>, QuantizeError> {
    given.recipe.settings(&l.name)
}

fn fold_site(
    given: &Given<'_>,
    site: &FoldSite,
    seen: &mut BTreeMap<(usize, usize), Seen>,
    folding: &mut Folding,
) -> Result<(), QuantizeError> {
    let mut quantized: BTreeMap<usize, Vec<(&Linear, Settings)>> = BTreeMap::new();
    for (group, reader) in &site.readers {
        if let (Some(group), Some(settings)) = (group, settings(given, reader)?) {
            quantized.entry(*group).or_default().push((reader, settings));
        }
    }
    let names: Vec<String> = quantized.values().flatten().map(|(l, _)| l.name.clone()).collect();
    let mut readers = vec![];
    for (group, modules) in quantized {
        // what saw too little says nothing about factors
        let Some(seen) = seen.remove(&(site.step, group)).filter(|s| s.hessian().rows() >= given.recipe.fallback_rows.max(1)) else {
            continue;
        };
        let modules = modules.into_iter().map(|(l, settings)| Ok(((given.weight)(l)?, settings)));
        readers.push(Readers { seen, modules: modules.collect::<Result<_, QuantizeError>>()? });
    }
    let maker = &site.maker;
    let mut note = Scaling { maker: maker.name().into(), alpha: 0.0, error: 1.0, left_out: None };
    if names.is_empty() {
        return Ok(());
    }
    if readers.is_empty() {
        note.left_out = Some(format!("fewer than {} rows were seen", given.recipe.fallback_rows));
    } else {
        let dense = |l: &Linear| !matches!(settings(given, l), Ok(Some(_)));
        let place = folding.place(given.source, site, &dense)?;
        let found = scales(given.backend, &readers, maker.channels(), &|i| maker.channel(i), &|wanted| place.storable(wanted));
        let Found { alpha, scales, error } = found;
        (note.alpha, note.error) = (alpha, error);
        if alpha > 0.0 {
            folding.take(place, &scales);
        }
    }
    names.iter().for_each(|name| folding.remember(name, note.clone()));
    Ok(())
}
