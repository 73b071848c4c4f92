//! Backups over HTTP, both ends: a node streams one, a client takes it into a file.
//!
//! **The node's end.** A backup is read piece by piece on threads for blocking work, at most [`AHEAD`] pieces ahead of the
//! client, so it takes a few MiB of memory whatever its size. While it runs, the disk keeps files that retention would
//! have freed, so a client may not take its time without bound: it must take a piece within [`STALLED`], and on average
//! [`RATE_MIN`] bytes a second after the first [`GRACE`]. A backup that is cut ends with an error of the connection and
//! without its trailer; nobody can take it for a whole one.
//!
//! **The client's end** verifies every byte as it comes, writes under a temporary name beside the file, syncs, and renames
//! when all of it is there and good.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress_core::{Code, Consistency, Error};
use buttress_functions::resource::{FUNCTIONS_PREFIX, MODELS_PREFIX};
use buttress_node::{
    backup::{Verified, Verifier},
    runtime::Handle,
};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use crate::{
    client::Client,
    http::{Body, streamed},
};

/// Backups that one node streams at the same time: each keeps a checkpoint on the disk.
const RUNNING_MAX: usize = 2;
/// Pieces of about 1 MiB that wait for the client.
const AHEAD: usize = 2;
/// A client that takes nothing for this long is gone.
const STALLED: Duration = Duration::from_secs(30);
/// A client need not keep up before this is over, and then with so many bytes a second on average. 100 GiB may take four
/// and a half days.
const GRACE: Duration = Duration::from_secs(120);
const RATE_MIN: u64 = 256 * 1024;

/// Keys whose values a person wants to see of a backup.
pub const PREFIXES: &[&str] = &[FUNCTIONS_PREFIX, MODELS_PREFIX];

/// Streams this node's backups.
pub struct Backups {
    node: Arc<Handle>,
    room: Arc<Semaphore>,
}

impl Backups {
    pub fn new(node: Arc<Handle>) -> Self {
        Self { node, room: Arc::new(Semaphore::new(RUNNING_MAX)) }
    }

    /// Answers `GET /v1/backup[?consistency=linearizable|serializable]`.
    ///
    /// # Errors
    /// `BAD_REQUEST`, `OVERLOADED`, and as [`Handle::backup`].
    pub async fn answer(&self, query: Option<&str>) -> Result<Response<Body>, Error> {
        let consistency = match query.unwrap_or_default() {
            "" | "consistency=linearizable" => Consistency::Linearizable,
            "consistency=serializable" => Consistency::Serializable,
            other => {
                return Err(Error::new(Code::BAD_REQUEST, format!("\"{other}\" is not known here"))
                    .hint("consistency=linearizable or consistency=serializable"));
            }
        };
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            let message = format!("{RUNNING_MAX} backups of this node run already");
            return Err(Error::new(Code::OVERLOADED, message).retryable().hint("wait for them, or ask another node"));
        };
        let stream = self.node.backup(consistency).await?;
        let (index, cluster_id) = (stream.header().index.0, stream.header().cluster_id.clone());
        tracing::info!(index, event_type = "backup_begun", "a backup begins");
        let (out, pieces) = mpsc::channel(AHEAD);
        let cut = Arc::new(AtomicBool::new(false));
        tokio::spawn(pump(stream, index, out, cut.clone(), permit));
        let body = futures::stream::unfold((pieces, cut), |(mut pieces, cut)| async move {
            match pieces.recv().await {
                Some(piece) => Some((Ok(piece), (pieces, cut))),
                None if cut.swap(false, SeqCst) => {
                    let error = Error::new(Code::OVERLOADED, "the backup was taken too slowly");
                    Some((Err(error), (pieces, cut)))
                }
                None => None,
            }
        });
        let mut response = Response::new(streamed(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let plain: String = cluster_id.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"{plain}-{index}.btb\"")) {
            headers.insert(header::CONTENT_DISPOSITION, name);
        }
        Ok(response)
    }
}

/// Moves pieces from the disk to the connection until one of both has no more, or the client is too slow.
async fn pump<S: Iterator<Item = Bytes> + Send + 'static>(
    mut stream: S,
    index: u64,
    out: mpsc::Sender<Bytes>,
    cut: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
) {
    let started = Instant::now();
    let mut sent = 0u64;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let piece = stream.next();
            (stream, piece)
        });
        let piece;
        match read.await {
            Ok((back, got)) => (stream, piece) = (back, got),
            Err(error) => {
                tracing::error!(%error, index, "reading a backup panicked");
                cut.store(true, SeqCst);
                return;
            }
        }
        let Some(piece) = piece else {
            tracing::info!(
                index,
                bytes = sent,
                elapsed_ms = started.elapsed().as_millis() as u64,
                event_type = "backup_sent",
                "a backup is sent"
            );
            return;
        };
        let bytes = piece.len() as u64;
        let due = started + GRACE + Duration::from_secs(sent / RATE_MIN);
        match tokio::time::timeout_at(due.min(Instant::now() + STALLED), out.send(piece)).await {
            Ok(Ok(())) => sent += bytes,
            Ok(Err(_)) => {
                tracing::warn!(index, bytes = sent, "the client of a backup has gone");
                return;
            }
            Err(_) => {
                tracing::warn!(index, bytes = sent, "a backup is cut off because its client is too slow");
                cut.store(true, SeqCst);
                return;
            }
        }
    }
}

