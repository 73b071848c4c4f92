//! Prints byte strings in transcripts the way people read them.

use std::fmt;

/// Shows bytes as text where they are printable ASCII, otherwise as escapes, and cuts after 64.
pub(crate) struct Pretty<'a>(pub &'a [u8]);

impl fmt::Debug for Pretty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if self.0.len() > shown.len() {
            write!(f, "…({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}
