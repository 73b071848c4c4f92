//! Old answers for when there is none: what a route answered well to GET is kept, and given out while its backends fail.
//!
//! This is no cache: a request always goes to a backend first. So what may be kept is narrower than RFC 9111 allows, and how old
//! it may be is the route's word, not the answer's.
//!
//! | kept | not kept |
//! |---|---|
//! | 200 to GET, up to [`BODY_MAX`] bytes, whole | parts, streams without an end, other statuses |
//! | what `Accept`, `Accept-Encoding`, `Accept-Language` and the host choose, each for itself | what varies by anything else |
//! | what a caller whom the route knows was given, for this caller and the same credentials alone | answers to requests with a cookie, or with credentials where the route asks for none; with `Set-Cookie`; `no-store` or `private` |
//!
//! The newest [`KEPT_BYTES_MAX`] bytes of a route stay. **First start, recovery.** Nothing is kept over a restart, or when the route
//! gets other backends.
//!
//! Source: RFC 9111, 3 and 4.2.4; RFC 5861, 4 (`stale-if-error`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use buttress_policy::Time;
use bytes::Bytes;
use http::Method;
use http_body::Frame;
use ring::digest::{SHA256, digest};

use crate::{
    body::Body,
    parse::{Fields, Kind, Length, RequestHead},
    reply::Reply,
};

pub const BODY_MAX: usize = 256 * 1024;
/// Of one route, heads included.
pub const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What an answer costs beside its bytes.
const ENTRY_BYTES: usize = 256;
/// Fields that choose among answers, and are part of what they are kept under.
const CHOOSES: [&str; 3] = ["accept", "accept-encoding", "accept-language"];

/// Fields with which callers prove who they are, to the route or to the backend behind it. Their digests are part of what answers
/// are kept under.
const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "x-api-key", "x-auth-token"];

/// The kept answers of a route.
#[derive(Debug)]
pub struct Stale {
    pub age_max: Duration,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    answers: HashMap<Bytes, Answer>,
    /// Keys with the numbers of their answers, the oldest first; a number that is not the key's any more is skipped.
    order: VecDeque<(Bytes, u64)>,
    bytes: usize,
    next: u64,
}

#[derive(Clone, Debug)]
struct Answer {
    number: u64,
    at: Time,
    fields: Fields,
    body: Bytes,
    bytes: usize,
}

impl Stale {
    pub fn new(age_max: Duration) -> Self {
        Self { age_max, kept: Mutex::default() }
    }

    /// Under what an answer to the request is kept; none where it is not.
    pub fn key(request: &RequestHead, caller: Option<&str>) -> Option<Bytes> {
        if request.method != Method::GET || request.length != Length::Known(0) || request.upgrade {
            return None;
        }
        let has = |name: &str| request.fields.named(name).is_some();
        if has("range") || has("cookie") || (caller.is_none() && CREDENTIALS.iter().any(|name| has(name))) {
            return None;
        }
        let mut key = Vec::with_capacity(128);
        let mut part = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            key.extend_from_slice(bytes);
        };
        part(&request.authority.to_ascii_lowercase());
        part(&request.path);
        part(caller.unwrap_or_default().as_bytes());
        CHOOSES.iter().for_each(|name| part(request.fields.named(name).unwrap_or_default()));
        for value in CREDENTIALS.iter().filter_map(|name| request.fields.named(name)) {
            part(digest(&SHA256, value).as_ref());
        }
        Some(key.into())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a good answer when its body has come whole.
    pub fn watch(self: &Arc<Self>, key: Bytes, now: Time, reply: &mut Reply) {
        let length = match reply.length {
            Length::Known(length) if length <= BODY_MAX as u64 => Some(length),
            Length::Known(_) => return,
            Length::Chunked | Length::UntilClose => None,
        };
        if reply.status != 200 || reply.code.is_some() || !may_be_kept(&reply.fields) {
            return;
        }
        let fields = reply.fields.clone();
        let keeper =
            Keeper { stale: self.clone(), key, at: now, fields, length, parts: Vec::new(), bytes: 0, over: false };
        reply.body.keep(keeper);
    }

    fn put(&self, key: Bytes, at: Time, fields: Fields, body: Bytes) {
        let bytes = key.len() + fields.bytes() + body.len() + ENTRY_BYTES;
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        kept.bytes += bytes;
        kept.order.push_back((key.clone(), number));
        if let Some(old) = kept.answers.insert(key, Answer { number, at, fields, body, bytes }) {
            kept.bytes -= old.bytes;
        }
        // Numbers of answers that were replaced are few: each replacement takes one from the front in time.
        while kept.bytes > KEPT_BYTES_MAX || kept.order.len() > 2 * kept.answers.len() + 64 {
            let Some((key, number)) = kept.order.pop_front() else { break };
            if kept.answers.get(&key).is_some_and(|answer| answer.number == number)
                && let Some(gone) = kept.answers.remove(&key)
            {
                kept.bytes -= gone.bytes;
            }
        }
    }

    /// A kept answer that is not too old, with its age in seconds.
    pub fn give(&self, key: &Bytes, now: Time) -> Option<(Reply, u64)> {
        let answer = self.lock().answers.get(key)?.clone();
        let age = now.since(answer.at);
        if age > self.age_max {
            return None;
        }
        let age = age.as_secs();
        let fields = answer.fields.with("age", &age.to_string()).with("buttress-fallback", "stale");
        let length = Length::Known(answer.body.len() as u64);
        Some((Reply { fields, length, body: Body::full(answer.body), ..Reply::empty() }, age))
    }

