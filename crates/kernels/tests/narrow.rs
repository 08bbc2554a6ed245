//! Weights in 13 bits: the bits of a product are those of the same weights in 16, whatever panels they have.

use billfish_kernels::{
    Activations, Backend, DenseLayout, Input, Isa, KernelError, Mapping, MatmulScratch, PackedDense, Pool, Product, Stored, Weight,
};
use billfish_tensor::DType;
use std::io::Write;
use std::sync::Arc;

mod common;
use common::Rng;

/// A weight `[N, K]`: most like those of a trained model, some 0 or denormal. Panel `wide` has exponents of every size, and
/// `tiny` only small ones.
fn weights(k: usize, n: usize, wide: &[usize], tiny: usize) -> Vec<half::bf16> {
    let mut rng = Rng(1000 * k as u64 + n as u64);
    let value = |(i, v): (usize, &f32)| {
        let panel = i / k / 64;
        let size = match i % 64 {
            _ if wide.contains(&panel) => 2f32.powi((i * 7919 % 200) as i32 - 120),
            _ if panel == tiny => 1e-38,
            3 => 0.0,
            _ => 0.02,
        };
        half::bf16::from_f32(v * size)
    };
    rng.floats(k * n).iter().enumerate().map(value).collect()
}

fn packed(values: &[half::bf16], k: usize, n: usize, layout: DenseLayout, pool: Option<&Pool>) -> PackedDense {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let read = |first: usize, out: &mut [u8]| -> Result<(), KernelError> {
        out.copy_from_slice(&bytes[first * k * 2..][..out.len()]);
        Ok(())
    };
    PackedDense::from_rows(DType::BF16, (k, n), None, layout, pool, &read).unwrap()
}

fn mapped(bytes: &[u8]) -> Stored {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Mapping::new(&file).unwrap().part(0..bytes.len()).unwrap()
}

#[test]
fn products_have_the_bits_of_stored_weights() {
    let mut rng = Rng(5);
    for (k, n, wide) in [(8, 1, &[][..]), (64, 33, &[]), (136, 130, &[]), (264, 64, &[]), (1000, 700, &[3]), (8, 1100, &[0, 17])] {
        let values = weights(k, n, wide, 1);
        let stored = packed(&values, k, n, DenseLayout::Stored, None);
        let narrow = packed(&values, k, n, DenseLayout::Narrow, None);
        assert_eq!((stored.layout(), narrow.layout()), (DenseLayout::Stored, DenseLayout::Narrow), "[{k}, {n}]");
        assert!(narrow.bytes() < stored.bytes() && narrow.data().len() == narrow.bytes());
        let (mut a, mut b) = (vec![0.0; k], vec![0.0; k]);
        for column in 0..n {
            stored.column(column, &mut a);
            narrow.column(column, &mut b);
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "column {column} of [{k}, {n}]");
        }
        let [stored, narrow] = [stored, narrow].map(|w| Weight::Dense(Arc::new(w)));
        for m in [1, 2, 3, 5, 7, 12, 16, 17] {
            let x = rng.floats(m * k);
            for isa in Isa::available() {
                for backend in [Backend::new(isa, 2).unwrap(), Backend::new(isa, 1).unwrap().without_bf16_dots()] {
                    for activations in Activations::ALL {
                        let [expected, found] = [&stored, &narrow].map(|w| {
                            let mut y = vec![0.0; m * n];
                            let products = &mut [Product::new(w, &mut y)];
                            backend.matmul(&mut MatmulScratch::default(), Input::Rows(&x), m, activations, products);
                            y
                        });
                        for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
                            assert_eq!(e.to_bits(), f.to_bits(), "[{k}, {n}] m={m} {isa:?} {activations:?}: {i}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn weights_that_cannot_be_narrow_stay_as_they_are() {
    for (k, n, wide) in [(12, 64, &[][..]), (64, 64, &[0]), (64, 64 * 16, &[0, 5, 9])] {
        let values = weights(k, n, wide, usize::MAX);
        let found = packed(&values, k, n, DenseLayout::Narrow, None);
        assert_eq!(found.layout(), DenseLayout::Stored, "[{k}, {n}]");
        assert!(found.data() == packed(&values, k, n, DenseLayout::Stored, None).data());
    }
}

#[test]
fn packed_by_any_number_of_threads_and_restored() {
    let (k, n) = (72, 64 * 20 + 9);
    let values = weights(k, n, &[2, 20], 7);
    let alone = packed(&values, k, n, DenseLayout::Narrow, None);
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads).unwrap();
        assert!(packed(&values, k, n, DenseLayout::Narrow, Some(&pool)).data() == alone.data());
    }
    let restored = PackedDense::restore(DType::BF16, (k, n), None, mapped(alone.data())).unwrap();
    let (mut a, mut b) = (vec![0.0; k], vec![0.0; k]);
    for column in [0, 130, 191, n - 1] {
        alone.column(column, &mut a);
        restored.column(column, &mut b);
        assert_eq!(a, b);
    }
    // cut, too long, of another type or size, and with a panel that is not there
    let refused = |dtype, size, bytes: &[u8]| PackedDense::restore(dtype, size, None, mapped(bytes)).is_err();
    let mut wrong = alone.data().to_vec();
    assert!(refused(DType::BF16, (k, n), &wrong[..wrong.len() - 64]));
    assert!(refused(DType::BF16, (k, n), &[&wrong[..], &[0; 64]].concat()));
    assert!(refused(DType::F16, (k, n), &wrong));
    assert!(refused(DType::BF16, (k + 1, n), &wrong));
    assert!(refused(DType::BF16, (k, n + 64), &wrong));
    assert!(!refused(DType::BF16, (k, n), &wrong));
    // the table of panel 2 says which of those it is
    assert_eq!(wrong[32], 0xff);
    wrong[36] = 2;
    assert!(refused(DType::BF16, (k, n), &wrong));
}
