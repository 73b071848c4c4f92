//! Shows the demo's page with a fleet that is made up, to work on the page without a cluster:
//! `cargo run -p buttress --example page_preview -- [SECONDS] [PORT]`

use std::{sync::Arc, time::Duration};

use buttress::demo::{Feed, page};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().map_or(Ok(60), |text| text.parse())?;
    let port: u16 = args.next().map_or(Ok(0), |text| text.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    eprintln!("page: http://{}/", listener.local_addr()?);
    let feed = Arc::new(Feed::default());
    tokio::join!(page::serve(listener, feed.clone()), page::preview::play(feed, Duration::from_secs(seconds)));
    Ok(())
}
