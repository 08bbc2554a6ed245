//! When requests arrive.

use super::requests::Numbers;

/// Times in seconds, the first 0, of `count` requests at `rate` a second. The times between them have a gamma distribution of
/// shape `burstiness` and mean `1 / rate`: 1 makes it a Poisson process, less comes in bursts, more at even times. All come at
/// once for an infinite rate. The same for the same seed.
pub fn arrivals(count: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() {
        return vec![0.0; count];
    }
    let mut numbers = Numbers::new(seed ^ 0x5eed);
    let mut at = 0.0;
    (0..count)
        .map(|_| {
            let now = at;
            at += gamma(burstiness, &mut numbers) / (burstiness * rate);
            now
        })
        .collect()
}

/// A number spread evenly above 0 and up to 1.
fn unit(numbers: &mut Numbers) -> f64 {
    const STEPS: usize = 1 << 30;
    (f64::from(numbers.below(STEPS)) + 1.0) / STEPS as f64
}

/// A number of the normal distribution of mean 0 and variance 1 (Box and Muller).
fn normal(numbers: &mut Numbers) -> f64 {
    (-2.0 * unit(numbers).ln()).sqrt() * (std::f64::consts::TAU * unit(numbers)).cos()
}

/// A number of the gamma distribution of this shape and scale 1 (Marsaglia and Tsang, "A simple method for generating gamma
/// variables", 2000).
fn gamma(shape: f64, numbers: &mut Numbers) -> f64 {
    if shape < 1.0 {
        return gamma(shape + 1.0, numbers) * unit(numbers).powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(numbers);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && unit(numbers).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gamma distribution has mean `shape`, variance `shape`; intervals so the mean `1 / rate` and the square of that
    /// over `burstiness` as variance.
    #[test]
    fn intervals_have_the_mean_and_variance_that_are_asked_for() {
        for burstiness in [0.3, 1.0, 2.5, 40.0] {
            let (count, rate) = (100_000, 8.0);
            let times = arrivals(count, rate, burstiness, 3);
            assert_eq!((times[0], &times[..], times.len()), (0.0, &arrivals(count, rate, burstiness, 3)[..], count));
            let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>() / gaps.len() as f64;
            // about five standard errors of each
            let error = (1.0 / burstiness / count as f64).sqrt();
            assert!((mean * rate - 1.0).abs() < 5.0 * error, "{burstiness}: {mean}");
            assert!((variance * rate * rate * burstiness - 1.0).abs() < 0.06, "{burstiness}: {variance}");
        }
        assert_ne!(arrivals(9, 1.0, 1.0, 1), arrivals(9, 1.0, 1.0, 2));
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 1), [0.0; 3]);
    }
}
