//! A connection: which streams there are, what may be sent on them, and what a peer may not do.
//!
//! The life of a stream: its head makes an [`Event::Head`]; its body comes as [`Event::Data`]; the host answers with a head,
//! data, and an end or trailers, in this order, at any time. It is gone once both sides have ended, or either has reset it.
//! An answer that is whole before the request is ends the stream without an error, and what still comes of the request is
//! dropped (RFC 9113, section 8.1).
//!
//! Flow control. What comes counts against the windows until the host has [released](Server::release) it, and the peer hears
//! of that once half a window has come together. What is said beyond the peer's windows waits in its stream; streams that
//! wait are served in turn.
//!
//! Faults of a peer end its connection where nothing after them could be understood, and otherwise the stream (section 5.4).
//! A budget bounds what costs us and brings the peer nothing: streams that are reset as soon as they are opened (rapid
//! reset, CVE-2023-44487), faults of streams, frames without content. Each answer gives some of it back.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use bytes::Bytes;

use crate::{
    frame::{self, Code, FRAME_BYTES_MAX, Frame, PREFACE},
    hpack::{Decoder, Encoder, Head, TABLE_BYTES},
};

/// Bytes that wait to be written. Beyond, nothing is read, so that nobody makes us collect answers to what is never read.
pub const OUTPUT_BYTES_MAX: usize = 128 * 1024;
/// Bytes of bodies are put behind what waits only up to here.
const OUTPUT_BYTES_FULL: usize = 64 * 1024;
/// The block of a head in all its frames, compressed.
const BLOCK_BYTES_MAX: usize = 32 * 1024;
/// Frames of one block: a block of the largest size in frames of the usual size takes three.
const BLOCK_FRAMES_MAX: usize = 32;
const WINDOW_MAX: i64 = 0x7fff_ffff;
/// The windows of a connection on which nobody has said anything.
const WINDOW_BYTES: i64 = 65_535;
/// What may be spent on nothing; see the head of this file.
const BUDGET: u32 = 10_000;
/// A stream that is opened and reset within one read, and a fault of a stream.
const COST_FAULT: u32 = 100;
/// A frame of a stream that is gone.
const COST_STRAY: u32 = 10;
/// A stream that is reset later or refused, and a frame without content.
const COST_NOTHING: u32 = 1;
/// What an answer gives back.
const GAIN_ANSWER: u32 = 100;
/// Streams that we have reset, of which something may still be under way.
const RESET_KEPT: usize = 512;
/// What a ping says that asks whether the peer has heard that we are leaving.
const LEAVING: [u8; 8] = *b"leaving.";
/// What any other ping of ours says.
const ASKING: [u8; 8] = *b"anybody?";

#[derive(Clone, Debug)]
pub struct Options {
    /// Streams at a time; one more is refused.
    pub streams_max: u32,
    /// What may be under way to us on a stream, and on the connection, before the host has released it.
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    /// A head as RFC 9113 counts it in section 6.5.2. A larger one is answered with 431.
    pub head_bytes_max: usize,
    /// Fields of answers that are worth a place in the peer's table.
    pub repeated: &'static [(&'static str, &'static str)],
}

/// What has happened. `T` is what the host keeps with a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a, T> {
    /// A request has begun; [`Server::head`] says which. The host must [`Server::accept`] it before it asks for more.
    Head { stream: u32, ended: bool },
    /// A piece of its body, to be [released](Server::release).
    Data { stream: u32, bytes: &'a [u8], ended: bool },
    /// It has ended with [these](Server::head) trailers.
    Trailers { stream: u32 },
    /// It is no more; whatever the host does for it is in vain.
    Reset { stream: u32, with: T, code: Code },
}

/// The peer has broken the protocol, or is too much. It was told; the connection must end once that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    pub why: &'static str,
}

/// What ends a stream and not its connection.
struct StreamFault(Code);

enum Failed {
    Stream(StreamFault),
    Connection(Fault),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Failed::Connection(fault)
    }
}

fn fault(code: Code, why: &'static str) -> Fault {
    Fault { code, why }
}

fn protocol(why: &'static str) -> Fault {
    fault(Code::PROTOCOL_ERROR, why)
}

/// Streams are numbered by the peer, two apart.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("streams are numbers of 32 bits")
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing: a map takes high and low bits.
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// What the host has said of an answer.
#[derive(PartialEq, Eq)]
enum Tail {
    /// More will come.
    Open,
    End,
    Trailers(Vec<(Vec<u8>, Vec<u8>)>),
}

