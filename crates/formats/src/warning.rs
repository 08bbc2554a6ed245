//! Things a reader should know although the folder can be read: nothing is dropped or overruled without one of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// What a warning is about. The order is the order in which warnings are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WarningKind {
    /// Files of the folder.
    Files,
    /// Keys of a quantization config.
    Config,
    /// Per-module rules.
    Rules,
    /// Tensors and what they hold.
    Tensors,
}

impl WarningKind {
    /// Every kind and its name.
    const NAMES: [(WarningKind, &str); 4] =
        [(WarningKind::Files, "files"), (WarningKind::Config, "config"), (WarningKind::Rules, "rules"), (WarningKind::Tensors, "tensors")];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).expect("every kind is in the table").1
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
    }
}

/// One warning, with every module or tensor it is true of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// The message.
    pub message: String,
    /// Modules or tensors it applies to, sorted; empty when it is about the folder as a whole.
    pub subjects: Vec<String>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.subjects.as_slice() {
            [] => Ok(()),
            [one] => write!(f, " ({one})"),
            [first, .., last] => write!(f, " ({} places, {first} to {last})", self.subjects.len()),
        }
    }
}

/// Collects warnings from any thread; the listing does not depend on the order in which threads found them.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Mutex<BTreeMap<(WarningKind, String), BTreeSet<String>>>);

impl Warnings {
    pub(crate) fn add(&self, kind: WarningKind, message: impl Into<String>) {
        self.lock().entry((kind, message.into())).or_default();
    }

    pub(crate) fn about(&self, kind: WarningKind, message: impl Into<String>, subject: &str) {
        self.lock().entry((kind, message.into())).or_default().insert(subject.into());
    }

    /// Adds a whole one.
    pub(crate) fn again(&self, warning: Warning) {
        self.lock().entry((warning.kind, warning.message)).or_default().extend(warning.subjects);
    }

    pub(crate) fn list(&self) -> Vec<Warning> {
        let one = |((kind, message), subjects): (&(WarningKind, String), &BTreeSet<String>)| Warning {
            kind: *kind,
            message: message.clone(),
            subjects: subjects.iter().cloned().collect(),
        };
        self.lock().iter().map(one).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(WarningKind, String), BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_messages_join_their_subjects() {
        let w = Warnings::default();
        w.about(WarningKind::Tensors, "odd", "b");
        w.add(WarningKind::Config, "unknown key");
        w.about(WarningKind::Tensors, "odd", "a");
        w.about(WarningKind::Tensors, "odd", "a");
        let text: Vec<String> = w.list().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["unknown key", "odd (2 places, a to b)"]);
        let again = Warnings::default();
        again.about(WarningKind::Tensors, "odd", "c");
        w.list().into_iter().for_each(|warning| again.again(warning));
        assert_eq!(again.list()[1].subjects, ["a", "b", "c"]);
        for (kind, name) in WarningKind::NAMES {
            assert!(kind.name() == name && WarningKind::from_name(name) == Some(kind));
        }
    }
}
