//! The bulkhead: a number of calls at once, and a bounded queue in front of it.
//!
//! **Why.** One slow upstream must not take every connection, task and byte of a gateway. Its calls get so many places; a short
//! queue takes up bursts; what is more is refused at once. The limit is the smaller of the fixed one and what
//! [`crate::adaptive`] has found out.
//!
//! | event | places and queue |
//! |---|---|
//! | enter, nobody waits, a place within the priority's share is free | in |
//! | enter, no place, room in the queue, time to wait | queued, behind its own and more important priorities |
//! | enter, no place otherwise | refused: BT-BLK-FULL, BT-LIM-FULL or BT-SHD-PRIORITY, whichever limit it was |
//! | leave | the place is free; who waits first gets it, and who has waited too long is told so (BT-SHD-QUEUE, BT-BLK-WAITED) |
//! | gives up (its timer, its client) | leaves the queue; or hears that it got a place meanwhile, which it must use or leave |
//!
//! How long a call may wait says [`crate::shed`]; never longer than its deadline lets it, with the least that a call needs.
//!
//! All cores share it. Without a queue, entering and leaving are an atomic step each; the lock is for the queue. Order of the two
//! counters: whoever queues announces itself before it looks for a place again, and whoever leaves frees the place before it looks
//! for a queue (both sequentially consistent), so a place and a waiter cannot miss each other.
//!
//! **First start.** Empty. **Recovery.** Nothing is kept.
//!
//! Source: Nygard, "Release It!", ch. 5; Envoy's "circuit breakers" (1024 requests), which are this; Maurer 2015 for the queue.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use crate::{
    adaptive,
    config::{Checks, Invalid, Validate},
    decision::Why,
    shed::{self, PRIORITIES, Priority, Standing},
    time::{Span, Time},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Calls at once.
    pub concurrent: u32,
    /// Calls that may wait; 0 for no queue.
    pub queue: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { concurrent: 1024, queue: 128 }
    }
}

impl Validate for Config {
    fn wrong(&self, prefix: &str) -> Vec<Invalid> {
        let mut checks = Checks::default();
        let fits = (1..=1_000_000).contains(&self.concurrent);
        checks.must(fits, &format!("{prefix}.concurrent"), self.concurrent, "from 1 to 1000000");
        checks.must(self.queue <= 65_536, &format!("{prefix}.queue"), self.queue, "at most 65536");
        checks.all()
    }
}

/// A place in the queue. The driver keeps whom to wake under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What enters.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub priority: Priority,
    pub deadline: Time,
    /// What a call needs at least, once it has its place.
    pub minimum: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entered {
    In { inflight: u32, limit: u32 },
    Queued { ticket: Ticket, until: Time, why: Why },
}

/// Who is to be woken, and with what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Woken {
    /// It has a place now.
    In(Ticket),
    /// It has waited for too long.
    Out(Ticket, Why),
}

/// What became of a ticket that was given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GaveUp {
    Left(Why),
    /// It was woken already, under the queue's lock: given a place, which it must leave, unless its word is [`Woken::Out`].
    HasPlace,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    since: Time,
    until: Time,
    /// It came to a queue that stood.
    strict: bool,
}

#[derive(Debug)]
struct Queue {
    waiting: [VecDeque<Waiting>; PRIORITIES],
    next: u64,
    standing: Standing,
}

#[derive(Debug)]
pub struct Bulkhead {
    config: Config,
    shed: shed::Config,
    inflight: AtomicU32,
    queued: AtomicU32,
    queue: Mutex<Queue>,
}

impl Bulkhead {
    pub fn new(config: Config, shed: shed::Config) -> Self {
        let queue = Queue { waiting: Default::default(), next: 0, standing: Standing::new() };
        Self { config, shed, inflight: AtomicU32::new(0), queued: AtomicU32::new(0), queue: Mutex::new(queue) }
    }

    pub fn inflight(&self) -> u32 {
        self.inflight.load(Relaxed)
    }

    pub fn queued(&self) -> u32 {
        self.queued.load(Relaxed)
    }

    /// The smaller of the fixed limit and the adaptive one.
    pub fn limit(&self, adaptive: Option<adaptive::View>) -> u32 {
        adaptive.map_or(self.config.concurrent, |view| view.limit.min(self.config.concurrent))
    }

