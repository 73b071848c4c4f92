//! Text to trees that know where each key and value stands.
//!
//! The text is YAML 1.2 with its core schema, so JSON too: `off`, `on`, `yes` and `no` are words, `1e3` is a number and
//! `10:30` is none. Several documents stand in one text, with `---` between them.
//!
//! **What is not taken**, because it makes two readers see two things or one text cost more than it is long: keys that
//! stand twice, keys that are no scalars, tags, merge keys. Anchors and aliases are taken; what they repeat counts as
//! if it were written out, against the same bounds as the rest.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use buttress_core::Code;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value as Json};

/// A text is kept whole, and three times over as a tree; 1 MiB is some thousand routes.
pub const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// No kind needs more than eight. The parser itself stops at 255 brackets.
pub const DEPTH_MAX: usize = 64;
/// Keys and values, those that aliases repeat too: at 100 bytes each about 10 MiB.
pub const NODES_MAX: usize = 100_000;
/// Bytes of keys and values, those that aliases repeat too.
pub const EXPANDED_BYTES_MAX: usize = 4 * TEXT_BYTES_MAX;

/// Where something stands; line and column count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    pub line: u32,
    pub column: u32,
    /// In characters, on its first line; at least 1.
    pub length: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub text: String,
    pub mark: Mark,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub mark: Mark,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text; no key stands twice.
    Map(Vec<(Key, Node)>),
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub mark: Mark,
    pub says: String,
    pub hint: String,
}

impl Malformed {
    pub const CODE: Code = Code::YAML_MALFORMED;

    fn new(mark: Mark, says: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { mark, says: says.into(), hint: hint.into() }
    }
}

impl Node {
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|(_, node)| node)
    }

    pub fn entry(&self, key: &str) -> Option<(&Key, &Self)> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(at, _)| at.text == key).map(|(key, node)| (key, node))
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place of a JSON pointer: its key where it has one, else its value; where it leads nowhere, as far as it leads.
    pub fn place(&self, pointer: &str) -> Mark {
        self.walk(pointer).0
    }

    /// The same, but the value's place where there is one.
    pub fn place_of_value(&self, pointer: &str) -> Mark {
        match self.walk(pointer) {
            (key, node, true) if node.value == Value::Null => key,
            (_, node, true) => node.mark,
            (key, ..) => key,
        }
    }

    /// The last key or place on the way, the node there, and whether that is the pointer's.
    fn walk(&self, pointer: &str) -> (Mark, &Self, bool) {
        let (mut mark, mut node) = (self.mark, self);
        for part in pointer.split('/').skip(1) {
            let part = part.replace("~1", "/").replace("~0", "~");
            match &node.value {
                Value::Map(_) => {
                    let Some((key, next)) = node.entry(&part) else { return (mark, node, false) };
                    (mark, node) = (key.mark, next);
                }
                Value::List(items) => {
                    let Some(next) = part.parse::<usize>().ok().and_then(|at| items.get(at)) else {
                        return (mark, node, false);
                    };
                    (mark, node) = (next.mark, next);
                }
                _ => return (mark, node, false),
            }
        }
        (mark, node, true)
    }

    pub fn json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(is) => Json::Bool(*is),
            Value::Number(number) => Json::Number(number.clone()),
            Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.json())).collect::<Map<_, _>>())
            }
        }
    }
}

/// Reads all documents of a text; those that hold nothing are left out.
///
/// # Errors
/// The first thing that is wrong: what follows it cannot be read.
pub fn read(text: &str) -> Result<Vec<Node>, Malformed> {
    let top = Mark { line: 1, column: 1, length: 1 };
    if text.len() > TEXT_BYTES_MAX {
        let says = format!("the text is longer than {TEXT_BYTES_MAX} bytes");
        return Err(Malformed::new(top, says, "write several files; a directory is applied as a whole"));
    }
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| {
            let at = error.marker();
            let mark = Mark { line: number(at.line()), column: number(at.col() + 1), length: 1 };
            Malformed::new(mark, format!("this is not YAML: {}", error.info()), hint_for(error.info()))
        })?;
        builder.take(event, mark_of(&span))?;
    }
    Ok(builder.documents)
}

fn hint_for(info: &str) -> &'static str {
    if info.contains("tab") {
        "indent with spaces"
    } else if info.contains("anchor") {
        "an alias *name repeats what was marked &name before it, in the same document"
    } else {
        "look for a bracket or a quote that is not closed, a missing space after a colon, or lines indented differently"
    }
}

