//! Decision records on disk, so that a request can be explained after a restart, a crash or a kill -9.
//!
//! A ring of files in a directory of its own: `records-N.jsonl`, a record a line, `N` rising. A request never waits for the disk:
//! a record goes over a bounded queue to one writing thread, and is left out and counted where that does not keep up.
//!
//! | what happens | what we do |
//! |---|---|
//! | a file is full ([`To::bytes`] divided by [`FILES`]) | the next one is begun, and the oldest ones go |
//! | the process ends in the middle of a line | the next start ends that line; whoever reads leaves out what is no record |
//! | the disk is full, or fails | told once, and once more when it works again; tried again each second; records are counted as lost |
//! | failures come faster than [`RATE`] a second | the rest is counted as lost: a storm must neither take the disk nor push out everything before it |
//! | another process has the directory | refused at the start (BT0205) |
//!
//! Nothing is synced. A process that is killed loses what is in the queue, a power cut what the kernel had not written yet. Who may
//! read the files is the user of the process alone, and they hold no credentials ([`crate::noted`]).

use std::{
    collections::VecDeque,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use serde_json::Value;

use crate::record::Record;

/// Files of the ring; the oldest goes as a whole, so at least seven eighths of the bytes are there.
const FILES: u64 = 8;
pub const BYTES_MIN: u64 = 1024 * 1024;
/// Records in the queue, of about 1 KiB.
const QUEUE: usize = 1024;
/// Records that are written in one second; 1.5 MB.
const RATE: u32 = 1000;
/// How long a disk that failed is left alone.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long a stopping proxy waits for the writer.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Of one line; a record has at most some 100 attempts of 1 KiB.
const LINE_MAX: usize = 1024 * 1024;

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    pub dir: PathBuf,
    /// Of all files together.
    pub bytes: u64,
}

pub struct Archive {
    dir: PathBuf,
    queue: SyncSender<Message>,
    figures: Arc<Figures>,
    /// Files with a lower number were there at the start, and the bytes of that one which were.
    began: (u64, u64),
    /// Held until the process ends.
    _lock: File,
}

/// For metrics.
#[derive(Debug, Default)]
pub struct Figures {
    pub written: AtomicU64,
    pub lost: AtomicU64,
}

enum Message {
    Keep(Arc<Record>),
    Close(std::sync::mpsc::Sender<()>),
}

