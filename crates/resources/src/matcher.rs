//! Which route takes a request: one piece of code for the gateway and for `buttress route test`.
//!
//! Many matches of many routes may hold for one request. The best one wins, in the order of the Gateway API: an exact
//! host before the longest wildcard before none; an exact path before the longest prefix before none; a match with a
//! method before one without; more header fields before fewer; one for named listeners before one for all; then the earlier in
//! the list. A route without `match` comes after all of these. Routes for other listeners are as if they were not there.
//!
//! **How it is found.** Rules lie in a group by host, in a group in a tree by the segments of their path, and in a
//! node sorted. A look-up visits at most the exact host's group, one for each dot of the host, and the one for all; in
//! each it walks down as far as the path goes, then up from node with rules to node with rules. So the first rule that
//! holds is the best, and nothing is allocated or compiled on the way. A path that no rule knows costs its first
//! segment.
//!
//! **What is compared.** Hosts without port, without a dot at the end, in any case. Paths byte by byte as they came,
//! without the query: nothing is decoded, `..` and `.` and `//` stay, and so does case. `/a/%2e%2e/b`, `/a/../b` and
//! `/a%2Fb` are three other paths than `/b` and `/a/b`; what goes on to the backend is what was compared, so no hop
//! decides about one path and sends another. A gateway refuses before this: targets with bytes outside `!` to `~`
//! or with `#` (BT0901), and hosts that are no host. Who guards `/admin` with a route of its own must know that a
//! backend that resolves `/x/../admin` itself sees more than the gateway did; guard the backend's whole host then.

use crate::{
    flaw::Flaw,
    route::{Match, Route},
};

/// What is looked at of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a, F: ?Sized> {
    /// As it came, with or without a port; empty: none.
    pub host: &'a [u8],
    /// As it came, with or without a query.
    pub path: &'a [u8],
    pub method: &'a [u8],
    pub fields: &'a F,
    /// The name of the listener at which it came in; none: it is not known, and could be any.
    pub listener: Option<&'a str>,
}

/// The fields of a request's head.
pub trait Fields {
    /// Whether a field of this name, which is in lower case, has a value that `fits`.
    fn any(&self, name: &str, fits: impl Fn(&[u8]) -> bool) -> bool;
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Fields for [(N, V)] {
    fn any(&self, name: &str, fits: impl Fn(&[u8]) -> bool) -> bool {
        self.iter().any(|(at, value)| at.as_ref().eq_ignore_ascii_case(name) && fits(value.as_ref()))
    }
}

/// A match of a route, by their places in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub route: usize,
    /// The place in the route's `match`; none where the route has no `match`.
    pub at: Option<usize>,
}

/// The first thing that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss<'p> {
    /// The route is for other listeners.
    Listener,
    Host,
    Path,
    Method,
    /// The field that is missing or has another value.
    Field(&'p str),
}

/// One [`Match`], read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: Host,
    path: Path,
    /// Sorted; empty: any.
    methods: Vec<Box<str>>,
    /// Sorted by name, which is in lower case.
    fields: Vec<(Box<str>, Value)>,
    /// Of the whole route. Sorted; empty: any.
    listeners: Vec<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// In lower case.
    Exact(Box<[u8]>),
    /// What stands after the `*`, with its dot, in lower case.
    Below(Box<[u8]>),
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Exact(Box<[u8]>),
    /// Without the `/*`; empty: every path that begins with `/`.
    Prefix(Box<[u8]>),
    /// `OPTIONS *` too.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Any,
}

impl Value {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == &**exact,
            Self::Prefix(prefix) => value.starts_with(prefix),
            Self::Any => true,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Prefix(prefix), Self::Exact(value) | Self::Prefix(value)) => value.starts_with(prefix),
            _ => self == other,
        }
    }
}

/// A name in DNS has no more bytes (RFC 1035, 2.3.4), so a longer host is none that a rule names.
const HOST_BYTES_MAX: usize = 253;

