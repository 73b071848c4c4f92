//! The processes of both sides: started, found, killed, and stopped with us.
//!
//! Every one is this same binary; its standard input is a pipe that we hold, so that it ends when we do, however we end.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use buttress_core::{Code, Error};
use http::Method;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{
    part::Fault,
    shape::{Role, Side},
};
use crate::{
    demo::http::{Ask, HttpClient},
    ports,
};

/// How often a process is asked before it is given up, a pause between each: rounds and not a time, because the whole
/// machine may have stood still meanwhile.
const ROUNDS_MAX: u32 = 3_000;
const STOP_DEADLINE: Duration = Duration::from_secs(3);
const ASK_DEADLINE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// The proxies' deadline is the saga's.
const PROXY_DEADLINE: &str = "2s";

/// A process by who it is; a proxy stands before the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub side: Side,
    pub role: Role,
    pub proxy: bool,
}

impl Place {
    pub fn part(side: Side, role: Role) -> Self {
        Self { side, role, proxy: false }
    }

    pub fn proxy(role: Role) -> Self {
        Self { side: Side::With, role, proxy: true }
    }

    fn name(self) -> String {
        let before = if self.proxy { "proxy-of-" } else { "" };
        format!("{}-{before}{}", self.side.word(), self.role.word())
    }
}

/// What a service that does a step has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    pub workers: u16,
    pub queue: u64,
    pub work: Duration,
}

pub struct Stage {
    dir: PathBuf,
    nodes: Vec<String>,
    seed: u64,
    room: Room,
    addresses: BTreeMap<Place, String>,
    /// Where a proxy's figures are.
    admins: BTreeMap<Role, String>,
    children: Mutex<BTreeMap<Place, Child>>,
    http: HttpClient,
}

impl Stage {
    /// Chooses everybody's place.
    ///
    /// # Errors
    /// `PORT_TAKEN`.
    pub fn new(dir: &Path, nodes: Vec<String>, seed: u64, room: Room) -> Result<Self, Error> {
        let parts = Side::ALL.into_iter().flat_map(|side| Role::ALL.map(|role| Place::part(side, role)));
        let places: Vec<Place> = parts.chain(Role::CALLED.map(Place::proxy)).collect();
        let ports = ports::free(places.len() + Role::CALLED.len(), crate::dev::seed()?)?;
        let (parts, admins) = ports.split_at(places.len());
        let address = |port: &u16| format!("127.0.0.1:{port}");
        Ok(Self {
            dir: dir.to_owned(),
            nodes,
            seed,
            room,
            addresses: places.into_iter().zip(parts.iter().map(address)).collect(),
            admins: Role::CALLED.into_iter().zip(admins.iter().map(address)).collect(),
            children: Mutex::default(),
            http: HttpClient::default(),
        })
    }

    pub fn address(&self, place: Place) -> &str {
        &self.addresses[&place]
    }

    pub fn admin(&self, role: Role) -> &str {
        &self.admins[&role]
    }

    /// Where a caller of the side finds a service.
    fn way(&self, side: Side, role: Role) -> &str {
        match side {
            Side::Without => self.address(Place::part(side, role)),
            Side::With => self.address(Place::proxy(role)),
        }
    }