struct Stream<T> {
    /// `None` until the host has accepted it.
    with: Option<T>,
    /// In which batch it was opened.
    batch: u64,
    send_window: i64,
    receive_window: i64,
    /// Bytes that came and were not released.
    held: u32,
    /// Bytes that were released and the peer has not heard of.
    owed: u32,
    /// What is to come by the request's own word.
    length_left: Option<u64>,
    peer_ended: bool,
    /// The head of the answer was said.
    answered: bool,
    queue: VecDeque<Bytes>,
    queued: usize,
    tail: Tail,
    /// It stands in the line of those that wait to send.
    in_line: bool,
}

/// A head whose frames are not all there.
struct Block {
    stream: u32,
    ended: bool,
    bytes: Vec<u8>,
    frames: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// The peer was told to open no more streams; those that are under way to us are still taken.
    Announced,
    /// Streams behind the last one are not taken.
    Said,
}

pub struct Server<T> {
    options: Options,
    decoder: Decoder,
    encoder: Encoder,
    head: Head,
    heads: u64,
    /// What [`check_request`] says of it.
    checked: Option<Option<u64>>,
    streams: HashMap<u32, Stream<T>, BuildHasherDefault<Spread>>,
    /// The highest stream that the peer has opened.
    last: u32,
    /// Bytes of the preface that came.
    greeted: usize,
    settled: bool,
    block: Option<Block>,
    output: Vec<u8>,
    /// How much of it was written.
    written: usize,
    send_window: i64,
    receive_window: i64,
    owed: u32,
    stream_send_window: i64,
    frame_bytes_max: usize,
    /// Streams that have something to send.
    line: VecDeque<u32>,
    /// Streams that had, and have not any more.
    drained: Vec<u32>,
    reset: VecDeque<u32>,
    budget: u32,
    batch: u64,
    leaving: Leaving,
    failed: bool,
}

impl<T> Server<T> {
    pub fn new(options: Options) -> Self {
        let mut output = Vec::with_capacity(128);
        let settings = [
            (3_u16, options.streams_max),
            (4, options.stream_window_bytes),
            (6, u32::try_from(options.head_bytes_max).unwrap_or(u32::MAX)),
        ];
        frame::put_head(6 * settings.len(), frame::SETTINGS, 0, 0, &mut output);
        for (name, value) in settings {
            output.extend_from_slice(&name.to_be_bytes());
            output.extend_from_slice(&value.to_be_bytes());
        }
        let more = i64::from(options.connection_window_bytes) - WINDOW_BYTES;
        if more > 0 {
            frame::put(frame::WINDOW_UPDATE, 0, 0, &(more as u32).to_be_bytes(), &mut output);
        }
        Self {
            decoder: Decoder::default(),
            encoder: Encoder::new(options.repeated),
            head: Head::default(),
            heads: 0,
            checked: None,
            streams: HashMap::default(),
            last: 0,
            greeted: 0,
            settled: false,
            block: None,
            output,
            written: 0,
            send_window: WINDOW_BYTES,
            receive_window: WINDOW_BYTES.max(i64::from(options.connection_window_bytes)),
            owed: 0,
            stream_send_window: WINDOW_BYTES,
            frame_bytes_max: FRAME_BYTES_MAX,
            line: VecDeque::new(),
            drained: Vec::new(),
            reset: VecDeque::new(),
            budget: BUDGET,
            batch: 0,
            leaving: Leaving::No,
            failed: false,
            options,
        }
    }

    /// A new batch of bytes begins.
    pub fn begin(&mut self) {
        self.batch += 1;
    }

