//! Beside the `h2` crate's client: what the two say to each other is what each of them was told.

use std::{collections::HashMap, future::poll_fn};

use buttress_http2::{Event, Options, Server};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Answers every request with its own path and body: small ones at once, others piece by piece.
async fn echo(mut stream: DuplexStream, streams_max: u32) {
    let mut server = Server::<Vec<u8>>::new(Options {
        streams_max,
        stream_window_bytes: 70_000,
        connection_window_bytes: 100_000,
        head_bytes_max: 16 * 1024,
        repeated: &[("grpc-status", "0")],
    });
    let (mut kept, mut paths, mut scratch) = (Vec::new(), HashMap::new(), [0; 5000]);
    loop {
        while !server.output().is_empty() {
            let output = server.output().to_vec();
            if stream.write_all(&output).await.is_err() {
                return;
            }
            server.wrote(output.len());
        }
        let Ok(read @ 1..) = stream.read(&mut scratch).await else { return };
        kept.extend_from_slice(&scratch[..read]);
        server.begin();
        let mut input = &kept[..];
        while let Some(event) = server.next(&mut input).expect("h2 keeps to the protocol") {
            let ended = match event {
                Event::Head { stream, ended } => {
                    paths.insert(stream, server.head().get(b":path").expect("it was checked").to_vec());
                    server.accept(stream, Vec::new());
                    ended.then_some(stream)
                }
                Event::Data { stream, bytes, ended } => {
                    server.with(stream).expect("it was accepted").extend_from_slice(bytes);
                    server.release(stream, bytes.len());
                    ended.then_some(stream)
                }
                Event::Trailers { stream } => Some(stream),
                Event::Reset { stream, .. } => {
                    paths.remove(&stream);
                    None
                }
            };
            if let Some(stream) = ended {
                let body = std::mem::take(server.with(stream).expect("it was accepted"));
                let path = paths.remove(&stream).expect("it had a head");
                let fields = [(&b"x-path"[..], &path[..])];
                if body.len() < 1000 {
                    server.answer(stream, 200, &fields, &[&body], &[(b"grpc-status", b"0")]);
                } else {
                    server.respond(stream, 202, fields, false);
                    body.chunks(30_000).for_each(|piece| server.data(stream, Bytes::copy_from_slice(piece)));
                    server.trailers(stream, [(&b"grpc-status"[..], &b"0"[..]), (b"x-more", b"yes")]);
                }
            }
        }
        let taken = kept.len() - input.len();
        kept.drain(..taken);
    }
}

async fn call(client: h2::client::SendRequest<Bytes>, number: usize, bytes: usize) {
    let body: Vec<u8> = (0..bytes).map(|at| (at * 31 + number) as u8).collect();
    let path = format!("/call/{number}?{}", "q".repeat(number % 300));
    let mut request = http::Request::builder().method("POST").uri(format!("http://host{path}"));
    for field in 0..number % 7 {
        request = request.header(format!("x-field-{field}"), format!("value {}", number * field));
    }
    let mut client = client.ready().await.unwrap();
    let (response, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let sending = async {
        let mut rest = Bytes::from(body.clone());
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let room = poll_fn(|context| send.poll_capacity(context)).await.expect("it is open").unwrap();
            send.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
        }
        match number % 3 {
            0 => send.send_trailers(http::HeaderMap::new()).unwrap(),
            _ => send.send_data(Bytes::new(), true).unwrap(),
        }
    };
    let receiving = async {
        let response = response.await.unwrap();
        assert_eq!(response.headers()["x-path"], path);
        assert_eq!(response.status(), if bytes < 1000 { 200 } else { 202 });
        let (mut back, mut came) = (response.into_body(), Vec::new());
        while let Some(piece) = back.data().await {
            let piece = piece.unwrap();
            back.flow_control().release_capacity(piece.len()).unwrap();
            came.extend_from_slice(&piece);
        }
        let trailers = back.trailers().await.unwrap().expect("there are some");
        assert_eq!(trailers["grpc-status"], "0");
        assert!(came == body, "call {number} of {bytes} bytes came back otherwise");
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn calls_of_all_sizes_come_back_as_they_went() {
    for (window, table) in [(65_535, 4096), (1000, 0), (1_000_000, 100)] {
        let (near, far) = tokio::io::duplex(8192);
        let serving = tokio::spawn(echo(far, 10));
        let (client, connection) = h2::client::Builder::new()
            .initial_window_size(window)
            .header_table_size(table)
            .handshake::<_, Bytes>(near)
            .await
            .unwrap();
        let driving = tokio::spawn(connection);
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..120 {
            let bytes = [0, 1, 5, 999, 1000, 16_384, 16_385, 70_001, 150_000][number % 9];
            calls.spawn(call(client.clone(), number, bytes));
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
        drop(client);
        driving.await.unwrap().unwrap();
        serving.await.unwrap();
    }
}
