//! Words of other layouts turned into words that run down the rows, a strip at a time: the whole matrix exists once, packed.
//!
//! Each function takes some rows of a tensor as little-endian bytes, the index of the first, and the words of the whole
//! result, row-major `[words, N]`.

use billfish_tensor::Packing;

/// The nibble of an AWQ word that holds column `c` of its eight.
pub(crate) const AWQ_NIBBLE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// Elements of `size` bytes, `[rows, n]`, whose columns are streams of bytes.
pub(crate) fn joined(bytes: &[u8], row: usize, n: usize, size: usize, out: &mut [u32]) {
    for (i, element) in bytes.chunks_exact(size).enumerate() {
        let (at, col) = ((row + i / n) * size, i % n);
        for (j, &byte) in element.iter().enumerate() {
            // The last element of a column may reach beyond its last code.
            if let Some(word) = out.get_mut((at + j) / 4 * n + col) {
                *word |= u32::from(byte) << (8 * ((at + j) % 4));
            }
        }
    }
}

/// `rows` equal rows of bytes as rows of `words` words: filled up with zeros, or cut.
pub(crate) fn widened(bytes: &[u8], rows: usize, words: usize) -> Vec<u32> {
    let mut out = vec![0; rows * words];
    let length = (bytes.len() / rows.max(1)).max(1);
    for (row, bytes) in out.chunks_exact_mut(words).zip(bytes.chunks_exact(length)) {
        for (i, &byte) in bytes.iter().enumerate().take(4 * words) {
            row[i / 4] |= u32::from(byte) << (8 * (i % 4));
        }
    }
    out
}

/// AWQ words `[rows, n/8]`; `row` is a multiple of 8.
pub(crate) fn deinterleaved(bytes: &[u8], row: usize, n: usize, out: &mut [u32]) {
    for (band, bytes) in bytes.chunks(4 * n).enumerate() {
        let out = &mut out[(row / 8 + band) * n..][..n];
        let rows = bytes.len() / (n / 2);
        for (col, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut m = [0; 8];
            (0..rows).for_each(|r| m[r] = word(bytes, r * (n / 8) + col));
            transpose(&mut m);
            *out = AWQ_NIBBLE.map(|nibble| m[nibble as usize]);
        }
    }
}

/// Transposes eight words of eight nibbles: swaps blocks of four, two and one across the diagonal.
fn transpose(m: &mut [u32; 8]) {
    for (distance, mask) in [(4, 0x0000_ffff_u32), (2, 0x00ff_00ff), (1, 0x0f0f_0f0f)] {
        for i in (0..8).filter(|i| i & distance == 0) {
            let shift = 4 * distance as u32;
            let swap = (m[i] >> shift ^ m[i + distance]) & mask;
            m[i + distance] ^= swap;
            m[i] ^= swap << shift;
        }
    }
}

/// 16-bit words `[n/4, k]`, each of four codes of one output. In each output, eight rows out of a run of 32 come together
/// as the tensor cores of a kernel read them; then 64 rows of four outputs stand one output after the other.
pub(crate) fn quads(bytes: &[u8], first: usize, k: usize, n: usize, out: &mut [u32]) {
    for (i, element) in bytes.as_chunks::<2>().0.iter().enumerate() {
        let (band, column, w) = (i / k, i % k / 64 * 64, i % k % 64);
        let col = 4 * (first + band) + w / 16;
        let codes = u32::from(u16::from_le_bytes(*element));
        for nibble in 0..4 {
            let at = 4 * (w % 16) + nibble;
            let row = column + at / 32 * 32 + 8 * (at % 4) + 2 * (at % 32 / 8) + at % 8 / 4;
            out[row / 8 * n + col] |= (codes >> (4 * nibble) & 15) << (4 * (row % 8));
        }
    }
}

/// One bit stream a column, `[rows, words]`: only turned.
pub(crate) fn turned(bytes: &[u8], first: usize, words: usize, n: usize, out: &mut [u32]) {
    let cols = bytes.len() / (4 * words);
    for w in 0..words {
        let out = &mut out[w * n + first..][..cols];
        for (col, out) in out.iter_mut().enumerate() {
            *out = word(bytes, col * words + w);
        }
    }
}

/// The same with `32 / bits` whole codes in each word: turned and packed closely. `k` codes a column.
pub(crate) fn closed_up(bytes: &[u8], first: usize, k: usize, bits: u32, n: usize, out: &mut [u32]) {
    let per = (32 / bits) as usize;
    let words = k.div_ceil(per);
    let code = |col: usize, i: usize| (word(bytes, col * words + i / per) >> (bits * (i % per) as u32)) as u8;
    packed(bytes.len() / (4 * words), first, k, bits, n, out, code);
}

/// Signed bytes, `[rows, k]`: turned, made unsigned and packed. `None` if each code fits, else the place of one that does not.
pub(crate) fn unsigned(bytes: &[u8], first: usize, k: usize, bits: u32, n: usize, out: &mut [u32]) -> Option<usize> {
    let middle = 1i16 << (bits - 1);
    if bits < 8
        && let Some(i) = bytes.iter().position(|&b| !(-middle..middle).contains(&i16::from(b as i8)))
    {
        return Some(i);
    }
    packed(bytes.len() / k, first, k, bits, n, out, |col, i| (bytes[col * k + i] as i8).wrapping_add(middle as u8 as i8) as u8);
    None
}

