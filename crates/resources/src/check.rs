//! From text to resources, with everything that is wrong on the way, not only the first of it.
//!
//! A document is walked along the JSON Schema of its kind, which is made from the type that serde then reads; so the
//! schema in an editor, these errors and the program cannot say three things. What no schema says (weights that are
//! all 0, two sources of endpoints) is [`rules`], and what only all documents together show stands at the
//! end of [`read`].

use std::collections::{BTreeMap, BTreeSet};

use buttress_core::Code;
use serde_json::Value as Json;

use crate::{
    document::{self, Malformed, Mark, Node, Value},
    finding::{Finding, Level, Source},
    kinds::{Kind, Spec},
    matcher::Matcher,
    nearest::nearest,
    route::Route,
    rules,
    units::{Part, Size, Span},
};

/// Names go into keys, paths and labels of metrics.
pub const NAME_BYTES_MAX: usize = 63;

/// One document, read.
#[derive(Clone, Debug)]
pub struct Resource {
    pub kind: Kind,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// As it was written.
    pub spec: Json,
    /// The same, in its kind's type.
    pub typed: Spec,
    pub origin: Origin,
    pub lines: Lines,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub file: String,
    /// The document's first.
    pub line: u32,
}

/// Where each part of a document stands.
#[derive(Clone, Debug)]
pub struct Lines(Node);

impl Lines {
    /// The line of a JSON pointer, for example `/spec/to/0/endpoints`; where it leads nowhere, the line of what it leads
    /// to as far as it goes.
    pub fn of(&self, pointer: &str) -> u32 {
        self.0.place(pointer).line
    }

    pub fn mark(&self, pointer: &str) -> Mark {
        self.0.place_of_value(pointer)
    }
}

impl Resource {
    pub fn route(&self) -> Option<&Route> {
        match &self.typed {
            Spec::Route(route) => Some(route),
            _ => None,
        }
    }

    /// Something about a part of it.
    pub fn finding(
        &self,
        level: Level,
        code: &'static str,
        pointer: &str,
        says: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        let mark = self.lines.mark(pointer);
        Finding { level, code, file: self.origin.file.clone(), mark, says: says.into(), hint: hint.into() }
    }
}

/// What texts hold.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Those without an error.
    pub resources: Vec<Resource>,
    /// By file and line.
    pub findings: Vec<Finding>,
}

impl Reading {
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.level != Level::Error)
    }
}

/// Reads all documents of all sources and holds them against each other.
pub fn read(sources: &[Source]) -> Reading {
    let mut reading = Reading::default();
    let mut schemas = BTreeMap::new();
    for source in sources {
        match document::read(&source.text) {
            Ok(documents) => {
                for document in documents {
                    resource(source, document, &mut schemas, &mut reading);
                }
            }
            Err(Malformed { mark, says, hint }) => {
                let code = Malformed::CODE.0;
                reading.findings.push(Finding {
                    level: Level::Error,
                    code,
                    file: source.file.clone(),
                    mark,
                    says,
                    hint,
                });
            }
        }
    }
    together(&mut reading);
    let places: BTreeMap<&str, usize> =
        sources.iter().enumerate().map(|(at, source)| (source.file.as_str(), at)).collect();
    reading.findings.sort_by_key(|finding| (places.get(finding.file.as_str()).copied(), finding.mark, finding.level));
    reading
}