    /// How many there are, and how many bytes they take.
    pub fn size(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.answers.len(), kept.bytes)
    }
}

fn may_be_kept(fields: &Fields) -> bool {
    fields.iter().all(|(kind, name, value)| {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("set-cookie") || is("content-range") || is("age") || kind == Kind::Trailer {
            return false;
        }
        let parts = || value.split(|b| *b == b',').map(|part| part.trim_ascii().to_ascii_lowercase());
        if is("cache-control") {
            return !parts().any(|part| part == b"no-store" || part.starts_with(b"private"));
        }
        !is("vary") || parts().all(|part| CHOOSES.iter().any(|known| known.as_bytes() == part))
    })
}

/// Collects the body of an answer that goes to a client.
#[derive(Debug)]
pub struct Keeper {
    stale: Arc<Stale>,
    key: Bytes,
    at: Time,
    fields: Fields,
    /// Where it is known.
    length: Option<u64>,
    parts: Vec<Bytes>,
    bytes: usize,
    over: bool,
}

impl Keeper {
    /// A frame has gone on; whoever writes a body of known length does not ask for more behind its last byte.
    pub fn went_on(&mut self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) if self.bytes + data.len() <= BODY_MAX && !self.over => {
                self.bytes += data.len();
                self.parts.push(data.clone());
                if self.length == Some(self.bytes as u64) {
                    self.ended(false);
                }
            }
            // Too long, or with trailers, which are not kept.
            _ => (self.over, self.parts) = (true, Vec::new()),
        }
    }

    pub fn ended(&mut self, broken: bool) {
        if !broken && !self.over && self.length.is_none_or(|length| length == self.bytes as u64) {
            let body = if self.parts.len() == 1 { self.parts.swap_remove(0) } else { self.parts.concat().into() };
            self.stale.put(self.key.clone(), self.at, self.fields.clone(), body);
        }
        (self.over, self.parts) = (true, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> RequestHead {
        crate::parse::request(Bytes::from(format!("{head}\r\n\r\n"))).unwrap()
    }

    fn key(head: &str, caller: Option<&str>) -> Option<Bytes> {
        Stale::key(&request(head), caller)
    }

    #[test]
    fn answers_are_kept_apart_by_what_chooses_them_and_secrets_are_not_kept() {
        let plain = key("GET /a HTTP/1.1\r\nHost: A", None);
        assert!(plain.is_some());
        assert_eq!(key("GET /a HTTP/1.1\r\nHost: a\r\nX-Other: 1", None), plain);
        for other in [
            key("GET /b HTTP/1.1\r\nHost: a", None),
            key("GET /a HTTP/1.1\r\nHost: b", None),
            key("GET /a HTTP/1.1\r\nHost: a\r\nAccept: x", None),
            key("GET /a HTTP/1.1\r\nHost: a", Some("shop")),
        ] {
            assert!(other.is_some() && other != plain);
        }
        for head in [
            "POST /a HTTP/1.1\r\nHost: a",
            "GET /a HTTP/1.1\r\nHost: a\r\nCookie: s=1",
            "GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eA==",
            "GET /a HTTP/1.1\r\nHost: a\r\nX-Api-Key: k",
            "GET /a HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1",
        ] {
            assert_eq!(key(head, None), None, "{head}");
        }
        // A known caller's answers are kept, but not for other credentials, which the backend may look at too, and not by cookie.
        let by =
            |token: &str| key(&format!("GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}"), Some("shop"));
        assert!(by("x").is_some() && by("x") == by("x") && by("x") != by("y"));
        assert_eq!(key("GET /a HTTP/1.1\r\nHost: a\r\nCookie: s=1", Some("shop")), None);
    }

    #[test]
    fn what_an_answer_says_of_itself_counts() {
        let kept = |name: &str, value: &str| may_be_kept(&Fields::from_pairs(&[(name, value)]));
        assert!(kept("Cache-Control", "max-age=0, must-revalidate") && kept("Vary", "Accept-Encoding, accept"));
        for (name, value) in [
            ("Set-Cookie", "s=1"),
            ("Cache-Control", "max-age=1, No-Store"),
            ("Cache-Control", "private=\"x\""),
            ("Vary", "*"),
            ("Vary", "accept, origin"),
        ] {
            assert!(!kept(name, value), "{name}: {value}");
        }
    }

    #[test]
    fn the_newest_answers_stay_within_their_bytes_and_old_ones_are_not_given() {
        let stale = Stale::new(Duration::from_secs(60));
        let (body, now) = (Bytes::from(vec![b'x'; BODY_MAX]), Time::from_millis(1_000));
        let name = |at: usize| Bytes::from(format!("key {at}"));
        for at in 0..100 {
            stale.put(name(at), now, Fields::default(), body.clone());
            // The same again and again takes no more room.
            stale.put(name(at), now, Fields::default(), body.clone());
        }
        let (count, bytes) = stale.size();
        assert!(bytes <= KEPT_BYTES_MAX && (60..=64).contains(&count), "{count} of {bytes} bytes");
        assert!(stale.give(&name(0), now).is_none());
        let (reply, age) = stale.give(&name(99), now.plus(Duration::from_secs(9))).unwrap();
        assert_eq!((age, reply.fields.named("age"), reply.status), (9, Some(&b"9"[..]), 200));
        assert!(stale.give(&name(99), now.plus(Duration::from_secs(61))).is_none());
        assert!(stale.lock().order.len() <= 2 * count + 65);
    }
}