impl Pattern {
    /// # Errors
    /// All that is wrong with it.
    pub fn read(spec: &Match) -> Result<Self, Vec<Flaw>> {
        let mut flaws = Vec::new();
        let host = take(&mut flaws, "/host", spec.host.as_deref(), Host::Any, read_host);
        let path = take(&mut flaws, "/path", spec.path.as_deref(), Path::Any, read_path);
        let mut methods = Vec::new();
        let list = spec.method.as_ref().map_or(&[][..], |methods| methods.as_slice());
        if spec.method.is_some() && list.is_empty() {
            flaws.push(Flaw::invalid("/method", "an empty list of methods never holds", "leave `method` out for any"));
        }
        for (at, method) in list.iter().enumerate() {
            let at = if list.len() == 1 { "/method".to_owned() } else { format!("/method/{at}") };
            if method.is_empty() || !method.bytes().all(is_token) {
                flaws.push(Flaw::invalid(at, format!("\"{method}\" is no method"), "write GET, POST or the like"));
            } else if method.bytes().any(|b| b.is_ascii_lowercase()) {
                let says = format!("\"{method}\" is not a method that clients send; methods are told apart by case");
                flaws.push(Flaw::invalid(at, says, format!("write {}", method.to_ascii_uppercase())));
            } else {
                methods.push(method.as_str().into());
            }
        }
        methods.sort_unstable();
        methods.dedup();
        let mut fields: Vec<(Box<str>, Value)> = Vec::new();
        for (name, value) in &spec.headers {
            let at = format!("/headers/{}", escaped(name));
            if let Err(flaw) = field_name(name) {
                flaws.push(flaw.below(&at));
                continue;
            }
            let value = match value.strip_suffix('*') {
                Some("") => Value::Any,
                Some(prefix) => Value::Prefix(prefix.as_bytes().into()),
                None => Value::Exact(value.as_bytes().into()),
            };
            let name = name.to_ascii_lowercase().into_boxed_str();
            if fields.iter().any(|(other, _)| *other == name) {
                let says = format!("the field \"{name}\" is asked for twice");
                flaws.push(Flaw::invalid(at, says, "names of fields do not differ by case; keep one"));
            } else {
                fields.push((name, value));
            }
        }
        fields.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let listeners = Vec::new();
        if flaws.is_empty() { Ok(Self { host, path, methods, fields, listeners }) } else { Err(flaws) }
    }

    pub fn holds<F: Fields + ?Sized>(&self, request: &Request<'_, F>) -> bool {
        self.miss(request).is_none()
    }

    /// What does not hold, if anything.
    pub fn miss<F: Fields + ?Sized>(&self, request: &Request<'_, F>) -> Option<Miss<'_>> {
        if !self.at(request.listener) {
            return Some(Miss::Listener);
        }
        let host = bare_host(request.host);
        let host_holds = match &self.host {
            Host::Exact(exact) => host.eq_ignore_ascii_case(exact),
            Host::Below(suffix) => {
                host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
            Host::Any => true,
        };
        if !host_holds {
            return Some(Miss::Host);
        }
        let path = bare_path(request.path);
        let path_holds = match &self.path {
            Path::Exact(exact) => path == &**exact,
            Path::Prefix(prefix) => path.strip_prefix(&**prefix).is_some_and(|rest| match rest.first() {
                None => !prefix.is_empty(),
                Some(next) => *next == b'/',
            }),
            Path::Any => true,
        };
        if !path_holds {
            return Some(Miss::Path);
        }
        self.miss_in_head(request)
    }

    /// Whether its route takes requests of a listener.
    fn at(&self, listener: Option<&str>) -> bool {
        self.listeners.is_empty() || listener.is_none_or(|name| self.listeners.iter().any(|own| **own == *name))
    }

    /// The same, where host and path are known to hold.
    fn miss_in_head<F: Fields + ?Sized>(&self, request: &Request<'_, F>) -> Option<Miss<'_>> {
        if !self.at(request.listener) {
            return Some(Miss::Listener);
        }
        if !self.methods.is_empty() && !self.methods.iter().any(|method| method.as_bytes() == request.method) {
            return Some(Miss::Method);
        }
        self.fields
            .iter()
            .find(|(name, value)| !request.fields.any(name, |found| value.fits(found)))
            .map(|(name, _)| Miss::Field(name))
    }

    /// Whether whatever `other` describes is described by this too. May say no where nobody can know.
    fn covers(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (Host::Any, _) => true,
            (Host::Below(suffix), Host::Exact(host)) => host.len() > suffix.len() && host.ends_with(suffix),
            (Host::Below(suffix), Host::Below(other)) => other.ends_with(suffix),
            (mine, other) => mine == other,
        };
        let path = match (&self.path, &other.path) {
            (Path::Any, _) => true,
            (Path::Prefix(prefix), Path::Exact(path) | Path::Prefix(path)) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            (mine, other) => mine == other,
        };
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method));
        let listeners = self.listeners.is_empty()
            || !other.listeners.is_empty() && other.listeners.iter().all(|name| self.listeners.contains(name));
        let mut fields = self.fields.iter();
        host && path
            && methods
            && listeners
            && fields.all(|(name, value)| {
                other.fields.iter().any(|(theirs, narrower)| theirs == name && value.covers(narrower))
            })
    }
}

