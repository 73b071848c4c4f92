//! What hyper needs to run on a runtime of one thread, with values that never leave it.

use hyper::rt::Executor;

#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        // Not in an `async` block: that would have room for the future twice, as what it holds and as what it awaits.
        tokio::task::spawn_local(future);
    }
}
