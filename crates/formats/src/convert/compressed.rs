//! Writing compressed-tensors `pack-quantized`: each output's codes in words of their own, scales `[N, groups]`.

use super::encode::{ModuleShape, Put};
use crate::FormatError;
use billfish_tensor::{DType, Packing, QuantMatrix};

/// Outputs that are turned at once.
const STRIP: usize = 64;

/// Why the layout cannot hold a module at all.
pub(super) fn refusal(r: &ModuleShape) -> Option<String> {
    let rows = r.group_size.rows(r.in_features);
    let short = !r.in_features.is_multiple_of(rows);
    short.then(|| format!("`{}` has {} rows in groups of {rows}, and compressed-tensors has no short group", r.module, r.in_features))
}

pub(super) fn specs(r: &ModuleShape) -> Vec<(&'static str, DType, Vec<usize>)> {
    let (k, n, packing) = (r.in_features, r.out_features, Packing::Continuous);
    let mut specs = vec![
        ("weight_packed", DType::I32, vec![n, packing.words(r.bits, k)]),
        ("weight_scale", r.scales, vec![n, r.groups]),
        ("weight_shape", DType::I64, vec![2]),
    ];
    if r.act_order {
        specs.push(("weight_g_idx", DType::I32, vec![k]));
    }
    // as the config will say: one that calls a module asymmetric must have the tensor, whatever is in it
    if !r.sym {
        specs.push(("weight_zero_point", DType::I32, vec![packing.words(r.bits, n), r.groups]));
    }
    specs
}

pub(super) fn write(m: &QuantMatrix, part: &str, put: Put) -> Result<(), FormatError> {
    match part {
        "weight_packed" => codes(m, put),
        "weight_scale" => scales(m, put),
        "weight_shape" => put(&[m.out_features() as i64, m.in_features() as i64].map(i64::to_le_bytes).concat()),
        "weight_g_idx" => put(&(0..m.in_features()).flat_map(|k| (m.group_of(k) as u32).to_le_bytes()).collect::<Vec<u8>>()),
        _ => zeros(m, put),
    }
}

/// Packs codes of one stream, a run of 32 at a time.
fn stream(bits: u32, codes: impl ExactSizeIterator<Item = u8>, out: &mut Vec<u32>) {
    let codes: Vec<u8> = codes.collect();
    for run in codes.chunks(32) {
        Packing::Continuous.pack_run(bits, run, |_, word| out.push(word));
    }
}

fn codes(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    let (k, n, bits) = (m.in_features(), m.out_features(), m.bits());
    let mut codes = vec![0; k * STRIP.min(n)];
    for c0 in (0..n).step_by(STRIP) {
        let cols = c0..n.min(c0 + STRIP);
        let width = cols.len();
        for k0 in (0..k).step_by(32) {
            let rows = (k - k0).min(32);
            m.codes().unpack_rows(bits, n, k0, cols.clone(), &mut codes[k0 * width..(k0 + rows) * width]);
        }
        for i in 0..width {
            let mut words = vec![];
            stream(bits, (0..k).map(|row| codes[row * width + i]), &mut words);
            put(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
        }
    }
    Ok(())
}

/// Scales turned to `[N, groups]`, in their stored type.
fn scales(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    let (n, groups) = (m.out_features(), m.group_count());
    for col in 0..n {
        let mut bytes = vec![];
        (0..groups).for_each(|g| m.scales().put_le(g * n + col, &mut bytes));
        put(&bytes)?;
    }
    Ok(())
}

/// Zero points packed along the outputs, `[words, groups]`.
fn zeros(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    let (n, groups, bits) = (m.out_features(), m.group_count(), m.bits());
    let largest = (1u16 << bits) - 1;
    let columns: Vec<Vec<u32>> = (0..groups)
        .map(|g| {
            let mut words = vec![];
            stream(bits, (0..n).map(|col| m.zero(g, col).min(largest) as u8), &mut words);
            words
        })
        .collect();
    let rows = columns.first().map_or(0, Vec::len);
    put(&(0..rows).flat_map(|w| columns.iter().flat_map(move |c| c[w].to_le_bytes())).collect::<Vec<u8>>())
}