/// Removes what is not finished when it is dropped.
struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let code = if full { Code::DISK_FULL } else { Code::DISK };
        Error::new(code, format!("cannot write \"{}\": {error}", path.display())).hint("name another file with --to")
    }
}

/// Takes a backup of the node behind `client` into `path`, which must not exist unless `force` is set.
///
/// # Errors
/// What the node says, `BACKUP_DAMAGED` where what came is not whole, `DISK`, `DISK_FULL`.
pub async fn take(
    client: &Client,
    path: &Path,
    consistency: Consistency,
    force: bool,
    mut progress: impl FnMut(u64),
) -> Result<Verified, Error> {
    if path.exists() && !force {
        return Err(Error::new(Code::DISK, format!("\"{}\" exists", path.display()))
            .hint("name another file with --to, or replace it with --force"));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = path.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    let file = File::create(&partial).map_err(failed(path))?;
    let mut partial = Partial { path: partial, file, kept: false };
    let query = match consistency {
        Consistency::Linearizable => "linearizable",
        Consistency::Serializable => "serializable",
    };
    let mut verifier = Verifier::new(PREFIXES);
    let mut came = 0;
    client
        .download(&format!("/v1/backup?consistency={query}"), |piece| {
            verifier.push(&piece)?;
            partial.file.write_all(&piece).map_err(failed(path))?;
            came += piece.len() as u64;
            progress(came);
            Ok(())
        })
        .await?;
    let verified = verifier.finish()?;
    partial.file.sync_all().map_err(failed(path))?;
    std::fs::rename(&partial.path, path).map_err(failed(path))?;
    partial.kept = true;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed(path))?;
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of 1 MiB that tell when they are let go of.
    struct Pieces {
        left: usize,
        _held: Arc<()>,
    }

    impl Iterator for Pieces {
        type Item = Bytes;

        fn next(&mut self) -> Option<Bytes> {
            self.left = self.left.checked_sub(1)?;
            Some(Bytes::from(vec![7; 1024 * 1024]))
        }
    }

    /// How many pieces a client gets that pauses before each, and whether it was cut off. Time is virtual.
    async fn taken(pieces: usize, pause: impl Fn(usize) -> Duration) -> (usize, bool) {
        let (held, cut) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let (out, mut came) = mpsc::channel(AHEAD);
        let room = Arc::new(Semaphore::new(RUNNING_MAX));
        let permit = room.clone().try_acquire_owned().unwrap();
        let stream = Pieces { left: pieces, _held: held.clone() };
        let pumping = tokio::spawn(pump(stream, 1, out, cut.clone(), permit));
        let mut got = 0;
        loop {
            tokio::time::sleep(pause(got)).await;
            if came.recv().await.is_none() {
                break;
            }
            got += 1;
        }
        pumping.await.unwrap();
        assert_eq!((Arc::strong_count(&held), room.available_permits()), (1, RUNNING_MAX), "something is held");
        (got, cut.load(SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_time_is_cut_off_and_lets_go_of_everything() {
        assert_eq!(taken(300, |_| Duration::ZERO).await, (300, false));
        // 1 MiB every 3 s is above 256 KiB/s; every 5 s is not, once the grace is over.
        assert_eq!(taken(300, |_| Duration::from_secs(3)).await, (300, false));
        let (got, cut) = taken(300, |_| Duration::from_secs(5)).await;
        assert!(cut && (100..150).contains(&got), "{got}");
        // One that stops is waited for no longer than half a minute; what lay ready still comes.
        let stops = |got| if got == 4 { Duration::from_secs(3600) } else { Duration::ZERO };
        assert_eq!(taken(300, stops).await, (4 + AHEAD, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_gone_ends_it() {
        let (held, cut) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let (out, came) = mpsc::channel(AHEAD);
        drop(came);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        pump(Pieces { left: 9, _held: held.clone() }, 1, out, cut.clone(), permit).await;
        assert_eq!((Arc::strong_count(&held), cut.load(SeqCst)), (1, false));
    }
}
