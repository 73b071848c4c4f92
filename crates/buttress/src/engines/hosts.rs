//! Which host runs which partition.
//!
//! Every host holds a key of its own under [`HOSTS`] in the ledger, for as long as it lives: whoever looks there knows who
//! shares the work. For each partition every host computes by itself whose turn it is (rendezvous hashing: when a host comes
//! or goes, only its own partitions move), and the one whose turn it is takes the partition's key under [`SEATS`], with a
//! lease ([`Hold`]). Whose turn it no longer is gives its key back.
//!
//! | what happens | what follows |
//! |---|---|
//! | a host is killed | its keys end with their leases, at most the time to live later; the others divide its partitions |
//! | a host comes | it is given a share; the others give it back between two batches |
//! | the ledger cannot be reached | holders count themselves out after two thirds of the time to live, nobody new gets in |
//! | two hosts think that they hold a partition | Kafka's fencing lets one of them commit |
//!
//! **First start and recovery.** Nothing is kept but these keys. A host that was killed and comes back under its name waits
//! until its old keys have ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use buttress_bridge::hold::Hold;
use buttress_core::{
    BoxFuture, Code, Consistency, Error, KeyRange, Ledger, Revision, Seat,
    ledger::{KeyEvent, KeyValue},
    tenure::turn,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One key for each host that lives.
pub const HOSTS: &str = "/buttress/hosts/";
/// One key for each partition that is run.
pub const SEATS: &str = "/buttress/seats/";
/// Hosts and seats that are looked at.
const KEYS_MAX: usize = 100_000;
/// Between two attempts to reach a ledger that does not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// A host as it tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub id: u64,
    pub name: String,
    pub http: String,
    pub mqtt: String,
}

/// Who holds a seat, and since which revision: later holders have larger ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub host: String,
    pub since: Revision,
}

/// Hosts and seats as the ledger has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub hosts: BTreeMap<String, Host>,
    pub seats: BTreeMap<String, Held>,
    /// The latest revision of the ledger that was seen.
    pub revision: Revision,
}

impl View {
    /// Whose turn a partition is; `None` while nobody is there.
    fn turn(&self, seat: &str) -> Option<&str> {
        turn(seat, self.hosts.keys().map(String::as_str))
    }

    fn take(&mut self, key: &[u8], value: Option<&Bytes>, revision: Revision) {
        let Ok(key) = std::str::from_utf8(key) else { return };
        self.revision = self.revision.max(revision);
        if let Some(name) = key.strip_prefix(HOSTS) {
            match value.and_then(|value| serde_json::from_slice(value).ok()) {
                Some(host) => drop(self.hosts.insert(name.to_owned(), host)),
                None => drop(self.hosts.remove(name)),
            }
        } else if let Some(seat) = key.strip_prefix(SEATS) {
            match value {
                Some(value) => {
                    let host = String::from_utf8_lossy(value).into_owned();
                    self.seats.insert(seat.to_owned(), Held { host, since: revision });
                }
                None => drop(self.seats.remove(seat)),
            }
        }
    }
}

pub fn seat_name(group: &str, topic: &str, partition: i32) -> String {
    format!("{group}/{topic}/{partition}")
}

/// This host among the others.
pub struct Hosts {
    ledger: Arc<dyn Ledger>,
    me: Host,
    ttl: Duration,
    view: watch::Receiver<View>,
}

impl Hosts {
    /// Begins to take part. The tasks end with the receiver `shutdown`.
    pub fn start(ledger: Arc<dyn Ledger>, me: Host, ttl: Duration, shutdown: watch::Receiver<bool>) -> Arc<Self> {
        let (tell, view) = watch::channel(View::default());
        tokio::spawn(until(shutdown.clone(), be_there(ledger.clone(), me.clone(), ttl)));
        tokio::spawn(until(shutdown, follow(ledger.clone(), tell)));
        Arc::new(Self { ledger, me, ttl, view })
    }

