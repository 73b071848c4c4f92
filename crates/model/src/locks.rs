//! A lock: a key under a lease, and the revision that created it as the fencing token of its holder.
//!
//! Clients take the lock (an entry that grants a lease and puts the key if it is not there), write a resource under their
//! token, keep their lease alive and let go. Every message may be as late as it likes: a holder that was paused writes
//! after its lease has expired and another holds the lock, and believes that it is still the holder.
//!
//! What is checked. Read from the history of keys alone: the lock is never put while it is there, and each write of the
//! resource was made under the token of the lock as it was at that revision, so tokens never go back. Leases end by
//! being revoked, or by an expiry at or after their deadline, and by nothing else.

use std::{collections::BTreeMap, fmt};

use buttress_core::{
    Entry, Guard, LeaseChange, LeaseId, RequestId, Revision, TimeMs,
    entry::Put,
    invariants::{ENTRY_3, Invariant, KEYS_1, LEASE_1, LEASE_2, LEASE_3, LOCK_1, REQUEST_1, Violation},
};
use buttress_state::Limits;

use crate::{
    design::{Design, Seen},
    real::Real,
};

const LOCK: &str = "lock";
const RESOURCE: &str = "resource";
const TTL: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Writes are not guarded.
    NoFence,
    /// Writes are guarded by who holds the lock instead of by the token.
    FenceByName,
    /// The lock is taken without looking whether it is there.
    TakenUnseen,
}

/// Each with what it is, and the invariant that it breaks.
pub const BUGS: [(Bug, &str, &str); 3] = [
    (Bug::NoFence, "writes are not guarded by the token", "LOCK-1"),
    (Bug::FenceByName, "writes are guarded by the holder's name only", "LOCK-1"),
    (Bug::TakenUnseen, "the lock is taken without a guard on its absence", "LOCK-1"),
];

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Locks {
    /// How often each client takes the lock.
    pub takes: [u8; 2],
    /// Writes of each client.
    pub writes: u8,
    /// Keep-alives of each client.
    pub keeps: u8,
    /// The clock's last value; a lease lives for 2.
    pub time: u8,
    pub bug: Option<Bug>,
}

impl Locks {
    pub fn small() -> Self {
        Self { takes: [1, 1], writes: 1, keeps: 0, time: 2, bug: None }
    }

    pub fn full() -> Self {
        Self { takes: [2, 1], writes: 1, keeps: 0, time: 2, bug: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Take { lease: i64 },
    Write { token: u64 },
    Keep { lease: i64 },
    LetGo { lease: i64 },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Client {
    takes: u8,
    writes: u8,
    keeps: u8,
    /// The request that it waits for.
    waits: Option<u8>,
    /// Token and lease, as it believes.
    holds: Option<(u64, i64)>,
    /// Requests sent.
    sent: u8,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    real: Real,
    now: u8,
    clients: [Client; 2],
    /// Client and number of the request → what it asks for.
    under_way: BTreeMap<(u8, u8), Message>,
    /// The leases that live, and until when.
    deadlines: BTreeMap<i64, u64>,
}

#[derive(Clone, PartialEq)]
pub enum Step {
    Take(u8),
    Write(u8),
    Keep(u8),
    LetGo(u8),
    /// The client stops waiting for the answer.
    GiveUp(u8),
    Apply(u8, u8),
    Tick,
    Expire,
}

fn who(client: u8) -> char {
    char::from(b'a' + client)
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Take(client) => write!(f, "{} asks for the lock", who(*client)),
            Self::Write(client) => write!(f, "{} writes under its token", who(*client)),
            Self::Keep(client) => write!(f, "{} keeps its lease alive", who(*client)),
            Self::LetGo(client) => write!(f, "{} lets go", who(*client)),
            Self::GiveUp(client) => write!(f, "{} waits no longer", who(*client)),
            Self::Apply(client, number) => write!(f, "{}/{number} is applied", who(*client)),
            Self::Tick => write!(f, "time passes"),
            Self::Expire => write!(f, "the leader ends what is due"),
        }
    }
}

const STALE: usize = 0;
const EXPIRED: usize = 1;
const BUSY: usize = 2;
const WROTE: usize = 3;

impl Design for Locks {
    type State = State;
    type Step = Step;

    const NAME: &'static str = "locks";
    const CHECKS: &'static [Invariant] = &[LOCK_1, LEASE_1, LEASE_2, LEASE_3, KEYS_1, REQUEST_1, ENTRY_3];
    const WITNESSES: &'static [&'static str] = &[
        "a write under an old token was refused",
        "a lease expired with its lock",
        "the lock was asked for while it was held",
        "a holder wrote",
    ];

    fn bounds(&self) -> String {
        let [a, b] = self.takes;
        format!("takes {a}+{b}, writes {0}+{0}, keep-alives {1}+{1}, time {2}", self.writes, self.keeps, self.time)
    }