fn take<T>(
    flaws: &mut Vec<Flaw>,
    at: &str,
    text: Option<&str>,
    absent: T,
    read: impl Fn(&str) -> Result<T, Flaw>,
) -> T {
    match text.map_or(Ok(None), |text| read(text).map(Some)) {
        Ok(found) => found.unwrap_or(absent),
        Err(flaw) => {
            flaws.push(flaw.below(at));
            absent
        }
    }
}

fn read_host(text: &str) -> Result<Host, Flaw> {
    let wrong = |says: &str, hint: &str| Err(Flaw::invalid("", format!("\"{text}\" {says}"), hint));
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if matches!(name.as_str(), "*" | "") {
        return wrong("is no host", "leave `host` out for every host");
    }
    if name.contains("://") || name.contains('/') {
        return wrong("is more than a host", "write the name alone, for example shop.example, and the path in `path`");
    }
    let (wildcard, rest) = match name.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, name.as_str()),
    };
    if !rest.starts_with('[') && rest.contains(':') {
        return wrong("has a port, and hosts are compared without theirs", "leave the port out");
    }
    let in_brackets = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ok = match in_brackets {
        Some(inside) if !wildcard => {
            !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
        }
        Some(_) => false,
        None => rest.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        }),
    };
    if !ok || name.len() > HOST_BYTES_MAX {
        return wrong("is no host", "write a name like shop.example, or *.example for every name below it");
    }
    Ok(if wildcard { Host::Below(name.as_bytes()[1..].into()) } else { Host::Exact(name.as_bytes().into()) })
}

fn read_path(text: &str) -> Result<Path, Flaw> {
    let wrong = |says: &str, hint: String| Err(Flaw::invalid("", format!("\"{text}\" {says}"), hint));
    if !text.starts_with('/') {
        return wrong("does not begin with /", format!("write /{text}"));
    }
    if text.contains(['?', '#']) {
        return wrong("holds a query, and paths are compared without theirs", "leave out what follows the path".into());
    }
    if let Some(bad) = text.chars().find(|c| !('!'..='~').contains(c)) {
        let hint = "write it as it is in a URL, with % and two digits for each such byte".into();
        return wrong(&format!("holds {bad:?}, which no URL holds"), hint);
    }
    match text.strip_suffix("/*") {
        Some(prefix) if !prefix.contains('*') => Ok(Path::Prefix(prefix.as_bytes().into())),
        None if !text.contains('*') => Ok(Path::Exact(text.as_bytes().into())),
        _ => {
            let hint = "a star stands only at the end and alone in its segment: /orders/* is /orders and all below it";
            wrong("has a star where none can stand", hint.into())
        }
    }
}

/// # Errors
/// Where it is no name of a field that a request can have.
pub fn field_name(name: &str) -> Result<(), Flaw> {
    if name.is_empty() || !name.bytes().all(is_token) {
        let says = format!("\"{name}\" is no name of a header field");
        return Err(Flaw::invalid("", says, "names hold letters, digits and -, for example x-canary"));
    }
    Ok(())
}

/// RFC 9110, 5.6.2.
pub fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A key as it stands in a JSON pointer (RFC 6901, 3).
pub fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Without port and without the dot at the end.
fn bare_host(host: &[u8]) -> &[u8] {
    let host = match host.first() {
        Some(b'[') => host.iter().position(|b| *b == b']').map_or(host, |end| &host[..=end]),
        _ => host.iter().position(|b| *b == b':').map_or(host, |colon| &host[..colon]),
    };
    host.strip_suffix(b".").unwrap_or(host)
}

fn bare_path(path: &[u8]) -> &[u8] {
    path.iter().position(|b| *b == b'?').map_or(path, |query| &path[..query])
}

/// All rules of all routes.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// The best first among those of one node.
    rules: Vec<Rule>,
    /// By name, sorted.
    exact: Vec<(Box<[u8]>, Group)>,
    /// By what follows the star, sorted.
    below: Vec<(Box<[u8]>, Group)>,
    any: Group,
}

