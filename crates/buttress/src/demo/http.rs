//! A small HTTP client on hyper: connections are kept, every request has a deadline, and there is no TLS because the
//! demo's nodes listen on loopback.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use buttress_core::{Code, Error};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer that is read: a page of records.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Idle connections kept per address.
const IDLE_MAX: usize = 16;

/// An answer with its body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    pub fn ok(&self) -> bool {
        self.status.is_success()
    }

    /// The body as JSON; `Null` where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// What the server says went wrong.
    pub fn problem(&self) -> String {
        let json = self.json();
        let message = json["message"].as_str().map(str::to_owned);
        let message = message.unwrap_or_else(|| String::from_utf8_lossy(&self.body).chars().take(200).collect());
        format!("{}: {message}", self.status.as_u16())
    }
}

/// What to ask.
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a str,
    pub content_type: Option<&'a str>,
    pub gzip: bool,
    /// Fields beside those that every request has.
    pub fields: Vec<(&'static str, String)>,
    pub body: Bytes,
}

impl<'a> Ask<'a> {
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, content_type: None, gzip: false, fields: Vec::new(), body: Bytes::new() }
    }

    pub fn json(method: Method, path: &'a str, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            path,
            content_type: Some("application/json"),
            gzip: false,
            fields: Vec::new(),
            body: body.into(),
        }
    }

    pub fn bytes(method: Method, path: &'a str, body: Bytes) -> Self {
        Self { method, path, content_type: Some("application/octet-stream"), gzip: false, fields: Vec::new(), body }
    }
}

#[derive(Default)]
pub struct HttpClient {
    idle: Mutex<HashMap<String, Vec<SendRequest<Full<Bytes>>>>>,
}

impl HttpClient {
    /// # Errors
    /// `UNREACHABLE` where there is no connection, `TIMEOUT` where there is no answer within `deadline`.
    pub async fn ask(&self, address: &str, ask: &Ask<'_>, deadline: Duration) -> Result<Answer, Error> {
        match tokio::time::timeout(deadline, self.ask_once(address, ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(
                Code::TIMEOUT,
                format!("{} {} on {address} gave no answer within {} ms", ask.method, ask.path, deadline.as_millis()),
            )
            .retryable()),
        }
    }

    async fn ask_once(&self, address: &str, ask: &Ask<'_>) -> Result<Answer, Error> {
        let unreachable = |problem: String| {
            Error::new(Code::UNREACHABLE, format!("{} {} on {address}: {problem}", ask.method, ask.path)).retryable()
        };
        // A kept connection may have been closed meanwhile; that shows as an error before anything was sent, so the
        // loop ends at the latest with a new connection.
        let mut sender = loop {
            let kept = self.idle.lock().expect("no panic under this lock").get_mut(address).and_then(Vec::pop);
            match kept {
                Some(mut sender) => {
                    if sender.ready().await.is_ok() {
                        break sender;
                    }
                }
                None => {
                    let stream = TcpStream::connect(address).await.map_err(|e| unreachable(e.to_string()))?;
                    stream.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
                    let (sender, connection) =
                        http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(e.to_string()))?;
                    // The driver ends with the connection; its error comes to us as the request's.
                    tokio::spawn(async move {
                        let _ = connection.await;
                    });
                    break sender;
                }
            }
        };
        let mut request = Request::builder().method(&ask.method).uri(ask.path).header(header::HOST, address);
        if let Some(content_type) = ask.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if ask.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        for (name, value) in &ask.fields {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(ask.body.clone())).map_err(|e| unreachable(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| unreachable(e.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| unreachable(format!("while reading the answer: {e}")))?
            .to_bytes();
        let mut idle = self.idle.lock().expect("no panic under this lock");
        let kept = idle.entry(address.to_owned()).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(sender);
        }
        Ok(Answer { status, body })
    }
}
