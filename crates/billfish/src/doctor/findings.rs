//! What a doctor says: one finding after another.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Billfish reads it, but something is odd or others will not.
    Warning,
    /// The folder cannot be run, or would compute something else than was meant.
    Error,
}

impl Severity {
    /// `note`, `warning` or `error`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One thing that a reader of the folder should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a file, a module, a tensor.
    pub subject: String,
    /// What was found.
    pub evidence: String,
    /// What follows from it.
    pub consequence: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}; {}; {}", self.severity.name(), self.subject, self.evidence, self.consequence, self.remedy)
    }
}

/// Findings in the making.
#[derive(Default)]
pub(super) struct Findings(pub Vec<Finding>);

/// What to do about what `doctor --fix` can put right.
pub(super) const FIX: &str = "write a repaired copy with `billfish doctor FOLDER --fix OUT`";

impl Findings {
    pub fn add(&mut self, severity: Severity, subject: &str, evidence: impl Into<String>, consequence: &str, remedy: &str) {
        let [subject, consequence, remedy] = [subject, consequence, remedy].map(str::to_string);
        self.0.push(Finding { severity, subject, evidence: evidence.into(), consequence, remedy });
    }

    pub fn error(&mut self, subject: &str, evidence: impl Into<String>, consequence: &str, remedy: &str) {
        self.add(Severity::Error, subject, evidence, consequence, remedy);
    }

    pub fn warning(&mut self, subject: &str, evidence: impl Into<String>, consequence: &str, remedy: &str) {
        self.add(Severity::Warning, subject, evidence, consequence, remedy);
    }

    pub fn note(&mut self, subject: &str, evidence: impl Into<String>, consequence: &str, remedy: &str) {
        self.add(Severity::Note, subject, evidence, consequence, remedy);
    }

    /// A thing that stops a folder, told by an error whose text holds the remedy.
    pub fn stops(&mut self, subject: &str, error: &dyn fmt::Display) {
        self.error(subject, error.to_string(), "the folder does not run", "do what the message says");
    }

    /// Worst first, then by subject.
    pub fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.subject.cmp(&b.subject)));
        self.0.dedup();
        self.0
    }
}
