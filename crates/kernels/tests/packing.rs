//! Packing on several threads, and packed weights made again from their bytes in a file.

use billfish_kernels::{DenseLayout, Description, Mapping, PackedDense, PackedMatrix, Pool, Stored, Table};
use billfish_tensor::{Codes, DType, DenseTensor, Groups, Packing, QuantMatrix, RowOrder, ScaleValues, Zeros};
use std::io::Write;

/// A matrix whose numbers all differ somehow; `act` gives its rows to groups in no order.
fn matrix(k: usize, n: usize, bits: u32, size: usize, act: bool, asym: bool) -> QuantMatrix {
    let codes: Vec<u8> = (0..k * n).map(|i| ((i * 7 + i / n * 3) % (1 << bits)) as u8).collect();
    let count = k.div_ceil(size);
    let scales = ScaleValues::F32((0..count * n).map(|i| 0.01 + i as f32 * 1e-4).collect());
    let zeros = if asym { Zeros::PerGroup((0..count * n).map(|i| (i * 5 % ((1 << bits) + 1)) as u16).collect()) } else { Zeros::Midpoint };
    let groups = match act {
        true => Groups::Index { g_idx: (0..k).map(|r| (r * 11 % count) as u32).collect(), count },
        false => Groups::Contiguous { size },
    };
    let bias = Some((0..n).map(|i| i as f32).collect());
    QuantMatrix::new(k, n, bits, Codes::pack(&codes, n, bits, Packing::Continuous), scales, zeros, groups, bias).unwrap()
}

/// The bytes, in a mapped file.
fn mapped(bytes: &[u8]) -> Stored {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Mapping::new(&file).unwrap().part(0..bytes.len()).unwrap()
}

#[test]
fn any_number_of_threads_packs_the_same_bytes() {
    let pools = [1, 2, 5].map(|threads| Pool::new(threads).unwrap());
    for (k, n, bits, size) in [(256, 1000, 4, 128), (130, 65, 4, 32), (96, 640, 3, 32), (64, 700, 2, 64), (33, 129, 8, 33), (40, 64, 5, 8)]
    {
        for (act, asym) in [(false, false), (true, true)] {
            let m = matrix(k, n, bits, size, act, asym);
            let alone = PackedMatrix::new(&m).unwrap();
            for pool in &pools {
                let packed = PackedMatrix::packed_by(&m, pool).unwrap();
                assert!(packed.data() == alone.data(), "{k} {n} {bits} {act} on {} threads", pool.threads());
                assert_eq!(packed.description(), alone.description());
            }
        }
    }
}

#[test]
fn rows_that_are_read_are_the_rows_of_the_whole() {
    let pool = Pool::new(3).unwrap();
    for (k, n) in [(1, 1), (8, 8), (37, 131), (64, 200)] {
        for dtype in [DType::BF16, DType::F32] {
            let row = k * dtype.size();
            let bytes: Vec<u8> = (0..n * row).map(|i| (i * 31 % 113) as u8).collect();
            let whole = PackedDense::new(&DenseTensor::new(dtype, vec![n, k], bytes.clone()).unwrap(), None).unwrap();
            // column j of panel p is row 64 p + j; what is beyond the last row is 0
            for (at, element) in whole.data().chunks_exact(dtype.size()).enumerate() {
                let (panel, place) = (at / (k * 64), at % (k * 64));
                let (column, kk) = (panel * 64 + place % 64, place / 64);
                let zero = vec![0; dtype.size()];
                let expected = if column < n { &bytes[column * row + kk * dtype.size()..][..dtype.size()] } else { &zero };
                assert_eq!(element, expected, "[{kk}, {column}] of [{k}, {n}]");
            }
            let read = |first: usize, out: &mut [u8]| -> Result<(), billfish_kernels::KernelError> {
                out.copy_from_slice(&bytes[first * row..][..out.len()]);
                Ok(())
            };
            let packed = PackedDense::from_rows(dtype, (k, n), None, DenseLayout::Stored, Some(&pool), &read).unwrap();
            assert!(packed.data() == whole.data());
            assert!(Table::from_rows(dtype, [n, k], &pool, &read).unwrap().data() == bytes);
            let restored = PackedDense::restore(dtype, (k, n), None, mapped(whole.data())).unwrap();
            let (mut a, mut b) = (vec![0.0; k], vec![0.0; k]);
            whole.column(n - 1, &mut a);
            restored.column(n - 1, &mut b);
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

/// The error of the first rows that cannot be read, whoever reads them.
#[test]
fn the_first_error_counts() {
    #[derive(Debug, PartialEq)]
    struct At(usize);
    impl From<billfish_kernels::KernelError> for At {
        fn from(_: billfish_kernels::KernelError) -> Self {
            At(usize::MAX)
        }
    }
    for threads in [1, 4] {
        let pool = Pool::new(threads).unwrap();
        let read = |first: usize, _: &mut [u8]| if first >= 128 { Err(At(first)) } else { Ok(()) };
        let found = PackedDense::from_rows(DType::F32, (4, 1000), None, DenseLayout::Stored, Some(&pool), &read);
        assert_eq!(found.err(), Some(At(128)));
        let found = PackedDense::from_rows(DType::I32, (4, 1000), None, DenseLayout::Stored, Some(&pool), &read);
        assert_eq!(found.err(), Some(At(usize::MAX)));
    }
}

#[test]
fn what_is_restored_is_checked() {
    let whole = PackedMatrix::new(&matrix(64, 100, 4, 32, true, true)).unwrap();
    let restore = |change: &dyn Fn(&mut Description)| {
        let mut description = whole.description();
        change(&mut description);
        PackedMatrix::restore(description, mapped(whole.data()))
    };
    let same = restore(&|_| ()).unwrap();
    assert!(same.data() == whole.data() && same.description() == whole.description());
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Description));
    let wrong: [Change<'_>; 15] = [
        ("no K", &|d| d.in_features = 0),
        ("another K", &|d| d.in_features = 65),
        ("a huge K", &|d| d.in_features = u32::MAX as usize),
        ("another N", &|d| d.out_features = 129),
        ("a huge N", &|d| d.out_features = usize::MAX),
        ("bits", &|d| d.bits = 9),
        ("other bits", &|d| d.bits = 8),
        ("scales of integers", &|d| d.scales = DType::I32),
        ("scales of another size", &|d| d.scales = DType::F16),
        ("zero points", &|d| d.zero_bytes = 3),
        ("groups", &|d| d.order.group_rows = vec![32, 33]),
        ("groups that overflow", &|d| d.order.group_rows = vec![u32::MAX, 65]),
        ("a row twice", &|d| d.order.permutation.as_mut().unwrap()[1] = whole.description().order.permutation.unwrap()[0]),
        ("a row that is not there", &|d| d.order.permutation.as_mut().unwrap()[63] = 64),
        ("a bias", &|d| d.bias = Some(vec![f32::NAN; 100])),
    ];
    for (what, change) in wrong {
        assert!(restore(change).is_err(), "{what}");
    }
    let order = RowOrder { permutation: None, group_rows: vec![64] };
    assert!(restore(&|d| d.order = order.clone()).is_err(), "one group for two");
    assert!(PackedMatrix::restore(whole.description(), mapped(&whole.data()[64..])).is_err());
    assert!(PackedDense::restore(DType::F32, (64, 100), None, mapped(whole.data())).is_err());
    assert!(Table::restore(DType::F32, [usize::MAX, 2], mapped(whole.data())).is_err());
}
