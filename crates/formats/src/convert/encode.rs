//! One module in the target's tensors.

use super::{Loss, Target, awq, compressed, marlin};
use crate::{FormatError, GroupSize, ModuleReport};
use billfish_tensor::{Codes, DType, Packing, QuantMatrix};
use half::{bf16, f16};

/// Takes the pieces of a tensor in order.
pub(super) type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), FormatError>;
/// Takes a column's number and its weights.
type Column<'a> = &'a mut dyn FnMut(usize, &[f64]) -> Result<(), FormatError>;

/// Columns that are dequantized at once.
const STRIP: usize = 64;

fn packing(target: Target) -> Packing {
    if target == Target::GptqP { Packing::Planar } else { Packing::Continuous }
}

/// Zero points that the target can store.
fn legal_zeros(target: Target, bits: u32) -> std::ops::RangeInclusive<u16> {
    match target {
        Target::Gptq => 1..=1 << bits,
        Target::Marlin => marlin::ZERO..=marlin::ZERO,
        _ => 0..=(1 << bits) - 1,
    }
}

/// What the sizes of a module's tensors follow from.
#[derive(Clone, Debug)]
pub struct ModuleShape {
    /// Its name.
    pub module: String,
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Width of a code.
    pub bits: u32,
    /// Rows of a group.
    pub group_size: GroupSize,
    /// Number of groups.
    pub groups: usize,
    /// Whether rows of a group stand apart.
    pub act_order: bool,
    /// Whether it is called symmetric and every zero point is the midpoint.
    pub sym: bool,
    /// Type of the scales.
    pub scales: DType,
}

impl From<&ModuleReport> for ModuleShape {
    fn from(r: &ModuleReport) -> Self {
        Self {
            module: r.module.clone(),
            in_features: r.in_features,
            out_features: r.out_features,
            bits: r.bits,
            group_size: r.group_size,
            groups: r.groups,
            act_order: r.act_order,
            sym: r.sym && r.midpoint,
            scales: r.scales,
        }
    }
}

/// Why a GPTQ format has no place for such a module, whatever is allowed.
fn gptq_refusal(s: &ModuleShape, target: Target) -> Option<String> {
    let module = &s.module;
    match target {
        Target::Gptq | Target::GptqV2 if matches!(s.bits, 5..=7) => {
            Some(format!("`{module}` has {} bits, which only gptq_p stores", s.bits))
        }
        Target::GptqP if !s.in_features.is_multiple_of(32) || !s.out_features.is_multiple_of(32) => {
            Some(format!("`{module}` is [{}, {}], and planar sizes are multiples of 32", s.in_features, s.out_features))
        }
        _ => None,
    }
}

/// Why the target has no place for such a module, whatever is allowed.
pub(super) fn refusal(s: &ModuleShape, target: Target) -> Option<String> {
    match target {
        Target::Gptq | Target::GptqV2 | Target::GptqP => gptq_refusal(s, target),
        Target::Awq => awq::refusal(s),
        Target::CompressedTensors => compressed::refusal(s),
        Target::Marlin => marlin::refusal(s),
        Target::Dense(_) => None,
    }
}

/// Whether the target holds such a module whatever its numbers are.
pub(super) fn is_exact(r: &ModuleReport, target: Target) -> bool {
    match target {
        // a difference of codes has at most 9 bits and a sign, such a scale 11, and a product of the two fits
        Target::Dense(dtype) => dtype == DType::F32 && r.scales == DType::F16,
        Target::Marlin => r.midpoint && r.scales == DType::F16,
        _ => r.midpoint,
    }
}

/// What the target cannot hold of a module.
pub(super) fn losses(module: &str, m: &QuantMatrix, target: Target) -> Vec<Loss> {
    let mut out = vec![];
    let mut add = |what: String, count: usize, first: Option<(usize, usize)>| {
        out.extend(first.map(|first| Loss { module: module.into(), what, count, first }));
    };
    if let Target::Dense(dtype) = target {
        let (mut count, mut first) = (0, None);
        columns(m, &mut |col, values| {
            for (k, &v) in values.iter().enumerate() {
                if round(dtype, v) != v {
                    count += 1;
                    first = first.or(Some((k, col)));
                }
            }
            Ok(())
        })
        .ok();
        add(format!("weights that {dtype} rounds"), count, first);
    } else {
        let (n, legal) = (m.out_features(), legal_zeros(target, m.bits()));
        let mut count = |what: String, bad: &dyn Fn(usize) -> bool| {
            let mut at = (0..m.group_count() * n).filter(|&i| bad(i));
            let first = at.next().map(|i| (i / n, i % n));
            add(what, usize::from(first.is_some()) + at.count(), first);
        };
        let zero = |i: usize| m.zero(i / n, i % n);
        if target == Target::Marlin {
            count(format!("zero points other than {}", marlin::ZERO), &|i| !legal.contains(&zero(i)));
            count("scales that F16 rounds".into(), &|i| marlin::scale(m, i).to_f32() != m.scales().get(i));
        } else {
            for bad in [0, 1 << m.bits()].into_iter().filter(|bad| !legal.contains(bad)) {
                count(format!("zero points of {bad}"), &|i| zero(i) == bad);
            }
        }
    }
    out
}

