//! The state machine that a replica applies committed entries to.

use bytes::Bytes;

use crate::ids::{Index, Term};

/// A deterministic state machine. Equal sequences of `apply` give byte-equal state on every replica.
pub trait Machine: Send + 'static {
    /// What the host does or answers because of an applied entry.
    type Effects;

    /// The last applied index and its term.
    fn applied(&self) -> (Index, Term);

    /// Applies the committed entry at `index`, which is always `applied().0 + 1`. An empty `entry` (a new leader's
    /// first) only advances the applied index.
    fn apply(&mut self, index: Index, term: Term, entry: Bytes) -> Self::Effects;
}
