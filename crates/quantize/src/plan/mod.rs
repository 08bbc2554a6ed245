//! Which widths and group sizes the modules of a folder should have: what each choice costs is measured ([`study`]), the
//! best choices for a size are found ([`Sensitivity::fit`]) or taken from a table ([`preset`]), and the outcome is a set of
//! rules that other programs read too ([`rules`]).

mod allot;
mod classes;
mod fit;
mod predictions;
mod presets;
mod rules;
mod sensitivity;

pub use allot::{Offer, allot};
pub use classes::{Class, class_of};
pub use fit::{Budget, Fit};
pub use presets::{Preselected, Preset, preset};
pub use rules::rules;
pub use sensitivity::{Choice, Priced, Sensitivity, Study, Unit, study};