fn number(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn mark_of(span: &Span) -> Mark {
    let (start, end) = (span.start, span.end);
    let length = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
    Mark { line: number(start.line()), column: number(start.col() + 1), length: number(length.max(1)) }
}

/// A list or map that is not closed yet.
struct Open {
    mark: Mark,
    anchor: usize,
    inside: Inside,
    cost: Cost,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, key: Option<Key>, seen: BTreeSet<String> },
}

/// What a node takes, with all that is in it.
#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// By the parser's number; a copy of each, which is spent like what it is a copy of.
    anchors: BTreeMap<usize, (Node, Cost)>,
    documents: Vec<Node>,
    /// Over all documents of the text.
    spent: Cost,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<(), Malformed> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                no_tag(mark, tag.is_some())?;
                let cost = Cost { nodes: 1, bytes: text.len(), depth: 0 };
                self.spend(mark, cost)?;
                if self.wants_key() {
                    return self.key(text, style, mark, anchor, cost);
                }
                let node = Node { mark, value: scalar(text, style) };
                self.close(node, anchor, cost)
            }
            Event::SequenceStart(anchor, tag) => {
                no_tag(mark, tag.is_some())?;
                self.begin(mark, anchor, Inside::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                no_tag(mark, tag.is_some())?;
                self.begin(mark, anchor, Inside::Map { entries: Vec::new(), key: None, seen: BTreeSet::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.inside {
                    Inside::List(items) => Value::List(items),
                    Inside::Map { entries, .. } => Value::Map(entries),
                };
                self.close(Node { mark: open.mark, value }, open.anchor, open.cost)
            }
            Event::Alias(anchor) => {
                let Some((node, cost)) = self.anchors.get(&anchor) else {
                    return Err(Malformed::new(mark, "an alias stands inside what it repeats", "write it out"));
                };
                let (node, cost) = (node.clone(), *cost);
                self.spend(mark, cost)?;
                if self.wants_key() {
                    let Value::Text(text) = node.value else { return Err(no_scalar(mark)) };
                    return self.key(text.into(), ScalarStyle::DoubleQuoted, mark, 0, cost);
                }
                self.close(node, 0, cost)
            }
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { inside: Inside::Map { key: None, .. }, .. }))
    }

    fn key(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        mark: Mark,
        anchor: usize,
        cost: Cost,
    ) -> Result<(), Malformed> {
        if text == "<<" && style == ScalarStyle::Plain {
            return Err(Malformed::new(
                mark,
                "merge keys (<<) are not taken",
                "repeat the value with an alias, key by key",
            ));
        }
        if anchor != 0 {
            self.spend(mark, cost)?;
            self.anchors.insert(anchor, (Node { mark, value: Value::Text(text.clone().into_owned()) }, cost));
        }
        let Some(Open { inside: Inside::Map { key, seen, .. }, cost: whole, .. }) = self.open.last_mut() else {
            return Ok(());
        };
        if !seen.insert(text.clone().into_owned()) {
            return Err(Malformed::new(mark, format!("the key \"{text}\" stands twice"), "keep one of the two"));
        }
        whole.add(cost);
        *key = Some(Key { text: text.into_owned(), mark });
        Ok(())
    }

    fn begin(&mut self, mark: Mark, anchor: usize, inside: Inside) -> Result<(), Malformed> {
        if self.wants_key() {
            return Err(no_scalar(mark));
        }
        let own = Cost { nodes: 1, bytes: 0, depth: 1 };
        self.spend(mark, own)?;
        self.open.push(Open { mark, anchor, inside, cost: own });
        Ok(())
    }

    /// Puts a whole node where it belongs.
    fn close(&mut self, node: Node, anchor: usize, cost: Cost) -> Result<(), Malformed> {
        if anchor != 0 {
            self.spend(node.mark, cost)?;
            self.anchors.insert(anchor, (node.clone(), cost));
        }
        let Some(open) = self.open.last_mut() else {
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        open.cost.add(Cost { depth: cost.depth + 1, ..cost });
        match &mut open.inside {
            Inside::List(items) => items.push(node),
            Inside::Map { entries, key, .. } => entries.extend(key.take().map(|key| (key, node))),
        }
        Ok(())
    }

    fn spend(&mut self, mark: Mark, cost: Cost) -> Result<(), Malformed> {
        self.spent.nodes += cost.nodes;
        self.spent.bytes += cost.bytes;
        let too = |what: String| Err(Malformed::new(mark, what, "write several files, with fewer aliases"));
        if self.open.len() + cost.depth > DEPTH_MAX {
            return too(format!("this lies deeper than {DEPTH_MAX} levels"));
        }
        if self.spent.nodes > NODES_MAX {
            return too(format!("these are more than {NODES_MAX} keys and values, with those that aliases repeat"));
        }
        if self.spent.bytes > EXPANDED_BYTES_MAX {
            return too(format!("these are more than {EXPANDED_BYTES_MAX} bytes, with those that aliases repeat"));
        }
        Ok(())
    }
}

