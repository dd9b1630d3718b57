//! Wiring: which caches there are, and which queue a change puts which key into.

use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::events::Recorder;
use informer::{Backoff, Change, Informer, Outcome, Queue, RawObject, Rest, Source, WorkerStats, run_workers};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::facts::BY_REFERENCE;
use super::imports::{ImportedKind, Imports};
use super::metrics::{Measured, TypeMetrics};
use super::nodes::BY_NODE;
use super::shown_volumes::BY_VOLUME;
use super::side::{Side, resource};
use super::strays::source_of;
use super::{ControlPlaneAddress, Engine, Syncer, SyncerConfig, TypeState};
use crate::kind::{self, GATEWAY_GROUP, Kind};
use crate::metadata::{HostOwner, KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, NAMESPACE_ANNOTATION};
use crate::names::NamespacedName;
use crate::ownership::FIELD_MANAGER;
use crate::settings::{Nodes, Settings};
use crate::types::Reference;
use crate::types::classes::IMPORTED_FROM_ANNOTATION;
use crate::types::endpoints::SERVICE_NAME_LABEL;

/// Index of virtual EndpointSlices by their Service.
const BY_SERVICE: &str = "service";
/// The field manager in the virtual cluster, and the user agent in both.
const COMPONENT: &str = "alcove-syncer";

fn types(settings: &Settings) -> Vec<Arc<TypeState>> {
    crate::types::built_in(settings).into_iter().map(|(name, ty)| Arc::new(TypeState::new(name, ty))).collect()
}

pub fn watch(virtual_client: kube::Client, host_client: kube::Client, config: SyncerConfig) -> Syncer {
    let virtual_side = Arc::new(Side::new(Rest::new(virtual_client, COMPONENT)));
    let host_side = Arc::new(Side::new(Rest::new(host_client, COMPONENT).with_field_manager(FIELD_MANAGER)));
    let host_rest = host_side.rest.clone();
    let recorder = Recorder::start(&virtual_side.factory, config.clock.clone(), "syncer");
    let imports = Imports::default();
    let control_plane = config.control_plane.clone();
    let kube_ip = match &config.control_plane {
        ControlPlaneAddress::Ip(ip) => ip.clone(),
        ControlPlaneAddress::HostService(_) => String::new(),
    };
    let mappings = super::mappings::Mappings::new(config.mappings);
    let engine = Arc::new(Engine {
        types: RwLock::new(types(&config.settings)),
        definitions: OnceLock::new(),
        definition_queue: Queue::default(),
        cancel: CancellationToken::new(),
        tasks: TaskTracker::new(),
        workers: config.workers.max(1),
        names: config.names.with_decisions(mappings.decisions.clone()),
        settings: config.settings,
        clock: config.clock,
        virtual_side,
        host_side,
        recorder,
        owner: RwLock::new(None),
        kube_ip: RwLock::new(kube_ip),
        node_queue: Queue::default(),
        api_ports: Mutex::default(),
        node_creation: tokio::sync::Mutex::new(()),
        volume_queue: Queue::default(),
        host_volumes: OnceLock::new(),
        event_queue: Queue::default(),
        host_events: OnceLock::new(),
        imports,
        mappings,
        children: OnceLock::new(),
        child_queue: Queue::default(),
        control_plane: config.control_plane,
        control_plane_selector: RwLock::default(),
        node_services: OnceLock::new(),
        all_pods: OnceLock::new(),
        host_wide: informer::Factory::new(host_rest),
        host_ingresses: OnceLock::new(),
        hostnames_known: AtomicBool::new(false),
        api_queue: Queue::default(),
        api_endpoints: OnceLock::new(),
        kube_service_refused: Mutex::new(None),
        replica_queue: Queue::default(),
        replica_sources: OnceLock::new(),
        namespace_queue: Queue::default(),
        others: RwLock::default(),
        synced: AtomicBool::new(false),
        checks: tokio::sync::Semaphore::new(super::write_through::AT_ONCE),
    });
    let (cancel, tasks) = (engine.cancel.clone(), engine.tasks.clone());
    watch_control_plane(&engine, &control_plane);
    watch_virtual(&engine);
    watch_host(&engine);
    for kind in super::imports::built_in(&engine.settings) {
        drop(watch_import(&engine, kind));
    }
    // Once per engine.
    let _ = engine.definitions.set(engine.watch_definitions());
    engine.watch_host_volumes();
    engine.watch_node_services();
    engine.watch_children();
    engine.watch_all_pods();
    engine.watch_api_endpoints();
    engine.watch_replicas();
    Syncer { engine, cancel, tasks, active: AtomicBool::new(false) }
}