#[derive(Clone, Debug)]
struct Rule {
    found: Found,
    pattern: Pattern,
}

/// The rules of one host: a tree by segments of paths; node 0 is its root.
#[derive(Clone, Debug, Default)]
struct Group {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Sorted by segment.
    children: Vec<(Box<[u8]>, u32)>,
    /// The next node towards the root that has a rule for what is below it.
    up: Option<u32>,
    /// Places in `rules`, best first: those for this path alone, then those for it and all below.
    here: Vec<u32>,
    below: Vec<u32>,
}

/// Sorted, each once.
fn listeners_of(spec: &Route) -> Vec<Box<str>> {
    let named = spec.listeners.as_ref().map_or(&[][..], |listeners| listeners.as_slice());
    let mut named: Vec<Box<str>> = named.iter().map(|name| name.as_str().into()).collect();
    named.sort_unstable();
    named.dedup();
    named
}

impl Matcher {
    /// # Errors
    /// What is wrong with matches, each with the place of its route.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Result<Self, Vec<(usize, Flaw)>> {
        let mut flaws = Vec::new();
        let mut rules = Vec::new();
        for (route, spec) in routes.into_iter().enumerate() {
            let listeners = listeners_of(spec);
            if spec.listeners.is_some() && listeners.is_empty() {
                let says = "an empty list of listeners takes no request";
                flaws.push((route, Flaw::invalid("/listeners", says, "leave `listeners` out for all of them")));
            }
            if spec.matches.is_empty() {
                let (host, path, methods, fields) = (Host::Any, Path::Any, vec![], vec![]);
                let pattern = Pattern { host, path, methods, fields, listeners: listeners.clone() };
                rules.push(Rule { found: Found { route, at: None }, pattern });
            }
            for (at, spec) in spec.matches.iter().enumerate() {
                match Pattern::read(spec) {
                    Ok(pattern) => {
                        let pattern = Pattern { listeners: listeners.clone(), ..pattern };
                        rules.push(Rule { found: Found { route, at: Some(at) }, pattern });
                    }
                    Err(found) => {
                        let parent = format!("/match/{at}");
                        flaws.extend(found.into_iter().map(|flaw| (route, flaw.below(&parent))));
                    }
                }
            }
        }
        if flaws.is_empty() { Ok(Self::of(rules)) } else { Err(flaws) }
    }

    fn of(mut rules: Vec<Rule>) -> Self {
        // Within a node host and path are the same for all, so the rest of the order is enough.
        rules.sort_by_key(|rule| {
            let Rule { found, pattern } = rule;
            let fields = usize::MAX - pattern.fields.len();
            (found.at.is_none(), pattern.methods.is_empty(), fields, pattern.listeners.is_empty(), *found)
        });
        let mut matcher = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            let group = match &rule.pattern.host {
                Host::Exact(name) => group_of(&mut matcher.exact, name),
                Host::Below(suffix) => group_of(&mut matcher.below, suffix),
                Host::Any => &mut matcher.any,
            };
            group.add(&rule.pattern.path, u32::try_from(at).expect("fewer rules than 4 billion fit into memory"));
        }
        matcher.rules = rules;
        let groups = matcher.exact.iter_mut().chain(&mut matcher.below).map(|(_, group)| group);
        groups.chain([&mut matcher.any]).for_each(Group::link);
        matcher
    }

    /// The best match that holds.
    pub fn find<F: Fields + ?Sized>(&self, request: &Request<'_, F>) -> Option<Found> {
        let path = bare_path(request.path);
        let in_group = |group: &Group| group.find(&self.rules, path, request);
        let host = bare_host(request.host);
        if host.len() <= HOST_BYTES_MAX {
            if let Some(found) = by_name(&self.exact, host).and_then(in_group) {
                return Some(found);
            }
            if !self.below.is_empty() {
                // From the left, so that the longest comes first. A name below has at least a byte before the dot.
                for (dot, _) in host.iter().enumerate().skip(1).filter(|(_, b)| **b == b'.') {
                    if let Some(found) = by_name(&self.below, &host[dot..]).and_then(in_group) {
                        return Some(found);
                    }
                }
            }
        }
        in_group(&self.any)
    }

    /// Every rule with what does not hold of it, in the order of routes.
    pub fn explain<'m, F: Fields + ?Sized>(&'m self, request: &Request<'_, F>) -> Vec<(Found, Option<Miss<'m>>)> {
        let mut all: Vec<_> = self.rules.iter().map(|rule| (rule.found, rule.pattern.miss(request))).collect();
        all.sort_by_key(|(found, _)| *found);
        all
    }

    /// Pairs of matches of two routes that are exactly alike, so that the second never takes a request.
    pub fn conflicts(&self) -> Vec<(Found, Found)> {
        self.pairs(|first, second| first.found.route != second.found.route && first.pattern == second.pattern)
    }

    /// Matches that never take a request because another one takes all of theirs, with that other one first.
    pub fn shadowed(&self) -> Vec<(Found, Found)> {
        self.pairs(|first, second| {
            let same_place = first.pattern.host == second.pattern.host && first.pattern.path == second.pattern.path;
            same_place && first.pattern.covers(&second.pattern)
        })
    }

    /// Of rules of one node, so of the same host and path, each second with the first that `is` something to it.
    fn pairs(&self, is: impl Fn(&Rule, &Rule) -> bool) -> Vec<(Found, Found)> {
        let mut pairs = Vec::new();
        let groups = self.exact.iter().chain(&self.below).map(|(_, group)| group).chain([&self.any]);
        for list in groups.flat_map(|group| &group.nodes).flat_map(|node| [&node.here, &node.below]) {
            for (at, second) in list.iter().enumerate() {
                let second = &self.rules[*second as usize];
                let mut earlier = list[..at].iter().map(|first| &self.rules[*first as usize]);
                if let Some(first) = earlier.find(|first| is(first, second)) {
                    pairs.push((first.found, second.found));
                }
            }
        }
        pairs.sort_by_key(|(_, second)| *second);
        pairs
    }
}

