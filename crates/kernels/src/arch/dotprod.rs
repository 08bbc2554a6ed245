//! The lanes of NEON with the dot products of Armv8.2 (Cortex-A75 and A55, Neoverse N1, Apple A11 and later).

/// NEON, DotProd.
pub(crate) type DotProd = super::neon::Quads<true>;

use super::neon::{CODED_ROWS, attend_coded};

super::stamp! {
    isa: DotProd,
    features: ["neon,dotprod"],
    tiles: {
        1: [1 => (4, false), 2 => (2, false), 4 => (1, true)],
        2: [1 => (2, false), 2 => (1, false), 4 => (1, true)],
        3: [1 => (1, false), 2 => (1, false), 4 => (1, true)],
    },
    bytes: {},
    pairs: [],
    together: {},
    dense: [1 => (2, 2), 2 => (1, 2), 3 => (1, 2)],
    attend: [1 => 4, 2 => 2, 4 => 1, 6 => 1],
    gemm: 6 x 1,
}