    /// Takes what there is of the input up to the next event. `None`: there is no whole frame left, or the peer must first
    /// read what waits for it. What is left of the input must come again, with more behind it.
    ///
    /// # Errors
    /// The connection must end; see [`Fault`].
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a, T>>, Fault> {
        if self.failed {
            return Err(protocol("the connection has failed before"));
        }
        let event = self.step(input);
        if let Err(fault) = event {
            self.failed = true;
            self.say_goodbye(self.last, fault.code);
        }
        event
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a, T>>, Fault> {
        if self.greeted < PREFACE.len() {
            let count = input.len().min(PREFACE.len() - self.greeted);
            if input[..count] != PREFACE[self.greeted..][..count] {
                return Err(protocol("the connection does not begin as HTTP/2 does"));
            }
            *input = &input[count..];
            self.greeted += count;
        }
        while self.greeted == PREFACE.len() && self.waiting() < OUTPUT_BYTES_MAX {
            let taken = frame::take(input).map_err(|code| fault(code, "a frame is larger than 16 KiB"))?;
            let Some(frame) = taken else { break };
            if let Some(event) = self.on_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn on_frame<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a, T>>, Fault> {
        if !self.settled {
            if frame.kind != frame::SETTINGS || frame.has(frame::ACK) {
                return Err(protocol("the first frame is not one of settings"));
            }
            self.settled = true;
        }
        if let Some(block) = &self.block
            && (frame.kind != frame::CONTINUATION || frame.stream != block.stream)
        {
            return Err(protocol("something comes between the frames of a head"));
        }
        let handled = match frame.kind {
            frame::DATA => self.on_data(frame),
            frame::HEADERS => self.on_headers(frame),
            frame::CONTINUATION => self.on_continuation(frame),
            frame::RST_STREAM => return self.on_reset(frame),
            frame::WINDOW_UPDATE => self.on_window(frame).map(|()| None),
            frame::PRIORITY => match frame.payload.len() {
                _ if frame.stream == 0 => return Err(protocol("a priority of no stream")),
                5 => self.spend(COST_NOTHING).map(|()| None).map_err(Failed::Connection),
                _ => Err(Failed::Stream(StreamFault(Code::FRAME_SIZE_ERROR))),
            },
            frame::SETTINGS => return self.on_settings(frame).map(|()| None),
            frame::PING => return self.on_ping(frame).map(|()| None),
            frame::PUSH_PROMISE => return Err(protocol("a client promises to push")),
            frame::GOAWAY if frame.stream != 0 => return Err(protocol("a goodbye on a stream")),
            frame::GOAWAY if frame.payload.len() < 8 => {
                return Err(fault(Code::FRAME_SIZE_ERROR, "a goodbye is too short"));
            }
            // What was begun is finished; the peer closes. And what nobody knows is ignored.
            frame::GOAWAY => return Ok(None),
            _ => return self.spend(COST_NOTHING).map(|()| None),
        };
        match handled {
            Ok(event) => Ok(event),
            Err(Failed::Connection(fault)) => Err(fault),
            Err(Failed::Stream(StreamFault(code))) => {
                self.spend(match code {
                    Code::REFUSED_STREAM => COST_NOTHING,
                    Code::STREAM_CLOSED => COST_STRAY,
                    _ => COST_FAULT,
                })?;
                Ok(self.cut(frame.stream, code))
            }
        }
    }

    fn spend(&mut self, cost: u32) -> Result<(), Fault> {
        match self.budget.checked_sub(cost) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(fault(Code::ENHANCE_YOUR_CALM, "the peer makes work and nothing of it")),
        }
    }

    /// Resets a stream that the peer has misused.
    fn cut<'a>(&mut self, stream: u32, code: Code) -> Option<Event<'a, T>> {
        let with = self.remove(stream);
        self.put_reset(stream, code);
        with.flatten().map(|with| Event::Reset { stream, with, code })
    }

    fn put_reset(&mut self, stream: u32, code: Code) {
        frame::put(frame::RST_STREAM, 0, stream, &code.0.to_be_bytes(), &mut self.output);
        self.ignore(stream);
    }

    /// What still comes of the stream is not looked at.
    fn ignore(&mut self, stream: u32) {
        if self.reset.len() == RESET_KEPT {
            self.reset.pop_front();
        }
        self.reset.push_back(stream);
    }

    /// Forgets a stream; what it held is released.
    fn remove(&mut self, stream: u32) -> Option<Option<T>> {
        let gone = self.streams.remove(&stream)?;
        self.owe(gone.held);
        Some(gone.with)
    }

    /// What to do about a frame of a stream that is not there.
    fn of_no_stream(&mut self, stream: u32) -> Result<(), Failed> {
        if stream == 0 {
            return Err(protocol("a frame of no stream").into());
        }
        if stream > self.last {
            return Err(protocol("a frame of a stream that is not open").into());
        }
        if self.reset.contains(&stream) {
            // It was under way when we reset the stream.
            return Ok(());
        }
        Err(Failed::Stream(StreamFault(Code::STREAM_CLOSED)))
    }

    fn on_data<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a, T>>, Failed> {
        let bytes = unpadded(&frame)?;
        let (length, ended) = (frame.payload.len() as u32, frame.has(frame::END_STREAM));
        self.receive_window -= i64::from(length);
        if self.receive_window < 0 {
            return Err(fault(Code::FLOW_CONTROL_ERROR, "more came than the connection's window").into());
        }
        if length == 0 && !ended {
            self.spend(COST_NOTHING)?;
        }
        let Some(stream) = self.streams.get_mut(&frame.stream) else {
            self.owe(length);
            return self.of_no_stream(frame.stream).map(|()| None);
        };
        if stream.peer_ended {
            self.owe(length);
            return Err(Failed::Stream(StreamFault(Code::STREAM_CLOSED)));
        }
        stream.receive_window -= i64::from(length);
        stream.held += length;
        if stream.receive_window < 0 {
            return Err(Failed::Stream(StreamFault(Code::FLOW_CONTROL_ERROR)));
        }
        if let Some(left) = &mut stream.length_left {
            match left.checked_sub(bytes.len() as u64) {
                Some(rest) if rest == 0 || !ended => *left = rest,
                _ => return Err(Failed::Stream(StreamFault(Code::PROTOCOL_ERROR))),
            }
        }
        stream.peer_ended = ended;
        // The padding is nobody's.
        let padding = length - bytes.len() as u32;
        if padding > 0 {
            self.release(frame.stream, padding as usize);
        }
        if bytes.is_empty() && !ended {
            return Ok(None);
        }
        Ok(Some(Event::Data { stream: frame.stream, bytes, ended }))
    }

    fn on_headers<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a, T>>, Failed> {
        let mut bytes = unpadded(&frame)?;
        if frame.has(frame::WITH_PRIORITY) {
            let behind = bytes.get(5..).ok_or_else(|| protocol("a head is too short for its priority"))?;
            bytes = behind;
        }
        if frame.stream.is_multiple_of(2) {
            return Err(protocol("a stream of a client has an odd number").into());
        }
        let ended = frame.has(frame::END_STREAM);
        if frame.has(frame::END_HEADERS) {
            return self.on_block(frame.stream, ended, bytes);
        }
        self.block = Some(Block { stream: frame.stream, ended, bytes: bytes.to_vec(), frames: 1 });
        Ok(None)
    }

    fn on_continuation<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a, T>>, Failed> {
        let Some(mut block) = self.block.take() else {
            return Err(protocol("a head is continued that has not begun").into());
        };
        block.frames += 1;
        if block.bytes.len() + frame.payload.len() > BLOCK_BYTES_MAX || block.frames > BLOCK_FRAMES_MAX {
            return Err(fault(Code::ENHANCE_YOUR_CALM, "a head is too large").into());
        }
        block.bytes.extend_from_slice(frame.payload);
        if frame.has(frame::END_HEADERS) {
            return self.on_block(block.stream, block.ended, &block.bytes);
        }
        self.block = Some(block);
        Ok(None)
    }

    /// A whole head: of a request, or its trailers.
    fn on_block<'a>(&mut self, stream: u32, ended: bool, block: &[u8]) -> Result<Option<Event<'a, T>>, Failed> {
        let new = self
            .decoder
            .decode(block, &mut self.head, self.options.head_bytes_max)
            .map_err(|_| fault(Code::COMPRESSION_ERROR, "a head is not compressed as it should be"))?;
        if new {
            self.heads += 1;
            self.checked = check_request(&self.head);
        }
        if stream <= self.last {
            return self.on_trailers(stream, ended);
        }
        self.last = stream;
        if self.leaving == Leaving::Said {
            // The peer has heard that it is not taken, or will.
            self.ignore(stream);
            return Ok(None);
        }
        if self.streams.len() >= self.options.streams_max as usize {
            return Err(Failed::Stream(StreamFault(Code::REFUSED_STREAM)));
        }
        if self.head.cut {
            self.spend(COST_FAULT)?;
            let mut fields = Vec::new();
            self.encoder.begin(&mut fields);
            self.encoder.status(431, &mut fields);
            let flags = frame::END_HEADERS | frame::END_STREAM;
            frame::put(frame::HEADERS, flags, stream, &fields, &mut self.output);
            self.put_reset(stream, Code::NO_ERROR);
            return Ok(None);
        }
        let length_left = self.checked.ok_or(Failed::Stream(StreamFault(Code::PROTOCOL_ERROR)))?;
        if ended && length_left.is_some_and(|length| length > 0) {
            return Err(Failed::Stream(StreamFault(Code::PROTOCOL_ERROR)));
        }
        let opened = Stream {
            with: None,
            batch: self.batch,
            send_window: self.stream_send_window,
            receive_window: i64::from(self.options.stream_window_bytes),
            held: 0,
            owed: 0,
            length_left,
            peer_ended: ended,
            answered: false,
            queue: VecDeque::new(),
            queued: 0,
            tail: Tail::Open,
            in_line: false,
        };
        self.streams.insert(stream, opened);
        Ok(Some(Event::Head { stream, ended }))
    }

    fn on_trailers<'a>(&mut self, stream: u32, ended: bool) -> Result<Option<Event<'a, T>>, Failed> {
        let Some(open) = self.streams.get_mut(&stream) else {
            return self.of_no_stream(stream).map(|()| None);
        };
        if open.peer_ended {
            return Err(Failed::Stream(StreamFault(Code::STREAM_CLOSED)));
        }
        let short = open.length_left.is_some_and(|left| left > 0);
        let allowed = self.head.iter().all(|(name, value)| !name.starts_with(b":") && is_field(name, value));
        if !ended || short || !allowed || self.head.cut {
            return Err(Failed::Stream(StreamFault(Code::PROTOCOL_ERROR)));
        }
        open.peer_ended = true;
        Ok(Some(Event::Trailers { stream }))
    }

    fn on_reset<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Event<'a, T>>, Fault> {
        let code = frame::number(frame.payload).ok_or(fault(Code::FRAME_SIZE_ERROR, "a reset has four bytes"))?;
        if frame.stream == 0 || frame.stream > self.last {
            return Err(protocol("a stream is reset that was never open"));
        }
        let Some(stream) = self.streams.get(&frame.stream) else { return self.spend(COST_NOTHING).map(|()| None) };
        self.spend(if stream.batch == self.batch { COST_FAULT } else { COST_NOTHING })?;
        let with = self.remove(frame.stream).flatten();
        Ok(with.map(|with| Event::Reset { stream: frame.stream, with, code: Code(code) }))
    }

    fn on_window(&mut self, frame: Frame<'_>) -> Result<(), Failed> {
        let more = frame::number(frame.payload).ok_or(fault(Code::FRAME_SIZE_ERROR, "a window has four bytes"))?;
        let more = i64::from(more & 0x7fff_ffff);
        if frame.stream == 0 {
            self.send_window += more;
            return match self.send_window {
                _ if more == 0 => Err(protocol("a window grows by nothing").into()),
                window if window > WINDOW_MAX => Err(fault(Code::FLOW_CONTROL_ERROR, "a window is too large").into()),
                _ => Ok(()),
            };
        }
        if frame.stream > self.last {
            return Err(protocol("a window of a stream that is not open").into());
        }
        // Of a stream that is gone it may have been under way.
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(self.spend(COST_NOTHING)?) };
        stream.send_window += more;
        if more == 0 || stream.send_window > WINDOW_MAX {
            let code = if more == 0 { Code::PROTOCOL_ERROR } else { Code::FLOW_CONTROL_ERROR };
            return Err(Failed::Stream(StreamFault(code)));
        }
        if stream.queued > 0 && !stream.in_line {
            stream.in_line = true;
            self.line.push_back(frame.stream);
        }
        Ok(())
    }