/// Starts the workers of a syncer that only watched so far.
pub fn activate(syncer: &Syncer) {
    if syncer.active.swap(true, Ordering::AcqRel) {
        return;
    }
    let (engine, cancel, tasks) = (syncer.engine.clone(), syncer.cancel.clone(), syncer.tasks.clone());
    syncer.tasks.spawn(async move { run(engine, cancel, tasks).await });
}

/// Starts the workers of a type.
fn run_type(engine: &Arc<Engine>, ty: &Arc<TypeState>) {
    let (task_engine, task_type) = (engine.clone(), ty.clone());
    let (workers, cancel) = (engine.workers, engine.cancel.clone());
    engine.tasks.spawn(run_workers("types", workers, ty.queue.clone(), cancel, stats(), move |key| {
        let (engine, ty) = (task_engine.clone(), task_type.clone());
        async move { engine.reconcile(&ty, &key).await }
    }));
}

/// Starts the workers of a queue that is no type's; they are measured in the same way.
fn run_queue<K, F, Fut, E>(engine: &Arc<Engine>, name: &'static str, workers: usize, queue: &Queue<K>, work: F)
where
    K: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
    F: Fn(Arc<Engine>, K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let metrics = Arc::new(TypeMetrics::default());
    let depth = queue.clone();
    engine.others.write().push(Measured { name, metrics: metrics.clone(), depth: Box::new(move || depth.len()) });
    let of = engine.clone();
    engine.tasks.spawn(run_workers(name, workers, queue.clone(), engine.cancel.clone(), stats(), move |key| {
        let (metrics, work) = (metrics.clone(), work(of.clone(), key));
        async move {
            let began = tokio::time::Instant::now();
            let result = work.await;
            metrics.observe(began.elapsed());
            if result.is_err() {
                metrics.errors.fetch_add(1, Ordering::Relaxed);
            }
            result
        }
    }));
}

/// Starts syncing a kind that became known while running.
pub(super) fn start_type(engine: &Arc<Engine>, ty: TypeState) {
    let ty = Arc::new(ty);
    engine.types.write().push(ty.clone());
    let virtual_ = watch_virtual_type(engine, &ty);
    let host = watch_host_type(engine, &ty);
    let (of, cancel) = (engine.clone(), engine.cancel.clone());
    engine.tasks.spawn(async move {
        let synced = async {
            virtual_.wait_synced().await;
            host.wait_synced().await;
        };
        tokio::select! {
            // Cancel-safe: nothing was started yet.
            () = cancel.cancelled() => {}
            () = synced => run_type(&of, &ty),
        }
    });
}

/// Starts to show a kind that became known while running.
pub(super) fn start_import(engine: &Arc<Engine>, kind: ImportedKind) {
    let (n, caches) = watch_import(engine, kind);
    let (of, cancel) = (engine.clone(), engine.cancel.clone());
    engine.tasks.spawn(async move {
        let synced = async {
            for cache in &caches {
                cache.wait_synced().await;
            }
        };
        tokio::select! {
            // Cancel-safe: nothing was started yet.
            () = cancel.cancelled() => {}
            () = synced => sweep(&of, n).await,
        }
    });
}

async fn sweep(engine: &Engine, n: usize) {
    if let Err(error) = engine.sweep_imports(n).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not remove outdated imports");
    }
}

