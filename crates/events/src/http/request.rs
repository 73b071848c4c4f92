//! What every handler needs of a request: its media type, its query, its body unpacked.

use std::io::Read;

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::{HeaderMap, Request, header};

/// Decodes `%41` and the like; what is not a valid escape stays as it is.
pub(super) fn percent_decode(text: &str) -> String {
    let out = percent_decode_bytes(text);
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// As [`percent_decode`], for what need not be text.
pub(super) fn percent_decode_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let value = escape.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| {
            // from_str_radix takes a sign, an escape does not.
            hex.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(hex, 16).expect("two hex digits"))
        });
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// The value of one query parameter.
pub(super) fn query(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key) == name).then(|| percent_decode(&value.replace('+', " ")))
    })
}

/// A query parameter that is a number.
pub(super) fn number(text: &str, name: &str) -> Result<Option<i64>, Error> {
    query(text, name)
        .map(|value| {
            value.parse().map_err(|_| {
                Error::new(Code::BAD_REQUEST, format!("query parameter {name}={value:?} is not an integer"))
            })
        })
        .transpose()
}

/// The media type without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or("").trim();
    (!essence.is_empty()).then(|| essence.to_ascii_lowercase())
}

/// The body, unpacked where it is gzip.
///
/// # Errors
/// `TOO_LARGE`, `BAD_REQUEST` (not gzip), `UNSUPPORTED` (another encoding).
pub(super) fn body(request: &Request<Bytes>, bytes_max: usize) -> Result<Bytes, Error> {
    let encoding = request.headers().get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("?").trim());
    let too_large = || {
        Error::new(Code::TOO_LARGE, format!("the body is larger than {bytes_max} bytes")).hint("send several requests")
    };
    let packed = request.body();
    match encoding.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") if packed.len() > bytes_max => Err(too_large()),
        None | Some("" | "identity") => Ok(packed.clone()),
        Some("gzip" | "x-gzip") => {
            // Grows with what really comes out, never beyond one byte more than the limit.
            let mut unpacked = Vec::new();
            flate2::read::MultiGzDecoder::new(&packed[..])
                .take(bytes_max as u64 + 1)
                .read_to_end(&mut unpacked)
                .map_err(|error| Error::new(Code::BAD_REQUEST, format!("the body is not valid gzip: {error}")))?;
            if unpacked.len() > bytes_max { Err(too_large()) } else { Ok(unpacked.into()) }
        }
        Some(other) => Err(Error::new(Code::UNSUPPORTED, format!("content encoding {other:?} is not served"))
            .hint("send gzip, or nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded() {
        for (text, decoded) in
            [("a%2Fb", "a/b"), ("%zz", "%zz"), ("%+1", "%+1"), ("%4", "%4"), ("%C3%A4", "ä"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(percent_decode(text), decoded);
        }
        assert_eq!(query("a=1&topic=x+y%26z", "topic").as_deref(), Some("x y&z"));
        assert_eq!(query("topic", "topic").as_deref(), Some(""));
        assert_eq!(query("", "topic"), None);
    }
}