/// What only all documents together show.
fn together(reading: &mut Reading) {
    let mut seen: BTreeMap<(Kind, &str), &Resource> = BTreeMap::new();
    let mut found = Vec::new();
    for resource in &reading.resources {
        if let Some(first) = seen.insert((resource.kind, &resource.name), resource) {
            let says = format!("there are two {} of the name \"{}\"", resource.kind.plural(), resource.name);
            let hint = format!("the first is at {}:{}; rename one", first.origin.file, first.origin.line);
            found.push(resource.finding(Level::Error, Code::RESOURCE_INVALID.0, "/name", says, hint));
        }
    }
    let routes: Vec<(&Resource, &Route)> =
        reading.resources.iter().filter_map(|resource| Some((resource, resource.route()?))).collect();
    if let Ok(matcher) = Matcher::new(routes.iter().map(|(_, route)| *route)) {
        for (first, second) in matcher.conflicts() {
            let (earlier, later) = (routes[first.route].0, routes[second.route].0);
            let pointer = second.at.map_or("/name".to_owned(), |at| format!("/spec/match/{at}"));
            let line = earlier.lines.of(&first.at.map_or("/name".to_owned(), |at| format!("/spec/match/{at}")));
            let says = match second.at {
                Some(_) => format!("route \"{}\" asks for exactly the same requests", earlier.name),
                None => {
                    format!("route \"{}\" has no `match` either, so only one of them gets what is left", earlier.name)
                }
            };
            let hint =
                format!("see {}:{line}; join the two, or tell them apart by a header field", earlier.origin.file);
            found.push(later.finding(Level::Error, Code::MATCH_CONFLICT.0, &pointer, says, hint));
        }
    }
    let mut addresses: BTreeMap<&str, &Resource> = BTreeMap::new();
    for resource in &reading.resources {
        let Spec::Listener(listener) = &resource.typed else { continue };
        if let Some(first) = addresses.insert(&listener.address, resource) {
            let says = format!("listener \"{}\" has the address \"{}\" already", first.name, listener.address);
            let hint = format!("see {}:{}; one address is listened at once", first.origin.file, first.origin.line);
            found.push(resource.finding(Level::Error, Code::RESOURCE_INVALID.0, "/spec/address", says, hint));
        }
    }
    reading.findings.extend(found);
}

/// `schemas` are those that were needed so far.
fn resource(source: &Source, document: Node, schemas: &mut BTreeMap<Kind, Json>, reading: &mut Reading) {
    let before = reading.findings.len();
    let mut tell = |code: Code, mark: Mark, says: String, hint: String| {
        let (level, file) = (Level::Error, source.file.clone());
        reading.findings.push(Finding { level, code: code.0, file, mark, says, hint });
    };
    if !matches!(document.value, Value::Map(_)) {
        let says = format!("a resource begins with `kind:`; here is {}", found(&document));
        return tell(
            Code::FIELD_TYPE,
            document.mark,
            says,
            "see `buttress schema`, or the examples in the guide".into(),
        );
    }
    let Some((_, kind)) = document.entry("kind") else {
        let kinds: Vec<&str> = Kind::ALL.map(Kind::name).into();
        let near = match &document.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| nearest(&key.text, ["kind"]).is_some()),
            _ => None,
        };
        return match near {
            Some((key, _)) => {
                let says = format!("a resource has no key \"{}\"", key.text);
                tell(Code::FIELD_UNKNOWN, key.mark, says, "did you mean \"kind\"?".into());
            }
            None => {
                let hint = format!("write kind: {}", kinds.join(" | "));
                tell(Code::FIELD_MISSING, document.mark, "the key \"kind\" is missing".into(), hint);
            }
        };
    };
    let Some(kind) = kind.text().and_then(Kind::written) else {
        let names = Kind::ALL.map(Kind::name);
        let hint = match kind.text().and_then(|text| nearest(text, names)) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the kinds are {}", names.join(", ")),
        };
        let says = match kind.text() {
            Some(text) => format!("there is no kind \"{text}\""),
            None => format!("a kind is a word, not {}", found(kind)),
        };
        let mark = document.place_of_value("/kind");
        return tell(Code::KIND_UNKNOWN, mark, says, hint);
    };
    let schema = &*schemas.entry(kind).or_insert_with(|| kind.schema());
    let mut walk = Walk { schema, path: Vec::new(), flaws: Vec::new() };
    walk.node(&document, Mark::default(), schema);
    let flaws = std::mem::take(&mut walk.flaws);
    let whole = flaws.is_empty();
    for flaw in flaws {
        tell(flaw.code, flaw.mark, flaw.says, flaw.hint);
    }
    let name = document.get("name").and_then(Node::text).unwrap_or_default().to_owned();
    if let Some(says) = wrong_name(&name).filter(|_| document.get("name").is_some_and(|node| node.text().is_some())) {
        let hint = format!("letters, digits, -, _ and ., beginning with a letter or digit, at most {NAME_BYTES_MAX}");
        tell(Code::RESOURCE_INVALID, document.place_of_value("/name"), says, hint);
    }
    if !whole {
        return;
    }
    let json = document.json();
    let typed = match kind.read(&json["spec"]) {
        Ok(typed) => typed,
        Err(says) => {
            let hint = format!("`buttress schema {}` says what its keys take", kind.name());
            return tell(Code::FIELD_TYPE, document.place("/spec"), says, hint);
        }
    };
    for flaw in rules::of(&typed) {
        tell(flaw.code, document.place_of_value(&format!("/spec{}", flaw.at)), flaw.says, flaw.hint);
    }
    if reading.findings.len() > before {
        return;
    }
    let labels = json["labels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    let origin = Origin { file: source.file.clone(), line: document.mark.line };
    let spec = json["spec"].clone();
    reading.resources.push(Resource { kind, name, labels, spec, typed, origin, lines: Lines(document) });
}

