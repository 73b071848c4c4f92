//! One HTTP/2 connection that carries the generated gRPC clients, over TCP or whatever its caller has made safe.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Uri, uri::Scheme};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
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
    scheme: Scheme,
    /// Who is asking, as the server has it; a token of etcd's.
    token: Option<HeaderValue>,
}

impl Channel {
    /// Connects to `HOST:PORT`. The connection ends with the last clone.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, address, Scheme::HTTP).await
    }

    /// Speaks over a stream that is there already. `scheme`: HTTPS where that is a safe one.
    ///
    /// # Errors
    /// When it breaks.
    pub async fn over<S>(stream: S, authority: &str, scheme: Scheme) -> std::io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
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
        Ok(Self { sender, authority: authority.to_owned(), scheme, token: None })
    }

    /// The same connection, on which every call carries this token.
    pub fn with_token(self, token: HeaderValue) -> Self {
        Self { token: Some(token), ..self }
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
        let uri =
            Uri::builder().scheme(self.scheme.clone()).authority(self.authority.as_str()).path_and_query(path).build();
        *request.uri_mut() = uri.expect("a call has a path, and we have connected to the authority");
        if let Some(token) = &self.token {
            request.headers_mut().insert("token", token.clone());
        }
        Box::pin(self.sender.send_request(request))
    }
}
