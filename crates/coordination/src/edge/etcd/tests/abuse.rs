//! Connections that abuse HTTP/2: each is ended or held back, and others are served meanwhile and afterwards.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// A header without compression.
fn header(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// The head of a call.
fn head(path: &str) -> Vec<u8> {
    let path = [&[0x04, path.len() as u8], path.as_bytes()].concat();
    [&[0x83, 0x86][..], &path, &[0x01, 1, b'x'], &header("content-type", "application/grpc"), &header("te", "trailers")]
        .concat()
}

/// A connection that has said hello.
async fn open(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(&world.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Sends until the peer does not take it any more, and waits for the end of the connection.
async fn ends(what: &str, mut stream: TcpStream, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) {
    let (mut reader, mut writer) = stream.split();
    let write = async {
        for piece in pieces {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
        // All of it was taken: it must end all the same.
        futures::future::pending::<()>().await;
    };
    let read = async {
        let mut scratch = [0; 4096];
        while reader.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
    };
    soon(what, async {
        tokio::select! {
            () = write => {}
            () = read => {}
        }
    })
    .await;
}

async fn serves(world: &World) {
    let channel = Channel::connect(&world.address).await.expect("it listens");
    let request = pb::RangeRequest { key: bytes("k"), ..Default::default() };
    let answer = soon("an answer to another client", async { KvClient::new(channel).range(request).await }).await;
    assert_eq!(said(answer), "ok");
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_end_the_connection() {
    let world = World::start().await;
    let calls = (0..200_000u32).map(|n| {
        let stream = 2 * n + 1;
        let head = head("/etcdserverpb.KV/Range");
        [frame(HEADERS, END_HEADERS, stream, &head), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
    });
    ends("the end of a rapid reset", open(&world).await, calls).await;
    serves(&world).await;
}

#[tokio::test]
async fn a_head_that_never_ends_ends_the_connection() {
    let world = World::start().await;
    let first = frame(HEADERS, 0, 1, &head("/etcdserverpb.KV/Range"));
    let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &header("x", &"y".repeat(120))), 200_000);
    ends("the end of a flood of continuations", open(&world).await, std::iter::once(first).chain(more)).await;
    // Empty ones do not grow the head, and are not taken for ever either.
    let first = frame(HEADERS, 0, 1, &head("/etcdserverpb.KV/Range"));
    let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, &[]), 2_000_000);
    ends("the end of a flood of empty continuations", open(&world).await, std::iter::once(first).chain(more)).await;
    serves(&world).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let world = World::start().await;
    let request = |headers: usize| {
        let mut request = tonic::Request::new(pb::RangeRequest { key: bytes("k"), ..Default::default() });
        for n in 0..headers {
            let name = format!("x-{n}").parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>().unwrap();
            request.metadata_mut().insert(name, "y".repeat(1000).parse().unwrap());
        }
        request
    };
    assert_eq!(said(world.kv().range(request(8)).await), "ok");
    assert!(soon("a refusal", world.kv().range(request(60))).await.is_err(), "60 kB of headers");
    // Whether the connection lives on is the transport's choice; others do.
    serves(&world).await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_the_connection() {
    let world = World::start().await;
    let large = [&[0xff, 0xff, 0xff, DATA, 0][..], &1u32.to_be_bytes(), &vec![0; 70_000]].concat();
    for (what, bytes) in [
        ("a frame of 16 MiB", large),
        ("data of a stream that is not open", frame(DATA, 0, 9, b"x")),
        ("a stream with an even number", frame(HEADERS, END_HEADERS, 2, &head("/etcdserverpb.KV/Range"))),
        ("a window that overflows", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes()).repeat(2)),
        ("settings of a wrong size", frame(SETTINGS, 0, 0, &[1, 2, 3])),
        ("a ping of a wrong size", frame(PING, 0, 0, &[1])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("a head that is no HPACK", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0xff, 0xff])),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, is this TLS?\r\n\r\n".to_vec()),
    ] {
        ends(what, open(&world).await, std::iter::once(bytes)).await;
    }
    serves(&world).await;
}

#[tokio::test]
async fn floods_of_pings_and_settings_hold_nobody_else_up() {
    let world = World::start().await;
    for flood in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])] {
        let mut stream = open(&world).await;
        // Nobody reads the answers, so the edge stops to read at some point, and this would wait for ever.
        let flooding = tokio::spawn(async move {
            loop {
                if stream.write_all(&flood.repeat(100)).await.is_err() {
                    return;
                }
            }
        });
        for _ in 0..20 {
            serves(&world).await;
        }
        flooding.abort();
    }
}

