//! Catching up with what others wrote to a shared backend, for reads that must not be older than their request.
//!
//! Requests that come in while the backend is being asked share the next question: what was asked before they came may have
//! been answered from before, and one answer is enough for all of them.
//!
//! Invariants:
//! - At most one question is under way, by one task, which ends when nobody waits.
//! - Whoever waits is answered by a question that was begun after it came, or learns that there is no answer.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::direct;
use crate::error::{BackendError, ReadError, chain};
use crate::follow;
use crate::store::Inner;
use crate::types::Revision;

type Answer = Result<Revision, String>;

/// Who waits for the next question.
#[derive(Default)]
pub(crate) struct Waiting {
    answers: Vec<oneshot::Sender<Answer>>,
    running: bool,
}

/// Lets the next request start a task when this one is cancelled with its runtime.
struct Running {
    inner: Arc<Inner>,
    finished: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Another task may be there already when this one has finished.
        if !self.finished {
            let mut waiting = self.inner.synchronizing.lock();
            waiting.running = false;
            waiting.answers.clear();
        }
    }
}

/// Waits until this store has seen what others had written when this was called.
pub(crate) async fn synchronize(inner: &Arc<Inner>) -> Result<Revision, ReadError> {
    let unavailable = |why: String| ReadError::Unavailable(BackendError::new("catch up with the store", why));
    let (answer, answered) = oneshot::channel();
    let start = {
        let mut waiting = inner.synchronizing.lock();
        waiting.answers.push(answer);
        !std::mem::replace(&mut waiting.running, true)
    };
    if start {
        // Made here and not in the task, which may be dropped before it ever runs.
        tokio::spawn(answer_all(Running { inner: inner.clone(), finished: false }));
    }
    match tokio::time::timeout(inner.options.answer_max, answered).await {
        Ok(Ok(answer)) => answer.map_err(unavailable),
        Ok(Err(_)) => Err(unavailable("the task that asks was stopped".to_string())),
        Err(_) => Err(unavailable("there was no answer in time".to_string())),
    }
}

async fn answer_all(mut running: Running) {
    let inner = running.inner.clone();
    loop {
        let answers = {
            let mut waiting = inner.synchronizing.lock();
            let answers = std::mem::take(&mut waiting.answers);
            if answers.is_empty() {
                // Under the lock that saw that nobody waits.
                waiting.running = false;
                running.finished = true;
                return;
            }
            answers
        };
        let answer = tokio::time::timeout(inner.options.answer_max, once(&inner)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| chain(&error)),
            Err(_) => Err("there was no answer in time".to_string()),
        };
        for waiting in answers {
            // Nobody listens any more when the caller has gone away.
            drop(waiting.send(answer.clone()));
        }
    }
}

async fn once(inner: &Arc<Inner>) -> Result<Revision, BackendError> {
    let last = inner.backend.last_revision().await?;
    let current = || inner.state.read().current;
    if inner.backend.direct().is_some() {
        direct::wait_for(inner, last).await.map_err(|error| BackendError::new("follow the store", error))?;
    } else if last > current() {
        // A task of its own: what it has begun it ends, also when nobody waits that long.
        let inner = inner.clone();
        let followed = tokio::spawn(async move { follow::take_over(&inner, last).await });
        followed.await.map_err(|error| BackendError::new("take over what was written", error))??;
    }
    Ok(current())
}
