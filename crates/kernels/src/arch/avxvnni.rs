//! The lanes of AVX2 with the dot product of AVX-VNNI (Intel from Alder Lake on, where desktops lack AVX-512).

/// AVX2, FMA, F16C, AVX-VNNI.
pub(crate) type AvxVnni = super::avx2::Ymm<true>;

use super::avx2::{CODED_ROWS, attend_coded};

super::stamp! {
    isa: AvxVnni,
    features: ["avx2,fma,f16c,avxvnni"],
    tiles: {
        1: [1 => (4, false), 2 => (2, false), 3 => (1, true), 4 => (1, true), 5 => (1, true)],
        2: [1 => (2, false), 2 => (1, false), 3 => (1, true), 4 => (1, true), 5 => (1, true), 6 => (1, true)],
        3: [1 => (1, false), 2 => (1, true), 3 => (1, true), 4 => (1, true), 5 => (1, true), 6 => (1, true)],
    },
    bytes: {},
    pairs: [],
    together: {},
    dense: [1 => (2, 2), 2 => (1, 2), 4 => (1, 2)],
    attend: [1 => 4, 2 => 2, 4 => 1, 6 => 1],
    gemm: 6 x 1,
}
