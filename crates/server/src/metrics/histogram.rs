//! Histograms in Prometheus' text form.

use std::fmt::Write;

/// Upper ends of buckets in seconds, as vLLM has them, so that its dashboards fit.
pub(crate) const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];
pub(crate) const BETWEEN_TOKENS: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
pub(crate) const REQUEST: &[f64] =
    &[0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0];
pub(crate) const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// 1, 2, 5, 10 … up to a length.
pub(crate) fn lengths(most: usize) -> Vec<f64> {
    let steps = (0..).flat_map(|e| [1, 2, 5].map(|m| m as f64 * 10f64.powi(e)));
    steps.take_while(|s| *s <= most as f64).collect()
}

/// Counts of values by size.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    ends: Vec<f64>,
    /// One more than ends: values above all of them.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub fn new(ends: &[f64]) -> Histogram {
        Histogram { ends: ends.to_vec(), counts: vec![0; ends.len() + 1], sum: 0.0 }
    }

    pub fn add(&mut self, value: f64) {
        let at = self.ends.iter().position(|end| value <= *end).unwrap_or(self.ends.len());
        self.counts[at] += 1;
        self.sum += value;
    }

    /// Appends the samples of this histogram under a name.
    pub fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut below = 0;
        let ends = self.ends.iter().map(|e| format!("{e:?}")).chain(["+Inf".into()]);
        for (end, count) in ends.zip(&self.counts) {
            below += count;
            // writing to a string does not fail
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {below}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_an_edge_belongs_below() {
        let mut h = Histogram::new(&[1.0, 2.5]);
        [0.5, 1.0, 2.0, 9.0].iter().for_each(|v| h.add(*v));
        let mut out = String::new();
        h.write(&mut out, "x", "a=\"b\"");
        let expected = "x_bucket{a=\"b\",le=\"1.0\"} 2\nx_bucket{a=\"b\",le=\"2.5\"} 3\nx_bucket{a=\"b\",le=\"+Inf\"} 4\n\
                        x_sum{a=\"b\"} 12.5\nx_count{a=\"b\"} 4\n";
        assert_eq!(out, expected);
        assert_eq!(lengths(64), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
    }
}