    /// Asks for a place. Whoever is in must [`leave`](Self::leave); whoever is queued waits for [`Woken`], or gives up at `until`.
    ///
    /// # Errors
    /// Why there is none, and no waiting for one.
    pub fn enter(&self, now: Time, asked: &Asked, adaptive: Option<adaptive::View>) -> Result<Entered, Why> {
        let limit = self.limit(adaptive);
        let places = self.shed.places(limit, asked.priority);
        if self.queued.load(SeqCst) == 0
            && let Some(inflight) = self.take(places)
        {
            return Ok(Entered::In { inflight, limit });
        }
        if self.config.queue == 0 {
            return Err(self.refusal(limit, asked.priority, adaptive));
        }
        self.wait(now, asked, adaptive, limit, places)
    }

    /// Gives the place back, and says who is to be woken.
    pub fn leave(&self, now: Time, adaptive: Option<adaptive::View>, wake: impl FnMut(Woken)) {
        self.inflight.fetch_sub(1, SeqCst);
        if self.queued.load(SeqCst) > 0 {
            self.hand_over(now, self.limit(adaptive), wake);
        }
    }

    /// Whoever waits no longer: its time is over, or its client went away.
    pub fn give_up(&self, now: Time, ticket: Ticket) -> GaveUp {
        let mut queue = self.queue();
        for waiting in &mut queue.waiting {
            if let Some(at) = waiting.iter().position(|one| one.ticket == ticket) {
                let one = waiting.remove(at).expect("it was found at this place");
                self.queued.fetch_sub(1, SeqCst);
                if queue.is_empty() {
                    queue.standing.empty(now);
                }
                let (waited, wait_max) = (now.since(one.since).into(), one.until.since(one.since));
                return GaveUp::Left(if one.strict && wait_max == self.shed.target {
                    Why::ShedQueue { waited, target: wait_max.into() }
                } else {
                    Why::BulkheadWaited { waited, wait_max: wait_max.into() }
                });
            }
        }
        GaveUp::HasPlace
    }

    fn take(&self, places: u32) -> Option<u32> {
        let more = |inflight: u32| (inflight < places).then(|| inflight + 1);
        self.inflight.fetch_update(SeqCst, Relaxed, more).ok().map(|before| before + 1)
    }

    #[cold]
    fn wait(
        &self,
        now: Time,
        asked: &Asked,
        adaptive: Option<adaptive::View>,
        limit: u32,
        places: u32,
    ) -> Result<Entered, Why> {
        let mut queue = self.queue();
        let level = asked.priority.level();
        let ahead = queue.waiting[..=level].iter().map(VecDeque::len).sum::<usize>() as u32;
        if ahead == 0
            && let Some(inflight) = self.take(places)
        {
            return Ok(Entered::In { inflight, limit });
        }
        if queue.is_empty() {
            queue.standing.empty(now);
        }
        let most = queue.standing.wait_max(&self.shed, now, asked.priority);
        let wait_max = most.min(asked.deadline.since(now).saturating_sub(asked.minimum));
        if self.queued.load(Relaxed) >= self.config.queue || wait_max.is_zero() {
            return Err(self.refusal(limit, asked.priority, adaptive));
        }
        self.queued.fetch_add(1, SeqCst);
        // A place may have become free before the counter told that somebody waits.
        if ahead == 0
            && let Some(inflight) = self.take(places)
        {
            self.queued.fetch_sub(1, SeqCst);
            return Ok(Entered::In { inflight, limit });
        }
        let ticket = Ticket(queue.next);
        queue.next += 1;
        let until = now.plus(wait_max);
        let strict = queue.standing.stands(&self.shed, now);
        queue.waiting[level].push_back(Waiting { ticket, since: now, until, strict });
        Ok(Entered::Queued { ticket, until, why: Why::BulkheadQueued { ahead, wait_max: wait_max.into() } })
    }

