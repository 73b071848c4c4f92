//! Which fields of a request's head a record holds: those by which a route in force decides, so that the request can be held
//! against other routes later ([`crate::record`], `buttress route what-if`).
//!
//! A name gets here from a table only: a match, the `when` of a backend or of a fault, a key of a limit or of a ring, the field of
//! a priority. No client adds one. What is kept is bounded whatever clients send: [`NAMES_MAX`] names, and [`BYTES_MAX`] bytes of
//! their values, so that the records in memory are 8 MiB at most.
//!
//! **Credentials are never kept**, also where a route matches by them: a record says that the field is withheld, and whoever plays
//! the record again does not know its value. No digest either, since much of what stands in cookies can be guessed. What is a
//! credential is decided by its name, and rather once too often.

use std::sync::Arc;

use buttress_resources::route::Route as Spec;
use serde_json::{Value, json};

use crate::{parse::Fields, table::Route};

pub const NAMES_MAX: usize = 16;
const VALUES_MAX: usize = 4;
const VALUE_BYTES_MAX: usize = 128;
/// Of all values of a record.
const BYTES_MAX: usize = 1024;

/// Parts of names of fields, and of what stands in a query, that are no business of a record's reader.
const SECRET: [&str; 14] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "passw",
    "pwd",
    "api-key",
    "api_key",
    "apikey",
    "credential",
    "session",
    "signature",
    "jwt",
    "assertion",
];

/// Whether something of this name, which is in lower case, may hold what somebody proves with who he is.
fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|part| name.contains(part)) || ["sig", "key", "code", "sid"].contains(&name)
}

/// The fields that a table decides by.
#[derive(Debug, Default)]
pub struct Names {
    list: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    /// In lower case.
    name: Arc<str>,
    withheld: bool,
}

/// A field of a request, as a record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    pub name: Arc<str>,
    /// Empty where the request had no such field, or where it is withheld.
    pub values: Vec<String>,
    /// There is more of it than is kept.
    pub cut: bool,
    pub withheld: bool,
}

