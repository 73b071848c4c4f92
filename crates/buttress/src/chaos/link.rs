//! The fault proxy: every byte between two nodes passes one of these, and may be held, delayed or slowed down on the way.
//!
//! Each node is told an address of ours for each other node. A connection that `a` opens to that address is carried on to
//! `b`; what `a` says on it belongs to the link `a → b`, what `b` answers to the link `b → a`, so that the two directions
//! fail apart. A cut link does what a cut cable does to TCP: bytes stay where they are, connections stay open, nobody is
//! told. After the heal what waited is delivered, as retransmission would; so no stream ever has a hole. A connection that
//! is opened over a cut link is taken and leads nowhere until the heal.
//!
//! A link's state is read for every piece that passes, so a change takes effect at once. A piece that is delayed waits in a
//! queue of [`QUEUE_PIECES`]: the sender is pushed back beyond, as by a full window.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::dice::Dice;

/// Bytes that pass as one piece.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces of one direction that wait for their time: 4 MiB at most.
const QUEUE_PIECES: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What one direction does to the bytes that pass it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    pub delay: Duration,
    /// Up to this much more, drawn anew for each piece; pieces stay in order.
    pub jitter: Duration,
    /// At most this many bytes a second; `None` is as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// The links of one cluster by ordered pair of node ids.
#[derive(Default)]
pub struct Links {
    states: Mutex<BTreeMap<(u64, u64), watch::Sender<Link>>>,
}

impl Links {
    fn follow(&self, from: u64, to: u64) -> watch::Receiver<Link> {
        let mut states = self.states.lock().expect("no holder panics");
        states.entry((from, to)).or_insert_with(|| watch::channel(Link::default()).0).subscribe()
    }

    pub fn change(&self, from: u64, to: u64, change: impl FnOnce(&mut Link)) {
        let mut states = self.states.lock().expect("no holder panics");
        states.entry((from, to)).or_insert_with(|| watch::channel(Link::default()).0).send_modify(change);
    }

    pub fn get(&self, from: u64, to: u64) -> Link {
        *self.follow(from, to).borrow()
    }

    /// Makes every link whole again.
    pub fn heal(&self) {
        for state in self.states.lock().expect("no holder panics").values() {
            state.send_replace(Link::default());
        }
    }
}

/// Carries connections of node `from` to node `to` until it is dropped.
pub async fn carry(listener: TcpListener, from: u64, to: u64, target: SocketAddr, links: Arc<Links>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, from, to, target, links.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the fault proxy cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(near: TcpStream, from: u64, to: u64, target: SocketAddr, links: Arc<Links>) {
    let mut way = links.follow(from, to);
    if way.wait_for(|link| !link.cut).await.is_err() {
        return;
    }
    let Ok(Ok(far)) = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // Either end closing closes the whole: the transport opens a new connection rather than using half of one.
    tokio::select! {
        () = pass(near_read, far_write, way, from ^ (to << 8)) => {}
        () = pass(far_read, near_write, links.follow(to, from), to ^ (from << 8)) => {}
    }
}

/// Moves bytes in one direction until an end closes.
async fn pass(mut read: OwnedReadHalf, mut write: OwnedWriteHalf, mut link: watch::Receiver<Link>, seed: u64) {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(QUEUE_PIECES);
    let reading = {
        let link = link.clone();
        async move {
            let mut dice = Dice::new(seed);
            let mut free = Instant::now();
            loop {
                let mut piece = BytesMut::with_capacity(PIECE_BYTES);
                match read.read_buf(&mut piece).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                let state = *link.borrow();
                let jitter = state.jitter.mul_f64(dice.share());
                let mut at = (Instant::now() + state.delay + jitter).max(free);
                if let Some(rate) = state.bytes_per_second {
                    at += Duration::from_secs_f64(piece.len() as f64 / rate.max(1) as f64);
                }
                free = at;
                if queue.send((at, piece.freeze())).await.is_err() {
                    return;
                }
            }
        }
    };
    let writing = async move {
        while let Some((at, piece)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if link.wait_for(|link| !link.cut).await.is_err() || write.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    // The reader's end drops the queue, so that the writer drains it and ends.
    tokio::join!(reading, writing);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection through the proxy: the two ends, and the links.
    async fn through() -> (TcpStream, TcpStream, Arc<Links>) {
        let (far, near) = (bound().await, bound().await);
        let (target, address) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        let links = Arc::new(Links::default());
        tokio::spawn(carry(near, 1, 2, target, links.clone()));
        let a = TcpStream::connect(address).await.unwrap();
        let (b, _) = far.accept().await.unwrap();
        (a, b, links)
    }

    async fn bound() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    async fn said(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
        from.write_all(text.as_bytes()).await.unwrap();
        heard(to, text).await;
    }

    async fn heard(to: &mut TcpStream, text: &str) {
        let mut got = vec![0; text.len()];
        to.read_exact(&mut got).await.unwrap();
        assert_eq!(got, text.as_bytes());
    }

    #[tokio::test]
    async fn a_cut_holds_one_direction_and_the_heal_delivers_it() {
        let (mut a, mut b, links) = through().await;
        said(&mut a, &mut b, "one").await;
        links.change(1, 2, |link| link.cut = true);
        a.write_all(b"two").await.unwrap();
        // The other direction goes on; by then the first would have come if it could.
        for _ in 0..50 {
            said(&mut b, &mut a, "back").await;
        }
        let mut scratch = [0; 8];
        assert_eq!(b.try_read(&mut scratch).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        links.heal();
        heard(&mut b, "two").await;
        said(&mut a, &mut b, "three").await;
    }

    #[tokio::test]
    async fn a_connection_over_a_cut_link_leads_somewhere_after_the_heal() {
        let (far, near) = (bound().await, bound().await);
        let (target, address) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        let links = Arc::new(Links::default());
        links.change(1, 2, |link| link.cut = true);
        tokio::spawn(carry(near, 1, 2, target, links.clone()));
        let mut a = TcpStream::connect(address).await.unwrap();
        a.write_all(b"hello").await.unwrap();
        assert!(futures::FutureExt::now_or_never(far.accept()).is_none());
        links.heal();
        let (mut b, _) = far.accept().await.unwrap();
        heard(&mut b, "hello").await;
    }

    #[tokio::test]
    async fn delayed_pieces_keep_their_order_and_take_their_time() {
        let (mut a, mut b, links) = through().await;
        links.change(1, 2, |link| {
            link.delay = Duration::from_millis(60);
            link.jitter = Duration::from_millis(40);
        });
        let started = std::time::Instant::now();
        for n in 0..20u8 {
            a.write_all(&[n]).await.unwrap();
        }
        let mut got = [0; 20];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(got.to_vec(), (0..20).collect::<Vec<u8>>());
        assert!(started.elapsed() >= Duration::from_millis(60));
        // A slow link takes as long as its bytes need: 20 kB at 100 kB/s.
        links.change(1, 2, |link| *link = Link { bytes_per_second: Some(100_000), ..Link::default() });
        let started = std::time::Instant::now();
        a.write_all(&[7; 20_000]).await.unwrap();
        let mut got = vec![0; 20_000];
        b.read_exact(&mut got).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(190));
    }

    #[tokio::test]
    async fn an_end_that_closes_closes_the_other() {
        let (a, mut b, _links) = through().await;
        drop(a);
        assert_eq!(b.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