#[tokio::test]
async fn a_message_that_is_not_one_is_refused() {
    let world = World::start().await;
    for (what, body) in [
        ("cut off", &[0, 0, 0, 0, 9, 1][..]),
        ("compressed with nothing", &[1, 0, 0, 0, 1, 1]),
        ("no protobuf", &[0, 0, 0, 0, 2, 0xff, 0xff]),
        ("a length that lies", &[0, 0x7f, 0xff, 0xff, 0xff]),
    ] {
        let mut stream = open(&world).await;
        let head = frame(HEADERS, END_HEADERS, 1, &head("/etcdserverpb.KV/Put"));
        stream.write_all(&[head, frame(DATA, END_STREAM, 1, body)].concat()).await.unwrap();
        // The answer is a status in trailers, and its number is not 0.
        let mut answer = Vec::new();
        soon(what, async {
            let mut scratch = [0; 4096];
            while !answer.windows(9).any(|frame: &[u8]| frame[3] == HEADERS && frame[4] & END_STREAM != 0) {
                let read = stream.read(&mut scratch).await.unwrap();
                assert!(read > 0, "{what}: the connection was closed");
                answer.extend_from_slice(&scratch[..read]);
            }
        })
        .await;
    }
    assert_eq!(world.local.with(|machine| machine.revision().0), 1, "nothing was written");
    serves(&world).await;
}

/// Reads frames until one is wanted; `None` where the connection ends before.
async fn until(stream: &mut TcpStream, mut wanted: impl FnMut(u8, u8, u32, &[u8]) -> bool) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        if wanted(head[3], head[4], u32::from_be_bytes(head[5..].try_into().unwrap()), &payload) {
            return Some(payload);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_a_ping_is_cut_off() {
    let world = World::start().await;
    let mut stream = open(&world).await;
    let asked = until(&mut stream, |kind, flags, _, _| kind == PING && flags == 0).await.expect("it is asked first");
    // As long as it answers it may stay.
    stream.write_all(&frame(PING, 1, 0, &asked)).await.unwrap();
    until(&mut stream, |kind, flags, _, _| kind == PING && flags == 0).await.expect("it is asked again");
    assert_eq!(until(&mut stream, |_, _, _, _| true).await, None, "and cut off without an answer");
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_a_large_answer() {
    let world = World::start().await;
    let value = "v".repeat(1_400_000);
    world.put("large", &value).await;
    let mut stream = open(&world).await;
    let message = pb::RangeRequest { key: bytes("large"), ..Default::default() };
    let message = prost::Message::encode_to_vec(&message);
    let body = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    // The body comes in two pieces, so that it is put together.
    let (first, second) = body.split_at(4);
    for bytes in [
        frame(HEADERS, END_HEADERS, 1, &head("/etcdserverpb.KV/Range")),
        frame(DATA, 0, 1, first),
        frame(DATA, END_STREAM, 1, second),
    ] {
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut came = Vec::new();
    soon("a large answer", async {
        loop {
            let ended = std::cell::Cell::new(false);
            let data = until(&mut stream, |kind, flags, id, _| {
                ended.set(kind == HEADERS && flags & END_STREAM != 0);
                id == 1 && (kind == DATA || ended.get())
            });
            let data = data.await.expect("the connection lives");
            if ended.get() {
                return;
            }
            came.extend_from_slice(&data);
            // Room for as much again, and never for more than a window.
            let room = (data.len() as u32).to_be_bytes();
            let more = [frame(WINDOW_UPDATE, 0, 0, &room), frame(WINDOW_UPDATE, 0, 1, &room)].concat();
            stream.write_all(&more).await.unwrap();
        }
    })
    .await;
    let answer = <pb::RangeResponse as prost::Message>::decode(&came[5..]).unwrap();
    assert_eq!(answer.kvs[0].value, value);
}

#[tokio::test]
async fn a_call_that_is_reset_is_dropped_with_its_place_in_a_line() {
    use crate::pb::v3lockpb as lock;
    let world = World::start().await;
    let held = lock::LockRequest { name: bytes("door"), lease: 0 };
    let key = world.lock().lock(held).await.unwrap().into_inner().key;
    let mut stream = open(&world).await;
    let message = prost::Message::encode_to_vec(&lock::LockRequest { name: bytes("door"), lease: 0 });
    let body = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let call = [frame(HEADERS, END_HEADERS, 1, &head("/v3lockpb.Lock/Lock")), frame(DATA, END_STREAM, 1, &body)];
    stream.write_all(&call.concat()).await.unwrap();
    let waiting = async || {
        let request = pb::RangeRequest { key: bytes("door/"), range_end: end_of("door/"), ..Default::default() };
        world.kv().range(request).await.unwrap().into_inner().kvs.len()
    };
    soon("a second place in the line", async {
        while waiting().await < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stream.write_all(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await.unwrap();
    soon("the place is given up", async {
        while waiting().await > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.lock().unlock(lock::UnlockRequest { key }).await.unwrap();
}
