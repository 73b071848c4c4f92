//! A small HTTP client for the command line and for watching our own child processes.

use std::{sync::Arc, time::Duration};

use buttress_bridge::secure::{Connector, Dial, Trouble, Wire};
use buttress_core::{Code, Error};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

/// A command may wait for a commit through a leader change.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Between two pieces of a long answer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Answers are lists for people; a component's bytes are only ever sent.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Client {
    authority: String,
    /// For a server that is reached over TLS.
    connector: Option<Arc<Connector>>,
}

impl Client {
    /// Takes `http://HOST:PORT`.
    ///
    /// # Errors
    /// `CONFIG` for anything else.
    pub fn new(server: &str) -> Result<Self, Error> {
        let authority = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        if authority.contains('/') || !authority.contains(':') {
            return Err(Error::new(Code::CONFIG, format!("\"{server}\" is not a server address"))
                .hint("for example --server http://127.0.0.1:7380"));
        }
        Ok(Self { authority: authority.to_owned(), connector: None })
    }

    /// The server at `HOST:PORT`, reached as the connector does it.
    pub fn over(address: String, connector: Arc<Connector>) -> Self {
        Self { authority: address, connector: Some(connector) }
    }

    pub fn address(&self) -> &str {
        &self.authority
    }

    async fn connect(&self) -> Result<(Wire, Trouble), Error> {
        let wire = match &self.connector {
            Some(connector) => {
                let wire = connector.connect(&self.authority, CONNECT_DEADLINE).await;
                wire.map_err(|dial| match dial {
                    Dial::Refused(error) => error,
                    Dial::Unreachable(why) => self.unreachable(&why),
                })?
            }
            None => {
                let connecting = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(&self.authority));
                let stream = connecting.await.map_err(|_| self.unreachable(&"no answer"))?;
                Wire::Plain(stream.map_err(|e| self.unreachable(&e))?)
            }
        };
        let trouble = wire.trouble();
        Ok((wire, trouble))
    }

    fn unreachable(&self, what: &dyn std::fmt::Display) -> Error {
        Error::new(Code::UNREACHABLE, format!("http://{} cannot be reached: {what}", self.authority))
            .hint("is it running? name it with --server or BUTTRESS_SERVER; `buttress dev` prints the addresses")
            .retryable()
    }

    pub async fn get(&self, path: &str) -> Result<serde_json::Value, Error> {
        json(self.send(Method::GET, path, &[], Bytes::new()).await?)
    }

    pub async fn send_json(
        &self,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value, Error> {
        let body = serde_json::to_vec(body).expect("a JSON value is serialisable");
        json(self.send(method, path, &[("content-type", "application/json")], body.into()).await?)
    }

    pub async fn send_bytes(&self, method: Method, path: &str, body: Bytes) -> Result<serde_json::Value, Error> {
        json(self.send(method, path, &[("content-type", "application/octet-stream")], body).await?)
    }

    /// Hands the answer's body over piece by piece, as it comes.
    ///
    /// # Errors
    /// `UNREACHABLE`, also where the answer breaks off or pauses for too long; otherwise what the server or `each` says.
    pub async fn download(&self, path: &str, mut each: impl FnMut(Bytes) -> Result<(), Error>) -> Result<(), Error> {
        let (mut body, connection) = self.begin(Method::GET, path, &[], Bytes::new()).await?;
        while let Some(piece) = self.piece(&mut body).await? {
            each(piece)?;
        }
        connection.abort();
        Ok(())
    }

    /// Posts, and hands the answer over piece by piece until it ends or `each` wants no more.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub async fn stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &serde_json::Value,
        mut each: impl FnMut(Bytes) -> bool,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(body).expect("a JSON value is serialisable");
        let (mut body, connection) = self.begin(Method::POST, path, headers, body.into()).await?;
        while let Some(piece) = self.piece(&mut body).await? {
            if !each(piece) {
                break;
            }
        }
        connection.abort();
        Ok(())
    }

    async fn begin(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Incoming, JoinHandle<hyper::Result<()>>), Error> {
        let (stream, trouble) = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(&e))?;
        let connection = tokio::spawn(connection);
        let paused = |_| self.unreachable(&"nothing came for too long");
        let mut request = Request::builder().method(method).uri(path).header("host", &self.authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Error::new(Code::BAD_REQUEST, format!("\"{path}\" is not a path: {error}")))?;
        let answer = tokio::time::timeout(REQUEST_DEADLINE, sender.send_request(request));
        let answer = answer.await.map_err(paused)?;
        let answer = answer.map_err(|e| trouble.explain(&self.authority).unwrap_or_else(|| self.unreachable(&e)))?;
        let status = answer.status();
        let body = answer.into_body();
        if status.is_success() {
            return Ok((body, connection));
        }
        let said = http_body_util::Limited::new(body, ANSWER_BYTES_MAX);
        let said = tokio::time::timeout(REQUEST_DEADLINE, said.collect()).await.map_err(paused)?;
        Err(refused(status.as_u16(), &said.map_err(|e| self.unreachable(&e))?.to_bytes()))
    }

    async fn piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, Error> {
        let paused = |_| self.unreachable(&"nothing came for too long");
        loop {
            let Some(frame) = tokio::time::timeout(PAUSE_MAX, body.frame()).await.map_err(paused)? else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| {
                Error::new(Code::UNREACHABLE, format!("http://{} broke the answer off: {error}", self.authority))
                    .hint("the node has stopped, or the connection is bad; try again, or another node")
                    .retryable()
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// Sends a request on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    /// `UNREACHABLE`; otherwise what the server says, with its code and hint.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let unreachable = |what: &dyn std::fmt::Display| self.unreachable(what);
        let exchange = async {
            let (stream, trouble) = self.connect().await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
            let connection = tokio::spawn(connection);
            let mut request = Request::builder().method(method).uri(path).header("host", &self.authority);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request
                .body(Full::new(body))
                .map_err(|error| Error::new(Code::BAD_REQUEST, format!("\"{path}\" is not a path: {error}")))?;
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|e| trouble.explain(&self.authority).unwrap_or_else(|| unreachable(&e)))?;
            let status = answer.status();
            let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(|e| unreachable(&e))?.to_bytes();
            connection.abort();
            if status.is_success() { Ok(body) } else { Err(refused(status.as_u16(), &body)) }
        };
        tokio::time::timeout(REQUEST_DEADLINE, exchange)
            .await
            .unwrap_or_else(|_| Err(unreachable(&"no answer in time")))
    }
}

