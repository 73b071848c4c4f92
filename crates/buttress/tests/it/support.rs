//! Starting the binary, waiting without guessing, and leaving nothing behind.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Everything that is waited for comes within this time or the test fails.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

pub fn buttress() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buttress"));
    for name in ["BUTTRESS_SERVER", "BUTTRESS_CONFIG", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Output {
    buttress().args(args).stdin(Stdio::null()).output().expect("the binary was built for this test")
}

pub fn run_with_input(args: &[&str], input: &str) -> Output {
    let mut child = buttress()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary was built for this test");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the command reads its input");
    child.wait_with_output().expect("the child is ours")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output of a command that must succeed.
pub fn ok(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

/// Standard error of a command that must fail with exit code 2.
pub fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}{}", stdout(output), stderr(output));
    let text = stderr(output);
    assert!(!text.contains("panicked"), "{text}");
    text
}

pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(POLL);
    }
}

/// The processes whose command line names something below `dir`.
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let wanted = dir.to_str().expect("temporary directories have plain names");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("Linux has /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(wanted) {
            found.push(pid);
        }
    }
    found
}

pub fn node_process(dir: &Path, node: &str) -> Option<u32> {
    processes_of(&dir.join(format!("{node}.toml"))).first().copied()
}

pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(sent.expect("every Linux has kill").success(), "kill -{name} {pid}");
}

/// `buttress dev` on a directory; ends with the test.
pub struct Dev {
    pub child: Child,
    /// What the first line says of the nodes.
    pub nodes: Vec<Value>,
}

impl Dev {
    pub fn start(dir: &Path, nodes: usize) -> Self {
        Self::start_with(dir, nodes, &[])
    }

    pub fn start_with(dir: &Path, nodes: usize, more: &[&str]) -> Self {
        let mut child = buttress()
            .args(["dev", "--output", "json", "--nodes", &nodes.to_string(), "--data-dir"])
            .arg(dir)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary was built for this test");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        out.read_line(&mut line).expect("dev says its addresses");
        let first: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let nodes = first["nodes"].as_array().expect("nodes is a list").clone();
        Self { child, nodes }
    }

    pub fn http(&self, node: usize) -> String {
        format!("http://{}", self.nodes[node]["http"].as_str().expect("an address"))
    }

    /// The node that leads, by its place in the list, as node `asked` sees it.
    pub fn leader(&self, asked: usize) -> usize {
        until("a leader", || {
            let answer = run(&["cluster", "status", "--output", "json", "--server", &self.http(asked)]);
            let view: Value = serde_json::from_slice(&answer.stdout).ok()?;
            Some(view["leader"].as_u64()? as usize - 1)
        })
    }

    /// Asks it to stop as Ctrl-C does, and waits for its end.
    pub fn stop(mut self) -> Option<i32> {
        signal(self.child.id(), "INT");
        self.child.wait().expect("the child is ours").code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // The nodes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