    fn on_settings(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        if frame.stream != 0 {
            return Err(protocol("settings of a stream"));
        }
        let (settings, rest) = frame.payload.as_chunks::<6>();
        if !rest.is_empty() || (frame.has(frame::ACK) && !settings.is_empty()) {
            return Err(fault(Code::FRAME_SIZE_ERROR, "settings of a wrong size"));
        }
        if frame.has(frame::ACK) {
            return Ok(());
        }
        for [name @ .., a, b, c, d] in settings {
            let value = u32::from_be_bytes([*a, *b, *c, *d]);
            match (u16::from_be_bytes(*name), value) {
                (1, bytes) => self.encoder.resize(bytes as usize),
                (2, 0 | 1) => {}
                (2, _) => return Err(protocol("push is neither on nor off")),
                (4, window) if i64::from(window) > WINDOW_MAX => {
                    return Err(fault(Code::FLOW_CONTROL_ERROR, "a window is too large"));
                }
                (4, window) => self.resize_windows(window.into())?,
                (5, bytes @ 0x4000..=0xff_ffff) => self.frame_bytes_max = (bytes as usize).min(FRAME_BYTES_MAX),
                (5, _) => return Err(protocol("frames of such a size there are not")),
                _ => {}
            }
        }
        frame::put(frame::SETTINGS, frame::ACK, 0, &[], &mut self.output);
        Ok(())
    }

