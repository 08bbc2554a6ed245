//! What the codes say about the zero points: weights are centred, so the mean of `code - zero point` in a group is near 0
//! under the right reading and one step away under the reading that is off by one.
//!
//! On asymmetric checkpoints of 2 to 4 bits the mean of a module lies within 0.1 of 0 under the right reading (measured on
//! files of several writers; at 8 bits it wanders by more than a step, so that only larger differences show there). Over a
//! module the median of its groups is taken: a few groups of weights of one sign, which are far from centred, move it little.

/// Standard deviation of a code about its zero point, in parts of the range of codes: that of evenly spread codes.
const SPREAD: f64 = 0.3;
/// The same of the mean of a whole group: the largest measured is 0.046.
const SCATTER: f64 = 1.0 / 16.0;
/// Standard error of a median, in that of a mean.
const MEDIAN: f64 = 1.2533;
/// Standard deviation of a normal distribution, in median deviations from its median.
const NORMAL: f64 = 1.4826;
/// Standard errors that must fit between a place and the middle.
const ERRORS: f64 = 3.0;

/// Sums over some rows of a module's codes.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    bits: u32,
    columns: usize,
    /// Rows of each group in the sample.
    rows: Vec<u32>,
    /// Sum of the codes of each group and column.
    sums: Vec<u32>,
}

/// Where the codes lie on the way from one reading of the zero points to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// 0 at the first reading, 1 at the second.
    pub at: f64,
    /// Standard error of that.
    pub error: f64,
}

impl Position {
    /// Seen from the second reading.
    pub fn reversed(self) -> Self {
        Self { at: 1.0 - self.at, ..self }
    }

    /// Whether it lies on the first reading's side of `most`, and not by chance.
    pub fn clear(self, most: f64) -> bool {
        self.at <= most && self.at + ERRORS * self.error < 0.5
    }
}

impl Sample {
    /// An empty sample of a module of `groups` groups and `columns` columns.
    pub fn new(bits: u32, groups: usize, columns: usize) -> Self {
        Self { bits, columns, rows: vec![0; groups], sums: vec![0; groups * columns] }
    }

    /// Adds a row of codes that belongs to `group`.
    pub fn add(&mut self, group: usize, codes: &[u8]) {
        let sums = &mut self.sums[group * self.columns..][..self.columns];
        sums.iter_mut().zip(codes).for_each(|(sum, &code)| *sum += u32::from(code));
        self.rows[group] += 1;
    }

    /// Index, number of codes and their sum, of every group and column that `on` takes.
    fn fields(&self, on: impl Fn(usize) -> bool) -> impl Iterator<Item = (usize, f64, f64)> {
        let groups = self.rows.iter().enumerate().filter(|(_, rows)| **rows > 0);
        let fields = groups.flat_map(move |(g, &rows)| {
            let sums = self.sums[g * self.columns..][..self.columns].iter();
            sums.enumerate().map(move |(i, &sum)| (g * self.columns + i, f64::from(rows), f64::from(sum)))
        });
        fields.filter(move |(i, ..)| on(*i))
    }

    /// Mean code over the groups and columns that `on` takes.
    pub fn mean(&self, on: impl Fn(usize) -> bool) -> Option<f64> {
        let add = |(total, count): (f64, f64), (_, rows, sum): (usize, f64, f64)| (total + sum, count + rows);
        let (total, count) = self.fields(on).fold((0.0, 0.0), add);
        (count > 0.0).then(|| total / count)
    }

    /// Median of the mean `code - zero` of the groups and columns that `on` takes, under a reading of the zero points.
    pub fn median(&self, zeros: impl Fn(usize) -> u16, on: impl Fn(usize) -> bool) -> Option<f64> {
        middle(self.fields(on).map(|(i, rows, sum)| sum / rows - f64::from(zeros(i))).collect())
    }

    /// Variances of a code and of the mean code of a group, about the zero point.
    fn variances(&self) -> (f64, f64) {
        let range = f64::from(1u32 << self.bits);
        ((SPREAD * range).powi(2), (SCATTER * range).powi(2))
    }

