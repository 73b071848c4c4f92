//! Serves the Kafka edge over the in-memory ledger, to try clients against it:
//!
//! ```text
//! cargo run -p buttress-events --example kafka_local -- 127.0.0.1:9092
//! echo hello | kcat -b 127.0.0.1:9092 -t greetings -P
//! kcat -b 127.0.0.1:9092 -t greetings -C -e
//! ```

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use buttress_core::{NodeId, TimeMs, ledger::Member};
use buttress_events::kafka::{Counters, Deps, Options, serve};
use buttress_state::local::Local;
use tokio::{net::TcpListener, sync::watch};

fn now() -> TimeMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    TimeMs(since.as_millis() as u64)
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9092".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let kafka = listener.local_addr()?.to_string();
        let local = Local::new();
        local.set_member(Member { id: NodeId(1), name: "local".into(), kafka: kafka.clone(), ..Member::default() });
        local.set_now(now());
        let clock = local.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                clock.set_now(now());
            }
        });
        let counters = Arc::new(Counters::default());
        let (stop, shutdown) = watch::channel(false);
        let deps = Deps {
            ledger: local.clone(),
            stream: local.clone(),
            cluster: local,
            options: Options::default(),
            counters: counters.clone(),
            shutdown,
        };
        eprintln!("kafka on {kafka}; end of standard input stops");
        let edge = tokio::spawn(serve(listener, deps));
        let mut line = String::new();
        let wait =
            tokio::task::spawn_blocking(move || while std::io::stdin().read_line(&mut line).is_ok_and(|n| n > 0) {});
        wait.await?;
        stop.send_replace(true);
        edge.await?;
        for sample in counters.samples().into_iter().filter(|sample| sample.value > 0) {
            let label = sample.label.map(|(key, value)| format!("{{{key}=\"{value}\"}}")).unwrap_or_default();
            println!("{}{label} {}", sample.name, sample.value);
        }
        Ok(())
    })
}
