//! What is wrong with a resource: where, what, and what would be right.

use buttress_core::Code;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub code: Code,
    /// A JSON pointer from where the reader began, for example `/match/0/path`; empty: there itself.
    pub at: String,
    /// Lower case, no full stop, the offending value quoted.
    pub says: String,
    /// What would be right.
    pub hint: String,
}

impl Flaw {
    /// Values that cannot be, or that do not go together.
    pub fn invalid(at: impl Into<String>, says: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: Code::RESOURCE_INVALID, at: at.into(), says: says.into(), hint: hint.into() }
    }

    /// The same, seen from further out.
    pub fn below(mut self, parent: &str) -> Self {
        self.at.insert_str(0, parent);
        self
    }
}
