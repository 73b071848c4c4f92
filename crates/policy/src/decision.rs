//! What every decision says of itself: a stable code, the numbers that decided, one plain sentence, and what would have let
//! the call pass. The decision records of a gateway are made of these.
//!
//! One table defines all of them. It gives the enum [`Why`], its sentences, [`Entry`] for each code, and
//! `docs/reference/decisions.md` (a test compares; `UPDATE_EXPECT=1` rewrites). A code is never used for something else.
//! [`Why`] is small and `Copy`: deciding allocates nothing, and sentences are made only when somebody reads them.

use std::{fmt, time::Duration};

use crate::time::Span;

/// What the code means for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It goes on.
    Pass,
    /// It waits in a bounded queue.
    Wait,
    /// It ends here. The numbers are what a gateway answers over HTTP and over gRPC.
    Refuse { http: u16, grpc: u8 },
    /// The last answer stands: no further attempt is made.
    Stop,
    /// Something changed that is no answer to one call: an endpoint was ejected, a breaker closed.
    Event,
}

const UNAVAILABLE: Answer = Answer::Refuse { http: 503, grpc: 14 };
const TOO_MANY: Answer = Answer::Refuse { http: 429, grpc: 8 };
const TOO_LATE: Answer = Answer::Refuse { http: 504, grpc: 4 };
use Answer::{Event, Pass, Stop, Wait};

/// A number of a decision, for records in JSON and for tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fact {
    Count(u64),
    Number(f64),
    /// 0 to 1.
    Share(f64),
    Span(Duration),
    Word(&'static str),
}

/// A part of a whole, printed in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Share(pub f32);

impl Share {
    pub fn of(part: u64, whole: u64) -> Self {
        Self(if whole == 0 { 0.0 } else { (part as f64 / whole as f64) as f32 })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 12.5 %, but 50 % and not 50.0 %.
        let tenths = (f64::from(self.0) * 1000.0).round() / 10.0;
        write!(f, "{tenths} %")
    }
}

/// A number that is no count, printed with two digits behind the point at most; below 0.01 with its first digit.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Number(pub f32);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = f64::from(self.0);
        // Not 0 for what is small: a limit of 0.001 a second is one.
        if value != 0.0 && value.abs() < 0.01 {
            return write!(f, "{:.1$}", value, (1.0 - value.abs().log10().floor()).clamp(2.0, 9.0) as usize - 1);
        }
        write!(f, "{}", (value * 100.0).round() / 100.0)
    }
}

macro_rules! into_fact {
    ($($type:ty: $value:ident => $fact:expr;)*) => {
        $(impl From<$type> for Fact {
            fn from($value: $type) -> Fact {
                $fact
            }
        })*
    };
}

into_fact! {
    u32: value => Fact::Count(value.into());
    u64: value => Fact::Count(value);
    Share: value => Fact::Share(f64::from(value.0));
    Number: value => Fact::Number(f64::from(value.0));
    Span: value => Fact::Span(value.duration());
    &'static str: value => Fact::Word(value);
}

/// A code as the documentation has it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub code: &'static str,
    pub answer: Answer,
    /// When it is given.
    pub meaning: &'static str,
    /// The sentence, with the names of the facts in braces.
    pub says: &'static str,
    /// What would have let the call pass, in the same form. Empty where it passed.
    pub would_pass: &'static str,
    pub facts: &'static [&'static str],
}

impl Entry {
    /// The entry of a code.
    pub fn named(code: &str) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.code == code)
    }
}

macro_rules! decisions {
    ($(#[doc = $meaning:literal] $name:ident { $($field:ident: $type:ty),* $(,)? } = $code:literal, $answer:expr, $says:literal, $pass:literal;)*) => {
        /// Why something was decided, with the numbers that decided.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Why {
            $(#[doc = $meaning] $name { $($field: $type),* },)*
        }

        /// Every code, in the order of the table.
        pub const ENTRIES: &[Entry] = &[$(Entry {
            code: $code,
            answer: $answer,
            meaning: $meaning,
            says: $says,
            would_pass: $pass,
            facts: &[$(stringify!($field)),*],
        },)*];

        #[repr(usize)]
        enum Index { $($name,)* }

        impl Why {
            /// What the documentation says of its code.
            pub const fn entry(&self) -> &'static Entry {
                match self { $(Why::$name { .. } => &ENTRIES[Index::$name as usize],)* }
            }

            /// Gives every number with its name, in the order of the documentation.
            pub fn facts(&self, mut each: impl FnMut(&'static str, Fact)) {
                match *self { $(Why::$name { $($field),* } => { $(each(stringify!($field), $field.into());)* let _ = &mut each; })* }
            }
        }

        /// The sentence.
        impl fmt::Display for Why {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self { $(Why::$name { $($field),* } => { let _ = ($(&$field,)*); write!(f, $says) })* }
            }
        }

        impl fmt::Display for WouldPass {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 { $(Why::$name { $($field),* } => { let _ = ($(&$field,)*); write!(f, $pass) })* }
            }
        }
    };
}

