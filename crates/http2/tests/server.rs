//! Connections as transcripts: what a client sends, and what comes of it.

use std::fmt::Write;

use buttress_http2::{Code, Event, Fault, OUTPUT_BYTES_MAX, Options, PREFACE, Server};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// `POST http /` with more fields.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    let more = more.iter().flat_map(|(name, value)| field(name, value));
    [0x83, 0x86, 0x84].into_iter().chain(more).collect()
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn options() -> Options {
    Options {
        streams_max: 4,
        stream_window_bytes: 100_000,
        connection_window_bytes: 200_000,
        head_bytes_max: 1000,
        repeated: &[("grpc-status", "0")],
    }
}

struct Peer {
    server: Server<&'static str>,
    kept: Vec<u8>,
}

impl Peer {
    /// One that has said hello, and was greeted.
    fn new() -> Self {
        let mut peer = Self { server: Server::new(options()), kept: PREFACE.to_vec() };
        assert_eq!(peer.says(&frame(SETTINGS, 0, 0, &[])), "");
        assert_eq!(peer.hears(), "settings 18; window 0 +134465; settings ack; ");
        peer
    }

    /// Events of what the peer says, each stream accepted.
    fn says(&mut self, bytes: &[u8]) -> String {
        self.server.begin();
        self.kept.extend_from_slice(bytes);
        let (mut input, mut said) = (&self.kept[..], String::new());
        loop {
            match self.server.next(&mut input) {
                Ok(None) => break,
                Ok(Some(Event::Head { stream, ended })) => {
                    let end = if ended { " end" } else { "" };
                    let _ = write!(said, "head {stream}{end}; ");
                    self.server.accept(stream, "ours");
                }
                Ok(Some(Event::Data { stream, bytes, ended })) => {
                    let end = if ended { " end" } else { "" };
                    let _ = write!(said, "data {stream} {}{end}; ", bytes.len());
                }
                Ok(Some(Event::Trailers { stream })) => {
                    let _ = write!(said, "trailers {stream}; ");
                }
                Ok(Some(Event::Reset { stream, with, code })) => {
                    assert_eq!(with, "ours");
                    let _ = write!(said, "reset {stream} {}; ", code.0);
                }
                Err(Fault { code, why }) => {
                    let _ = write!(said, "fault {}: {why}", code.0);
                    break;
                }
            }
        }
        let taken = self.kept.len() - input.len();
        self.kept.drain(..taken);
        said
    }

    /// What the peer reads, as long as there is anything.
    fn hears(&mut self) -> String {
        let mut bytes = Vec::new();
        loop {
            let output = self.server.output();
            if output.is_empty() {
                break;
            }
            bytes.extend_from_slice(output);
            let written = output.len();
            self.server.wrote(written);
        }
        let (mut rest, mut heard) = (&bytes[..], String::new());
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (payload, behind) = behind.split_at(length);
            rest = behind;
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            let end = if matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0 { " end" } else { "" };
            let _ = match head[3] {
                DATA => write!(heard, "data {stream} {length}{end}; "),
                HEADERS => write!(heard, "head {stream} {length}{end}; "),
                RST_STREAM => write!(heard, "reset {stream} {}; ", number(0)),
                SETTINGS if head[4] & ACK != 0 => write!(heard, "settings ack; "),
                SETTINGS => write!(heard, "settings {length}; "),
                PING => write!(heard, "ping {} {}; ", head[4], payload.escape_ascii()),
                GOAWAY => write!(heard, "goodbye {} {}; ", number(0), number(4)),
                WINDOW_UPDATE => write!(heard, "window {stream} +{}; ", number(0)),
                kind => write!(heard, "frame {kind}; "),
            };
        }
        assert!(rest.is_empty(), "what is written is whole frames");
        heard
    }
}

fn answer(peer: &mut Peer, stream: u32, body: &[u8]) {
    peer.server.answer(stream, 200, &[], &[body], &[(b"grpc-status", b"0")]);
}

#[test]
fn a_call_is_a_head_a_body_and_an_answer_in_one_piece() {
    let mut peer = Peer::new();
    let call = [frame(HEADERS, END_HEADERS, 1, &post(&[])), frame(DATA, END_STREAM, 1, b"hello")].concat();
    assert_eq!(peer.says(&call), "head 1; data 1 5 end; ");
    assert_eq!(peer.server.head().get(b":method"), Some(&b"POST"[..]));
    peer.server.release(1, 5);
    answer(&mut peer, 1, b"world");
    assert_eq!(peer.hears(), "head 1 1; data 1 5; head 1 15 end; ");
    assert!(peer.server.is_empty());
    // The status is in the client's table now.
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &post(&[]))), "head 3 end; ");
    answer(&mut peer, 3, b"");
    assert_eq!(peer.hears(), "head 3 1; data 3 0; head 3 1 end; ");
}

