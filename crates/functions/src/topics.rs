//! Topics that this plane needs are created where they are missing.

use buttress_core::{
    Code, Consistency, Entry, Error, KeyRange, Ledger, Refusal, Stream, SubmitError, TopicChange, entry::TopicSettings,
    ledger::TopicView,
};
use sha2::{Digest, Sha256};

/// Returns the topic, after creating it where it is missing.
///
/// # Errors
/// What the ledger answers.
pub async fn ensure(
    ledger: &dyn Ledger,
    stream: &dyn Stream,
    name: &str,
    partitions: u32,
    settings: TopicSettings,
) -> Result<TopicView, Error> {
    if let Some(view) = stream.topic(name) {
        return Ok(view);
    }
    // A linearizable read both waits until this node has applied what was acknowledged elsewhere and gives a revision.
    let barrier = ledger.read(KeyRange::key(crate::resource::FUNCTIONS_PREFIX), 1, Consistency::Linearizable).await?;
    if let Some(view) = stream.topic(name) {
        return Ok(view);
    }
    let create =
        TopicChange::Create { name: name.to_owned(), id: uuid(name, barrier.revision.0), partitions, settings };
    match ledger.submit(Entry { topics: vec![create], ..Entry::default() }).await {
        Ok(_) | Err(SubmitError::Refused(Refusal::Part { code: Code::TOPIC_EXISTS, .. })) => {}
        Err(error) => return Err(error.into_error()),
    }
    // Submitting waits until the entry is applied, but a refusal may come from a leader that is ahead of this node.
    ledger.read(KeyRange::key(crate::resource::FUNCTIONS_PREFIX), 1, Consistency::Linearizable).await?;
    stream.topic(name).ok_or_else(|| {
        Error::new(Code::TOPIC_UNKNOWN, format!("topic '{name}' was deleted while it was created")).retryable()
    })
}

/// A topic's id must differ from that of a deleted topic of the same name: the revision sees to that, since a name is
/// only free again after commits. Deriving it instead of drawing it keeps runs reproducible.
fn uuid(name: &str, revision: u64) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"buttress topic\0");
    hash.update(name.as_bytes());
    hash.update(revision.to_be_bytes());
    let digest = hash.finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    // RFC 9562 version 8 (custom) and variant.
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}
