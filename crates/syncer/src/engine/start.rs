//! Wiring: which caches there are, and which queue a change puts which key into.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::json::Str;
use informer::events::Recorder;
use informer::{Change, Queue, RawObject, Rest, Source, WorkerStats, run_workers};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::facts::{BY_CONFIG_MAP, BY_SECRET};
use super::imports::{ImportKey, Imports};
use super::nodes::BY_NODE;
use super::shown_volumes::BY_VOLUME;
use super::side::{Side, resource};
use super::{ControlPlaneAddress, Engine, Syncer, SyncerConfig, TypeState};
use crate::kind::{self, Kind};
use crate::metadata::{HostOwner, KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, NAMESPACE_ANNOTATION};
use crate::names::NamespacedName;
use crate::settings::{Nodes, Settings, Wanted};
use crate::types::classes::OwnClasses;
use crate::types::configs::Configs;
use crate::types::custom::Custom;
use crate::types::endpoints::{EndpointKinds, service_of};
use crate::types::ingress::{self, Ingresses};
use crate::types::network_policy::NetworkPolicies;
use crate::types::pod::{Pods, volumes};
use crate::types::policies::{DisruptionBudgets, ServiceAccounts};
use crate::types::service::Services;
use crate::types::volumes::Claims;

const FIELD_MANAGER: &str = "alcove-syncer";

fn types(settings: &Settings) -> Vec<Arc<TypeState>> {
    let mut out = vec![TypeState::new("pods", Pods)];
    let mut add = |on: bool, make: &dyn Fn() -> TypeState| {
        if on {
            out.push(make());
        }
    };
    add(settings.services, &|| TypeState::new("services", Services));
    add(settings.config_maps != Wanted::Off, &|| TypeState::new("configmaps", Configs::ConfigMaps));
    add(settings.secrets != Wanted::Off, &|| TypeState::new("secrets", Configs::Secrets));
    add(settings.endpoints, &|| TypeState::new("endpoints", EndpointKinds::Endpoints));
    add(settings.endpoint_slices, &|| TypeState::new("endpointslices", EndpointKinds::EndpointSlices));
    add(settings.persistent_volume_claims, &|| TypeState::new("persistentvolumeclaims", Claims));
    add(settings.ingresses, &|| TypeState::new("ingresses", Ingresses));
    add(settings.network_policies, &|| TypeState::new("networkpolicies", NetworkPolicies));
    add(settings.pod_disruption_budgets, &|| TypeState::new("poddisruptionbudgets", DisruptionBudgets));
    add(settings.service_accounts, &|| TypeState::new("serviceaccounts", ServiceAccounts));
    add(settings.priority_classes, &|| TypeState::new("priorityclasses", OwnClasses::Priority));
    add(settings.storage_classes, &|| TypeState::new("storageclasses", OwnClasses::Storage));
    add(settings.resource_claims, &|| TypeState::new("resourceclaims", Custom(kind::RESOURCE_CLAIM.clone())));
    add(settings.resource_claim_templates, &|| {
        TypeState::new("resourceclaimtemplates", Custom(kind::RESOURCE_CLAIM_TEMPLATE.clone()))
    });
    for kind in &settings.custom_resources {
        add(true, &|| TypeState::new("customresources", Custom(kind.clone())));
    }
    out.into_iter().map(Arc::new).collect()
}