fn group_of<'g>(groups: &'g mut Vec<(Box<[u8]>, Group)>, name: &[u8]) -> &'g mut Group {
    let at = match groups.binary_search_by(|(other, _)| (**other).cmp(name)) {
        Ok(at) => at,
        Err(at) => {
            groups.insert(at, (name.into(), Group::default()));
            at
        }
    };
    &mut groups[at].1
}

fn by_name<'g>(groups: &'g [(Box<[u8]>, Group)], name: &[u8]) -> Option<&'g Group> {
    let in_lower_case = || name.iter().map(u8::to_ascii_lowercase);
    let at = groups.binary_search_by(|(other, _)| other.iter().copied().cmp(in_lower_case())).ok()?;
    Some(&groups[at].1)
}

impl Group {
    fn add(&mut self, path: &Path, rule: u32) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let (text, alone) = match path {
            Path::Exact(text) => (&**text, true),
            Path::Prefix(text) => (&**text, false),
            Path::Any => (&[][..], false),
        };
        let mut at = 0;
        for segment in segments(text) {
            let children = &self.nodes[at].children;
            at = match children.binary_search_by(|(other, _)| (**other).cmp(segment)) {
                Ok(child) => children[child].1 as usize,
                Err(child) => {
                    let node = self.nodes.len();
                    let number = u32::try_from(node).expect("fewer nodes than 4 billion fit into memory");
                    self.nodes[at].children.insert(child, (segment.into(), number));
                    self.nodes.push(Node::default());
                    node
                }
            };
        }
        let node = &mut self.nodes[at];
        if alone { node.here.push(rule) } else { node.below.push(rule) }
    }

    /// Fills in `up`.
    fn link(&mut self) {
        // A child was made after its parent, so its number is higher.
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let up = if node.below.is_empty() { node.up } else { Some(at as u32) };
            for child in 0..node.children.len() {
                let child = self.nodes[at].children[child].1;
                self.nodes[child as usize].up = up;
            }
        }
    }

    fn find<F: Fields + ?Sized>(&self, rules: &[Rule], path: &[u8], request: &Request<'_, F>) -> Option<Found> {
        let mut node = self.nodes.first()?;
        let mut whole = true;
        for segment in segments(path) {
            let Ok(child) = node.children.binary_search_by(|(other, _)| (**other).cmp(segment)) else {
                whole = false;
                break;
            };
            node = &self.nodes[node.children[child].1 as usize];
        }
        let first = |list: &[u32]| {
            let mut rules = list.iter().map(|rule| &rules[*rule as usize]);
            rules.find(|rule| rule.pattern.miss_in_head(request).is_none()).map(|rule| rule.found)
        };
        // The root stands for no path at all; a target without a path is that of `OPTIONS *`.
        let no_path = path.first() != Some(&b'/');
        if whole
            && !no_path
            && let Some(found) = first(&node.here)
        {
            return Some(found);
        }
        loop {
            let found = if no_path {
                let any = |rule: &&u32| matches!(rules[**rule as usize].pattern.path, Path::Any);
                let mut rules = node.below.iter().filter(any).map(|rule| &rules[*rule as usize]);
                rules.find(|rule| rule.pattern.miss_in_head(request).is_none()).map(|rule| rule.found)
            } else {
                first(&node.below)
            };
            if found.is_some() {
                return found;
            }
            node = &self.nodes[node.up? as usize];
        }
    }
}

