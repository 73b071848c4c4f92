//! `cargo xtask conformance`: real clients of etcd and Kafka against Buttress and against the originals, and of HTTP through the proxy.
//!
//! Each script in `conformance/etcd` and `conformance/kafka` does what an ordinary user of one client does, and prints one
//! JSON object per check (`conformance/lib.sh` says how). This program installs the clients, starts the servers, runs the
//! scripts one after the other and judges: against an original every check must hold. Against Buttress a check may fail only
//! where `conformance/differences.json` expects it, with the text that comes back and the words of COMPAT.md that tell it;
//! a difference that is expected and not met fails too, so that the list stays true.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const USAGE: &str = "usage: cargo xtask conformance [--server buttress|original|both] [--only CLIENT,…] [--binary PATH] \
                     [--output json] | --list | --install [--only CLIENT,…]";
/// Installing may compile a client and what it stands on.
const INSTALL_SECONDS_MAX: u32 = 1800;
/// The longest script takes about a minute; one that hangs is a finding.
const RUN_SECONDS_MAX: u32 = 300;
/// Those of the bridge kill engines and wait for them to come back.
const BRIDGE_SECONDS_MAX: u32 = 1200;
/// The real Kafka serves after about 10 s; its artefacts may have to come first.
const START_SECONDS_MAX: u64 = 600;
const STOP_SECONDS_MAX: u64 = 30;
/// As many nodes as the client's user would have. The original of Kafka runs as one.
const NODES: u16 = 3;
const PORT_TRIES: u32 = 64;
/// Of a failed step's own output so much is shown.
const TAIL_LINES: usize = 15;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Buttress,
    Original,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Server::Buttress => "buttress",
            Server::Original => "original",
        }
    }
}

/// A client's script: `conformance/PROTOCOL/NAME.sh`, where the protocol `traffic` is whatever goes through proxies that the script
/// starts itself; or `conformance/bridge/bridge-PROTOCOL.sh` for our own.
#[derive(Debug)]
struct Client {
    name: String,
    protocol: &'static str,
    script: PathBuf,
    /// Our own client, which is for the engines that users have: it runs against the originals only.
    bridge: bool,
}

impl Client {
    fn runs_against(&self, server: Server, options: &Options) -> bool {
        match self.bridge {
            // Somebody who names it wants it to run, whatever else is asked for.
            true => server == Server::Original && (options.only.is_some() || options.servers.contains(&server)),
            // There is no original of a proxy.
            false if self.protocol == "traffic" => server == Server::Buttress && options.servers.contains(&server),
            false => options.servers.contains(&server),
        }
    }
}

struct Options {
    servers: Vec<Server>,
    only: Option<Vec<String>>,
    binary: Option<PathBuf>,
    json: bool,
    list: bool,
    install: bool,
}

pub fn run(words: &[&str]) -> Result<()> {
    let options = Options::read(words)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?;
    let clients = chosen(clients(root)?, options.only.as_deref())?;
    if options.list {
        clients.iter().for_each(|client| println!("{}  {}", client.protocol, client.name));
        return Ok(());
    }
    let runs = |client: &Client| [Server::Original, Server::Buttress].iter().any(|s| client.runs_against(*s, &options));
    let clients: Vec<_> = clients.into_iter().filter(|client| options.install || runs(client)).collect();
    let differences = Differences::read(root)?;
    let installed: Vec<Option<String>> = clients.iter().map(install).collect::<Result<_>>()?;
    let mut results = Vec::new();
    if options.install {
        for (client, problem) in clients.iter().zip(&installed) {
            results.push(Outcome::installed(client, problem.as_deref()));
        }
    } else {
        for server in [Server::Original, Server::Buttress] {
            let chosen: Vec<_> =
                clients.iter().zip(&installed).filter(|(client, _)| client.runs_against(server, &options)).collect();
            if chosen.is_empty() {
                continue;
            }
            let running = Running::start(root, server, &chosen, options.binary.as_deref())?;
            for (client, problem) in chosen {
                let outcome = match problem {
                    Some(problem) => Outcome::failed(client, server, problem.clone()),
                    None => running.judge(client, server, &differences)?,
                };
                outcome.tell();
                results.push(outcome);
            }
        }
    }
    if options.json {
        let clients: Vec<_> = results.iter().map(Outcome::json).collect();
        println!("{}", json!({ "clients": clients }));
    } else {
        results.iter().for_each(|outcome| println!("{}", outcome.row()));
    }
    let failed = results.iter().filter(|outcome| !outcome.ok).count();
    ensure!(failed == 0, "{failed} of {} runs failed", results.len());
    Ok(())
}

