//! What it costs to know who calls, in nanoseconds for each request, on one core.
//!
//!     cargo run --release -p buttress-gateway --example auth_cost
//!
//! Each line is the best of five rounds. A head is read before the clock starts; with a remembered token the rest is a
//! SHA-256 of the token, a look-up, and the rules.

use std::{hint::black_box, sync::Arc, time::Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use buttress_gateway::{
    auth::{Gate, Tokens, source::Sources},
    parse::{self, RequestHead},
};
use bytes::Bytes;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::json;

const NOW: u64 = 1_800_000_000;

fn request(field: &str) -> RequestHead {
    let head = format!(
        "GET /orders/17 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8\r\nAccept: */*\r\n{field}\r\n\r\n"
    );
    parse::request(Bytes::from(head)).expect("it is a request")
}

fn best(what: &str, rounds: u32, mut call: impl FnMut()) {
    let mut least = f64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        (0..rounds).for_each(|_| call());
        least = least.min(began.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
    }
    println!("{what:44} {least:9.0} ns");
}

fn main() {
    let folder = std::env::temp_dir().join(format!("buttress-auth-cost-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("the temporary directory can be written");
    let random = SystemRandom::new();
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("keys can be made");
    let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).expect("it is one");
    let ed = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("every seed is a key");
    let point = &p256.public_key().as_ref()[1..];
    let jwks = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "p", "x": BASE64.encode(&point[..32]), "y": BASE64.encode(&point[32..])},
        {"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": BASE64.encode(ed.public_key().as_ref())},
    ]});
    let digest = ring::digest::digest(&ring::digest::SHA256, b"0123456789abcdef0123456789abcdef0123456789abcdef");
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let (keys, set) = (folder.join("keys"), folder.join("jwks"));
    std::fs::write(&keys, format!("shop {hex}\n")).expect("a file can be written");
    std::fs::write(&set, jwks.to_string()).expect("a file can be written");
    let spec = json!({
        "api_keys": {"file": keys}, "jwt": {"jwks": set, "issuer": "https://id.example/realms/shop", "audience": "orders"},
        "allow": [{"caller": "shop"}, {"claims": {"scope": "orders:read"}, "method": "GET"}],
    });
    let sources = Sources::default();
    let gate =
        Gate::new(&serde_json::from_value(spec).expect("it is a spec"), &sources).expect("it can be carried out");
    std::fs::remove_dir_all(&folder).expect("it was made above");

    let claims = json!({
        "iss": "https://id.example/realms/shop", "sub": "4b0c1e3a-7f3e-4a58-9c3d-1f0a5b6c7d8e", "aud": ["orders", "account"],
        "iat": NOW, "exp": NOW + 300, "jti": "5f2d9b1c-2a5e-4a0f-8e57-6f4f6f1f9a10", "scope": "openid profile orders:read",
        "realm_access": {"roles": ["offline_access", "default-roles-shop", "clerk"]}, "preferred_username": "alice",
        "email": "alice@shop.example", "name": "Alice Example", "sid": "b6f1c1de-6f1e-4a9b-a9c1-0a6b0fd6a7c2",
    });
    let token = |alg: &str, kid: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let part = |value: &serde_json::Value| BASE64.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": alg, "kid": kid, "typ": "JWT"})), part(&claims));
        let made = BASE64.encode(sign(signed.as_bytes()));
        format!("{signed}.{made}")
    };
    let es256 = token("ES256", "p", &|m| p256.sign(&random, m).expect("it signs").as_ref().to_vec());
    let eddsa = token("EdDSA", "e", &|m| ed.sign(m).as_ref().to_vec());
    println!("a token of {} bytes", es256.len());
    let none: Option<&Arc<str>> = None;
    let mut tokens = Tokens::default();
    let by_key = request("X-Api-Key: 0123456789abcdef0123456789abcdef0123456789abcdef");
    best("API key", 200_000, || drop(black_box(gate.check(&by_key, none, NOW, &mut tokens).expect("it passes"))));
    for (name, token) in [("ES256", &es256), ("EdDSA", &eddsa)] {
        let by_token = request(&format!("Authorization: Bearer {token}"));
        best(&format!("{name} token, remembered"), 200_000, || {
            drop(black_box(gate.check(&by_token, none, NOW, &mut tokens).expect("it passes")));
        });
        best(&format!("{name} token, for the first time"), 2_000, || {
            drop(black_box(gate.check(&by_token, none, NOW, &mut Tokens::default()).expect("it passes")));
        });
    }
    let nothing = request("X-Other: 1");
    best("nothing, refused", 200_000, || {
        black_box(gate.check(&nothing, none, NOW, &mut tokens).is_err());
    });
}
