//! A file of API keys: who calls with which, without the keys themselves.
//!
//! ```text
//! # of the shop
//! shop-frontend  9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//! ```
//!
//! A caller may have several keys, so that one can be exchanged without a gap. The digest of a key is looked up in a hash
//! table, whose time says something about digests only: whoever would guess a digest byte by byte had to find keys with
//! digests of his choice, which SHA-256 does not let him. Plain SHA-256 is enough because keys are drawn at random
//! (`openssl rand -hex 24`); a password that a human has thought of does not belong here.

use std::{collections::HashMap, sync::Arc};

use ring::digest::{SHA256, digest};

use super::{NAME_BYTES_MAX, source::Content};

/// Longer keys are nobody's.
pub const KEY_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub struct KeyFile {
    callers: HashMap<[u8; 32], Arc<str>>,
}

impl KeyFile {
    /// Whose key it is.
    pub fn caller(&self, key: &[u8]) -> Option<&Arc<str>> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return None;
        }
        self.callers.get(&sha256(key))
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Whether a name can stand in a field as it is.
pub fn plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b'%')
}

fn digest_of(hex: &str) -> Option<[u8; 32]> {
    let (mut out, hex) = ([0; 32], hex.as_bytes());
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |at: usize| (pair[at] as char).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(out)
}

impl Content for KeyFile {
    /// About 50,000 keys.
    const BYTES_MAX: usize = 4 << 20;
    const WHAT: &'static str = "API keys";

    /// No error repeats a line: somebody may have written a key where its digest belongs.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
        let mut callers: HashMap<[u8; 32], Arc<str>> = HashMap::new();
        let mut last: Option<Arc<str>> = None;
        for (at, line) in text.lines().enumerate() {
            let wrong = |says: &str| Err(format!("line {}: {says}", at + 1));
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let (name, digest) = match (words.next(), words.next(), words.next()) {
                (None, ..) => continue,
                (Some(name), Some(digest), None) => (name, digest),
                _ => return wrong("is not a caller and the SHA-256 of a key, with a space between"),
            };
            if !plain(name) {
                return wrong("the caller's name is not 1 to 256 visible characters of ASCII, without %");
            }
            let Some(digest) = digest_of(digest) else {
                return wrong("the second word is not a SHA-256 in hexadecimal: 64 digits");
            };
            // Keys of one caller usually follow each other.
            let name = last.take().filter(|known| **known == *name).unwrap_or_else(|| name.into());
            if callers.insert(digest, name.clone()).is_some_and(|other| other != name) {
                return wrong("another caller has the same key");
            }
            last = Some(name);
        }
        Ok(Self { callers })
    }

    fn count(&self) -> usize {
        self.callers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(key: &str) -> String {
        sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_key_names_its_caller_and_nothing_else_does() {
        let text = format!(
            "# keys of the shop\r\n\r\nshop {}\r\n shop\t{} # the next one\nother {}",
            hex("one"),
            hex("two").to_uppercase(),
            hex("")
        );
        let keys = KeyFile::read(text.as_bytes()).unwrap();
        let caller = |key: &str| keys.caller(key.as_bytes()).map(|name| name.to_string());
        assert_eq!((caller("one"), caller("two"), keys.count()), (Some("shop".into()), Some("shop".into()), 3));
        assert_eq!(caller(&hex("one")), None, "the digest is not the key");
        assert_eq!(caller(""), None, "no key is no key, also where somebody has written its digest");
        assert_eq!(caller(&"x".repeat(KEY_BYTES_MAX + 1)), None);
    }

    #[test]
    fn a_line_that_is_wrong_is_named_by_its_number_and_not_repeated() {
        let secret = "0123456789abcdef";
        for (text, says) in [
            (format!("# a\nshop {secret}"), "line 2: the second word is not a SHA-256"),
            (format!("shop {}", "g".repeat(64)), "line 1: the second word"),
            (format!("shop {} more", hex(secret)), "line 1: is not a caller and the SHA-256"),
            ("shop".to_owned(), "line 1: is not a caller"),
            (format!("sh%p {}", hex(secret)), "line 1: the caller's name"),
            (format!("shöp {}", hex(secret)), "line 1: the caller's name"),
            (format!("{} {}", "a".repeat(257), hex(secret)), "line 1: the caller's name"),
            (format!("a {0}\nb {0}", hex(secret)), "line 2: another caller has the same key"),
        ] {
            let error = KeyFile::read(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(says) && !error.contains(secret), "{error}");
        }
        assert_eq!(KeyFile::read(b"\xff").unwrap_err(), "is not UTF-8");
        assert_eq!(KeyFile::read(b"").unwrap().count(), 0, "a file without keys lets nobody in");
    }
}
