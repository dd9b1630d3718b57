//! garbage-collector: deletes objects whose owners are gone, in background, foreground, or not at all (orphan).
//!
//! Watches the metadata of every deletable resource, custom ones too, sharing the caches that other controllers have. The
//! graph only says what to look at; every decision is made on live objects.
//!
//! Invariants:
//! - An object is deleted only when the API server has just said that none of its owners exists (or that those that exist
//!   wait for it), and only if it has not changed since it was read.
//! - An owner that cannot be resolved (unknown kind, server unreachable) counts as existing.
//!
//! Follows: `pkg/controller/garbagecollector`.

mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use informer::events::ObjectReference;
use informer::{
    ApiError, DeleteOptions, Header, HeaderChange, Informer, ObjectMeta, Outcome, OwnerReference, Queue, QueueConfig,
    Source,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::debug;

use self::graph::{FOREGROUND, Graph, Node, ORPHAN, Place, Task, Uid};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found};
use crate::discovery::{ApiResource, Discovery};
use crate::resources::CUSTOM_RESOURCE_DEFINITIONS;
use crate::types::to_value;

/// Discovery is read again when a CRD changes, and this often for what has no CRD (aggregated APIs).
const RESYNC: Duration = Duration::from_secs(300);
/// A changed CRD is served soon after, not at once.
const SETTLE: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];
/// Owners known to be absent; a bound, since uids come from users.
const ABSENT_MAX: usize = 5000;
/// Changing too often to be owned by anything that matters, as upstream ignores them.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

struct Watched {
    resource: ApiResource,
    synced: watch::Receiver<bool>,
    /// Not after the resource is gone; it may come back.
    running: bool,
}

struct Collector {
    context: Context,
    queue: Queue<Task>,
    graph: Mutex<Graph>,
    /// Never shrinks: nodes name a resource by its index.
    watched: RwLock<Vec<Watched>>,
    discovery: RwLock<Discovery>,
    absent: Mutex<HashSet<(Uid, Place)>>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("generic-garbage-collector", "garbage-collector-controller");
    let queue: Queue<Task> =
        Queue::new(QueueConfig { base_delay: Duration::from_millis(5), max_delay: Duration::from_secs(300) });
    let collector = Arc::new(Collector {
        context: context.clone(),
        queue: queue.clone(),
        graph: Mutex::default(),
        watched: RwLock::default(),
        discovery: RwLock::default(),
        absent: Mutex::default(),
    });
    let resync = Arc::new(tokio::sync::Notify::new());
    let crds: Informer<Header> = context.factory.informer(Source::all(CUSTOM_RESOURCE_DEFINITIONS).metadata_only());
    let notify = resync.clone();
    crds.on_change(move |_| notify.notify_one());
    let (ready, synced) = watch::channel(false);
    let watcher = collector.clone();
    let cancel = context.factory.cancellation().clone();
    context.factory.spawn(async move {
        tokio::select! {
            // Cancel-safe: an informer is started whole or not at all.
            () = cancel.cancelled() => {}
            () = watcher.follow_discovery(resync, ready) => {}
        }
    });
    context.run("garbage-collector", 10, &queue, vec![synced], move |task| {
        let collector = collector.clone();
        async move { collector.work(task).await }
    });
}