pub fn watch(virtual_client: kube::Client, host_client: kube::Client, config: SyncerConfig) -> Syncer {
    let virtual_side = Arc::new(Side::new(Rest::new(virtual_client, FIELD_MANAGER)));
    let host_side = Arc::new(Side::new(Rest::new(host_client, FIELD_MANAGER)));
    let recorder = Recorder::start(&virtual_side.factory, config.clock.clone(), "syncer");
    let mut imports = Imports::new(&config.settings);
    let install = config.names.install_namespace().to_owned();
    for from in &mut imports.kinds {
        if from.kind.namespaced {
            let mappings = if from.kind.kind == "Secret" {
                &config.settings.import_secrets
            } else {
                &config.settings.import_config_maps
            };
            let mut namespaces: Vec<&str> = mappings
                .iter()
                .map(|m| match m.from.split_once('/') {
                    Some(("", _)) | None => install.as_str(),
                    Some((namespace, _)) => namespace,
                })
                .collect();
            namespaces.sort_unstable();
            namespaces.dedup();
            from.namespaces = namespaces
                .into_iter()
                .map(|n| host_side.factory.informer(Source::namespaced(resource(from.kind), n)))
                .collect();
        }
    }
    let control_plane = config.control_plane.clone();
    let kube_ip = match &config.control_plane {
        ControlPlaneAddress::Ip(ip) => ip.clone(),
        ControlPlaneAddress::HostService(_) => String::new(),
    };
    let engine = Arc::new(Engine {
        types: types(&config.settings),
        names: config.names,
        settings: config.settings,
        clock: config.clock,
        virtual_side,
        host_side,
        recorder,
        owner: RwLock::new(None),
        kube_ip: RwLock::new(kube_ip),
        node_queue: Queue::default(),
        node_creation: tokio::sync::Mutex::new(()),
        volume_queue: Queue::default(),
        event_queue: Queue::default(),
        imports,
        control_plane: config.control_plane,
        api_queue: Queue::default(),
        api_endpoints: OnceLock::new(),
        kube_service_refused: Mutex::new(None),
        replica_queue: Queue::default(),
        replica_sources: OnceLock::new(),
        namespace_queue: Queue::default(),
        synced: AtomicBool::new(false),
    });
    let cancel = CancellationToken::new();
    let tasks = TaskTracker::new();
    watch_control_plane(&engine, &control_plane);
    watch_virtual(&engine);
    watch_host(&engine);
    watch_imports(&engine);
    engine.watch_api_endpoints();
    engine.watch_replicas();
    Syncer { engine, cancel, tasks, workers: config.workers.max(1), active: AtomicBool::new(false) }
}

/// Starts the workers of a syncer that only watched so far.
pub fn activate(syncer: &Syncer) {
    if syncer.active.swap(true, Ordering::AcqRel) {
        return;
    }
    let (engine, cancel, tasks) = (syncer.engine.clone(), syncer.cancel.clone(), syncer.tasks.clone());
    let workers = syncer.workers;
    syncer.tasks.spawn(async move { run(engine, workers, cancel, tasks).await });
}

/// Starts the workers once both sides are known.
async fn run(engine: Arc<Engine>, workers: usize, cancel: CancellationToken, tasks: TaskTracker) {
    let synced = async {
        engine.virtual_side.factory.wait_synced().await;
        engine.host_side.factory.wait_synced().await;
    };
    tokio::select! {
        // Cancel-safe: nothing was started yet.
        () = cancel.cancelled() => return,
        () = synced => {}
    }
    for ty in &engine.types {
        let (task_engine, task_type) = (engine.clone(), ty.clone());
        tasks.spawn(run_workers(ty.name, workers, ty.queue.clone(), cancel.clone(), stats(), move |key| {
            let (engine, ty) = (task_engine.clone(), task_type.clone());
            async move { engine.reconcile(&ty, &key).await }
        }));
    }
    let of = engine.clone();
    tasks.spawn(run_workers("nodes", 2, engine.node_queue.clone(), cancel.clone(), stats(), move |key: String| {
        let engine = of.clone();
        async move { engine.reconcile_node(&key).await }
    }));
    let of = engine.clone();
    tasks.spawn(run_workers(
        "persistentvolumes",
        2,
        engine.volume_queue.clone(),
        cancel.clone(),
        stats(),
        move |key: String| {
            let engine = of.clone();
            async move { engine.reconcile_volume(&key).await }
        },
    ));
    let of = engine.clone();
    let queue = engine.event_queue.clone();
    tasks.spawn(run_workers("events", 4, queue, cancel.clone(), stats(), move |key: NamespacedName| {
        let engine = of.clone();
        async move { engine.reconcile_event(&key).await }
    }));
    let of = engine.clone();
    tasks.spawn(run_workers("apiservice", 1, engine.api_queue.clone(), cancel.clone(), stats(), move |()| {
        let engine = of.clone();
        async move { engine.reconcile_api_service().await }
    }));
    let of = engine.clone();
    let queue = engine.replica_queue.clone();
    tasks.spawn(run_workers("replicas", 2, queue, cancel.clone(), stats(), move |key| {
        let engine = of.clone();
        async move { engine.reconcile_replica(&key).await }
    }));
    if engine.names.syncs_namespaces() {
        let of = engine.clone();
        let queue = engine.namespace_queue.clone();
        tasks.spawn(run_workers("namespaces", 2, queue, cancel.clone(), stats(), move |key: String| {
            let engine = of.clone();
            async move { engine.reconcile_namespace(&key).await }
        }));
    }
    if !engine.imports.kinds.is_empty() {
        if let Err(error) = engine.sweep_imports().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not remove outdated imports");
        }
        let of = engine.clone();
        let queue = engine.imports.queue.clone();
        tasks.spawn(run_workers("imports", 4, queue, cancel.clone(), stats(), move |key: ImportKey| {
            let engine = of.clone();
            async move { engine.reconcile_import(&key).await }
        }));
    }
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