/// Starts to look at a kind that others refer to.
pub(super) fn watch_known(engine: &Arc<Engine>, kind: &Kind) {
    let cache = engine.virtual_side.watch(kind, Source::all(resource(kind)));
    let of = Arc::downgrade(engine);
    cache.on_change(move |_| {
        if let Some(engine) = of.upgrade() {
            engine.enqueue_gateway_kinds();
        }
    });
}

/// Starts the workers once both sides are known.
async fn run(engine: Arc<Engine>, cancel: CancellationToken, tasks: TaskTracker) {
    let synced = async {
        engine.virtual_side.factory.wait_synced().await;
        engine.host_side.factory.wait_synced().await;
    };
    tokio::select! {
        // Cancel-safe: nothing was started yet.
        () = cancel.cancelled() => return,
        () = synced => {}
    }
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10), Duration::from_secs(60));
    // Without them names could be decided differently.
    while let Err(error) = engine.mappings.load().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not read the mappings, will retry");
        tokio::select! {
            // Cancel-safe: nothing was started yet.
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
    engine.collect_mappings(true);
    for ty in engine.all_types() {
        run_type(&engine, &ty);
    }
    run_queue(
        &engine,
        "children",
        2,
        &engine.child_queue,
        |engine, key| async move { engine.reconcile_child(&key).await },
    );
    if engine.mappings.is_on() {
        run_queue(&engine, "mappings", 4, &engine.mappings.queue, |engine, key| async move {
            engine.mappings.write(&key, engine.names.virtual_cluster()).await
        });
    }
    let queue: Queue<()> = Queue::default();
    // What is there at the start is looked at anyway.
    queue.add_after((), super::strays::LOOK_EVERY);
    run_queue(&engine, "strays", 1, &queue, |engine, ()| async move { engine.look_for_strays().await });
    if engine.settings.ingresses {
        tasks.spawn(engine.clone().watch_hostnames());
    }
    run_queue(&engine, "definitions", 1, &engine.definition_queue, |engine, key| async move {
        engine.reconcile_definition(key).await
    });
    engine.enqueue_definitions();
    run_queue(&engine, "nodes", 2, &engine.node_queue, |engine, key| async move { engine.reconcile_node(&key).await });
    run_queue(&engine, "shownvolumes", 2, &engine.volume_queue, |engine, key| async move {
        match engine.settings.persistent_volumes {
            true => engine.reconcile_host_volume(&key).await,
            false => engine.reconcile_volume(&key).await,
        }
    });
    run_queue(
        &engine,
        "events",
        4,
        &engine.event_queue,
        |engine, key| async move { engine.reconcile_event(&key).await },
    );
    run_queue(
        &engine,
        "apiservice",
        1,
        &engine.api_queue,
        |engine, ()| async move { engine.reconcile_api_service().await },
    );
    run_queue(&engine, "replicas", 2, &engine.replica_queue, |engine, key| async move {
        engine.reconcile_replica(&key).await
    });
    if engine.looks_at_namespaces() {
        run_queue(&engine, "namespaces", 2, &engine.namespace_queue, |engine, key| async move {
            engine.reconcile_namespace(&key).await
        });
    }
    if engine.names.syncs_namespaces()
        && let Err(error) = engine.remove_stray_namespaces().await
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not look for namespaces without virtual ones");
    }
    if let Err(error) = engine.sweep_replicas().await {
        tracing::warn!(error = &error as &dyn std::error::Error, "could not remove outdated replicas of Services");
    }
    let imported = engine.imports.kinds.read().len();
    for n in 0..imported {
        sweep(&engine, n).await;
    }
    run_queue(&engine, "imports", 4, &engine.imports.queue, |engine, key| async move {
        engine.reconcile_import(&key).await
    });
    engine.synced.store(true, Ordering::Release);
    tracing::info!(virtual_cluster = engine.names.virtual_cluster(), "syncing");
}

fn stats() -> Arc<WorkerStats> {
    Arc::new(WorkerStats::default())
}

