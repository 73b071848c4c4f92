//! The access log: one line of JSON for each request, when its answer has ended.
//!
//! A request must never wait for a disk. Each core writes its lines into a buffer of its own, which goes in chunks to one
//! writing thread over a bounded queue. Where the writer does not keep up, the chunk is dropped and its lines are counted:
//! a log with a gap that says so is worth more than a proxy that stands still.
//!
//! | what happens | what we do |
//! |---|---|
//! | the file was renamed, removed or replaced | it is opened anew before the next chunk; looked at once a second |
//! | SIGUSR1 | it is opened anew at once ([`Log::reopen`]) |
//! | the disk is full, the pipe is closed | told once, and once more when it works again; the lines are counted as dropped |
//! | a write took only a part of a chunk | the next one begins on a line of its own |
//! | the proxy stops | what is there is written, for [`CLOSE_MAX`] at most |

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use buttress_core::{Code, Error};
use tokio::sync::Notify;

/// A chunk goes to the writer when it has this size: about 80 lines.
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks in the queue; 256 of 32 KiB are 8 MiB, a third of a second of 50,000 lines a second of 400 bytes.
const CHUNKS_MAX: usize = 256;
/// A line is in the file after this time at the latest, where the writer keeps up.
pub const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// How often the writer looks whether the file is still the one of that name.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a stopping proxy waits for the writer.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Of a path; what is longer is cut.
const PATH_MAX: usize = 1024;
/// Of any other text of a client.
const TEXT_MAX: usize = 256;
/// Buffers that a core keeps for lines whose answers have not ended.
const SPARE_MAX: usize = 1024;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Stdout,
    File(PathBuf),
}

impl To {
    /// Reads a path, or `-` for stdout.
    pub fn parse(text: &str) -> Self {
        if text == "-" { Self::Stdout } else { Self::File(text.into()) }
    }
}

enum Message {
    /// Whole lines, and how many.
    Lines(Vec<u8>, u32),
    Reopen,
    /// Write what is there, tell, and end.
    Close(std::sync::mpsc::Sender<()>),
}

/// What the cores and the writer share.
pub struct Log {
    queue: SyncSender<Message>,
    reopen: AtomicBool,
    figures: Arc<Figures>,
}

#[derive(Debug, Default)]
pub struct Figures {
    /// Lines that are written.
    pub written: AtomicU64,
    /// Lines that are not, and never will be.
    pub dropped: AtomicU64,
    /// Writes that failed.
    pub failures: AtomicU64,
}

impl Log {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// `CONFIG` where the file cannot be opened, `LIMITS` where there is no thread to be had.
    pub fn start(to: &To) -> Result<Arc<Self>, Error> {
        let sink = match to {
            To::Stdout => Sink::Other(Box::new(io::stdout())),
            To::File(path) => Sink::open(path).map_err(|error| {
                Error::new(Code::CONFIG, format!("the access log \"{}\" cannot be opened: {error}", path.display()))
                    .hint("name a file in a directory that exists and may be written to, or - for stdout")
            })?,
        };
        Self::writing(sink, CHUNKS_MAX)
    }

    fn writing(sink: Sink, chunks_max: usize) -> Result<Arc<Self>, Error> {
        let (queue, messages) = sync_channel(chunks_max);
        let log = Arc::new(Self { queue, reopen: AtomicBool::new(false), figures: Arc::default() });
        let writer = Writer::new(sink, log.figures.clone());
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.run(&messages))
            .map_err(|error| Error::new(Code::LIMITS, format!("a thread cannot be started: {error}")))?;
        Ok(log)
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Has the file opened anew, for whoever has moved it away.
    pub fn reopen(&self) {
        if self.queue.try_send(Message::Reopen).is_err() {
            // The queue is full: whoever hands over the next chunk says it again.
            self.reopen.store(true, Relaxed);
        }
    }

