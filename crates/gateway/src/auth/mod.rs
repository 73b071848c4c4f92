//! Who calls, and whether the caller may.
//!
//! A [`Gate`] is what a route's `auth` says. Its ways are tried in the order in which the spec has them (an API key, a token,
//! the name in the client's certificate); the first one that names a caller whom `allow` lets through counts.
//!
//! | what came | answer | code |
//! |---|---|---|
//! | nothing that names a caller | 401, gRPC 16 | `BT0923` |
//! | something that names none: forged, expired, unknown | 401, gRPC 16 | `BT0924` |
//! | a caller who is known, and not allowed | 403, gRPC 7 | `BT0925` |
//! | a token, while the keys that it is checked with were never read | 503, gRPC 14 | `BT0926` |
//!
//! Checking takes no lock and touches nothing that another core writes: keys lie behind a pointer ([`source`]), and tokens
//! whose signature was good are remembered by each core for itself ([`Tokens`]), under their digest, until they end or the
//! keys change. The second of the day is an input: a wall clock that jumps changes what is good now and nothing else, because
//! what is remembered keeps the time from which and until which it holds.
//!
//! Nothing here keeps, logs or repeats a key or a token.

pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod source;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use buttress_core::Code;
use buttress_resources::route as spec;
use serde_json::{Map, Value};

use self::{
    jwks::KeySet,
    keys::{KeyFile, sha256},
    source::{Fresher, Origin, Source, Sources},
};
use crate::parse::RequestHead;

/// The field that names the caller to the upstream. What a client sends under this name ends here.
pub const CALLER_FIELD: &str = "buttress-caller";
/// Of a caller.
pub const NAME_BYTES_MAX: usize = 256;
/// How long a request waits for keys that are being read.
pub const FRESHER_PATIENCE: Duration = Duration::from_secs(2);
/// Rules of a route: one bit each says whether a token's claims fit.
const RULES_MAX: usize = 64;
const LEEWAY_MAX: Duration = Duration::from_secs(600);
/// Tokens that a core remembers; with its caller's name about 300 bytes each, so 2 MiB.
const TOKENS_MAX: usize = 8192;

/// Somebody who is known.
#[derive(Clone, Debug)]
pub struct Caller {
    pub name: Arc<str>,
    /// The name as it goes on in a field.
    pub field: Arc<str>,
    /// Rules whose claims fit.
    rules: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Anonymous,
    Refused,
    Forbidden,
    Unready,
}

/// Why a request does not pass.
#[derive(Debug)]
pub struct Denied {
    pub why: Why,
    /// One sentence, lower case, no full stop, without a secret.
    pub says: Cow<'static, str>,
    /// For whoever runs the gateway: who would have passed. Rules are not for clients.
    pub would_pass: String,
    /// The generation of the keys that were not enough, where newer ones may be; 0 before the first.
    pub keys: Option<u64>,
}

impl Denied {
    pub fn code(&self) -> Code {
        match self.why {
            Why::Anonymous => Code::CALLER_UNKNOWN,
            Why::Refused => Code::CREDENTIALS_REFUSED,
            Why::Forbidden => Code::CALLER_FORBIDDEN,
            Why::Unready => Code::KEYS_UNREAD,
        }
    }

    /// Of HTTP and of gRPC.
    pub fn status(&self) -> (u16, u8) {
        match self.why {
            Why::Anonymous | Why::Refused => (401, 16),
            Why::Forbidden => (403, 7),
            Why::Unready => (503, 14),
        }
    }
}

/// Exact, or `prefix*`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl Name {
    fn new(text: &str) -> Self {
        text.strip_suffix('*').map_or_else(|| Self::Exact(text.into()), |prefix| Self::Prefix(prefix.into()))
    }

    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
        }
    }
}

struct Rule {
    callers: Vec<Name>,
    claims: BTreeMap<String, String>,
    methods: Vec<String>,
}

impl Rule {
    fn fits(&self, request: &RequestHead, name: &str) -> bool {
        (self.callers.is_empty() || self.callers.iter().any(|caller| caller.fits(name)))
            && (self.methods.is_empty() || self.methods.iter().any(|method| method == request.method.as_str()))
    }
}

struct Keys {
    header: Box<str>,
    source: Arc<Source<KeyFile>>,
}

