//! Waiting for the end: SIGINT or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when the process is asked to end.
pub async fn wait() {
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(signal) => signal,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