/// Packs `cols` columns of `k` codes.
fn packed(cols: usize, first: usize, k: usize, bits: u32, n: usize, out: &mut [u32], code: impl Fn(usize, usize) -> u8) {
    let mut run = [0; 32];
    for k0 in (0..k).step_by(32) {
        let length = (k - k0).min(32);
        for col in 0..cols {
            (0..length).for_each(|i| run[i] = code(col, k0 + i));
            let base = k0 / 32 * bits as usize;
            Packing::Continuous.pack_run(bits, &run[..length], |j, w| out[(base + j) * n + first + col] = w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use billfish_tensor::Codes;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn codes(words: Vec<u32>, bits: u32, k: usize, n: usize) -> Vec<u8> {
        let codes = Codes::Words { words, packing: Packing::Continuous };
        codes.check(bits, k, n).unwrap();
        let mut out = vec![0; k * n];
        for (i, rows) in out.chunks_mut(32 * n).enumerate() {
            codes.unpack_rows(bits, n, 32 * i, 0..n, rows);
        }
        out
    }

    /// Semantics reference 3.4 and 3.6: q[k, n] = (3k + 5n) mod 16 in both layouts.
    #[test]
    fn awq_words_become_gptq_words() {
        let mut out = vec![0; 8];
        deinterleaved(&bytes(&[0x7531_6420; 8]), 0, 8, &mut out);
        assert_eq!(codes(out.clone(), 4, 8, 8), [0, 1, 2, 3, 4, 5, 6, 7].repeat(8));
        let awq = [0x39f5_e4a0, 0x6c28_17d3, 0x9f5b_4a06, 0xc28e_7d39, 0xf5b1_a06c, 0x28e4_d39f, 0x5b17_06c2, 0x8e4a_39f5];
        deinterleaved(&bytes(&awq), 0, 8, &mut out);
        let gptq = [0x52fc_9630, 0xa741_eb85, 0xfc96_30da, 0x41eb_852f, 0x9630_da74, 0xeb85_2fc9, 0x30da_741e, 0x852f_c963];
        assert_eq!(out, gptq);
        let mut short = vec![0; 8];
        deinterleaved(&bytes(&awq[..3]), 0, 8, &mut short);
        assert!(short.iter().zip(gptq).all(|(a, b)| *a == b & 0xfff));
    }

    /// Every width of word holds the same codes in the same order.
    #[test]
    fn words_of_every_width() {
        // Two columns of five 32-bit words; as bytes of each column.
        let words: Vec<u32> = (0..10u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        for size in [1, 2, 4, 8] {
            let rows = 20usize.div_ceil(size);
            let mut elements = vec![0; rows * 2 * size];
            for at in 0..20 {
                for col in 0..2 {
                    elements[(at / size * 2 + col) * size + at % size] = words[at / 4 * 2 + col].to_le_bytes()[at % 4];
                }
            }
            let mut out = vec![0; 10];
            let (top, rest) = elements.split_at(2 * size);
            joined(top, 0, 2, size, &mut out);
            joined(rest, 1, 2, size, &mut out);
            assert_eq!(out, words, "{size}");
        }
        assert_eq!(widened(&[1, 2, 3, 4, 5, 6], 2, 1), [0x0003_0201, 0x0006_0504]);
        assert_eq!(widened(&[1, 2, 3, 4, 5, 6, 7, 8], 1, 1), [0x0403_0201]);
    }

    #[test]
    fn streams_are_turned_and_padded_words_closed_up() {
        // 3 bit codes i mod 8: formats reference 2.4; ten codes in a padded word.
        let want: Vec<u8> = (0..32).map(|i| i % 8).collect();
        let mut out = vec![0; 3];
        turned(&bytes(&[0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]), 0, 3, 1, &mut out);
        assert_eq!(codes(out.clone(), 3, 32, 1), want);
        let padded: Vec<u32> = want.chunks(10).map(|c| c.iter().rev().fold(0, |w, &q| w << 3 | u32::from(q))).collect();
        assert_eq!(padded.len(), 4);
        out.fill(0);
        closed_up(&bytes(&padded), 0, 32, 3, 1, &mut out);
        assert_eq!(codes(out, 3, 32, 1), want);
        let mut out = vec![0; 6];
        turned(&bytes(&[1, 2, 3]), 1, 3, 2, &mut out);
        assert_eq!(out, [0, 1, 0, 2, 0, 3]);
    }

    #[test]
    fn signed_bytes() {
        let signed: Vec<u8> = (-3i8..4).map(|v| v as u8).collect();
        let mut out = vec![0; 2];
        assert_eq!(unsigned(&signed, 0, 7, 8, 1, &mut out), None);
        assert_eq!(codes(out, 8, 7, 1), [125, 126, 127, 128, 129, 130, 131]);
        let mut out = vec![0; 1];
        assert_eq!(unsigned(&signed, 0, 7, 3, 1, &mut out), None);
        assert_eq!(codes(out.clone(), 3, 7, 1), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(unsigned(&signed, 0, 7, 2, 1, &mut out), Some(0));
    }
}