struct Jwt {
    source: Arc<Source<KeySet>>,
    wanted: jwt::Wanted,
}

/// What a route's `auth` says, ready to be asked.
pub struct Gate {
    /// Of this process; never given twice. What is remembered under it is of these settings.
    id: u64,
    pub spec: spec::Auth,
    keys: Option<Keys>,
    jwt: Option<Jwt>,
    certificates: Vec<Name>,
    rules: Vec<Rule>,
    /// Who would pass, in words.
    would_pass: String,
}

static GATES: AtomicU64 = AtomicU64::new(1);

/// A field of the spec, and what is wrong with it.
pub type Flaw = (String, String);

impl Gate {
    /// # Errors
    /// All that is wrong with the spec, or with the files that it names.
    pub fn new(spec: &spec::Auth, sources: &Sources) -> Result<Self, Vec<Flaw>> {
        let mut flaws: Vec<Flaw> = Vec::new();
        let mut flaw = |field: &str, says: String| flaws.push((field.to_owned(), says));
        if spec.api_keys.is_none() && spec.jwt.is_none() && spec.certificates.is_empty() {
            flaw("auth", "names no way to know a caller; give api_keys, jwt or certificates".into());
        }
        let keys = spec.api_keys.as_ref().and_then(|keys| {
            let header = keys.header.as_deref().unwrap_or("x-api-key").to_ascii_lowercase();
            if http::HeaderName::from_bytes(header.as_bytes()).is_err() || UNFIT.contains(&header.as_str()) {
                flaw("auth.api_keys.header", format!("\"{header}\" is no field that can hold a key"));
            }
            if header == "authorization" && spec.jwt.is_some() {
                flaw("auth.api_keys.header", "is where tokens are looked for; name another field".into());
            }
            match sources.keys(&keys.file) {
                Ok(source) => Some(Keys { header: header.into(), source }),
                Err(says) => {
                    flaw("auth.api_keys.file", format!("\"{}\" {says}", keys.file));
                    None
                }
            }
        });
        let jwt = spec.jwt.as_ref().and_then(|jwt| {
            let leeway = jwt.leeway.map_or(Duration::from_secs(30), |leeway| leeway.0);
            if leeway > LEEWAY_MAX {
                flaw("auth.jwt.leeway", "is longer than 10 minutes".into());
            }
            let audience: Vec<Box<str>> =
                jwt.audience.iter().flat_map(|audience| audience.as_slice()).map(|one| one.as_str().into()).collect();
            if jwt.audience.is_some() && audience.is_empty() {
                flaw("auth.jwt.audience", "is empty; name one, or leave it out".into());
            }
            let wanted = jwt::Wanted {
                issuer: jwt.issuer.as_deref().map(Into::into),
                audience,
                caller: jwt.caller.as_deref().unwrap_or("sub").into(),
                leeway_s: leeway.as_secs(),
            };
            let ca = jwt.ca.as_deref();
            let (field, named, origin) = match (&jwt.jwks, &jwt.issuer) {
                (Some(jwks), _) => ("auth.jwt.jwks", jwks, Origin::parse(jwks, ca)),
                (None, Some(issuer)) => ("auth.jwt.issuer", issuer, Origin::issuer(issuer, ca)),
                (None, None) => {
                    flaw("auth.jwt", "names neither an issuer, which says where its keys are, nor jwks".into());
                    return None;
                }
            };
            match origin.and_then(|origin| sources.jwks(origin)) {
                Ok(source) => Some(Jwt { source, wanted }),
                Err(says) => {
                    flaw(field, format!("\"{}\" {says}", shown(named)));
                    None
                }
            }
        });
        for (at, name) in spec.certificates.iter().enumerate() {
            if name.is_empty() {
                flaw(&format!("auth.certificates.{at}"), "is empty".into());
            }
        }
        if spec.allow.len() > RULES_MAX {
            flaw("auth.allow", format!("has {} rules, {RULES_MAX} at most are taken", spec.allow.len()));
        }
        for (at, rule) in spec.allow.iter().enumerate() {
            if *rule == spec::Allow::default() {
                flaw(&format!("auth.allow.{at}"), "asks for nothing; leave allow out where every caller may".into());
            }
            if !rule.claims.is_empty() && spec.jwt.is_none() {
                flaw(&format!("auth.allow.{at}.claims"), "are of tokens; give jwt too".into());
            }
            let empty =
                |list: &Option<spec::OneOrMany<String>>| list.as_ref().is_some_and(|list| list.as_slice().is_empty());
            for (name, list) in [("caller", &rule.caller), ("method", &rule.method)] {
                if empty(list) {
                    flaw(
                        &format!("auth.allow.{at}.{name}"),
                        "is an empty list, which nobody fits; leave it out for any".into(),
                    );
                }
            }
            for method in rule.method.iter().flat_map(|methods| methods.as_slice()) {
                if http::Method::from_bytes(method.as_bytes()).is_err() {
                    flaw(&format!("auth.allow.{at}.method"), format!("\"{method}\" is no method"));
                }
            }
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        let rules = spec.allow.iter().map(|rule| Rule {
            callers: rule.caller.iter().flat_map(|names| names.as_slice()).map(|name| Name::new(name)).collect(),
            claims: rule.claims.clone(),
            methods: rule.method.iter().flat_map(|all| all.as_slice()).map(|one| one.to_ascii_uppercase()).collect(),
        });
        let rules = rules.collect();
        let certificates = spec.certificates.iter().map(|name| Name::new(name)).collect();
        let would_pass = would_pass(spec, keys.as_ref().map(|keys| &*keys.header));
        Ok(Self { id: GATES.fetch_add(1, Relaxed), spec: spec.clone(), keys, jwt, certificates, rules, would_pass })
    }

    /// The field that ends here, because it holds a secret.
    pub fn withheld(&self) -> Option<&str> {
        self.keys.as_ref().map(|keys| &*keys.header)
    }

    /// Who calls, at this second since 1970. `identity` is the name in the client's certificate.
    ///
    /// # Errors
    /// Why the request does not pass.
    pub fn check(
        &self,
        request: &RequestHead,
        identity: Option<&Arc<str>>,
        now: u64,
        tokens: &mut Tokens,
    ) -> Result<Caller, Denied> {
        // The first way that was tried and failed tells why, but for a caller who is known and not allowed.
        let mut failed: Option<Denied> = None;
        let mut forbidden: Option<Arc<str>> = None;
        let mut known = |caller: Caller| {
            if self.allows(request, &caller) {
                return Some(caller);
            }
            forbidden.get_or_insert(caller.name);
            None
        };
        if let Some(keys) = &self.keys {
            match keys.caller(request) {
                Some(Ok(name)) => {
                    let rules = self.rules_for(None);
                    if let Some(caller) = known(Caller { field: name.clone(), name, rules }) {
                        return Ok(caller);
                    }
                }
                Some(Err(says)) => failed = Some(self.refused(says.into(), None)),
                None => {}
            }
        }
        if let Some(jwt) = &self.jwt {
            match bearer(request) {
                Some(Ok(token)) => match self.by_token(jwt, token, now, tokens) {
                    Ok(caller) => {
                        if let Some(caller) = known(caller) {
                            return Ok(caller);
                        }
                    }
                    Err(denied) => failed = Some(failed.unwrap_or(denied)),
                },
                Some(Err(says)) => failed = Some(failed.unwrap_or_else(|| self.refused(says.into(), None))),
                None => {}
            }
        }
        if let Some(identity) = identity.filter(|_| !self.certificates.is_empty()) {
            if self.certificates.iter().any(|name| name.fits(identity)) {
                let caller = Caller { name: identity.clone(), field: in_field(identity), rules: self.rules_for(None) };
                if let Some(caller) = known(caller) {
                    return Ok(caller);
                }
            } else {
                let says = "the name in the client's certificate is none that the route takes";
                failed = Some(failed.unwrap_or_else(|| self.refused(says.into(), None)));
            }
        }
        let denied = |why, says, would_pass: &str| Denied { why, says, would_pass: would_pass.to_owned(), keys: None };
        if let Some(name) = forbidden {
            let says = format!("caller \"{}\" may not {} here", shown(&name), request.method);
            return Err(denied(Why::Forbidden, says.into(), &self.would_pass));
        }
        let nothing =
            || denied(Why::Anonymous, "the request brings nothing that says who calls".into(), &self.would_pass);
        Err(failed.unwrap_or_else(nothing))
    }

    /// Has newer keys read, where those may let a request in that was denied, and nobody has looked a moment ago.
    pub fn fresher(&self, denied: &Denied) -> Option<Fresher> {
        self.jwt.as_ref()?.source.fresher(denied.keys?)
    }

    fn refused(&self, says: Cow<'static, str>, keys: Option<u64>) -> Denied {
        Denied { why: Why::Refused, says, would_pass: self.would_pass.clone(), keys }
    }

    fn by_token(&self, jwt: &Jwt, token: &[u8], now: u64, tokens: &mut Tokens) -> Result<Caller, Denied> {
        let loaded = jwt.source.loaded();
        let Some(loaded) = loaded.as_ref() else {
            let says = "the keys that tokens are checked with were not read yet".into();
            let would_pass = format!("keys from {}; the proxy's log says why they cannot be read", jwt.source.origin);
            return Err(Denied { why: Why::Unready, says, would_pass, keys: Some(0) });
        };
        if token.len() > jwt::TOKEN_BYTES_MAX {
            return Err(self.refused("the token is larger than 16 KiB".into(), None));
        }
        let key = (self.id, sha256(token));
        if let Some(kept) = tokens.get(&key)
            && kept.generation == loaded.generation
            && (kept.from..kept.until).contains(&now)
        {
            return Ok(kept.caller.clone());
        }
        match jwt::verify(token, &loaded.content, &jwt.wanted, now) {
            Ok(verified) => {
                let name: Arc<str> = verified.name.into();
                let caller = Caller { field: in_field(&name), name, rules: self.rules_for(Some(&verified.claims)) };
                let (from, until, generation) = (verified.from, verified.until, loaded.generation);
                tokens.put(key, Kept { generation, from, until, caller: caller.clone() });
                Ok(caller)
            }
            Err(refused) => Err(self.refused(refused.says, refused.unknown_key.then_some(loaded.generation))),
        }
    }

    /// The rules whose claims a caller has.
    fn rules_for(&self, claims: Option<&Map<String, Value>>) -> u64 {
        let fits = |rule: &Rule| {
            rule.claims.iter().all(|(name, value)| claims.is_some_and(|claims| claim_is(claims, name, value)))
        };
        self.rules.iter().enumerate().fold(0, |bits, (at, rule)| bits | u64::from(fits(rule)) << at)
    }

    fn allows(&self, request: &RequestHead, caller: &Caller) -> bool {
        let fits = |(at, rule): (usize, &Rule)| caller.rules >> at & 1 == 1 && rule.fits(request, &caller.name);
        self.rules.is_empty() || self.rules.iter().enumerate().any(fits)
    }

    /// `WWW-Authenticate` for an answer of 401: a challenge for each way (RFC 9110, 11.6.1; RFC 6750, 3).
    pub fn challenge(&self, route: &str, denied: &Denied) -> String {
        let realm: String = route.chars().filter(|c| (' '..='~').contains(c) && !matches!(c, '"' | '\\')).collect();
        let mut out = String::new();
        if self.jwt.is_some() {
            let _ = write!(out, "Bearer realm=\"{realm}\"");
            if denied.why == Why::Refused {
                let _ = write!(out, ", error=\"invalid_token\"");
            }
        }
        if let Some(keys) = &self.keys {
            let comma = if out.is_empty() { "" } else { ", " };
            let _ = write!(out, "{comma}ApiKey realm=\"{realm}\", field=\"{}\"", keys.header);
        }
        if !self.certificates.is_empty() {
            let comma = if out.is_empty() { "" } else { ", " };
            let _ = write!(out, "{comma}ClientCertificate realm=\"{realm}\"");
        }
        out
    }
}

/// Fields whose value is not the client's to choose freely, or that would have to go on.
const UNFIT: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    CALLER_FIELD,
];

