//! The live page of a running fleet.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::feed::Feed;

/// Serves the page until aborted.
pub async fn serve(_listener: TcpListener, _feed: Arc<Feed>) {
    std::future::pending().await
}
