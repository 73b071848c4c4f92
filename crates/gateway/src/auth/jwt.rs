//! A token (RFC 7519, in the compact form of RFC 7515): whose it is and until when, or the one sentence that says why not.
//!
//! In this order, so that nothing of a token is believed before its signature: size, three parts, header, algorithm and key,
//! signature, then claims. No sentence repeats a part of the token but the name of its key.
//!
//! | refused | why |
//! |---|---|
//! | `crit` in the header | says that something must be understood that is not (RFC 7515, 4.1.11) |
//! | two members of one name | two readers may see different ones (RFC 7515, 4) |
//! | `typ` beside `JWT` and `…at+jwt` | a token made for something else, a logout for example (RFC 8725, 3.11) |
//! | no `exp` | it would be good forever |
//! | `aud` where the route names no audience | it was made for somebody, and nobody has said that it is us (RFC 7519, 4.1.3) |
//!
//! `jwk`, `jku`, `x5u` and `x5c` of a header are not looked at: a token does not bring the key that it is checked with.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{
    NAME_BYTES_MAX,
    jwks::{Algorithm, Found, KID_BYTES_MAX, KeySet},
};

/// What issuers make is a tenth of it.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The largest number that every reader of JSON reads as the same: 2^53. As seconds it is further away than anything.
const SECONDS_MAX: f64 = 9_007_199_254_740_992.0;

/// What a route asks of tokens.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub issuer: Option<Box<str>>,
    /// One of these; empty where the route names none.
    pub audience: Vec<Box<str>>,
    /// The claim that names the caller.
    pub caller: Box<str>,
    pub leeway_s: u64,
}

/// A token whose signature and claims are good.
#[derive(Debug)]
pub struct Verified {
    pub name: String,
    pub claims: Map<String, Value>,
    /// It is good in [from, until), in seconds since 1970, the leeway included.
    pub from: u64,
    pub until: u64,
}

#[derive(Debug)]
pub struct Refused {
    /// Lower case, no full stop.
    pub says: Cow<'static, str>,
    /// The set may have been changed by the issuer since it was read.
    pub unknown_key: bool,
}

fn no<T>(says: impl Into<Cow<'static, str>>) -> Result<T, Refused> {
    Err(Refused { says: says.into(), unknown_key: false })
}

