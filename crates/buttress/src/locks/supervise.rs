//! A command that runs for as long as a lock is held, and no longer.
//!
//! The command gets a process group of its own, so that what it started is stopped with it. Where standard input is a
//! terminal it stays in the terminal's foreground group, which it needs to read from it; then only the command itself can be
//! killed, and what it started gets SIGTERM alone.

use std::{
    ffi::OsString,
    io::IsTerminal,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Instant,
};

use buttress_core::{Code, Error};
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{Held, Session};

/// How the command ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself, or by a signal that we passed on.
    Itself(ExitStatus),
    /// We stopped it because the lock was lost.
    Lost,
}

/// What a shell would give.
pub fn exit_code(status: ExitStatus) -> u8 {
    status.code().map_or_else(|| 128 + status.signal().unwrap_or(0) as u8, |code| code as u8)
}

struct Running {
    child: Child,
    pid: Pid,
    own_group: bool,
}

impl Running {
    fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = match self.own_group {
            true => rustix::process::kill_process_group(self.pid, signal),
            false => rustix::process::kill_process(self.pid, signal),
        };
    }

    /// SIGTERM now, SIGKILL at `until`.
    async fn stop(&mut self, until: Instant) {
        self.signal(Signal::TERM);
        if tokio::time::timeout_at(until.into(), self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
        }
        let _ = self.child.wait().await;
        if self.own_group {
            // Whatever it left behind.
            self.signal(Signal::KILL);
        }
    }
}

/// Runs the command until it ends or the lock is lost.
///
/// # Errors
/// `CONFIG` where it cannot be started.
pub async fn run(command: &[OsString], name: &str, held: &Held, session: &Session) -> Result<Ended, Error> {
    let (program, arguments) = command.split_first().expect("clap wants a command");
    let own_group = !std::io::stdin().is_terminal();
    let mut spawn = Command::new(program);
    spawn
        .args(arguments)
        .env("BUTTRESS_LOCK_NAME", name)
        .env("BUTTRESS_LOCK_KEY", &held.key)
        .env("BUTTRESS_LOCK_TOKEN", held.token.to_string())
        .stdin(Stdio::inherit())
        .kill_on_drop(true);
    if own_group {
        spawn.process_group(0);
    }
    let signals = |kind| signal(kind).map_err(|error| Error::new(Code::CONFIG, format!("no signals: {error}")));
    let (mut interrupts, mut terminations) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let child = spawn.spawn().map_err(|error| {
        Error::new(Code::CONFIG, format!("\"{}\" cannot be started: {error}", program.to_string_lossy()))
            .hint("give the command behind --, for example: buttress lock run nightly -- ./job.sh")
    })?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32)).expect("it was started just now");
    let mut running = Running { child, pid, own_group };
    loop {
        tokio::select! {
            ended = running.child.wait() => {
                let ended = ended.map_err(|error| Error::new(Code::CONFIG, format!("the command is lost: {error}")))?;
                return Ok(Ended::Itself(ended));
            }
            until = session.lost() => {
                // Said before the command is asked, so that what it says afterwards is understood.
                let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
                eprintln!("{name} is lost: {}; the command is asked to stop, and killed in {left:.1} s", session.why_lost());
                running.stop(until).await;
                return Ok(Ended::Lost);
            }
            _ = interrupts.recv() => if own_group { running.signal(Signal::INT) },
            _ = terminations.recv() => running.signal(Signal::TERM),
        }
    }
}

/// Resolves when the process is asked to stop.
///
/// # Errors
/// `CONFIG` where signals cannot be heard.
pub async fn asked_to_stop() -> Result<(), Error> {
    let signals = |kind| signal(kind).map_err(|error| Error::new(Code::CONFIG, format!("no signals: {error}")));
    let (mut interrupts, mut terminations) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupts.recv() => {}
        _ = terminations.recv() => {}
    }
    Ok(())
}
