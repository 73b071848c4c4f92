//! Entry points for fuzzers.

use crate::{
    Event, FRAME_BYTES_MAX, Options, PREFACE, Server, frame,
    hpack::{Decoder, Encoder, Head, TABLE_BYTES},
    huffman,
};

const HEAD_BYTES_MAX: usize = 4096;

/// Blocks of headers, one after the other into one table; each has its length in two bytes before it. What they say is
/// the same after it was encoded.
///
/// # Panics
/// Where it is not, or a table is larger than it may be.
pub fn fuzz_hpack(data: &[u8]) {
    let (mut rest, mut decoder, mut head) = (data, Decoder::default(), Head::default());
    let (mut encoder, mut again, mut same) = (Encoder::new(&[("te", "trailers")]), Decoder::default(), Head::default());
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (block, behind) = behind.split_at(behind.len().min(u16::from_be_bytes(*length).into()));
        rest = behind;
        if decoder.decode(block, &mut head, HEAD_BYTES_MAX).is_err() {
            return;
        }
        assert!(decoder.size() <= TABLE_BYTES);
        let size: usize = head.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        assert!(size <= HEAD_BYTES_MAX);
        let mut block = Vec::new();
        encoder.begin(&mut block);
        head.iter().for_each(|(name, value)| encoder.field(name, value, &mut block));
        again.decode(&block, &mut same, HEAD_BYTES_MAX).expect("we encoded it");
        assert!(head.iter().eq(same.iter()));
    }
}

/// A text and its Huffman code, in both directions.
///
/// # Panics
/// Where a text is not the same after it was encoded, or a code that was taken is not the only one.
pub fn fuzz_huffman(data: &[u8]) {
    let (mut code, mut text) = (Vec::new(), Vec::new());
    huffman::encode(data, &mut code);
    huffman::decode(&code, &mut text).expect("we encoded it");
    assert_eq!(text, data);
    let (mut told, mut again) = (Vec::new(), Vec::new());
    if huffman::decode(data, &mut told).is_ok() {
        huffman::encode(&told, &mut again);
        assert_eq!(again, data, "each text has one code");
    }
}

/// What a client sends behind its preface. The first byte says how it is cut: whether it comes whole or in pieces, the same
/// happens.
///
/// # Panics
/// Where that is not so, or what we send is no HTTP/2.
pub fn fuzz_connection(data: &[u8]) {
    let Some((cut, frames)) = data.split_first() else { return };
    let whole = run(frames, usize::MAX);
    let pieces = run(frames, usize::from(*cut).max(1));
    assert_eq!(whole, pieces);
}

/// The events of a connection whose requests are answered at once, and whether it failed.
fn run(frames: &[u8], cut: usize) -> (Vec<String>, bool) {
    let mut server = Server::<u32>::new(Options {
        streams_max: 8,
        stream_window_bytes: 4096,
        connection_window_bytes: 100_000,
        head_bytes_max: HEAD_BYTES_MAX,
        repeated: &[("content-type", "application/grpc"), ("grpc-status", "0")],
    });
    server.begin();
    let (mut events, mut kept, mut failed) = (Vec::new(), PREFACE.to_vec(), false);
    let mut pieces = frames.chunks(cut.min(frames.len().max(1)));
    'read: loop {
        let mut input = &kept[..];
        loop {
            match server.next(&mut input) {
                Ok(Some(event)) => {
                    events.push(format!("{event:?}"));
                    react(&mut server, &event);
                }
                Ok(None) if server.is_full() => drain(&mut server),
                Ok(None) => break,
                Err(_) => {
                    failed = true;
                    break 'read;
                }
            }
        }
        let taken = kept.len() - input.len();
        kept.drain(..taken);
        match pieces.next() {
            Some(piece) => kept.extend_from_slice(piece),
            None => break,
        }
    }
    drain(&mut server);
    assert!(server.len() <= 8);
    (events, failed)
}