    pub fn me(&self) -> &Host {
        &self.me
    }

    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    pub fn changes(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    pub fn holder(&self, seat: &str) -> Option<String> {
        self.view.borrow().seats.get(seat).map(|held| held.host.clone())
    }

    /// Waits until it is this host's turn, and takes the seat.
    ///
    /// # Errors
    /// The ledger does not answer.
    pub async fn seat(self: &Arc<Self>, name: String) -> Result<Box<dyn Seat>, Error> {
        let mut view = self.view.clone();
        let mine = |view: &View| view.turn(&name) == Some(self.me.name.as_str());
        let gone = |_| Error::new(Code::STOPPED, "the host stops");
        loop {
            view.wait_for(mine).await.map_err(gone)?;
            let key = format!("{SEATS}{name}").into();
            let hold = Hold::take(self.ledger.clone(), key, &self.me.name, self.ttl);
            let hold = tokio::select! {
                hold = hold => hold?,
                // Given up while it waited: a lease that was granted meanwhile ends by itself.
                turned = view.wait_for(|view| !mine(view)) => {
                    turned.map_err(gone)?;
                    continue;
                }
            };
            return Ok(Box::new(Taken { kept: Kept(Some(hold)), view, name, me: self.me.name.clone() }));
        }
    }
}

/// A hold that is given back at once when nobody needs it any more.
struct Kept(Option<Hold>);

impl Kept {
    async fn lost(&mut self) {
        if let Some(hold) = &mut self.0 {
            hold.lost().await;
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let (Some(hold), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(error) = hold.release().await {
                    tracing::debug!(plane = "functions", %error, "a seat ends with its lease");
                }
            });
        }
    }
}

struct Taken {
    kept: Kept,
    view: watch::Receiver<View>,
    name: String,
    me: String,
}

impl Seat for Taken {
    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::select! {
                () = self.kept.lost() => {}
                _ = self.view.wait_for(|view| view.turn(&self.name).is_some_and(|host| host != self.me)) => {}
            }
        })
    }
}

async fn until(mut shutdown: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

/// Keeps this host's own key.
async fn be_there(ledger: Arc<dyn Ledger>, me: Host, ttl: Duration) {
    let owner = serde_json::to_string(&me).expect("a host is plain data");
    loop {
        match Hold::take(ledger.clone(), format!("{HOSTS}{}", me.name).into(), &owner, ttl).await {
            Ok(hold) => {
                Kept(Some(hold)).lost().await;
                tracing::warn!(
                    plane = "functions",
                    host = me.name,
                    "this host counts as gone until the ledger answers"
                );
            }
            Err(error) => {
                tracing::warn!(plane = "functions", host = me.name, %error, "this host cannot make itself known");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Follows hosts and seats.
async fn follow(ledger: Arc<dyn Ledger>, tell: watch::Sender<View>) {
    loop {
        if let Err(error) = follow_once(&*ledger, &tell).await {
            tracing::warn!(plane = "functions", %error, "hosts and seats are read again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow_once(ledger: &dyn Ledger, tell: &watch::Sender<View>) -> Result<(), Error> {
    let read = |prefix| ledger.read(KeyRange::prefix(prefix), KEYS_MAX, Consistency::Linearizable);
    let hosts = read(HOSTS).await?;
    let seats = read(SEATS).await?;
    let mut view = View { revision: hosts.revision, ..View::default() };
    for KeyValue { key, value, mod_revision, .. } in hosts.kvs.iter().chain(&seats.kvs) {
        view.take(key, Some(value), *mod_revision);
    }
    view.revision = hosts.revision;
    let (mut hosts, mut seats) = (
        ledger.watch(KeyRange::prefix(HOSTS), Some(Revision(hosts.revision.0 + 1))).await?,
        ledger.watch(KeyRange::prefix(SEATS), Some(Revision(seats.revision.0 + 1))).await?,
    );
    tell.send_replace(view);
    // A watch may lose changes when a pending `next` is dropped, so each is waited for to its end.
    let (mut next_host, mut next_seat) = (hosts.next(), seats.next());
    loop {
        let ended = || Error::new(Code::STOPPED, "the watch ended");
        let changes: Vec<KeyEvent> = tokio::select! {
            changes = &mut next_host => {
                drop(next_host);
                next_host = hosts.next();
                changes?.ok_or_else(ended)?
            }
            changes = &mut next_seat => {
                drop(next_seat);
                next_seat = seats.next();
                changes?.ok_or_else(ended)?
            }
        };
        tell.send_modify(|view| {
            for KeyEvent { revision, key, value } in &changes {
                view.take(key, value.as_ref(), *revision);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_follows_hosts_and_seats() {
        let mut view = View::default();
        let host = Host { id: 1, name: "a".into(), ..Host::default() };
        let json = Bytes::from(serde_json::to_vec(&host).unwrap());
        view.take(b"/buttress/hosts/a", Some(&json), Revision(3));
        view.take(b"/buttress/seats/fn:f/t/0", Some(&Bytes::from_static(b"a")), Revision(4));
        assert_eq!((view.hosts["a"].clone(), view.seats["fn:f/t/0"].since), (host, Revision(4)));
        view.take(b"/buttress/seats/fn:f/t/0", None, Revision(5));
        view.take(b"/buttress/hosts/a", None, Revision(6));
        assert_eq!(view, View { revision: Revision(6), ..View::default() });
    }
}
