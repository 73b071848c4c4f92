//! Values as YAML that reads back as the same values ([`crate::document`]).

use serde_json::Value;

use crate::document;

/// A document, with a line end.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(_) | Value::Array(_) if !is_empty(value) => block(value, 0, &mut out),
        other => {
            out.push_str(&flow(other));
            out.push('\n');
        }
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(entries) => entries.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Short lists and maps of single values stand on one line.
const FLOW_MAX: usize = 80;

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(entries) => {
            for (key, value) in ordered(entries) {
                out.push_str(&pad);
                out.push_str(&scalar(key));
                out.push(':');
                after(value, indent + 1, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                out.push_str(&pad);
                out.push('-');
                if matches!(item, Value::Object(_)) && !fits(item) && !is_empty(item) {
                    // The first key stands behind the dash.
                    let mut inner = String::new();
                    block(item, indent + 1, &mut inner);
                    out.push(' ');
                    out.push_str(&inner[(indent + 1) * 2..]);
                } else {
                    after(item, indent + 1, out);
                }
            }
        }
        other => {
            out.push_str(&pad);
            out.push_str(&flow(other));
            out.push('\n');
        }
    }
}

fn after(value: &Value, indent: usize, out: &mut String) {
    if is_empty(value) || fits(value) || !matches!(value, Value::Object(_) | Value::Array(_)) {
        out.push(' ');
        out.push_str(&flow(value));
        out.push('\n');
    } else {
        out.push('\n');
        block(value, indent, out);
    }
}

/// `kind`, `name`, `labels` and `spec` come first and in this order, the rest by name.
fn ordered(entries: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    const FIRST: [&str; 5] = ["kind", "name", "labels", "generation", "spec"];
    let place = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
    let is_document = entries.contains_key("kind") && entries.contains_key("spec");
    let mut all: Vec<_> = entries.iter().collect();
    all.sort_by(|a, b| match is_document {
        true => place(a.0).cmp(&place(b.0)).then_with(|| a.0.cmp(b.0)),
        false => a.0.cmp(b.0),
    });
    all
}

fn fits(value: &Value) -> bool {
    let single = |value: &Value| !matches!(value, Value::Object(_) | Value::Array(_));
    let all_single = match value {
        Value::Object(entries) => entries.values().all(single),
        Value::Array(items) => items.iter().all(single),
        _ => true,
    };
    all_single && flow(value).len() <= FLOW_MAX
}

/// On one line.
pub fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let entries = ordered(entries).into_iter().map(|(key, value)| format!("{}: {}", scalar(key), flow(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// A word as it is where it is read back as that word, in quotes otherwise.
fn scalar(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./%*:@+".contains(&b);
    let bytes = text.as_bytes();
    let looks_plain = !text.is_empty()
        && bytes.iter().all(|b| plain(*b))
        && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'/')
        && bytes[bytes.len() - 1] != b':';
    if looks_plain && matches!(document::plain(text), document::Value::Text(_)) {
        return text.to_owned();
    }
    // JSON's quotes are YAML's, but for DEL and a few separators that YAML wants escaped too.
    let mut quoted = String::new();
    for c in Value::from(text).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => quoted.push(c),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn documents_look_as_people_write_them() {
        let value = json!({
            "spec": {"to": [{"endpoints": ["127.0.0.1:1"], "name": "v1", "when": {"headers": {"x-a": "1"}}}, {"name": "v2"}],
                     "deadline": "2s", "breaker": "off", "match": [], "retry": {"attempts": 2}},
            "name": "orders", "kind": "Route",
        });
        expect![[r#"
            kind: Route
            name: orders
            spec:
              breaker: off
              deadline: 2s
              match: []
              retry: {attempts: 2}
              to:
                - endpoints: [127.0.0.1:1]
                  name: v1
                  when:
                    headers: {x-a: "1"}
                - {name: v2}
        "#]]
        .assert_eq(&write(&value));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9f64).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[-:#*&!%@a-z0-9 ,{}\\[\\]'\"~.]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[-:#*a-z0-9 {.~]{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]
        #[test]
        fn what_is_written_reads_back_as_it_was(value in value()) {
            let text = write(&value);
            let read = document::read(&text);
            prop_assert!(read.is_ok(), "{text}: {read:?}");
            let read = read.unwrap();
            // A document of nothing is none.
            let back = read.first().map_or(Value::Null, document::Node::json);
            prop_assert_eq!(back, value, "{}", text);
        }
    }
}
