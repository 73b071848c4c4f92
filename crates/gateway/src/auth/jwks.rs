//! The public keys of an issuer: a JSON Web Key Set (RFC 7517) in, keys that check signatures out.
//!
//! **Why by hand on `ring`.** What goes wrong with tokens goes wrong in the choice of key and algorithm, not in the
//! arithmetic: a token whose header says `HS256` checked with a public key as the secret, `none`, a key from the token's own
//! header. Here a key knows by its own type which algorithms it can check, a symmetric key cannot be held at all, and what a
//! header says can only rule keys out.
//!
//! | key | checks |
//! |---|---|
//! | RSA, 2048 to 8192 bits | RS256, RS384, RS512, PS256, PS384, PS512; only the one that its `alg` names, where it has one |
//! | EC on P-256, P-384 | ES256, ES384 |
//! | OKP with Ed25519 | EdDSA |
//!
//! Keys of other kinds, for encryption, or that are not whole are left out (RFC 7517, section 5). A set without one key that
//! is left is refused, so that a page of an error never takes the place of keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use ring::signature;
use serde_json::Value;

use super::source::Content;

/// Keys of a set; large issuers have about ten.
const KEYS_MAX: usize = 128;
/// Keys that one token is tried with; more fit only where the token names none, which then is the issuer's mistake.
const TRIED_MAX: usize = 8;
/// Of the name of a key.
pub const KID_BYTES_MAX: usize = 256;

/// How a signature is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// By its name in headers and keys. None for `none`, for all with a shared secret, and for what nobody here can check.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            // RFC 9864 gives it its full name.
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }
}

enum Public {
    Rsa { n: Box<[u8]>, e: Box<[u8]> },
    P256([u8; 65]),
    P384([u8; 97]),
    Ed25519([u8; 32]),
}

pub struct Key {
    kid: Option<Box<str>>,
    only: Option<Algorithm>,
    public: Public,
}

/// Which keys a token may have been signed with.
pub enum Found<'a> {
    Keys(Vec<&'a Key>),
    /// The key that the token names is not of the set.
    Unknown,
    /// It is, but no key of it can have made a signature of this algorithm.
    Unfit,
}

pub struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    pub fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        // A key without a name may be any.
        let named = |key: &&Key| kid.is_none_or(|kid| key.kid.as_deref().is_none_or(|known| known == kid));
        let mut any = false;
        let named = self.keys.iter().filter(named).inspect(|_| any = true);
        let keys: Vec<&Key> = named.filter(|key| key.fits(algorithm)).take(TRIED_MAX).collect();
        match (keys.is_empty(), any) {
            (false, _) => Found::Keys(keys),
            (true, true) => Found::Unfit,
            (true, false) => Found::Unknown,
        }
    }
}

impl Key {
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let by_type = match self.public {
            Public::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Public::P256(_) => algorithm == Es256,
            Public::P384(_) => algorithm == Es384,
            Public::Ed25519(_) => algorithm == EdDsa,
        };
        by_type && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether this key made the signature.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], made: &[u8]) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        let unparsed = |way: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            signature::UnparsedPublicKey::new(way, key).verify(message, made)
        };
        match &self.public {
            Public::Rsa { n, e } => {
                let way = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return false,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(way, message, made)
            }
            Public::P256(point) => unparsed(&signature::ECDSA_P256_SHA256_FIXED, point),
            Public::P384(point) => unparsed(&signature::ECDSA_P384_SHA384_FIXED, point),
            Public::Ed25519(point) => unparsed(&signature::ED25519, point),
        }
        .is_ok()
    }

    /// None where it is a key for something else.
    fn read(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|for_what| for_what != "sig") {
            return None;
        }
        if let Some(operations) = key.get("key_ops")
            && !operations.as_array()?.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let kid = text("kid").map(Box::from);
        if text("kid").is_some_and(|kid| kid.len() > KID_BYTES_MAX) {
            return None;
        }
        let only = match key.get("alg") {
            Some(name) => Some(Algorithm::named(name.as_str()?)?),
            None => None,
        };
        let bytes = |name: &str| BASE64.decode(text(name)?).ok();
        let public = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let (n, e) = (number(bytes("n")?), number(bytes("e")?));
                // As `ring` will take them: anything else would fail with every token, and say so late.
                if !(256..=1024).contains(&n.len()) || e.is_empty() || e.len() > 4 {
                    return None;
                }
                Public::Rsa { n, e }
            }
            ("EC", Some("P-256")) => Public::P256(point(&bytes("x")?, &bytes("y")?)?),
            ("EC", Some("P-384")) => Public::P384(point(&bytes("x")?, &bytes("y")?)?),
            ("OKP", Some("Ed25519")) => Public::Ed25519(bytes("x")?.try_into().ok()?),
            _ => return None,
        };
        let key = Self { kid, only, public };
        // A key whose own words contradict each other checks nothing.
        only.is_none_or(|only| key.fits(only)).then_some(key)
    }
}

/// Without zeros in front, which some issuers write and RFC 7518 (section 2) forbids.
fn number(bytes: Vec<u8>) -> Box<[u8]> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].into()
}

/// An uncompressed point of a curve, as SEC 1 writes it. That it lies on the curve is looked at with each signature.
fn point<const N: usize>(x: &[u8], y: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    let side = (N - 1) / 2;
    if x.len() != side || y.len() != side {
        return None;
    }
    out[0] = 4;
    out[1..=side].copy_from_slice(x);
    out[side + 1..].copy_from_slice(y);
    Some(out)
}

impl Content for KeySet {
    /// A hundred RSA keys of 8192 bits with their certificates.
    const BYTES_MAX: usize = 1 << 20;
    const WHAT: &'static str = "JWKS";

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(bytes).map_err(|error| {
            // Not the error's own words: they could hold what stood in the file.
            format!("is not JSON, from line {} on", error.line())
        })?;
        let list = set.get("keys").and_then(Value::as_array).ok_or("has no list \"keys\", so it is no JWKS")?;
        if list.len() > KEYS_MAX {
            return Err(format!("holds {} keys, {KEYS_MAX} at most are taken", list.len()));
        }
        let keys: Vec<Key> = list.iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            let left_out = list.len();
            return Err(format!(
                "holds no public key that tokens can be checked with ({left_out} were left out): RSA of 2048 to 8192 bits, \
                 P-256, P-384 or Ed25519, for signatures"
            ));
        }
        Ok(Self { keys })
    }

    fn count(&self) -> usize {
        self.keys.len()
    }
}