    /// What every stream may send changes by as much. Section 6.9.2.
    fn resize_windows(&mut self, window: i64) -> Result<(), Fault> {
        let change = window - self.stream_send_window;
        self.stream_send_window = window;
        if change == 0 {
            return Ok(());
        }
        // Each stream may be looked at, so that is not for nothing.
        self.spend(COST_NOTHING + self.streams.len() as u32 / 16)?;
        for (number, stream) in &mut self.streams {
            stream.send_window += change;
            if stream.send_window > WINDOW_MAX {
                return Err(fault(Code::FLOW_CONTROL_ERROR, "a window is too large"));
            }
            if stream.queued > 0 && !stream.in_line {
                stream.in_line = true;
                self.line.push_back(*number);
            }
        }
        Ok(())
    }

    fn on_ping(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        if frame.stream != 0 {
            return Err(protocol("a ping of a stream"));
        }
        if frame.payload.len() != 8 {
            return Err(fault(Code::FRAME_SIZE_ERROR, "a ping has eight bytes"));
        }
        if !frame.has(frame::ACK) {
            frame::put(frame::PING, frame::ACK, 0, frame.payload, &mut self.output);
        } else if frame.payload == LEAVING && self.leaving == Leaving::Announced {
            self.leaving = Leaving::Said;
            self.say_goodbye(self.last, Code::NO_ERROR);
        }
        Ok(())
    }