fn refs_of(pod: &Value, names: Vec<&str>) -> Vec<String> {
    let namespace = pod.str_at(&["metadata", "namespace"]);
    names.into_iter().map(|n| format!("{namespace}/{n}")).collect()
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

fn enqueue_refs(engine: &Engine, kind: &Kind, refs: impl IntoIterator<Item = String>) {
    for reference in refs {
        if let Some((namespace, name)) = reference.split_once('/') {
            engine.enqueue(kind, namespace, name);
        }
    }
}

/// What appeared or disappeared between two lists.
fn changed(before: Vec<String>, after: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = before.iter().filter(|r| !after.contains(r)).cloned().collect();
    out.extend(after.into_iter().filter(|r| !before.contains(r)));
    out
}

fn watch_virtual(engine: &Arc<Engine>) {
    let side = &engine.virtual_side;
    let watch = |kind: &Kind| side.watch(kind, Source::all(resource(kind)));
    // Indexes before handlers: a handler may read them.
    let pods = watch(&kind::POD);
    pods.add_index(BY_NODE, index_by(|p| vec![p.str_at(&["spec", "nodeName"]).to_owned()]));
    pods.add_index(BY_CONFIG_MAP, index_by(|p| refs_of(p, volumes::config_map_refs(p))));
    pods.add_index(BY_SECRET, index_by(|p| refs_of(p, volumes::secret_refs(p))));
    for kind in [&kind::NAMESPACE, &kind::NODE, &kind::SERVICE] {
        watch(kind);
    }
    for ty in &engine.types {
        let informer = watch(ty.ty.kind());
        if *ty.ty.kind() == kind::INGRESS {
            informer.add_index(
                BY_SECRET,
                index_by(|i| ingress::secret_refs(i).into_iter().map(|(ns, n)| format!("{ns}/{n}")).collect()),
            );
        }
        if *ty.ty.kind() == kind::PERSISTENT_VOLUME_CLAIM {
            informer.add_index(BY_VOLUME, index_by(|c| vec![c.str_at(&["spec", "volumeName"]).to_owned()]));
        }
        let queue = ty.queue.clone();
        informer.on_change(move |change| {
            let metadata = &change.object().metadata;
            queue.add(NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str()));
        });
    }
    let of = Arc::downgrade(engine);
    pods.on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        let (old, new) = both(&change);
        let refs = |pod: &Option<Value>, get: fn(&Value) -> Vec<&str>| {
            pod.as_ref().map(|p| refs_of(p, get(p))).unwrap_or_default()
        };
        let config_maps = changed(refs(&old, volumes::config_map_refs), refs(&new, volumes::config_map_refs));
        enqueue_refs(&engine, &kind::CONFIG_MAP, config_maps);
        let secrets = changed(refs(&old, volumes::secret_refs), refs(&new, volumes::secret_refs));
        enqueue_refs(&engine, &kind::SECRET, secrets);
        let node = |pod: &Option<Value>| pod.as_ref().map_or(String::new(), |p| p.str_at(&["spec", "nodeName"]).into());
        let (before, after) = (node(&old), node(&new));
        for node in [&before, &after] {
            if before != after && !node.is_empty() {
                engine.node_queue.add(node.clone());
            }
        }
    });
    if engine.settings.ingresses
        && let Some(ingresses) = side.cache(&kind::INGRESS)
    {
        let of = Arc::downgrade(engine);
        ingresses.on_change(move |change| {
            let Some(engine) = of.upgrade() else { return };
            let (old, new) = both(&change);
            for ingress in [old, new].into_iter().flatten() {
                for (namespace, name) in ingress::secret_refs(&ingress) {
                    engine.enqueue(&kind::SECRET, &namespace, &name);
                }
            }
        });
    }
    watch_virtual_dependencies(engine);
}