    #[cold]
    fn hand_over(&self, now: Time, limit: u32, mut wake: impl FnMut(Woken)) {
        let mut queue = self.queue();
        let Queue { waiting, standing, .. } = &mut *queue;
        'priorities: for (level, waiting) in waiting.iter_mut().enumerate() {
            let priority = Priority::new(level as u8);
            let target = standing.wait_max(&self.shed, now, priority);
            while let Some(first) = waiting.front() {
                let (ticket, waited) = (first.ticket, now.since(first.since));
                let (late, long) = (now >= first.until, waited > target);
                let wait_max = first.until.since(first.since);
                if !late && !long && self.take(self.shed.places(limit, priority)).is_none() {
                    // Less important ones have no more places than this one.
                    break 'priorities;
                }
                waiting.pop_front();
                self.queued.fetch_sub(1, SeqCst);
                wake(if late {
                    Woken::Out(ticket, Why::BulkheadWaited { waited: waited.into(), wait_max: wait_max.into() })
                } else if long {
                    Woken::Out(ticket, Why::ShedQueue { waited: waited.into(), target: target.into() })
                } else {
                    Woken::In(ticket)
                });
            }
        }
        if queue.is_empty() {
            queue.standing.empty(now);
        }
    }

    fn refusal(&self, limit: u32, priority: Priority, adaptive: Option<adaptive::View>) -> Why {
        let (inflight, queued) = (self.inflight(), self.queued());
        let places = self.shed.places(limit, priority);
        if places < limit && inflight < limit {
            return Why::ShedPriority { priority: priority.level() as u32, inflight, limit: places };
        }
        match adaptive {
            Some(view) if view.limit < self.config.concurrent => Why::LimiterFull {
                inflight,
                limit: view.limit,
                latency: Span::from(view.short),
                usual: Span::from(view.base),
            },
            _ => Why::BulkheadFull { inflight, limit, queued, queue: self.config.queue },
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.waiting.iter().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(level: u8) -> Asked {
        Asked { priority: Priority::new(level), deadline: Time::NEVER, minimum: Duration::ZERO }
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    fn bulkhead(concurrent: u32, queue: u32) -> Bulkhead {
        let shed = shed::Config { shares: [1.0, 1.0, 0.5, 0.5], ..Default::default() };
        Bulkhead::new(Config { concurrent, queue }, shed)
    }

    fn leave(bulkhead: &Bulkhead, ms: u64) -> Vec<Woken> {
        let mut woken = Vec::new();
        bulkhead.leave(at(ms), None, |one| woken.push(one));
        woken
    }

    fn queued(bulkhead: &Bulkhead, ms: u64, level: u8) -> Ticket {
        match bulkhead.enter(at(ms), &asked(level), None) {
            Ok(Entered::Queued { ticket, .. }) => ticket,
            other => panic!("{other:?}"),
        }
    }

    /// MISSION: 10 concurrent calls.
    #[test]
    fn ten_calls_run_and_the_eleventh_is_refused_or_waits() {
        let strict = bulkhead(10, 0);
        for n in 1..=10 {
            assert_eq!(strict.enter(at(0), &asked(1), None), Ok(Entered::In { inflight: n, limit: 10 }));
        }
        let why = strict.enter(at(0), &asked(1), None).unwrap_err();
        assert_eq!(why.code(), "BT-BLK-FULL");
        assert_eq!(leave(&strict, 1), []);
        assert!(strict.enter(at(1), &asked(1), None).is_ok());
    }

    #[test]
    fn those_who_wait_are_served_by_priority_and_then_in_turn() {
        let bulkhead = bulkhead(1, 8);
        bulkhead.enter(at(0), &asked(1), None).unwrap();
        let [a, b, c, d] = [(0, 3), (1, 1), (2, 1), (3, 0)].map(|(ms, level)| queued(&bulkhead, ms, level));
        for ticket in [d, b, c, a] {
            assert_eq!(leave(&bulkhead, 4), [Woken::In(ticket)]);
        }
        assert_eq!((leave(&bulkhead, 5), bulkhead.inflight(), bulkhead.queued()), (vec![], 0, 0));
    }

    #[test]
    fn a_call_waits_no_longer_than_its_deadline_lets_it() {
        let bulkhead = bulkhead(1, 8);
        bulkhead.enter(at(0), &asked(1), None).unwrap();
        let hurried = Asked { deadline: at(30), minimum: Duration::from_millis(10), ..asked(1) };
        let Ok(Entered::Queued { until, ticket, .. }) = bulkhead.enter(at(5), &hurried, None) else { panic!() };
        assert_eq!(until, at(20));
        assert_eq!(bulkhead.enter(at(20), &hurried, None).unwrap_err().code(), "BT-BLK-FULL");
        let woken = leave(&bulkhead, 20);
        assert!(matches!(woken[..], [Woken::Out(its, Why::BulkheadWaited { .. })] if its == ticket), "{woken:?}");
        assert_eq!(bulkhead.give_up(at(20), ticket), GaveUp::HasPlace, "nobody knows this ticket any more");
    }

    #[test]
    fn a_queue_that_stands_is_cut_to_five_milliseconds() {
        let bulkhead = bulkhead(1, 8);
        bulkhead.enter(at(1000), &asked(1), None).unwrap();
        let first = queued(&bulkhead, 1000, 1);
        for n in 1..=12 {
            let ticket = queued(&bulkhead, 1000 + n * 10, 1);
            let woken = leave(&bulkhead, 1000 + n * 10 + 1);
            assert!(!woken.is_empty(), "{n}");
            if n < 10 {
                continue;
            }
            // By now somebody has waited for more than 100 ms without a break.
            let dropped = woken.iter().filter(|one| matches!(one, Woken::Out(_, Why::ShedQueue { .. }))).count();
            assert_eq!((dropped, woken.last()), (1, Some(&Woken::In(ticket))), "{n} {woken:?}");
            break;
        }
        assert_eq!(bulkhead.give_up(at(1100), first), GaveUp::HasPlace, "it was served first");
    }

    #[test]
    fn the_refusal_names_the_limit_that_it_was() {
        let bulkhead = bulkhead(10, 0);
        let view = adaptive::View { limit: 4, short: Duration::from_millis(80), base: Duration::from_millis(10) };
        for _ in 0..2 {
            bulkhead.enter(at(0), &asked(3), Some(view)).unwrap();
        }
        let why = bulkhead.enter(at(0), &asked(3), Some(view)).unwrap_err();
        assert_eq!(why, Why::ShedPriority { priority: 3, inflight: 2, limit: 2 });
        for _ in 0..2 {
            bulkhead.enter(at(0), &asked(1), Some(view)).unwrap();
        }
        let why = bulkhead.enter(at(0), &asked(0), Some(view)).unwrap_err();
        assert_eq!(
            why.to_string(),
            "4 calls run, and 4 is what the upstream serves without slowing down: it answers in 80 ms, 10 ms without load"
        );
    }

    proptest! {
        /// Whatever happens in whatever order: never more calls than places, never an idle place beside somebody who may
        /// take it, and every ticket is answered once.
        #[test]
        fn places_and_tickets_add_up(
            concurrent in 1u32..5,
            queue in 0u32..6,
            steps in prop::collection::vec((0u64..40, 0u8..4, 0u8..4), 1..200),
        ) {
            let bulkhead = bulkhead(concurrent, queue);
            let (mut now, mut inside, mut waiting) = (0, 0u32, Vec::new());
            for (later, what, level) in steps {
                now += later;
                match what {
                    0 | 1 => match bulkhead.enter(at(now), &asked(level), None) {
                        Ok(Entered::In { .. }) => inside += 1,
                        Ok(Entered::Queued { ticket, .. }) => waiting.push(ticket),
                        Err(_) => prop_assert!(inside > 0),
                    },
                    2 if inside > 0 => {
                        inside -= 1;
                        for one in leave(&bulkhead, now) {
                            let (Woken::In(ticket) | Woken::Out(ticket, _)) = one;
                            let at = waiting.iter().position(|its| *its == ticket);
                            prop_assert!(at.is_some());
                            waiting.remove(at.unwrap());
                            inside += u32::from(matches!(one, Woken::In(_)));
                        }
                    }
                    3 if !waiting.is_empty() => {
                        let ticket = waiting.remove(usize::from(level) % waiting.len());
                        prop_assert!(matches!(bulkhead.give_up(at(now), ticket), GaveUp::Left(_)));
                    }
                    _ => {}
                }
                prop_assert!(inside <= concurrent);
                prop_assert_eq!((bulkhead.inflight(), bulkhead.queued()), (inside, waiting.len() as u32));
                prop_assert!(waiting.is_empty() || inside > 0, "somebody waits, and nobody will leave");
            }
        }
    }

    /// Cores enter and leave together; nobody waits beside a free place for ever.
    #[test]
    fn no_waiter_is_forgotten_between_cores() {
        use std::sync::mpsc;
        for _ in 0..20 {
            let bulkhead = bulkhead(2, 1000);
            let (outside, woken) = mpsc::channel();
            let (mut served, mut queued) = (0, 0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    let (bulkhead, outside) = (&bulkhead, outside.clone());
                    scope.spawn(move || {
                        for _ in 0..200 {
                            match bulkhead.enter(at(1), &asked(0), None) {
                                Ok(Entered::In { .. }) => {
                                    bulkhead.leave(at(1), None, |one| outside.send(Some(one)).unwrap());
                                }
                                Ok(Entered::Queued { .. }) => outside.send(None).unwrap(),
                                Err(why) => panic!("the queue is long enough: {why}"),
                            }
                        }
                    });
                }
                drop(outside);
                // Whoever got a place leaves it at once.
                for message in woken {
                    match message {
                        None => queued += 1,
                        Some(one) => {
                            let mut more = vec![one];
                            while let Some(one) = more.pop() {
                                assert!(matches!(one, Woken::In(_)));
                                served += 1;
                                bulkhead.leave(at(1), None, |one| more.push(one));
                            }
                        }
                    }
                }
            });
            assert_eq!((bulkhead.inflight(), bulkhead.queued()), (0, 0));
            assert_eq!(served, queued, "every ticket got a place");
        }
    }
}