#[test]
fn it_makes_no_difference_where_what_comes_is_cut() {
    let head = post(&[("content-length", "5")]);
    let call = [
        frame(HEADERS, PADDED | WITH_PRIORITY, 1, &[&[3, 0, 0, 0, 0, 9][..], &head[..2], &[0, 0, 0]].concat()),
        frame(CONTINUATION, 0, 1, &head[2..7]),
        frame(CONTINUATION, END_HEADERS, 1, &head[7..]),
        frame(PRIORITY, 0, 1, &[0; 5]),
        frame(0xbe, 0xff, 1, b"nobody knows this"),
        frame(DATA, PADDED, 1, &[2, b'h', b'e', 0, 0]),
        frame(DATA, 0, 1, b"llo"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &field("x-end", "1")),
    ]
    .concat();
    let whole = "head 1; data 1 2; data 1 3; trailers 1; ";
    assert_eq!(Peer::new().says(&call), whole);
    for cut in 1..call.len() {
        let mut peer = Peer::new();
        assert_eq!(peer.says(&call[..cut]) + &peer.says(&call[cut..]), whole, "cut at {cut}");
    }
}

#[test]
fn an_answer_that_the_client_has_no_room_for_waits_for_its_windows() {
    let mut peer = Peer::new();
    peer.says(&setting(4, 10));
    let heads = [1, 3].map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &post(&[]))).concat();
    assert_eq!(peer.says(&heads), "head 1 end; head 3 end; ");
    answer(&mut peer, 1, &[7; 25]);
    answer(&mut peer, 3, &[7; 5]);
    // The one that fits does not wait for the one that does not.
    assert_eq!(peer.hears(), "settings ack; head 1 1; head 3 1; data 3 5; head 3 15 end; data 1 10; ");
    assert_eq!(peer.server.queued(1), 15);
    peer.says(&frame(WINDOW_UPDATE, 0, 1, &4u32.to_be_bytes()));
    assert_eq!(peer.hears(), "data 1 4; ");
    // A larger window for all is one for this too, and so is a smaller one.
    peer.says(&setting(4, 0));
    peer.says(&frame(WINDOW_UPDATE, 0, 1, &9u32.to_be_bytes()));
    assert_eq!(peer.hears(), "settings ack; ");
    peer.says(&setting(4, 30));
    assert_eq!(peer.hears(), "settings ack; data 1 11; head 1 1 end; ");
    assert!(peer.server.is_empty());
}

#[test]
fn streams_share_the_connection_s_window_in_turn() {
    let mut peer = Peer::new();
    peer.says(&setting(4, 1_000_000));
    let heads = [1, 3].map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &post(&[]))).concat();
    peer.says(&heads);
    for stream in [1, 3] {
        peer.server.respond(stream, 200, [], false);
        peer.server.data(stream, vec![7; 60_000].into());
    }
    peer.server.end(3);
    let heard = peer.hears();
    let sent = |heard: &str, stream: u32| -> usize {
        let of = format!("data {stream} ");
        heard.split("; ").filter_map(|line| line.strip_prefix(&of)?.split(' ').next()?.parse::<usize>().ok()).sum()
    };
    assert_eq!(sent(&heard, 1) + sent(&heard, 3), 65_535, "{heard}");
    assert!(sent(&heard, 3) >= 16_384, "{heard}");
    peer.says(&frame(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes()));
    let more = peer.hears();
    assert_eq!(sent(&heard, 1) + sent(&more, 1), 60_000);
    assert_eq!(sent(&heard, 3) + sent(&more, 3), 60_000);
    assert_eq!(peer.server.next_drained(), Some(1), "there is room for more of it");
    assert_eq!(peer.server.next_drained(), None);
    assert_eq!(peer.server.len(), 1);
}

