//! What a connection waits for, as futures that are polled inside its own task.
//!
//! A call that is answered wakes the task of its connection and nothing else: there is no task for each call, no channel back,
//! and a connection's answers that are ready together are written together. A place is used again for the next call, with
//! its waker, so a call costs the future itself.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

pub(super) type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

/// How others make a connection's task look at something.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<Rung>,
}

#[derive(Default)]
struct Rung {
    task: Option<Waker>,
    /// Places whose futures want to be polled.
    places: Vec<usize>,
    /// Streams, and bytes of their bodies that somebody has taken.
    taken: Vec<(u32, usize)>,
}

impl Bell {
    fn ring(&self, tell: impl FnOnce(&mut Rung)) {
        let task = {
            let mut rung = self.rung.lock().expect("no holder panics");
            tell(&mut rung);
            rung.task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Somebody has taken so many bytes of a stream's body.
    pub fn take(&self, stream: u32, bytes: usize) {
        self.ring(|rung| rung.taken.push((stream, bytes)));
    }
}

/// A place's waker.
struct Rope {
    bell: Arc<Bell>,
    place: usize,
    /// It is in the list already.
    pulled: AtomicBool,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.pulled.swap(true, Ordering::AcqRel) {
            self.bell.ring(|rung| rung.places.push(self.place));
        }
    }
}

struct Place<T> {
    rope: Arc<Rope>,
    waker: Waker,
    stream: u32,
    future: Option<Future<T>>,
}

pub(super) struct Calls<T> {
    bell: Arc<Bell>,
    places: Vec<Place<T>>,
    free: Vec<usize>,
    /// Places to be polled.
    ready: Vec<usize>,
}

impl<T> Calls<T> {
    pub fn new() -> Self {
        Self { bell: Arc::default(), places: Vec::new(), free: Vec::new(), ready: Vec::new() }
    }

    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Takes a future of a stream, to be polled with the next [`Calls::next`], and says where it is.
    pub fn add(&mut self, stream: u32, future: Future<T>) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            let place = self.places.len();
            let rope = Arc::new(Rope { bell: self.bell.clone(), place, pulled: AtomicBool::new(false) });
            self.places.push(Place { waker: rope.clone().into(), rope, stream: 0, future: None });
            place
        });
        let place = &mut self.places[at];
        (place.stream, place.future) = (stream, Some(future));
        self.ready.push(at);
        at
    }

    /// Drops a future. Whoever wakes its place later wakes whatever is there then, which does no harm.
    pub fn cancel(&mut self, at: usize) {
        if self.places[at].future.take().is_some() {
            self.free.push(at);
        }
    }

    /// Looks at what has rung since, and makes it ring for this task from now on. Gives whose bytes were taken.
    pub fn listen(&mut self, task: &Waker) -> Vec<(u32, usize)> {
        let mut rung = self.bell.rung.lock().expect("no holder panics");
        if !rung.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            rung.task = Some(task.clone());
        }
        self.ready.append(&mut rung.places);
        std::mem::take(&mut rung.taken)
    }

    /// Polls what is to be polled, until one has ended.
    pub fn next(&mut self) -> Option<(u32, T)> {
        while let Some(at) = self.ready.pop() {
            let place = &mut self.places[at];
            place.rope.pulled.store(false, Ordering::Release);
            let Some(future) = &mut place.future else { continue };
            if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&place.waker)) {
                place.future = None;
                self.free.push(at);
                return Some((place.stream, done));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::*;

    /// A future that ends when the second of its wakers' uses is over, and its waker.
    fn twice(out: Arc<Mutex<Option<Waker>>>) -> Future<&'static str> {
        let mut polls = 0;
        Box::pin(poll_fn(move |context| {
            polls += 1;
            *out.lock().unwrap() = Some(context.waker().clone());
            if polls == 2 { Poll::Ready("done") } else { Poll::Pending }
        }))
    }

    #[test]
    fn what_is_woken_is_polled_and_nothing_else() {
        let waker = Arc::new(Mutex::new(None));
        let mut calls = Calls::new();
        calls.add(1, Box::pin(pending()));
        calls.add(3, twice(waker.clone()));
        assert_eq!(calls.next(), None);
        assert!(calls.listen(Waker::noop()).is_empty());
        assert_eq!(calls.next(), None, "nobody has rung");
        let wake = waker.lock().unwrap().clone().unwrap();
        wake.wake_by_ref();
        wake.wake();
        calls.bell().take(9, 10);
        assert_eq!(calls.listen(Waker::noop()), [(9, 10)]);
        assert_eq!(calls.next(), Some((3, "done")));
        assert_eq!(calls.next(), None);
    }

    #[test]
    fn a_place_that_was_given_up_is_used_again_whoever_wakes_it() {
        let waker = Arc::new(Mutex::new(None));
        let mut calls = Calls::new();
        let place = calls.add(1, twice(waker.clone()));
        assert_eq!(calls.next(), None);
        let old = waker.lock().unwrap().clone().unwrap();
        calls.cancel(place);
        calls.cancel(place);
        assert_eq!(calls.add(5, Box::pin(pending())), place);
        assert_ne!(calls.add(7, twice(waker.clone())), place, "it was given up once");
        old.wake();
        calls.listen(Waker::noop());
        assert_eq!(calls.next(), None);
        waker.lock().unwrap().clone().unwrap().wake();
        calls.listen(Waker::noop());
        assert_eq!(calls.next(), Some((7, "done")));
    }
}
