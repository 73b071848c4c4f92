//! One HTTP/2 connection that carries the generated gRPC clients: for tests, and for whoever speaks to an etcd without
//! TLS.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tonic::{body::Body, codegen::Service};

/// How often a connection with running calls is probed, so that a stream from a peer that is gone does not wait for ever. An
/// etcd hangs up on clients that probe more than once in five seconds.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_ANSWER_MAX: Duration = Duration::from_secs(10);

/// A connection; clones share it, and its streams are independent of each other.
#[derive(Clone, Debug)]
pub struct Channel {
    sender: http2::SendRequest<Body>,
    authority: String,
}

impl Channel {
    /// Connects to `HOST:PORT`. The connection ends with the last clone.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PROBE_EVERY)
            .keep_alive_timeout(PROBE_ANSWER_MAX)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(std::io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to an etcd ended");
            }
        });
        Ok(Self { sender, authority: address.to_owned() })
    }

    /// The other side has hung up, or does not answer any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder().scheme("http").authority(self.authority.as_str()).path_and_query(path).build();
        *request.uri_mut() = uri.expect("a call has a path, and we have connected to the authority");
        Box::pin(self.sender.send_request(request))
    }
}