/// What stands after each slash; nothing where there is no slash at the beginning.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.strip_prefix(b"/").into_iter().flat_map(|rest| rest.split(|b| *b == b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::OneOrMany;
    use proptest::prelude::*;

    fn route(text: &str) -> Route {
        serde_json::from_str(text).unwrap()
    }

    fn asked<'a>(line: &'a str, fields: &'a [(&'a str, &'a str)]) -> Request<'a, [(&'a str, &'a str)]> {
        let (method, url) = line.split_once(' ').unwrap();
        let slash = url.find(['/', '*']).unwrap_or(url.len());
        Request {
            host: &url.as_bytes()[..slash],
            path: &url.as_bytes()[slash..],
            method: method.as_bytes(),
            fields,
            listener: None,
        }
    }

    #[test]
    fn the_best_match_wins_whatever_the_order_of_routes() {
        let routes = [
            r#"{"match": [{"path": "/*"}]}"#,
            r#"{"match": [{"host": "*.example"}, {"host": "shop.example"}]}"#,
            r#"{"match": [{"host": "shop.example", "path": "/orders/*"}, {"host": "[::1]"}]}"#,
            r#"{"match": [{"host": "shop.example", "path": "/orders"}]}"#,
            r#"{"match": [{"host": "shop.example", "path": "/orders/*", "method": "POST"}]}"#,
            r#"{"match": [{"host": "shop.example", "path": "/orders/*", "headers": {"X-Canary": "1"}}]}"#,
            r#"{"match": [{"host": "*.eu.example", "path": "/a//*"}]}"#,
            r#"{}"#,
        ]
        .map(route);
        let matcher = Matcher::new(&routes).unwrap();
        for (line, fields, found) in [
            ("GET shop.example/orders", &[][..], (3, Some(0))),
            ("GET SHOP.example.:8080/orders?a=/b", &[], (3, Some(0))),
            ("GET shop.example/orders/7", &[], (2, Some(0))),
            ("GET shop.example/orders/", &[], (2, Some(0))),
            ("POST shop.example/orders/7", &[("x-canary", "1")], (4, Some(0))),
            ("GET shop.example/orders/7", &[("x-CANARY", "1")], (5, Some(0))),
            ("GET shop.example/orders/7", &[("x-canary", "2")], (2, Some(0))),
            ("GET shop.example/ordersheet", &[], (1, Some(1))),
            ("GET shop.example/orders/../admin", &[], (2, Some(0))),
            ("GET shop.example/%6frders", &[], (1, Some(1))),
            ("GET a.b.example/x", &[], (1, Some(0))),
            ("GET a.eu.example/a//b", &[], (6, Some(0))),
            ("GET a.eu.example/a/b", &[], (1, Some(0))),
            ("GET example/x", &[], (0, Some(0))),
            ("GET .example/x", &[], (0, Some(0))),
            ("GET [::1]:80/x", &[], (2, Some(1))),
            ("GET /", &[], (0, Some(0))),
            ("OPTIONS other*", &[], (7, None)),
            ("OPTIONS shop.example*", &[], (1, Some(1))),
        ] {
            let (route, at) = found;
            assert_eq!(matcher.find(&asked(line, fields)), Some(Found { route, at }), "{line} {fields:?}");
        }
        let none = Matcher::new(&routes[2..4]).unwrap();
        assert_eq!(none.find(&asked("GET other/", &[])), None);
        let why = none.explain(&asked("GET shop.example/x", &[]));
        assert_eq!(
            why.iter().map(|(_, miss)| *miss).collect::<Vec<_>>(),
            [Some(Miss::Path), Some(Miss::Host), Some(Miss::Path)]
        );
    }

    #[test]
    fn matches_that_are_alike_or_never_reached_are_named() {
        let routes = [
            r#"{"match": [{"path": "/a/*", "headers": {"x": "v*"}}, {"path": "/b", "method": ["GET", "PUT"]}]}"#,
            r#"{"match": [{"path": "/a/*", "headers": {"X": "v1"}}, {"path": "/b", "method": "PUT"}]}"#,
            r#"{"match": [{"path": "/b", "method": ["PUT", "GET"]}, {"path": "/a/*"}]}"#,
            r#"{"match": [{"path": "/a/*", "method": "GET"}]}"#,
        ]
        .map(route);
        let matcher = Matcher::new(&routes).unwrap();
        let found = |route, at| Found { route, at: Some(at) };
        assert_eq!(matcher.conflicts(), [(found(0, 1), found(2, 0))]);
        assert_eq!(
            matcher.shadowed(),
            [(found(0, 0), found(1, 0)), (found(0, 1), found(1, 1)), (found(0, 1), found(2, 0))]
        );
    }

    #[test]
    fn what_cannot_be_matched_is_refused_with_what_can() {
        for (spec, at, hint) in [
            (r#"{"host": "shop.example:8080"}"#, "/host", "leave the port out"),
            (r#"{"host": "*"}"#, "/host", "leave `host` out"),
            (r#"{"host": "https://shop.example"}"#, "/host", "in `path`"),
            (r#"{"host": "shop.*"}"#, "/host", "*.example"),
            (r#"{"path": "orders"}"#, "/path", "write /orders"),
            (r#"{"path": "/orders*"}"#, "/path", "/orders/*"),
            (r#"{"path": "/*/x"}"#, "/path", "a star stands only"),
            (r#"{"path": "/a?b"}"#, "/path", "leave out"),
            (r#"{"path": "/ü"}"#, "/path", "two digits"),
            (r#"{"method": "get"}"#, "/method", "write GET"),
            (r#"{"method": ["GET", ""]}"#, "/method/1", "write GET"),
            (r#"{"method": []}"#, "/method", "leave `method` out"),
            (r#"{"headers": {"a b": "1"}}"#, "/headers/a b", "names hold"),
            (r#"{"headers": {"A": "1", "a": "2"}}"#, "/headers/a", "keep one"),
        ] {
            let flaws = Pattern::read(&serde_json::from_str(spec).unwrap()).unwrap_err();
            let [flaw] = &flaws[..] else { panic!("{spec}: {flaws:?}") };
            assert!(flaw.at == at && flaw.hint.contains(hint), "{spec}: {flaw:?}");
        }
    }

    /// What the rules say, as directly as it can be written: all matches that hold, and the best of them.
    fn naive(routes: &[Route], host: &str, path: &str, method: &str, fields: &[(&str, &str)]) -> Option<Found> {
        let mut best: Option<(_, Found)> = None;
        for (route, spec) in routes.iter().enumerate() {
            let none = [Match::default()];
            let list = if spec.matches.is_empty() { &none[..] } else { &spec.matches };
            for (at, spec) in list.iter().enumerate() {
                let host_rank = match &spec.host {
                    None => Some((0, 0)),
                    Some(name) if name.starts_with('*') => {
                        let below = host.ends_with(&name[1..]) && host.len() > name.len() - 1;
                        below.then_some((1, name.len()))
                    }
                    Some(name) => (name == host).then_some((2, 0)),
                };
                let path_rank = match spec.path.as_deref() {
                    None => Some((0, 0)),
                    Some("/*") => path.starts_with('/').then_some((0, 0)),
                    Some(text) if text.ends_with("/*") => {
                        let prefix = &text[..text.len() - 2];
                        let holds = path == prefix || path.starts_with(&text[..text.len() - 1]);
                        holds.then_some((1, prefix.len()))
                    }
                    Some(text) => (text == path).then_some((2, 0)),
                };
                let methods = spec.method.as_ref().map(OneOrMany::as_slice);
                let method_holds = methods.is_none_or(|list| list.iter().any(|one| one == method));
                let fields_hold = spec.headers.iter().all(|(name, value)| {
                    fields.iter().any(|(other, found)| {
                        other == name
                            && match value.strip_suffix('*') {
                                Some(prefix) => found.starts_with(prefix),
                                None => found == value,
                            }
                    })
                });
                if let (Some(host_rank), Some(path_rank), true, true) =
                    (host_rank, path_rank, method_holds, fields_hold)
                {
                    let found = Found { route, at: (!routes[route].matches.is_empty()).then_some(at) };
                    let rank = (found.at.is_some(), host_rank, path_rank, methods.is_some(), spec.headers.len());
                    if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                        best = Some((rank, found));
                    }
                }
            }
        }
        best.map(|(_, found)| found)
    }

    const HOSTS: [&str; 6] = ["a.example", "b.a.example", "*.example", "*.a.example", "c", "*.c"];
    const PATHS: [&str; 11] =
        ["/", "/*", "/a", "/a/", "/a/*", "/a//*", "/a/b", "/a/b/*", "/a/b/c", "/ab/*", "/a/b/c/*"];

    fn one() -> impl Strategy<Value = Match> {
        let pick = |list: &'static [&str]| proptest::option::of(proptest::sample::select(list).prop_map(str::to_owned));
        let method = proptest::option::of(proptest::sample::subsequence(vec!["GET", "POST"], 1..=2));
        let value = proptest::sample::select(&["1", "1*", "*", "12"][..]).prop_map(str::to_owned);
        let name = proptest::sample::select(&["x", "y"][..]).prop_map(str::to_owned);
        let headers = proptest::collection::btree_map(name, value, 0..3);
        (pick(&HOSTS), pick(&PATHS), method, headers).prop_map(|(host, path, method, headers)| Match {
            host,
            path,
            method: method.map(|list| OneOrMany::Many(list.into_iter().map(str::to_owned).collect())),
            headers,
        })
    }

    #[test]
    fn a_route_for_some_listeners_is_not_there_at_others_and_comes_first_at_its_own() {
        let routes = [
            route(r#"{"to":[{"endpoints":"a:1"}]}"#),
            route(r#"{"listeners":["web","inner"],"to":[{"endpoints":"a:2"}]}"#),
        ];
        let matcher = Matcher::new(&routes).unwrap();
        let fields: &[(&str, &str)] = &[];
        let at = |listener| {
            let request = Request { host: b"a", path: b"/", method: b"GET", fields, listener };
            matcher.find(&request).map(|found| found.route)
        };
        assert_eq!((at(Some("inner")), at(Some("other")), at(None)), (Some(1), Some(0), Some(1)));
        assert!(matcher.conflicts().is_empty() && matcher.shadowed().is_empty());
        let flaws = Matcher::new(&[route(r#"{"listeners":[],"to":[{"endpoints":"a:1"}]}"#)]).unwrap_err();
        assert_eq!(flaws[0].1.at, "/listeners");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn the_tree_finds_what_a_list_would(
            routes in proptest::collection::vec(proptest::collection::vec(one(), 0..4), 0..6),
            host in proptest::sample::select(&["a.example", "b.a.example", "x.b.a.example", "c", "d.c", "example", ""][..]),
            path in proptest::sample::select(
                &["/", "/a", "/a/", "/a//", "/a//b", "/a/b", "/a/b/", "/a/b/c", "/a/b/c/d", "/ab", "/ab/c", "/x/a", "*"][..]
            ),
            method in proptest::sample::select(&["GET", "POST", "PUT"][..]),
            fields in proptest::collection::vec(
                (proptest::sample::select(&["x", "y"][..]), proptest::sample::select(&["1", "12", "2"][..])), 0..3
            ),
        ) {
            let routes: Vec<Route> =
                routes.into_iter().map(|matches| Route { matches, ..Route::default() }).collect();
            let matcher = Matcher::new(&routes).unwrap();
            let request = Request {
                host: host.as_bytes(), path: path.as_bytes(), method: method.as_bytes(), fields: &fields[..],
                listener: None,
            };
            let found = matcher.find(&request);
            prop_assert_eq!(found, naive(&routes, host, path, method, &fields));
            // What is explained agrees with what is found.
            let held: Vec<Found> =
                matcher.explain(&request).into_iter().filter(|(_, miss)| miss.is_none()).map(|(at, _)| at).collect();
            prop_assert_eq!(found.is_some(), !held.is_empty());
            prop_assert!(found.is_none_or(|found| held.contains(&found)));
            // What never takes a request does not.
            for (_, never) in matcher.shadowed() {
                prop_assert_ne!(found, Some(never));
            }
        }
    }
}