#[test]
fn what_was_released_is_given_back_by_half_a_window() {
    let mut peer = Peer::new();
    peer.says(&frame(HEADERS, END_HEADERS, 1, &post(&[])));
    for _ in 0..6 {
        assert_eq!(peer.says(&frame(DATA, 0, 1, &[0; 16_000])), "data 1 16000; ");
    }
    assert_eq!(peer.hears(), "", "nothing was released");
    peer.server.release(1, 49_999);
    assert_eq!(peer.hears(), "");
    peer.server.release(1, 1);
    assert_eq!(peer.hears(), "window 1 +50000; ");
    peer.server.release(1, 46_000);
    // A stream that goes gives back what it held.
    peer.says(&frame(DATA, 0, 1, &[0; 4_000]));
    assert_eq!(peer.says(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])), "reset 1 8; ");
    assert_eq!(peer.hears(), "window 0 +100000; ");
}

#[test]
fn who_sends_more_than_a_window_is_stopped() {
    let mut peer = Peer::new();
    peer.says(&[1, 3].map(|stream| frame(HEADERS, END_HEADERS, stream, &post(&[]))).concat());
    (0..6).for_each(|_| drop(peer.says(&frame(DATA, 0, 1, &[0; 16_000]))));
    assert_eq!(peer.says(&frame(DATA, 0, 1, &[0; 4_001])), "reset 1 3; ");
    assert_eq!(peer.hears(), "window 0 +100001; reset 1 3; ");
    (0..6).for_each(|_| drop(peer.says(&frame(DATA, 0, 3, &[0; 16_000]))));
    assert_eq!(
        peer.says(&frame(DATA, 0, 1, &[0; 4_000])),
        "",
        "what was under way to a stream that was reset is ignored"
    );
    assert_eq!(peer.hears(), "");
}

#[test]
fn an_answer_before_the_request_has_ended_ends_both() {
    let mut peer = Peer::new();
    peer.says(&frame(HEADERS, END_HEADERS, 1, &post(&[])));
    peer.server.respond(1, 404, [(&b"content-type"[..], &b"text/plain"[..])], true);
    assert_eq!(peer.hears(), "head 1 26 end; reset 1 0; ");
    assert_eq!(peer.says(&frame(DATA, END_STREAM, 1, b"late")), "");
    assert_eq!(peer.hears(), "");
}

#[test]
fn a_head_that_does_not_fit_a_frame_is_continued() {
    let mut peer = Peer::new();
    peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post(&[])));
    let long = vec![b'x'; 40_000];
    peer.server.respond(1, 200, [(&b"x"[..], &long[..])], true);
    assert_eq!(peer.hears(), "head 1 16384 end; frame 9; frame 9; ");
}

#[test]
fn a_client_that_leaves_in_time_loses_nothing() {
    let mut peer = Peer::new();
    peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post(&[])));
    peer.server.leave();
    let goodbye = peer.hears();
    assert_eq!(goodbye, "goodbye 2147483647 0; ping 0 leaving.; ");
    // This was under way.
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &post(&[]))), "head 3 end; ");
    peer.says(&frame(PING, ACK, 0, b"leaving."));
    assert_eq!(peer.hears(), "goodbye 3 0; ");
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS, 5, &post(&[]))), "", "nobody takes it any more");
    assert_eq!(peer.says(&frame(DATA, END_STREAM, 5, b"x")), "");
    answer(&mut peer, 1, b"");
    assert!(!peer.server.is_over());
    answer(&mut peer, 3, b"");
    assert!(!peer.server.is_over(), "it is not written yet");
    peer.hears();
    assert!(peer.server.is_over());
}

#[test]
fn a_stream_too_many_is_refused() {
    let mut peer = Peer::new();
    let heads = [1, 3, 5, 7, 9].map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &post(&[]))).concat();
    assert_eq!(peer.says(&heads), "head 1 end; head 3 end; head 5 end; head 7 end; ");
    assert_eq!(peer.hears(), "reset 9 7; ");
}

#[test]
fn a_head_that_is_too_large_is_answered_and_the_connection_lives() {
    let mut peer = Peer::new();
    let large = post(&[("x-large", "y".repeat(120).as_str()); 9]);
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS, 1, &large)), "");
    assert_eq!(peer.hears(), "head 1 5 end; reset 1 0; ");
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &post(&[]))), "head 3 end; ");
}