    /// Has everything written that was handed over. Tells whether that came to its end in time.
    pub fn close(&self) -> bool {
        let (told, heard) = channel();
        let end = Instant::now() + CLOSE_MAX;
        let mut message = Message::Close(told);
        while let Err(error) = self.queue.try_send(message) {
            match error {
                TrySendError::Full(back) if Instant::now() < end => message = back,
                _ => return false,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        !matches!(heard.recv_timeout(end.saturating_duration_since(Instant::now())), Err(RecvTimeoutError::Timeout))
    }

    fn hand_over(&self, lines: Vec<u8>, count: u32) {
        if self.reopen.swap(false, Relaxed) {
            self.reopen();
        }
        if self.queue.try_send(Message::Lines(lines, count)).is_err() {
            self.figures.dropped.fetch_add(count.into(), Relaxed);
        }
    }
}

/// What lines are written to.
enum Sink {
    File { path: PathBuf, file: File },
    Other(Box<dyn Write + Send>),
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Sink::File { path: path.to_owned(), file })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File { file, .. } => file.write(bytes),
            Sink::Other(other) => other.write(bytes).and_then(|wrote| other.flush().map(|()| wrote)),
        }
    }

    /// Whether the name stands for another file by now, or for none.
    fn moved(&self) -> bool {
        let Sink::File { path, file } = self else { return false };
        let Ok(ours) = file.metadata() else { return true };
        std::fs::metadata(path).map_or(true, |there| (there.dev(), there.ino()) != (ours.dev(), ours.ino()))
    }
}

/// The thread that writes.
struct Writer {
    sink: Sink,
    figures: Arc<Figures>,
    looked: Instant,
    /// The last write ended within a line.
    torn: bool,
    /// Writing failed the last time, and that was told.
    failing: bool,
    /// The same of opening the file anew.
    failing_open: bool,
}

impl Writer {
    fn new(sink: Sink, figures: Arc<Figures>) -> Self {
        Self { sink, figures, looked: Instant::now(), torn: false, failing: false, failing_open: false }
    }

    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            match message {
                Message::Lines(bytes, count) => self.lines(&bytes, count),
                Message::Reopen => self.reopen(),
                Message::Close(told) => {
                    let _ = told.send(());
                    return;
                }
            }
        }
    }

    fn reopen(&mut self) {
        let Sink::File { path, .. } = &self.sink else { return };
        match Sink::open(path) {
            Ok(sink) => {
                (self.sink, self.torn, self.failing_open) = (sink, false, false);
            }
            Err(error) if !self.failing_open => {
                self.failing_open = true;
                tracing::error!(%error, path = %path.display(), "the access log cannot be opened anew; the old file goes on");
            }
            Err(_) => {}
        }
    }

    fn lines(&mut self, bytes: &[u8], count: u32) {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            if self.sink.moved() {
                self.reopen();
            }
        }
        match self.write(bytes) {
            Ok(()) => {
                self.figures.written.fetch_add(count.into(), Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::warn!("the access log is written again");
                }
            }
            Err((wrote, error)) => {
                if wrote > 0 {
                    self.torn = bytes[wrote - 1] != b'\n';
                }
                let whole = bytes[..wrote].iter().filter(|byte| **byte == b'\n').count() as u64;
                self.figures.written.fetch_add(whole, Relaxed);
                self.figures.dropped.fetch_add(u64::from(count).saturating_sub(whole), Relaxed);
                self.figures.failures.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the access log cannot be written; lines are dropped and counted until it can");
                }
            }
        }
    }

    /// Writes all of it, or tells how much it could.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut wrote = 0;
        while self.torn {
            match self.sink.write(b"\n") {
                Ok(0) => return Err((0, io::ErrorKind::WriteZero.into())),
                Ok(_) => self.torn = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((0, error)),
            }
        }
        while wrote < bytes.len() {
            match self.sink.write(&bytes[wrote..]) {
                Ok(0) => return Err((wrote, io::ErrorKind::WriteZero.into())),
                Ok(more) => wrote += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((wrote, error)),
            }
        }
        Ok(())
    }
}

/// The lines of one core.
pub struct Lines {
    log: Arc<Log>,
    chunk: RefCell<Vec<u8>>,
    count: Cell<u32>,
    /// Told when the first line of a chunk is there.
    begun: Notify,
    spare: RefCell<Vec<Vec<u8>>>,
    /// A second since 1970, and how it is written.
    second: Cell<(u64, [u8; 19])>,
}

impl Lines {
    pub fn new(log: Arc<Log>) -> Self {
        Self {
            log,
            chunk: RefCell::default(),
            count: Cell::new(0),
            begun: Notify::new(),
            spare: RefCell::default(),
            second: Cell::new((u64::MAX, [0; 19])),
        }
    }

