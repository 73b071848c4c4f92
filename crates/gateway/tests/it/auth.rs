//! Who may call: what lets a request in, what does not and with which words, and keys that change while requests run.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use buttress_gateway::{
    auth::{
        Caller, Denied, Gate, Tokens, Why,
        jwks::KeySet,
        source::{Content, Pace, Sources},
    },
    compile::Declared,
    fuzz,
    parse::{self, RequestHead},
    table::Place,
};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    support::{Answer, Proxy, Upstream, tls_of, until},
    tls::{Authority, server},
    tokens::{Key, jwks},
};

/// A second at which the tests of clocks begin.
const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);

/// Nothing is read again by itself, and what is asked for at once.
const EAGER: Pace =
    Pace { file: HOUR, http: HOUR, failed: HOUR, failed_max: HOUR, unknown_key: Duration::ZERO, patience: HOUR };

fn route(name: &str, spec: Value) -> Declared {
    let place = Place { file: "routes.yaml".into(), line: 1 };
    Declared { name: name.into(), spec: serde_json::from_value(spec).unwrap(), place, match_lines: vec![4, 5, 6] }
}

fn proxy(upstream: &Upstream, auth: Value) -> Proxy {
    let spec = json!({"to": [{"endpoints": upstream.address.to_string()}], "auth": auth});
    Proxy::routing(&[route("r", spec)], |_| {})
}

fn get(proxy: &Proxy, fields: &str) -> Answer {
    proxy.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"))
}

