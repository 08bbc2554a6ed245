//! Widths and group sizes by what a module is: the presets of the layer classes that Metal Marlin users know, for integer
//! codes. Its 4-bit floats are 4-bit integers here, its 16-bit classes stay as they are.

use super::Choice;
use super::classes::{Class, class_of};
use super::rules::{Ruled, rules};
use crate::size::chosen_modules;
use crate::{QuantizeError, Recipe};
use billfish_formats::Checkpoint;
use serde_json::Value;

/// A table of classes and settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// 4 bits: groups of 64 for attention and shared experts, of 128 for the rest.
    Dense,
    /// As `Dense`, with larger groups for the outputs of attention, so that experts weigh most.
    Moe,
    /// 4 bits: groups of 32 for attention and shared experts, of 64 for the rest.
    Quality,
    /// 4 bits: groups of 128 for attention and shared experts, of 256 for the rest.
    Speed,
    /// 3 bits for experts and MLPs in groups of 128, 4 bits for attention in large groups.
    Size,
}

/// Settings of a class; none if it stays dense.
fn table(preset: Preset, class: Class) -> Option<(u32, usize)> {
    use Class::*;
    use Preset::*;
    match (preset, class) {
        (_, Embedding | Head | Norm | Router) => None,
        (Dense, AttentionIn | AttentionOut | Latent | Recurrent | SharedExpert) => Some((4, 64)),
        (Dense, MlpIn | MlpDown | Expert) => Some((4, 128)),
        (Moe, AttentionIn | Latent | Recurrent | SharedExpert) => Some((4, 64)),
        (Moe, AttentionOut | MlpIn | MlpDown | Expert) => Some((4, 128)),
        (Quality, AttentionIn | AttentionOut | Latent | Recurrent | SharedExpert) => Some((4, 32)),
        (Quality, MlpIn | MlpDown | Expert) => Some((4, 64)),
        (Speed, AttentionIn | AttentionOut | Latent | Recurrent | SharedExpert) => Some((4, 128)),
        (Speed, MlpIn | MlpDown | Expert) => Some((4, 256)),
        (Size, AttentionIn | Latent | Recurrent | SharedExpert) => Some((4, 128)),
        (Size, AttentionOut) => Some((4, 256)),
        (Size, MlpIn | MlpDown | Expert) => Some((3, 128)),
        (Quality, Draft) => Some((4, 128)),
        (_, Draft) => Some((4, 256)),
    }
}

/// What modules of no known class get.
const DEFAULT: (u32, usize) = (4, 128);

/// What a preset makes of a folder.
#[derive(Clone, Debug)]
pub struct Preselected {
    /// The value of `dynamic`, and the settings of most weights beside it.
    pub rules: Value,
    /// Every module that quantization could change, with its class and its settings, none if it stays dense.
    pub modules: Vec<(String, Option<Class>, Option<Choice>)>,
    /// Weights that no class is known of; where they are quantized at all they have the default settings.
    pub unknown: Vec<String>,
}

/// Rules for the modules of a folder by their classes.
///
/// # Errors
/// [`QuantizeError`] if the folder is none of a known model.
pub fn preset(source: &Checkpoint, recipe: &Recipe, preset: Preset) -> Result<Preselected, QuantizeError> {
    let weights = source.tensor_names().filter(|t| source.info(t).is_some_and(|i| i.shape.len() == 2));
    let names = weights.filter_map(|t| t.strip_suffix(".weight"));
    let unknown = names.filter(|m| class_of(m).is_none()).map(String::from).collect();
    let all = chosen_modules(source, &Recipe { dynamic: Default::default(), ..recipe.clone() })?;
    let mut modules = vec![];
    for (l, _) in &all {
        let class = class_of(&l.name);
        let settings = class.map_or(Some(DEFAULT), |c| table(preset, c));
        let choice = settings.map(|(bits, largest)| Choice { bits, group_size: dividing(l.in_features, largest) });
        modules.push((l.name.clone(), class, choice));
    }
    let ruled: Vec<Ruled<'_>> = all.iter().zip(&modules).map(|((l, _), (.., choice))| (l, *choice)).collect();
    Ok(Preselected { rules: rules(&ruled, recipe), modules, unknown })
}

/// The largest usual group size that divides `inputs` and is no larger than asked for; one group a column if there is none.
fn dividing(inputs: usize, largest: usize) -> Option<usize> {
    [256, 128, 64, 32, 16, 8].into_iter().find(|g| *g <= largest && inputs.is_multiple_of(*g))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_divide_their_inputs() {
        let found = [(4096, 256), (4096, 64), (768, 512), (96, 128), (100, 128)].map(|(k, g)| dividing(k, g));
        assert_eq!(found, [Some(256), Some(64), Some(256), Some(32), None]);
    }

    /// What programs fuse has the same settings in every preset.
    #[test]
    fn classes_that_are_fused_are_alike() {
        for preset in [Preset::Dense, Preset::Moe, Preset::Quality, Preset::Speed, Preset::Size] {
            let of = |m: &str| table(preset, class_of(&format!("model.layers.0.{m}")).unwrap());
            assert_eq!(of("self_attn.q_proj"), of("self_attn.v_proj"));
            assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
            assert_eq!(of("mlp.experts.0.gate_proj"), of("mlp.experts.1.down_proj"));
            assert_eq!((of("mlp.gate"), of("input_layernorm")), (None, None));
        }
    }
}
