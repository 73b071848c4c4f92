//! `buttress lock`: commands that run while a lock is held, an election is won, or a place of a semaphore is taken.

use std::{ffi::OsString, process::ExitCode, sync::Arc, time::Duration};

use buttress_core::{Code, Error};
use bytes::Bytes;
use serde_json::json;

use super::{
    FAILED, NO,
    args::{LockCommand, LockOptions, Output},
    show,
};
use crate::{
    client::Client,
    locks::{
        self, Held, Session, TTL_MAX, TTL_MIN, Wanted,
        gateway::Gateway,
        supervise::{self, Ended, exit_code},
    },
};

pub fn run(command: LockCommand) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(carry_out(command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", show::describe(&error.into()));
            ExitCode::from(FAILED)
        }
    }
}

async fn carry_out(command: LockCommand) -> Result<u8, Error> {
    match command {
        LockCommand::Run { name, options, command } => {
            hold(Wanted { name, limit: 1, value: Bytes::new() }, options, Some(command)).await
        }
        LockCommand::Semaphore { name, limit, options, command } => {
            hold(Wanted { name, limit, value: Bytes::new() }, options, Some(command)).await
        }
        LockCommand::Elect { name, value, options, command } => {
            let value = value.unwrap_or_else(|| {
                let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                format!("{}:{}", host.trim(), std::process::id())
            });
            let command = (!command.is_empty()).then_some(command);
            hold(Wanted { name, limit: 1, value: value.into() }, options, command).await
        }
        LockCommand::Who { name, limit, etcd, server } => {
            let gateway = Gateway::new(&endpoints(etcd, &server.server).await?)?;
            let places = locks::queue(&gateway, &name).await?;
            let holds = |at: usize| if at < limit { "holds" } else { "waits" };
            match server.output {
                Output::Json => {
                    for (at, place) in places.iter().enumerate() {
                        let value = String::from_utf8_lossy(&place.value);
                        let key = String::from_utf8_lossy(&place.key);
                        let told = json!({
                            "state": holds(at), "token": place.create_revision, "value": value, "key": key,
                            "lease": format!("{:x}", place.lease),
                        });
                        show::json(&told).map_err(show::output_failed)?;
                    }
                }
                Output::Table => {
                    let rows: Vec<Vec<String>> = places
                        .iter()
                        .enumerate()
                        .map(|(at, place)| {
                            vec![
                                holds(at).into(),
                                place.create_revision.to_string(),
                                place.value.escape_ascii().to_string(),
                                format!("{:x}", place.lease),
                            ]
                        })
                        .collect();
                    show::table(&["STATE", "TOKEN", "VALUE", "LEASE"], &rows).map_err(show::output_failed)?;
                }
            }
            Ok(if places.is_empty() { NO } else { super::DONE })
        }
    }
}

/// The etcd endpoints: those that are named, or those of the cluster that the node belongs to.
async fn endpoints(named: Vec<String>, server: &str) -> Result<Vec<String>, Error> {
    if !named.is_empty() {
        return Ok(named);
    }
    let cluster = Client::new(server)?.get("/v1/cluster").await?;
    let members = cluster["members"].as_array().into_iter().flatten();
    let served: Vec<String> = members
        .filter_map(|m| m["etcd"].as_str().filter(|at| !at.is_empty()).map(|at| format!("http://{at}")))
        .collect();
    if served.is_empty() {
        return Err(Error::new(Code::CONFIG, format!("no node of the cluster at {server} serves etcd clients"))
            .hint("give its members an etcd address, or name an etcd with --etcd http://HOST:PORT"));
    }
    Ok(served)
}

async fn hold(wanted: Wanted, options: LockOptions, command: Option<Vec<OsString>>) -> Result<u8, Error> {
    wanted.check()?;
    if options.ttl < TTL_MIN || options.ttl > TTL_MAX {
        let message = format!("--ttl {:?} is not between {TTL_MIN:?} and {TTL_MAX:?}", options.ttl);
        return Err(Error::new(Code::BAD_REQUEST, message).hint("a lease counts in whole seconds"));
    }
    let gateway = Arc::new(Gateway::new(&endpoints(options.etcd, &options.server).await?)?);
    let patience = options.wait.unwrap_or(Duration::MAX);
    let session = Session::open(gateway, options.ttl, patience).await?;
    let name = wanted.name.clone();
    let mut told = None;
    let waiting = |ahead: usize| {
        if told.replace(ahead) != Some(ahead) {
            eprintln!("waiting for {name}: {ahead} ahead");
        }
    };
    let turn = tokio::select! {
        held = locks::acquire(&session, &wanted, waiting) => Some(held),
        () = tokio::time::sleep(patience) => None,
        stop = supervise::asked_to_stop() => {
            stop?;
            session.close().await?;
            return Ok(NO);
        }
    };
    let held = match turn {
        None => {
            eprintln!("{} was not free within {:?}", wanted.name, patience);
            session.close().await?;
            return Ok(NO);
        }
        Some(Err(error)) => {
            let _ = session.close().await;
            return Err(error);
        }
        Some(Ok(held)) => held,
    };
    let ended = with_lock(&session, &wanted, &held, command).await;
    if ended.as_ref().is_err_and(|error| error.code == Code::LOCK_LOST) {
        session.close_lost().await;
        return ended;
    }
    // Whatever came, the next in the queue does not wait for the lease to end.
    let closed = session.close().await;
    if let (Ok(_), Err(error)) = (&ended, closed) {
        eprintln!("warning: {} could not be let go, its lease ends by itself: {}", wanted.name, error.message);
    }
    ended
}

async fn with_lock(
    session: &Session,
    wanted: &Wanted,
    held: &Held,
    command: Option<Vec<OsString>>,
) -> Result<u8, Error> {
    let lost = || {
        Error::new(Code::LOCK_LOST, format!("\"{}\" was lost, token {}", wanted.name, held.token))
            .hint("see that the cluster can be reached and has a majority; a longer --ttl bears longer interruptions")
    };
    match command {
        Some(command) => match supervise::run(&command, &wanted.name, held, session).await? {
            Ended::Itself(status) => Ok(exit_code(status)),
            Ended::Lost => Err(lost()),
        },
        None => {
            println!("{} {}", wanted.name, held.token);
            tokio::select! {
                _ = session.lost() => {
                    eprintln!("{} is lost: {}", wanted.name, session.why_lost());
                    Err(lost())
                }
                stop = supervise::asked_to_stop() => stop.map(|()| super::DONE),
            }
        }
    }
}
