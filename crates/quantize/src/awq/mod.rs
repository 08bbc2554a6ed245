//! AWQ: inputs that matter get larger weights, and what makes these inputs is divided by the same factors (Lin et al.,
//! "AWQ", 2023). What the network computes stays as it was until weights are rounded.

mod clip;
mod folding;
mod layer;
mod magnitudes;
mod scales;
mod stored;

pub(crate) use clip::steps as clipped_steps;
pub use folding::{Folding, Place};
pub(crate) use layer::{Given, fold};
pub use magnitudes::Magnitudes;
pub(crate) use scales::most_outputs;
pub use scales::{Found, ScaleSearch};