impl Names {
    pub fn of(routes: &[Arc<Route>]) -> Self {
        let ends: Vec<&str> = routes.iter().filter_map(|route| route.gate.as_ref()?.withheld()).collect();
        let mut list: Vec<Name> = Vec::new();
        for name in routes.iter().flat_map(|route| asked(&route.spec)) {
            let name = name.to_ascii_lowercase();
            let withheld = is_secret(&name) || ends.iter().any(|end| end.eq_ignore_ascii_case(&name));
            if list.len() < NAMES_MAX && list.iter().all(|known| *known.name != *name) {
                list.push(Name { name: name.into(), withheld });
            }
        }
        list.sort_unstable();
        Self { list }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn read(&self, fields: &Fields) -> Vec<Noted> {
        let mut left = BYTES_MAX;
        let one = |known: &Name| {
            let is = |name: &[u8]| name.eq_ignore_ascii_case(known.name.as_bytes());
            let mut noted =
                Noted { name: known.name.clone(), values: Vec::new(), cut: false, withheld: known.withheld };
            if known.withheld {
                return noted;
            }
            for (_, _, value) in fields.iter().filter(|(_, name, _)| is(name)) {
                if noted.values.len() == VALUES_MAX {
                    noted.cut = true;
                    break;
                }
                let part = &value[..value.len().min(VALUE_BYTES_MAX).min(left)];
                left -= part.len();
                noted.cut |= part.len() < value.len() || std::str::from_utf8(part).is_err();
                noted.values.push(String::from_utf8_lossy(part).into_owned());
            }
            noted
        };
        self.list.iter().map(one).collect()
    }
}

/// The fields by which a route decides anything.
fn asked(spec: &Spec) -> impl Iterator<Item = &str> {
    let matches = spec.matches.iter().chain(spec.to.iter().filter_map(|backend| backend.when.as_ref()));
    let matches = matches.chain(spec.fault.iter().filter_map(|fault| fault.when.as_ref()));
    let keys = spec.rate.iter().filter_map(|rate| rate.by.as_deref());
    let keys = keys.chain(spec.policies.balance.as_ref().and_then(|balance| balance.key.as_deref()));
    let priority = spec.policies.priority.as_ref().and_then(|priority| priority.header.as_deref());
    matches
        .flat_map(|one| one.headers.keys().map(String::as_str))
        .chain(keys.filter_map(|key| key.strip_prefix("header:")))
        .chain(priority)
}

/// As it stands in a record: by name.
pub fn json(all: &[Noted]) -> Value {
    let one = |noted: &Noted| {
        let value = match noted {
            Noted { withheld: true, .. } => json!({"withheld": true}),
            Noted { cut: true, values, .. } => json!({"values": values, "cut": true}),
            Noted { values, .. } => json!({"values": values}),
        };
        (noted.name.to_string(), value)
    };
    Value::Object(all.iter().map(one).collect())
}

/// A path with its query, where what may be a credential by its name is starred out.
pub fn without_secrets(path: String) -> String {
    let Some((bare, query)) = path.split_once('?') else { return path };
    // That it was cut has to be seen also where its end is starred out.
    let (query, cut) = query.strip_suffix('…').map_or((query, ""), |query| (query, "…"));
    let hides = |part: &str| part.split_once('=').is_some_and(|(name, _)| is_secret(&name.to_ascii_lowercase()));
    if !query.split('&').any(hides) {
        return path;
    }
    let parts: Vec<String> = query
        .split('&')
        .map(|part| match part.split_once('=') {
            Some((name, _)) if hides(part) => format!("{name}=***"),
            _ => part.to_owned(),
        })
        .collect();
    format!("{bare}?{}{cut}", parts.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[(&str, bool)]) -> Names {
        Names { list: list.iter().map(|(name, withheld)| Name { name: (*name).into(), withheld: *withheld }).collect() }
    }

    #[test]
    fn a_record_holds_what_the_table_asks_for_and_nothing_else() {
        let fields = Fields::from_pairs(&[("X-Canary", "1"), ("authorization", "Bearer x"), ("x-other", "2")]);
        let noted = names(&[("authorization", true), ("x-canary", false), ("x-none", false)]).read(&fields);
        assert_eq!(
            json(&noted).to_string(),
            r#"{"authorization":{"withheld":true},"x-canary":{"values":["1"]},"x-none":{"values":[]}}"#
        );
    }

    #[test]
    fn what_clients_send_is_cut_to_a_size() {
        let long = "a".repeat(VALUE_BYTES_MAX + 1);
        let many: Vec<(&str, &str)> = (0..VALUES_MAX + 1).map(|_| ("x-many", "1")).collect();
        let fields = Fields::from_pairs(&[many, vec![("x-long", &long)]].concat());
        let noted = names(&[("x-long", false), ("x-many", false)]).read(&fields);
        assert_eq!((noted[0].cut, noted[0].values[0].len()), (true, VALUE_BYTES_MAX));
        assert_eq!((noted[1].cut, noted[1].values.len()), (true, VALUES_MAX));
        let wide: Vec<String> = (0..NAMES_MAX).map(|n| format!("x-{n}")).collect();
        let pairs: Vec<(&str, &str)> = wide.iter().map(|name| (name.as_str(), &long[1..])).collect();
        let all: Vec<(&str, bool)> = wide.iter().map(|name| (name.as_str(), false)).collect();
        let noted = names(&all).read(&Fields::from_pairs(&pairs));
        let bytes: usize = noted.iter().flat_map(|one| &one.values).map(String::len).sum();
        assert_eq!((bytes, noted.iter().filter(|one| one.cut).count()), (BYTES_MAX, 8));
    }

    #[test]
    fn credentials_are_told_by_their_names() {
        for name in
            ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token", "x-session-id", "apikey"]
        {
            assert!(is_secret(name), "{name}");
        }
        for name in ["x-canary", "user-agent", "x-tenant", "x-priority", "accept-language"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn credentials_in_a_query_are_starred_out() {
        let hidden = without_secrets("/a?page=2&access_token=abc&Sig=x&q=token".to_owned());
        assert_eq!(hidden, "/a?page=2&access_token=***&Sig=***&q=token");
        assert_eq!(without_secrets("/a?token=abc…".to_owned()), "/a?token=***…");
        assert_eq!(without_secrets("/a?page=2…".to_owned()), "/a?page=2…");
    }
}