    /// Hands chunks over that do not fill by themselves. Never ends.
    pub async fn flushing(&self) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(FLUSH_EVERY).await;
            self.flush();
        }
    }

    pub fn flush(&self) {
        let lines = std::mem::take(&mut *self.chunk.borrow_mut());
        if !lines.is_empty() {
            self.log.hand_over(lines, self.count.take());
        }
    }

    fn add(&self, line: &[u8]) {
        let mut chunk = self.chunk.borrow_mut();
        if chunk.is_empty() {
            chunk.reserve(CHUNK_BYTES + 2 * TEXT_MAX + PATH_MAX);
            self.begun.notify_one();
        }
        chunk.extend_from_slice(line);
        self.count.set(self.count.get() + 1);
        let full = chunk.len() >= CHUNK_BYTES;
        drop(chunk);
        if full {
            self.flush();
        }
    }

    /// Begins a line with all that is known when the answer begins.
    pub fn begin(&self, about: &About<'_>) -> Line {
        let mut out = self.spare.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(512));
        out.extend_from_slice(b"{\"time\":\"");
        let (second, milli) = (about.unix_ms / 1000, (about.unix_ms % 1000) as u32);
        let (mut known, mut text) = self.second.get();
        if known != second {
            (known, text) = (second, date(second));
            self.second.set((known, text));
        }
        out.extend_from_slice(&text);
        let digit = |number: u32| b'0' + (number % 10) as u8;
        out.extend_from_slice(&[b'.', digit(milli / 100), digit(milli / 10), digit(milli), b'Z', b'"']);
        texts(&mut out, "method", about.method.as_bytes(), TEXT_MAX);
        texts(&mut out, "authority", about.authority, TEXT_MAX);
        texts(&mut out, "path", about.path, PATH_MAX);
        texts(&mut out, "protocol", about.protocol.as_bytes(), TEXT_MAX);
        key(&mut out, "status");
        number(&mut out, about.status.into());
        texts(&mut out, "route", about.route.as_bytes(), TEXT_MAX);
        match about.matched {
            Some((file, line)) => {
                texts(&mut out, "matched", file.as_bytes(), TEXT_MAX);
                if line > 0 {
                    out.pop();
                    out.push(b':');
                    number(&mut out, line.into());
                    out.push(b'"');
                }
            }
            None => texts(&mut out, "matched", b"", TEXT_MAX),
        }
        texts(&mut out, "backend", about.backend.as_bytes(), TEXT_MAX);
        texts(&mut out, "endpoint", about.endpoint.as_bytes(), TEXT_MAX);
        key(&mut out, "attempts");
        number(&mut out, about.attempts.into());
        key(&mut out, "head_ms");
        micros(&mut out, about.head_us);
        texts(&mut out, "client", about.client.as_bytes(), TEXT_MAX);
        key(&mut out, "caller");
        match about.caller {
            Some(caller) => quoted(&mut out, caller.as_bytes(), TEXT_MAX),
            None => out.extend_from_slice(b"null"),
        }
        texts(&mut out, "request_id", about.request_id.as_bytes(), TEXT_MAX);
        texts(&mut out, "trace_id", about.trace_id, TEXT_MAX);
        texts(&mut out, "user_agent", about.user_agent, TEXT_MAX);
        Line(out)
    }

    /// Ends a line, and adds it to the log.
    pub fn end(&self, line: Line, end: &End) {
        let Line(mut out) = line;
        key(&mut out, "grpc_status");
        match end.grpc_status {
            Some(status) => number(&mut out, status.into()),
            None => out.extend_from_slice(b"null"),
        }
        key(&mut out, "code");
        match end.code {
            Some(code) => quoted(&mut out, code.as_bytes(), TEXT_MAX),
            None => out.extend_from_slice(b"null"),
        }
        key(&mut out, "bytes_in");
        number(&mut out, end.bytes_in);
        key(&mut out, "bytes_out");
        number(&mut out, end.bytes_out);
        key(&mut out, "whole_ms");
        micros(&mut out, end.whole_us);
        texts(&mut out, "ended", end.ended.word().as_bytes(), TEXT_MAX);
        out.extend_from_slice(b"}\n");
        self.add(&out);
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX && out.capacity() <= 4096 {
            out.clear();
            spare.push(out);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A line whose answer has not ended.
#[derive(Debug)]
pub struct Line(Vec<u8>);

/// What is known of a request when its answer begins.
#[derive(Default)]
pub struct About<'a> {
    /// When it came.
    pub unix_ms: u64,
    pub method: &'a str,
    pub authority: &'a [u8],
    pub path: &'a [u8],
    pub protocol: &'a str,
    pub status: u16,
    pub route: &'a str,
    /// The file and the line of the match that took it.
    pub matched: Option<(&'a str, u32)>,
    pub backend: &'a str,
    /// Of the last attempt.
    pub endpoint: &'a str,
    pub attempts: u32,
    pub head_us: u64,
    pub client: &'a str,
    /// Who it was, where that is known.
    pub caller: Option<&'a str>,
    pub request_id: &'a str,
    pub trace_id: &'a [u8],
    pub user_agent: &'a [u8],
}

/// What is known when the answer has ended.
#[derive(Default)]
pub struct End {
    pub grpc_status: Option<u16>,
    pub code: Option<&'static str>,
    /// Of the bodies.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub whole_us: u64,
    pub ended: Ended,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    Whole,
    /// The upstream broke off.
    Cut,
    /// The client left first.
    #[default]
    Left,
}

impl Ended {
    pub fn word(self) -> &'static str {
        match self {
            Ended::Whole => "whole",
            Ended::Cut => "cut",
            Ended::Left => "left",
        }
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn texts(out: &mut Vec<u8>, name: &str, value: &[u8], most: usize) {
    key(out, name);
    quoted(out, value, most);
}

/// A text that anybody may have sent, as a string of JSON, cut to a size.
fn quoted(out: &mut Vec<u8>, value: &[u8], most: usize) {
    let kept = &value[..value.len().min(most)];
    out.push(b'"');
    if kept.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(kept);
    } else {
        escaped(out, kept);
    }
    if value.len() > most {
        out.extend_from_slice("…".as_bytes());
    }
    out.push(b'"');
}

#[cold]
fn escaped(out: &mut Vec<u8>, value: &[u8]) {
    for part in value.utf8_chunks() {
        for letter in part.valid().chars() {
            match letter {
                '"' | '\\' => out.extend_from_slice(&[b'\\', letter as u8]),
                '\0'..='\x1f' | '\x7f' => {
                    let mut text = String::with_capacity(6);
                    let _ = write!(text, "\\u{:04x}", letter as u32);
                    out.extend_from_slice(text.as_bytes());
                }
                _ => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !part.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn number(out: &mut Vec<u8>, mut number: u64) {
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Microseconds, as milliseconds with three places.
fn micros(out: &mut Vec<u8>, micros: u64) {
    number(out, micros / 1000);
    let rest = micros % 1000;
    out.extend_from_slice(&[b'.', b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8]);
}

/// `YYYY-MM-DDThh:mm:ss` of a second since 1970.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn date(second: u64) -> [u8; 19] {
    let (days, of_day) = (second / 86_400 + 719_468, second % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00";
    let mut put = |at: usize, digits: usize, mut number: u64| {
        for place in (at..at + digits).rev() {
            text[place] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, of_day / 3600);
    put(14, 2, of_day / 60 % 60);
    put(17, 2, of_day % 60);
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::Value;

    use super::*;

    fn about(path: &[u8]) -> About<'_> {
        About {
            unix_ms: 1_795_957_553_007,
            method: "GET",
            authority: b"shop.example",
            path,
            protocol: "HTTP/1.1",
            status: 200,
            route: "orders",
            matched: Some(("routes.yaml", 7)),
            backend: "v1",
            endpoint: "127.0.0.1:3000",
            attempts: 2,
            head_us: 12_345,
            client: "192.0.2.7",
            caller: None,
            request_id: "id-1",
            trace_id: b"4bf92f3577b34da6a3ce929d0e0e4736",
            user_agent: b"curl/8 \"x\"",
        }
    }

    fn end() -> End {
        End { grpc_status: None, code: None, bytes_in: 0, bytes_out: 85, whole_us: 20_001, ended: Ended::Whole }
    }

    fn file(folder: &Path) -> (Arc<Log>, PathBuf) {
        let path = folder.join("access.log");
        (Log::start(&To::File(path.clone())).unwrap(), path)
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("buttress-access-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_line_is_an_object_with_all_its_keys() {
        let folder = folder("line");
        let (log, path) = file(&folder);
        let lines = Lines::new(log.clone());
        lines.end(lines.begin(&about(b"/orders/7")), &end());
        drop(lines);
        assert!(log.close());
        expect_test::expect![[r#"
            {"time":"2026-11-29T13:05:53.007Z","method":"GET","authority":"shop.example","path":"/orders/7","protocol":"HTTP/1.1","status":200,"route":"orders","matched":"routes.yaml:7","backend":"v1","endpoint":"127.0.0.1:3000","attempts":2,"head_ms":12.345,"client":"192.0.2.7","caller":null,"request_id":"id-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","user_agent":"curl/8 \"x\"","grpc_status":null,"code":null,"bytes_in":0,"bytes_out":85,"whole_ms":20.001,"ended":"whole"}
        "#]]
        .assert_eq(&std::fs::read_to_string(&path).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn whatever_a_client_sends_is_one_string_of_one_line() {
        for text in [&b"/\"\\\n\x00\x7f"[..], b"/\xff\xfe", "/ä€😀".as_bytes(), b"", &[b'a'; 5000]] {
            let mut out = Vec::new();
            quoted(&mut out, text, 1024);
            assert!(!out.contains(&b'\n') && out.len() < 1100, "{text:?}");
            let told: Value = serde_json::from_slice(&out).unwrap();
            let lossy = String::from_utf8_lossy(&text[..text.len().min(1024)]).into_owned();
            assert_eq!(told.as_str().unwrap().trim_end_matches('…'), lossy);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (4_102_444_800, "2100-01-01T00:00:00"),
        ] {
            assert_eq!(std::str::from_utf8(&date(second)).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = folder("moved");
        let (log, path) = file(&folder);
        let (old, one) = (folder.join("access.log.1"), b"{}\n".to_vec());
        log.hand_over(one.clone(), 1);
        // SIGUSR1 after a move: nothing of what comes later is in the old file.
        while log.figures.written.load(Relaxed) < 1 {
            std::thread::yield_now();
        }
        std::fs::rename(&path, &old).unwrap();
        log.reopen();
        log.hand_over(one, 1);
        assert!(log.close());
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "{}\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_writer_sees_by_itself_that_the_name_stands_for_another_file() {
        let folder = folder("seen");
        let path = folder.join("access.log");
        let mut writer = Writer::new(Sink::open(&path).unwrap(), Arc::default());
        writer.lines(b"1\n", 1);
        std::fs::rename(&path, folder.join("old")).unwrap();
        // As if a second had gone by.
        writer.looked = Instant::now().checked_sub(LOOK_EVERY).unwrap();
        writer.lines(b"2\n", 1);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "3\n").unwrap();
        writer.looked = Instant::now().checked_sub(LOOK_EVERY).unwrap();
        writer.lines(b"4\n", 1);
        assert_eq!(std::fs::read_to_string(folder.join("old")).unwrap(), "1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n4\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// A disk that takes so many bytes.
    struct Disk {
        room: usize,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.written.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted_and_the_next_one_begins_on_its_own() {
        let (written, figures) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Figures::default()));
        let disk = Disk { room: 6, written: written.clone() };
        let mut writer = Writer::new(Sink::Other(Box::new(disk)), figures.clone());
        writer.lines(b"{1}\n{2}\n{3}\n", 3);
        writer.lines(b"{4}\n", 1);
        let counts = || [&figures.written, &figures.dropped, &figures.failures].map(|count| count.load(Relaxed));
        assert_eq!(counts(), [1, 3, 2]);
        // There is room again.
        writer.sink = Sink::Other(Box::new(Disk { room: 100, written: written.clone() }));
        writer.lines(b"{5}\n", 1);
        assert_eq!(counts(), [2, 3, 2]);
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap(), "{1}\n{2\n{5}\n");
    }

    /// A pipe that nobody reads.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_never_time() {
        let (go, stuck) = channel();
        let log = Log::writing(Sink::Other(Box::new(Stuck(stuck))), 2).unwrap();
        let lines = Lines::new(log.clone());
        // Far more than the queue takes; the call returns all the same.
        for _ in 0..1000 {
            lines.end(lines.begin(&about(&[b'a'; 800])), &end());
        }
        lines.flush();
        let dropped = log.figures.dropped.load(Relaxed);
        assert!(dropped > 0 && dropped < 1000, "{dropped}");
        drop(go);
        assert!(log.close());
        assert_eq!(log.figures.written.load(Relaxed) + dropped, 1000);
    }
}
