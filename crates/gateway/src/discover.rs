//! Endpoints that nobody writes down: every address that DNS gives for a name, and what the registry has of a service.
//!
//! | DNS says | the list |
//! |---|---|
//! | an address | has it at once |
//! | no longer an address that was there | keeps it for two more answers: servers that turn through their records give other ones each time, and a call to an address that is gone fails over anyway |
//! | nothing, or an error | stays as it is: an outage of DNS is none of the service |
//!
//! The registry says itself what is gone, so its lists are taken as they come.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::shared::Shared;

/// Between two look-ups of a name; what most internal zones have as time to live.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
const LOOK_UP_MAX: Duration = Duration::from_secs(4);
/// How soon a new name is looked up.
const TICK: Duration = Duration::from_millis(250);
/// Answers in which an address may be missing.
const MISSED_MAX: u32 = 2;
/// Addresses of one name.
pub const ADDRESSES_MAX: usize = 1_000;

/// Where a list comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `NAME:PORT`.
    Dns(String),
    /// A name in the registry.
    Service(String),
}

/// What was found of each source, in `HOST:PORT`.
pub type Found = HashMap<Source, Vec<String>>;

#[derive(Default)]
struct Name {
    due: Option<Instant>,
    /// Addresses, and in how many answers they were missing.
    known: HashMap<String, u32>,
}

impl Name {
    fn answered(&mut self, addresses: &[String]) -> Vec<String> {
        self.known.values_mut().for_each(|missed| *missed += 1);
        for address in addresses.iter().take(ADDRESSES_MAX) {
            self.known.insert(address.clone(), 0);
        }
        self.known.retain(|_, missed| *missed <= MISSED_MAX);
        let mut list: Vec<String> = self.known.keys().cloned().collect();
        list.sort_unstable();
        list
    }
}

/// Looks up whatever the table names, until it is dropped.
pub async fn keep(shared: Arc<Shared>) {
    let mut names: HashMap<String, Name> = HashMap::new();
    let mut asking = JoinSet::new();
    loop {
        let now = Instant::now();
        let wanted: Vec<String> =
            shared.table.load().backends().filter_map(|backend| backend.identity.dns.clone()).collect();
        names.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let state = names.entry(name.clone()).or_insert_with(|| {
                let found = shared.found(&Source::Dns(name.clone())).unwrap_or_default();
                Name { due: None, known: found.into_iter().map(|address| (address, 0)).collect() }
            });
            if state.due.is_none_or(|due| due <= now) {
                state.due = Some(now + LOOK_UP_EVERY);
                asking.spawn_local(async move {
                    let host = bare(&name).to_owned();
                    let answer = tokio::time::timeout(LOOK_UP_MAX, tokio::net::lookup_host(host)).await;
                    let addresses = match answer {
                        Ok(Ok(addresses)) => Ok(addresses.map(|address| address.to_string()).collect::<Vec<String>>()),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err("no answer in time".to_owned()),
                    };
                    (name, addresses)
                });
            }
        }
        let answered = tokio::select! {
            answered = asking.join_next(), if !asking.is_empty() => answered.and_then(Result::ok),
            () = tokio::time::sleep(TICK) => None,
        };
        let Some((name, answer)) = answered else { continue };
        let Some(state) = names.get_mut(&name) else { continue };
        match answer {
            Ok(addresses) if !addresses.is_empty() => {
                let list = state.answered(&addresses);
                shared.discovered(Source::Dns(name), list);
            }
            Ok(_) => tracing::warn!(name, "the name has no address; the last ones stay"),
            Err(problem) => tracing::warn!(name, problem, "the name cannot be looked up; the last addresses stay"),
        }
    }
}

/// Looks up names of which nothing is known yet, so that the first requests have endpoints. Waits for at most two seconds.
pub fn first_look(names: Vec<String>) -> Vec<(String, Vec<String>)> {
    let (told, answers) = mpsc::channel();
    let asked = names.len();
    for name in names {
        let told = told.clone();
        std::thread::spawn(move || {
            let addresses = std::net::ToSocketAddrs::to_socket_addrs(bare(&name));
            let mut list: Vec<String> = addresses.into_iter().flatten().map(|address| address.to_string()).collect();
            list.sort_unstable();
            list.dedup();
            list.truncate(ADDRESSES_MAX);
            let _ = told.send((name, list));
        });
    }
    let end = Instant::now() + Duration::from_secs(2);
    (0..asked).map_while(|_| answers.recv_timeout(end.saturating_duration_since(Instant::now())).ok()).collect()
}

/// Without the scheme.
fn bare(name: &str) -> &str {
    name.split_once("://").map_or(name, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_missing_now_and_then_stays_and_one_that_is_gone_goes() {
        let mut name = Name::default();
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(name.answered(&list(&["b:1", "a:1"])), ["a:1", "b:1"]);
        for _ in 0..10 {
            assert_eq!(name.answered(&list(&["a:1"])), ["a:1", "b:1"]);
            assert_eq!(name.answered(&list(&["b:1"])), ["a:1", "b:1"]);
        }
        // The last answer was without a already.
        assert_eq!(name.answered(&list(&["c:1", "b:1"])), ["a:1", "b:1", "c:1"]);
        assert_eq!(name.answered(&list(&["c:1", "b:1"])), ["b:1", "c:1"]);
    }

    #[test]
    fn names_are_looked_up_before_the_first_request() {
        let found = first_look(vec!["localhost:80".into(), "h2c://127.0.0.1:81".into()]);
        let of = |name: &str| &found.iter().find(|(known, _)| known == name).unwrap().1;
        assert!(
            of("localhost:80").iter().any(|address| address == "127.0.0.1:80" || address == "[::1]:80"),
            "{found:?}"
        );
        assert_eq!(of("h2c://127.0.0.1:81"), &["127.0.0.1:81"]);
    }
}
