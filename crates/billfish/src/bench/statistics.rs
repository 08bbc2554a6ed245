//! The few statistics that reports show.

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The sample standard deviation (divisor `n - 1`); 0 of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// The `p`-th percentile, `p` from 0 to 100, between two values in proportion; 0 of nothing.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = (p / 100.0).clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(mean(&values), 2.5);
        // squares 2.25 + 0.25 + 0.25 + 2.25 = 5, divided by 3
        assert!((deviation(&values) - (5f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!((deviation(&[7.0]), mean(&[]), median(&[])), (0.0, 0.0, 0.0));
    }

    /// As `numpy.percentile` interpolates: rank `p / 100 · (n - 1)`.
    #[test]
    fn percentiles_lie_between_values() {
        let values = [10.0, 30.0, 20.0, 40.0];
        for (p, want) in [(0.0, 10.0), (100.0, 40.0), (50.0, 25.0), (10.0, 13.0), (99.0, 39.7)] {
            assert!((percentile(&values, p) - want).abs() < 1e-9, "{p}");
        }
        assert_eq!(median(&[5.0, 1.0, 2.0]), 2.0);
    }
}
