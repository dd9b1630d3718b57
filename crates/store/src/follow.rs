//! What others write to a shared backend: other replicas of the same control plane.
//!
//! A task waits for the backend to say that there may be something new, and takes it over. The writer does the same when
//! its batch comes too late.
//!
//! Invariant: writer and follower hold `applying` while they take over events, so that these are taken over in order, once.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::backend::LeaseChange;
use crate::error::{BackendError, HistoryError, OpenError};
use crate::lease;
use crate::store::Inner;
use crate::types::{LeaseRecord, Revision, Snapshot};
use crate::writer::{self, history_failure, publish};

/// First and longest pause after the backend could not be reached.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Starts the task that follows; it ends with the store.
pub(crate) fn start(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let (backend, closing) = (inner.backend.clone(), inner.closing.clone());
    tokio::spawn(async move {
        let mut pause = PAUSES.0;
        loop {
            let changed = tokio::select! {
                changed = backend.changed() => changed,
                () = closing.notified() => return,
            };
            let followed = match changed {
                Ok(()) => follow(&weak).await,
                Err(error) => Some(Err(error)),
            };
            match followed {
                None => return,
                Some(Ok(())) => pause = PAUSES.0,
                Some(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot follow the other replicas");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = closing.notified() => return,
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    });
}

async fn follow(weak: &Weak<Inner>) -> Option<Result<(), BackendError>> {
    let inner = weak.upgrade().filter(|inner| !inner.is_closed())?;
    let _in_order = inner.applying.lock().await;
    Some(settle_and_catch_up(&inner).await)
}

/// Takes over what others have written, at least through a revision.
pub(crate) async fn take_over(inner: &Arc<Inner>, through: Revision) -> Result<(), BackendError> {
    let _in_order = inner.applying.lock().await;
    // Others that waited for the same turn may have done it.
    if inner.state.read().current >= through {
        return Ok(());
    }
    settle_and_catch_up(inner).await
}

/// What a lost write of our own may have left is taken over with what it belongs to. The caller holds `applying`.
async fn settle_and_catch_up(inner: &Arc<Inner>) -> Result<(), BackendError> {
    writer::settle(inner).await?;
    catch_up(inner).await.map(drop)
}

/// Takes over everything that others have written; says whether there was anything. The caller holds `applying`.
pub(crate) async fn catch_up(inner: &Arc<Inner>) -> Result<bool, BackendError> {
    let mut news = false;
    loop {
        let current = inner.state.read().current;
        let followed = match inner.backend.follow(current).await {
            Ok(followed) => followed,
            Err(HistoryError::Compacted { .. }) => {
                reload(inner).await?;
                news = true;
                continue;
            }
            Err(error) => return Err(history_failure(error)),
        };
        if followed.revision < current {
            // Restored from a backup, or a database that does not keep what it confirmed.
            let why =
                format!("it is at revision {}, but {current} was confirmed before: start again", followed.revision);
            return Err(BackendError::new("go on with what the backend holds", why));
        }
        let mut changes = Vec::new();
        if let Some(leases) = &followed.leases {
            changes = lease_changes(inner, leases);
        }
        let done = followed.events.is_empty();
        news |= !done || !changes.is_empty() || followed.revision > current;
        let events: Vec<_> = followed.events.into_iter().map(Arc::new).collect();
        publish(inner, &events, &changes);
        {
            let mut state = inner.state.write();
            if state.current < followed.revision {
                // Revisions of keys that are not ours.
                state.current = followed.revision;
                inner.set_current(followed.revision);
                inner.set_published(followed.revision);
                inner.applied.notify_waiters();
            }
            if state.compact < followed.compact_revision {
                state.compact = followed.compact_revision;
                state.forget_compacted();
            }
        }
        if done {
            return Ok(news);
        }
    }
}

fn lease_changes(inner: &Inner, now: &[LeaseRecord]) -> Vec<LeaseChange> {
    let known = inner.leases.lock();
    let ids: HashSet<i64> = now.iter().map(|lease| lease.id).collect();
    let granted =
        now.iter().filter(|lease| !known.by_id.contains_key(&lease.id)).map(|lease| LeaseChange::Grant(*lease));
    let revoked = known.by_id.keys().filter(|id| !ids.contains(id)).map(|id| LeaseChange::Revoke { id: *id });
    granted.chain(revoked).collect()
}

/// Starts again from what the backend holds: others have written, and compacted what they wrote, while this process could
/// not reach the backend. Watchers learn that they missed something.
async fn reload(inner: &Arc<Inner>) -> Result<(), BackendError> {
    let snapshot: Snapshot = inner.backend.load().await.map_err(|error| match error {
        OpenError::Backend(error) => error,
        other => BackendError::new("load what the backend holds", other),
    })?;
    tracing::warn!(revision = snapshot.revision, "this replica was away too long and starts again from the store");
    {
        let mut leases = inner.leases.lock();
        leases.replace(&snapshot);
    }
    let hub = inner.hub.lock();
    {
        let mut state = inner.state.write();
        state.replace(snapshot);
        inner.set_current(state.current);
        inner.set_published(state.current);
    }
    hub.unsettle();
    drop(hub);
    inner.applied.notify_waiters();
    lease::ensure_timer(inner);
    Ok(())
}