/// The control plane's Service: the address pods use, and the owner of everything made here.
fn watch_control_plane(engine: &Arc<Engine>, address: &ControlPlaneAddress) {
    let ControlPlaneAddress::HostService(name) = address else { return };
    let source = Source::namespaced(resource(&kind::SERVICE), engine.names.install_namespace())
        .fields(format!("metadata.name={name}"));
    let of = Arc::downgrade(engine);
    engine.host_side.factory.informer::<RawObject>(source).on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let object = change.object();
        let Ok(service) = object.to_tree() else { return };
        if change.is_deleted() {
            *engine.owner.write() = None;
            return;
        }
        *engine.owner.write() = Some(HostOwner {
            api_version: "v1".into(),
            kind: "Service".into(),
            name: object.metadata.name.to_string(),
            uid: object.metadata.uid.to_string(),
        });
        *engine.control_plane_selector.write() = service["spec"]["selector"].clone();
        let ip = service.str_at(&["spec", "clusterIP"]);
        if ip != "None" {
            *engine.kube_ip.write() = ip.to_owned();
            engine.api_queue.add(super::api_service::KEY);
        }
    });
}

fn index_by(values: impl Fn(&Value) -> Vec<String> + Send + Sync + 'static) -> impl Fn(&RawObject, &mut Vec<Str>) {
    move |object, out| {
        if let Ok(tree) = object.to_tree() {
            out.extend(values(&tree).into_iter().filter(|v| !v.is_empty()).map(Str::from));
        }
    }
}

fn tree(object: &RawObject) -> Value {
    object.to_tree().unwrap_or_default()
}

/// Runs `f` with the trees of what was and what is; a deleted object has no "is".
fn both<'a>(change: &Change<'a, RawObject>) -> (Option<Value>, Option<Value>) {
    match change {
        Change::Added(new) => (None, Some(tree(new))),
        Change::Updated { old, new } => (Some(tree(old)), Some(tree(new))),
        Change::Deleted(old) => (Some(tree(old)), None),
    }
}

fn references_of(ty: &TypeState, patches: &[crate::patches::Patch], object: &Value) -> Vec<Reference> {
    let mut out = ty.ty.references(object);
    out.extend(crate::patches::references(patches, object));
    out.retain(|r| !r.name.name.is_empty());
    out.sort();
    out.dedup();
    out
}

/// Watches the virtual objects of a type, and what they refer to.
fn watch_virtual_type(engine: &Arc<Engine>, ty: &Arc<TypeState>) -> Informer<RawObject> {
    let kind = ty.ty.kind();
    let informer = engine.virtual_side.watch(kind, Source::all(resource(kind)));
    // Indexes before handlers: a handler may read them.
    if *kind == kind::PERSISTENT_VOLUME_CLAIM {
        informer.add_index(BY_VOLUME, index_by(|c| vec![c.str_at(&["spec", "volumeName"]).to_owned()]));
    }
    if *kind == kind::ENDPOINT_SLICE {
        informer.add_index(BY_SERVICE, |slice: &RawObject, out: &mut Vec<Str>| {
            if let Some(service) = slice.metadata.labels.get(SERVICE_NAME_LABEL) {
                out.push(format!("{}/{service}", slice.metadata.namespace).into());
            }
        });
    }
    let (of_type, patches) = (ty.clone(), engine.patches(kind).to_vec());
    let gateway = kind.group == GATEWAY_GROUP && matches!(kind.plural.as_ref(), "gateways" | "referencegrants");
    let refers = ty.ty.refers() || patches.iter().any(|p| matches!(p.mode, crate::patches::Mode::Reference { .. }));
    if refers {
        let (indexed, patches) = (of_type.clone(), patches.clone());
        informer.add_index(
            BY_REFERENCE,
            index_by(move |o| references_of(&indexed, &patches, o).iter().map(Reference::index_value).collect()),
        );
    }
    // What a controller of the host makes for such an object is shown.
    let custom = engine.settings.custom_resources.iter().any(|c| c.plural == kind.plural && c.group == kind.group);
    let queue = ty.queue.clone();
    let of = Arc::downgrade(engine);
    informer.on_change(move |change| {
        let metadata = &change.object().metadata;
        queue.add(NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str()));
        let Some(engine) = of.upgrade().filter(|_| refers || gateway || custom) else { return };
        if gateway {
            engine.enqueue_gateway_kinds();
        }
        if custom {
            engine.enqueue_children();
        }
        if !refers {
            return;
        }
        let (old, new) = both(&change);
        let references =
            |object: Option<&Value>| object.map(|o| references_of(&of_type, &patches, o)).unwrap_or_default();
        let (before, after) = (references(old.as_ref()), references(new.as_ref()));
        let gone = before.iter().filter(|r| !after.contains(r));
        for reference in gone.chain(after.iter().filter(|r| !before.contains(r))) {
            engine.enqueue_reference(reference);
        }
    });
    engine.look_after_listing(ty, &informer);
    informer
}

