//! Which gateways there are, and asking all of them for one request.
//!
//! A gateway that has its routes from a store tells there where its admin address is, under a key that hangs on its lease
//! ([`super::presence`]), and so goes with it. Whoever looks for a request asks all of them at once, waits for none longer than
//! [`PATIENCE`], and names those that did not answer: what they know stays unknown.

use std::time::Duration;

use buttress_core::{Code, Consistency, Entry, Error, KeyRange, LeaseId, Ledger, Put};
use buttress_resources::kept::{Gateway, gateway_key, gateways_prefix};
use serde_json::{Value, json};

use super::store::Store;
use crate::{
    client::segment,
    demo::http::{Ask, HttpClient},
};

/// How often a gateway looks whether it still is as it has told, which costs no more than a look at its listeners.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For the answer of one gateway.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Gateways of one store; of more, whoever asks is told that there may be others ([`tell_if_cut`]).
pub const GATEWAYS_MAX: usize = 1000;

/// Says on standard error that not all gateways may be among these.
pub fn tell_if_cut(gateways: &[Gateway]) {
    if gateways.len() >= GATEWAYS_MAX {
        eprintln!("the store names more than can be looked at: these are the first {GATEWAYS_MAX} gateways by name");
    }
}

/// How this machine is called.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Tells the store of this gateway until it is dropped: under the lease that holds, and again when something of it changed. Nothing
/// waits for it.
pub async fn announce(
    ledger: &dyn Ledger,
    about: impl Fn() -> Gateway,
    mut lease: tokio::sync::watch::Receiver<Option<LeaseId>>,
) {
    let mut told = None;
    loop {
        let held = *lease.borrow_and_update();
        let wanted = held.map(|lease| (lease, about()));
        if let Some((lease, now)) = wanted.as_ref().filter(|_| told != wanted) {
            match ledger.submit(Entry { puts: vec![put(now, *lease)], ..Entry::default() }).await {
                Ok(_) => told = wanted,
                Err(error) => tracing::debug!(%error, "the store was not told of this gateway"),
            }
        }
        tokio::select! {
            other = lease.changed() => if other.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn put(about: &Gateway, lease: LeaseId) -> Put {
    let value = serde_json::to_vec(about).expect("a gateway is texts and a number");
    Put { key: gateway_key(&about.name).into(), value: Some(value.into()), lease: Some(lease) }
}

/// Those that a store knows, by name. What a newer gateway writes otherwise is left out.
///
/// # Errors
/// The store does not answer.
pub async fn gateways(ledger: &dyn Ledger) -> Result<Vec<Gateway>, Error> {
    let read = ledger.read(KeyRange::prefix(gateways_prefix()), GATEWAYS_MAX, Consistency::Linearizable).await?;
    Ok(read.kvs.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()).collect())
}

/// Those of a store at an address.
///
/// # Errors
/// It cannot be reached.
pub async fn of_store(url: &str) -> Result<Vec<Gateway>, Error> {
    gateways(Store::connect(url, String::new()).await?.ledger()).await
}

/// Who is asked for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Empty where only its address is known.
    pub name: String,
    pub admin: String,
}

impl Asked {
    pub fn label(&self) -> String {
        if self.name.is_empty() { self.admin.clone() } else { format!("{} ({})", self.name, self.admin) }
    }
}

/// What one of them said.
#[derive(Debug)]
pub enum Said {
    Record(Box<Value>),
    NotKept,
    /// Why it could not be asked.
    Silent(Error),
}

/// Asks one gateway.
pub async fn ask(asked: &Asked, id: &str) -> Said {
    let path = format!("/v1/requests/{}", segment(id));
    match HttpClient::default().ask(&asked.admin, &Ask::get(&path), PATIENCE).await {
        Ok(answer) => match answer.status.as_u16() {
            200 => Said::Record(Box::new(answer.json())),
            // A 404 of somebody else says nothing about a request.
            404 if answer.json()["code"] == Code::REQUEST_UNKNOWN.0 => Said::NotKept,
            _ => Said::Silent(Error::new(Code::BAD_REQUEST, answer.problem())),
        },
        Err(error) => Said::Silent(error),
    }
}

/// Asks all of a store at once. Those on a loopback address of another machine cannot be asked from here.
pub async fn ask_all(all: Vec<Gateway>, id: &str) -> Vec<(Asked, Said)> {
    let here = host();
    let one = async |gateway: Gateway| {
        let asked = Asked { name: gateway.name, admin: gateway.admin };
        let loopback = asked.admin.parse::<std::net::SocketAddr>().is_ok_and(|admin| admin.ip().is_loopback());
        if loopback && gateway.host != here {
            let says = format!("its admin address is of {} alone", gateway.host);
            let hint =
                format!("ask there, or start it with --admin on an address that reaches further: {}", asked.admin);
            return (asked, Said::Silent(Error::new(Code::UNREACHABLE, says).hint(hint)));
        }
        let said = ask(&asked, id).await;
        (asked, said)
    };
    futures::future::join_all(all.into_iter().map(one)).await
}

/// When a request came to the gateway that has this record of it, in milliseconds: a request that passed two has two.
pub fn came(record: &Value) -> f64 {
    record["at_ms"].as_f64().unwrap_or_default() - record["took_ms"].as_f64().unwrap_or_default()
}

/// For programs.
pub fn json(told: &[(Asked, Said)]) -> Value {
    let (mut records, mut unreachable) = (Vec::new(), Vec::new());
    for (asked, said) in told {
        match said {
            Said::Record(record) => {
                records.push(json!({"gateway": asked.name, "admin": asked.admin, "record": record}));
            }
            Said::Silent(error) => {
                unreachable.push(json!({"gateway": asked.name, "admin": asked.admin, "message": error.message}));
            }
            Said::NotKept => {}
        }
    }
    json!({"asked": told.len(), "records": records, "unreachable": unreachable})
}