#[test]
fn a_request_that_is_none_ends_its_stream() {
    let text = |fields: &[(&str, &str)]| fields.iter().flat_map(|(name, value)| field(name, value)).collect::<Vec<_>>();
    for (what, head) in [
        ("no method", vec![0x86, 0x84]),
        ("no path", vec![0x83, 0x86]),
        ("an empty path", [&[0x83, 0x86][..], &text(&[(":path", "")])].concat()),
        ("two methods", [&post(&[])[..], &[0x82]].concat()),
        ("a pseudo-field behind others", [&text(&[("x", "y")]), &post(&[])[..]].concat()),
        ("an unknown pseudo-field", post(&[(":what", "y")])),
        ("an answer's pseudo-field", post(&[(":status", "200")])),
        ("capitals", post(&[("X-Y", "z")])),
        ("a line break", post(&[("x", "y\r\nz: 1")])),
        ("a blank at the edge", post(&[("x", " y")])),
        ("a field of the connection", post(&[("connection", "close")])),
        ("another transfer encoding", post(&[("transfer-encoding", "chunked")])),
        ("te that is not for trailers", post(&[("te", "gzip")])),
        ("two lengths", post(&[("content-length", "1"), ("content-length", "2")])),
        ("a length that is none", post(&[("content-length", "+1")])),
    ] {
        let mut peer = Peer::new();
        assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)), "", "{what}");
        assert_eq!(peer.hears(), "reset 1 1; ", "{what}");
        assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &post(&[]))), "head 3 end; ", "{what}");
    }
    let mut peer = Peer::new();
    let head = frame(HEADERS, END_HEADERS, 1, &post(&[("content-length", "5")]));
    assert_eq!(peer.says(&[head, frame(DATA, END_STREAM, 1, b"four")].concat()), "head 1; reset 1 1; ");
}

#[test]
fn what_cannot_be_understood_ends_the_connection() {
    let open = frame(HEADERS, END_HEADERS, 1, &post(&[]));
    let after_open = |frame: Vec<u8>| [open.clone(), frame].concat();
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    for (what, bytes, code) in [
        ("a large frame", vec![0, 0x40, 1, DATA, 0, 0, 0, 0, 1], Code::FRAME_SIZE_ERROR),
        ("data of no stream", frame(DATA, 0, 0, b"x"), Code::PROTOCOL_ERROR),
        ("data of an idle stream", frame(DATA, 0, 9, b"x"), Code::PROTOCOL_ERROR),
        ("padding that is too long", after_open(frame(DATA, PADDED, 1, &[2, 0])), Code::PROTOCOL_ERROR),
        ("an even stream", frame(HEADERS, END_HEADERS, 2, &post(&[])), Code::PROTOCOL_ERROR),
        ("a head of no stream", frame(HEADERS, END_HEADERS, 0, &post(&[])), Code::PROTOCOL_ERROR),
        ("no HPACK", frame(HEADERS, END_HEADERS, 1, &[0x80]), Code::COMPRESSION_ERROR),
        (
            "a ping within a head",
            [frame(HEADERS, 0, 1, &[]), frame(PING, 0, 0, &[0; 8])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[]), Code::PROTOCOL_ERROR),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("a short reset", after_open(frame(RST_STREAM, 0, 1, &[0; 3])), Code::FRAME_SIZE_ERROR),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[]), Code::PROTOCOL_ERROR),
        ("settings of a wrong size", frame(SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
        ("push that is neither", setting(2, 2), Code::PROTOCOL_ERROR),
        ("a window of 2 GiB", setting(4, 1 << 31), Code::FLOW_CONTROL_ERROR),
        ("tiny frames", setting(5, 100), Code::PROTOCOL_ERROR),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("a short ping", frame(PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a goodbye on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("a short goodbye", frame(GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a window of an idle stream", window(1, 1), Code::PROTOCOL_ERROR),
        ("a window that grows by nothing", window(0, 0), Code::PROTOCOL_ERROR),
        ("a window that overflows", window(0, 0x7fff_ffff), Code::FLOW_CONTROL_ERROR),
        ("a short window", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Code::FRAME_SIZE_ERROR),
        ("a priority of no stream", frame(PRIORITY, 0, 0, &[0; 5]), Code::PROTOCOL_ERROR),
    ] {
        let mut peer = Peer::new();
        let said = peer.says(&bytes);
        assert!(said.contains(&format!("fault {}: ", code.0)), "{what}: {said}");
        let heard = peer.hears();
        assert!(heard.ends_with(&format!(" {}; ", code.0)) && heard.contains("goodbye"), "{what}: {heard}");
        assert!(peer.says(&frame(PING, 0, 0, &[0; 8])).starts_with("fault"), "{what}: it is over");
    }
    let mut peer = Peer { server: Server::new(options()), kept: b"PRI * HTTP/1.1".to_vec() };
    assert!(peer.says(b"").starts_with("fault 1"));
    let mut peer = Peer { server: Server::new(options()), kept: PREFACE.to_vec() };
    assert!(peer.says(&frame(PING, 0, 0, &[0; 8])).starts_with("fault 1"), "settings come first");
}

#[test]
fn a_stream_that_has_ended_takes_no_more() {
    let mut peer = Peer::new();
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post(&[]))), "head 1 end; ");
    assert_eq!(peer.says(&frame(DATA, 0, 1, b"x")), "reset 1 5; ");
    assert_eq!(peer.hears(), "reset 1 5; ");
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &post(&[]))), "head 3 end; ");
    answer(&mut peer, 3, b"");
    peer.hears();
    assert_eq!(peer.says(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &field("x", "y"))), "");
    assert_eq!(peer.hears(), "reset 3 5; ");
    // What may cross its end says nothing.
    assert_eq!(peer.says(&[frame(WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1]), frame(RST_STREAM, 0, 3, &[0; 4])].concat()), "");
    assert_eq!(peer.hears(), "");
}

