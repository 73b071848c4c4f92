//! One client's way to the nodes. It tells apart what the history must tell apart: a request that certainly never left, and
//! one that got no answer.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest answer is a page of records or keys.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

#[derive(Debug)]
pub enum Reply {
    /// No byte of it left: certainly nothing happened.
    NotSent,
    /// It may have happened.
    NoAnswer,
    Answer {
        status: u16,
        json: Value,
    },
}

/// A client with one connection at a time.
#[derive(Default)]
pub struct Caller {
    open: Option<(String, SendRequest<Full<Bytes>>)>,
}

impl Caller {
    pub async fn get(&mut self, address: &str, path: &str, deadline: Duration) -> Reply {
        self.ask(address, Method::GET, path, None, deadline).await
    }

    pub async fn post(&mut self, address: &str, path: &str, body: &Value, deadline: Duration) -> Reply {
        self.ask(address, Method::POST, path, Some(body.to_string().into()), deadline).await
    }

    pub async fn ask(
        &mut self,
        address: &str,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        deadline: Duration,
    ) -> Reply {
        let Some(mut sender) = self.connected(address).await else { return Reply::NotSent };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, address);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).expect("our own paths are valid");
        let exchange = async {
            let answer = match sender.send_request(request).await {
                Ok(answer) => answer,
                // The connection had ended before the request was taken up.
                Err(error) if error.is_canceled() => return Reply::NotSent,
                Err(_) => return Reply::NoAnswer,
            };
            let status = answer.status().as_u16();
            match Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await {
                Ok(body) => {
                    Reply::Answer { status, json: serde_json::from_slice(&body.to_bytes()).unwrap_or_default() }
                }
                Err(_) => Reply::NoAnswer,
            }
        };
        let reply = tokio::time::timeout(deadline, exchange).await.unwrap_or(Reply::NoAnswer);
        if matches!(reply, Reply::Answer { .. }) {
            self.open = Some((address.to_owned(), sender));
        }
        reply
    }

    async fn connected(&mut self, address: &str) -> Option<SendRequest<Full<Bytes>>> {
        if let Some((at, mut sender)) = self.open.take()
            && at == address
            && sender.ready().await.is_ok()
        {
            return Some(sender);
        }
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the sender, or with the node.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Some(sender)
    }
}
