//! Copies of requests for a service that is being tried. Nobody waits for its answers, and nothing that happens to a copy is
//! felt by the request.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use http_body_util::BodyExt;

use crate::{
    call::{Asked, Story},
    forward::{Added, Known},
    parse::RequestHead,
    proxy::{Client, Core, send},
    replay::Replay,
    rules::drawn,
    table::Member,
};

/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Copies of one core under way; more are left out, so that a slow mirror holds little memory (64 KiB each at most).
const COPIES_MAX: usize = 64;

pub struct Mirror {
    pub member: Arc<Member>,
    pub share: f32,
}

impl Mirror {
    /// Sends a copy, where the whole request is still here.
    pub fn copy(
        &self,
        core: &Rc<Core>,
        request: &RequestHead,
        asked: &Asked<'_>,
        replay: Option<&Rc<RefCell<Replay>>>,
        client: &Client<'_>,
        story: &Story<'_>,
    ) {
        let whole = replay.is_none_or(|replay| replay.borrow().complete());
        if !whole || request.upgrade || !drawn(core.numbers.draw(), self.share) || core.copies.get() >= COPIES_MAX {
            return;
        }
        core.copies.set(core.copies.get() + 1);
        core.shard.mirrored.add(1);
        let (core, request, replay, member) = (core.clone(), request.clone(), replay.cloned(), self.member.clone());
        let (address, id, path, secure) =
            (client.address.to_owned(), story.id().clone(), asked.path.clone(), client.secure);
        let (rewrite, traceparent) = (asked.rewrite.cloned(), story.traceparent().to_vec());
        let (caller, withheld) = (asked.known.caller.map(str::to_owned), asked.known.withheld.map(str::to_owned));
        tokio::task::spawn_local(async move {
            let upstream = core.upstream(&member);
            let added = Added {
                id: &id,
                client: &Client { address: &address, secure, ..Client::default() },
                traceparent: &traceparent,
                attempt: 1,
                left_ms: None,
                endpoint: &upstream.endpoint.address,
                tls: false,
                rewrite: rewrite.as_ref(),
                path: path.as_deref(),
                known: Known { caller: caller.as_deref(), withheld: withheld.as_deref() },
            };
            let exchange = async {
                if let Ok(got) = send(&core, &upstream, &request, replay.as_ref(), &added, false).await {
                    let mut body = crate::body::Body::from(got.flow);
                    // Read to its end, so that the connection can be used again.
                    while let Some(Ok(_)) = body.frame().await {}
                }
            };
            if tokio::time::timeout(PATIENCE, exchange).await.is_err() {
                tracing::debug!(endpoint = member.endpoint.address, "a mirrored request took too long");
            }
            core.copies.set(core.copies.get() - 1);
        });
    }
}