/// What is wrong with a name, if anything.
pub fn wrong_name(name: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ok = name.len() <= NAME_BYTES_MAX
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    (!ok).then(|| format!("\"{name}\" cannot be a name"))
}

struct Flaw {
    code: Code,
    mark: Mark,
    says: String,
    hint: String,
}

/// A schema that is no choice between others, and the name of its type.
struct Leaf<'s> {
    name: Option<&'s str>,
    schema: &'s Json,
}

struct Walk<'s> {
    schema: &'s Json,
    /// Keys from the document's top, without places in lists.
    path: Vec<String>,
    flaws: Vec<Flaw>,
}

impl<'s> Walk<'s> {
    /// `key` is where what leads here stands.
    fn node(&mut self, node: &Node, key: Mark, schema: &'s Json) {
        let mut leaves = Vec::new();
        leaves_of(self.schema, schema, None, &mut leaves);
        let is = |leaf: &&Leaf<'s>, name: &str| leaf.schema["type"] == name;
        match &node.value {
            Value::Map(entries) => match leaves.iter().find(|leaf| is(leaf, "object")) {
                Some(leaf) => self.map(node, entries, leaf.schema),
                None => self.mismatch(node, key, &leaves),
            },
            Value::List(items) => match leaves.iter().find(|leaf| is(leaf, "array")) {
                Some(leaf) => self.list(node, items, leaf.schema),
                None => self.mismatch(node, key, &leaves),
            },
            Value::Null => self.mismatch(node, key, &leaves),
            _ if leaves.iter().any(|leaf| takes(leaf, node)) => {}
            _ => self.mismatch(node, key, &leaves),
        }
    }