    fn arguments(&self, place: Place) -> Vec<String> {
        let address = self.address(place).to_owned();
        if place.proxy {
            let (to, admin) = (self.address(Place::part(place.side, place.role)), self.admin(place.role));
            let words = ["proxy", "--with-parent", "--to", to, "--listen", &address, "--admin", admin];
            let more = ["--deadline", PROXY_DEADLINE, "--drain", "1s", "--threads", "1", "--log", "json"];
            return words.into_iter().chain(more).map(str::to_owned).collect();
        }
        let mut words: Vec<String> =
            ["orders-part", place.role.word(), "--side", place.side.word(), "--listen"].map(str::to_owned).to_vec();
        words.extend([address, "--nodes".into(), self.nodes.join(",")]);
        words.extend(["--seed".into(), (self.seed ^ (place.role as u64) << 32).to_string()]);
        let called: &[Role] = match place.role {
            Role::Gateway => &[Role::Order],
            Role::Coordinator => &Role::STEPS,
            _ => &[],
        };
        for role in called {
            words.extend(["--to".into(), format!("{}={}", role.word(), self.way(place.side, *role))]);
        }
        // The gateway and the order service are not what is hurt: they have room.
        let room = match Role::STEPS.contains(&place.role) {
            true => self.room,
            false => Room { workers: 256, queue: 1_024, work: Duration::ZERO },
        };
        words.extend(["--workers".into(), room.workers.to_string(), "--queue".into(), room.queue.to_string()]);
        words.extend(["--work".into(), format!("{}us", room.work.as_micros())]);
        words
    }

    /// Starts one process; it need not be ready when this returns.
    ///
    /// # Errors
    /// `CONFIG` when it cannot be started.
    pub fn start(&self, place: Place) -> Result<(), Error> {
        let name = place.name();
        let failed = |error: std::io::Error| Error::new(Code::CONFIG, format!("cannot start {name}: {error}"));
        let path = self.dir.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(path).map_err(failed)?;
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(self.arguments(place))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0) // Ctrl-C goes to us alone.
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.children.lock().expect("no panic under this lock").insert(place, child);
        Ok(())
    }

    /// Starts everybody and waits until each answers.
    ///
    /// # Errors
    /// `UNREACHABLE` naming who does not.
    pub async fn start_all(&self) -> Result<(), Error> {
        for place in self.addresses.keys() {
            self.start(*place)?;
        }
        for place in self.addresses.keys() {
            self.wait_ready(*place).await?;
        }
        Ok(())
    }

    /// # Errors
    /// `UNREACHABLE` when it does not answer, often asked.
    pub async fn wait_ready(&self, place: Place) -> Result<(), Error> {
        for _ in 0..ROUNDS_MAX {
            if self.stats(place).await.is_some() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(self.silent(place))
    }

    fn silent(&self, place: Place) -> Error {
        let (name, dir) = (place.name(), self.dir.display());
        Error::new(Code::UNREACHABLE, format!("{name} does not answer")).hint(format!("its log is {dir}/{name}.log"))
    }

    /// Kills with SIGKILL, and returns once it is gone.
    pub async fn kill(&self, place: Place) {
        let child = self.children.lock().expect("no panic under this lock").remove(&place);
        if let Some(mut child) = child {
            let _ = child.kill().await;
        }
    }

    /// What a process says of itself, if it answers.
    pub async fn stats(&self, place: Place) -> Option<Value> {
        let (address, path) = match place.proxy {
            true => (self.admin(place.role), "/v1/traffic"),
            false => (self.address(place), "/stats"),
        };
        let answer = self.http.ask(address, &Ask::get(path), ASK_DEADLINE).await.ok()?;
        answer.ok().then(|| answer.json())
    }

    /// Makes a service of both sides as unreliable as this.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn set_fault(&self, role: Role, fault: Fault) -> Result<(), Error> {
        for side in Side::ALL {
            let place = Place::part(side, role);
            let body = serde_json::to_vec(&fault).expect("a fault is plain data");
            let ask = Ask::json(Method::POST, "/fault", body);
            let mut rounds = 0..ROUNDS_MAX;
            while !self.http.ask(self.address(place), &ask, ASK_DEADLINE).await.is_ok_and(|answer| answer.ok()) {
                rounds.next().ok_or_else(|| self.silent(place))?;
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Stops everybody, callers first.
    pub async fn stop_all(&self) {
        let mut children = std::mem::take(&mut *self.children.lock().expect("no panic under this lock"));
        for child in children.values_mut() {
            drop(child.stdin.take());
        }
        for (_, mut child) in children {
            if tokio::time::timeout(STOP_DEADLINE, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}
