//! What a route does with a request beside sending it: conditions, what is rewritten, limits of rates, faults on purpose.

use std::time::Duration;

use buttress_policy::{Time, Why, hash, rate};
use buttress_resources::{
    flaw::Flaw,
    matcher::{self, Pattern},
    route as spec,
};

use crate::{
    parse::{Fields, RequestHead},
    proxy::Client,
};

/// A request as matches look at it.
pub fn looked_at(request: &RequestHead) -> matcher::Request<'_, Fields> {
    matcher::Request {
        host: &request.authority,
        path: &request.path,
        method: request.method.as_str().as_bytes(),
        fields: &request.fields,
        listener: None,
    }
}

impl matcher::Fields for Fields {
    fn any(&self, name: &str, fits: impl Fn(&[u8]) -> bool) -> bool {
        self.iter().any(|(_, at, value)| at.eq_ignore_ascii_case(name.as_bytes()) && fits(value))
    }
}

/// A match of a backend or of a fault.
pub struct Condition(Pattern);

impl Condition {
    /// # Errors
    /// All that is wrong with it.
    pub fn read(spec: &spec::Match) -> Result<Self, Vec<Flaw>> {
        Pattern::read(spec).map(Self)
    }

    pub fn holds(&self, request: &RequestHead) -> bool {
        self.0.holds(&looked_at(request))
    }
}

/// What is changed of a request before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Length of the matched prefix per match, and what stands in its place.
    pub prefix: Option<(Vec<usize>, Box<str>)>,
    pub host: Option<Box<str>>,
    pub set: Vec<(Box<str>, Box<str>)>,
    pub remove: Vec<Box<str>>,
}

impl Rewrite {
    /// The path that goes on.
    pub fn path(&self, path: &[u8], matched: Option<usize>) -> Option<Vec<u8>> {
        let (lengths, stands) = self.prefix.as_ref()?;
        let rest = path.get(matched.map_or(0, |at| lengths[at])..)?;
        let mut out = Vec::with_capacity(stands.len() + rest.len() + 1);
        out.extend_from_slice(stands.trim_end_matches('/').as_bytes());
        if !rest.starts_with(b"/") && (out.is_empty() || !(rest.is_empty() || rest.starts_with(b"?"))) {
            out.push(b'/');
        }
        out.extend_from_slice(rest);
        Some(out)
    }

    /// Whether a field of the client's ends here.
    pub fn ends(&self, name: &[u8]) -> bool {
        let is = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        self.remove.iter().any(|known| is(known)) || self.set.iter().any(|(known, _)| is(known))
    }
}

/// By what requests are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Nothing,
    Client,
    Caller,
    Path,
    Header(Box<str>),
}

impl Key {
    /// # Errors
    /// It is none of the known ones.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "client" => Ok(Self::Client),
            "caller" => Ok(Self::Caller),
            "path" => Ok(Self::Path),
            _ => match text.strip_prefix("header:") {
                Some(name) if !name.is_empty() => Ok(Self::Header(name.into())),
                _ => Err(format!("\"{text}\" is none of client, caller, path and header:NAME")),
            },
        }
    }

    /// Never 0, but for a key of nothing.
    pub fn of(&self, request: &RequestHead, client: &Client<'_>, caller: Option<&str>) -> u64 {
        let bytes: &[u8] = match self {
            Self::Nothing => return 0,
            Self::Client => client.address.as_bytes(),
            Self::Caller => caller.unwrap_or_default().as_bytes(),
            Self::Path => &request.path,
            Self::Header(name) => request.fields.named(name).unwrap_or_default(),
        };
        hash(bytes).max(1)
    }
}

/// Requests a second.
pub struct Limit {
    /// Its place in the route's list.
    pub at: usize,
    pub spec: spec::Rate,
    pub key: Key,
    pub counts: Counts,
}

pub enum Counts {
    One(rate::Limit),
    Each(Box<rate::Keyed>),
    /// Tokens leased from the store; with a key of their own in it.
    Cluster(std::sync::Arc<crate::cluster_rate::Leased>),
}

impl Limit {
    /// # Errors
    /// Too many have come.
    pub fn take(&self, now: Time, request: &RequestHead, client: &Client<'_>, caller: Option<&str>) -> Result<(), Why> {
        match &self.counts {
            Counts::One(limit) => limit.take(now, 1).map(drop),
            Counts::Each(limit) => limit.take(now, self.key.of(request, client, caller), 1).map(drop),
            Counts::Cluster(leased) => leased.take(now),
        }
    }
}

/// Faults on purpose.
pub struct Fault {
    pub when: Option<Condition>,
    pub delay: Option<(Duration, f32)>,
    pub abort: Option<(u16, f32)>,
}

impl Fault {
    pub fn holds(&self, request: &RequestHead) -> bool {
        self.when.as_ref().is_none_or(|when| when.holds(request))
    }
}

/// Where in [0, 1) the number fell that was drawn for a request: weights choose its backend by it. A record holds it, so that other
/// weights can be asked about the same request. It has 48 bits, and so survives being written as a decimal number of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point(u64);

impl Point {
    const BITS: u32 = 48;

    pub const fn of(random: u64) -> Self {
        Self(random >> (u64::BITS - Self::BITS))
    }

    pub fn share(self) -> f64 {
        self.0 as f64 / (1u64 << Self::BITS) as f64
    }

    /// From what [`share`](Self::share) gave.
    pub fn read(share: f64) -> Option<Self> {
        let whole = 1u64 << Self::BITS;
        (0.0..1.0).contains(&share).then(|| Self(((share * whole as f64).round() as u64).min(whole - 1)))
    }

    /// Which of these has the point, each as wide as its weight; none where all of them are 0.
    pub fn among(self, weights: &[u64]) -> Option<usize> {
        let sum: u64 = weights.iter().sum();
        let mut drawn = ((u128::from(self.0) * u128::from(sum)) >> Self::BITS) as u64;
        weights.iter().position(|weight| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        })
    }
}

/// Whether something that happens to a share of requests happens to this one.
pub fn drawn(random: u64, share: f32) -> bool {
    (random >> 11) as f64 / (1u64 << 53) as f64 <= f64::from(share) && share > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_chooses_by_weight_and_is_read_back_as_it_was() {
        for random in [0, 1, u64::MAX, u64::MAX / 3, 0x9e37_79b9_7f4a_7c15] {
            let point = Point::of(random);
            let text = serde_json::json!(point.share()).to_string();
            assert_eq!(Point::read(serde_json::from_str(&text).unwrap()), Some(point), "{text}");
        }
        let at = |share: f64, weights: &[u64]| Point::read(share).unwrap().among(weights);
        assert_eq!((at(0.0, &[95, 5]), at(0.9499, &[95, 5]), at(0.9501, &[95, 5])), (Some(0), Some(0), Some(1)));
        assert_eq!((at(0.5, &[0, 1, 0]), at(0.999_999, &[1, 1, 0]), at(0.5, &[0, 0])), (Some(1), Some(1), None));
        assert_eq!((Point::read(1.0), Point::read(-0.1), Point::read(f64::NAN)), (None, None, None));
    }
}