impl Keys {
    /// None where no key came.
    fn caller(&self, request: &RequestHead) -> Option<Result<Arc<str>, &'static str>> {
        let mut values = request.fields.iter().filter(|(_, name, _)| name.eq_ignore_ascii_case(self.header.as_bytes()));
        let (_, _, key) = values.next()?;
        if values.next().is_some() {
            return Some(Err("the field of the API key stands twice"));
        }
        // A file is there since the route is, or the route would not be.
        let loaded = self.source.loaded();
        let caller = loaded.as_ref().and_then(|loaded| loaded.content.caller(key).cloned());
        Some(caller.ok_or("the API key is nobody's"))
    }
}

/// The token of a request; none where it brings no Authorization of this kind.
fn bearer(request: &RequestHead) -> Option<Result<&[u8], &'static str>> {
    let mut values = request.fields.iter().filter(|(_, name, _)| name.eq_ignore_ascii_case(b"authorization"));
    let (_, _, value) = values.next()?;
    if values.next().is_some() {
        return Some(Err("the field Authorization stands twice"));
    }
    match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(Ok(token.trim_ascii())),
        _ => Some(Err("Authorization is not of the kind Bearer")),
    }
}

/// Whether a claim has a value: it is it, or has it in its list. A claim inside of others is named with dots; `scope` is a list
/// of words (RFC 8693, 4.2), and so is what Microsoft calls `scp`.
fn claim_is(claims: &Map<String, Value>, name: &str, value: &str) -> bool {
    let inner = || {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |at, name| at.get(name))
    };
    let Some(claim) = claims.get(name).or_else(inner) else { return false };
    let is = |one: &Value| match one {
        Value::String(text) => text == value,
        Value::Number(number) => number.to_string() == value,
        Value::Bool(answer) => answer.to_string() == value,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    match claim {
        Value::Array(list) => list.iter().any(is),
        Value::String(words) if matches!(name, "scope" | "scp") => words.split(' ').any(|word| word == value),
        one => is(one),
    }
}