impl Options {
    fn read(words: &[&str]) -> Result<Options> {
        let mut options = Options {
            servers: vec![Server::Buttress],
            only: None,
            binary: None,
            json: false,
            list: false,
            install: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().copied().with_context(|| format!("{word} needs a value; {USAGE}"));
            match *word {
                "--server" => {
                    options.servers = match value()? {
                        "buttress" => vec![Server::Buttress],
                        "original" => vec![Server::Original],
                        "both" => vec![Server::Original, Server::Buttress],
                        other => bail!("there is no server \"{other}\"; {USAGE}"),
                    }
                }
                "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--binary" => options.binary = Some(value()?.into()),
                "--output" => match value()? {
                    "json" => options.json = true,
                    other => bail!("there is no output \"{other}\"; {USAGE}"),
                },
                "--list" => options.list = true,
                "--install" => options.install = true,
                other => bail!("what is \"{other}\"? {USAGE}"),
            }
        }
        Ok(options)
    }
}

/// Every client that has a script, by protocol and name. What scripts share ends in `-steps.sh`.
fn clients(root: &Path) -> Result<Vec<Client>> {
    let mut found = Vec::new();
    for folder in ["etcd", "kafka", "bridge", "traffic"] {
        let bridge = folder == "bridge";
        let path = root.join("conformance").join(folder);
        for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
            let script = entry?.path();
            let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".sh").filter(|name| !name.ends_with("-steps")) {
                let protocol = match if bridge { name.trim_start_matches("bridge-") } else { folder } {
                    "etcd" => "etcd",
                    "traffic" => "traffic",
                    _ => "kafka",
                };
                found.push(Client { name: name.to_owned(), protocol, script, bridge });
            }
        }
    }
    found.sort_by(|a, b| (a.protocol, &a.name).cmp(&(b.protocol, &b.name)));
    Ok(found)
}

fn chosen(clients: Vec<Client>, only: Option<&[String]>) -> Result<Vec<Client>> {
    let Some(only) = only else { return Ok(clients) };
    for name in only {
        let known = || clients.iter().map(|client| client.name.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(
            clients.iter().any(|client| client.name == *name),
            "there is no client \"{name}\"; there are {}",
            known()
        );
    }
    Ok(clients.into_iter().filter(|client| only.contains(&client.name)).collect())
}

/// What is wrong with installing a client, if anything is.
fn install(client: &Client) -> Result<Option<String>> {
    let done =
        bounded(INSTALL_SECONDS_MAX, &client.script, &["--install"]).output().context("cannot start a script")?;
    Ok((!done.status.success())
        .then(|| format!("cannot be installed: {}", tail(&String::from_utf8_lossy(&done.stderr)))))
}

/// A script in a process group of its own, which ends whole when its time is over.
fn bounded(seconds: u32, script: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &seconds.to_string(), "bash"]).arg(script).args(arguments).stdin(Stdio::null());
    command
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The servers that the chosen clients need. They end with this value.
struct Running {
    etcd: Option<String>,
    kafka: Option<String>,
    /// For scripts that start proxies.
    binary: Option<String>,
    processes: Vec<Child>,
    folder: PathBuf,
}

impl Running {
    fn start(
        root: &Path,
        server: Server,
        clients: &[(&Client, &Option<String>)],
        binary: Option<&Path>,
    ) -> Result<Running> {
        let folder = std::env::temp_dir().join(format!("conformance-{}-{}", server.name(), std::process::id()));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut running = Running { etcd: None, kafka: None, binary: None, processes: Vec::new(), folder };
        let needs = |protocol| clients.iter().any(|(client, _)| client.protocol == protocol);
        match server {
            Server::Buttress => {
                let binary = binary.map_or_else(|| build(root), |binary| Ok(binary.to_owned()))?;
                let binary = fs::canonicalize(&binary).with_context(|| binary.display().to_string())?;
                running.binary = Some(binary.display().to_string());
                if needs("etcd") || needs("kafka") {
                    running.start_buttress(&binary)?;
                }
            }
            Server::Original => {
                if needs("etcd") {
                    let told = running.start_original(root, "etcd", 2 * NODES, &[&NODES.to_string()])?;
                    running.etcd = told["endpoints"].as_str().map(str::to_owned);
                }
                if needs("kafka") {
                    let told = running.start_original(root, "kafka", 2, &[])?;
                    running.kafka = told["bootstrap"].as_str().map(str::to_owned);
                }
            }
        }
        Ok(running)
    }

