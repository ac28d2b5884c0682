//! Named tasks: each is counted, a panic is logged with its name, and the end waits for all of them.
//!
//! Invariant: a task is in the count from `spawn` until its future is dropped, however it ends.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use evenkeel_model::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::error;

/// All tasks of a process or of one of its parts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    running: Mutex<BTreeMap<&'static str, usize>>,
    emptied: Notify,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` on the current runtime. A panic in it is logged and ends this task only.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[allow(clippy::disallowed_methods)] // This is the allowed place.
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.named(name, future))
    }

    /// Runs `future` on the current thread's `LocalSet`. A panic in it is logged and ends this task only.
    ///
    /// # Panics
    /// Outside a `LocalSet`.
    pub fn spawn_local(
        &self,
        name: &'static str,
        future: impl Future<Output = ()> + 'static,
    ) -> JoinHandle<()> {
        tokio::task::spawn_local(self.named(name, future))
    }

    fn named<F: Future<Output = ()>>(
        &self,
        name: &'static str,
        future: F,
    ) -> impl Future<Output = ()> + use<F> {
        let counted = Counted::new(Arc::clone(&self.0), name);
        async move {
            let _counted = counted;
            if let Err(panic) = catch_panic(future).await {
                error!(task = name, %panic, "task panicked");
            }
        }
    }

    /// Tasks running now, by name.
    #[must_use]
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until none runs.
    ///
    /// # Errors
    /// After `deadline`: those still running, by name.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn join_all(&self, deadline: Duration) -> Result<(), BTreeMap<&'static str, usize>> {
        let emptied = async {
            loop {
                let notified = self.0.emptied.notified();
                if self.running().is_empty() {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(deadline, emptied).await.map_err(|_| self.running())
    }
}

struct Counted {
    inner: Arc<Inner>,
    name: &'static str,
}

impl Counted {
    fn new(inner: Arc<Inner>, name: &'static str) -> Self {
        *inner.running.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { inner, name }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
        if running.is_empty() {
            self.inner.emptied.notify_waiters();
        }
    }
}

/// Runs a future and turns a panic in it into its message, for tasks that are to be restarted.
///
/// # Errors
/// The panic's message.
///
/// # Cancel safety
/// As that of `future`.
pub async fn catch_panic<F: Future>(future: F) -> Result<F::Output, String> {
    CatchPanic { future: Box::pin(future) }.await
}

struct CatchPanic<F> {
    future: Pin<Box<F>>,
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut();
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(message(panic.as_ref()))),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| String::from("panic without a message"))
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn panic_ends_only_its_own_task() {
        let tasks = Tasks::new();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tasks.spawn("bad", async { panic!("planned") });
        tasks.spawn("good", async move { sender.send(7).unwrap() });
        assert_eq!(receiver.await, Ok(7));
        tasks.join_all(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn join_names_what_did_not_end() {
        let tasks = Tasks::new();
        let task = tasks.spawn("stuck", pending());
        let left = tasks.join_all(Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [("stuck", 1)]);
        task.abort();
        tasks.join_all(Duration::from_secs(5)).await.unwrap();
    }

    #[tokio::test]
    async fn catch_panic_says_the_message() {
        assert_eq!(catch_panic(async { 1 }).await, Ok(1));
        assert_eq!(catch_panic(async { panic!("at {}", 3) }).await, Err::<(), _>(String::from("at 3")));
    }
}