    fn map(&mut self, node: &Node, entries: &[(document::Key, Node)], schema: &'s Json) {
        let none = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        let others = schema.get("additionalProperties").filter(|schema| schema.is_object());
        for (key, value) in entries {
            let Some(schema) = schema["properties"].get(&key.text).or(others) else {
                let (says, hint) = self.unknown(&key.text, properties, entries);
                self.flaws.push(Flaw { code: Code::FIELD_UNKNOWN, mark: key.mark, says, hint });
                continue;
            };
            self.path.push(key.text.clone());
            self.node(value, key.mark, schema);
            self.path.pop();
        }
        for missing in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if entries.iter().any(|(key, _)| key.text == missing) {
                continue;
            }
            let says = format!("the key \"{missing}\" is missing{}", self.inside());
            let mut leaves = Vec::new();
            leaves_of(self.schema, &properties[missing], None, &mut leaves);
            let said = properties[missing]["description"].as_str().unwrap_or_default();
            let said = said.split(". ").next().unwrap_or_default().trim_end_matches('.');
            let hint = match said {
                "" => format!("it takes {}", described(&leaves)),
                said => format!("it takes {}: {said}", described(&leaves)),
            };
            let mark = Mark { length: 1, ..node.mark };
            self.flaws.push(Flaw { code: Code::FIELD_MISSING, mark, says, hint });
        }
    }

    fn list(&mut self, node: &Node, items: &[Node], schema: &'s Json) {
        if let Some(each) = schema["prefixItems"].as_array() {
            if items.len() != each.len() {
                let says = format!("{} takes {} values, and here are {}", self.this(), each.len(), items.len());
                let hint = format!("write [{}]", vec!["…"; each.len()].join(", "));
                return self.flaws.push(Flaw { code: Code::FIELD_TYPE, mark: node.mark, says, hint });
            }
            for (item, schema) in items.iter().zip(each) {
                self.node(item, item.mark, schema);
            }
        } else if schema["items"].is_object() {
            for item in items {
                self.node(item, item.mark, &schema["items"]);
            }
        }
    }

    fn mismatch(&mut self, node: &Node, key: Mark, leaves: &[Leaf<'_>]) {
        let takes = described(leaves);
        let (mark, says) = match &node.value {
            Value::Null if key.line > 0 => (key, format!("{} has no value; it takes {takes}", self.this())),
            _ => (node.mark, format!("{} takes {takes}, not {}", self.this(), found(node))),
        };
        let hint = advice(node, leaves, self.path.last().map_or("", String::as_str));
        self.flaws.push(Flaw { code: Code::FIELD_TYPE, mark, says, hint });
    }

    /// What is said of a key that is not there.
    fn unknown(
        &self,
        key: &str,
        here: &serde_json::Map<String, Json>,
        given: &[(document::Key, Node)],
    ) -> (String, String) {
        let says = format!("there is no key \"{key}\"{}", self.inside());
        let mut homes = Vec::new();
        homes_of(self.schema, self.schema, &mut Vec::new(), key, &mut BTreeSet::new(), &mut homes);
        let shared = |home: &Vec<String>| home.iter().zip(&self.path).take_while(|(a, b)| a == b).count();
        // The fewest steps up and down from here.
        homes.sort_by_key(|home| (self.path.len() + home.len() - 2 * shared(home), home.len()));
        let belongs = |home: &Vec<String>| {
            let from = shared(home).min(home.len().saturating_sub(1));
            let shown = home[from..].join(".");
            match home.len() {
                0 => format!("\"{key}\" stands beside `kind` and `name`"),
                _ if home.len() < self.path.len() && shared(home) == home.len() => {
                    let inner = &self.path[home.len()];
                    format!("\"{key}\" belongs beside `{inner}`, one level up: indent it less")
                }
                _ => format!("\"{key}\" belongs into `{shown}`"),
            }
        };
        let near_home = homes.first().filter(|home| self.path.len() + home.len() - 2 * shared(home) == 1);
        let free = here.keys().map(String::as_str).filter(|name| given.iter().all(|(key, _)| key.text != *name));
        let hint = if let Some(home) = near_home {
            belongs(home)
        } else if let Some(near) = nearest(key, free) {
            format!("did you mean \"{near}\"?")
        } else if let Some(home) = homes.first() {
            belongs(home)
        } else {
            format!("the keys are {}", here.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        };
        (says, hint)
    }

    /// " in `breaker`".
    fn inside(&self) -> String {
        self.path.last().map_or(String::new(), |key| format!(" in `{key}`"))
    }

    /// "`breaker`".
    fn this(&self) -> String {
        self.path.last().map_or("a resource".to_owned(), |key| format!("`{key}`"))
    }
}

fn target<'s>(root: &'s Json, schema: &'s Json) -> Option<(&'s str, &'s Json)> {
    let name = schema["$ref"].as_str()?.strip_prefix("#/$defs/")?;
    Some((name, root["$defs"].get(name)?))
}

/// Types whose text has a form of its own.
const FORMS: [&str; 3] = ["Span", "Part", "Size"];

