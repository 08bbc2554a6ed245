//! `bf16` weights in 13 bits each, without loss.
//!
//! The high byte of a `bf16` is its sign and the upper seven bits of its exponent, and the weights of a panel have few
//! different exponents: those within a factor of 2^30 of each other, and zero, have sixteen different sevens at most. So a
//! panel keeps the sixteen in a table, and of each weight the low byte, the number of its seven (4 bits) and its sign. A panel
//! with more of them stays as it is.
//!
//! ```text
//! panel = [K / 8] runs of 8 rows: { two halves of 32 columns: { 4 lines low bytes | 2 lines numbers } | 1 line signs }
//! ```
//!
//! A line of low bytes is a pair of rows. Each 16 bytes of it are zipped with those of the high bytes into pairs of weights,
//! the even row in the low half, of columns 0 to 3 (of 4 to 7, 8 to 11, 12 to 15) and of those 16 columns later. The numbers
//! stand in the same order, those of one pair in the low halves of the bytes of a line and of the next one in the high halves;
//! so do the signs, a bit each.

use crate::pack::PANEL;

/// Rows of a run.
pub(crate) const RUN: usize = 8;
/// Bytes of a run.
pub(crate) const RUN_BYTES: usize = 13 * LINE;
/// Bytes of a half of a run without its signs.
pub(crate) const HALF_BYTES: usize = 6 * LINE;
/// Where the numbers of a half begin.
pub(crate) const NUMBERS: usize = 4 * LINE;
/// Where the signs of a run begin, eight bytes for each half and pair of rows.
pub(crate) const SIGNS: usize = 12 * LINE;
/// Bytes of a line, and weights of a pair of rows and half.
const LINE: usize = 64;
/// The upper seven bits of exponents that a panel has.
pub(crate) type Sevens = [u8; 16];

/// Bytes of a panel of `k` rows; none if they are no whole runs.
pub(crate) fn panel_bytes(k: usize) -> Option<usize> {
    if k.is_multiple_of(RUN) { (k / RUN).checked_mul(RUN_BYTES) } else { None }
}

/// The low bytes of four columns of two rows, each row four `bf16`, in the order of a line.
fn low(even: u64, odd: u64) -> u64 {
    const LOW: u64 = 0x00ff_00ff_00ff_00ff;
    even & LOW | (odd & LOW) << 8
}

/// The high bytes likewise.
fn high(even: u64, odd: u64) -> u64 {
    low(even >> 8, odd >> 8)
}

/// Four `bf16` from column `column` of row `row` on.
fn four(panel: &[[u8; 2 * PANEL]], row: usize, column: usize) -> u64 {
    u64::from_le_bytes(*panel[row][2 * column..].first_chunk().expect("columns are taken by four"))
}

fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("lines are whole eights"))
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    *bytes[at..].first_chunk_mut().expect("lines are whole eights") = value.to_le_bytes();
}

/// The column, of 32, of the first of four weights of both rows that stand at bytes `8 * i..8 * i + 8` of a line.
const fn column(i: usize) -> usize {
    i / 2 * 4 + i % 2 * 16
}

/// Packs a panel, `[K][64]` elements of `bf16`, and returns its table; none if it has too many different exponents.
pub(crate) fn encode(panel: &[u8], out: &mut [u8]) -> Option<Sevens> {
    let rows = panel.as_chunks::<{ 2 * PANEL }>().0;
    let mut seen = [false; 128];
    panel.as_chunks::<2>().0.iter().for_each(|b| seen[usize::from(b[1] & 0x7f)] = true);
    let mut sevens = [0; 16];
    let mut numbers = [0; 128];
    for (i, seven) in (0..128u8).filter(|&s| seen[usize::from(s)]).enumerate() {
        *sevens.get_mut(i)? = seven;
        numbers[usize::from(seven)] = i as u8;
    }
    for (rows, run) in rows.chunks_exact(RUN).zip(out.chunks_exact_mut(RUN_BYTES)) {
        let (halves, signs) = run.split_at_mut(SIGNS);
        for (h, half) in halves.chunks_exact_mut(HALF_BYTES).enumerate() {
            let (lows, lines) = half.split_at_mut(NUMBERS);
            for pair in 0..RUN / 2 {
                for i in 0..LINE / 8 {
                    let [even, odd] = [0, 1].map(|r| four(rows, 2 * pair + r, 32 * h + column(i)));
                    let high = high(even, odd);
                    put(lows, pair * LINE + 8 * i, low(even, odd));
                    let place = pair / 2 * LINE + 8 * i;
                    // those of the first pair of a line, then both
                    let new = (0..8).fold(0, |all, j| all | u64::from(numbers[(high >> (8 * j)) as usize & 0x7f]) << (8 * j));
                    let both = if pair % 2 == 0 { new } else { get(lines, place) | new << 4 };
                    put(lines, place, both);
                    // the top bits of eight bytes side by side
                    let sign = (high >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
                    signs[(h * RUN / 2 + pair) * 8 + i] = sign as u8;
                }
            }
        }
    }
    Some(sevens)
}

/// Element `[k][n]` of a packed panel: its bits.
pub(crate) fn element(panel: &[u8], sevens: &Sevens, k: usize, n: usize) -> u16 {
    let run = &panel[k / RUN * RUN_BYTES..][..RUN_BYTES];
    let (h, pair, n) = (n / 32, k % RUN / 2, n % 32);
    // the inverse of `column`
    let i = n % 16 / 4 * 2 + n / 16;
    let at = 8 * i + 2 * (n % 4) + k % 2;
    let half = &run[h * HALF_BYTES..];
    let number = half[NUMBERS + pair / 2 * LINE + at] >> (4 * (pair % 2)) & 15;
    let sign = run[SIGNS + (h * RUN / 2 + pair) * 8 + at / 8] >> (at % 8) & 1;
    u16::from_le_bytes([half[pair * LINE + at], sevens[usize::from(number)] | sign << 7])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn panel(k: usize, sevens: &[u8], seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        (0..k * PANEL).flat_map(|_| [next() as u8, sevens[next() % sevens.len()] | (next() as u8 & 0x80)]).collect()
    }

    proptest! {
        #[test]
        fn every_element_comes_back(runs in 1usize..6, sevens in prop::collection::vec(0u8..128, 1..=16), seed: u64) {
            let k = runs * RUN;
            let raw = panel(k, &sevens, seed);
            let mut packed = vec![0xaa; panel_bytes(k).unwrap()];
            let table = encode(&raw, &mut packed).unwrap();
            for i in 0..k * PANEL {
                let expected = u16::from_le_bytes([raw[2 * i], raw[2 * i + 1]]);
                prop_assert_eq!(element(&packed, &table, i / PANEL, i % PANEL), expected, "element {}", i);
            }
        }
    }

    #[test]
    fn too_many_exponents_are_refused() {
        let all: Vec<u8> = (3..20).collect();
        let mut raw = panel(RUN, &all[..16], 7);
        let mut packed = vec![0; RUN_BYTES];
        assert!(encode(&raw, &mut packed).is_some());
        raw[1] = all[16];
        assert!(encode(&raw, &mut packed).is_none());
        assert_eq!((panel_bytes(16), panel_bytes(12)), (Some(2 * RUN_BYTES), None));
    }
}
