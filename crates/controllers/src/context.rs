//! What every controller is given, and how it runs.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use informer::events::Recorder;
use informer::{
    ApiError, Clock, DeleteOptions, Factory, Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Queue, QueueConfig,
    Resource, Rest, WorkerStats, run_workers,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::manager::ManagerConfig;
use crate::resources::PODS;
use crate::types::Pod;

/// The pod index by the uid of the controlling owner.
pub const BY_CONTROLLER: &str = "controller";
/// The pod index by node name; unassigned pods are under the empty name.
pub const BY_NODE: &str = "node";

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("the API server refused a request")]
    Api(#[from] ApiError),
    #[error("{0}")]
    Other(String),
}

pub type ReconcileResult = Result<Outcome, ReconcileError>;

/// The queue of a controller at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Keys that wait.
    pub depth: usize,
    /// Keys added so far, and how many of them were retries.
    pub adds: u64,
    pub retries: u64,
}

/// A controller that runs.
pub(crate) struct Running {
    pub name: &'static str,
    pub workers: Arc<WorkerStats>,
    pub queue: Box<dyn Fn() -> QueueStats + Send + Sync>,
}

/// The shared means of all controllers of one manager.
#[derive(Clone)]
pub struct Context {
    pub factory: Factory,
    pub rest: Rest,
    pub clock: Clock,
    pub recorder: Recorder,
    pub config: Arc<ManagerConfig>,
    pub(crate) stats: Arc<parking_lot::Mutex<Vec<Running>>>,
}

impl Context {
    /// The context in the name of one controller: user agent and event source.
    pub fn for_controller(&self, account: &str, event_source: &str) -> Self {
        Context {
            rest: self.rest.for_part(&format!("system:serviceaccount:kube-system:{account}")),
            recorder: self.recorder.for_component(event_source),
            ..self.clone()
        }
    }

    /// Pods with the indexes that controllers share.
    pub fn pods(&self) -> Informer<Pod> {
        let pods: Informer<Pod> = self.factory.informer(PODS);
        crate::ownership::add_owner_index(&pods);
        pods.add_index(BY_NODE, |p: &Pod, out| out.push(p.spec.node_name.clone()));
        pods
    }

    /// Runs `reconcile` for the keys of `queue` once the caches in `synced` are complete, until the manager stops.
    pub fn run<T, F, Fut>(
        &self,
        controller: &'static str,
        workers: usize,
        queue: &Queue<T>,
        synced: Vec<watch::Receiver<bool>>,
        reconcile: F,
    ) where
        T: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ReconcileResult> + Send + 'static,
    {
        let stats = Arc::new(WorkerStats::default());
        let measured = queue.clone();
        let queue_stats = Box::new(move || {
            let (adds, retries) = measured.totals();
            QueueStats { depth: measured.len(), adds, retries }
        });
        self.stats.lock().push(Running { name: controller, workers: stats.clone(), queue: queue_stats });
        let (queue, cancel) = (queue.clone(), self.factory.cancellation().clone());
        self.factory.spawn(async move {
            let ready = async {
                for mut synced in synced {
                    // An error means that the informer was stopped, so nobody can wait for it.
                    let _ = synced.wait_for(|synced| *synced).await;
                }
            };
            tokio::select! {
                // Cancel-safe: both only wait.
                () = ready => {}
                () = cancel.cancelled() => return,
            }
            run_workers(controller, workers, queue, cancel, stats, reconcile).await;
        });
    }

    /// Replaces fields of an object's status; `null` removes one. Fails on a conflict with `resourceVersion` read.
    pub async fn patch_status(
        &self,
        resource: &Resource,
        object: &ObjectMeta,
        status: Value,
    ) -> Result<Value, ApiError> {
        let mut patch = Value::object();
        patch.set_at(&["metadata", "uid"], object.uid.as_str().into());
        patch.set_at(&["metadata", "resourceVersion"], object.resource_version.as_str().into());
        patch["status"] = status;
        self.rest.patch(resource, "status", &object.namespace, &object.name, PatchType::Merge, &patch).await
    }

    /// Merges `patch` into an object; fails on a conflict with the `resourceVersion` read.
    pub async fn merge(&self, resource: &Resource, object: &ObjectMeta, mut patch: Value) -> Result<Value, ApiError> {
        patch.set_at(&["metadata", "uid"], object.uid.as_str().into());
        patch.set_at(&["metadata", "resourceVersion"], object.resource_version.as_str().into());
        self.rest.patch(resource, "", &object.namespace, &object.name, PatchType::Merge, &patch).await
    }

    /// Replaces an object's finalizers.
    pub async fn set_finalizers(
        &self,
        resource: &Resource,
        object: &ObjectMeta,
        finalizers: Vec<&str>,
    ) -> Result<Value, ApiError> {
        let mut patch = Value::object();
        let finalizers = if finalizers.is_empty() { Value::Null } else { finalizers.into() };
        patch.set_at(&["metadata", "finalizers"], finalizers);
        self.merge(resource, object, patch).await
    }

    /// Deletes an object; one that is gone already is fine.
    pub async fn delete(&self, resource: &Resource, key: &ObjectKey, options: &DeleteOptions) -> Result<(), ApiError> {
        ignore_not_found(self.rest.delete(resource, &key.namespace, &key.name, options).await)
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// A queue for object keys with the usual delays.
pub fn key_queue() -> Queue<ObjectKey> {
    Queue::new(QueueConfig { base_delay: Duration::from_millis(5), max_delay: Duration::from_secs(300) })
}

/// Not found means that the work is done by someone else.
pub fn ignore_not_found<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A wait that is not negative.
pub fn wait(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}

/// Zero as `null`: how a count that Go omits when empty is written in a merge patch.
pub fn omit_zero(count: i64) -> Value {
    if count == 0 { Value::Null } else { count.into() }
}

/// An empty text as `null`.
pub fn omit_empty(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}
