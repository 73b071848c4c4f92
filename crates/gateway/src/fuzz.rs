//! What the fuzzer runs: heads and framed bodies that anybody can send.

use bytes::{Bytes, BytesMut};
use http::Method;

use crate::{
    auth::{
        jwks::KeySet,
        jwt,
        keys::KeyFile,
        source::{Content, jwks_uri},
    },
    forward::{self, Added},
    frame::{Decoder, Step},
    parse::{self, Length, RequestHead, Scanner},
    request_id::RequestId,
};

/// A request's head. What is forwarded of it is read again as the same request, and frames its body in one way.
pub fn request(input: &[u8]) {
    let Some(request) = read(input) else { return };
    let (id, mut out) = (RequestId::Made(*b"0123456789abcdef"), BytesMut::new());
    let added = Added {
        id: &id,
        client: &crate::proxy::Client { address: "192.0.2.1", ..Default::default() },
        traceparent: b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        attempt: 2,
        left_ms: Some(1000),
        endpoint: "up:80",
        tls: false,
        rewrite: None,
        path: None,
        known: forward::Known::default(),
    };
    forward::write_head(&request, &added, &mut out);
    let text = String::from_utf8_lossy(&out).to_ascii_lowercase();
    let lengths = text.matches("\r\ncontent-length:").count();
    let codings = text.matches("\r\ntransfer-encoding:").count();
    assert!(lengths + codings <= 1, "{text}");
    // Fewer than twelve fields are added to those that came.
    if request.fields.len() + 12 <= parse::FIELDS_MAX
        && let Some(again) = read(&out)
    {
        assert_eq!((&again.method, &again.path, again.length), (&request.method, &request.path, request.length));
        assert!(!again.authority.is_empty());
    } else {
        assert!(out.len() > parse::HEAD_BYTES_MAX || request.fields.len() + 12 > parse::FIELDS_MAX, "{text}");
    }
}

fn read(input: &[u8]) -> Option<RequestHead> {
    let mut scanner = Scanner::default();
    let end = scanner.end(input).ok()??;
    assert!(scanner.begin < end && end <= input.len());
    parse::request(Bytes::copy_from_slice(&input[scanner.begin..end])).ok()
}

/// A response's head, and however it is cut, the end is found at the same place.
pub fn response(input: &[u8]) {
    let whole = Scanner::default().end(input);
    let mut scanner = Scanner::default();
    let pieces = (1..=input.len()).map(|upto| scanner.end(&input[..upto])).find(|end| !matches!(end, Ok(None)));
    assert_eq!(pieces.unwrap_or(Ok(None)).ok(), whole.ok());
    if let Ok(Some(end)) = whole {
        let _ = parse::response(Bytes::copy_from_slice(&input[..end]), &Method::GET);
    }
}

/// A chunked body: however it is cut, the same bytes come out, and no more than went in.
pub fn chunks(input: &[u8]) {
    let decode = |cut: usize| {
        let (mut decoder, mut bytes, mut data) = (Decoder::new(Length::Chunked), BytesMut::new(), Vec::new());
        for piece in input.chunks(cut) {
            bytes.extend_from_slice(piece);
            loop {
                match decoder.step(&mut bytes) {
                    Ok(Step::Data(piece)) => data.extend_from_slice(&piece),
                    Ok(Step::Trailers(_)) => {}
                    Ok(Step::End) => return (data, true, false),
                    Ok(Step::More) => break,
                    Err(_) => return (data, false, true),
                }
            }
        }
        (data, false, false)
    };
    let whole = decode(input.len().max(1));
    assert!(whole.0.len() <= input.len());
    assert_eq!(decode(1), whole);
}

/// A certificate: whatever it says, what is forwarded of it is one line of printable text, and no longer than it may be.
pub fn certificate(input: &[u8]) {
    let peer = crate::tls::Peer::of(input, Some("spiffe://example.org/proxy"));
    assert!(peer.forwarded.bytes().all(|b| (0x20..=0x7e).contains(&b)), "{}", peer.forwarded);
    assert!(peer.forwarded.len() <= 16 * 1024, "{} bytes", peer.forwarded.len());
    if let Some(identity) = &peer.identity {
        assert!(identity.bytes().all(|b| b.is_ascii_graphic()), "{identity}");
    }
}