/// What would have let the call pass; prints nothing where it passed.
pub struct WouldPass(Why);

impl Why {
    pub const fn code(&self) -> &'static str {
        self.entry().code
    }

    pub const fn answer(&self) -> Answer {
        self.entry().answer
    }

    /// Whether the call goes on.
    pub const fn passes(&self) -> bool {
        matches!(self.answer(), Answer::Pass)
    }

    pub const fn would_pass(self) -> WouldPass {
        WouldPass(self)
    }

    /// How long a refused caller should wait, for `Retry-After`: whole seconds, rounded up. None where nobody knows.
    pub fn retry_after(&self) -> Option<u32> {
        let (Why::RateLimited { retry_in: Span(nanos), .. }
        | Why::BreakerOpen { probes_in: Span(nanos), .. }
        | Why::BreakerConsecutive { probes_in: Span(nanos), .. }) = *self
        else {
            return None;
        };
        // A part of a millisecond is no second more.
        let millis = nanos / 1_000_000;
        Some(u32::try_from(millis.div_ceil(1000)).unwrap_or(u32::MAX).max(1))
    }
}

decisions! {
    #[doc = "The call begins, and every policy of the route lets it."]
    Admitted { left: Span, inflight: u32, limit: u32 } = "BT-ADM-OK", Pass,
        "the call was let in with {left} left; {inflight} of {limit} places are taken", "";

    #[doc = "The deadline had passed before the call could begin."]
    DeadlinePast { late: Span } = "BT-DLN-PAST", TOO_LATE,
        "the deadline had passed {late} before", "a caller that gives more time, or sends its request sooner";
    #[doc = "Less time is left than the route's minimum, or than its fastest calls take."]
    DeadlineShort { left: Span, needed: Span } = "BT-DLN-SHORT", TOO_LATE,
        "{left} of the deadline were left, and a call needs {needed}", "a deadline with at least {needed} left here";

    #[doc = "Another attempt is made, after a pause."]
    RetryNow { attempt: u32, attempts: u32, after: Span, budget_left: u32 } = "BT-RTY-GO", Pass,
        "attempt {attempt} of {attempts} follows after {after}; the budget has {budget_left} more retries", "";
    #[doc = "The call succeeded, so there is nothing to retry."]
    RetryNeedless { attempt: u32 } = "BT-RTY-DONE", Stop,
        "attempt {attempt} was answered, and the answer is nothing that a retry would change", "";
    #[doc = "Retries are off on this route."]
    RetryOff { attempt: u32 } = "BT-RTY-OFF", Stop,
        "the route makes no retries", "an upstream that does not fail; retry.attempts above 1 on the route where failures are brief";
    #[doc = "All attempts that the route allows were made."]
    RetryAttempts { attempt: u32, attempts: u32 } = "BT-RTY-ATTEMPTS", Stop,
        "{attempt} of {attempts} attempts were made, and all failed", "a healthy upstream; more attempts (retry.attempts) only if failures are brief";
    #[doc = "The request may have had an effect, so sending it again could repeat that effect."]
    RetryEffect { attempt: u32 } = "BT-RTY-EFFECT", Stop,
        "attempt {attempt} may have reached the upstream, and the request is not one that can be repeated safely", "an idempotent method, an Idempotency-Key, or a failure before the request reached the upstream";
    #[doc = "The body was not kept, so the request cannot be sent again."]
    RetryBody { attempt: u32 } = "BT-RTY-BODY", Stop,
        "the body of the request was too large to be kept for attempt {attempt}", "an upstream that does not fail; a body below retry.body_bytes_max could have been sent again";
    #[doc = "The answer is one that a retry would not change, or that the route does not retry."]
    RetryStatus { status: u32 } = "BT-RTY-STATUS", Stop,
        "the upstream answered {status}, which the route does not retry", "an upstream that does not fail; with its status in retry.statuses of the route it would have been tried again";
    #[doc = "The retry budget is spent: retries are a share of requests, so that they cannot become a storm."]
    RetryBudget { retries: u32, requests: u32, allowed: u32 } = "BT-RTY-BUDGET", Stop,
        "{retries} retries were made in the window for {requests} requests, and {allowed} are allowed", "fewer failures, or a larger retry.budget of the route (in the library: budget.share)";
    #[doc = "The next attempt would begin too late to be worth it."]
    RetryDeadline { left: Span, after: Span } = "BT-RTY-DEADLINE", Stop,
        "{left} of the deadline were left, and the next attempt would begin after {after}", "a longer deadline, or an upstream that answers sooner; a shorter retry.base where little was missing";
    #[doc = "The request is a retry already: a hop before this one makes the attempts."]
    RetryHop { inbound: u32 } = "BT-RTY-HOP", Stop,
        "the request came as attempt {inbound} of the caller, so this hop does not multiply it", "a first attempt; only the hop that began with retries goes on with them";
    #[doc = "The upstream asked not to be tried again, or later than the route waits."]
    RetryPushback { asked: Span, accepted: Span } = "BT-RTY-PUSHBACK", Stop,
        "the upstream asked to wait {asked}, and the route waits {accepted} at most", "a Retry-After of the upstream that is within the deadline and what the route waits (in the library: retry.after_max)";

    #[doc = "A second attempt is started beside the first."]
    HedgeNow { waited: Span, quantile: Share } = "BT-HDG-GO", Pass,
        "the first attempt took longer than {waited}, which {quantile} of calls do not, so a second was started beside it", "";
    #[doc = "A second attempt will be started if no answer comes in time."]
    HedgeLater { after: Span, quantile: Share } = "BT-HDG-LATER", Wait,
        "a second attempt starts if there is no answer within {after}, which {quantile} of calls have", "";
    #[doc = "Hedging is off on this route."]
    HedgeOff { attempts: u32 } = "BT-HDG-OFF", Stop,
        "the route does not hedge", "a section hedge on the route";
    #[doc = "All hedged attempts that the route allows were started."]
    HedgeAttempts { hedges: u32, allowed: u32 } = "BT-HDG-ATTEMPTS", Stop,
        "{hedges} of {allowed} hedged attempts were started", "an upstream that answers sooner (in the library: or a larger hedge.extra)";
    #[doc = "The request could have an effect twice."]
    HedgeEffect { attempts: u32 } = "BT-HDG-EFFECT", Stop,
        "the request is not one that can be sent twice safely", "an idempotent method, or an Idempotency-Key";
    #[doc = "Too few calls were seen to know what is slow."]
    HedgeCold { samples: u32, needed: u32 } = "BT-HDG-COLD", Stop,
        "{samples} calls were seen lately, and {needed} are needed to know what is slow", "more traffic (in the library: or a smaller hedge.samples_min)";
    #[doc = "The budget of hedged attempts is spent."]
    HedgeBudget { hedges: u32, requests: u32, allowed: u32 } = "BT-HDG-BUDGET", Stop,
        "{hedges} hedged attempts were made in the window for {requests} requests, and {allowed} are allowed", "fewer slow calls, or a larger hedge.budget of the route (in the library: hedge.share)";
    #[doc = "The deadline comes before the hedged attempt would start."]
    HedgeDeadline { left: Span, after: Span } = "BT-HDG-DEADLINE", Stop,
        "{left} of the deadline were left, and a second attempt would start after {after}", "a longer deadline";

    #[doc = "The breaker is closed: calls pass and are counted."]
    BreakerClosed { failure_rate: Share, threshold: Share, calls: u32 } = "BT-BRK-CLOSED", Pass,
        "the breaker is closed: {failure_rate} of {calls} calls failed, and {threshold} opens it", "";
    #[doc = "The breaker is half-open and lets this call through as a probe."]
    BreakerProbe { probe: u32, probes: u32 } = "BT-BRK-PROBE", Pass,
        "the breaker is half-open, and this is probe {probe} of {probes}", "";
    #[doc = "The breaker is open: too many calls failed or were slow lately."]
    BreakerOpen { because: &'static str, rate: Share, threshold: Share, calls: u32, probes_in: Span } = "BT-BRK-OPEN", UNAVAILABLE,
        "the breaker is open because of {because}: {rate} of the last {calls} calls, and {threshold} opens it", "a call {probes_in} later, as a probe; an upstream that answers";
    #[doc = "The breaker is open because so many calls failed one after the other."]
    BreakerConsecutive { failures: u32, threshold: u32, probes_in: Span } = "BT-BRK-CONSECUTIVE", UNAVAILABLE,
        "the breaker is open: {failures} calls failed one after the other, and {threshold} open it", "a call {probes_in} later, as a probe; an upstream that answers";
    #[doc = "The breaker is half-open, and all its probes are under way."]
    BreakerHalfOpen { probes: u32, succeeded: u32 } = "BT-BRK-HALF", UNAVAILABLE,
        "the breaker is half-open, and its {probes} probes are under way; {succeeded} succeeded", "a call after the probes have succeeded";
    #[doc = "An operator holds the breaker open."]
    BreakerForced { calls: u32 } = "BT-BRK-FORCED", UNAVAILABLE,
        "an operator holds the breaker open", "the operator's release: a route without breaker.force (in the library: force(None))";

    #[doc = "All places for concurrent calls are taken, and the queue is full or absent."]
    BulkheadFull { inflight: u32, limit: u32, queued: u32, queue: u32 } = "BT-BLK-FULL", UNAVAILABLE,
        "{inflight} of {limit} concurrent calls run, and {queued} of {queue} places in the queue are taken", "fewer concurrent calls, or a larger concurrency.limit or concurrency.queue of the route (in the library: bulkhead)";
    #[doc = "The call waits for a place."]
    BulkheadQueued { ahead: u32, wait_max: Span } = "BT-BLK-QUEUED", Wait,
        "the call waits for a place, {ahead} before it, {wait_max} at most", "";
    #[doc = "The call waited for a place for as long as it may."]
    BulkheadWaited { waited: Span, wait_max: Span } = "BT-BLK-WAITED", UNAVAILABLE,
        "the call waited {waited} for a place, and {wait_max} is the most", "fewer concurrent calls, or an upstream that answers sooner (in the library: or a longer queue.wait_max)";
    #[doc = "The adaptive limit of concurrency is reached: more calls at once only made answers slower."]
    LimiterFull { inflight: u32, limit: u32, latency: Span, usual: Span } = "BT-LIM-FULL", UNAVAILABLE,
        "{inflight} calls run, and {limit} is what the upstream serves without slowing down: it answers in {latency}, {usual} without load", "fewer concurrent calls, or an upstream with more capacity";

    #[doc = "The rate limit lets the call pass."]
    RatePassed { left: u32, burst: u32 } = "BT-RAT-OK", Pass,
        "the rate limit has {left} of {burst} tokens left", "";
    #[doc = "The rate limit has no token left for the call."]
    RateLimited { burst: u32, per_second: Number, retry_in: Span } = "BT-RAT-LIMIT", TOO_MANY,
        "the rate of {per_second} a second with bursts of {burst} is used up", "the same call {retry_in} later";
    #[doc = "The call costs more than the limit ever has (in the library: a request through the gateway costs one token, and every limit has room for one)."]
    RateCost { cost: u32, burst: u32 } = "BT-RAT-COST", TOO_MANY,
        "the call costs {cost} tokens, and there are never more than {burst}", "a cost of at most {burst}, or a larger rate.burst";
    #[doc = "This node has used up its share of the cluster's rate limit."]
    LeaseEmpty { asked: u32, held: u32, expires_in: Span } = "BT-LSE-EMPTY", TOO_MANY,
        "this node's lease of the cluster-wide limit holds {held} tokens, and the call costs {asked}", "a call after the next lease, or a higher limit";
    #[doc = "The cluster's rate limit cannot be asked, and the share of this node is used up."]
    LeaseCutOff { asked: u32, held: u32, per_second: Number } = "BT-LSE-CUT", TOO_MANY,
        "the store of the cluster-wide limit does not answer; this node lets {per_second} a second pass meanwhile", "a store that answers";

    #[doc = "So many calls failed that most of them are refused without asking the upstream."]
    Throttled { requests: u32, accepted: u32, probability: Share } = "BT-THR-CLIENT", UNAVAILABLE,
        "the upstream accepted {accepted} of {requests} calls lately, so {probability} of calls are refused here", "an upstream that accepts its calls";
    #[doc = "The places left are kept for calls with a higher priority."]
    ShedPriority { priority: u32, inflight: u32, limit: u32 } = "BT-SHD-PRIORITY", UNAVAILABLE,
        "{inflight} calls run, and calls of priority {priority} may take {limit} places", "a higher priority (a smaller number), or less load";
    #[doc = "The queue did not empty for a while, so calls that waited are dropped early."]
    ShedQueue { waited: Span, target: Span } = "BT-SHD-QUEUE", UNAVAILABLE,
        "the queue has not been empty for a while, and the call waited {waited} where {target} is the most now", "less load, or a higher priority";

    #[doc = "The less loaded of two endpoints drawn at random."]
    PickedP2c { first: Number, second: Number } = "BT-BAL-P2C", Pass,
        "of two endpoints drawn at random the one with load {first} was taken, not the one with load {second}", "";
    #[doc = "The endpoint with the fewest calls under way."]
    PickedLeast { load: Number, next: Number } = "BT-BAL-LEAST", Pass,
        "the endpoint with load {load} was taken; the next had {next}", "";
    #[doc = "The endpoint whose turn it was."]
    PickedTurn { turn: u32, skipped: u32 } = "BT-BAL-TURN", Pass,
        "the endpoint of turn {turn} was taken, and {skipped} before it were skipped", "";
    #[doc = "The endpoint that the ring gives for the key."]
    PickedRing { skipped: u32, inflight: u32, bound: u32 } = "BT-BAL-RING", Pass,
        "the ring's endpoint for the key was taken after {skipped} that were not available or had reached their bound; it has {inflight} calls, and {bound} is the bound", "";
    #[doc = "The only endpoint that could be taken."]
    PickedOnly { available: u32, endpoints: u32, tried: u32 } = "BT-BAL-ONLY", Pass,
        "{available} of {endpoints} endpoints could be taken, and {tried} of them had been tried for this call", "";
    #[doc = "So few endpoints are healthy that health is not looked at: a few must not carry the load of all."]
    PickedPanic { healthy: u32, endpoints: u32, threshold: Share } = "BT-BAL-PANIC", Pass,
        "{healthy} of {endpoints} endpoints are healthy, less than {threshold}, so calls go to all of them", "";
    #[doc = "There is no endpoint that could be taken."]
    NoEndpoint { endpoints: u32, ejected: u32, down: u32 } = "BT-BAL-NONE", UNAVAILABLE,
        "none of {endpoints} endpoints can be taken: {ejected} are ejected, {down} are down", "an endpoint that is registered and healthy";

    #[doc = "An endpoint was ejected because it failed so often one after the other."]
    EjectedConsecutive { failures: u32, threshold: u32, ejected_for: Span } = "BT-OUT-CONSECUTIVE", Event,
        "the endpoint failed {failures} times one after the other, and {threshold} eject it, for {ejected_for}", "";
    #[doc = "As above, counting only failures to reach it and answers 502, 503, 504."]
    EjectedGateway { failures: u32, threshold: u32, ejected_for: Span } = "BT-OUT-GATEWAY", Event,
        "the endpoint was not reached {failures} times one after the other, and {threshold} eject it, for {ejected_for}", "";
    #[doc = "An endpoint was ejected because it succeeds much less often than the others."]
    EjectedRate { success: Share, bound: Share, mean: Share, ejected_for: Span } = "BT-OUT-RATE", Event,
        "{success} of the endpoint's calls succeeded where {mean} is the mean of all, and {bound} the least, so it is ejected for {ejected_for}", "";
    #[doc = "An endpoint was ejected because more of its calls failed than the route allows."]
    EjectedFailures { failed: Share, threshold: Share, ejected_for: Span } = "BT-OUT-FAILURES", Event,
        "{failed} of the endpoint's calls failed, and {threshold} eject it, for {ejected_for}", "";
    #[doc = "An endpoint should have been ejected, but the others fail too: then it is not the endpoint, and fewer would have to carry the load."]
    EjectionCommon { failing: Share, others: Share, bound: Share } = "BT-OUT-COMMON", Event,
        "the endpoint should be ejected: {failing} of its latest calls failed; but so did {others} at the others, and {bound} would set it apart", "";
    #[doc = "An endpoint that was ejected is back before its time, because the others fail too."]
    EjectionEnded { others: Share, left: Span } = "BT-OUT-BACK", Event,
        "the endpoint is back {left} before its time: {others} of the latest calls to the others failed too, so it is not the endpoint", "";
    #[doc = "An endpoint should have been ejected, but too many are already."]
    EjectionSpared { ejected: u32, endpoints: u32, allowed: u32 } = "BT-OUT-SPARED", Event,
        "the endpoint should be ejected, but {ejected} of {endpoints} are already, and {allowed} may be", "";
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _};

    use super::*;

    fn page() -> String {
        let mut page = "# Decisions\n\nEvery decision of the traffic plane has a code that stays the same, the numbers that decided, one sentence, and what would have let the call pass.\n\
            The page is made from `crates/policy/src/decision.rs` (`UPDATE_EXPECT=1 cargo test -p buttress-policy codes`).\n\n\
            **pass**: the call goes on. **wait**: it waits. **refuse**: it ends, with this status over HTTP and gRPC. **stop**: the last answer stands. **event**: something changed that is no answer to one call.\n"
            .to_owned();
        let mut part = "";
        for entry in ENTRIES {
            let its = entry.code.split('-').nth(1).expect("a code has three parts");
            if its != part {
                part = its;
                let title = match part {
                    "ADM" => "Admission",
                    "DLN" => "Deadlines",
                    "RTY" => "Retries",
                    "HDG" => "Hedging",
                    "BRK" => "Circuit breaker",
                    "BLK" => "Bulkhead and its queue",
                    "LIM" => "Adaptive concurrency",
                    "RAT" => "Rate limits",
                    "LSE" => "Cluster-wide rate limits",
                    "THR" => "Client throttle",
                    "SHD" => "Shedding",
                    "BAL" => "Balancers",
                    "OUT" => "Outlier ejection",
                    other => panic!("a new part {other} needs a title"),
                };
                let _ = write!(page, "\n## {title}\n");
            }
            let answer = match entry.answer {
                Answer::Pass => "pass".to_owned(),
                Answer::Wait => "wait".to_owned(),
                Answer::Refuse { http, grpc } => format!("refuse, {http} and {grpc}"),
                Answer::Stop => "stop".to_owned(),
                Answer::Event => "event".to_owned(),
            };
            let _ = write!(page, "\n### {}\n\n{} ({answer})\n\n> {}\n", entry.code, entry.meaning, entry.says);
            if !entry.would_pass.is_empty() {
                let _ = write!(page, "\nWould have passed: {}.\n", entry.would_pass);
            }
        }
        page
    }

    #[test]
    fn the_page_of_codes_is_what_the_table_says() {
        expect_test::expect_file!["../../../docs/reference/decisions.md"].assert_eq(&page());
    }

    #[test]
    fn codes_are_unique_and_say_what_would_have_passed_where_they_refuse() {
        let codes: BTreeSet<_> = ENTRIES.iter().map(|entry| entry.code).collect();
        assert_eq!(codes.len(), ENTRIES.len());
        for entry in ENTRIES {
            assert!(entry.code.starts_with("BT-") && entry.code.len() <= 20, "{}", entry.code);
            let refuses = matches!(entry.answer, Answer::Refuse { .. });
            assert!(!refuses || !entry.would_pass.is_empty(), "{} gives no way out", entry.code);
            let passes = matches!(entry.answer, Answer::Pass | Answer::Wait | Answer::Event);
            assert!(!passes || entry.would_pass.is_empty(), "{} passed already", entry.code);
            assert!(entry.meaning.ends_with('.') && !entry.says.ends_with('.'), "{}", entry.code);
            assert_eq!(Entry::named(entry.code).map(|found| found.says), Some(entry.says));
        }
    }

    #[test]
    fn a_decision_tells_its_numbers_in_words() {
        let why = Why::BreakerOpen {
            because: "failures",
            rate: Share(0.525),
            threshold: Share(0.5),
            calls: 20,
            probes_in: Span(1_500_000_000),
        };
        assert_eq!(why.code(), "BT-BRK-OPEN");
        assert_eq!(
            why.to_string(),
            "the breaker is open because of failures: 52.5 % of the last 20 calls, and 50 % opens it"
        );
        assert_eq!(why.would_pass().to_string(), "a call 1.5 s later, as a probe; an upstream that answers");
        let mut facts = Vec::new();
        why.facts(|name, fact| facts.push((name, fact)));
        assert_eq!(facts[0], ("because", Fact::Word("failures")));
        assert_eq!(facts[4], ("probes_in", Fact::Span(Duration::from_millis(1500))));
        assert_eq!(facts.len(), why.entry().facts.len());
    }

    /// It is copied into every record.
    #[test]
    fn a_decision_is_small() {
        assert!(size_of::<Why>() <= 48, "{}", size_of::<Why>());
    }
}
