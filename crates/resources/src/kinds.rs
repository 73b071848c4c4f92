//! The kinds of resources: what each is called, its fields, its schema.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{function::Function, listener::Listener, model::Model, route::Route, topic::Topic};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Route,
    Listener,
    Function,
    Model,
    Topic,
}

/// A spec, read into its kind's type.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    Route(Box<Route>),
    Listener(Box<Listener>),
    Function(Box<Function>),
    Model(Model),
    Topic(Topic),
}

/// What stands in a document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Whole<K, S> {
    kind: K,
    /// Letters, digits, `-`, `_` and `.`; at most 63.
    name: String,
    /// Words for people and programs; nothing here looks at them.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    spec: S,
}

impl Kind {
    /// In the order in which they are applied: what others name comes first.
    pub const ALL: [Self; 5] = [Self::Topic, Self::Model, Self::Function, Self::Route, Self::Listener];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "Route",
            Self::Listener => "Listener",
            Self::Function => "Function",
            Self::Model => "Model",
            Self::Topic => "Topic",
        }
    }

    /// As it stands in paths and keys.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Route => "routes",
            Self::Listener => "listeners",
            Self::Function => "functions",
            Self::Model => "models",
            Self::Topic => "topics",
        }
    }

    /// Whether it lies in the key space as JSON of its own; the others have planes that keep them.
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Route | Self::Listener)
    }

    /// As people type it: `Route`, `route`, `routes`.
    pub fn typed(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| text == kind.plural() || text == kind.name().to_ascii_lowercase())
    }

    /// As it stands in a document.
    pub fn written(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| text == kind.name())
    }

    /// JSON Schema (draft 2020-12) of a whole document.
    pub fn schema(self) -> Value {
        let mut schema = match self {
            Self::Route => whole::<Route>(),
            Self::Listener => whole::<Listener>(),
            Self::Function => whole::<Function>(),
            Self::Model => whole::<Model>(),
            Self::Topic => whole::<Topic>(),
        };
        schema["title"] = self.name().into();
        schema["properties"]["kind"] = serde_json::json!({"const": self.name()});
        schema
    }

    /// # Errors
    /// In serde's words, where the schema let pass what the type does not take.
    pub fn read(self, spec: &Value) -> Result<Spec, String> {
        fn of<T: serde::de::DeserializeOwned>(spec: &Value) -> Result<T, String> {
            T::deserialize(spec).map_err(|error| error.to_string())
        }
        Ok(match self {
            Self::Route => Spec::Route(of(spec)?),
            Self::Listener => Spec::Listener(of(spec)?),
            Self::Function => Spec::Function(of(spec)?),
            Self::Model => Spec::Model(of(spec)?),
            Self::Topic => Spec::Topic(of(spec)?),
        })
    }
}

fn whole<S: JsonSchema>() -> Value {
    let mut schema: Schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Whole<String, S>>();
    schema.remove("description");
    let mut schema = schema.to_value();
    without_null(&mut schema);
    schema
}

/// A key without a value is a mistake, although serde takes it for an absent one.
fn without_null(schema: &mut Value) {
    let is_null = |schema: &Value| *schema == serde_json::json!({"type": "null"});
    if let Value::Object(fields) = schema {
        if let Some(Value::Array(types)) = fields.get_mut("type") {
            types.retain(|name| name != "null");
            if let [only] = &types[..] {
                fields["type"] = only.clone();
            }
        }
        if let Some(Value::Array(variants)) = fields.get_mut("anyOf") {
            variants.retain(|variant| !is_null(variant));
            if let [only] = &variants[..] {
                let only = only.clone();
                fields.remove("anyOf");
                for (key, value) in only.as_object().into_iter().flatten() {
                    fields.entry(key).or_insert_with(|| value.clone());
                }
            }
        }
        // Said by each description, and wrong where `null` was meant.
        fields.remove("default");
        fields.values_mut().for_each(without_null);
    } else if let Value::Array(items) = schema {
        items.iter_mut().for_each(without_null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages for editors are those of the program; `UPDATE_EXPECT=1 cargo test -p buttress-resources` writes them.
    #[test]
    fn the_committed_schemas_are_those_of_the_types() {
        for kind in Kind::ALL {
            let name = kind.name().to_ascii_lowercase();
            let path = format!("{}/../../docs/reference/schema/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let schema = format!("{:#}\n", kind.schema());
            assert!(!schema.contains("null"), "{name}");
            expect_test::expect_file![path].assert_eq(&schema);
        }
    }

    #[test]
    fn kinds_are_found_as_people_type_them() {
        for text in ["Route", "route", "routes", "ROUTES"] {
            assert_eq!(Kind::typed(text), Some(Kind::Route));
        }
        assert_eq!((Kind::typed("router"), Kind::written("route")), (None, None));
    }
}
