//! The one factorization that GPTQ needs, blocked over [`Backend::gemm`].

use billfish_kernels::{Backend, Matrix, Part};

/// Rows and columns of a block: what is done outside of matrix products is this wide.
const BLOCK: usize = 128;
/// Columns of an inverse that are found at a time, so that the half that is zero costs little.
const STRIP: usize = 512;

/// A pivot that is not above zero: the matrix is not positive definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositive;

/// For a symmetric positive definite `h`, `[n, n]`, the upper triangular `U` with `h⁻¹ = Uᵀ · U`. Only the lower half of
/// `h` is read.
///
/// With the order of rows and columns reversed, `h` becomes `L · Lᵀ`; reversed again that is `h = R · Rᵀ` with an upper
/// triangular `R`, so `U = R⁻¹`: one factorization and one triangular inverse, and `h⁻¹` is never formed.
///
/// # Errors
/// [`NotPositive`].
pub fn inverse_factor(backend: &Backend, mut h: Vec<f64>, n: usize) -> Result<Vec<f64>, NotPositive> {
    // reversing the flat array reverses rows and columns, and turns the lower half into the upper one
    for i in 0..n {
        for j in i + 1..n {
            h[i * n + j] = h[j * n + i];
        }
    }
    h.reverse();
    cholesky(backend, &mut h, n)?;
    invert_lower(backend, &mut h, n);
    h.reverse();
    Ok(h)
}

/// Replaces the lower half of `a` by its Cholesky factor.
fn cholesky(backend: &Backend, a: &mut [f64], n: usize) -> Result<(), NotPositive> {
    for b in (0..n).step_by(BLOCK) {
        let e = (b + BLOCK).min(n);
        let width = e - b;
        for j in b..e {
            for i in j..e {
                let (row_i, row_j) = (&a[i * n + b..i * n + j], &a[j * n + b..j * n + j]);
                let sum: f64 = row_i.iter().zip(row_j).map(|(x, y)| x * y).sum();
                let value = a[i * n + j] - sum;
                if i == j {
                    if !(value > 0.0 && value.is_finite()) {
                        return Err(NotPositive);
                    }
                    a[i * n + j] = value.sqrt();
                } else {
                    a[i * n + j] = value / a[j * n + j];
                }
            }
        }
        if e == n {
            continue;
        }
        let inverse = inverse_of_block(a, n, b, e);
        let below = n - e;
        let mut panel = vec![0.0; below * width];
        let old = Matrix::new(&a[e * n + b..], below, width, n);
        backend.gemm(1.0, old, Matrix::new(&inverse, width, width, width).transposed(), &mut panel, width, Part::All);
        for (i, row) in panel.chunks_exact(width).enumerate() {
            a[(e + i) * n + b..(e + i) * n + e].copy_from_slice(row);
        }
        let panel = Matrix::new(&panel, below, width, width);
        backend.gemm(-1.0, panel, panel.transposed(), &mut a[e * n + e..], n, Part::Lower);
    }
    Ok(())
}

/// Replaces a lower triangular `a` by its inverse, and what lies above the diagonal by zeros.
fn invert_lower(backend: &Backend, a: &mut [f64], n: usize) {
    for b in (0..n).step_by(BLOCK) {
        let e = (b + BLOCK).min(n);
        let width = e - b;
        let inverse = inverse_of_block(a, n, b, e);
        let mut left = vec![0.0; width * b];
        for j in (0..b).step_by(STRIP) {
            let count = STRIP.min(b - j);
            let rows = Matrix::new(&a[b * n + j..], width, b - j, n);
            let above = Matrix::new(&a[j * n + j..], b - j, count, n);
            backend.gemm(-1.0, rows, above, &mut left[j..], b.max(1), Part::All);
        }
        let mut found = vec![0.0; width * b];
        if b > 0 {
            let inverse = Matrix::new(&inverse, width, width, width);
            backend.gemm(1.0, inverse, Matrix::new(&left, width, b, b), &mut found, b, Part::All);
        }
        for i in 0..width {
            let row = &mut a[(b + i) * n..(b + i + 1) * n];
            row[..b].copy_from_slice(&found[i * b..(i + 1) * b]);
            row[b..e].copy_from_slice(&inverse[i * width..(i + 1) * width]);
            row[e..].fill(0.0);
        }
    }
}

/// The inverse of the lower triangular block `b..e` of `a`, `[e - b, e - b]`.
fn inverse_of_block(a: &[f64], n: usize, b: usize, e: usize) -> Vec<f64> {
    let width = e - b;
    let mut inverse = vec![0.0; width * width];
    for i in 0..width {
        let diagonal = a[(b + i) * n + b + i];
        let mut row = vec![0.0; width];
        row[i] = 1.0;
        for k in 0..i {
            let factor = a[(b + i) * n + b + k];
            for j in 0..=k {
                row[j] -= factor * inverse[k * width + j];
            }
        }
        row.iter_mut().for_each(|v| *v /= diagonal);
        inverse[i * width..(i + 1) * width].copy_from_slice(&row);
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use billfish_kernels::Isa;

    fn backend(threads: usize) -> Backend {
        Backend::new(Isa::choose(None).unwrap(), threads).unwrap()
    }

    /// A correlated positive definite matrix.
    fn sample(n: usize) -> Vec<f64> {
        (0..n * n).map(|at| (at / n, at % n)).map(|(i, j)| 0.9f64.powi(i.abs_diff(j) as i32) + if i == j { 0.1 } else { 0.0 }).collect()
    }

    #[test]
    fn the_factor_gives_the_inverse() {
        for n in [1, 2, 127, 128, 129, 300, 700] {
            let h = sample(n);
            let u = inverse_factor(&backend(2), h.clone(), n).unwrap();
            for i in 0..n {
                assert!(u[i * n..i * n + i].iter().all(|v| *v == 0.0) && u[i * n + i] > 0.0);
            }
            // h · (Uᵀ · U) must be the identity
            let mut inverse = vec![0.0; n * n];
            let view = Matrix::new(&u, n, n, n);
            backend(1).gemm(1.0, view.transposed(), view, &mut inverse, n, Part::All);
            let mut product = vec![0.0; n * n];
            backend(1).gemm(1.0, Matrix::new(&h, n, n, n), Matrix::new(&inverse, n, n, n), &mut product, n, Part::All);
            for (at, v) in product.iter().enumerate() {
                let expected = f64::from(u8::from(at / n == at % n));
                // the condition of these matrices is below 1e3
                assert!((v - expected).abs() < 1e-11, "{n}: {at} {v}");
            }
            assert_eq!(u, inverse_factor(&backend(1), h, n).unwrap(), "threads");
        }
    }

    #[test]
    fn what_is_not_positive_is_refused() {
        let backend = backend(1);
        assert_eq!(inverse_factor(&backend, vec![0.0], 1), Err(NotPositive));
        assert_eq!(inverse_factor(&backend, vec![f64::NAN], 1), Err(NotPositive));
        assert_eq!(inverse_factor(&backend, vec![1.0, 2.0, 2.0, 1.0], 2), Err(NotPositive));
        let mut h = sample(200);
        h[150 * 200 + 150] = 0.01;
        assert_eq!(inverse_factor(&backend, h, 200), Err(NotPositive));
    }
}
