//! Transactions on a backend that gives out revisions by itself.
//!
//! A transaction runs on the state in memory, which follows the backend, and is committed there under the condition that
//! what it has read is still so. If it is not, it runs again when the state has caught up. Transactions run side by side.
//!
//! Invariant: an answer is given after the state in memory has reached its revision, so that a reader finds its own writes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::{Seen, Verdict};
use crate::error::WriteError;
use crate::store::Inner;
use crate::transaction::{Overlay, Transaction};
use crate::types::Revision;

/// How long a transaction is tried, and how long the state may need to catch up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keys whose state a transaction may depend on at once; more are refused by etcd's default configuration.
const SEEN_KEYS_MAX: usize = 100;

pub(crate) async fn run<R>(
    inner: &Arc<Inner>,
    mut work: impl FnMut(&mut Transaction<'_>) -> Result<R, WriteError>,
) -> Result<(Revision, R), WriteError> {
    let Some(direct) = inner.backend.direct() else {
        return Err(WriteError::Unavailable { why: "the backend gives out no revisions".to_string() });
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let (mut seen, records, result) = {
            let before = Overlay::default();
            let current = inner.state.read().current;
            let mut transaction = Transaction::new(inner, &before, current, true);
            let result = work(&mut transaction);
            let mut staged = transaction.finish();
            if result.is_err() {
                staged.records.clear();
            }
            let records: Vec<_> = staged.records.into_values().map(|(record, _)| record).collect();
            (staged.seen, records, result)
        };
        if seen.len() > SEEN_KEYS_MAX {
            // The range they were read from stands for those that are still there.
            seen.retain(|seen| matches!(seen, Seen::Range { .. }));
        }
        match direct.commit(&seen, &records).await? {
            Verdict::Committed { revision } => {
                inner.start_compactor();
                wait_for(inner, revision).await?;
                return result.map(|result| (revision, result));
            }
            Verdict::Stale { revision } => {
                if Instant::now() >= until {
                    let why = "others kept writing to the same keys".to_string();
                    return Err(WriteError::Unavailable { why });
                }
                wait_for(inner, revision).await?;
            }
        }
    }
}

/// Waits until the state in memory has reached a revision of the backend.
pub(crate) async fn wait_for(inner: &Arc<Inner>, revision: Revision) -> Result<(), WriteError> {
    let reached = async {
        loop {
            let applied = inner.applied.notified();
            tokio::pin!(applied);
            applied.as_mut().enable();
            if inner.published() >= revision || inner.is_closed() {
                return;
            }
            applied.await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.map_err(|_| WriteError::Unavailable {
        why: format!("revision {revision} was written, but the backend has not told so in time"),
    })
}