impl Cost {
    fn add(&mut self, inner: Self) {
        self.nodes += inner.nodes;
        self.bytes += inner.bytes;
        self.depth = self.depth.max(inner.depth);
    }
}

fn no_tag(mark: Mark, tagged: bool) -> Result<(), Malformed> {
    if tagged {
        let hint = "leave the tag out; quotes make text of what would be a number";
        return Err(Malformed::new(mark, "tags (!name) are not taken", hint));
    }
    Ok(())
}

fn no_scalar(mark: Mark) -> Malformed {
    Malformed::new(mark, "a key must be a word", "lists and maps stand after a key; quote a key that holds brackets")
}

/// The core schema (YAML 1.2.2, 10.3.2). What JSON has no number for (`.inf`, `.nan`) stays text.
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.into_owned());
    }
    plain(&text)
}

/// A scalar without quotes.
pub(crate) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => read_number(text).map_or_else(|| Value::Text(text.to_owned()), Value::Number),
    }
}

fn read_number(text: &str) -> Option<Number> {
    for (prefix, radix) in [("0o", 8), ("0x", 16)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            let ok = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
            return ok.then(|| u64::from_str_radix(digits, radix).ok().map(Number::from)).flatten();
        }
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let whole = text.strip_prefix('+').unwrap_or(text);
        if let Ok(number) = whole.parse::<u64>() {
            return Some(number.into());
        }
        if let Ok(number) = whole.parse::<i64>() {
            return Some(number.into());
        }
    }
    // [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_ok = digits(before) && digits(after) && !(before.is_empty() && after.is_empty());
    let exponent_ok = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    if !mantissa_ok || !exponent_ok {
        return None;
    }
    Number::from_f64(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn all(text: &str) -> Vec<Json> {
        read(text).unwrap().iter().map(Node::json).collect()
    }

    fn wrong(text: &str, expect: &Expect) {
        let error = read(text).unwrap_err();
        expect.assert_eq(&format!("{}:{}: {}; {}", error.mark.line, error.mark.column, error.says, error.hint));
    }

    #[test]
    fn words_stay_words_and_numbers_are_those_of_yaml_1_2() {
        let words = all("[off, on, yes, No, 10:30, 1.2.3, 127.0.0.1:80, .inf, 1_000, 5s, 0b1, '1', \"true\", e5, .]");
        for word in words[0].as_array().unwrap() {
            assert!(word.is_string(), "{word}");
        }
        assert_eq!(
            all("[1, -2, +3, 0o17, 0x1F, 1.5, .5, 1., 1e3, -1.5E-1, 18446744073709551616, 010]"),
            [json!([1, -2, 3, 15, 31, 1.5, 0.5, 1.0, 1000.0, -0.15, 18446744073709551616.0, 10])]
        );
        assert_eq!(all("[true, FALSE, ~, null, ]\n"), [json!([true, false, null, null])]);
        assert_eq!(all(r#"{"a": [1, {"b": "c"}]}"#), [json!({"a": [1, {"b": "c"}]})]);
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        assert_eq!(all("a: 1\n---\n# nothing\n---\nb: 2\n...\n"), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(all(""), [Json::Null; 0]);
        assert_eq!(all("\u{feff}a: 1"), [json!({"a": 1})]);
    }

    #[test]
    fn every_key_and_value_has_its_place() {
        let text = "kind: Route\nspec:\n  to:\n    - name: v1\n      endpoints: [a, b]\n    - {name: v2}\n  retry:\n";
        let node = &read(text).unwrap()[0];
        let at = |pointer| {
            let mark = node.place(pointer);
            (mark.line, mark.column, mark.length)
        };
        assert_eq!(at("/kind"), (1, 1, 4));
        assert_eq!(at("/spec/to"), (3, 3, 2));
        assert_eq!(at("/spec/to/0/endpoints"), (5, 7, 9));
        assert_eq!(at("/spec/to/0/endpoints/1"), (5, 22, 1));
        assert_eq!(at("/spec/to/1"), (6, 7, 1));
        assert_eq!(at("/spec/to/1/weight"), (6, 7, 1));
        assert_eq!(at("/spec/nothing/here"), (2, 1, 4));
        assert_eq!(node.place_of_value("/kind").column, 7);
        assert_eq!(node.place_of_value("/spec/retry").line, 7);
    }

    #[test]
    fn aliases_repeat_what_was_marked() {
        assert_eq!(all("a: &x {k: [1]}\nb: *x\n"), [json!({"a": {"k": [1]}, "b": {"k": [1]}})]);
        wrong(
            "a: *x\n",
            &expect![[
                r#"1:4: this is not YAML: while parsing node, found unknown anchor; an alias *name repeats what was marked &name before it, in the same document"#
            ]],
        );
        wrong("a: &x [*x]\n", &expect!["1:8: an alias stands inside what it repeats; write it out"]);
    }

    #[test]
    fn what_two_readers_could_see_differently_is_refused() {
        wrong("a: 1\nb: 2\na: 3\n", &expect![[r#"3:1: the key "a" stands twice; keep one of the two"#]]);
        wrong(
            "a: !!str 1\n",
            &expect!["1:4: tags (!name) are not taken; leave the tag out; quotes make text of what would be a number"],
        );
        wrong(
            "a: {<<: {b: 1}}\n",
            &expect!["1:5: merge keys (<<) are not taken; repeat the value with an alias, key by key"],
        );
        wrong(
            "? [a]\n: 1\n",
            &expect!["1:3: a key must be a word; lists and maps stand after a key; quote a key that holds brackets"],
        );
        wrong(
            "a: [1\nb: 2\n",
            &expect![
                "2:2: this is not YAML: illegal placement of ':' indicator; look for a bracket or a quote that is not closed, a missing space after a colon, or lines indented differently"
            ],
        );
        wrong(
            "a: \"b\n",
            &expect![
                "1:4: this is not YAML: while scanning a quoted scalar, found unexpected end of stream; look for a bracket or a quote that is not closed, a missing space after a colon, or lines indented differently"
            ],
        );
        wrong(
            "a:\n\tb: 1\n",
            &expect![
                "2:2: this is not YAML: tabs disallowed within this context (block indentation); indent with spaces"
            ],
        );
    }

    #[test]
    fn a_small_text_cannot_become_a_large_tree() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for at in 1..10 {
            let before = format!("*a{}, ", at - 1).repeat(9);
            laughs.push_str(&format!("a{at}: &a{at} [{before}*a{}]\n", at - 1));
        }
        wrong(
            &laughs,
            &expect![
                "5:40: these are more than 100000 keys and values, with those that aliases repeat; write several files, with fewer aliases"
            ],
        );
        let long = format!("a: &a \"{}\"\nb: [{}*a]\n", "x".repeat(500_000), "*a, ".repeat(1000));
        wrong(
            &long,
            &expect![
                "2:29: these are more than 4194304 bytes, with those that aliases repeat; write several files, with fewer aliases"
            ],
        );
        let mut deep = "a0: &a0 [x]\n".to_owned();
        for at in 1..100 {
            deep.push_str(&format!("a{at}: &a{at} [*a{}]\n", at - 1));
        }
        wrong(&deep, &expect!["64:12: this lies deeper than 64 levels; write several files, with fewer aliases"]);
        wrong(
            &"[".repeat(100_000),
            &expect![
                "1:256: this is not YAML: recursion limit exceeded; look for a bracket or a quote that is not closed, a missing space after a colon, or lines indented differently"
            ],
        );
        wrong(
            &"- ".repeat(10_000),
            &expect!["1:129: this lies deeper than 64 levels; write several files, with fewer aliases"],
        );
        wrong(
            &" ".repeat(TEXT_BYTES_MAX + 1),
            &expect![
                "1:1: the text is longer than 1048576 bytes; write several files; a directory is applied as a whole"
            ],
        );
    }
}
