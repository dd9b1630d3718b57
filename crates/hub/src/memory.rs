//! Gives memory back that clusters have left.

use std::sync::Arc;
use std::time::Duration;

use crate::Inner;

/// Clusters fall asleep in groups, and what they had is freed by several tasks: one step for all of it.
const PAUSE: Duration = Duration::from_secs(2);

/// Whenever clusters have stopped, returns freed memory to the system, until the hub stops.
pub(crate) async fn keep_small(hub: Arc<Inner>) {
    let cancel = hub.factory.cancellation().clone();
    loop {
        tokio::select! {
            // Cancel-safe: a notification that nobody took stays.
            () = cancel.cancelled() => return,
            () = hub.freed.notified() => {}
        }
        tokio::select! {
            // Cancel-safe: both only wait.
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

/// glibc keeps freed memory in its arenas: without this a hub stays as large as it was with all its clusters awake.
#[allow(unsafe_code)]
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: `malloc_trim` takes a number, may be called by any thread, and only gives whole free pages back; it touches
    // nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
