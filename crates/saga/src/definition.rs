//! What a saga consists of, as data. A definition is known by its hash and never changes: a saga that runs finishes on the
//! definition that it began with, so nothing has to be replayed against newer code.

use buttress_core::{Code, Error};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Each step adds a few records to a journal that is written as one value.
pub const STEPS_MAX: usize = 32;
/// With pauses of ten seconds, more than a quarter of an hour.
pub const ATTEMPTS_MAX: u32 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    pub name: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: String,
    /// Who does it, by the name that the driver knows.
    pub service: String,
    /// What the service is asked.
    pub act: String,
    /// What it is asked to take that back; a step without it is not undone.
    pub undo: Option<String>,
    /// Calls before the step is given up and what was begun is undone.
    pub attempts: u32,
    /// How long one call may take.
    pub timeout_ms: u64,
    /// How long all of them may take, pauses included.
    pub deadline_ms: u64,
    /// Calls before undoing it is given up, and the saga is stuck.
    pub undo_attempts: u32,
    /// The pause after the first call that failed; it doubles with each, up to `pause_max_ms`.
    pub pause_first_ms: u64,
    pub pause_max_ms: u64,
}

impl Definition {
    /// # Errors
    /// `CONFIG`: which step is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String, hint: &str| Err(Error::new(Code::CONFIG, what).hint(hint.to_owned()));
        if !(1..=STEPS_MAX).contains(&self.steps.len()) {
            return wrong(format!("the saga \"{}\" has {} steps", self.name, self.steps.len()), "give 1 to 32");
        }
        for (at, step) in self.steps.iter().enumerate() {
            let name = &step.name;
            if name.is_empty() || name.contains('/') {
                return wrong(format!("\"{name}\" is no name of a step"), "it is part of a key: no slash, not empty");
            }
            if self.steps[..at].iter().any(|other| other.name == *name) {
                return wrong(format!("the step \"{name}\" is there twice"), "keys are made of the names of steps");
            }
            let attempts = [step.attempts, step.undo_attempts];
            if attempts.iter().any(|attempts| !(1..=ATTEMPTS_MAX).contains(attempts)) {
                return wrong(format!("the step \"{name}\" has {attempts:?} attempts"), "give 1 to 100 to each");
            }
            if step.timeout_ms == 0 || step.deadline_ms < step.timeout_ms {
                let (timeout, deadline) = (step.timeout_ms, step.deadline_ms);
                let what = format!("the step \"{name}\" has {timeout} ms for a call and {deadline} ms for all");
                return wrong(what, "give the calls at least as long as one of them");
            }
            if step.pause_max_ms < step.pause_first_ms {
                return wrong(
                    format!("the step \"{name}\" has pauses that shrink"),
                    "give pause_max_ms the larger one",
                );
            }
        }
        Ok(())
    }

    /// The definition as it is stored, and hashed.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("a definition is plain data")
    }

    /// # Errors
    /// `CONFIG` where the text is no definition.
    pub fn decode(text: &[u8]) -> Result<Self, Error> {
        let definition: Self = serde_json::from_slice(text)
            .map_err(|error| Error::new(Code::CONFIG, format!("this is no definition of a saga: {error}")))?;
        definition.check()?;
        Ok(definition)
    }

    /// By what the definition is known: `sha256:…`.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.encode().as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    pub(crate) fn position(&self, step: &str) -> Option<usize> {
        self.steps.iter().position(|known| known.name == step)
    }
}

impl Step {
    /// The pause before attempt `attempt + 1`, at least half of what it may be; `dice` is a random number.
    pub(crate) fn pause_ms(&self, attempt: u32, dice: u64) -> u64 {
        let doubled = self.pause_first_ms.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let most = doubled.min(self.pause_max_ms);
        most / 2 + dice % (most / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        let step = |name: &str| Step {
            name: name.into(),
            service: "s".into(),
            act: "/do".into(),
            undo: Some("/undo".into()),
            attempts: 3,
            timeout_ms: 1_000,
            deadline_ms: 30_000,
            undo_attempts: 10,
            pause_first_ms: 500,
            pause_max_ms: 10_000,
        };
        Definition { name: "test".into(), steps: vec![step("a"), step("b")] }
    }

    #[test]
    fn a_definition_is_known_by_its_hash_and_another_one_by_another() {
        let one = definition();
        assert_eq!(Definition::decode(one.encode().as_bytes()).unwrap().hash(), one.hash());
        let mut two = definition();
        two.steps[1].attempts = 4;
        assert_ne!(one.hash(), two.hash());
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let refused = |change: fn(&mut Definition)| {
            let mut definition = definition();
            change(&mut definition);
            definition.check().unwrap_err().message
        };
        assert!(definition().check().is_ok());
        assert!(refused(|d| d.steps.clear()).contains("0 steps"));
        assert!(refused(|d| d.steps[1].name = "a".into()).contains("twice"));
        assert!(refused(|d| d.steps[0].name = "a/b".into()).contains("no name"));
        assert!(refused(|d| d.steps[0].attempts = 0).contains("attempts"));
        assert!(refused(|d| d.steps[0].deadline_ms = 1).contains("ms for all"));
        assert!(refused(|d| d.steps[0].pause_max_ms = 1).contains("shrink"));
        assert!(Definition::decode(b"{\"name\":\"x\",\"steps\":[],\"more\":1}").is_err());
    }

    #[test]
    fn pauses_double_up_to_their_limit_and_are_at_least_half() {
        let step = &definition().steps[0];
        let range = |attempt| (step.pause_ms(attempt, 0), step.pause_ms(attempt, u64::MAX - u64::MAX % 251));
        assert_eq!(range(1), (250, range(1).1));
        for (attempt, most) in [(1, 500), (2, 1_000), (3, 2_000), (5, 8_000), (6, 10_000), (99, 10_000)] {
            for dice in [0, 1, 249, 250, 4_999, 5_000, u64::MAX] {
                assert!((most / 2..=most).contains(&step.pause_ms(attempt, dice)), "{attempt} {dice}");
            }
        }
    }
}
