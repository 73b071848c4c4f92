//! Entry points for fuzzers: what a server has sent. Each asserts what must hold for any bytes whatever.

use buttress_core::Offset;

use crate::{
    kafka::{self, Mechanism},
    secure::Secret,
    url::Parts,
};

/// The records of a fetch: the first two bytes are the wanted offset and the end of what is committed.
pub fn fuzz_fetch(data: &[u8]) {
    let [wanted, end, records @ ..] = data else { return };
    let (wanted, end) = (Offset(i64::from(*wanted)), Offset(i64::from(*end)));
    kafka::check_fetch(records, wanted, end);
}

/// The broker's two messages of SCRAM, a line each.
pub fn fuzz_scram(data: &[u8]) {
    let (first, second) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    kafka::check_scram(Mechanism::ScramSha256, first, second.get(1..).unwrap_or_default(), &Secret::new("pencil"));
}

/// An engine's address: what is taken is taken whole, and no password is repeated.
pub fn fuzz_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for scheme in ["kafka", "etcd"] {
        let Ok(mut parts) = Parts::read(text, scheme, "form") else { continue };
        let _ = (parts.tls(false), parts.user("VARIABLE"), parts.switch("cleartext"), parts.take("prefix"));
        if let Ok(hosts) = parts.end() {
            assert!(hosts.iter().all(|host| text.contains(&host[..])), "{hosts:?}");
        }
    }
}
