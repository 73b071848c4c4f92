//! Topics that chose to lie in an engine of the user's, on a node with a log of its own.

use buttress_core::{BoxFuture, Code, Error, entry::TopicSettings, ledger::TopicView};

/// Makes and lists such topics. Records go in and out by the engine's own clients; functions run on them here.
pub trait Elsewhere: Send + Sync + 'static {
    /// What `"engine"` is to say.
    fn engine(&self) -> &'static str;

    /// Makes a topic, or takes over one that is there.
    ///
    /// # Errors
    /// What the engine answers.
    fn create<'a>(
        &'a self,
        name: &'a str,
        partitions: u32,
        settings: &'a TopicSettings,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Deletes a topic; `false` where it lies in the node's own log, or nowhere.
    ///
    /// # Errors
    /// What the engine answers.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<bool, Error>>;

    fn topic(&self, name: &str) -> Option<TopicView>;

    fn topics(&self) -> Vec<TopicView>;
}

/// Why no record is taken for such a topic.
pub(super) fn not_here(topic: &str, engine: &str) -> Error {
    Error::new(Code::UNSUPPORTED, format!("topic {topic:?} lies in {engine}, which takes its records itself"))
        .hint("produce to it and read it with the engine's own clients; functions on it run here")
}