    fn start(&self) -> State {
        State {
            real: Real::new(Limits::default()),
            now: 0,
            clients: Default::default(),
            under_way: BTreeMap::new(),
            deadlines: BTreeMap::new(),
        }
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for (client, at) in state.clients.iter().zip(0u8..) {
            if client.waits.is_some() {
                steps.push(Step::GiveUp(at));
            } else if client.holds.is_some() {
                if client.writes < self.writes {
                    steps.push(Step::Write(at));
                }
                if client.keeps < self.keeps {
                    steps.push(Step::Keep(at));
                }
                steps.push(Step::LetGo(at));
            } else if client.takes < self.takes[usize::from(at)] {
                steps.push(Step::Take(at));
            }
        }
        steps.extend(state.under_way.keys().map(|(client, number)| Step::Apply(*client, *number)));
        if state.now < self.time {
            steps.push(Step::Tick);
        }
        if state.real.machine().next_deadline().is_some_and(|at| at <= TimeMs(state.now.into())) {
            steps.push(Step::Expire);
        }
    }

    fn take(&self, state: &State, step: &Step, seen: &Seen) -> Result<State, Violation> {
        let mut next = state.clone();
        match *step {
            Step::Take(client) => {
                let takes = &mut next.clients[usize::from(client)].takes;
                *takes += 1;
                let lease = i64::from(client) * 10 + i64::from(*takes);
                let number = send(&mut next, client, Message::Take { lease });
                next.clients[usize::from(client)].waits = Some(number);
            }
            Step::Write(client) => {
                next.clients[usize::from(client)].writes += 1;
                let (token, _) = state.clients[usize::from(client)].holds.expect("who writes believes to hold");
                send(&mut next, client, Message::Write { token });
            }
            Step::Keep(client) => {
                next.clients[usize::from(client)].keeps += 1;
                let (_, lease) = state.clients[usize::from(client)].holds.expect("who keeps believes to hold");
                send(&mut next, client, Message::Keep { lease });
            }
            Step::LetGo(client) => {
                let held = next.clients[usize::from(client)].holds.take();
                let (_, lease) = held.expect("who lets go believes to hold");
                send(&mut next, client, Message::LetGo { lease });
            }
            Step::GiveUp(client) => next.clients[usize::from(client)].waits = None,
            Step::Apply(client, number) => self.apply(&mut next, client, number, seen)?,
            Step::Tick => next.now += 1,
            Step::Expire => {
                let now = TimeMs(state.now.into());
                let (real, effects) = state.real.apply(&Entry { time: now, expire: true, ..Entry::default() })?;
                next.real = real;
                for LeaseId(lease) in effects.leases_ended {
                    let due = next.deadlines.remove(&lease).is_some_and(|deadline| deadline <= now.0);
                    LEASE_2.hold(due, || format!("lease {lease} ended at {now}: {:?}", state.deadlines))?;
                    seen.mark(EXPIRED);
                }
                look(&next)?;
            }
        }
        Ok(next)
    }
}

fn send(state: &mut State, client: u8, message: Message) -> u8 {
    let number = &mut state.clients[usize::from(client)].sent;
    let sent = *number;
    *number += 1;
    state.under_way.insert((client, sent), message);
    sent
}

impl Locks {
    fn entry(&self, client: u8, number: u8, message: Message, now: u8) -> Entry {
        let put =
            |key: &str, value: String, lease| Put { key: key.to_owned().into(), value: Some(value.into()), lease };
        let mut entry = Entry {
            // The client sends nothing twice here, and never says what has reached it.
            request: Some(RequestId { client: client.into(), number: number.into(), acknowledged_below: 0 }),
            time: TimeMs(now.into()),
            ..Entry::default()
        };
        match message {
            Message::Take { lease } => {
                if self.bug != Some(Bug::TakenUnseen) {
                    entry.guards.push(Guard::CreateRevision { key: LOCK.into(), revision: Revision(0) });
                }
                entry.leases.push(LeaseChange::Grant { lease: LeaseId(lease), ttl_ms: TTL });
                entry.puts.push(put(LOCK, who(client).into(), Some(LeaseId(lease))));
            }
            Message::Write { token } => {
                entry.guards.extend(match self.bug {
                    Some(Bug::NoFence) => None,
                    Some(Bug::FenceByName) => {
                        Some(Guard::Value { key: LOCK.into(), value: who(client).to_string().into() })
                    }
                    _ => Some(Guard::CreateRevision { key: LOCK.into(), revision: Revision(token) }),
                });
                entry.puts.push(put(RESOURCE, token.to_string(), None));
            }
            Message::Keep { lease } => entry.leases.push(LeaseChange::KeepAlive { lease: LeaseId(lease) }),
            Message::LetGo { lease } => entry.leases.push(LeaseChange::Revoke { lease: LeaseId(lease) }),
        }
        entry
    }

