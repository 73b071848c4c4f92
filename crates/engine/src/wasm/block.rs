//! Waits for a future on any thread.
//!
//! Guests run inside wasmtime's fibres, as futures. `tokio::Runtime::block_on` refuses to run inside another runtime,
//! and a plane may well call us from one, so this waits with nothing but the thread's own parking.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
};

struct Unpark {
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }
}

/// Polls `future` to its end, parking the thread while it waits.
pub(crate) fn on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let unpark = Arc::new(Unpark { thread: std::thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        // Somebody else's token may end a park early; only our flag ends the wait.
        while !unpark.woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    #[test]
    fn a_wake_from_another_thread_ends_the_wait() {
        let (send, receive) = oneshot::channel();
        let sender = std::thread::spawn(move || send.send(7));
        assert_eq!(super::on(receive), Ok(7));
        sender.join().expect("the sender ends").expect("the receiver is there");
    }
}