impl Archive {
    /// Opens the directory, or makes it, and starts the writer.
    ///
    /// # Errors
    /// `CONFIG` where it cannot be written to, `DIR_LOCKED` where another process has it, `LIMITS` where there is no thread.
    pub fn open(to: &To) -> Result<Self, Error> {
        let cannot = |error: io::Error| {
            Error::new(Code::CONFIG, format!("records cannot be kept in \"{}\": {error}", to.dir.display()))
                .hint("name a directory for --records that can be written to")
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&to.dir).map_err(cannot)?;
        let lock = private().create(true).open(to.dir.join("lock")).map_err(cannot)?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                let says = format!("another process keeps its records in \"{}\"", to.dir.display());
                Error::new(Code::DIR_LOCKED, says).hint("give each proxy a directory of its own with --records")
            }
            std::fs::TryLockError::Error(error) => cannot(error),
        })?;
        let mut ring = Ring::open(&to.dir, to.bytes.max(BYTES_MIN)).map_err(cannot)?;
        // A disk that is full now may not be later, so that is no reason not to start.
        let began = (ring.number(), ring.at_end());
        let (figures, (queue, messages)) = (Arc::<Figures>::default(), sync_channel(QUEUE));
        let told = figures.clone();
        std::thread::Builder::new()
            .name("records".into())
            .spawn(move || write(&mut ring, &messages, &told))
            .map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))?;
        Ok(Self { dir: to.dir.clone(), queue, figures, began, _lock: lock })
    }

    /// Has it written, soon. Never waits.
    pub fn keep(&self, record: &Arc<Record>) {
        if self.queue.try_send(Message::Keep(record.clone())).is_err() {
            self.figures.lost.fetch_add(1, Relaxed);
        }
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Has everything written that was handed over; waits for that, a little.
    pub fn close(&self) {
        let (told, heard) = channel();
        let end = Instant::now() + CLOSE_MAX;
        let mut message = Message::Close(told);
        while let Err(error) = self.queue.try_send(message) {
            match error {
                std::sync::mpsc::TrySendError::Full(back) if Instant::now() < end => message = back,
                _ => return,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = heard.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    /// The newest record of this id. Reads until it is found, at most all files.
    pub fn find(&self, id: &str) -> Option<Value> {
        // As it stands in a line, so that few of them have to be parsed.
        let wanted = format!("\"id\":{}", Value::from(id));
        numbers(&self.dir).into_iter().rev().find_map(|number| {
            let text = read(&path(&self.dir, number), u64::MAX)?;
            let mut lines = text.split(|byte| *byte == b'\n').rev();
            lines.find_map(|line| {
                memchr::memmem::find(line, wanted.as_bytes())?;
                record(line).filter(|record| record["id"] == id)
            })
        })
    }

    /// The newest records of before this start, newest first, as many as `take` wants.
    pub fn before(&self, mut take: impl FnMut(Value, &str) -> bool) {
        for number in numbers(&self.dir).into_iter().rev().filter(|number| *number <= self.began.0) {
            let bytes = if number == self.began.0 { self.began.1 } else { u64::MAX };
            let Some(text) = read(&path(&self.dir, number), bytes) else { continue };
            for line in text.split(|byte| *byte == b'\n').rev() {
                if let Some(record) = record(line)
                    && let Ok(line) = std::str::from_utf8(line)
                    && !take(record, line)
                {
                    return;
                }
            }
        }
    }
}

/// A line that is a record; torn ones, and what else may lie there, are none.
pub fn record(line: &[u8]) -> Option<Value> {
    let record: Value = serde_json::from_slice(line.get(..line.len().min(LINE_MAX))?).ok()?;
    let is = record["id"].is_string() && record["at_ms"].is_u64() && record["outcome"]["code"].is_string();
    (is && record["attempts"].is_array()).then_some(record)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("records-{number:08}.jsonl"))
}

/// The files of a ring, the oldest first.
fn numbers(dir: &Path) -> Vec<u64> {
    let of = |name: &str| name.strip_prefix("records-")?.strip_suffix(".jsonl")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<u64> = entries.filter_map(|entry| of(entry.file_name().to_str()?)).collect();
    all.sort_unstable();
    all
}

/// A file that has just gone has nothing in it.
fn read(path: &Path, bytes: u64) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(bytes).read_to_end(&mut text).ok()?;
    Some(text)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options
}

/// The files, by whoever writes them.
struct Ring {
    dir: PathBuf,
    bytes_max: u64,
    file: File,
    number: u64,
    bytes: u64,
    /// The last line has no end.
    torn: bool,
}

impl Ring {
    fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let number = numbers(dir).last().copied().unwrap_or(1);
        let mut file = private().create(true).open(path(dir, number))?;
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self { dir: dir.to_owned(), bytes_max, file, number, bytes, torn: last != [b'\n'] })
    }

    const fn number(&self) -> u64 {
        self.number
    }

    const fn at_end(&self) -> u64 {
        self.bytes
    }

    /// Writes whole lines. Where it fails, what is there of them ends before the next ones.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.bytes + lines.len() as u64 > self.bytes_max / FILES && self.bytes > 0 {
            self.turn()?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            (self.torn, self.bytes) = (false, self.bytes + 1);
        }
        let mut left = lines;
        while !left.is_empty() {
            match self.file.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => {
                    self.bytes += wrote as u64;
                    self.torn = left[wrote - 1] != b'\n';
                    left = &left[wrote..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Begins the next file. The oldest ones go first: where the disk is full, theirs is the room.
    fn turn(&mut self) -> io::Result<()> {
        let all = numbers(&self.dir);
        let mut sizes: VecDeque<(u64, u64)> = all
            .iter()
            .map(|number| (*number, std::fs::metadata(path(&self.dir, *number)).map_or(0, |about| about.len())))
            .collect();
        let keep = self.bytes_max - self.bytes_max / FILES;
        while sizes.iter().map(|(_, bytes)| bytes).sum::<u64>() > keep
            && let Some((oldest, _)) = sizes.pop_front()
        {
            let _ = std::fs::remove_file(path(&self.dir, oldest));
        }
        let number = self.number + 1;
        self.file = private().create(true).open(path(&self.dir, number))?;
        (self.number, self.bytes, self.torn) = (number, 0, false);
        Ok(())
    }
}

/// The thread that writes, until nobody has anything to hand over any more.
fn write(ring: &mut Ring, messages: &Receiver<Message>, figures: &Figures) {
    let (mut failed, mut second, mut in_second) = (None::<Instant>, Instant::now(), 0u32);
    let (mut lines, mut count, mut closing) = (Vec::new(), 0u64, None);
    loop {
        let message = if lines.is_empty() {
            messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            messages.recv_timeout(Duration::ZERO)
        };
        match message {
            Ok(Message::Keep(record)) => {
                if second.elapsed() >= Duration::from_secs(1) {
                    (second, in_second) = (Instant::now(), 0);
                }
                in_second += 1;
                if in_second > RATE || failed.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
                    figures.lost.fetch_add(1, Relaxed);
                    continue;
                }
                lines.extend_from_slice(record.json().to_string().as_bytes());
                lines.push(b'\n');
                count += 1;
                if lines.len() < LINE_MAX {
                    continue;
                }
            }
            Ok(Message::Close(told)) => closing = Some(told),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if lines.is_empty() => return,
            Err(RecvTimeoutError::Disconnected) => {}
        }
        if !lines.is_empty() {
            match ring.write(&lines) {
                Ok(()) => {
                    figures.written.fetch_add(count, Relaxed);
                    if failed.take().is_some() {
                        tracing::warn!(dir = %ring.dir.display(), "records are kept on disk again");
                    }
                }
                Err(error) => {
                    figures.lost.fetch_add(count, Relaxed);
                    if failed.is_none() {
                        tracing::error!(%error, dir = %ring.dir.display(), "records cannot be kept on disk; those in memory stay");
                    }
                    failed = Some(Instant::now());
                }
            }
            lines.clear();
            count = 0;
        }
        if let Some(told) = closing.take() {
            let _ = told.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::example;

    fn archive(dir: &Path) -> Archive {
        Archive::open(&To { dir: dir.to_owned(), bytes: BYTES_MIN }).unwrap()
    }

    fn keep(archive: &Archive, ids: impl Iterator<Item = String>) {
        for id in ids {
            archive.keep(&Arc::new(example(&id)));
        }
        archive.close();
    }

    fn before(archive: &Archive) -> Vec<String> {
        let mut ids = Vec::new();
        archive.before(|record, _| {
            ids.push(record["id"].as_str().unwrap().to_owned());
            true
        });
        ids
    }

    #[test]
    fn records_are_found_after_a_restart_and_the_newest_of_an_id_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = archive(dir.path());
        keep(&first, ["a", "b"].map(str::to_owned).into_iter());
        first.keep(&Arc::new(Record { status: 200, ..example("a") }));
        first.close();
        assert!(before(&first).is_empty());
        drop(first);
        let second = archive(dir.path());
        assert_eq!(before(&second), ["a", "b", "a"]);
        assert_eq!(second.find("a").unwrap()["status"], 200);
        assert!(second.find("c").is_none());
        keep(&second, ["c".to_owned()].into_iter());
        assert_eq!((before(&second).len(), second.find("c").is_some()), (3, true));
    }

    #[test]
    fn a_torn_line_and_foreign_bytes_are_left_out_and_what_follows_is_read() {
        let dir = tempfile::tempdir().unwrap();
        keep(&archive(dir.path()), ["a", "b"].map(str::to_owned).into_iter());
        let file = path(dir.path(), 1);
        let whole = std::fs::read(&file).unwrap();
        // The last line ends at every one of its bytes.
        let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for end in (last + 1..whole.len() - 1).step_by(7) {
            let torn = tempfile::tempdir().unwrap();
            std::fs::write(path(torn.path(), 1), [b"\xff\x00junk\n{\"id\":7}\n", &whole[..end]].concat()).unwrap();
            let again = archive(torn.path());
            keep(&again, ["c".to_owned()].into_iter());
            assert_eq!(before(&again), ["a"], "cut at {end}");
            assert!(again.find("c").is_some() && again.find("b").is_none(), "cut at {end}");
        }
    }

    #[test]
    fn the_ring_keeps_to_its_size_and_the_newest_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(dir.path(), BYTES_MIN).unwrap();
        let line = |number: usize| format!("{}\n", example(&format!("r-{number}")).json());
        let many = 3 * BYTES_MIN as usize / line(0).len();
        for number in 0..many {
            ring.write(line(number).as_bytes()).unwrap();
        }
        let bytes: u64 = numbers(dir.path()).iter().map(|n| path(dir.path(), *n).metadata().unwrap().len()).sum();
        assert!(bytes <= BYTES_MIN && bytes > BYTES_MIN / 2, "{bytes}");
        drop(ring);
        let archive = archive(dir.path());
        assert!(archive.find(&format!("r-{}", many - 1)).is_some() && archive.find("r-0").is_none());
    }

    #[test]
    fn a_directory_has_one_proxy_and_its_files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("records");
        let first = archive(&below);
        keep(&first, ["a".to_owned()].into_iter());
        let error = Archive::open(&To { dir: below.clone(), bytes: BYTES_MIN }).err().unwrap();
        assert_eq!(error.code, Code::DIR_LOCKED);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&below), mode(&path(&below, 1))), (0o700, 0o600));
        drop(first);
        let mut again = Archive::open(&To { dir: below.clone(), bytes: BYTES_MIN });
        // The writer's thread may still hold nothing of it; only the lock counts.
        assert!(again.as_mut().is_ok());
    }

    #[test]
    fn a_disk_that_is_full_loses_records_and_nothing_else() {
        let figures = Figures::default();
        let full = || OpenOptions::new().append(true).open("/dev/full").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(dir.path(), BYTES_MIN).unwrap();
        let good = std::mem::replace(&mut ring.file, full());
        let (queue, messages) = sync_channel(QUEUE);
        queue.send(Message::Keep(Arc::new(example("a")))).unwrap();
        drop(queue);
        write(&mut ring, &messages, &figures);
        assert_eq!((figures.written.load(Relaxed), figures.lost.load(Relaxed)), (0, 1));
        // It works again.
        ring.file = good;
        let (queue, messages) = sync_channel(QUEUE);
        queue.send(Message::Keep(Arc::new(example("b")))).unwrap();
        drop(queue);
        write(&mut ring, &messages, &figures);
        assert_eq!((figures.written.load(Relaxed), figures.lost.load(Relaxed)), (1, 1));
        drop(ring);
        assert!(archive(dir.path()).find("b").is_some());
    }
}
