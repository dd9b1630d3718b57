//! One watch over all of it, continued over every failure, and what it has to have seen.
//!
//! Also a reader of what may be old (`resourceVersion=0`), which needs no store that answers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::ensure;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;
use tokio::sync::watch;

use super::http::{revision, send};
use super::load::{Acknowledged, PATH, Shared};

/// A change of an object as the watch has told it.
#[derive(Clone, Debug)]
struct Seen {
    kind: String,
    name: String,
    value: String,
    revision: u64,
}

/// Watches from a revision on until it has seen `through`, which is given in the end.
pub async fn watch(
    mut clients: watch::Receiver<kube::Client>,
    mut after: u64,
    mut through: watch::Receiver<Option<u64>>,
) -> anyhow::Result<Observed> {
    let mut observed = Observed::default();
    loop {
        let client = clients.borrow_and_update().clone();
        let path = format!("{PATH}?watch=true&allowWatchBookmarks=true&resourceVersion={after}");
        let request = http::Request::get(path).body(Vec::new())?;
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(30), client.request_stream(request)).await {
            let mut lines = Box::pin(stream).lines();
            loop {
                if through.borrow().is_some_and(|end| after >= end) {
                    return Ok(observed);
                }
                let line = tokio::select! {
                    line = lines.next() => line,
                    changed = clients.changed() => { changed?; None }
                    changed = through.changed() => { changed?; continue }
                };
                let Some(Ok(line)) = line else { break };
                let event: Value = serde_json::from_str(&line)?;
                after = observed.take(&event, after)?;
            }
            observed.restarts += 1;
        } else {
            // Refused, or nobody there: a moment later.
            let _ = tokio::time::timeout(Duration::from_millis(20), clients.changed()).await;
        }
    }
}

/// What a watch has told.
#[derive(Default)]
pub struct Observed {
    events: Vec<Seen>,
    pub restarts: usize,
}

impl Observed {
    /// Takes an event over; returns from where a watch goes on.
    fn take(&mut self, event: &Value, after: u64) -> anyhow::Result<u64> {
        let kind = event["type"].as_str().unwrap_or_default();
        let object = &event["object"];
        ensure!(kind != "ERROR", "the watch after revision {after} ended: {object}");
        let now = revision(object);
        if kind == "BOOKMARK" {
            ensure!(now >= after, "a bookmark of revision {now} after {after}");
            return Ok(now);
        }
        ensure!(now > after, "an event of revision {now} after {after}: {event}");
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, value) = (text("/metadata/name"), text("/data/value"));
        if name != "kube-root-ca.crt" {
            self.events.push(Seen { kind: kind.to_owned(), name, value, revision: now });
        }
        Ok(now)
    }

    /// Each acknowledged write is among the events, once, with the revision it was acknowledged with; and each object's
    /// events follow each other as one history.
    pub fn check(&self, acknowledged: &[Acknowledged]) -> anyhow::Result<()> {
        let mut there: HashMap<&str, &str> = HashMap::new();
        let mut told = BTreeSet::new();
        for event in &self.events {
            let name = event.name.as_str();
            let deleted = match event.kind.as_str() {
                "ADDED" => {
                    let before = there.insert(name, &event.value);
                    ensure!(before.is_none(), "{name} was added twice: {event:?}");
                    false
                }
                "MODIFIED" => {
                    let before = there.insert(name, &event.value);
                    ensure!(before.is_some(), "{name} was changed and was not there: {event:?}");
                    false
                }
                _ => {
                    let before = there.remove(name);
                    ensure!(before == Some(&event.value), "{name} was deleted as {before:?}: {event:?}");
                    true
                }
            };
            let revision = if deleted { 0 } else { event.revision };
            let this = Acknowledged { name: event.name.clone(), value: event.value.clone(), deleted, revision };
            ensure!(told.insert(this), "the watch has told twice: {event:?}");
        }
        for write in acknowledged {
            ensure!(told.contains(write), "acknowledged, and the watch has not told it: {write:?}");
        }
        Ok(())
    }
}

/// Reads the newest list that the control plane has, whatever its age, while `shared.stop` is not set. Every answer has to be a
/// good one. Returns how many there were, and the longest time of one.
pub async fn read_any_age(
    client: kube::Client,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> anyhow::Result<(u64, Duration)> {
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Acquire) {
        let path = format!("{PATH}?resourceVersion=0");
        let answer = send(&client, "GET", &path, None).await;
        let answer = answer.map_err(|lost| anyhow::anyhow!("a read of any age got no answer: {lost:?}"))?;
        ensure!(answer.code == 200, "a read of any age was refused: {} {}", answer.code, answer.body);
        count += 1;
        slowest = slowest.max(answer.took);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((count, slowest))
}

/// The newest revision there is.
pub async fn newest(clients: &watch::Receiver<kube::Client>, shared: &Shared) -> anyhow::Result<u64> {
    let client = clients.borrow().clone();
    let began = std::time::Instant::now();
    loop {
        if let Ok(answer) = send(&client, "GET", PATH, None).await
            && answer.code == 200
        {
            return Ok(answer.revision());
        }
        shared.unanswered.fetch_add(1, Ordering::AcqRel);
        ensure!(began.elapsed() < Duration::from_secs(60), "there is no answer a minute after the last fault");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