fn watch_virtual(engine: &Arc<Engine>) {
    let side = &engine.virtual_side;
    let watch = |kind: &Kind| side.watch(kind, Source::all(resource(kind)));
    let pods = watch(&kind::POD);
    pods.add_index(BY_NODE, index_by(|p| vec![p.str_at(&["spec", "nodeName"]).to_owned()]));
    for kind in [&kind::NAMESPACE, &kind::NODE, &kind::SERVICE] {
        watch(kind);
    }
    for ty in engine.all_types() {
        watch_virtual_type(engine, &ty);
    }
    let of = Arc::downgrade(engine);
    pods.on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let (old, new) = both(&change);
        let node = |pod: &Option<Value>| pod.as_ref().map_or(String::new(), |p| p.str_at(&["spec", "nodeName"]).into());
        let (before, after) = (node(&old), node(&new));
        for node in [&before, &after] {
            if before != after && !node.is_empty() {
                engine.node_queue.add(node.clone());
            }
        }
    });
    watch_virtual_dependencies(engine);
}

impl Engine {
    fn enqueue_reference(&self, reference: &Reference) {
        let types = self.types.read();
        let of_kind = types.iter().filter(|t| t.ty.kind().kind == reference.kind.as_str());
        of_kind.for_each(|t| t.queue.add(reference.name.clone()));
    }

    /// Objects of the Gateway API decide about each other: there are few, so all are looked at again.
    pub(super) fn enqueue_gateway_kinds(&self) {
        for ty in self.all_types().iter().filter(|t| t.ty.kind().group == GATEWAY_GROUP) {
            for object in self.virtual_side.cache(ty.ty.kind()).map(|c| c.keys()).unwrap_or_default() {
                ty.queue.add(NamespacedName::new(object.namespace.as_str(), object.name.as_str()));
            }
        }
    }

    /// Policies wait for the Services they are about.
    fn enqueue_policies_of_services(&self) {
        for ty in self.all_types().iter().filter(|t| t.name == "backendtlspolicies") {
            for object in self.virtual_side.cache(ty.ty.kind()).map(|c| c.keys()).unwrap_or_default() {
                ty.queue.add(NamespacedName::new(object.namespace.as_str(), object.name.as_str()));
            }
        }
    }

    /// All objects of a type.
    pub(super) fn enqueue_all(&self, kind: &Kind) {
        if let Some(ty) = self.type_of(kind) {
            for object in self.virtual_side.cache(kind).map(|c| c.keys()).unwrap_or_default() {
                ty.queue.add(NamespacedName::new(object.namespace.as_str(), object.name.as_str()));
            }
        }
    }
}