/// The schemas between which a value may choose.
fn leaves_of<'s>(root: &'s Json, schema: &'s Json, name: Option<&'s str>, leaves: &mut Vec<Leaf<'s>>) {
    if let Some((name, schema)) = target(root, schema) {
        return leaves_of(root, schema, Some(name), leaves);
    }
    let choices = ["anyOf", "oneOf"].iter().find_map(|key| schema[*key].as_array());
    match choices {
        Some(choices) if !name.is_some_and(|name| FORMS.contains(&name)) => {
            for choice in choices {
                leaves_of(root, choice, None, leaves);
            }
        }
        _ => leaves.push(Leaf { name, schema }),
    }
}

/// Where in the schema a key is right: the paths of its objects.
fn homes_of<'s>(
    root: &'s Json,
    schema: &'s Json,
    path: &mut Vec<String>,
    key: &str,
    above: &mut BTreeSet<&'s str>,
    homes: &mut Vec<Vec<String>>,
) {
    let mut leaves = Vec::new();
    leaves_of(root, schema, None, &mut leaves);
    for leaf in leaves {
        if leaf.name.is_some_and(|name| !above.insert(name)) {
            continue;
        }
        if let Some(properties) = leaf.schema["properties"].as_object() {
            if properties.contains_key(key) && !homes.contains(path) {
                homes.push(path.clone());
            }
            for (name, schema) in properties {
                path.push(name.clone());
                homes_of(root, schema, path, key, above, homes);
                path.pop();
            }
        }
        if leaf.schema["items"].is_object() {
            homes_of(root, &leaf.schema["items"], path, key, above, homes);
        }
        if let Some(name) = leaf.name {
            above.remove(name);
        }
    }
}

/// Whether a single value is one that the schema takes.
fn takes(leaf: &Leaf<'_>, node: &Node) -> bool {
    match (leaf.name, &node.value) {
        (Some("Span"), Value::Text(text)) => return Span::parse(text).is_ok(),
        (Some("Part"), Value::Text(text)) => return Part::parse(text).is_ok(),
        (Some("Part"), Value::Number(number)) => {
            return number.as_f64().is_some_and(|part| (0.0..=1.0).contains(&part));
        }
        (Some("Size"), Value::Text(text)) => return Size::parse(text).is_ok(),
        (Some("Size"), Value::Number(number)) => return number.is_u64(),
        (Some(name), _) if FORMS.contains(&name) => return false,
        _ => {}
    }
    let schema = leaf.schema;
    let value = node.json();
    if let Some(only) = schema.get("const") {
        return *only == value;
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.contains(&value);
    }
    match (schema["type"].as_str(), &node.value) {
        (Some("string"), Value::Text(_)) | (Some("boolean"), Value::Bool(_)) => true,
        (Some("integer"), Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i128::from(number) >= range(schema).0)
                && number.as_i64().is_some_and(|number| i128::from(number) <= range(schema).1)
                || number.as_u64().is_some_and(|number| i128::from(number) <= range(schema).1)
        }
        (Some("number"), Value::Number(_)) => true,
        _ => false,
    }
}

/// The least and the greatest whole number that a schema takes.
fn range(schema: &Json) -> (i128, i128) {
    let most = match schema["format"].as_str() {
        Some("uint8") => i128::from(u8::MAX),
        Some("uint16") => i128::from(u16::MAX),
        Some("uint32") => i128::from(u32::MAX),
        _ => i128::from(u64::MAX),
    };
    (schema["minimum"].as_i64().map_or(i128::from(i64::MIN), i128::from), most)
}