fn json(body: Bytes) -> Result<serde_json::Value, Error> {
    if body.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_slice(&body)
        .map_err(|error| Error::new(Code::UNREACHABLE, format!("the answer is not JSON: {error}")))
}

/// A name as one segment of a path: whatever is typed reaches the server, which says what is wrong with it.
pub fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn known_code(text: &str) -> Option<Code> {
    Code::ALL.iter().map(|(code, _)| *code).find(|known| known.0 == text)
}

/// Gives the server's error back with its own code.
fn refused(status: u16, body: &[u8]) -> Error {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(|v| v.as_str());
    let mut error = match (text("code").and_then(known_code), text("message")) {
        (Some(code), Some(message)) => Error::new(code, message),
        (None, Some(message)) => one_line(message),
        (_, None) => {
            let body = String::from_utf8_lossy(&body[..body.len().min(200)]);
            Error::new(Code::BAD_REQUEST, format!("the server answered {status}: {body}"))
        }
    };
    error.retryable = status == 503 || status == 429;
    match text("hint") {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Reads `MESSAGE [CODE]; hint: HINT`, the form that errors have where a protocol leaves one text for everything.
pub fn one_line(text: &str) -> Error {
    let (said, hint) = match text.split_once("; hint: ") {
        Some((said, hint)) => (said, Some(hint)),
        None => (text, None),
    };
    let coded = said.strip_suffix(']').and_then(|said| said.rsplit_once(" [")).and_then(|(message, code)| {
        let code = known_code(code)?;
        Some(Error::new(code, message))
    });
    let error = coded.unwrap_or_else(|| Error::new(Code::BAD_REQUEST, said));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_server_s_error_keeps_its_code_and_hint() {
        let ours = refused(404, br#"{"code":"BT0301","message":"there is no topic \"t\"","hint":"create it"}"#);
        assert_eq!(ours, Error::new(Code::TOPIC_UNKNOWN, "there is no topic \"t\"").hint("create it"));
        let proxy =
            refused(404, br#"{"error_code":40401,"message":"there is no topic \"t\" [BT0301]; hint: create it"}"#);
        assert_eq!(proxy, ours);
        let busy = refused(503, br#"{"error_code":50003,"message":"no leader is known [BT0101]"}"#);
        assert_eq!(busy, Error::new(Code::NO_LEADER, "no leader is known").retryable());
        for foreign in [&b"<html>"[..], b"", br#"{"message":"teapot [X]"}"#, b"\xff\xfe"] {
            assert_eq!(refused(418, foreign).code, Code::BAD_REQUEST);
        }
    }

    #[test]
    fn any_name_is_one_segment() {
        assert_eq!(segment("a-b.c_1~"), "a-b.c_1~");
        assert_eq!(segment("a b/c?d#\u{e4}"), "a%20b%2Fc%3Fd%23%C3%A4");
    }
}