/// Parts, types and shapes of a module's tensors.
pub(super) fn specs(s: &ModuleShape, target: Target) -> Vec<(&'static str, DType, Vec<usize>)> {
    let (k, n, packing) = (s.in_features, s.out_features, packing(target));
    match target {
        Target::Dense(dtype) => vec![("weight", dtype, vec![n, k])],
        Target::Awq => awq::specs(s),
        Target::CompressedTensors => compressed::specs(s),
        Target::Marlin => marlin::specs(s),
        Target::Gptq | Target::GptqV2 | Target::GptqP => vec![
            ("g_idx", DType::I32, vec![k]),
            ("qweight", DType::I32, vec![packing.words(s.bits, k), n]),
            ("qzeros", DType::I32, vec![s.groups, packing.words(s.bits, n)]),
            ("scales", s.scales, vec![s.groups, n]),
        ],
    }
}

/// Writes one part.
pub(super) fn write(
    m: &QuantMatrix,
    target: Target,
    part: &str,
    put: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    match (part, target) {
        ("weight", Target::Dense(dtype)) => columns(m, &mut |_, values| {
            let bytes: Vec<u8> = match dtype {
                DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
                DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            };
            put(&bytes)
        }),
        (part, Target::CompressedTensors) => compressed::write(m, part, put),
        (part, Target::Marlin) => marlin::write(m, part, put),
        ("qweight", Target::Awq) => awq::qweight(m, put),
        ("qzeros", Target::Awq) => awq::qzeros(m, put),
        ("g_idx", _) => {
            let index = |k: usize| (m.group_of(k) as u32).to_le_bytes();
            put(&(0..m.in_features()).flat_map(index).collect::<Vec<u8>>())
        }
        ("qweight", _) => qweight(m, packing(target), put),
        ("qzeros", _) => qzeros(m, target, put),
        _ => {
            let mut bytes = vec![];
            (0..m.scales().len()).for_each(|i| m.scales().put_le(i, &mut bytes));
            put(&bytes)
        }
    }
}

/// The codes down the rows: the file's own words where the packing is the same, packed again a run of 32 rows at a time
/// elsewhere.
fn qweight(m: &QuantMatrix, to: Packing, put: Put) -> Result<(), FormatError> {
    let (bits, n) = (m.bits(), m.out_features());
    if let Codes::Words { words, packing } = m.codes()
        && (*packing == to || matches!(bits, 2 | 4 | 8) && m.in_features().is_multiple_of(32))
    {
        for piece in words.chunks(1 << 18) {
            put(&piece.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        return Ok(());
    }
    for k0 in (0..m.in_features()).step_by(32) {
        let rows = (m.in_features() - k0).min(32);
        let mut codes = vec![0; rows * n];
        m.codes().unpack_rows(bits, n, k0, 0..n, &mut codes);
        let Codes::Words { words, .. } = Codes::pack(&codes, n, bits, to) else { continue };
        put(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// Zero points along the columns, as the target stores them; one that it cannot store becomes the nearest.
fn qzeros(m: &QuantMatrix, target: Target, put: Put) -> Result<(), FormatError> {
    let (bits, n) = (m.bits(), m.out_features());
    let legal = legal_zeros(target, bits);
    let minus = u16::from(target == Target::Gptq);
    let packing = packing(target);
    for g in 0..m.group_count() {
        let mut words = vec![0u32; packing.words(bits, n)];
        for (run, place) in words.chunks_mut(bits as usize).enumerate() {
            let columns = run * 32..n.min(run * 32 + 32);
            let codes: Vec<u8> = columns.map(|col| (m.zero(g, col).clamp(*legal.start(), *legal.end()) - minus) as u8).collect();
            packing.pack_run(bits, &codes, |j, w| place[j] = w);
        }
        put(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// Gives each column of the matrix as exact weights.
fn columns(m: &QuantMatrix, column: Column) -> Result<(), FormatError> {
    let (k, n) = (m.in_features(), m.out_features());
    let (mut codes, mut values) = (vec![], vec![0.0; k * STRIP.min(n)]);
    for c0 in (0..n).step_by(STRIP) {
        let cols = c0..n.min(c0 + STRIP);
        let values = &mut values[..k * cols.len()];
        m.dequantize_columns(cols, &mut codes, values);
        for (i, values) in values.chunks_exact(k).enumerate() {
            column(c0 + i, values)?;
        }
    }
    Ok(())
}

fn round(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(v).to_f64(),
        DType::BF16 => bf16::from_f64(v).to_f64(),
        _ => f64::from(v as f32),
    }
}
