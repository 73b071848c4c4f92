//! `bench watch`: one thousand watchers of one prefix, beside etcd.
//!
//! Writers put keys below the prefix, and every watcher hears of each. A change counts as delivered to a watcher when the
//! client has read it from its connection. At most [`OUTSTANDING_MAX`] changes are under way: the next one is put when all watchers
//! together have heard enough, so no side is measured by how much it can queue.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use buttress_etcd_proto::{
    client::Channel,
    etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_request::RequestUnion},
};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use serde_json::json;
use tokio::{sync::Notify, task::LocalSet};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::{
    figures::{Round, Window, alternate, noise, tell},
    kv::{connect, key, sides},
    options::Options,
    sides::{Original, Side},
};

const WATCHERS: usize = 1_000;
/// Streams, each on a connection of its own, with the same number of watchers.
const STREAMS: usize = 50;
const VALUE_BYTES: usize = 256;
const WRITERS: usize = 16;
/// Changes that not all watchers have heard of yet.
const OUTSTANDING_MAX: u64 = 64;
const KEY_SPACE: u64 = 1_000;
const WARM_UP: Duration = Duration::from_millis(700);
const PREFIX: &str = "watched/";

pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args, 3, 4.0, &[])?;
    Original::Etcd.install()?;
    let sides = sides(&options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = alternate(options.rounds.max(1), &sides, async |side, number| {
        let round = LocalSet::new().run_until(measure(&options, side)).await?;
        eprintln!("round {}: {} {:.0} events/s", number + 1, side.name, round.per_second());
        Ok(round)
    });
    let figures = runtime.block_on(measured)?;
    if !options.json {
        println!(
            "{WATCHERS} watchers of one prefix on {STREAMS} streams, values of {VALUE_BYTES} B; times are from a put to its answer"
        );
    }
    let mut result = tell(options.json, "etcd", &figures, "events", "event");
    if options.json {
        result["bench"] = json!("watch");
        result["watchers"] = json!(WATCHERS);
        println!("{result}");
    }
    Ok(())
}

/// What watchers and writers share.
#[derive(Default)]
struct Progress {
    created: Cell<usize>,
    delivered: Cell<u64>,
    moved: Notify,
}

async fn measure(options: &Options, side: &Side) -> Result<Round> {
    let progress = Rc::new(Progress::default());
    let mut listeners = Vec::new();
    for stream in 0..STREAMS {
        let channel = connect(&side.addresses[stream % side.addresses.len()]).await?;
        let progress = progress.clone();
        listeners.push(tokio::task::spawn_local(listen(channel, progress)));
    }
    let all_there = async {
        while progress.created.get() < WATCHERS {
            progress.moved.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_there)
        .await
        .with_context(|| format!("{} of {WATCHERS} watchers came up at {}", progress.created.get(), side.name))?;

    let begin = Instant::now() + WARM_UP;
    let end = begin + options.round();
    let put = Rc::new(Cell::new(0u64));
    let micros = Rc::new(std::cell::RefCell::new(Vec::new()));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let channel = connect(&side.addresses[writer % side.addresses.len()]).await?;
        let (progress, put, micros) = (progress.clone(), put.clone(), micros.clone());
        writers.push(tokio::task::spawn_local(async move {
            let mut kv = KvClient::new(channel);
            let value = Bytes::from(noise(VALUE_BYTES, writer as u64));
            loop {
                while put.get() * WATCHERS as u64 >= progress.delivered.get() + OUTSTANDING_MAX * WATCHERS as u64 {
                    progress.moved.notified().await;
                }
                let number = put.replace(put.get() + 1);
                let start = Instant::now();
                let request =
                    PutRequest { key: key(PREFIX, number % KEY_SPACE), value: value.clone(), ..PutRequest::default() };
                kv.put(request).await?;
                let now = Instant::now();
                if now >= begin && now < end {
                    micros.borrow_mut().push((now - start).as_micros() as u32);
                }
                if now >= end {
                    return anyhow::Ok(());
                }
            }
        }));
    }
    tokio::time::sleep_until(begin.into()).await;
    let (window, before) = (Window::open(side)?, progress.delivered.get());
    tokio::time::sleep_until(end.into()).await;
    let delivered = progress.delivered.get() - before;
    let latencies = micros.borrow().clone();
    let round = window.close(delivered, options.round(), latencies)?;
    // What is on its way is waited for, so that the next round begins with nothing.
    let everything = async {
        for writer in writers {
            writer.await??;
        }
        while progress.delivered.get() < put.get() * WATCHERS as u64 {
            progress.moved.notified().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(60), everything).await.with_context(|| {
        format!("{}: {} of {} events were delivered", side.name, progress.delivered.get(), put.get() * WATCHERS as u64)
    })??;
    for listener in listeners {
        listener.abort();
    }
    Ok(round)
}

/// One stream with its share of the watchers; counts what they hear.
async fn listen(channel: Channel, progress: Rc<Progress>) -> Result<()> {
    let create =
        WatchCreateRequest { key: PREFIX.into(), range_end: prefix_end(PREFIX), ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::stream::iter(vec![request; WATCHERS / STREAMS]).chain(futures::stream::pending());
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let mut answers = grpc.streaming(Request::new(requests), path, Counting).await?.into_inner();
    while let Some(answer) = answers.next().await {
        let Heard { created, events } = answer?;
        progress.created.set(progress.created.get() + usize::from(created));
        progress.delivered.set(progress.delivered.get() + events);
        progress.moved.notify_waiters();
    }
    Ok(())
}

fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("the prefix is not empty") += 1;
    end.into()
}

/// What one answer brought.
struct Heard {
    created: bool,
    events: u64,
}

/// Counts the events of an answer without making them: a client that did more would be what is measured.
#[derive(Default)]
struct Counting;

impl Codec for Counting {
    type Encode = WatchRequest;
    type Decode = Heard;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Counting {
    type Item = WatchRequest;
    type Error = Status;

    fn encode(&mut self, item: WatchRequest, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::Message::encode(&item, into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Counting {
    type Item = Heard;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Heard>, Status> {
        /// Numbers of the fields of `WatchResponse`.
        const CREATED: u64 = 3;
        const EVENTS: u64 = 11;
        let bad = || Status::internal("a watch's answer is malformed");
        let mut heard = Heard { created: false, events: 0 };
        while from.has_remaining() {
            let tag = varint(from).ok_or_else(bad)?;
            match tag & 7 {
                0 => heard.created |= varint(from).ok_or_else(bad)? == 1 && tag >> 3 == CREATED,
                2 => {
                    let len = varint(from).ok_or_else(bad)? as usize;
                    if len > from.remaining() {
                        return Err(bad());
                    }
                    from.advance(len);
                    heard.events += u64::from(tag >> 3 == EVENTS);
                }
                _ => return Err(bad()),
            }
        }
        Ok(Some(heard))
    }
}

fn varint(from: &mut impl Buf) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return None;
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
