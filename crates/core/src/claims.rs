//! Streams whose commits hold records only: who may run a partition is claimed beforehand.
//!
//! On the embedded log the entry of a batch is guarded by keys: the function and the models that judged it. A transaction of
//! the user's Kafka cannot compare keys, so there the order is turned round. Who runs a partition *claims* it, which fences
//! whoever ran it before, and reads functions and models afterwards, so what it judges with is at least as new as its claim.
//! Who changes a function or a model *fences* the partitions that may still use the old one. After that, whatever is
//! committed was claimed after the change, and is judged by it.

use bytes::Bytes;

use crate::{BoxFuture, Entry, Error, LogId, Offset};

/// A cursor that was claimed, and the partition as it stood afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// `None` where the cursor was never set.
    pub position: Option<Offset>,
    pub start: Offset,
    pub end: Offset,
}

/// The right to run a partition for as long as nobody else has it. Dropping it gives it to whoever waits.
pub trait Seat: Send {
    /// Comes back when somebody else may have it, or is to have it. Dropping the future loses nothing.
    fn lost(&mut self) -> BoxFuture<'_, ()>;
}

/// Who runs which partition of a stream.
pub trait Claims: Send + Sync + 'static {
    /// What the engine is called in settings, "kafka".
    fn engine(&self) -> &'static str;

    /// Whether one commit can hold an entry of this kind.
    ///
    /// # Errors
    /// `UNSUPPORTED`, with what does not fit and the way out.
    fn check(&self, entry: &Entry) -> Result<(), Error>;

    /// Makes a topic known that may exist already; whether it does.
    fn follow<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, Error>>;

    /// Waits until this host is to run the partition. It keeps hosts from fencing each other again and again, nothing else.
    fn seat<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
        partition: i32,
    ) -> BoxFuture<'a, Result<Box<dyn Seat>, Error>>;

    /// Fences whoever has claimed the cursor, ends what they left open, and reads where it stands.
    fn claim<'a>(&'a self, group: &'a str, log: LogId, state: bool) -> BoxFuture<'a, Result<Claimed, Error>>;

    /// Fences whoever has claimed the cursor: nothing that was claimed before this is committed after it.
    fn fence<'a>(&'a self, group: &'a str, log: LogId) -> BoxFuture<'a, Result<(), Error>>;

    /// Rows of the state of a claimed cursor.
    fn rows<'a>(
        &'a self,
        group: &'a str,
        log: LogId,
        space: &'a str,
        keys: Vec<Bytes>,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, Error>>;

    /// Which host runs a partition, as far as is known here.
    fn runs_on(&self, group: &str, topic: &str, partition: i32) -> Option<String>;
}