/// What a choice of schemas takes, in words.
fn described(leaves: &[Leaf<'_>]) -> String {
    let mut words: Vec<String> = Vec::new();
    for leaf in leaves {
        let word = match leaf.name {
            Some("Span") => "a span of time".to_owned(),
            Some("Part") => "a part of a whole".to_owned(),
            Some("Size") => "a number of bytes".to_owned(),
            _ => match leaf.schema["type"].as_str() {
                _ if leaf.schema.get("const").is_some() => plain(&leaf.schema["const"]),
                _ if leaf.schema["enum"].is_array() => {
                    let words = leaf.schema["enum"].as_array().into_iter().flatten();
                    words.map(plain).collect::<Vec<_>>().join(" or ")
                }
                Some("string") => "a word".to_owned(),
                Some("integer") => match range(leaf.schema) {
                    (least, most) if most < i128::from(u32::MAX) => format!("a whole number from {least} to {most}"),
                    (0, _) => "a whole number, 0 or more".to_owned(),
                    _ => "a whole number".to_owned(),
                },
                Some("number") => "a number".to_owned(),
                Some("boolean") => "true or false".to_owned(),
                Some("array") => "a list".to_owned(),
                Some("object") if leaf.schema["properties"].is_object() => "keys of its own".to_owned(),
                _ => "words by name".to_owned(),
            },
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(", or ")
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What stands there, in words.
fn found(node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".into(),
        Value::Bool(is) => is.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::Text(text) => format!("\"{}\"", shortened(text)),
        Value::List(items) if items.is_empty() => "an empty list".into(),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a map of keys".into(),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn on(key: &str) -> String {
    format!("leave `{key}` out for what it does by itself, or give it keys of its own")
}

/// How it is written right.
fn advice(node: &Node, leaves: &[Leaf<'_>], key: &str) -> String {
    let named = |name: &str| leaves.iter().any(|leaf| leaf.name == Some(name));
    let of_type = |name: &str| leaves.iter().any(|leaf| leaf.schema["type"] == name);
    let words: Vec<&str> = leaves
        .iter()
        .flat_map(|leaf| leaf.schema["enum"].as_array().into_iter().flatten().chain(leaf.schema.get("const")))
        .filter_map(Json::as_str)
        .collect();
    let has_off = words.contains(&"off");
    match &node.value {
        Value::Null if has_off => format!("leave `{key}` out for what it does by itself, or write off"),
        Value::Null if of_type("object") || of_type("array") => {
            format!("leave `{key}` out, or indent what belongs to it more than the key itself")
        }
        Value::Null => format!("leave `{key}` out, or give it a value"),
        Value::Number(number) if named("Span") => {
            format!("write {number}s for seconds, or {number}ms for milliseconds")
        }
        Value::Number(number) if named("Part") => format!("write {number}%, or a number from 0 to 1"),
        Value::Bool(false) if has_off => "write off".into(),
        Value::Bool(true) if has_off => on(key),
        Value::Bool(_) | Value::Number(_) if of_type("string") && words.is_empty() => {
            format!("quotes make a word of it: \"{}\"", plain(&node.json()))
        }
        Value::Text(text) if text.eq_ignore_ascii_case("on") && has_off => on(key),
        Value::Text(text) if named("Span") => match Span::parse(text) {
            Err(_) => "write 250ms, 2s, 5m, 1h or 7d".into(),
            Ok(_) => String::new(),
        },
        Value::Text(_) if named("Part") => "write 20% or 0.2".into(),
        Value::Text(_) if named("Size") => "write 64KiB, 256MiB or 2GiB".into(),
        Value::Text(text) if !words.is_empty() => match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("write {}", words.join(" or ")),
        },
        Value::Text(text) if of_type("integer") || of_type("number") => match text.trim().parse::<f64>() {
            Ok(_) => format!("without quotes: {}", text.trim()),
            Err(_) => "write a number".into(),
        },
        Value::Text(text) if of_type("boolean") => match text.to_ascii_lowercase().as_str() {
            "yes" | "on" => "write true".into(),
            _ => "write true or false".into(),
        },
        Value::Text(text) if of_type("array") => {
            format!("write [{}], or each on a line of its own after -", shortened(text))
        }
        Value::Text(_) | Value::Bool(_) | Value::Number(_) if of_type("object") => {
            let keys = leaves.iter().filter_map(|leaf| leaf.schema["properties"].as_object());
            let keys: Vec<&str> = keys.flat_map(|keys| keys.keys().map(String::as_str)).collect();
            match &keys[..] {
                [] => format!("write {key}: {{name: value}}"),
                keys => format!("its keys are {}", keys.join(", ")),
            }
        }
        Value::Map(_) if of_type("array") => "begin each with - to make a list of it".into(),
        Value::List(items) if items.len() == 1 => "leave the brackets or the - out".into(),
        _ => format!("write {}", described(leaves)),
    }
}
