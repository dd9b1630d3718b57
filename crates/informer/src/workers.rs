//! Runs a function for every key of a queue, several at a time.
//!
//! One task waits; the others exist only while there is work, so an idle controller costs one small task.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::queue::Queue;

/// How a reconcile ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do until something changes.
    Done,
    /// Look again after this long.
    After(Duration),
    /// Look again with the delays of a failure, without calling it one.
    Retry,
}

/// What the workers of a controller have done.
#[derive(Debug, Default)]
pub struct WorkerStats {
    pub reconciles: AtomicU64,
    pub failures: AtomicU64,
}

/// Works on the keys of `queue`, at most `workers` at a time, until `cancel`; then waits for those that run.
///
/// A failed key is logged and tried again with growing delays. A reconcile that panics counts as failed.
pub async fn run_workers<T, F, Fut, E>(
    controller: &'static str,
    workers: usize,
    queue: Queue<T>,
    cancel: CancellationToken,
    stats: Arc<WorkerStats>,
    reconcile: F,
) where
    T: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    // Boxed, so that what follows is compiled once for each type of key and not for each controller.
    let reconcile = move |key| -> Reconcile {
        let work = reconcile(key);
        Box::pin(async move { work.await.map_err(|error| Box::new(error) as ReconcileError) })
    };
    run_boxed(controller, workers, queue, cancel, stats, Box::new(reconcile)).await;
}

type ReconcileError = Box<dyn std::error::Error + Send>;
type Reconcile = BoxFuture<'static, Result<Outcome, ReconcileError>>;

async fn run_boxed<T>(
    controller: &'static str,
    workers: usize,
    queue: Queue<T>,
    cancel: CancellationToken,
    stats: Arc<WorkerStats>,
    reconcile: Box<dyn Fn(T) -> Reconcile + Send + Sync>,
) where
    T: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
{
    let mut running: JoinSet<Result<Outcome, ReconcileError>> = JoinSet::new();
    let mut keys: Vec<(tokio::task::Id, T)> = Vec::new();
    let finish = |ended: Result<(tokio::task::Id, Result<Outcome, ReconcileError>), tokio::task::JoinError>,
                  keys: &mut Vec<(tokio::task::Id, T)>| {
        stats.reconciles.fetch_add(1, Ordering::Relaxed);
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(at) = keys.iter().position(|(known, _)| *known == id) else { return };
        let (_, key) = keys.swap_remove(at);
        match ended {
            Ok((_, Ok(Outcome::Done))) => queue.forget(&key),
            Ok((_, Ok(Outcome::After(delay)))) => {
                queue.forget(&key);
                queue.add_after(key.clone(), delay);
            }
            Ok((_, Ok(Outcome::Retry))) => queue.add_rate_limited(key.clone()),
            Ok((_, Err(error))) => {
                stats.failures.fetch_add(1, Ordering::Relaxed);
                let tries = queue.num_requeues(&key);
                // Conflicts and races end by themselves; what goes on is worth a warning.
                if tries < 5 {
                    debug!(
                        controller,
                        ?key,
                        tries,
                        error = &*error as &dyn std::error::Error,
                        "reconcile failed, will retry"
                    );
                } else {
                    warn!(
                        controller,
                        ?key,
                        tries,
                        error = &*error as &dyn std::error::Error,
                        "reconcile keeps failing"
                    );
                }
                queue.add_rate_limited(key.clone());
            }
            Err(panic) => {
                stats.failures.fetch_add(1, Ordering::Relaxed);
                error!(controller, ?key, error = &panic as &dyn std::error::Error, "reconcile panicked");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    };
    loop {
        tokio::select! {
            // Cancel-safe: `get` takes a key only when it returns it, `join_next` likewise.
            biased;
            () = cancel.cancelled() => break,
            Some(ended) = running.join_next_with_id(), if !running.is_empty() => finish(ended, &mut keys),
            key = queue.get(), if running.len() < workers.max(1) => {
                let Some(key) = key else { break };
                let handle = running.spawn(reconcile(key.clone()));
                keys.push((handle.id(), key));
            }
        }
    }
    queue.shut_down();
    while let Some(ended) = running.join_next_with_id().await {
        finish(ended, &mut keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Debug, thiserror::Error)]
    #[error("no")]
    struct No;

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_tried_again_and_shutdown_waits() {
        let queue: Queue<u32> = Queue::default();
        let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
        let stats = Arc::new(WorkerStats::default());
        let cancel = CancellationToken::new();
        let (log, done) = (seen.clone(), Arc::new(tokio::sync::Notify::new()));
        let ended = done.clone();
        let workers = tokio::spawn(run_workers("test", 2, queue.clone(), cancel.clone(), stats.clone(), move |key| {
            let (log, done) = (log.clone(), done.clone());
            async move {
                let nth = {
                    let mut log = log.lock();
                    log.push(key);
                    log.iter().filter(|k| **k == key).count()
                };
                match (key, nth) {
                    (1, 1) => Err(No),
                    (2, 1) => panic!("a bug in a reconciler"),
                    (3, 1) => Ok(Outcome::After(Duration::from_secs(60))),
                    (3, 2) => {
                        done.notify_one();
                        Ok(Outcome::Done)
                    }
                    _ => Ok(Outcome::Done),
                }
            }
        }));
        for key in [1, 2, 3] {
            queue.add(key);
        }
        ended.notified().await;
        cancel.cancel();
        workers.await.unwrap();
        let mut all = seen.lock().clone();
        all.sort_unstable();
        assert_eq!(all, [1, 1, 2, 2, 3, 3]);
        assert_eq!(stats.failures.load(Ordering::Relaxed), 2);
    }
}