    /// Where half of the groups and columns lie on the way between two readings, of those in which these differ and that
    /// `on` takes. `None` if the sample has none of them.
    pub fn halfway(&self, from: impl Fn(usize) -> u16, to: impl Fn(usize) -> u16, on: impl Fn(usize) -> bool) -> Option<Position> {
        let (spread, scatter) = self.variances();
        let (mut places, mut variance) = (vec![], 0.0);
        for (i, rows, sum) in self.fields(on).filter(|(i, ..)| from(*i) != to(*i)) {
            let start = f64::from(from(i));
            let step = f64::from(to(i)) - start;
            places.push((sum / rows - start) / step);
            variance += (spread / rows + scatter) / (step * step);
        }
        let count = places.len() as f64;
        let at = middle(places.clone())?;
        // weights that are not centred scatter more than the model of them says
        let scattered = NORMAL * middle(places.iter().map(|p| (p - at).abs()).collect())? * count.sqrt();
        Some(Position { at, error: MEDIAN * variance.sqrt().max(scattered) / count })
    }

    /// Where the codes lie between two readings, by least squares over the zero points in which they differ and that `on`
    /// takes. `None` if the sample has none of them.
    pub fn position(&self, from: impl Fn(usize) -> u16, to: impl Fn(usize) -> u16, on: impl Fn(usize) -> bool) -> Option<Position> {
        let (spread, scatter) = self.variances();
        let (mut along, mut length, mut variance) = (0.0, 0.0, 0.0);
        for (i, rows, sum) in self.fields(on) {
            let start = f64::from(from(i));
            let step = f64::from(to(i)) - start;
            along += step * (sum - rows * start);
            length += step * step * rows;
            variance += (step * rows).powi(2) * (spread / rows + scatter);
        }
        (length > 0.0).then(|| Position { at: along / length, error: variance.sqrt() / length })
    }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    let half = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(half, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: usize, columns: usize) -> Sample {
        let mut s = Sample::new(4, 2, columns);
        for row in 0..rows {
            // codes 0 to 15 evenly: mean 7.5
            s.add(row % 2, &(0..columns).map(|c| ((row + c) % 16) as u8).collect::<Vec<u8>>());
        }
        s
    }

    #[test]
    fn means_weigh_groups_by_their_rows() {
        let mut s = Sample::new(4, 2, 2);
        s.add(0, &[3, 5]);
        s.add(1, &[8, 8]);
        s.add(1, &[10, 10]);
        assert_eq!(s.mean(|_| true), Some(44.0 / 6.0));
        assert_eq!(s.mean(|i| i < 2), Some(4.0));
        assert_eq!(s.mean(|_| false), None);
        // group means less zeros: 0, 0, 2, 3
        assert_eq!(s.median(|i| [3, 5, 7, 6][i], |_| true), Some(2.0));
        assert_eq!(s.median(|_| 0, |_| false), None);
    }

    #[test]
    fn a_few_groups_of_one_sign_do_not_move_the_middle() {
        let mut s = Sample::new(4, 1, 100);
        let codes: Vec<u8> = (0..100).map(|i| if i % 5 == 0 { 15 } else { 8 }).collect();
        (0..64).for_each(|_| s.add(0, &codes));
        let half = s.halfway(|_| 8, |_| 9, |_| true).unwrap();
        assert_eq!(half.at, 0.0);
        assert!(s.position(|_| 8, |_| 9, |_| true).unwrap().at > 1.0);
        assert!(s.halfway(|_| 8, |_| 8, |_| true).is_none());
    }

    #[test]
    fn positions_lie_between_the_readings() {
        let s = sample(128, 64);
        let at = |from: u16, to: u16| s.position(|_| from, |_| to, |_| true).unwrap();
        assert_eq!(at(7, 8).at, 0.5);
        assert_eq!(at(8, 7).at, 0.5);
        assert_eq!(at(6, 9).at, 0.5);
        assert!((at(0, 15).at - 0.5).abs() < 1e-12);
        assert!((at(0, 30).at - 0.25).abs() < 1e-12 && at(0, 30).clear(0.4) && !at(0, 30).reversed().clear(0.4));
        assert!(s.position(|_| 7, |_| 7, |_| true).is_none(), "no difference");
        // only fields that differ count
        let half = s.position(|i| u16::from(i < 64) * 30, |_| 0, |_| true).unwrap();
        assert!((half.at - 0.75).abs() < 1e-12);
    }

    #[test]
    fn few_codes_are_never_clear_about_one_step() {
        let mut few = Sample::new(4, 1, 8);
        (0..64).for_each(|_| few.add(0, &[7; 8]));
        let position = |s: &Sample| s.position(|_| 7, |_| 8, |_| true).unwrap();
        assert!(position(&few).at == 0.0 && !position(&few).clear(0.25));
        let mut many = Sample::new(4, 1, 512);
        (0..64).for_each(|_| many.add(0, &[7; 512]));
        assert!(position(&many).clear(0.25));
        // but they are about sixteen
        assert!(few.position(|_| 7, |_| 23, |_| true).unwrap().clear(0.25));
    }
}