impl Collector {
    /// Watches what discovery tells, forever. `ready` turns true when all that was there at first has been seen once.
    async fn follow_discovery(self: Arc<Self>, resync: Arc<tokio::sync::Notify>, ready: watch::Sender<bool>) {
        let mut settle = SETTLE.iter().copied().chain([RESYNC]);
        loop {
            let delay = match self.sync_resources().await {
                Ok(()) if !*ready.borrow() => {
                    self.wait_synced().await;
                    ready.send_replace(true);
                    RESYNC
                }
                Ok(()) => settle.next().unwrap_or(RESYNC),
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "could not read discovery, will retry");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                // Cancel-safe: both only wait.
                () = resync.notified() => settle = SETTLE.iter().copied().chain([RESYNC]),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    async fn wait_synced(&self) {
        let all: Vec<_> = self.watched.read().iter().map(|w| w.synced.clone()).collect();
        let each = all.into_iter().map(|mut synced| async move {
            // One resource that cannot be listed must not stop garbage collection for ever.
            let _ = tokio::time::timeout(Duration::from_secs(30), synced.wait_for(|s| *s)).await;
        });
        futures::future::join_all(each).await;
    }

    async fn sync_resources(self: &Arc<Self>) -> Result<(), ApiError> {
        let discovery = Discovery::read(&self.context.rest).await?;
        let deletable: Vec<ApiResource> = discovery
            .preferred()
            .filter(|r| r.can(&["delete", "list", "watch"]))
            .filter(|r| !IGNORED.contains(&(r.resource.group.as_str(), r.resource.resource.as_str())))
            .cloned()
            .collect();
        let complete = discovery.failed.is_empty();
        *self.discovery.write() = discovery;
        let known: HashMap<ApiResource, (usize, bool)> =
            self.watched.read().iter().enumerate().map(|(i, w)| (w.resource.clone(), (i, w.running))).collect();
        for resource in &deletable {
            let index = match known.get(resource) {
                Some((_, true)) => continue,
                Some((index, false)) => *index,
                None => self.watched.read().len(),
            };
            let (handler, kind) = (self.clone(), resource.kind.clone());
            let observe = move |change: HeaderChange<'_>| handler.observe(index, &kind, &change);
            let synced = self.context.factory.headers(resource.resource.clone(), observe);
            let watched = Watched { resource: resource.clone(), synced, running: true };
            let mut all = self.watched.write();
            match all.get_mut(index) {
                Some(before) => *before = watched,
                None => all.push(watched),
            }
        }
        // Resources of custom kinds that are gone; a group that could not be read is not gone.
        if complete {
            for (resource, (index, running)) in &known {
                if *running && !deletable.contains(resource) && resource.resource.group.contains('.') {
                    self.context.factory.stop_source(&Source::all(resource.resource.clone()));
                    self.watched.write()[*index].running = false;
                }
            }
        }
        Ok(())
    }

    fn observe(&self, resource: usize, kind: &str, change: &HeaderChange<'_>) {
        let object = change.object;
        let uid = Uid::new(&object.uid);
        let tasks = if change.deleted {
            let tasks = self.graph.lock().remove(uid);
            if !tasks.is_empty() {
                self.mark_absent(uid, Place::new(kind, &object.namespace, &object.name));
            }
            tasks
        } else {
            let (tasks, elsewhere) = {
                let mut graph = self.graph.lock();
                let tasks = graph.observe(resource, kind, object);
                let strange = |o: &&OwnerReference| graph.is_elsewhere(o, &object.namespace);
                (tasks, object.owner_references.iter().find(strange).cloned())
            };
            if let Some(reference) = elsewhere.filter(|_| !tasks.is_empty()) {
                self.report_elsewhere(resource, kind, object, &reference);
            }
            tasks
        };
        tasks.into_iter().for_each(|task| self.queue.add(task));
    }

    /// Tells the user why an object goes whose owner seems to be there.
    fn report_elsewhere(&self, resource: usize, kind: &str, object: &ObjectMeta, reference: &OwnerReference) {
        let version = self.watched.read().get(resource).map(|w| w.resource.resource.api_version()).unwrap_or_default();
        let OwnerReference { api_version, kind: owner, name, uid, .. } = reference;
        let namespace = &object.namespace;
        let message = format!(
            "ownerRef [{api_version}/{owner}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace {namespace:?}"
        );
        let about = ObjectReference::new(&version, kind, object);
        self.context.recorder.warning(&about, "OwnerRefInvalidNamespace", message);
    }

    fn mark_absent(&self, uid: Uid, place: Place) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert((uid, place));
    }

    async fn work(&self, task: Task) -> ReconcileResult {
        match task {
            Task::Delete(uid) => self.attempt_to_delete(uid).await,
            Task::Orphan(uid) => self.attempt_to_orphan(uid).await,
        }
    }

    fn resource_of(&self, node: &Node) -> ApiResource {
        self.watched.read()[node.resource].resource.clone()
    }

    async fn live(&self, node: &Node) -> Result<Option<ObjectMeta>, ApiError> {
        let resource = self.resource_of(node);
        match self.context.rest.get_metadata(&resource.resource, &node.key.namespace, &node.key.name).await {
            Ok(live) if live.metadata.uid == node.uid => Ok(Some(live.metadata)),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn attempt_to_delete(&self, uid: Uid) -> ReconcileResult {
        let Some(node) = self.graph.lock().node(uid).cloned() else { return Ok(Outcome::Done) };
        if node.deleting && !node.waits_for_dependents {
            return Ok(Outcome::Done);
        }
        let Some(live) = self.live(&node).await? else {
            // The watch will tell, but need not have told yet.
            let tasks = self.graph.lock().remove(uid);
            let kind = self.resource_of(&node).kind;
            self.mark_absent(uid, Place::new(&kind, &node.key.namespace, &node.key.name));
            tasks.into_iter().for_each(|task| self.queue.add(task));
            return Ok(Outcome::Done);
        };
        if node.waits_for_dependents {
            return self.continue_foreground(uid, &node, &live).await;
        }
        if live.owner_references.is_empty() {
            return Ok(Outcome::Done);
        }
        let (mut solid, mut gone, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for reference in &live.owner_references {
            match self.owner_state(reference, &live.namespace).await? {
                OwnerState::Exists => solid.push(reference),
                OwnerState::Absent => gone.push(reference),
                OwnerState::WaitsForDependents => waiting.push(reference),
            }
        }
        let resource = self.resource_of(&node);
        if !solid.is_empty() {
            if gone.is_empty() && waiting.is_empty() {
                return Ok(Outcome::Done);
            }
            // Someone still owns it: only the dead references go.
            let keep: Vec<OwnerReference> = solid.into_iter().cloned().collect();
            self.set_owners(&resource, &live, &keep).await?;
            return Ok(Outcome::Done);
        }
        if !waiting.is_empty() {
            let blocked = self.graph.lock().dependents(uid).any(|d| d.waits_for_dependents);
            if blocked {
                // A cycle: two that wait for each other. Stop blocking so that one can go.
                let unblocked: Vec<OwnerReference> = live
                    .owner_references
                    .iter()
                    .map(|o| OwnerReference { block_owner_deletion: Some(false), ..o.clone() })
                    .collect();
                self.set_owners(&resource, &live, &unblocked).await?;
            }
            let has_dependents = self.graph.lock().dependents(uid).next().is_some();
            if has_dependents {
                return self.delete(&resource, &live, "Foreground").await;
            }
        }
        let policy = if live.has_finalizer(ORPHAN) {
            "Orphan"
        } else if live.has_finalizer(FOREGROUND) {
            "Foreground"
        } else {
            "Background"
        };
        self.delete(&resource, &live, policy).await
    }

    async fn delete(&self, resource: &ApiResource, live: &ObjectMeta, policy: &'static str) -> ReconcileResult {
        let options = DeleteOptions {
            uid: live.uid.clone(),
            resource_version: live.resource_version.clone(),
            propagation_policy: policy,
            grace_period_seconds: None,
        };
        debug!(resource = %resource.resource, namespace = %live.namespace, name = %live.name, policy, "collecting");
        ignore_not_found(self.context.rest.delete(&resource.resource, &live.namespace, &live.name, &options).await)?;
        Ok(Outcome::Done)
    }

    /// Goes on with an object that waits for its dependents: lets it go when none blocks.
    async fn continue_foreground(&self, uid: Uid, node: &Node, live: &ObjectMeta) -> ReconcileResult {
        if !live.has_finalizer(FOREGROUND) {
            return Ok(Outcome::Done);
        }
        let (blocking, to_delete) = {
            let graph = self.graph.lock();
            let blocks = |d: &&Node| d.owners.iter().any(|o| o.uid == node.uid && o.block_owner_deletion == Some(true));
            let blocking: Vec<&Node> = graph.dependents(uid).filter(blocks).collect();
            let to_delete: Vec<Uid> =
                blocking.iter().filter(|d| !d.waits_for_dependents).map(|d| Uid::new(&d.uid)).collect();
            (!blocking.is_empty(), to_delete)
        };
        if blocking {
            to_delete.into_iter().for_each(|dependent| self.queue.add(Task::Delete(dependent)));
            return Ok(Outcome::Done);
        }
        self.remove_finalizer(node, live, FOREGROUND).await
    }

    async fn attempt_to_orphan(&self, uid: Uid) -> ReconcileResult {
        let Some(node) = self.graph.lock().node(uid).cloned() else { return Ok(Outcome::Done) };
        let Some(live) = self.live(&node).await? else { return Ok(Outcome::Done) };
        if !live.has_finalizer(ORPHAN) {
            return Ok(Outcome::Done);
        }
        let dependents: Vec<Node> = self.graph.lock().dependents(uid).cloned().collect();
        for dependent in dependents {
            let Some(live) = self.live(&dependent).await? else { continue };
            let keep: Vec<OwnerReference> =
                live.owner_references.iter().filter(|o| o.uid != node.uid).cloned().collect();
            if keep.len() != live.owner_references.len() {
                self.set_owners(&self.resource_of(&dependent), &live, &keep).await?;
            }
        }
        self.remove_finalizer(&node, &live, ORPHAN).await
    }

    async fn remove_finalizer(&self, node: &Node, live: &ObjectMeta, finalizer: &str) -> ReconcileResult {
        let keep: Vec<&str> = live.finalizers.iter().map(|f| f.as_str()).filter(|f| *f != finalizer).collect();
        let resource = self.resource_of(node);
        ignore_not_found(self.context.set_finalizers(&resource.resource, live, keep).await)?;
        Ok(Outcome::Done)
    }

    async fn set_owners(
        &self,
        resource: &ApiResource,
        live: &ObjectMeta,
        owners: &[OwnerReference],
    ) -> Result<(), ReconcileError> {
        let mut patch = Value::object();
        let owners = if owners.is_empty() { Value::Null } else { to_value(owners) };
        patch.set_at(&["metadata", "ownerReferences"], owners);
        ignore_not_found(self.context.merge(&resource.resource, live, patch).await)?;
        Ok(())
    }

    async fn owner_state(&self, reference: &OwnerReference, namespace: &str) -> Result<OwnerState, ReconcileError> {
        let uid = Uid::new(&reference.uid);
        let known_absent = {
            let absent = self.absent.lock();
            Place::of_owner(reference, namespace).into_iter().any(|place| absent.contains(&(uid, place)))
        };
        if known_absent && !self.graph.lock().has_owner(reference, namespace) {
            return Ok(OwnerState::Absent);
        }
        let found = self.discovery.read().by_kind(&reference.api_version, &reference.kind).cloned();
        let Some(resource) = found else {
            let (kind, version) = (&reference.kind, &reference.api_version);
            return Err(ReconcileError::Other(format!("unable to get REST mapping for {version}/{kind}")));
        };
        if resource.namespaced && namespace.is_empty() {
            // A cluster-scoped object cannot be owned from within a namespace; nothing can be said, so it is kept.
            return Ok(OwnerState::Exists);
        }
        let namespace = if resource.namespaced { namespace } else { "" };
        let place = Place::new(&reference.kind, namespace, &reference.name);
        match self.context.rest.get_metadata(&resource.resource, namespace, &reference.name).await {
            Ok(owner) if owner.metadata.uid != reference.uid => {
                self.mark_absent(uid, place);
                Ok(OwnerState::Absent)
            }
            Ok(owner) if owner.metadata.is_deleting() && owner.metadata.has_finalizer(FOREGROUND) => {
                Ok(OwnerState::WaitsForDependents)
            }
            Ok(_) => Ok(OwnerState::Exists),
            Err(error) if error.is_not_found() => {
                self.mark_absent(uid, place);
                Ok(OwnerState::Absent)
            }
            Err(error) => Err(error.into()),
        }
    }
}

enum OwnerState {
    Exists,
    Absent,
    WaitsForDependents,
}
