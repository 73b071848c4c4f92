//! One connection: frames in, answers out, in order.
//!
//! Produce requests are started as they come, so that several of one connection share a commit; each is polled once
//! when it is started, which proposes it, so they enter the log in their order. Every other request waits until all
//! requests before it are answered, so a client that pipelines sees what it would see from Kafka, which takes one
//! request of a connection at a time.
//!
//! Records on their way into the log are held several times: as they came, encoded, and on their way to each follower and to
//! the disk. So all connections share a budget for them (`Options::produce_bytes_in_flight_max`). A Produce that finds no room
//! waits, and its connection is not read meanwhile: the client's socket fills, and the client waits.

use std::{io::IoSlice, net::SocketAddr, sync::Arc};

use buttress_core::BoxFuture;
use buttress_wire::kafka::{self, Api, Body, Request, RequestError, RequestHeader, produce::ProduceRequest};
use bytes::{Buf, Bytes};
use futures::{FutureExt, StreamExt, stream::FuturesOrdered};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};

use super::{
    Broker, PRODUCES_IN_FLIGHT_MAX, Peer, api_versions, cluster, configs, epochs, fetch, find_coordinator,
    frame::{Frame, FrameError, FrameReader},
    groups::{admin, membership, offsets},
    list_offsets, metadata, produce, producer_id, records, sasl, stopped, topics,
};

/// What a request is answered with.
pub(super) enum Reply {
    /// A whole response frame.
    Frame(Vec<Bytes>),
    /// Nothing: it was a Produce with acks=0.
    Silent,
    /// The end of the connection, and why.
    Close(String),
}

/// Why a connection ends before the client closes it.
#[derive(Debug, thiserror::Error)]
enum Close {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0}")]
    Reply(String),
    #[error("the client did not take its answer: {0}")]
    Write(std::io::Error),
}

impl Close {
    /// Whether the client just went away or fell silent, which is no fault.
    fn is_quiet(&self) -> bool {
        matches!(self, Self::Frame(FrameError::Io(_) | FrameError::Idle | FrameError::Torn) | Self::Write(_))
    }
}

/// A Produce that waits for room.
struct Waiting {
    room: BoxFuture<'static, OwnedSemaphorePermit>,
    header: RequestHeader,
    request: ProduceRequest,
    frame_room: Option<OwnedSemaphorePermit>,
}

type Produces = FuturesOrdered<BoxFuture<'static, (Reply, Option<OwnedSemaphorePermit>)>>;

pub(super) async fn run(broker: Arc<Broker>, socket: TcpStream, peer: SocketAddr, shutdown: watch::Receiver<bool>) {
    broker.counters.connection_opened();
    // Answers are written whole; waiting for more to send would only delay them.
    let _ = socket.set_nodelay(true);
    let (input, output) = socket.into_split();
    let options = &broker.options;
    let mut connection = Connection {
        frames: FrameReader::new(input, broker.frame_room.clone(), options.idle_timeout, options.transfer_timeout),
        output,
        produces: FuturesOrdered::new(),
        waiting: None,
        broker: broker.clone(),
        host: peer.ip(),
    };
    let ended = connection.serve(shutdown).await;
    let failed = ended.as_ref().is_err_and(|close| !close.is_quiet());
    broker.counters.connection_closed(failed);
    match ended {
        Ok(()) => {}
        Err(close) if close.is_quiet() => tracing::debug!(%peer, reason = %close, "kafka: a connection ended"),
        Err(close) => tracing::warn!(%peer, reason = %close, "kafka: a connection is closed"),
    }
}

struct Connection {
    broker: Arc<Broker>,
    frames: FrameReader<tokio::net::tcp::OwnedReadHalf>,
    output: OwnedWriteHalf,
    /// Produce requests that are in the log, in the order in which they came.
    produces: Produces,
    /// The next of them. Nothing is read behind it, so that none overtakes.
    waiting: Option<Waiting>,
    host: std::net::IpAddr,
}