fn record(proxy: &Proxy, answer: &Answer) -> Value {
    let id = answer.field("x-request-id").expect("every answer names its request");
    proxy.shared().records.find(id).expect("a record of it is kept").json()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn digest(key: &str) -> String {
    ring::digest::digest(&ring::digest::SHA256, key.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// A file in a folder that goes with the test.
fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn request(fields: &str) -> RequestHead {
    parse::request(Bytes::from(format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))).unwrap()
}

fn bearer(token: &str) -> RequestHead {
    request(&format!("Authorization: Bearer {token}\r\n"))
}

/// A gate whose JWKS is a file, and what it says at a second.
struct Door {
    gate: Gate,
    tokens: Tokens,
    _folder: TempDir,
    _sources: Sources,
}

impl Door {
    fn new(keys: &[Value], auth: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut auth = auth;
        auth["jwt"]["jwks"] = json!(file(&folder, "jwks.json", &jwks(keys)));
        let sources = Sources::new(EAGER);
        let gate = Gate::new(&serde_json::from_value(auth).unwrap(), &sources).unwrap();
        Self { gate, tokens: Tokens::default(), _folder: folder, _sources: sources }
    }

    fn ask(&mut self, token: &str, now: u64) -> Result<Caller, Denied> {
        self.gate.check(&bearer(token), None, now, &mut self.tokens)
    }

    fn refusal(&mut self, token: &str, now: u64) -> String {
        let denied = self.ask(token, now).expect_err("it is refused");
        assert_eq!(denied.why, Why::Refused, "{denied:?}");
        denied.says.into_owned()
    }
}

fn claims() -> Value {
    json!({"sub": "alice", "iat": NOW, "nbf": NOW, "exp": NOW + 600})
}

#[test]
fn each_algorithm_is_checked_with_a_key_of_its_own_kind_and_with_no_other() {
    let keys = [("rsa", Key::rsa()), ("p256", Key::p256()), ("p384", Key::p384()), ("ed", Key::ed25519())];
    let fitting = [
        ("rsa", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        ("p256", &["ES256"]),
        ("p384", &["ES384"]),
        ("ed", &["EdDSA", "Ed25519"]),
    ];
    let list: Vec<Value> = keys.iter().map(|(kid, key)| key.jwk(kid)).collect();
    let mut door = Door::new(&list, json!({"jwt": {}}));
    let mut good = 0;
    for (kid, key) in &keys {
        for (of, algorithms) in fitting {
            for algorithm in algorithms {
                let named = key.token(&json!({"alg": algorithm, "kid": kid, "typ": "JWT"}), &claims());
                // Without a name, all keys that fit are tried.
                let unnamed = key.token(&json!({"alg": algorithm}), &claims());
                if of == *kid {
                    assert_eq!(&*door.ask(&named, NOW).unwrap().name, "alice", "{kid} {algorithm}");
                    assert_eq!(&*door.ask(&unnamed, NOW).unwrap().name, "alice", "{kid} {algorithm}");
                    good += 1;
                } else {
                    let says = door.refusal(&named, NOW);
                    assert!(says.contains("alg does not fit the key"), "{kid} {algorithm}: {says}");
                    assert!(door.refusal(&unnamed, NOW).contains("not made by a key"), "{kid} {algorithm}");
                }
            }
        }
    }
    assert_eq!(good, 10);
    // A key that names one algorithm checks no other of its kind.
    let mut only = Key::rsa().jwk("rsa");
    only["alg"] = json!("PS256");
    let mut door = Door::new(&[only], json!({"jwt": {}}));
    let by = |algorithm: &str| Key::rsa().token(&json!({"alg": algorithm, "kid": "rsa"}), &claims());
    assert!(door.ask(&by("PS256"), NOW).is_ok());
    assert!(door.refusal(&by("RS256"), NOW).contains("alg does not fit"));
}

#[test]
fn a_token_does_not_choose_how_it_is_checked() {
    let (key, thief) = (Key::p256(), Key::p256());
    let mut door = Door::new(&[key.jwk("k")], json!({"jwt": {}}));
    let header = json!({"alg": "ES256", "kid": "k"});
    let good = key.token(&header, &claims());
    assert!(door.ask(&good, NOW).is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    let part = |value: &Value| BASE64.encode(value.to_string());

    let none = format!("{}.{}.", part(&json!({"alg": "none"})), parts[1]);
    assert_eq!(door.refusal(&none, NOW), "the token is not signed (alg is none)");
    // The public key as a shared secret: what made many a library famous.
    let signed = format!("{}.{}", part(&json!({"alg": "HS256", "kid": "k"})), parts[1]);
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key.public_bytes());
    let forged = format!("{signed}.{}", BASE64.encode(ring::hmac::sign(&secret, signed.as_bytes())));
    assert!(door.refusal(&forged, NOW).contains("shared secret"));
    // A key that the token brings itself.
    let own = json!({"alg": "ES256", "kid": "k", "jwk": thief.jwk("k"), "jku": "http://thief.example/jwks"});
    assert!(door.refusal(&thief.token(&own, &claims()), NOW).contains("not made by a key of the JWKS"));
    // Other claims under a good signature, and a good token of which one letter was changed.
    let other = format!("{}.{}.{}", parts[0], part(&json!({"sub": "root", "exp": NOW + 600})), parts[2]);
    assert!(door.refusal(&other, NOW).contains("not made by a key"));
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        door.refusal(std::str::from_utf8(&bytes).unwrap(), NOW);
    }
    assert_eq!(door.tokens.len(), 1, "only what was good is remembered");

    for (token, says) in [
        (key.token(&json!({"alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false}), &claims()), "extension (crit)"),
        (key.token(&json!({"alg": "ES256", "kid": "k", "typ": "logout+jwt"}), &claims()), "something else than access"),
        (key.token(&json!({"alg": "ES256", "kid": 7}), &claims()), "(kid) is no text"),
        (key.token(&json!({"alg": "ES512", "kid": "k"}), &claims()), "cannot be checked here (alg)"),
        (key.token(&json!({"kid": "k"}), &claims()), "cannot be checked here (alg)"),
        (key.token_of("{\"alg\":\"ES256\",\"alg\":\"none\"}", "{}", ""), "header is not"),
        (key.token_of("{\"alg\":\"ES256\"}", "{\"sub\":\"a\",\"sub\":\"b\"}", ""), "claims are not"),
        (key.token_of("[]", "{}", ""), "header is not"),
        (format!("{good}."), "three parts"),
        ("a.b".into(), "three parts"),
        (format!("{good}="), "signature is not base64url"),
        ("x".repeat(17 * 1024), "larger than 16 KiB"),
    ] {
        let refusal = door.refusal(&token, NOW);
        assert!(refusal.contains(says), "{refusal}");
    }
    // A name of a key is repeated, cut and without what could break a line of a log.
    let unknown = key.token(&json!({"alg": "ES256", "kid": format!("é\n{}", "x".repeat(200))}), &claims());
    let says = door.refusal(&unknown, NOW);
    assert!(says.contains("\\u{e9}\\nxxx") && says.contains("…\" is not in the JWKS"), "{says}");
}

#[test]
fn claims_are_held_against_the_route_and_the_clock() {
    let key = Key::ed25519();
    let auth = json!({"jwt": {"issuer": "https://id.example", "audience": ["shop", "pay"]}});
    let mut door = Door::new(&[key.jwk("k")], auth);
    let all = json!({"sub": "alice", "iss": "https://id.example", "aud": "shop", "exp": NOW + 600});
    let token = |change: Value| {
        let mut claims = all.clone();
        for (name, value) in change.as_object().unwrap() {
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        key.token(&json!({"alg": "EdDSA", "kid": "k"}), &claims)
    };
    for good in [
        json!({}),
        json!({"aud": ["else", "pay"]}),
        // Within the leeway of 30 s; fractions are allowed (RFC 7519, 2).
        json!({"exp": NOW - 29, "nbf": NOW as f64 + 29.5, "iat": NOW + 30}),
        json!({"sub": 17}),
    ] {
        assert!(door.ask(&token(good.clone()), NOW).is_ok(), "{good}");
    }
    for (bad, says) in [
        (json!({"exp": NOW - 30}), "has expired 30 s ago"),
        (json!({"exp": null}), "no time at which it ends"),
        (json!({"exp": "tomorrow"}), "exp is no time"),
        (json!({"exp": -1}), "exp is no time"),
        (json!({"exp": 1e300}), "exp is no time"),
        (json!({"nbf": NOW + 31}), "is not valid yet, by 31 s"),
        (json!({"iat": NOW + 90}), "was made in the future, by 90 s"),
        (json!({"iss": "https://thief.example"}), "another issuer"),
        (json!({"iss": null}), "another issuer"),
        (json!({"iss": ["https://id.example"]}), "another issuer"),
        (json!({"aud": "bank"}), "another audience"),
        (json!({"aud": ["bank"]}), "another audience"),
        (json!({"aud": {"shop": 1}}), "another audience"),
        (json!({"aud": null}), "says no audience"),
        (json!({"sub": null}), "has no \"sub\""),
        (json!({"sub": ["alice"]}), "has no \"sub\""),
        (json!({"sub": ""}), "is not 1 to 256 bytes"),
        (json!({"sub": "x".repeat(257)}), "is not 1 to 256 bytes"),
    ] {
        let refusal = door.refusal(&token(bad.clone()), NOW);
        assert!(refusal.contains(says), "{bad}: {refusal}");
    }
    let mut any = Door::new(&[key.jwk("k")], json!({"jwt": {}}));
    assert!(any.refusal(&token(json!({})), NOW).contains("the route names none"), "a token for somebody is not for us");
    assert!(any.ask(&token(json!({"aud": null})), NOW).is_ok());
}

#[test]
fn what_is_remembered_follows_the_clock_in_both_directions() {
    let key = Key::ed25519();
    let mut door = Door::new(&[key.jwk("k")], json!({"jwt": {"leeway": "10s"}}));
    let token = key.token(&json!({"alg": "EdDSA", "kid": "k"}), &claims());
    assert!(door.ask(&token, NOW).is_ok() && door.ask(&token, NOW + 609).is_ok());
    assert_eq!(door.tokens.len(), 1);
    assert!(door.refusal(&token, NOW + 610).contains("has expired"), "it is not good because it was");
    assert!(door.refusal(&token, NOW + 86_400).contains("has expired"));
    assert!(door.ask(&token, NOW - 10).is_ok(), "the clock went back, and it is good again");
    assert!(door.refusal(&token, NOW - 11).contains("is not valid yet"));
    assert!(door.refusal(&token, 0).contains("is not valid yet"));
}

#[test]
fn rules_hold_against_caller_claims_and_method_and_one_that_fits_is_enough() {
    let key = Key::p256();
    let folder = tempfile::tempdir().unwrap();
    let keys = file(&folder, "keys", &format!("batch-1 {}\nshop {}", digest("one"), digest("two")));
    let auth = json!({
        "api_keys": {"file": keys}, "jwt": {}, "certificates": ["spiffe://plant/*"],
        "allow": [
            {"caller": ["batch-*", "spiffe://plant/a"], "method": "post"},
            {"claims": {"scope": "orders:write", "realm_access.roles": "clerk"}},
            {"claims": {"https://id.example/admin": "true"}},
        ],
    });
    let mut door = Door::new(&[key.jwk("k")], auth);
    let mut ask = |method: &str, fields: &str, identity: Option<&str>| {
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let request = parse::request(Bytes::from(head)).unwrap();
        let identity = identity.map(Arc::from);
        door.gate.check(&request, identity.as_ref(), NOW, &mut door.tokens).map(|caller| caller.name.to_string())
    };
    let by = |claims: Value| {
        let mut all = claims;
        (all["sub"], all["exp"]) = (json!("eve"), json!(NOW + 9));
        format!("Authorization: bearer {}\r\n", key.token(&json!({"alg": "ES256", "kid": "k"}), &all))
    };
    assert_eq!(ask("POST", "X-Api-Key: one\r\n", None).unwrap(), "batch-1");
    let forbidden = ask("GET", "X-Api-Key: one\r\n", None).unwrap_err();
    assert_eq!((forbidden.why, &*forbidden.says), (Why::Forbidden, "caller \"batch-1\" may not GET here"));
    assert!(forbidden.would_pass.contains("caller batch-* or spiffe://plant/a and method post"), "{forbidden:?}");
    assert_eq!(ask("POST", "X-Api-Key: two\r\n", None).unwrap_err().why, Why::Forbidden);

    let clerk = json!({"scope": "orders:read orders:write", "realm_access": {"roles": ["guest", "clerk"]}});
    assert_eq!(ask("GET", &by(clerk), None).unwrap(), "eve");
    assert_eq!(ask("PUT", &by(json!({"https://id.example/admin": true})), None).unwrap(), "eve");
    for claims in [
        json!({"scope": "orders:write"}),
        json!({"scope": "orders:writes", "realm_access": {"roles": "clerk"}}),
        json!({"scope": ["orders:write"], "realm_access": {"roles": [["clerk"]]}}),
        json!({"realm_access": "clerk"}),
    ] {
        assert_eq!(ask("GET", &by(claims.clone()), None).unwrap_err().why, Why::Forbidden, "{claims}");
    }
    assert_eq!(ask("POST", "", Some("spiffe://plant/a")).unwrap(), "spiffe://plant/a");
    assert_eq!(ask("POST", "", Some("spiffe://plant/b")).unwrap_err().why, Why::Forbidden);
    assert_eq!(ask("POST", "", Some("spiffe://other/a")).unwrap_err().why, Why::Refused);
    assert_eq!(ask("POST", "", None).unwrap_err().why, Why::Anonymous);
    // One way that fits is enough, whatever else came with it.
    assert_eq!(ask("POST", "X-Api-Key: wrong\r\n", Some("spiffe://plant/a")).unwrap(), "spiffe://plant/a");
    let both = format!("X-Api-Key: two\r\n{}", by(json!({"https://id.example/admin": "true"})));
    assert_eq!(ask("GET", &both, None).unwrap(), "eve");
    for twice in ["X-Api-Key: one\r\nX-Api-Key: one\r\n", "Authorization: Bearer a\r\nAuthorization: Bearer a\r\n"] {
        assert!(ask("POST", twice, None).unwrap_err().says.contains("stands twice"));
    }
    assert!(ask("POST", "Authorization: Basic b25l\r\n", None).unwrap_err().says.contains("not of the kind Bearer"));
}

#[test]
fn a_caller_goes_on_by_name_without_the_key_and_nobody_can_name_himself() {
    let folder = tempfile::tempdir().unwrap();
    let keys = file(&folder, "keys", &format!("shop {}", digest("s3cret-key")));
    let upstream = Upstream::answering("ok");
    let proxy = proxy(&upstream, json!({"api_keys": {"header": "X-Key", "file": keys}}));
    let names = "Buttress-Caller: root\r\nbuttress_caller: root\r\nConnection: buttress-caller\r\n";
    assert_eq!(get(&proxy, &format!("X-KEY: s3cret-key\r\nX-Other: kept\r\n{names}")).status, 200);
    let seen = upstream.requests().remove(0).to_ascii_lowercase();
    assert!(seen.contains("\r\nbuttress-caller: shop\r\n") && seen.contains("x-other: kept"), "{seen}");
    assert!(!seen.contains("s3cret") && !seen.contains("root") && !seen.contains("x-key"), "{seen}");

    let answer = get(&proxy, names);
    assert_eq!((answer.status, answer.field("buttress-code")), (401, Some("bt0923")));
    assert_eq!(answer.field("www-authenticate"), Some("apikey realm=\"r\", field=\"x-key\""));
    let record = record(&proxy, &answer);
    assert_eq!(record["matched"], "routes.yaml:1");
    assert_eq!(record["outcome"]["would_pass"], "an API key of the route's file in x-key");
    let answer = get(&proxy, "X-Key: s3cret-keyy\r\n");
    assert_eq!((answer.status, answer.field("buttress-code")), (401, Some("bt0924")));
    let record = self::record(&proxy, &answer).to_string();
    assert!(!record.contains("s3cret") && !answer.body.contains("s3cret") && !answer.head.contains("s3cret"));
    // A route without auth names nobody, and lets nobody name himself.
    let open = Proxy::to(&[upstream.address]);
    assert_eq!(get(&open, names).status, 200);
    assert!(!upstream.requests().last().unwrap().contains("root"));

    let mut metrics = String::new();
    proxy.shared().prometheus(&mut metrics);
    for (outcome, count) in [("passed", 1), ("anonymous", 1), ("refused", 1), ("forbidden", 0)] {
        let line = format!("buttress_traffic_auth_total{{route=\"r\",outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
}

#[test]
fn a_name_that_no_field_can_hold_goes_on_encoded() {
    let key = Key::ed25519();
    let mut door = Door::new(&[key.jwk("k")], json!({"jwt": {"caller": "email"}}));
    let claims = json!({"email": "zoë 100%\r\nbuttress-caller: root", "exp": NOW + 1});
    let caller = door.ask(&key.token(&json!({"alg": "EdDSA"}), &claims), NOW).unwrap();
    assert_eq!(&*caller.field, "zo%C3%AB%20100%25%0D%0Abuttress-caller:%20root");
    assert!(caller.name.starts_with("zoë 100%"), "rules see the name itself");
}

#[test]
fn a_token_through_the_proxy_and_the_answers_of_both_protocols() {
    let folder = tempfile::tempdir().unwrap();
    let key = Key::p256();
    let path = file(&folder, "jwks.json", &jwks(&[key.jwk("k")]));
    let upstream = Upstream::answering("ok");
    let auth = json!({"jwt": {"jwks": path, "audience": "shop"}, "allow": [{"claims": {"role": "clerk"}}]});
    let proxy = proxy(&upstream, auth);
    let now = unix_now();
    let by = |role: &str, exp: u64| {
        let claims = json!({"sub": "alice", "aud": "shop", "role": role, "exp": exp});
        format!("Authorization: Bearer {}\r\n", key.token(&json!({"alg": "ES256", "kid": "k"}), &claims))
    };
    assert_eq!(get(&proxy, &by("clerk", now + 600)).body, "ok");
    assert!(upstream.requests()[0].contains("buttress-caller: alice\r\n"));
    let expired = get(&proxy, &by("clerk", now - 600));
    assert_eq!((expired.status, expired.field("buttress-code")), (401, Some("bt0924")), "{expired:?}");
    assert_eq!(expired.field("www-authenticate"), Some("bearer realm=\"r\", error=\"invalid_token\""));
    assert!(expired.body.contains("the token has expired"), "{expired:?}");
    let guest = get(&proxy, &by("guest", now + 600));
    assert_eq!((guest.status, guest.field("buttress-code")), (403, Some("bt0925")), "{guest:?}");
    assert!(!guest.body.contains("clerk"), "rules are not for clients: {guest:?}");
    let passes = record(&proxy, &guest)["outcome"]["would_pass"].to_string();
    assert!(passes.contains("for shop; and then role clerk"), "{passes}");
    let grpc = "Content-Type: application/grpc\r\n";
    assert_eq!(get(&proxy, grpc).field("grpc-status"), Some("16"));
    assert_eq!(get(&proxy, &format!("{grpc}{}", by("guest", now + 600))).field("grpc-status"), Some("7"));
    assert_eq!(upstream.requests().len(), 1, "nothing else went on");
}

#[test]
fn limits_and_rings_know_the_caller() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..30).map(|at| format!("caller-{at}")).collect();
    let lines: Vec<String> = names.iter().map(|name| format!("{name} {}", digest(name))).collect();
    let keys = file(&folder, "keys", &lines.join("\n"));
    let (one, two) = (Upstream::answering("one"), Upstream::answering("two"));
    let spec = |more: Value| {
        let endpoints = json!([one.address.to_string(), two.address.to_string()]);
        let mut spec = json!({"to": [{"endpoints": endpoints}], "auth": {"api_keys": {"file": keys}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let proxy = Proxy::routing(
        &[route("r", spec(json!({"rate": [{"per_second": 0.001, "burst": 1, "by": "caller"}]})))],
        |_| {},
    );
    let by = |name: &str| get(&proxy, &format!("X-Api-Key: {name}\r\n"));
    assert_eq!((by("caller-1").status, by("caller-2").status), (200, 200));
    assert_eq!((by("caller-1").status, by("caller-2").status), (429, 429));
    proxy.shared().load(&[route("r", spec(json!({"balance": {"by": "ring", "key": "caller"}})))]).unwrap();
    let places: Vec<String> = names.iter().map(|name| by(name).body).collect();
    assert!(places.iter().any(|place| place == "one") && places.iter().any(|place| place == "two"));
    assert!(names.iter().zip(&places).all(|(name, place)| by(name).body == *place), "a caller stays where it is");
}

#[test]
fn a_key_file_is_followed_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "keys", &format!("shop {}", digest("one")));
    let upstream = Upstream::answering("ok");
    let proxy = proxy(&upstream, json!({"api_keys": {"file": path}}));
    let status = |key: &str| get(&proxy, &format!("X-Api-Key: {key}\r\n")).status;
    let stale = || {
        let mut metrics = String::new();
        proxy.shared().prometheus(&mut metrics);
        let line = metrics.lines().find(|line| line.starts_with("buttress_traffic_auth_keys_stale{what=\"API keys\""));
        line.expect("the file has its figure").ends_with(" 1")
    };
    assert_eq!((status("one"), status("two"), stale()), (200, 401, false));
    fs::write(&path, format!("shop {}", digest("two"))).unwrap();
    until("the new key counts", || status("two") == 200);
    assert_eq!(status("one"), 401, "the old one does not");
    fs::write(&path, "shop two").unwrap();
    until("the broken file was seen", stale);
    assert_eq!(status("two"), 200);
    fs::remove_file(&path).unwrap();
    assert_eq!(status("two"), 200);
    fs::write(&path, "# nobody\n").unwrap();
    until("an empty file lets nobody in", || status("two") == 401);
    assert!(!stale());
}

/// An issuer's address: what it answers can be changed.
struct Issuer {
    upstream: Upstream,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

fn http(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl Issuer {
    fn new(answer: String) -> Self {
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (says, count) = (answer.clone(), asked.clone());
        let upstream = Upstream::new(move |_, connection| {
            while connection.read_request().is_some() {
                count.fetch_add(1, SeqCst);
                let answer = says.lock().unwrap().clone();
                connection.write(answer.as_bytes());
                if answer.is_empty() {
                    // Closed without a word.
                    return;
                }
            }
        });
        Self { upstream, answer, asked }
    }

    fn url(&self) -> String {
        format!("http://{}/jwks?v=1", self.upstream.address)
    }

    fn answers(&self, answer: String) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn an_unknown_key_is_looked_for_at_once_and_an_address_that_flaps_takes_nothing_away() {
    let (old, new) = (Key::p256(), Key::p256());
    let issuer = Issuer::new(http(&jwks(&[old.jwk("old")])));
    let sources = Sources::new(EAGER);
    let spec = serde_json::from_value(json!({"jwt": {"jwks": issuer.url()}})).unwrap();
    let (gate, mut tokens) = (Gate::new(&spec, &sources).unwrap(), Tokens::default());
    let token = |key: &Key, kid: &str| key.token(&json!({"alg": "ES256", "kid": kid}), &claims());
    // A request as the proxy treats it: what is being read is waited for, once.
    let mut ask = |token: &str| {
        let mut once = || gate.check(&bearer(token), None, NOW, &mut tokens);
        let denied = match once() {
            Err(denied) => denied,
            passes => return passes,
        };
        let Some(mut fresher) = gate.fresher(&denied) else { return Err(denied) };
        block_on(fresher.over());
        once()
    };
    // Nobody reads before the routes are in place.
    let unread = gate.check(&bearer(&token(&old, "old")), None, NOW, &mut Tokens::default()).unwrap_err();
    assert_eq!((unread.why, unread.code().0, issuer.asked()), (Why::Unready, "BT0926", 0));
    sources.follow();
    assert!(ask(&token(&old, "old")).is_ok());
    assert!(ask(&token(&old, "old")).is_ok());
    let before = issuer.asked();
    assert_eq!(before, 1);
    // The issuer's keys are exchanged: a token of the new one makes the gateway look.
    issuer.answers(http(&jwks(&[old.jwk("old"), new.jwk("new")])));
    assert!(ask(&token(&new, "new")).is_ok());
    assert_eq!(issuer.asked(), before + 1);
    for garbage in [
        String::new(),
        "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 302 Found\r\nLocation: http://thief.example/\r\nContent-Length: 0\r\n\r\n".into(),
        "not even HTTP\r\n\r\n".into(),
        http("<html>sorry</html>"),
        http("{}"),
        http(&jwks(&[])),
        http(&jwks(&[json!({"kty": "oct", "k": "c2VjcmV0", "kid": "none"})])),
        "HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n".to_owned() + &"x".repeat(2 << 20),
    ] {
        issuer.answers(garbage.clone());
        let asked = issuer.asked();
        let refused = ask(&token(&new, "none")).unwrap_err();
        assert_eq!(refused.why, Why::Refused);
        assert_eq!(issuer.asked(), asked + 1, "{garbage:.60}");
        let health = &sources.health()[0].1;
        assert!(health.problem.is_some() && health.keys == Some(2), "{garbage:.60}: {health:?}");
        assert!(ask(&token(&old, "old")).is_ok() && ask(&token(&new, "new")).is_ok(), "{garbage:.60}");
    }
    // A key that the issuer has taken back counts no more, also for tokens that were good a moment ago.
    issuer.answers(http(&jwks(&[new.jwk("new")])));
    assert!(ask(&token(&new, "none")).is_err());
    assert!(ask(&token(&old, "old")).unwrap_err().says.contains("\"old\" is not in the JWKS"));
    assert!(sources.health()[0].1.problem.is_none() && ask(&token(&new, "new")).is_ok());
}

#[test]
fn tokens_of_unknown_keys_do_not_make_the_gateway_ask_without_end() {
    let key = Key::ed25519();
    let issuer = Issuer::new(http(&jwks(&[key.jwk("k")])));
    let sources = Sources::new(Pace { unknown_key: HOUR, ..EAGER });
    let spec = serde_json::from_value(json!({"jwt": {"jwks": issuer.url()}})).unwrap();
    // Two routes with one address read it once.
    let gates = [Gate::new(&spec, &sources).unwrap(), Gate::new(&spec, &sources).unwrap()];
    sources.follow();
    let mut tokens = Tokens::default();
    until("the keys were read", || sources.health()[0].1.keys == Some(1));
    for gate in &gates {
        for at in 0..50 {
            let token = key.token(&json!({"alg": "EdDSA", "kid": format!("k-{at}")}), &claims());
            let denied = gate.check(&bearer(&token), None, NOW, &mut tokens).unwrap_err();
            assert!(gate.fresher(&denied).is_none(), "{denied:?}");
        }
        let token = key.token(&json!({"alg": "EdDSA", "kid": "k"}), &claims());
        assert!(gate.check(&bearer(&token), None, NOW, &mut tokens).is_ok());
    }
    assert_eq!((issuer.asked(), tokens.len()), (1, 2), "what one route has seen to be good is not good for another");
}

#[test]
fn a_route_whose_keys_were_never_read_lets_no_token_in_and_opens_when_they_are() {
    let key = Key::ed25519();
    let issuer = Issuer::new("HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n".into());
    let upstream = Upstream::answering("ok");
    let folder = tempfile::tempdir().unwrap();
    let keys = file(&folder, "keys", &format!("shop {}", digest("one")));
    let proxy = proxy(&upstream, json!({"jwt": {"jwks": issuer.url()}, "api_keys": {"file": keys}}));
    let claims = json!({"sub": "alice", "exp": unix_now() + 600});
    let field = format!("Authorization: Bearer {}\r\n", key.token(&json!({"alg": "EdDSA", "kid": "k"}), &claims));
    let answer = get(&proxy, &field);
    assert_eq!((answer.status, answer.field("buttress-code")), (503, Some("bt0926")), "{answer:?}");
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert!(record(&proxy, &answer)["outcome"]["would_pass"].as_str().unwrap().contains(&issuer.url()));
    assert_eq!(get(&proxy, "").status, 401, "whoever brings nothing is told so");
    assert_eq!(get(&proxy, "X-Api-Key: one\r\n").status, 200, "other ways are not held up");
    issuer.answers(http(&jwks(&[key.jwk("k")])));
    until("the keys were read", || get(&proxy, &field).status == 200);
}

#[test]
fn keys_come_within_tls_from_an_issuer_whose_certificate_is_believed() {
    let (key, authority) = (Key::p256(), Authority::new());
    let issuer = Issuer::new(http(&jwks(&[key.jwk("k")])));
    let pair = authority.named("id", &["localhost"]);
    let secure = Proxy::with(&[issuer.upstream.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let address = format!("https://localhost:{}/jwks", secure.address.port());
    let upstream = Upstream::answering("ok");
    let claims = json!({"sub": "alice", "exp": unix_now() + 600});
    let field = format!("Authorization: Bearer {}\r\n", key.token(&json!({"alg": "ES256", "kid": "k"}), &claims));
    let behind = |ca: &std::path::Path| {
        let auth = json!({"jwt": {"jwks": address, "ca": ca}});
        Proxy::routing(
            &[route("r", json!({"to": [{"endpoints": upstream.address.to_string()}], "auth": auth}))],
            |_| {},
        )
    };
    let believed = behind(&authority.path("ca.pem"));
    until("the keys were read", || get(&believed, &field).status == 200);
    let asked = issuer.asked();
    let other = behind(&Authority::new().path("ca.pem"));
    assert_eq!(get(&other, &field).status, 503, "nobody is let in by keys of an issuer that is not believed");
    assert_eq!(issuer.asked(), asked);
}

/// An issuer with a document about itself, which says what it is told with `ISSUER` for where it is.
fn with_document(keys: &Key, says: &Arc<Mutex<String>>) -> Upstream {
    let (says, keys) = (says.clone(), jwks(&[keys.jwk("k")]));
    Upstream::new(move |_, connection| {
        while let Some((head, _)) = connection.read_request() {
            let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
            let issuer = format!("http://{host}/realms/shop");
            let body = match head.split(' ').nth(1) {
                Some("/realms/shop/.well-known/openid-configuration") => {
                    says.lock().unwrap().replace("ISSUER", &issuer)
                }
                Some("/realms/shop/keys" | "/elsewhere") => keys.clone(),
                other => panic!("nobody may ask for {other:?}"),
            };
            connection.write(http(&body).as_bytes());
        }
    })
}

#[test]
fn an_issuer_says_where_its_keys_are_and_a_document_that_lies_opens_nothing() {
    let key = Key::p256();
    let good = r#"{"issuer":"ISSUER","jwks_uri":"ISSUER/keys","response_types_supported":["code"]}"#;
    let says = Arc::new(Mutex::new(good.to_owned()));
    let issuer = with_document(&key, &says);
    let name = format!("http://{}/realms/shop", issuer.address);
    let spec = serde_json::from_value(json!({"jwt": {"issuer": name, "audience": "a"}})).unwrap();
    let claims = |iss: &str| json!({"sub": "alice", "aud": "a", "iss": iss, "exp": NOW + 600});
    let token = |iss: &str| key.token(&json!({"alg": "ES256", "kid": "k"}), &claims(iss));
    // Each with sources of its own, which have read nothing yet.
    let ask = |says_now: &str| {
        *says.lock().unwrap() = says_now.to_owned();
        let sources = Sources::new(EAGER);
        let gate = Gate::new(&spec, &sources).unwrap();
        sources.follow();
        until("it was read, or not", || {
            let health = &sources.health()[0].1;
            health.keys.is_some() || health.problem.is_some()
        });
        let health = sources.health()[0].1.clone();
        assert!(health.origin.ends_with("/realms/shop/.well-known/openid-configuration"), "{health:?}");
        (
            gate.check(&bearer(&token(&name)), None, NOW, &mut Tokens::default()).map(|caller| caller.name),
            health.problem,
        )
    };
    assert_eq!(ask(good).0.unwrap(), "alice".into());
    let moved = good.replace("ISSUER/keys", &format!("http://{}/elsewhere", issuer.address));
    assert_eq!(ask(&moved).0.unwrap(), "alice".into(), "keys may lie elsewhere");
    let large = format!("{{\"issuer\":\"{}\"}}", "x".repeat(70_000));
    for (lie, why) in [
        (good.replace("\"ISSUER\"", "\"http://other.example\""), "is of another issuer than the route names (issuer)"),
        (good.replace("\"ISSUER\"", "\"ISSUER/\""), "is of another issuer than the route names (issuer)"),
        (good.replace("jwks_uri", "jwks_url"), "says no place of keys (jwks_uri)"),
        (
            good.replace("ISSUER/keys", "file:///etc/passwd"),
            "names a place of keys that is no http:// or https:// address",
        ),
        (good.replace("ISSUER/keys", "/etc/passwd"), "names a place of keys that is no http:// or https:// address"),
        ("[]".into(), "names no issuer, so it is no discovery document"),
        ("<html>\n</html>".into(), "is not JSON, from line 1 on"),
        (large, "answered more than 65536 bytes"),
    ] {
        let (denied, problem) = ask(&lie);
        assert_eq!(denied.unwrap_err().why, Why::Unready, "{lie:.80}");
        assert!(problem.as_ref().is_some_and(|problem| problem.contains(why)), "{lie:.80}: {problem:?}");
    }
    // Whatever made the token, it is held against the issuer as well.
    *says.lock().unwrap() = good.to_owned();
    let sources = Sources::new(EAGER);
    let gate = Gate::new(&spec, &sources).unwrap();
    sources.follow();
    until("the keys were read", || sources.health()[0].1.keys == Some(1));
    let denied = gate.check(&bearer(&token("http://other.example")), None, NOW, &mut Tokens::default()).unwrap_err();
    assert!(denied.says.contains("of another issuer"), "{denied:?}");
}

#[test]
fn an_issuer_within_tls_cannot_send_us_to_keys_without() {
    let (key, authority) = (Key::p256(), Authority::new());
    let says = Arc::new(Mutex::new(String::new()));
    let clear = with_document(&key, &says);
    let pair = authority.named("id", &["localhost"]);
    let secure = Proxy::with(&[clear.address], |options| *tls_of(options) = Some(server(&[&pair])));
    let name = format!("https://localhost:{}/realms/shop", secure.address.port());
    let spec = json!({"jwt": {"issuer": name, "ca": authority.path("ca.pem")}});
    let spec = serde_json::from_value(spec).unwrap();
    let problem = |keys: &str| {
        *says.lock().unwrap() = json!({"issuer": name, "jwks_uri": keys}).to_string();
        let sources = Sources::new(EAGER);
        let _gate = Gate::new(&spec, &sources).unwrap();
        sources.follow();
        until("it was read, or not", || {
            let health = &sources.health()[0].1;
            health.keys.is_some() || health.problem.is_some()
        });
        sources.health()[0].1.problem.clone()
    };
    assert_eq!(problem(&format!("{name}/keys")), None);
    let says = problem(&format!("http://{}/elsewhere", clear.address)).unwrap();
    assert!(says.contains("names keys at http://, though the issuer is at https://"), "{says}");
}

#[test]
fn a_gate_that_is_as_it_was_stays_through_a_change_of_routes() {
    let key = Key::ed25519();
    let issuer = Issuer::new(http(&jwks(&[key.jwk("k")])));
    let upstream = Upstream::answering("ok");
    let spec = |leeway: &str, deadline: &str| {
        json!({
            "to": [{"endpoints": upstream.address.to_string()}], "deadline": deadline,
            "auth": {"jwt": {"jwks": issuer.url(), "leeway": leeway}},
        })
    };
    let proxy = Proxy::routing(&[route("r", spec("1s", "5s"))], |_| {});
    let gate = || proxy.shared().table.load().routes[0].gate.clone().unwrap();
    let claims = json!({"sub": "alice", "exp": unix_now() + 600});
    let field = format!("Authorization: Bearer {}\r\n", key.token(&json!({"alg": "EdDSA", "kid": "k"}), &claims));
    until("the keys were read", || get(&proxy, &field).status == 200);
    let (first, asked) = (gate(), issuer.asked());
    proxy.shared().load(&[route("r", spec("1s", "6s"))]).unwrap();
    assert!(Arc::ptr_eq(&first, &gate()));
    // Another gate has the keys of the same address, and need not wait for them.
    proxy.shared().load(&[route("r", spec("2s", "6s"))]).unwrap();
    assert!(!Arc::ptr_eq(&first, &gate()));
    issuer.answers(String::new());
    assert_eq!(get(&proxy, &field).status, 200);
    assert_eq!(issuer.asked(), asked);
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    let folder = tempfile::tempdir().unwrap();
    let keys = file(&folder, "keys", &format!("shop {}", digest("one")));
    let bad = file(&folder, "bad", "shop\n");
    let huge = file(&folder, "huge", &"#".repeat((4 << 20) + 1));
    let set = file(&folder, "jwks", &jwks(&[Key::p256().jwk("k")]));
    let oct = file(&folder, "oct", &jwks(&[json!({"kty": "oct", "k": "c2VjcmV0"})]));
    let upstream = Upstream::answering("ok");
    let proxy = proxy(&upstream, json!({"api_keys": {"file": keys}}));
    for (auth, field, says) in [
        (json!({}), "auth", "names no way"),
        (json!({"api_keys": {"file": bad}}), "auth.api_keys.file", "line 1: is not a caller and"),
        (json!({"api_keys": {"file": "/nowhere/keys"}}), "auth.api_keys.file", "cannot be opened"),
        (json!({"api_keys": {"file": "/dev/null"}}), "auth.api_keys.file", "is not a file"),
        (json!({"api_keys": {"file": huge}}), "auth.api_keys.file", "is larger than 4194304 bytes"),
        (json!({"api_keys": {"file": keys, "header": "a b"}}), "auth.api_keys.header", "can hold a key"),
        (json!({"api_keys": {"file": keys, "header": "Host"}}), "auth.api_keys.header", "can hold a key"),
        (
            json!({"api_keys": {"file": keys, "header": "authorization"}, "jwt": {"jwks": set}}),
            "auth.api_keys.header",
            "is where tokens are looked for",
        ),
        (json!({"jwt": {"jwks": "ftp://id.example/jwks"}}), "auth.jwt.jwks", "begins with \"ftp\""),
        (json!({"jwt": {"jwks": "http://u:p@id.example/jwks"}}), "auth.jwt.jwks", "without a user"),
        (json!({"jwt": {"jwks": "http:///jwks"}}), "auth.jwt.jwks", "is no address"),
        (json!({"jwt": {"jwks": ""}}), "auth.jwt.jwks", "is empty"),
        (json!({"jwt": {"audience": "a"}}), "auth.jwt", "names neither an issuer"),
        (json!({"jwt": {"issuer": "shop"}}), "auth.jwt.issuer", "is no http:// or https:// address"),
        (json!({"jwt": {"issuer": "https://id.example/?a=b"}}), "auth.jwt.issuer", "has a query or a fragment"),
        (json!({"jwt": {"jwks": bad}}), "auth.jwt.jwks", "is not JSON, from line 1 on"),
        (json!({"jwt": {"jwks": oct}}), "auth.jwt.jwks", "holds no public key that tokens can be checked with (1"),
        (json!({"jwt": {"jwks": set, "leeway": "1h"}}), "auth.jwt.leeway", "longer than 10 minutes"),
        (json!({"jwt": {"jwks": set, "audience": []}}), "auth.jwt.audience", "is empty"),
        (json!({"certificates": [""]}), "auth.certificates.0", "is empty"),
        (json!({"api_keys": {"file": keys}, "allow": [{}]}), "auth.allow.0", "asks for nothing"),
        (json!({"api_keys": {"file": keys}, "allow": [{"caller": []}]}), "auth.allow.0.caller", "nobody fits"),
        (json!({"api_keys": {"file": keys}, "allow": [{"method": "G T"}]}), "auth.allow.0.method", "is no method"),
        (
            json!({"api_keys": {"file": keys}, "allow": [{"claims": {"a": "b"}}]}),
            "auth.allow.0.claims",
            "are of tokens",
        ),
        (
            json!({"api_keys": {"file": keys}, "allow": vec![json!({"caller": "a"}); 65]}),
            "auth.allow",
            "65 rules, 64 at most",
        ),
    ] {
        let spec = json!({"to": [{"endpoints": "127.0.0.1:1"}], "auth": auth});
        let wrong = proxy.shared().load(&[route("r", spec)]).expect_err(&auth.to_string());
        assert_eq!((wrong[0].field.as_str(), wrong.len()), (field, 1), "{wrong:?}");
        assert!(wrong[0].says.contains(says), "{wrong:?}");
    }
    for (more, field) in [
        (json!({"rate": [{"per_second": 1, "by": "caller"}]}), "rate.0.by"),
        (json!({"balance": {"by": "ring", "key": "caller"}}), "balance.key"),
        (json!({"rewrite": {"set": {"Buttress-Caller": "root"}}}), "rewrite.set.Buttress-Caller"),
    ] {
        let mut spec = json!({"to": [{"endpoints": "127.0.0.1:1"}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(proxy.shared().load(&[route("r", spec)]).unwrap_err()[0].field, field);
    }
    assert_eq!(get(&proxy, "X-Api-Key: one\r\n").status, 200, "the old routes stay");
}

#[test]
fn keys_of_a_set_that_check_no_signatures_are_left_out() {
    let good = Key::rsa().jwk("k");
    let with = |changes: Value| {
        let mut key = good.clone();
        key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        key
    };
    let count = |keys: &[Value]| KeySet::read(jwks(keys).as_bytes()).map(|set| set.count());
    let zeros = BASE64.encode([0, 1, 0, 1]);
    for taken in [json!({}), json!({"key_ops": ["verify"]}), json!({"alg": "PS512"}), json!({"x5c": ["…"], "e": zeros})]
    {
        assert_eq!(count(&[with(taken.clone())]), Ok(1), "{taken}");
    }
    let left_out = [
        json!({"use": "enc"}),
        json!({"key_ops": ["sign"]}),
        json!({"key_ops": "verify"}),
        json!({"alg": "RSA-OAEP"}),
        json!({"alg": "ES256"}),
        json!({"alg": 7}),
        json!({"kty": "RSA2"}),
        json!({"kid": "x".repeat(257)}),
        json!({"n": "AQAB"}),
        json!({"n": "!"}),
        json!({"e": ""}),
        json!({"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}),
        json!({"kty": "EC", "crv": "P-521", "x": "AQ", "y": "AQ"}),
        json!({"kty": "OKP", "crv": "X25519", "x": "AQ"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "AQ"}),
    ];
    for changes in left_out {
        assert!(count(&[with(changes.clone())]).is_err(), "{changes}");
        assert_eq!(count(&[with(changes.clone()), good.clone()]), Ok(1), "{changes}");
    }
    assert!(count(&vec![good.clone(); 129]).unwrap_err().contains("129 keys, 128 at most"));
    assert!(count(&[json!(7), json!(null), good.clone()]) == Ok(1));
}

proptest! {
    /// The fuzzer's targets hold what they assert, for seeds with a few bytes changed, put in or taken out.
    #[test]
    fn readers_of_tokens_and_keys_never_panic_and_take_no_token_but_the_one_that_was_signed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..4),
    ) {
        type Target = (fn(&[u8]), Vec<Vec<u8>>);
        let targets: [Target; 3] =
            [(fuzz::token, fuzz::tokens()), (fuzz::jwks, fuzz::key_sets()), (fuzz::api_keys, fuzz::key_files())];
        for (target, seeds) in targets {
            for mut input in seeds {
                target(&input);
                for (at, byte, how) in &changes {
                    let at = at.index(input.len());
                    match how {
                        0 => input[at] = *byte,
                        1 => input.insert(at, *byte),
                        _ => drop(input.remove(at)),
                    }
                    target(&input);
                }
            }
        }
    }
}
