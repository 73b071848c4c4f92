//! Bytes in JSON: text as `name`, anything else as `name_base64`; both ways.

use base64::Engine as _;
use buttress_core::{Code, Error};
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Text as `name`, other bytes as `name_base64`; returns how many bytes there were.
pub(super) fn put_bytes(into: &mut Map<String, Value>, name: &str, bytes: Option<&Bytes>) -> usize {
    match bytes {
        None => into.insert(name.into(), Value::Null),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => into.insert(name.into(), json!(text)),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                into.insert(format!("{name}_base64"), json!(text))
            }
        },
    };
    bytes.map_or(0, Bytes::len)
}

/// What stands in the two fields of one value; `None` where neither is there.
///
/// # Errors
/// `BAD_REQUEST` where both are there, or where the second is not base64.
pub(super) fn either(name: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Error> {
    match (text, base64) {
        (Some(_), Some(_)) => {
            Err(Error::new(Code::BAD_REQUEST, format!("both \"{name}\" and \"{name}_base64\" are given")))
        }
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(text)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(&text);
            let bytes = decoded.map_err(|error| {
                Error::new(Code::BAD_REQUEST, format!("\"{name}_base64\" is not base64: {error}"))
                    .hint("standard alphabet, with padding")
            })?;
            Ok(Some(bytes.into()))
        }
        (None, None) => Ok(None),
    }
}