impl Connection {
    async fn serve(&mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), Close> {
        let mut also_shutdown = shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => return self.drain().await,
                Some((reply, _room)) = self.produces.next(), if !self.produces.is_empty() => {
                    self.answer_produces(reply).await?;
                }
                room = room_of(&mut self.waiting), if self.waiting.is_some() => {
                    let Waiting { header, request, frame_room, .. } = self.waiting.take().expect("it waits");
                    self.start_produce(header, request, room, frame_room).await?;
                }
                frame = self.frames.next(), if self.reads_on() => match frame? {
                    Some(frame) => self.request(frame, &mut also_shutdown).await?,
                    None => return self.drain().await,
                },
            }
        }
    }

    fn reads_on(&self) -> bool {
        self.waiting.is_none() && self.produces.len() < PRODUCES_IN_FLIGHT_MAX
    }

    async fn request(&mut self, frame: Frame, shutdown: &mut watch::Receiver<bool>) -> Result<(), Close> {
        let Frame { message, room } = frame;
        let size = message.len() + 4;
        let (header, request) = match Request::decode(message) {
            Ok(decoded) => decoded,
            Err(RequestError::Version(header)) if header.api_key == Api::API_VERSIONS.key => {
                self.drain().await?;
                let answer = kafka::encode_response(0, header.correlation_id, &api_versions::unsupported());
                return self.write(answer).await;
            }
            Err(error) => {
                self.drain().await?;
                return Err(error.into());
            }
        };
        self.broker.counters.request(request.api(), size);
        if let Request::Produce(request) = request {
            // One that is larger than the budget has it alone.
            let bytes = size.min(self.broker.options.produce_bytes_in_flight_max) as u32;
            let budget = self.broker.produce_room.clone();
            return match budget.clone().try_acquire_many_owned(bytes) {
                Ok(produce_room) => self.start_produce(header, request, produce_room, room).await,
                Err(_) => {
                    let free =
                        async move { budget.acquire_many_owned(bytes).await.expect("the budget is never closed") };
                    self.broker.counters.produce_waited();
                    self.waiting = Some(Waiting { room: free.boxed(), header, request, frame_room: room });
                    Ok(())
                }
            };
        }
        self.drain().await?;
        let broker = self.broker.clone();
        let reply = tokio::select! {
            biased;
            () = stopped(shutdown) => return Ok(()),
            reply = answer(&broker, self.host, header, request) => reply,
        };
        drop(room);
        self.write(reply).await
    }

    /// Polls a Produce for the first time, which proposes it.
    async fn start_produce(
        &mut self,
        header: RequestHeader,
        request: ProduceRequest,
        produce_room: OwnedSemaphorePermit,
        frame_room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Close> {
        let broker = self.broker.clone();
        let answer = async move {
            let reply = produce::handle(broker, header, request).await;
            drop(produce_room);
            (reply, frame_room)
        };
        let mut answer = answer.boxed();
        let first = std::future::poll_fn(|cx| std::task::Poll::Ready(answer.as_mut().poll(cx))).await;
        match first {
            std::task::Poll::Ready((reply, _room)) if self.produces.is_empty() => self.answer_produces(reply).await,
            std::task::Poll::Ready(done) => {
                self.produces.push_back(std::future::ready(done).boxed());
                Ok(())
            }
            std::task::Poll::Pending => {
                self.produces.push_back(answer);
                Ok(())
            }
        }
    }

    /// Writes a Produce's answer, together with those after it that are there already.
    async fn answer_produces(&mut self, first: Reply) -> Result<(), Close> {
        let mut chunks = Vec::new();
        let mut next = Some(first);
        let mut close = None;
        while let Some(reply) = next {
            match reply {
                Reply::Frame(frame) => chunks.extend(frame),
                Reply::Silent => {}
                Reply::Close(reason) => {
                    close = Some(Close::Reply(reason));
                    break;
                }
            }
            next = self.produces.next().now_or_never().flatten().map(|(reply, _room)| reply);
        }
        if !chunks.is_empty() {
            self.write(chunks).await?;
        }
        close.map_or(Ok(()), Err)
    }

    /// Waits for all Produce requests and answers them.
    async fn drain(&mut self) -> Result<(), Close> {
        while let Some((reply, _room)) = self.produces.next().await {
            self.answer_produces(reply).await?;
        }
        Ok(())
    }

    async fn write(&mut self, chunks: Vec<Bytes>) -> Result<(), Close> {
        let mut rope = Rope { left: chunks.iter().map(Bytes::len).sum(), chunks, at: 0 };
        self.broker.counters.sent(rope.left);
        match timeout(self.broker.options.transfer_timeout, self.output.write_all_buf(&mut rope)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Close::Write(error)),
            Err(_) => return Err(Close::Write(std::io::ErrorKind::TimedOut.into())),
        }
        self.frames.touch();
        Ok(())
    }
}

