//! `policies.podSecurityStandard`: every namespace of the cluster carries the standard in its labels. The API server enforces
//! it without them too; the labels say it to people and tools.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::json;
use informer::{
    Cached, Factory, Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Queue, QueueConfig, Resource, Rest, Source,
    WorkerStats, run_workers,
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
const PREFIX: &str = "pod-security.kubernetes.io";

#[derive(Debug, Deserialize)]
struct Namespace {
    metadata: ObjectMeta,
}

impl Cached for Namespace {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The labels that say `level`.
fn labels(level: &str) -> [(String, String); 4] {
    [("enforce", level), ("enforce-version", "latest"), ("warn", level), ("warn-version", "latest")]
        .map(|(mode, value)| (format!("{PREFIX}/{mode}"), value.to_string()))
}

/// Labels namespaces until `cancel`.
pub(crate) async fn run(client: kube::Client, level: String, cancel: CancellationToken) {
    let rest = Rest::new(client, "pod-security");
    let factory = Factory::new(rest.clone());
    let namespaces: Informer<Namespace> = factory.informer(Source::all(NAMESPACES));
    let queue: Queue<ObjectKey> =
        Queue::new(QueueConfig { base_delay: Duration::from_millis(20), max_delay: Duration::from_secs(30) });
    let added = queue.clone();
    namespaces.on_change(move |change| {
        let metadata = change.object().metadata();
        added.add(ObjectKey::new(metadata.namespace.clone(), metadata.name.clone()));
    });
    let wanted = labels(&level);
    let stats = Arc::new(WorkerStats::default());
    factory.spawn(run_workers(
        "pod-security",
        1,
        queue,
        factory.cancellation().clone(),
        stats,
        move |key: ObjectKey| {
            let (rest, namespaces, wanted) = (rest.clone(), namespaces.clone(), wanted.clone());
            async move {
                let Some(namespace) = namespaces.get(&key) else { return Ok(Outcome::Done) };
                let has = &namespace.metadata.labels;
                if wanted.iter().all(|(name, value)| has.get(name.as_str()).is_some_and(|has| **has == **value)) {
                    return Ok(Outcome::Done);
                }
                let mut patch = json!({"metadata": {"labels": {}}});
                for (name, value) in &wanted {
                    patch["metadata"]["labels"][name.as_str()] = value.as_str().into();
                }
                match rest.patch(&NAMESPACES, "", "", &key.name, PatchType::Merge, &patch).await {
                    Err(error) if !error.is_not_found() => Err(error),
                    _ => Ok(Outcome::Done),
                }
            }
        },
    ));
    cancel.cancelled().await;
    factory.shutdown().await;
}