/// Objects whose change is felt by others.
fn watch_virtual_dependencies(engine: &Arc<Engine>) {
    let side = &engine.virtual_side;
    let of = Arc::downgrade(engine);
    let namespaces = side.watch(&kind::NAMESPACE, Source::all(resource(&kind::NAMESPACE)));
    namespaces.on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        if engine.looks_at_namespaces() {
            engine.namespace_queue.add(change.object().metadata.name.to_string());
        }
        // Listeners say from which namespaces they take routes.
        if !matches!(&change, Change::Updated { old, new } if old.metadata.labels == new.metadata.labels) {
            engine.enqueue_gateway_kinds();
        }
        // Pods carry the labels of their namespace.
        if let Change::Updated { old, new } = &change
            && old.metadata.labels != new.metadata.labels
            && let Some(pods) = engine.virtual_side.cache(&kind::POD)
        {
            for pod in pods.list_namespace(&new.metadata.name) {
                engine.enqueue(&kind::POD, &pod.metadata.namespace, &pod.metadata.name);
            }
        }
    });
    let of = Arc::downgrade(engine);
    side.watch(&kind::SERVICE, Source::all(resource(&kind::SERVICE))).on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let service = &change.object().metadata;
        engine.enqueue(&kind::ENDPOINTS, &service.namespace, &service.name);
        if matches!(change, Change::Added(_)) {
            engine.enqueue_policies_of_services();
        }
        if service.namespace == "default" && service.name == "kubernetes" {
            engine.api_queue.add(super::api_service::KEY);
        }
        if let Some(slices) = engine.virtual_side.cache(&kind::ENDPOINT_SLICE) {
            for slice in slices.by_index(BY_SERVICE, &format!("{}/{}", service.namespace, service.name)) {
                engine.enqueue(&kind::ENDPOINT_SLICE, &slice.metadata.namespace, &slice.metadata.name);
            }
        }
    });
    for kind in [&kind::ENDPOINTS, &kind::ENDPOINT_SLICE] {
        let of = Arc::downgrade(engine);
        let Some(cache) = side.cache(kind) else { continue };
        cache.on_change(move |change| {
            let object = &change.object().metadata;
            if object.namespace == "default"
                && object.name == "kubernetes"
                && let Some(engine) = of.upgrade()
            {
                engine.api_queue.add(super::api_service::KEY);
            }
        });
    }
    let of = Arc::downgrade(engine);
    side.watch(&kind::NODE, Source::all(resource(&kind::NODE))).on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let name = change.object().metadata.name.to_string();
        engine.enqueue_import(&kind::CSI_NODE, &name);
        engine.node_queue.add(name);
    });
    if let Some(claims) = side.cache(&kind::PERSISTENT_VOLUME_CLAIM)
        && !engine.settings.persistent_volumes
    {
        let of = Arc::downgrade(engine);
        claims.on_change(move |change| {
            let Some(engine) = of.upgrade() else { return };
            let (old, new) = both(&change);
            for claim in [old, new].into_iter().flatten() {
                let volume = claim.str_at(&["spec", "volumeName"]);
                if !volume.is_empty() {
                    engine.volume_queue.add(volume.to_owned());
                }
            }
        });
        let of = Arc::downgrade(engine);
        let volumes = side.watch(&kind::PERSISTENT_VOLUME, Source::all(resource(&kind::PERSISTENT_VOLUME)));
        volumes.on_change(move |change| {
            let Some(engine) = of.upgrade() else { return };
            engine.volume_queue.add(change.object().metadata.name.to_string());
        });
    }
}

/// What of a kind is watched on the host: the objects of this virtual cluster only.
fn host_source(engine: &Engine, kind: &Kind) -> Source {
    let source = if !kind.namespaced {
        return Source::all(resource(kind)).labels(format!("{MANAGED_BY_LABEL}={}", engine.names.cluster_marker()));
    } else if engine.names.syncs_namespaces() {
        Source::all(resource(kind))
    } else {
        Source::namespaced(resource(kind), engine.names.install_namespace())
    };
    source.labels(format!("{MANAGED_BY_LABEL}={}", engine.names.virtual_cluster()))
}

/// Watches the host objects of a type, those of this virtual cluster.
fn watch_host_type(engine: &Arc<Engine>, ty: &Arc<TypeState>) -> Informer<RawObject> {
    let queue = ty.queue.clone();
    let kind = ty.ty.kind();
    let gvk = kind.gvk();
    let informer = engine.host_side.watch(kind, host_source(engine, kind));
    let (of, ty_kind) = (Arc::downgrade(engine), kind.clone());
    informer.on_change(move |change| {
        let Some(name) = source_of(change.object(), &gvk) else { return };
        if let Some(engine) = of.upgrade().filter(|_| !change.is_deleted()) {
            engine.adopt_name(&ty_kind, &name, &change.object().metadata);
        }
        queue.add(name);
    });
    engine.look_after_listing(ty, &informer);
    informer
}

