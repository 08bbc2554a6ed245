//! In which order columns of weights (rows of a file's `qweight`) are rounded, and which groups they form.

/// The order in which inputs are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// As they are.
    None,
    /// Inside each group those with the largest mean square first, and the groups by their largest: costs nothing when
    /// the model runs, because a group stays a run of neighbours.
    #[default]
    Gar,
    /// The largest mean square first; scales are found before anything is rounded, so groups stay runs of neighbours.
    Static,
    /// The largest mean square first; groups are formed in that order (`desc_act`), and a running model has to gather.
    Desc,
}

/// An order and its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The input that is visited at each position.
    pub input: Vec<usize>,
    /// The group of each position.
    pub group: Vec<usize>,
    /// Groups in all.
    pub groups: usize,
}

impl Order {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Order::None => "none",
            Order::Gar => "gar",
            Order::Static => "static",
            Order::Desc => "desc",
        }
    }

    /// Whether the inputs of a group come one after another.
    pub fn in_runs(self) -> bool {
        self != Order::Static
    }

    /// The order for inputs with the mean squares `diagonal` in groups of `size`. Of equals the first comes first.
    pub fn visit(self, diagonal: &[f64], size: usize) -> Visit {
        let k = diagonal.len();
        let size = size.max(1);
        let falling = |a: &usize, b: &usize| diagonal[*b].total_cmp(&diagonal[*a]);
        let mut input: Vec<usize> = (0..k).collect();
        match self {
            Order::None => {}
            Order::Desc | Order::Static => input.sort_by(falling),
            Order::Gar => {
                input.chunks_mut(size).for_each(|group| group.sort_by(falling));
                let mut groups: Vec<&[usize]> = input.chunks(size).collect();
                // a short last group stays where it is
                let whole = k / size;
                groups[..whole].sort_by(|a, b| falling(&a[0], &b[0]));
                input = groups.concat();
            }
        }
        let group = input.iter().enumerate().map(|(at, &i)| if self == Order::Desc { at / size } else { i / size }).collect();
        Visit { input, group, groups: k.div_ceil(size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_hand() {
        let d = [1.0, 5.0, 2.0, 9.0, 3.0, 3.0, 100.0];
        let visit = |o: Order| o.visit(&d, 2);
        assert_eq!(visit(Order::None).input, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(visit(Order::None).group, [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(visit(Order::Desc).input, [6, 3, 1, 4, 5, 2, 0]);
        assert_eq!(visit(Order::Desc).group, [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(visit(Order::Static).input, [6, 3, 1, 4, 5, 2, 0]);
        assert_eq!(visit(Order::Static).group, [3, 1, 0, 2, 2, 1, 0]);
        // groups by their largest: 9, 5, 3; the short one stays last
        assert_eq!(visit(Order::Gar).input, [3, 2, 1, 0, 4, 5, 6]);
        assert_eq!(visit(Order::Gar).group, [1, 1, 0, 0, 2, 2, 3]);
        assert_eq!(visit(Order::Gar).groups, 4);
        // one group: by falling squares
        assert_eq!(Order::Gar.visit(&d, 7).input, [6, 3, 1, 4, 5, 2, 0]);
    }
}