/// What a flood of one thing comes to, with everything answered and read.
fn flood(what: &str, mut piece: impl FnMut(u32) -> Vec<u8>) {
    let mut peer = Peer::new();
    for round in 0..200_000 {
        let said = peer.says(&piece(round));
        peer.hears();
        if let Some(at) = said.find("fault") {
            assert_eq!(&said[at..], "fault 11: the peer makes work and nothing of it", "{what} in round {round}");
            return;
        }
    }
    panic!("{what} goes on for ever");
}

#[test]
fn work_that_comes_to_nothing_ends_the_connection() {
    let head = |round: u32| frame(HEADERS, END_HEADERS, 2 * round + 1, &post(&[]));
    flood("streams that are reset at once", |round| {
        [head(round), frame(RST_STREAM, 0, 2 * round + 1, &[0, 0, 0, 8])].concat()
    });
    flood("streams that are wrong", |round| frame(HEADERS, END_HEADERS, 2 * round + 1, &[0x82]));
    flood("data without bytes", |round| match round {
        0 => head(0),
        _ => frame(DATA, 0, 1, &[]),
    });
    flood("priorities", |_| frame(PRIORITY, 0, 1, &[0; 5]));
    flood("frames that nobody knows", |_| frame(0x20, 0, 0, &[]));
    flood("windows of streams that are gone", |round| match round {
        0 => [head(0), frame(RST_STREAM, 0, 1, &[0; 4])].concat(),
        _ => frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
    });
    flood("changes of all windows", |round| setting(4, round));
    let mut peer = Peer::new();
    peer.says(&frame(HEADERS, 0, 1, &post(&[])));
    let said: String =
        (0..100).map(|_| peer.says(&frame(CONTINUATION, 0, 1, &[]))).take_while(String::is_empty).collect();
    assert_eq!(said, "");
    assert!(peer.says(&[]).starts_with("fault"), "a head in endless pieces");
}

#[test]
fn calls_that_are_answered_may_be_reset_now_and_then_for_ever() {
    let mut peer = Peer::new();
    for round in 0..100_000u32 {
        let stream = 4 * round + 1;
        let heads = [stream, stream + 2].map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &post(&[])));
        assert_eq!(peer.says(&heads.concat()), format!("head {stream} end; head {} end; ", stream + 2));
        answer(&mut peer, stream, b"");
        assert_eq!(peer.says(&frame(RST_STREAM, 0, stream + 2, &[0; 4])), format!("reset {} 0; ", stream + 2));
        peer.hears();
    }
}

#[test]
fn who_does_not_read_is_not_read() {
    let mut peer = Peer::new();
    let ping = frame(PING, 0, 0, &[7; 8]);
    for _ in 0..1000 {
        peer.says(&ping.repeat(100));
    }
    assert!(peer.server.is_full());
    assert!(peer.server.output().len() < OUTPUT_BYTES_MAX + 100);
    assert_eq!(peer.kept.len() + peer.server.output().len(), 1000 * 100 * ping.len());
    // Once it reads, all is answered.
    let mut answers = 0;
    while !peer.kept.is_empty() || !peer.server.output().is_empty() {
        answers += peer.hears().matches("ping 1").count();
        peer.says(&[]);
    }
    assert_eq!(answers, 100_000);
}