pub fn certificates() -> Vec<Vec<u8>> {
    vec![include_bytes!("../testdata/client.der").to_vec()]
}

/// The second at which the fuzzer's tokens are looked at.
const NOW: u64 = 1_800_000_000;

/// A key for the fuzzer's tokens, its JWKS and a token of it.
fn issuer() -> (String, String) {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    let key = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("every seed of 32 bytes is one");
    let public = BASE64.encode(key.public_key());
    let jwks =
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","alg":"EdDSA","use":"sig","x":"{public}"}}]}}"#);
    let part = |json: &str| BASE64.encode(json);
    let claims = r#"{"sub":"alice","iss":"i","aud":["a","b"],"iat":1799999990,"nbf":1799999990,"exp":1800000600.5,"scope":"x y"}"#;
    let signed = format!("{}.{}", part(r#"{"alg":"EdDSA","kid":"k","typ":"JWT"}"#), part(claims));
    let made = BASE64.encode(key.sign(signed.as_bytes()));
    (jwks, format!("{signed}.{made}"))
}

/// A token: none is taken but the one that was signed, byte for byte. Claims that anybody writes are judged without a panic.
pub fn token(input: &[u8]) {
    use std::sync::LazyLock;
    static ISSUER: LazyLock<(KeySet, String)> = LazyLock::new(|| {
        let (jwks, token) = issuer();
        (KeySet::read(jwks.as_bytes()).expect("it is a JWKS"), token)
    });
    let wanted = jwt::Wanted { caller: "sub".into(), audience: vec!["a".into()], leeway_s: 30, ..Default::default() };
    if jwt::verify(input, &ISSUER.0, &wanted, NOW).is_ok() {
        assert_eq!(input, ISSUER.1.as_bytes());
    }
    if let Ok(verified) = jwt::judge_json(input, &wanted, NOW) {
        assert!((verified.from..verified.until).contains(&NOW) && !verified.name.is_empty());
    }
}

const ISSUER: &str = "https://id.example";

/// A JWKS, or what an issuer says about itself. Whatever it holds, a token of another key is none of it, and no document is of an
/// issuer that it does not name.
pub fn jwks(input: &[u8]) {
    match jwks_uri(input, ISSUER) {
        Ok(_) => assert!(jwks_uri(input, "https://other.example").is_err()),
        Err(says) => assert!(says.len() < 120, "{says}"),
    }
    if let Ok(set) = KeySet::read(input) {
        assert!(set.count() > 0 && set.count() <= input.len());
        let _ = jwt::verify(issuer().1.as_bytes(), &set, &jwt::Wanted::default(), NOW);
    }
}

/// A file of API keys: no more keys than lines, and no error that repeats a word of it.
pub fn api_keys(input: &[u8]) {
    match KeyFile::read(input) {
        Ok(keys) => {
            assert!(keys.count() <= input.split(|b| *b == b'\n').count());
            assert!(keys.caller(b"").is_none());
        }
        Err(says) => assert!(says.len() < 120, "{says}"),
    }
}

pub fn tokens() -> Vec<Vec<u8>> {
    let claims = r#"{"sub":"alice","aud":"a","iat":1799999990,"exp":1800000600}"#;
    vec![issuer().1.into_bytes(), claims.as_bytes().to_vec()]
}

pub fn key_sets() -> Vec<Vec<u8>> {
    let rsa = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ","key_ops":["verify"]}]}"#;
    let document = format!(r#"{{"issuer":"{ISSUER}","jwks_uri":"{ISSUER}/keys","scopes_supported":["openid"]}}"#);
    vec![issuer().0.into_bytes(), rsa.as_bytes().to_vec(), document.into_bytes()]
}

pub fn key_files() -> Vec<Vec<u8>> {
    let line = "shop 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    vec![format!("# keys\n\n{line} # one\r\n{line}\nother {}", "0".repeat(64)).into_bytes()]
}

pub fn requests() -> Vec<Vec<u8>> {
    [
        "GET /a?b=c HTTP/1.1\r\nHost: a.example:80\r\nAccept: */*\r\n\r\n",
        "POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: [::1]:8080\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n",
        "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn responses() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\nRetry-After: 1\r\n\r\n",
        "HTTP/1.0 204\r\nConnection: close\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn bodies() -> Vec<Vec<u8>> {
    ["5\r\nhello\r\n0\r\n\r\n", "3;a=\"b\"\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}