/// An object in which no name stands twice.
struct Once(Map<String, Value>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Once;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Once, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = members.next_entry::<String, Value>()? {
                    if map.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Once(map))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn object(part: &[u8]) -> Option<Map<String, Value>> {
    let json = BASE64.decode(part).ok()?;
    serde_json::from_slice::<Once>(&json).ok().map(|once| once.0)
}

/// Holds a token against keys and wishes, at this second since 1970.
///
/// # Errors
/// Why it does not count.
pub fn verify(token: &[u8], keys: &KeySet, wanted: &Wanted, now: u64) -> Result<Verified, Refused> {
    if token.len() > TOKEN_BYTES_MAX {
        return no("the token is larger than 16 KiB");
    }
    let mut parts = token.split(|b| *b == b'.');
    let (Some(header), Some(claims), Some(made), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return no("the token is not a signed JWT: three parts with dots between");
    };
    let Some(head) = object(header) else { return no("the token's header is not base64url of a JSON object") };
    if head.contains_key("crit") {
        return no("the token asks for an extension (crit) that is not known here");
    }
    let text = |name: &str| head.get(name).map(Value::as_str);
    if let Some(kind) = text("typ") {
        let kind = kind.unwrap_or_default().to_ascii_lowercase();
        if kind != "jwt" && kind != "application/jwt" && !kind.ends_with("at+jwt") {
            return no("the token's header says that it is for something else than access (typ)");
        }
    }
    let algorithm = match text("alg").flatten() {
        Some("none") => return no("the token is not signed (alg is none)"),
        Some(name) if name.starts_with("HS") => {
            return no("the token is signed with a shared secret (alg begins with HS), which is never taken here");
        }
        name => name.and_then(Algorithm::named),
    };
    let Some(algorithm) = algorithm else {
        return no("the token's signature is of a kind that cannot be checked here (alg)");
    };
    let kid = match text("kid") {
        None => None,
        Some(Some(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid),
        Some(_) => return no("the name of the token's key (kid) is no text of at most 256 bytes"),
    };
    let candidates = match keys.find(kid, algorithm) {
        Found::Keys(candidates) => candidates,
        Found::Unknown => {
            let says = format!("the token's key \"{}\" is not in the JWKS", shown(kid.unwrap_or_default()));
            return Err(Refused { says: says.into(), unknown_key: true });
        }
        Found::Unfit => return no("the token's alg does not fit the key of the JWKS that it names"),
    };
    let Ok(made) = BASE64.decode(made) else { return no("the token's signature is not base64url") };
    let signed = &token[..header.len() + 1 + claims.len()];
    if !candidates.iter().any(|key| key.verify(algorithm, signed, &made)) {
        // Where no key has its name, it may be of one that is newer than the set.
        let unknown_key = kid.is_none() || candidates.iter().all(|key| key.kid() != kid);
        return Err(Refused { says: "the token's signature was not made by a key of the JWKS".into(), unknown_key });
    }
    let Some(claims) = object(claims) else { return no("the token's claims are not base64url of a JSON object") };
    judge(claims, wanted, now)
}

/// What somebody has sent, for a sentence.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_default).collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}

/// For the fuzzer, which cannot sign: claims as they stand in a token, judged as if their signature were good.
pub(crate) fn judge_json(json: &[u8], wanted: &Wanted, now: u64) -> Result<Verified, Refused> {
    match serde_json::from_slice::<Once>(json) {
        Ok(claims) => judge(claims.0, wanted, now),
        Err(_) => no("these are no claims"),
    }
}

/// The claims of a token with a good signature.
fn judge(claims: Map<String, Value>, wanted: &Wanted, now: u64) -> Result<Verified, Refused> {
    let leeway = wanted.leeway_s;
    let seconds = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(at) if (0.0..=SECONDS_MAX).contains(&at) => Ok(Some(at)),
            _ => no(format!("the token's {name} is no time in seconds since 1970")),
        },
    };
    let Some(exp) = seconds("exp")? else { return no("the token says no time at which it ends (exp)") };
    let until = exp.floor() as u64 + leeway;
    if now >= until {
        return no(format!("the token has expired {} s ago (exp)", now.saturating_sub(exp.floor() as u64)));
    }
    let mut from = 0;
    for (name, says) in [("nbf", "is not valid yet"), ("iat", "was made in the future")] {
        if let Some(at) = seconds(name)? {
            let at = at.ceil() as u64;
            if at > now.saturating_add(leeway) {
                return no(format!("the token {says}, by {} s ({name}); do the clocks differ?", at - now));
            }
            from = from.max(at.saturating_sub(leeway));
        }
    }
    if let Some(issuer) = &wanted.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return no("the token is of another issuer than the route names (iss)");
    }
    let meant = match claims.get("aud") {
        None if wanted.audience.is_empty() => true,
        None => return no("the token says no audience, and the route asks for one (aud)"),
        Some(_) if wanted.audience.is_empty() => {
            return no("the token is for an audience (aud), and the route names none that it is");
        }
        Some(Value::String(one)) => wanted.audience.iter().any(|known| **known == **one),
        Some(Value::Array(list)) => {
            list.iter().filter_map(Value::as_str).any(|one| wanted.audience.iter().any(|known| **known == *one))
        }
        Some(_) => false,
    };
    if !meant {
        return no("the token is for another audience than the route names (aud)");
    }
    let name = match claims.get(&*wanted.caller) {
        Some(Value::String(name)) => name.clone(),
        // Some number their users.
        Some(Value::Number(number)) => number.to_string(),
        _ => return no(format!("the token has no \"{}\", the claim that names the caller", wanted.caller)),
    };
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return no(format!("the token's \"{}\" is not 1 to {NAME_BYTES_MAX} bytes", wanted.caller));
    }
    Ok(Verified { name, claims, from, until })
}