fn watch_host(engine: &Arc<Engine>) {
    let side = &engine.host_side;
    let pods = side.watch(&kind::POD, host_source(engine, &kind::POD));
    pods.add_index(BY_NODE, index_by(|p| vec![p.str_at(&["spec", "nodeName"]).to_owned()]));
    let of = Arc::downgrade(engine);
    pods.on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let (old, new) = both(&change);
        let node = |pod: &Option<Value>| pod.as_ref().map_or(String::new(), |p| p.str_at(&["spec", "nodeName"]).into());
        let (before, after) = (node(&old), node(&new));
        for node in [&before, &after] {
            if before != after && !node.is_empty() {
                engine.node_queue.add(node.clone());
            }
        }
    });
    // Tokens are in Secrets, whether or not the tenant's are synced.
    let of = Arc::downgrade(engine);
    side.watch(&kind::SECRET, host_source(engine, &kind::SECRET)).on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let annotations = &change.object().metadata.annotations;
        if annotations.get(KIND_ANNOTATION) == Some(kind::POD.gvk().as_str()) {
            let of = |key| annotations.get(key).unwrap_or("");
            engine.enqueue(&kind::POD, of(NAMESPACE_ANNOTATION), of(NAME_ANNOTATION));
        }
    });
    // The name server's address is read from there.
    side.watch(&kind::SERVICE, host_source(engine, &kind::SERVICE));
    for ty in engine.all_types() {
        watch_host_type(engine, &ty);
    }
    engine.watch_events();
    if let Nodes::Real { .. } = engine.settings.nodes {
        let queue = engine.node_queue.clone();
        side.watch(&kind::NODE, Source::all(resource(&kind::NODE))).on_change(move |change| {
            queue.add(change.object().metadata.name.to_string());
        });
    }
}

/// Watches a host kind that is shown. Gives its place in the list, and the caches of both sides.
fn watch_import(engine: &Arc<Engine>, from: ImportedKind) -> (usize, Vec<Informer<RawObject>>) {
    let kind = from.kind.clone();
    let n = engine.imports.kinds.read().len();
    let install = engine.names.install_namespace();
    let namespaces: Vec<Informer<RawObject>> = from
        .host_namespaces(install)
        .into_iter()
        .map(|namespace| engine.host_side.factory.informer(Source::namespaced(resource(&kind), namespace)))
        .collect();
    let virtual_ = engine.virtual_side.watch(&kind, Source::all(resource(&kind)));
    let cluster = (!kind.namespaced).then(|| engine.host_side.watch(&kind, Source::all(resource(&kind))));
    let all: Vec<Informer<RawObject>> = namespaces.iter().cloned().chain(cluster.clone()).collect();
    engine.imports.kinds.write().push(Arc::new(ImportedKind { namespaces, ..from }));
    let queue = engine.imports.queue.clone();
    for cache in &all {
        let (queue, of, changed_kind) = (queue.clone(), Arc::downgrade(engine), kind.clone());
        cache.on_change(move |change| {
            let metadata = &change.object().metadata;
            queue.add((n, NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str())));
            if let Some(engine) = of.upgrade() {
                engine.import_changed(&changed_kind);
            }
        });
    }
    // The tenant's edits of a copy are undone.
    let of = Arc::downgrade(engine);
    virtual_.on_change(move |change| {
        let object = change.object();
        if object.metadata.annotations.get(IMPORTED_FROM_ANNOTATION) == Some("true")
            && let Some(engine) = of.upgrade()
            && let Ok(copy) = object.to_tree()
        {
            engine.enqueue_import_of(n, &copy);
        }
    });
    (n, all.into_iter().chain([virtual_]).collect())
}
