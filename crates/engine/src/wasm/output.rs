//! What a guest prints and logs, kept up to a limit per call.

use std::sync::{Arc, Mutex, PoisonError};

use buttress_core::guest::GuestLog;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

/// The least that a line costs, so that empty lines are bounded too.
const LINE_COST: usize = 16;

#[derive(Default)]
struct Lines {
    kept: Vec<GuestLog>,
    /// Bytes that may still be kept.
    left: usize,
    dropped_lines: u64,
    /// Lines of standard output and standard error that have not ended yet.
    partial: [Vec<u8>; 2],
}

const STREAMS: [&str; 2] = ["stdout", "stderr"];

impl Lines {
    fn keep(&mut self, level: &'static str, text: &str) {
        let cost = text.len().max(LINE_COST);
        if cost > self.left {
            self.dropped_lines += 1;
            return;
        }
        self.left -= cost;
        self.kept.push(GuestLog { level, message: text.to_owned() });
    }

    fn end_line(&mut self, stream: usize) {
        let line = std::mem::take(&mut self.partial[stream]);
        self.keep(STREAMS[stream], &String::from_utf8_lossy(&line));
    }

    fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(stream, &bytes[..at]);
            self.end_line(stream);
            bytes = &bytes[at + 1..];
        }
        self.extend(stream, bytes);
    }

    fn extend(&mut self, stream: usize, bytes: &[u8]) {
        let partial = &mut self.partial[stream];
        // One byte over the limit is enough to make the line count as dropped.
        let room = (self.left + 1).saturating_sub(partial.len());
        partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// A handle to the lines of one instance.
#[derive(Clone, Default)]
pub(crate) struct Output(Arc<Mutex<Lines>>);

impl Output {
    fn with<R>(&self, body: impl FnOnce(&mut Lines) -> R) -> R {
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets everything and allows `bytes_max` from now on.
    pub(crate) fn start(&self, bytes_max: usize) {
        self.with(|lines| *lines = Lines { left: bytes_max, ..Lines::default() });
    }

    pub(crate) fn log(&self, level: &'static str, message: &str) {
        self.with(|lines| lines.keep(level, message));
    }

    /// Everything kept, and one line on what was not.
    pub(crate) fn take(&self) -> Vec<GuestLog> {
        self.with(|lines| {
            for stream in 0..2 {
                if !lines.partial[stream].is_empty() {
                    lines.end_line(stream);
                }
            }
            if lines.dropped_lines > 0 {
                let message =
                    format!("{} more lines were dropped: the limit of this call was reached", lines.dropped_lines);
                lines.kept.push(GuestLog { level: "warn", message });
            }
            std::mem::take(&mut lines.kept)
        })
    }

    /// The stream for standard output (0) or standard error (1).
    pub(crate) fn stream(&self, stream: usize) -> Stream {
        Stream { output: self.clone(), stream }
    }
}

#[derive(Clone)]
pub(crate) struct Stream {
    output: Output,
    stream: usize,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // WASI 0.3 only, which is not linked.
        Box::new(tokio::io::empty())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.output.with(|lines| lines.write(self.stream, &bytes));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 * 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(output: &Output) -> String {
        output.take().iter().map(|log| format!("{}: {}\n", log.level, log.message)).collect()
    }

    #[test]
    fn lines_are_split_and_bounded() {
        let output = Output::default();
        output.start(90);
        output.with(|lines| {
            lines.write(0, b"one\ntw");
            lines.write(1, b"err");
            lines.write(0, b"o\n\nrest \xff");
        });
        output.log("info", "hello");
        assert_eq!(
            shown(&output),
            "stdout: one\nstdout: two\nstdout: \ninfo: hello\nstdout: rest \u{fffd}\nwarn: 1 more lines were dropped: \
             the limit of this call was reached\n"
        );
        output.start(20);
        output.with(|lines| {
            lines.write(0, &[b'x'; 1_000_000]);
            assert!(lines.partial[0].len() <= 21);
            lines.write(0, b"\nshort\n");
        });
        assert_eq!(
            shown(&output),
            "stdout: short\nwarn: 1 more lines were dropped: the limit of this call was reached\n"
        );
    }
}