/// Answers every request but Produce.
async fn answer(broker: &Broker, host: std::net::IpAddr, header: RequestHeader, request: Request) -> Vec<Bytes> {
    fn encode<B: Body>(header: &RequestHeader, body: &B) -> Vec<Bytes> {
        kafka::encode_response(header.version, header.correlation_id, body)
    }
    let version = header.version;
    match request {
        Request::Produce(_) => unreachable!("Produce has its own way"),
        Request::Fetch(request) => encode(&header, &fetch::handle(broker, request).await),
        Request::ListOffsets(request) => encode(&header, &list_offsets::handle(broker, request).await),
        Request::Metadata(request) => encode(&header, &metadata::handle(broker, version, request).await),
        Request::FindCoordinator(request) => encode(&header, &find_coordinator::handle(broker, version, request)),
        Request::JoinGroup(request) => {
            let peer = Peer { host, client_id: header.client_id.as_deref().unwrap_or_default() };
            encode(&header, &membership::join(broker, version, &peer, request).await)
        }
        Request::SyncGroup(request) => encode(&header, &membership::sync(broker, request).await),
        Request::Heartbeat(request) => encode(&header, &membership::heartbeat(broker, request).await),
        Request::LeaveGroup(request) => encode(&header, &membership::leave(broker, version, request).await),
        Request::OffsetCommit(request) => encode(&header, &offsets::commit(broker, request).await),
        Request::OffsetFetch(request) => encode(&header, &offsets::fetch(broker, version, request).await),
        Request::OffsetDelete(request) => encode(&header, &offsets::delete(broker, request).await),
        Request::ListGroups(request) => encode(&header, &admin::list(broker, request).await),
        Request::DescribeGroups(request) => encode(&header, &admin::describe(broker, version, request).await),
        Request::DeleteGroups(request) => encode(&header, &admin::delete(broker, request).await),
        Request::SaslHandshake(_) => encode(&header, &sasl::handshake(broker)),
        Request::SaslAuthenticate(_) => encode(&header, &sasl::authenticate(broker)),
        Request::ApiVersions(request) => {
            tracing::debug!(
                client = header.client_id.as_deref().unwrap_or_default(),
                software = request.client_software_name,
                version = request.client_software_version,
                "kafka: a client introduces itself"
            );
            encode(&header, &api_versions::handle(version, &request))
        }
        Request::CreateTopics(request) => encode(&header, &topics::handle_create(broker, request).await),
        Request::DeleteTopics(request) => encode(&header, &topics::handle_delete(broker, request).await),
        Request::CreatePartitions(request) => encode(&header, &topics::handle_create_partitions(broker, request).await),
        Request::DeleteRecords(request) => encode(&header, &records::handle(broker, request).await),
        Request::OffsetForLeaderEpoch(request) => encode(&header, &epochs::handle(broker, request).await),
        Request::DescribeConfigs(request) => encode(&header, &configs::handle_describe(broker, request).await),
        Request::AlterConfigs(request) => encode(&header, &configs::handle_alter(broker, request).await),
        Request::IncrementalAlterConfigs(request) => {
            encode(&header, &configs::handle_incremental(broker, request).await)
        }
        Request::DescribeCluster(request) => encode(&header, &cluster::handle(broker, &request)),
        Request::InitProducerId(request) => encode(&header, &producer_id::handle(broker, request).await),
    }
}

/// Room for the Produce that waits, if one does.
async fn room_of(waiting: &mut Option<Waiting>) -> OwnedSemaphorePermit {
    match waiting {
        Some(waiting) => waiting.room.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Chunks as one buffer that a vectored write takes whole.
struct Rope {
    chunks: Vec<Bytes>,
    at: usize,
    left: usize,
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        self.chunks[self.at..].iter().find(|chunk| !chunk.is_empty()).map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let full = self.chunks[self.at..].iter().filter(|chunk| !chunk.is_empty());
        slices.iter_mut().zip(full).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.left, "no more is advanced than is left");
        self.left -= count;
        while count > 0 {
            let chunk = &mut self.chunks[self.at];
            let step = count.min(chunk.len());
            chunk.advance(step);
            count -= step;
            if chunk.is_empty() {
                self.at += 1;
            }
        }
    }
}
