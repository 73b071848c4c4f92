//! A proxy that stands in the way on purpose. It runs on a thread of its own, so that it outlives the test that uses it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to the frames of a Kafka, told by the number of their API.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    /// The answer is lost, and the connection with it: the request was carried out.
    LoseAnswer,
    /// The request is lost, and the connection with it.
    LoseRequest,
    /// The request comes late.
    Delay(Duration),
    /// A bit of the answer's last bytes is another one.
    Flip,
    /// Half of the answer comes, then nothing more.
    Tear,
    /// The answer states a length that nobody can have.
    Lie,
    /// Instead of the answer comes the one to another question.
    Mix,
}

#[derive(Default)]
struct Rule {
    harm: Option<(i16, Harm, usize)>,
    hits: usize,
}

pub struct Proxy {
    address: String,
    rule: Arc<Mutex<Rule>>,
}

impl Proxy {
    pub fn start(target: String) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let rule = Arc::<Mutex<Rule>>::default();
        let theirs = rule.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    let (target, rule) = (target.clone(), theirs.clone());
                    tokio::spawn(async move {
                        if let Ok(server) = TcpStream::connect(&target).await {
                            pump(client, server, rule).await;
                        }
                    });
                }
            });
        });
        Self { address, rule }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Nothing is in the way any more.
    pub fn pass(&self) {
        *self.rule.lock().unwrap() = Rule::default();
    }

    /// Harms the next `count` frames of an API.
    pub fn harm(&self, api: i16, harm: Harm, count: usize) {
        *self.rule.lock().unwrap() = Rule { harm: Some((api, harm, count)), hits: 0 };
    }

    pub fn hits(&self) -> usize {
        self.rule.lock().unwrap().hits
    }
}

fn hit(rule: &Mutex<Rule>, api: i16, which: impl Fn(Harm) -> bool) -> Option<Harm> {
    let mut rule = rule.lock().unwrap();
    let (wanted, harm, left) = rule.harm?;
    if wanted != api || left == 0 || !which(harm) {
        return None;
    }
    rule.harm = Some((wanted, harm, left - 1));
    rule.hits += 1;
    Some(harm)
}

async fn frame(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<Vec<u8>> {
    let length = stream.read_u32().await.ok()?;
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn pump(client: TcpStream, server: TcpStream, rule: Arc<Mutex<Rule>>) {
    let asked: Arc<Mutex<HashMap<[u8; 4], i16>>> = Arc::default();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (rules, apis) = (rule.clone(), asked.clone());
    let up = async move {
        while let Some(request) = frame(&mut from_client).await {
            let api = i16::from_be_bytes([request[0], request[1]]);
            apis.lock().unwrap().insert(request[4..8].try_into().unwrap(), api);
            match hit(&rules, api, |harm| matches!(harm, Harm::LoseRequest | Harm::Delay(_))) {
                Some(Harm::LoseRequest) => return,
                Some(Harm::Delay(time)) => tokio::time::sleep(time).await,
                _ => {}
            }
            if to_server.write_u32(request.len() as u32).await.is_err() || to_server.write_all(&request).await.is_err()
            {
                return;
            }
        }
    };
    let down = async move {
        while let Some(mut answer) = frame(&mut from_server).await {
            let api = asked.lock().unwrap().remove(&answer[..4]).unwrap_or(-1);
            let mut length = answer.len() as u32;
            let mut sent = answer.len();
            match hit(&rule, api, |harm| !matches!(harm, Harm::LoseRequest | Harm::Delay(_))) {
                Some(Harm::LoseAnswer) => return,
                Some(Harm::Flip) => {
                    let at = answer.len() - 10;
                    answer[at] ^= 0x10;
                }
                Some(Harm::Tear) => sent /= 2,
                Some(Harm::Lie) => length = i32::MAX as u32,
                Some(Harm::Mix) => answer[3] ^= 0x55,
                _ => {}
            }
            if to_client.write_u32(length).await.is_err() || to_client.write_all(&answer[..sent]).await.is_err() {
                return;
            }
            if sent < answer.len() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Bytes as they come, for protocols that are not looked into.
pub struct Pipe {
    pub address: String,
    open: watch::Sender<bool>,
}

impl Pipe {
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, mut is_open) = (target.clone(), is_open.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(&target).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    tokio::select! {
                        _ = copy(&mut from_client, &mut to_server) => {}
                        _ = copy(&mut from_server, &mut to_client) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }

    pub fn shut(&self) {
        self.open.send_replace(false);
    }

    pub fn pass(&self) {
        self.open.send_replace(true);
    }
}