/// A name as it goes on in a field: what is not visible ASCII is percent-encoded, `%` too, so that no two names become one.
fn in_field(name: &Arc<str>) -> Arc<str> {
    if keys::plain(name) {
        return name.clone();
    }
    let mut out = String::with_capacity(name.len() * 3);
    for byte in name.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'%' => out.push(byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out.into()
}

/// A text for a sentence.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_default).collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}

/// Who would pass.
fn would_pass(spec: &spec::Auth, header: Option<&str>) -> String {
    let mut ways = Vec::new();
    if let Some(header) = header {
        ways.push(format!("an API key of the route's file in {header}"));
    }
    if let Some(jwt) = &spec.jwt {
        let mut way = "a token (Authorization: Bearer)".to_owned();
        if let Some(issuer) = &jwt.issuer {
            let _ = write!(way, " of {issuer}");
        }
        if let Some(audience) = &jwt.audience {
            let _ = write!(way, " for {}", audience.as_slice().join(" or "));
        }
        ways.push(way);
    }
    if !spec.certificates.is_empty() {
        ways.push(format!("a client certificate for {}", spec.certificates.join(" or ")));
    }
    let rules = spec.allow.iter().map(|rule| {
        let mut parts = Vec::new();
        if let Some(names) = &rule.caller {
            parts.push(format!("caller {}", names.as_slice().join(" or ")));
        }
        parts.extend(rule.claims.iter().map(|(name, value)| format!("{name} {value}")));
        if let Some(methods) = &rule.method {
            parts.push(format!("method {}", methods.as_slice().join(" or ")));
        }
        parts.join(" and ")
    });
    let rules: Vec<String> = rules.collect();
    let ways = ways.join(", or ");
    if rules.is_empty() { ways } else { format!("{ways}; and then {}", rules.join(", or ")) }
}

/// A gate's id, and the SHA-256 of a token.
type TokenKey = (u64, [u8; 32]);

#[derive(Clone)]
struct Kept {
    generation: u64,
    from: u64,
    until: u64,
    caller: Caller,
}

/// Tokens whose signature was good, of one core. Two halves: what was not asked for since the younger one filled goes.
#[derive(Default)]
pub struct Tokens {
    young: HashMap<TokenKey, Kept>,
    old: HashMap<TokenKey, Kept>,
}

impl Tokens {
    fn get(&mut self, key: &TokenKey) -> Option<&Kept> {
        if !self.young.contains_key(key) {
            let kept = self.old.remove(key)?;
            self.put(*key, kept);
        }
        self.young.get(key)
    }

    fn put(&mut self, key: TokenKey, kept: Kept) {
        if self.young.len() >= TOKENS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, kept);
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
