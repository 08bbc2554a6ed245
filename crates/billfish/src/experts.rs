//! The experts of a folder, a layer at a time: how many there are, how they are stored, and which of them differ.

use billfish_formats::{Checkpoint, GroupSize, ModuleReport};
use std::collections::BTreeMap;

/// The experts of one layer as a folder has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertLayer {
    /// Their common name, such as `model.layers.3.mlp.experts`.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// The matrices of one expert with their sizes `[K, N]`.
    pub sizes: String,
    /// How most of them are stored.
    pub scheme: String,
    /// How others are stored, and which.
    pub differing: Vec<(String, Vec<usize>)>,
}

/// The name of a layer's experts, the expert's number and the name of its matrix, if a module is one.
pub(crate) fn expert_of(module: &str) -> Option<(&str, usize, &str)> {
    let (block, rest) = module.split_once(".experts.")?;
    let (number, part) = rest.split_once('.')?;
    Some((&module[..block.len() + ".experts".len()], number.parse().ok()?, part))
}

/// How a quantized module is stored, in words that are the same for all modules like it.
fn words(report: &ModuleReport) -> String {
    if let Some(what) = &report.refusal {
        return what.clone();
    }
    let group = match report.group_size {
        GroupSize::Channel => "one group a column".to_string(),
        GroupSize::Rows(g) => format!("group {g}"),
    };
    let sym = if report.midpoint { "sym" } else { "asym" };
    let order = if report.act_order { "act-order" } else { "plain" };
    format!("{}-bit {}, {group}, {sym}, {order}", report.bits, report.format.name())
}

/// Sizes and schemes of one expert's matrices, by their names.
type Matrices<'a> = [BTreeMap<&'a str, String>; 2];

/// Equal words of several matrices once, others with the names.
fn joined(parts: &BTreeMap<&str, String>) -> String {
    let mut values: Vec<&String> = parts.values().collect();
    values.dedup();
    match values.as_slice() {
        [one] => (*one).clone(),
        _ => parts.iter().map(|(part, words)| format!("{part} {words}")).collect::<Vec<_>>().join("; "),
    }
}

/// The experts of every layer that has some, in the order of layers.
pub fn expert_layers(checkpoint: &Checkpoint, reports: &[ModuleReport]) -> Vec<ExpertLayer> {
    let by_name: BTreeMap<&str, &ModuleReport> = reports.iter().map(|r| (r.module.as_str(), r)).collect();
    let modules = checkpoint.linear_modules();
    let mut layers: BTreeMap<&str, BTreeMap<usize, Matrices<'_>>> = BTreeMap::new();
    for (module, (block, number, part)) in modules.iter().filter_map(|m| Some((m, expert_of(m)?))) {
        let dense = || {
            let info = checkpoint.info(&format!("{module}.weight"))?;
            let &[n, k] = info.shape.as_slice() else { return None };
            Some((format!("{} dense", info.dtype), [k, n]))
        };
        let quantized = by_name.get(module.as_str()).map(|r| (words(r), [r.in_features, r.out_features]));
        let Some((scheme, [k, n])) = quantized.or_else(dense) else { continue };
        let [sizes, schemes] = layers.entry(block).or_default().entry(number).or_default();
        sizes.insert(part, format!("[{k}, {n}]"));
        schemes.insert(part, scheme);
    }
    let mut out: Vec<ExpertLayer> = layers.into_iter().map(|(block, experts)| layer(block, &experts)).collect();
    out.extend(checkpoint.tensor_names().filter_map(|name| stacked(checkpoint, name)));
    let number = |l: &ExpertLayer| l.name.split('.').find_map(|part| part.parse::<usize>().ok());
    out.sort_by_key(|l| (number(l), l.name.clone()));
    out
}

fn layer(block: &str, experts: &BTreeMap<usize, Matrices<'_>>) -> ExpertLayer {
    let size = |sizes: &BTreeMap<&str, String>| sizes.iter().map(|(part, s)| format!("{part} {s}")).collect::<Vec<_>>().join(", ");
    let mut kinds: Vec<(String, String, Vec<usize>)> = vec![];
    for (&number, [sizes, schemes]) in experts {
        let (sizes, scheme) = (size(sizes), joined(schemes));
        match kinds.iter_mut().find(|(s, k, _)| *s == sizes && *k == scheme) {
            Some((_, _, numbers)) => numbers.push(number),
            None => kinds.push((sizes, scheme, vec![number])),
        }
    }
    // stable: of equally many, those that come first
    kinds.sort_by_key(|(_, _, numbers)| std::cmp::Reverse(numbers.len()));
    let mut kinds = kinds.into_iter();
    let (sizes, scheme, _) = kinds.next().unwrap_or_default();
    let describe =
        |(s, scheme, numbers): (String, String, Vec<usize>)| (if s == sizes { scheme } else { format!("{s}: {scheme}") }, numbers);
    let differing = kinds.map(describe).collect();
    ExpertLayer { name: block.into(), count: experts.len(), sizes, scheme, differing }
}

/// All experts of a layer in two tensors.
fn stacked(checkpoint: &Checkpoint, tensor: &str) -> Option<ExpertLayer> {
    let name = tensor.strip_suffix(".gate_up_proj").filter(|name| name.ends_with(".experts"))?;
    let both = checkpoint.info(tensor)?;
    let &[count, n, k] = both.shape.as_slice() else { return None };
    let down = checkpoint.info(&format!("{name}.down_proj")).map(|i| i.shape.clone());
    let down = match down.as_deref() {
        Some(&[_, n, k]) => format!(", down_proj [{k}, {n}]"),
        _ => String::new(),
    };
    let sizes = format!("gate_up_proj [{k}, {n}]{down}");
    Some(ExpertLayer { name: name.into(), count, sizes, scheme: format!("{} dense, in one tensor", both.dtype), differing: vec![] })
}

impl ExpertLayer {
    /// Experts that differ, such as `3 and 7: 8-bit gptq, group 32, sym, plain`.
    pub fn differences(&self) -> Vec<String> {
        let list = |numbers: &[usize]| {
            let few: Vec<String> = numbers.iter().take(8).map(usize::to_string).collect();
            let more = numbers.len() - few.len();
            few.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
        };
        self.differing.iter().map(|(scheme, numbers)| format!("{}: {scheme}", list(numbers))).collect()
    }
}