    fn say_goodbye(&mut self, last: u32, code: Code) {
        let payload = [last.to_be_bytes(), code.0.to_be_bytes()].concat();
        frame::put(frame::GOAWAY, 0, 0, &payload, &mut self.output);
    }

    /// Asks whether anybody is there. The answer is no event: whoever answers has sent something.
    pub fn ping(&mut self) {
        frame::put(frame::PING, 0, 0, &ASKING, &mut self.output);
    }

    /// Takes no new streams once the peer has heard of it; see [`Server::is_over`].
    pub fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Announced;
            self.say_goodbye(WINDOW_MAX as u32, Code::NO_ERROR);
            frame::put(frame::PING, 0, 0, &LEAVING, &mut self.output);
        }
    }

    /// It was asked to leave, and everything is answered and written.
    pub fn is_over(&self) -> bool {
        self.leaving == Leaving::Said && self.streams.is_empty() && self.waiting() == 0
    }

    /// The head of the last [`Event::Head`] or [`Event::Trailers`].
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Which head that is: the same number says that it is the very same.
    pub fn head_number(&self) -> u64 {
        self.heads
    }

    /// Takes a request that has begun.
    pub fn accept(&mut self, stream: u32, with: T) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.with = Some(with);
        }
    }

    /// What the host keeps with a stream, as long as it is there.
    pub fn with(&mut self, stream: u32) -> Option<&mut T> {
        self.streams.get_mut(&stream)?.with.as_mut()
    }

    /// Streams that are there.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// So many bytes of a body are not held any more.
    pub fn release(&mut self, stream: u32, bytes: usize) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let bytes = (bytes as u32).min(open.held);
        open.held -= bytes;
        open.owed += bytes;
        if !open.peer_ended && open.owed >= self.options.stream_window_bytes / 2 {
            let owed = std::mem::take(&mut open.owed);
            open.receive_window += i64::from(owed);
            frame::put(frame::WINDOW_UPDATE, 0, stream, &owed.to_be_bytes(), &mut self.output);
        }
        self.owe(bytes);
    }

    /// The connection has room for so many bytes again.
    fn owe(&mut self, bytes: u32) {
        self.owed += bytes;
        if self.owed >= self.options.connection_window_bytes / 2 {
            let owed = std::mem::take(&mut self.owed);
            self.receive_window += i64::from(owed);
            frame::put(frame::WINDOW_UPDATE, 0, 0, &owed.to_be_bytes(), &mut self.output);
        }
    }

    /// Begins an answer; `ended` where the head is all of it.
    pub fn respond<'f>(
        &mut self,
        stream: u32,
        status: u16,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>,
        ended: bool,
    ) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        assert!(!open.answered, "an answer has one head");
        open.answered = true;
        self.put_fields(stream, Some(status), fields, ended);
        if ended {
            self.finish(stream);
        }
    }

    /// A head or trailers, in as many frames as they take.
    fn put_fields<'f>(
        &mut self,
        stream: u32,
        status: Option<u16>,
        fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>,
        ended: bool,
    ) {
        let begin = self.output.len();
        frame::put_head(0, frame::HEADERS, 0, stream, &mut self.output);
        let behind = self.output.len();
        self.encoder.begin(&mut self.output);
        if let Some(status) = status {
            self.encoder.status(status, &mut self.output);
        }
        for (name, value) in fields {
            self.encoder.field(name, value, &mut self.output);
        }
        let length = self.output.len() - behind;
        let mut flags = if ended { frame::END_STREAM } else { 0 };
        if length <= self.frame_bytes_max {
            flags |= frame::END_HEADERS;
            self.output[begin..begin + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
            self.output[begin + 4] = flags;
            return;
        }
        let block = self.output.split_off(behind);
        self.output.truncate(begin);
        let (mut kind, pieces) = (frame::HEADERS, block.chunks(self.frame_bytes_max));
        let count = pieces.len();
        for (at, piece) in pieces.enumerate() {
            flags |= if at + 1 == count { frame::END_HEADERS } else { 0 };
            frame::put(kind, flags, stream, piece, &mut self.output);
            (kind, flags) = (frame::CONTINUATION, 0);
        }
    }

    /// A piece of an answer's body.
    pub fn data(&mut self, stream: u32, bytes: Bytes) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        assert!(open.answered && open.tail == Tail::Open, "a body comes behind its head and before its end");
        if bytes.is_empty() {
            return;
        }
        open.queued += bytes.len();
        open.queue.push_back(bytes);
        self.line_up(stream);
    }

    /// The answer has ended.
    pub fn end(&mut self, stream: u32) {
        self.finish_with(stream, Tail::End);
    }

    /// The answer has ended, with these trailers.
    pub fn trailers<'f>(&mut self, stream: u32, fields: impl IntoIterator<Item = (&'f [u8], &'f [u8])>) {
        let fields = fields.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        self.finish_with(stream, Tail::Trailers(fields));
    }

    fn finish_with(&mut self, stream: u32, tail: Tail) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        assert!(open.answered && open.tail == Tail::Open, "an answer ends once, behind its head");
        open.tail = tail;
        self.line_up(stream);
    }

    fn line_up(&mut self, stream: u32) {
        if let Some(open) = self.streams.get_mut(&stream)
            && !open.in_line
        {
            open.in_line = true;
            self.line.push_back(stream);
        }
    }

    /// A whole answer at once: nothing of it is kept where the peer has room for it.
    pub fn answer(
        &mut self,
        stream: u32,
        status: u16,
        fields: &[(&[u8], &[u8])],
        body: &[&[u8]],
        trailers: &[(&[u8], &[u8])],
    ) {
        let waiting = self.waiting();
        let Some(open) = self.streams.get_mut(&stream) else { return };
        assert!(!open.answered, "an answer has one head");
        let length: usize = body.iter().map(|piece| piece.len()).sum();
        let window = open.send_window.min(self.send_window);
        if length > self.frame_bytes_max || length as i64 > window || waiting >= OUTPUT_BYTES_FULL {
            self.respond(stream, status, fields.iter().copied(), false);
            self.data(stream, body.concat().into());
            return self.trailers(stream, trailers.iter().copied());
        }
        open.send_window -= length as i64;
        self.send_window -= length as i64;
        self.put_fields(stream, Some(status), fields.iter().copied(), false);
        frame::put_head(length, frame::DATA, 0, stream, &mut self.output);
        for piece in body {
            self.output.extend_from_slice(piece);
        }
        self.put_fields(stream, None, trailers.iter().copied(), true);
        self.finish(stream);
    }

    /// Ends a stream without an answer, or in the middle of one. What the host keeps with it comes back.
    pub fn abort(&mut self, stream: u32, code: Code) -> Option<T> {
        let with = self.remove(stream)?;
        self.put_reset(stream, code);
        with
    }

    /// The answer is all said. Whatever is left of the request is not wanted.
    fn finish(&mut self, stream: u32) {
        self.budget = (self.budget + GAIN_ANSWER).min(BUDGET);
        let Some(open) = self.streams.get(&stream) else { return };
        if !open.peer_ended {
            self.put_reset(stream, Code::NO_ERROR);
        }
        self.remove(stream);
    }

    /// Bytes of an answer's body that the peer has no room for yet.
    pub fn queued(&self, stream: u32) -> usize {
        self.streams.get(&stream).map_or(0, |stream| stream.queued)
    }

    /// A stream that had bytes waiting and has none any more.
    pub fn next_drained(&mut self) -> Option<u32> {
        self.drained.pop()
    }

    /// Bytes that wait to be written.
    fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Puts together what may be sent, a frame of each stream in turn, and gives what is to be written.
    pub fn output(&mut self) -> &[u8] {
        // Without a window for the connection each is looked at once: what has only its end to send needs none.
        let mut looks = self.line.len();
        while self.waiting() < OUTPUT_BYTES_FULL
            && (self.send_window > 0 || looks > 0)
            && let Some(stream) = self.line.pop_front()
        {
            looks = looks.saturating_sub(1);
            self.serve(stream);
        }
        &self.output[self.written..]
    }

    /// Sends a frame of a stream's body, or its end.
    fn serve(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.in_line = false;
        if let Some(mut piece) = stream.queue.pop_front() {
            let room = stream.send_window.min(self.send_window).clamp(0, self.frame_bytes_max as i64) as usize;
            let length = room.min(piece.len());
            if length == 0 {
                stream.queue.push_front(piece);
                if stream.send_window > 0 {
                    // It is the connection that has no room.
                    self.line_up(number);
                }
                return;
            }
            let bytes = piece.split_to(length);
            stream.send_window -= length as i64;
            self.send_window -= length as i64;
            stream.queued -= length;
            if !piece.is_empty() {
                stream.queue.push_front(piece);
            }
            let ended = stream.queued == 0 && stream.tail == Tail::End;
            let flags = if ended { frame::END_STREAM } else { 0 };
            frame::put(frame::DATA, flags, number, &bytes, &mut self.output);
            if ended {
                return self.finish(number);
            }
            if stream.queued == 0 && stream.tail == Tail::Open {
                self.drained.push(number);
            } else {
                self.line_up(number);
            }
            return;
        }
        match std::mem::replace(&mut stream.tail, Tail::Open) {
            Tail::Open => {}
            Tail::End => {
                frame::put(frame::DATA, frame::END_STREAM, number, &[], &mut self.output);
                self.finish(number);
            }
            Tail::Trailers(fields) => {
                let fields = fields.iter().map(|(name, value)| (&name[..], &value[..]));
                self.put_fields(number, None, fields, true);
                self.finish(number);
            }
        }
    }

    /// So much of the output was written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        assert!(self.written <= self.output.len(), "no more is written than there is");
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            // A connection that rests keeps little.
            self.output.shrink_to(OUTPUT_BYTES_KEPT);
        } else if self.written >= OUTPUT_BYTES_FULL {
            self.output.drain(..std::mem::take(&mut self.written));
        }
    }

    /// Whether the peer must read before anything else of it is taken.
    pub fn is_full(&self) -> bool {
        self.waiting() >= OUTPUT_BYTES_MAX
    }

    /// Bytes of the peer's table, for tests.
    pub fn table_bytes(&self) -> usize {
        debug_assert!(self.decoder.size() <= TABLE_BYTES);
        self.decoder.size()
    }
}