    fn start_buttress(&mut self, binary: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command
            .args(["dev", "--nodes", &NODES.to_string(), "--output", "json", "--data-dir"])
            .arg(self.folder.join("data"));
        let told = self.spawn(command).with_context(|| binary.display().to_string())?;
        let addresses = |key: &str| -> Option<String> {
            let nodes = told["nodes"].as_array()?;
            nodes.iter().map(|node| node[key].as_str()).collect::<Option<Vec<_>>>().map(|all| all.join(","))
        };
        (self.etcd, self.kafka) = (addresses("etcd"), addresses("kafka"));
        Ok(())
    }

    fn start_original(&mut self, root: &Path, name: &str, ports: u16, more: &[&str]) -> Result<Value> {
        let mut command = Command::new("bash");
        command.arg(root.join("conformance/originals").join(format!("{name}.sh")));
        command.arg(self.folder.join(name)).arg(free_ports(ports)?.to_string()).args(more);
        self.spawn(command).with_context(|| format!("the original of {name}"))
    }

    /// Starts a server and waits for the line that it prints when it serves.
    fn spawn(&mut self, mut command: Command) -> Result<Value> {
        let log = fs::File::create(self.folder.join(format!("server-{}.log", self.processes.len())))?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?).spawn()?;
        let stdout = child.stdout.take().context("its output is piped")?;
        self.processes.push(child);
        let (send, receive) = std::sync::mpsc::channel();
        // The pipe is read to its end, so that the server never waits for somebody to read.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                let _ = send.send(line);
            }
        });
        let line = receive.recv_timeout(Duration::from_secs(START_SECONDS_MAX));
        let said = || fs::read_to_string(self.folder.join(format!("server-{}.log", self.processes.len() - 1)));
        let line = line.ok().with_context(|| format!("it does not come up: {}", tail(&said().unwrap_or_default())))?;
        serde_json::from_str(&line).with_context(|| format!("it said \"{line}\""))
    }

    fn judge(&self, client: &Client, server: Server, differences: &Differences) -> Result<Outcome> {
        let (address, variable) = match client.protocol {
            "etcd" => (&self.etcd, "ETCD_ENDPOINTS"),
            "traffic" => (&self.binary, "BUTTRESS_BINARY"),
            _ => (&self.kafka, "KAFKA_BOOTSTRAP"),
        };
        let Some(address) = address else {
            return Ok(Outcome::failed(client, server, format!("the server names no address for {}", client.protocol)));
        };
        let seconds = if client.bridge { BRIDGE_SECONDS_MAX } else { RUN_SECONDS_MAX };
        let done = bounded(seconds, &client.script, &[]).env(variable, address).output()?;
        let told = Told::read(&String::from_utf8_lossy(&done.stdout));
        let expected = if server == Server::Buttress { differences } else { &Differences(Vec::new()) };
        let mut problems = expected.judge(&client.name, &told.checks);
        problems.extend(told.problem(done.status, &String::from_utf8_lossy(&done.stderr)));
        let held = told.checks.iter().filter(|check| check.failed.is_none()).count();
        let detail = match problems.as_slice() {
            [] if client.protocol == "traffic" => format!("{held} checks"),
            [] if held == told.checks.len() => format!("{held} checks as the original"),
            [] => format!("{held} checks as the original, {} as COMPAT.md says", told.checks.len() - held),
            _ => problems.join("\n"),
        };
        Ok(Outcome { name: client.name.clone(), version: told.version, server, ok: problems.is_empty(), detail })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for process in &self.processes {
            // Servers stop what they have started when they are asked to end, so they are asked first.
            let _ = Command::new("kill").arg(process.id().to_string()).status();
        }
        let end = Instant::now() + Duration::from_secs(STOP_SECONDS_MAX);
        for process in &mut self.processes {
            while matches!(process.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Builds the binary as users run it, and says where it is.
pub fn build(root: &Path) -> Result<PathBuf> {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--package", "buttress"])
        .current_dir(root)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "buttress cannot be built");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/buttress"))
}

/// The first of so many ports in a row that nobody listens on. Somebody may take one in between; then a start fails.
fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..PORT_TRIES {
        let first = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if first.checked_add(count).is_some() && (first..first + count).all(free) {
            return Ok(first);
        }
    }
    bail!("there are no {count} free ports in a row")
}

/// What a script printed.
struct Told {
    version: String,
    checks: Vec<Check>,
    end: Option<u64>,
    other: Option<String>,
}

struct Check {
    name: String,
    /// What was wanted and what came back, where the check does not hold.
    failed: Option<(String, String)>,
}

impl Told {
    fn read(output: &str) -> Told {
        let mut told = Told { version: "unknown".into(), checks: Vec::new(), end: None, other: None };
        for line in output.lines() {
            let fields: Value = serde_json::from_str(line).unwrap_or_default();
            let text = |key: &str| fields[key].as_str().map(str::to_owned);
            if let Some(name) = text("check") {
                let said = || (text("wanted").unwrap_or_default(), text("got").unwrap_or_default());
                told.checks.push(Check { name, failed: (fields["ok"] != true).then(said) });
            } else if let Some(version) = text("version") {
                told.version = version;
            } else if let Some(end) = fields["end"].as_u64() {
                told.end = Some(end);
            } else {
                told.other.get_or_insert(line.to_owned());
            }
        }
        told
    }

    /// Why the run does not count, whatever its checks say.
    fn problem(&self, status: ExitStatus, errors: &str) -> Option<String> {
        if let Some(line) = &self.other {
            return Some(format!("it said \"{line}\", which is no check"));
        }
        if self.end == Some(self.checks.len() as u64) && status.success() && !self.checks.is_empty() {
            return None;
        }
        Some(format!("it did not come to its end ({status}) after {} checks: {}", self.checks.len(), tail(errors)))
    }
}

/// `conformance/differences.json`: where Buttress answers otherwise than the original, and the words that say so.
struct Differences(Vec<Difference>);

struct Difference {
    client: String,
    check: String,
    got: String,
}

impl Differences {
    fn read(root: &Path) -> Result<Differences> {
        let read = |name: &str| fs::read_to_string(root.join(name)).with_context(|| name.to_owned());
        Self::parse(&read("conformance/differences.json")?, &read("COMPAT.md")?)
    }

    /// Every entry names words of the compatibility page; line breaks do not matter.
    fn parse(list: &str, page: &str) -> Result<Differences> {
        let list: Vec<Value> = serde_json::from_str(list).context("conformance/differences.json")?;
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut differences = Vec::new();
        for entry in &list {
            let text = |key: &str| {
                let text = entry[key].as_str().filter(|text| !text.is_empty());
                text.map(str::to_owned).with_context(|| format!("an entry without \"{key}\": {entry}"))
            };
            let compat = text("compat")?.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(page.contains(&compat), "COMPAT.md does not say \"{compat}\"");
            differences.push(Difference { client: text("client")?, check: text("check")?, got: text("got")? });
        }
        Ok(Differences(differences))
    }

    /// What the list does not expect of these checks, and what it expects in vain.
    fn judge(&self, client: &str, checks: &[Check]) -> Vec<String> {
        let mut problems = Vec::new();
        for check in checks {
            let expected: Vec<_> = self.0.iter().filter(|one| one.is_about(client, &check.name)).collect();
            match &check.failed {
                Some((_, got)) if expected.iter().any(|one| got.contains(&one.got)) => {}
                Some((wanted, got)) => problems.push(format!("{}: wanted {wanted}, got {got}", check.name)),
                None if expected.is_empty() => {}
                None => problems.push(format!("{}: holds, but differences.json expects that it does not", check.name)),
            }
        }
        problems
    }
}

impl Difference {
    fn is_about(&self, client: &str, check: &str) -> bool {
        (self.client == "*" || self.client == client) && self.check == check
    }
}

/// How one client did against one server.
struct Outcome {
    name: String,
    version: String,
    server: Server,
    ok: bool,
    detail: String,
}

impl Outcome {
    fn failed(client: &Client, server: Server, detail: String) -> Outcome {
        Outcome { name: client.name.clone(), version: "unknown".into(), server, ok: false, detail }
    }

    fn installed(client: &Client, problem: Option<&str>) -> Outcome {
        let detail = problem.unwrap_or("installed").to_owned();
        Outcome { ok: problem.is_none(), ..Outcome::failed(client, Server::Buttress, detail) }
    }

    fn tell(&self) {
        if self.ok {
            eprintln!("{} against {}: {}", self.name, self.server.name(), self.detail);
        } else {
            eprintln!("{} against {} FAILED:\n{}\n", self.name, self.server.name(), self.detail);
        }
    }

    fn json(&self) -> Value {
        let Outcome { name, version, server, ok, detail } = self;
        json!({"name": name, "version": version, "server": server.name(), "ok": ok, "detail": detail})
    }

    fn row(&self) -> String {
        let word = if self.ok { "ok" } else { "FAILED" };
        let first = self.detail.lines().next().unwrap_or_default();
        format!("{word:<8}{:<24}{:<30}{:<10}{first}", self.name, self.version, self.server.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "- Transactions are refused\n  with a text.";

    fn told(lines: &str) -> Told {
        Told::read(lines)
    }

    #[test]
    fn a_difference_counts_only_where_it_is_expected_with_its_text() {
        let list = r#"[{"client": "*", "check": "commits", "got": "refused", "compat": "Transactions are refused with a text."}]"#;
        let differences = Differences::parse(list, PAGE).expect("the list is whole");
        let judge = |lines: &str| differences.judge("kcat", &told(lines).checks);
        assert_eq!(judge(r#"{"check":"commits","ok":false,"wanted":"1","got":"refused: why"}"#), Vec::<String>::new());
        assert_eq!(
            judge(r#"{"check":"commits","ok":false,"wanted":"1","got":"silence"}"#),
            ["commits: wanted 1, got silence"]
        );
        assert_eq!(
            judge(r#"{"check":"commits","ok":true}"#),
            ["commits: holds, but differences.json expects that it does not"]
        );
        assert_eq!(judge(r#"{"check":"reads","ok":false,"wanted":"a","got":"b"}"#), ["reads: wanted a, got b"]);
    }

    #[test]
    fn a_difference_names_words_of_the_page() {
        let list = |compat: &str| format!(r#"[{{"client": "*", "check": "c", "got": "g", "compat": "{compat}"}}]"#);
        assert!(Differences::parse(&list("with a text"), PAGE).is_ok());
        let wrong = Differences::parse(&list("served in full"), PAGE).err().map(|error| error.to_string());
        assert_eq!(wrong.as_deref(), Some("COMPAT.md does not say \"served in full\""));
        assert!(Differences::parse(r#"[{"client": "*", "check": "c", "compat": "a"}]"#, PAGE).is_err());
    }

    #[test]
    fn a_run_without_its_last_line_does_not_count() {
        use std::os::unix::process::ExitStatusExt;
        let well = ExitStatus::from_raw(0);
        let begin = r#"{"client":"kcat","version":"1.7.1"}"#;
        let whole = told(&format!("{begin}\n{{\"check\":\"a\",\"ok\":true}}\n{{\"end\":1}}"));
        assert_eq!((whole.version.as_str(), whole.problem(well, "")), ("1.7.1", None));
        assert!(whole.problem(ExitStatus::from_raw(256), "").is_some());
        assert!(told(begin).problem(well, "broken pipe").is_some_and(|text| text.ends_with("broken pipe")));
        let stray = told(&format!("{begin}\nTraceback\n{{\"end\":0}}"));
        assert_eq!(stray.problem(well, "").as_deref(), Some("it said \"Traceback\", which is no check"));
    }

    #[test]
    fn the_repository_s_list_names_words_of_its_page() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
        let differences = Differences::read(root).expect("the list and the page");
        let clients = clients(root).expect("the scripts");
        for difference in &differences.0 {
            let known = difference.client == "*" || clients.iter().any(|client| client.name == difference.client);
            assert!(known, "differences.json names the client \"{}\", which has no script", difference.client);
        }
        assert!(clients.len() >= 14, "{clients:?}");
    }
}
