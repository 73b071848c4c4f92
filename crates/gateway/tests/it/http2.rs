//! HTTP/2 on either side, and gRPC with its trailers.

use std::{convert::Infallible, net::SocketAddr, sync::mpsc, thread};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Answer, Proxy, Upstream};

/// An upstream that speaks HTTP/2 and echoes bodies; for gRPC it ends with the status that the path names.
fn http2_upstream() -> SocketAddr {
    let (told, address) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let service =
                    service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(echo(request).await) });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), service).await });
            }
        });
    });
    address.recv().unwrap()
}

async fn echo(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    let got = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let is_grpc = parts.headers.get("content-type").is_some_and(|t| t == "application/grpc");
    if !is_grpc {
        let mut response = Response::new(Full::new(got).boxed());
        response.headers_mut().insert("x-version", HeaderValue::from_str(&format!("{:?}", parts.version)).unwrap());
        return response;
    }
    assert_eq!(parts.headers["te"], "trailers");
    if let Some(status) = parts.uri.path().strip_prefix("/refused/") {
        let mut response = Response::new(Full::new(Bytes::new()).boxed());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert("grpc-status", HeaderValue::from_str(status).unwrap());
        return response;
    }
    let mut trailers = HeaderMap::new();
    let status = parts.uri.path().rsplit('/').next().unwrap().to_owned();
    trailers.insert("grpc-status", HeaderValue::from_str(&status).unwrap());
    let frames = [Ok(Frame::data(got)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(frames))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// The head of an answer ended its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeadOnly(bool);

/// Sends one request over HTTP/2, and gives status, headers, body and trailers.
fn ask(proxy: SocketAddr, request: Request<Full<Bytes>>) -> (http::response::Parts, Bytes, Option<HeaderMap>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let (mut parts, body) = response.into_parts();
        parts.extensions.insert(HeadOnly(hyper::body::Body::is_end_stream(&body)));
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (parts, collected.to_bytes(), trailers)
    })
}

fn request(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    Request::post(format!("http://shop.example{path}")).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

#[test]
fn every_pair_of_protocols_is_one_path() {
    let new = http2_upstream();
    let old = Upstream::new(|_, connection| {
        while let Some((_, body)) = connection.read_request() {
            connection.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
            connection.write(&body);
        }
    });
    let to_old = Proxy::to(&[old.address]);
    let to_new = Proxy::to_endpoints(&[format!("h2c://{new}")], |_| {});
    let (parts, body, _) = ask(to_old.address, request("/a?b", "from new to old"));
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"from new to old"[..]));
    assert!(parts.headers.contains_key("x-request-id"));
    let seen = old.requests().pop().unwrap();
    assert!(seen.starts_with("POST /a?b HTTP/1.1\r\nhost: shop.example\r\n"), "{seen}");
    let (parts, body, _) = ask(to_new.address, request("/", "from new to new"));
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"from new to new"[..]));
    let answer =
        to_new.ask("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 15\r\n\r\nfrom old to new");
    assert_eq!(
        (answer.status, answer.body.as_str(), answer.field("x-version")),
        (200, "from old to new", Some("http/2.0"))
    );
}

#[test]
fn grpc_keeps_its_trailers_and_failures_of_ours_have_a_grpc_status() {
    let upstream = http2_upstream();
    // Nothing says that it speaks HTTP/2: gRPC always does.
    let proxy = Proxy::to(&[upstream]);
    let grpc = |path: &str| {
        let mut request = request(path, "\0\0\0\0\0");
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        request
    };
    let (parts, body, trailers) = ask(proxy.address, grpc("/shop.Orders/0"));
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"\0\0\0\0\0"[..]));
    assert_eq!(trailers.unwrap()["grpc-status"], "0");
    // grpcio takes an empty frame of data behind a status for a stream that broke off.
    let (parts, _, _) = ask(proxy.address, grpc("/refused/7"));
    assert_eq!((&parts.headers["grpc-status"], parts.extensions.get()), (&"7".parse().unwrap(), Some(&HeadOnly(true))));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Proxy::to(&[dead]);
    let (parts, _, _) = ask(proxy.address, grpc("/shop.Orders/0"));
    assert_eq!((parts.status.as_u16(), parts.extensions.get()), (200, Some(&HeadOnly(true))));
    assert_eq!(
        (&parts.headers["grpc-status"], &parts.headers["buttress-code"]),
        (&"14".parse().unwrap(), &"BT0906".parse().unwrap())
    );
}

#[test]
fn requests_beside_each_other_on_one_connection_do_not_wait_for_each_other() {
    let upstream = http2_upstream();
    let proxy = Proxy::to_endpoints(&[format!("h2c://{upstream}")], |_| {});
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bodies = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let each = (0..50).map(|_| {
            let mut sender = sender.clone();
            async move {
                let response = sender.send_request(request("/", "x")).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            }
        });
        futures::future::join_all(each).await
    });
    assert!(bodies.len() == 50 && bodies.iter().all(|body| &body[..] == b"x"));
    assert_eq!(Answer::parse("").status, 0);
}
