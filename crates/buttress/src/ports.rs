//! Free ports on loopback for clusters that we start ourselves.

use std::net::{Ipv4Addr, TcpListener};

use buttress_core::{Code, Error};

/// Below Linux's ephemeral range (32768 and up), so that no outgoing connection takes a node's port while it restarts.
const FIRST: u16 = 15_000;
const LAST: u16 = 32_000;

/// Finds `count` ports that nobody listens on, searching from a place that `seed` gives.
///
/// # Errors
/// `PORT_TAKEN` when the range does not have so many.
pub fn free(count: usize, seed: u64) -> Result<Vec<u16>, Error> {
    let span = LAST - FIRST;
    let start = (seed % u64::from(span)) as u16;
    let mut held = Vec::with_capacity(count);
    for step in 0..span {
        let port = FIRST + (start + step) % span;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
            if held.len() == count {
                return Ok(held.into_iter().map(|(port, _)| port).collect());
            }
        }
    }
    let message = format!("fewer than {count} ports are free on loopback between {FIRST} and {LAST}");
    Err(Error::new(Code::PORT_TAKEN, message).hint("stop other servers"))
}
