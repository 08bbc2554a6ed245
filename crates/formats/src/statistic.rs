//! What the codes say about the zero points: weights are centred, so the mean of `code - zero point` is near 0 under the
//! right reading and one step away under the reading that is off by one.
//!
//! On asymmetric checkpoints of 2 to 4 bits the mean of a module lies within 0.1 of 0 under the right reading (measured on
//! files of several writers; at 8 bits it wanders by more than a step, so nothing is concluded there).

/// Sums over some rows of a module's codes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    sum: u64,
    /// Rows of each group in the sample.
    rows: Vec<u32>,
    columns: usize,
}

/// Codes below which a mean says nothing: its error is then above 0.07 for codes of 4 bits.
const ENOUGH: u64 = 4096;
/// How near to 0 a mean must be to be believed.
const NEAR: f64 = 0.25;
/// How much farther off every other reading must be.
const MARGIN: f64 = 0.5;

impl Sample {
    /// An empty sample of a module of `groups` groups and `columns` columns.
    pub fn new(groups: usize, columns: usize) -> Self {
        Self { sum: 0, rows: vec![0; groups], columns }
    }

    /// Adds a row of codes that belongs to `group`.
    pub fn add(&mut self, group: usize, codes: &[u8]) {
        self.sum += codes.iter().map(|&c| u64::from(c)).sum::<u64>();
        self.rows[group] += 1;
    }

    fn count(&self) -> u64 {
        self.rows.iter().map(|&r| u64::from(r)).sum::<u64>() * self.columns as u64
    }

    /// Mean of `code - zero` under a reading of the zero points, `[groups, columns]`.
    pub fn mean(&self, zeros: &[u16]) -> f64 {
        let of_group = |zeros: &[u16]| zeros.iter().map(|&z| u64::from(z)).sum::<u64>();
        let zeros: u64 = zeros.chunks_exact(self.columns).zip(&self.rows).map(|(z, &rows)| of_group(z) * u64::from(rows)).sum();
        (self.sum as f64 - zeros as f64) / self.count().max(1) as f64
    }

    /// Which of several readings the codes show, given their means: the one near 0, if it is alone there and the sample is
    /// large enough.
    pub fn shows(&self, means: &[f64]) -> Option<usize> {
        let best = (0..means.len()).min_by(|&a, &b| means[a].abs().total_cmp(&means[b].abs()))?;
        let alone = (0..means.len()).all(|i| i == best || means[i].abs() > means[best].abs() + MARGIN);
        (self.count() >= ENOUGH && means[best].abs() < NEAR && alone).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: usize, columns: usize) -> Sample {
        let mut s = Sample::new(2, columns);
        for row in 0..rows {
            // codes 0 to 15 evenly: mean 7.5
            s.add(row % 2, &(0..columns).map(|c| ((row + c) % 16) as u8).collect::<Vec<u8>>());
        }
        s
    }

    #[test]
    fn means_weigh_groups_by_their_rows() {
        let mut s = Sample::new(2, 2);
        s.add(0, &[3, 5]);
        s.add(1, &[8, 8]);
        s.add(1, &[10, 10]);
        // (0 + 0) + (1 + 2) + (3 + 4) over 6
        assert_eq!(s.mean(&[3, 5, 7, 6]), 10.0 / 6.0);
    }

    #[test]
    fn one_reading_must_be_near_and_alone() {
        let s = sample(128, 64);
        assert_eq!(s.mean(&[7; 128]), 0.5);
        assert_eq!(s.shows(&[0.02, -0.98]), Some(0));
        assert_eq!(s.shows(&[1.05, 0.05]), Some(1));
        assert_eq!(s.shows(&[0.5, -0.5]), None, "between the two");
        assert_eq!(s.shows(&[0.1, -0.3]), None, "not alone");
        assert_eq!(s.shows(&[3.0, 2.0]), None, "neither is near");
        assert_eq!(sample(4, 64).shows(&[0.0, 1.0]), None, "too few codes");
    }
}
