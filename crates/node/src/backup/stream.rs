//! A backup as it leaves a node.

use buttress_core::{Error, NodeId, TimeMs, ledger::Member};
use bytes::Bytes;

use super::format::{Encoder, Header};
use crate::store::Export;

/// Gives a backup's bytes piece by piece, each of about a chunk; reading blocks on the disk. While it lives, the
/// checkpoint that it reads stays on the disk.
pub struct BackupStream {
    header: Header,
    first: Option<Bytes>,
    rest: Option<(Encoder, Export)>,
}

impl BackupStream {
    pub(crate) fn new(
        export: Export,
        node: NodeId,
        taken_at: TimeMs,
        linearizable: bool,
        members: Vec<Member>,
        voters: Vec<NodeId>,
    ) -> Self {
        let of = export.header();
        let header = Header {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster_id: of.cluster_id.clone(),
            node,
            index: of.index,
            term: of.term,
            taken_at,
            linearizable,
            members,
            voters,
        };
        let (encoder, first) = Encoder::begin(&header);
        Self { header, first: Some(first), rest: Some((encoder, export)) }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Ends the stream with the reason why it is not complete, if it is not over yet.
    pub fn abort(&mut self, error: &Error) -> Option<Bytes> {
        self.rest.take().map(|(encoder, _)| encoder.failed(error))
    }
}

impl Iterator for BackupStream {
    type Item = Bytes;

    /// The next piece. If the state cannot be read, the last one says so, and whoever decodes it gets the error.
    fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let (encoder, export) = self.rest.as_mut()?;
        match export.next() {
            Some(Ok(chunk)) => Some(encoder.chunk(&chunk)),
            Some(Err(error)) => {
                tracing::error!(code = error.code.0, error = %error.message, "a backup could not be completed");
                self.abort(&error)
            }
            None => self.rest.take().map(|(encoder, _)| encoder.end()),
        }
    }
}