const OUTPUT_BYTES_KEPT: usize = 1024;

/// A payload without its padding. Section 6.1.
fn unpadded<'a>(frame: &Frame<'a>) -> Result<&'a [u8], Failed> {
    if frame.stream == 0 {
        return Err(protocol("a frame of no stream").into());
    }
    if !frame.has(frame::PADDED) {
        return Ok(frame.payload);
    }
    let cut = frame.payload.split_first().and_then(|(padding, rest)| {
        let length = rest.len().checked_sub(usize::from(*padding))?;
        rest.get(..length)
    });
    cut.ok_or_else(|| protocol("there is more padding than frame").into())
}

/// Names are tokens in lower case, and no value has a control character but a tab. Section 8.2.1; fields of one connection have no place
/// here, by 8.2.2.
fn is_field(name: &[u8], value: &[u8]) -> bool {
    let token = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(token) || value.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
        return false;
    }
    let edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if edge(value.first()) || edge(value.last()) {
        return false;
    }
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => false,
        b"te" => value == b"trailers",
        _ => true,
    }
}

/// Whether this may be the head of a request, and the length that it gives its body. Section 8.3.1.
fn check_request(head: &Head) -> Option<Option<u64>> {
    let (mut method, mut scheme, mut path, mut authority) = (None, None, None, None);
    let (mut ordinary, mut length) = (false, None);
    for (name, value) in head.iter() {
        if let Some(pseudo) = name.strip_prefix(b":") {
            let place = match pseudo {
                b"method" => &mut method,
                b"scheme" => &mut scheme,
                b"path" => &mut path,
                b"authority" => &mut authority,
                _ => return None,
            };
            if ordinary || place.replace(value).is_some() {
                return None;
            }
            continue;
        }
        ordinary = true;
        if !is_field(name, value) {
            return None;
        }
        if name == b"content-length" {
            let told = value.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(value).ok()?.parse().ok());
            let told = told.flatten()?;
            if length.replace(told).is_some_and(|before| before != told) {
                return None;
            }
        }
    }
    let clean = |value: &[u8]| !value.is_empty() && value.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    let connect = method == Some(b"CONNECT");
    let whole = if connect {
        scheme.is_none() && path.is_none() && authority.is_some_and(clean)
    } else {
        scheme.is_some_and(clean)
            && path.is_some_and(clean)
            && authority.is_none_or(|value| value.is_empty() || clean(value))
    };
    (whole && method.is_some_and(clean)).then_some(length)
}
