//! What is wrong with a setting, said so that it can be found and mended.

use std::{fmt, time::Duration};

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// As it is written in a route: `breaker.failure_rate`.
    pub field: String,
    pub found: String,
    /// What would be right.
    pub must: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, and must be {}", self.field, self.found, self.must)
    }
}

impl std::error::Error for Invalid {}

/// Collects everything that is wrong, so that a user mends it in one go.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    wrong: Vec<Invalid>,
}

impl Checks {
    pub fn must(&mut self, holds: bool, field: &str, found: impl fmt::Debug, must: &'static str) {
        if !holds {
            self.wrong.push(Invalid { field: field.to_owned(), found: format!("{found:?}"), must });
        }
    }

    /// A share that must lie above 0 and at most at 1.
    pub fn rate(&mut self, field: &str, rate: f32) {
        self.must(rate > 0.0 && rate <= 1.0, field, rate, "above 0 and at most 1");
    }

    /// A span of time that something is done in.
    pub fn span(&mut self, field: &str, span: Duration) {
        self.must(!span.is_zero() && span <= DAY, field, span, "above 0 and at most a day");
    }

    /// A window of time, which is counted in tenths.
    pub fn window(&mut self, field: &str, window: Duration) {
        let fits = (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&window);
        self.must(fits, field, window, "from 100 ms to an hour");
    }

    pub fn all(self) -> Vec<Invalid> {
        self.wrong
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What every settings struct offers: everything that is wrong with it, with the names of its fields.
pub trait Validate {
    /// Everything that is wrong; nothing where it can be used. `prefix` is where the settings stand (`breaker`).
    fn wrong(&self, prefix: &str) -> Vec<Invalid>;

    /// # Errors
    /// Everything that is wrong.
    fn validate(&self, prefix: &str) -> Result<(), Vec<Invalid>> {
        let wrong = self.wrong(prefix);
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Nothing is wrong with what is absent.
impl<T: Validate> Validate for Option<T> {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        self.as_ref().map(|settings| settings.wrong(prefix)).unwrap_or_default()
    }
}