    fn apply(&self, next: &mut State, client: u8, number: u8, seen: &Seen) -> Result<(), Violation> {
        let message = next.under_way.remove(&(client, number)).expect("it was under way");
        let (real, effects) = next.real.apply(&self.entry(client, number, message, next.now))?;
        next.real = real;
        let until = u64::from(next.now) + TTL;
        match (message, &effects.result) {
            (Message::Take { lease }, Ok(receipt)) => {
                next.deadlines.insert(lease, until);
                let client = &mut next.clients[usize::from(client)];
                if client.waits == Some(number) {
                    client.waits = None;
                    client.holds = Some((receipt.revision.0, lease));
                }
            }
            (Message::Take { .. }, Err(_)) => {
                let client = &mut next.clients[usize::from(client)];
                if client.waits == Some(number) {
                    client.waits = None;
                }
                seen.mark(BUSY);
            }
            (Message::Write { .. }, Ok(_)) => seen.mark(WROTE),
            (Message::Write { token }, Err(_)) => {
                // A write is refused only where its token is no longer the lock's.
                let (created, _, _) = next.real.key(LOCK);
                LOCK_1.hold(created != Revision(token), || format!("a holder's write under {token} was refused"))?;
                seen.mark(STALE);
                // It learns that it holds the lock no longer.
                let client = &mut next.clients[usize::from(client)];
                client.holds = client.holds.filter(|(held, _)| *held != token);
            }
            (Message::Keep { lease }, result) => {
                let lives = next.deadlines.contains_key(&lease);
                LEASE_2.hold(result.is_ok() == lives, || format!("lease {lease} kept alive: {result:?}"))?;
                if lives {
                    next.deadlines.insert(lease, until);
                }
            }
            (Message::LetGo { lease }, result) => {
                let lived = next.deadlines.remove(&lease).is_some();
                LEASE_2.hold(result.is_ok() == lived, || format!("lease {lease} revoked: {result:?}"))?;
            }
        }
        look(next)
    }
}

/// Reads the history of keys as somebody who knows nothing of the clients.
fn look(state: &State) -> Result<(), Violation> {
    let mut token = None;
    for event in state.real.history() {
        match (&event.key[..] == LOCK.as_bytes(), &event.value) {
            (true, Some(_)) => {
                LOCK_1.hold(token.is_none(), || format!("the lock is taken at {} while held", event.revision))?;
                token = Some(event.revision.0);
            }
            (true, None) => token = None,
            (false, value) => {
                let value = value.as_deref().expect("the resource is never deleted");
                let under: u64 = String::from_utf8_lossy(value).parse().expect("a token was written");
                LOCK_1.hold(token == Some(under), || {
                    format!("a write under {under} at {}, where the lock's token is {token:?}", event.revision)
                })?;
            }
        }
    }
    let leases: BTreeMap<i64, u64> =
        state.real.machine().leases().iter().map(|(id, lease)| (id.0, lease.deadline.0)).collect();
    LEASE_2.hold(leases == state.deadlines, || format!("leases {leases:?}, not {:?}", state.deadlines))?;
    LEASE_3.hold(token.is_none() || !leases.is_empty(), || format!("the lock of {token:?} outlived its lease"))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::{design::check, report::story};

    #[test]
    fn a_lock_has_one_holder_by_token() {
        let explored = check(Locks::small());
        assert!(explored.ok(), "{}{:?}", story(&explored), explored.missing);
    }

    fn finds(bug: Bug, expect: Expect) {
        expect.assert_eq(&story(&check(Locks { bug: Some(bug), ..Locks::full() })));
    }

    #[test]
    fn a_missing_fence_is_found() {
        finds(
            Bug::NoFence,
            expect![[r#"
            a asks for the lock
            a/0 is applied
            a writes under its token
            a lets go
            a/2 is applied
            a/1 is applied
            => LOCK-1 does not hold: a write under 2 at 4, where the lock's token is None
        "#]],
        );
    }

    #[test]
    fn a_name_is_no_fence() {
        finds(
            Bug::FenceByName,
            expect![[r#"
            a asks for the lock
            a/0 is applied
            a writes under its token
            a lets go
            a asks for the lock
            a/2 is applied
            a/3 is applied
            a/1 is applied
            => LOCK-1 does not hold: a write under 2 at 5, where the lock's token is Some(4)
        "#]],
        );
    }

    #[test]
    fn a_lock_taken_unseen_is_found() {
        finds(
            Bug::TakenUnseen,
            expect![[r#"
            a asks for the lock
            b asks for the lock
            a/0 is applied
            b/0 is applied
            => LOCK-1 does not hold: the lock is taken at 3 while held
        "#]],
        );
    }
}