/// Streams are answered by their number: with everything at once, piece by piece, with a reset, or not at all.
fn react(server: &mut Server<u32>, event: &Event<'_, u32>) {
    const TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
    const GOOD: (&[u8], &[u8]) = (b"grpc-status", b"0");
    match event {
        Event::Head { stream, .. } => {
            server.accept(*stream, *stream);
            match stream / 2 % 4 {
                0 => server.answer(*stream, 200, &[TYPE], &[b"hello, ", b"world"], &[GOOD]),
                1 => {
                    server.respond(*stream, 404, [TYPE], false);
                    server.data(*stream, vec![7; 40_000].into());
                    server.data(*stream, vec![7; 3].into());
                    server.trailers(*stream, [GOOD]);
                }
                _ => {}
            }
        }
        Event::Data { stream, bytes, ended } => {
            assert!(server.with(*stream).is_some_and(|with| with == stream));
            server.release(*stream, bytes.len());
            if *ended && stream / 2 % 4 > 1 {
                server.respond(*stream, 200, [], true);
            }
            // At the same places however the input is cut: whether an answer has left decides what comes of a stray frame.
            drain(server);
        }
        Event::Trailers { stream } => drop(server.abort(*stream, crate::Code::CANCEL)),
        Event::Reset { stream, with, .. } => assert_eq!(stream, with),
    }
}

/// Everything that is written is whole frames of a size that a peer takes.
fn drain(server: &mut Server<u32>) {
    loop {
        let output = server.output();
        if output.is_empty() {
            break;
        }
        let mut rest = output;
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            assert!(length <= FRAME_BYTES_MAX);
            rest = behind.get(length..).expect("frames are whole");
        }
        assert!(rest.is_empty());
        let written = output.len();
        server.wrote(written);
    }
    while server.next_drained().is_some() {}
}

/// A request's block, and one that relies on what the first put into the table.
fn request_blocks() -> [Vec<u8>; 2] {
    let mut first = vec![0x83, 0x86, 0x44];
    let mut path = Vec::new();
    huffman::encode(b"/etcdserverpb.KV/Put", &mut path);
    first.push(0x80 | path.len() as u8);
    first.extend_from_slice(&path);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("content-length", "12")] {
        first.push(0x40);
        for text in [name, value] {
            first.push(text.len() as u8);
            first.extend_from_slice(text.as_bytes());
        }
    }
    [first, vec![0x83, 0x86, 0xc1, 0xc0, 0xbf]]
}

/// Seeds of [`fuzz_connection`].
pub fn connections() -> Vec<Vec<u8>> {
    let [first, second] = request_blocks();
    let ends = frame::END_HEADERS | frame::END_STREAM;
    let frames: &[(u8, u8, u32, &[u8])] = &[
        (frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 16, 0, 0, 1, 0, 0, 1, 0]),
        (frame::WINDOW_UPDATE, 0, 0, &[0, 0, 100, 0]),
        (frame::HEADERS, frame::END_HEADERS, 1, &first),
        (frame::DATA, frame::END_STREAM, 1, b"hello, world"),
        (frame::HEADERS, ends, 3, &second),
        (frame::WINDOW_UPDATE, 0, 3, &[0, 1, 0, 0]),
        (frame::PING, 0, 0, b"whatever"),
        (frame::HEADERS, frame::WITH_PRIORITY, 5, &[0, 0, 0, 3, 9, second[0], second[1]]),
        (frame::CONTINUATION, frame::END_HEADERS, 5, &second[2..]),
        (frame::DATA, frame::PADDED, 5, &[3, 1, 2, 0, 0, 0]),
        (frame::HEADERS, ends, 5, &[0x00, 1, b'x', 1, b'y']),
        (frame::HEADERS, frame::END_HEADERS, 7, &second),
        (frame::RST_STREAM, 0, 7, &[0, 0, 0, 8]),
        (frame::PRIORITY, 0, 9, &[0, 0, 0, 1, 7]),
        (frame::GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let all: Vec<u8> = frames.iter().fold(vec![7], |mut out, (kind, flags, stream, payload)| {
        frame::put(*kind, *flags, *stream, payload, &mut out);
        out
    });
    vec![all[..1 + 21].to_vec(), all]
}

/// Seeds of [`fuzz_hpack`].
pub fn blocks() -> Vec<Vec<u8>> {
    let blocks = request_blocks().into_iter().chain([vec![0x20, 0x3f, 0xe1, 0x1f, 0x82]]);
    let framed: Vec<Vec<u8>> = blocks.map(|block| [&(block.len() as u16).to_be_bytes()[..], &block].concat()).collect();
    vec![framed[0].clone(), framed.concat()]
}

/// Seeds of [`fuzz_huffman`].
pub fn texts() -> Vec<Vec<u8>> {
    let every: Vec<u8> = (0..=255).collect();
    let mut code = Vec::new();
    huffman::encode(&every[..64], &mut code);
    vec![every, code, b"www.example.com".to_vec()]
}
