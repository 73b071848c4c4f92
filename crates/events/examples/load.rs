//! Publishes readings over many MQTT connections at a steady rate, and says how long the PUBACKs took.
//!
//!     cargo run --release -p buttress-events --example load -- PORT CONNECTIONS RATE SECONDS

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use buttress_wire::mqtt::{Connect, Packet, Publish, Qos, Text, TopicName, decode};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, interval_at},
};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arg = |at: usize| std::env::args().nth(at).and_then(|a| a.parse::<u64>().ok()).expect("four numbers");
    let (port, connections, rate, seconds) = (arg(1) as u16, arg(2), arg(3), arg(4));
    let times = Arc::new(Mutex::new(Vec::<u32>::new()));
    let period = Duration::from_secs_f64(connections as f64 / rate as f64);
    // Late enough for all of them to be connected by then.
    let start = Instant::now() + Duration::from_secs(2 + connections / 1000);
    let mut tasks = Vec::new();
    for n in 0..connections {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("the edge accepts");
        socket.set_nodelay(true).expect("a TCP option");
        let mut out = BytesMut::new();
        let client_id = Text::try_from(&format!("load-{n}")[..]).expect("valid");
        let (will, username, password) = (None, None, None);
        Packet::Connect(Box::new(Connect {
            client_id,
            clean_session: true,
            keep_alive_s: 60,
            will,
            username,
            password,
        }))
        .encode(&mut out);
        socket.write_all(&out).await.expect("connected");
        let times = times.clone();
        tasks.push(tokio::spawn(async move {
            let (mut read, mut write) = socket.into_split();
            let mut ticks = interval_at(start + period.mul_f64(n as f64 / connections as f64), period);
            let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
            let ours = sent.clone();
            let count = (seconds as f64 / period.as_secs_f64()) as usize;
            let reader = tokio::spawn(async move {
                let (mut input, mut acked, mut took) = (BytesMut::new(), 0, Vec::new());
                while acked < count {
                    if read.read_buf(&mut input).await.expect("connected") == 0 {
                        panic!("the edge closed after {acked} PUBACKs");
                    }
                    while let Some(packet) = decode(&mut input, 1024).expect("MQTT") {
                        if let Packet::Puback { .. } = packet {
                            took.push(ours.lock().expect("unpoisoned")[acked].elapsed().as_micros() as u32);
                            acked += 1;
                        }
                    }
                }
                took
            });
            for seq in 0..count {
                ticks.tick().await;
                let body = format!(
                    r#"{{"machine":"m{n:05}","seq":{seq},"temperature":71.234,"vibration":0.0123,"speed":1498.2,"torque":41.03,"wear":117.5,"at":1790000000000}}"#
                );
                let topic = TopicName::try_from(&format!("telemetry/m{n:05}")[..]).expect("valid");
                let packet_id = Some((seq % 65_535) as u16 + 1);
                let mut out = BytesMut::new();
                Publish { dup: false, qos: Qos::AtLeastOnce, retain: false, topic, packet_id, payload: body.into() }
                    .encode(&mut out);
                sent.lock().expect("unpoisoned").push(Instant::now());
                write.write_all(&out).await.expect("connected");
            }
            let took = reader.await.expect("no panic");
            times.lock().expect("unpoisoned").extend(took);
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let mut times = times.lock().expect("unpoisoned");
    times.sort_unstable();
    let at = |q: f64| f64::from(times[((times.len() - 1) as f64 * q) as usize]) / 1000.0;
    println!(
        "{} acked in {:.1} s, ms: p50 {:.1} p99 {:.1} max {:.1}",
        times.len(),
        start.elapsed().as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