/// Objects whose change is felt by others.
fn watch_virtual_dependencies(engine: &Arc<Engine>) {
    let side = &engine.virtual_side;
    let of = Arc::downgrade(engine);
    let namespaces = side.watch(&kind::NAMESPACE, Source::all(resource(&kind::NAMESPACE)));
    namespaces.on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        if engine.names.syncs_namespaces() {
            engine.namespace_queue.add(change.object().metadata.name.to_string());
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
        if service.namespace == "default" && service.name == "kubernetes" {
            engine.api_queue.add(super::api_service::KEY);
        }
        if let Some(slices) = engine.virtual_side.cache(&kind::ENDPOINT_SLICE) {
            for slice in slices.list_namespace(&service.namespace) {
                if slice.to_tree().is_ok_and(|s| service_of(&s) == service.name.as_str()) {
                    engine.enqueue(&kind::ENDPOINT_SLICE, &slice.metadata.namespace, &slice.metadata.name);
                }
            }
        }
    });
    let of = Arc::downgrade(engine);
    side.watch(&kind::NODE, Source::all(resource(&kind::NODE))).on_change(move |change| {
        let Some(engine) = of.upgrade() else { return };
        engine.node_queue.add(change.object().metadata.name.to_string());
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
    for ty in &engine.types {
        let queue = ty.queue.clone();
        let gvk = ty.ty.kind().gvk();
        side.watch(ty.ty.kind(), host_source(engine, ty.ty.kind())).on_change(move |change| {
            let annotations = &change.object().metadata.annotations;
            let of = |key| annotations.get(key).unwrap_or("");
            if !of(NAME_ANNOTATION).is_empty() && matches!(of(KIND_ANNOTATION), kind if kind.is_empty() || kind == gvk)
            {
                queue.add(NamespacedName::new(of(NAMESPACE_ANNOTATION), of(NAME_ANNOTATION)));
            }
        });
    }
    if engine.settings.events {
        let source = if engine.names.syncs_namespaces() {
            Source::all(resource(&kind::EVENT))
        } else {
            Source::namespaced(resource(&kind::EVENT), engine.names.install_namespace())
        };
        let queue = engine.event_queue.clone();
        side.watch(&kind::EVENT, source).on_change(move |change| {
            if !change.is_deleted() {
                let metadata = &change.object().metadata;
                queue.add(NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str()));
            }
        });
    }
    if let Nodes::Real { .. } = engine.settings.nodes {
        let queue = engine.node_queue.clone();
        side.watch(&kind::NODE, Source::all(resource(&kind::NODE))).on_change(move |change| {
            queue.add(change.object().metadata.name.to_string());
        });
    }
}

fn watch_imports(engine: &Arc<Engine>) {
    let mut virtual_names: HashMap<usize, &'static Kind> = HashMap::new();
    for (n, from) in engine.imports.kinds.iter().enumerate() {
        let queue = engine.imports.queue.clone();
        let add = move |change: Change<'_, RawObject>| {
            let metadata = &change.object().metadata;
            queue.add((n, NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str())));
        };
        if from.kind.namespaced {
            for cache in &from.namespaces {
                cache.on_change(add.clone());
            }
        } else {
            engine.host_side.watch(from.kind, Source::all(resource(from.kind))).on_change(add.clone());
            // The tenant's edits of a copy are undone.
            let cache = engine.virtual_side.watch(from.kind, Source::all(resource(from.kind)));
            cache.on_change(add);
        }
        virtual_names.insert(n, from.kind);
    }
    for kind in virtual_names.into_values() {
        engine.virtual_side.watch(kind, Source::all(resource(kind)));
    }
}
