//! The engine: caches of both clusters, a queue per type, and the execution of plans.
//!
//! Level-triggered: a key in a queue only says "look again". What is done follows from the objects of both sides, by
//! [`crate::plan::plan`]. A restart looks at everything once and does what is missing.
//!
//! Invariants:
//! - Nothing is decided before the caches of both sides have been complete once.
//! - One object that cannot be synced is retried with growing delays, tells its owner with an event, and holds up nothing.
//! - No lock is held while a request is on its way, but the one that makes nodes one at a time.

mod api_service;
mod children;
mod definitions;
mod execute;
mod facts;
mod host_events;
mod host_volumes;
mod hostnames;
mod imports;
pub mod mappings;
mod metrics;
mod namespaces;
mod nodes;
mod recent;
mod replicate;
mod shown_volumes;
mod side;
mod start;
mod strays;
mod tokens;
mod write_through;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apimachinery::Value;
use informer::events::Recorder;
use informer::{ApiError, Clock, Outcome, Queue};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::metrics::TypeMetrics;
use self::side::Side;
use crate::decisions::Pair;
use crate::kind::{self, Kind};
use crate::metadata::{HostOwner, uid_of};
use crate::names::{Names, NamespacedName};
use crate::plan::{LastSeen, plan};
use crate::settings::Settings;
use crate::types::ToHost;

/// Where the control plane is reached from pods on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlaneAddress {
    /// The cluster IP of this Service in the install namespace; it is also the owner of what is synced.
    HostService(String),
    /// A fixed address.
    Ip(String),
}

/// What a syncer is started with.
#[derive(Clone)]
pub struct SyncerConfig {
    pub names: Names,
    pub settings: Settings,
    pub control_plane: ControlPlaneAddress,
    pub clock: Clock,
    /// Objects of one type worked on at a time.
    pub workers: usize,
    /// Where the pairs of objects are kept; nowhere without.
    pub mappings: Option<Arc<dyn mappings::MappingStore>>,
}

impl SyncerConfig {
    /// The default for virtual cluster `name` installed in `host_namespace`.
    pub fn new(name: &str, host_namespace: &str) -> SyncerConfig {
        SyncerConfig {
            names: Names::new(name, host_namespace),
            settings: Settings { workload_service_account: format!("vc-workload-{name}"), ..Settings::default() },
            control_plane: ControlPlaneAddress::HostService(name.to_owned()),
            clock: Clock::system(),
            workers: 16,
            mappings: None,
        }
    }
}

/// Why an object could not be synced now. Tried again, with growing delays.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("could not get a token of service account {account}")]
    Token {
        account: String,
        #[source]
        source: ApiError,
    },
    #[error("{0} on the host is somebody else's object")]
    Clash(NamespacedName),
}

impl SyncError {
    fn api(&self) -> Option<&ApiError> {
        match self {
            SyncError::Api(error) | SyncError::Token { source: error, .. } => Some(error),
            SyncError::Clash(_) => None,
        }
    }

    /// Ends by itself: not worth an event.
    fn is_passing(&self) -> bool {
        self.api().is_some_and(|e| {
            e.is_conflict() || e.is_not_found() || e.is_already_exists() || matches!(e.code(), 0 | 429 | 500..=599)
        })
    }
}

/// One type that goes to the host.
struct TypeState {
    /// As in metrics.
    name: String,
    ty: Box<dyn ToHost>,
    queue: Queue<NamespacedName>,
    seen: Mutex<HashMap<NamespacedName, (String, LastSeen)>>,
    metrics: TypeMetrics,
}

impl TypeState {
    fn new(name: impl Into<String>, ty: Box<dyn ToHost>) -> TypeState {
        let config = informer::QueueConfig { max_delay: Duration::from_secs(60), ..Default::default() };
        TypeState {
            name: name.into(),
            ty,
            queue: Queue::new(config),
            seen: Mutex::default(),
            metrics: TypeMetrics::default(),
        }
    }

    /// What is remembered about this very object; a new one of the same name starts fresh.
    fn last_seen(&self, key: &NamespacedName, uid: &str) -> LastSeen {
        let seen = self.seen.lock();
        seen.get(key).filter(|(of, _)| of == uid).map(|(_, seen)| seen.clone()).unwrap_or_default()
    }

    fn remember(&self, key: &NamespacedName, uid: &str, last: LastSeen) {
        if last == LastSeen::default() {
            self.seen.lock().remove(key);
        } else {
            self.seen.lock().insert(key.clone(), (uid.to_owned(), last));
        }
    }
}

struct Engine {
    names: Names,
    settings: Settings,
    clock: Clock,
    virtual_side: Arc<Side>,
    host_side: Arc<Side>,
    recorder: Recorder,
    owner: RwLock<Option<HostOwner>>,
    kube_ip: RwLock<String>,
    /// Grows when definitions of custom resources become known.
    types: RwLock<Vec<Arc<TypeState>>>,
    definitions: OnceLock<Vec<definitions::Definition>>,
    definition_queue: Queue<usize>,
    node_queue: Queue<String>,
    /// Ports of the API server's own Service as they were last seen.
    api_ports: Mutex<Value>,
    node_creation: tokio::sync::Mutex<()>,
    volume_queue: Queue<String>,
    host_volumes: OnceLock<informer::Informer<informer::RawObject>>,
    event_queue: Queue<NamespacedName>,
    host_events: OnceLock<informer::Informer<informer::ReadOnce>>,
    imports: imports::Imports,
    mappings: mappings::Mappings,
    children: OnceLock<Vec<children::Children>>,
    child_queue: Queue<children::ChildKey>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    workers: usize,
    control_plane: ControlPlaneAddress,
    /// The pods behind the control plane's Service; empty where it has none of its own.
    control_plane_selector: RwLock<Value>,
    node_services: OnceLock<informer::Informer<informer::RawObject>>,
    /// All pods of the host, with a scheduler inside the virtual cluster.
    all_pods: OnceLock<informer::Informer<informer::RawObject>>,
    /// What is watched beyond this virtual cluster, and nothing waits for.
    host_wide: informer::Factory,
    host_ingresses: OnceLock<informer::Informer<informer::RawObject>>,
    /// Whether host names of Ingresses can be compared is decided, and what is to be known for it is.
    hostnames_known: AtomicBool,
    api_queue: Queue<()>,
    api_endpoints: OnceLock<informer::Informer<informer::RawObject>>,
    /// An address that the virtual API server did not accept for its own Service.
    kube_service_refused: Mutex<Option<String>>,
    replica_queue: Queue<replicate::ReplicaKey>,
    replica_sources: OnceLock<replicate::HostCaches>,
    namespace_queue: Queue<String>,
    synced: AtomicBool,
    /// What works beside the types.
    others: RwLock<Vec<metrics::Measured>>,
    /// Questions to the host about what tenants write.
    checks: tokio::sync::Semaphore,
}

/// Patches are listed by plural, those of custom resources by plural and group.
fn patches_of<'a>(
    all: &'a std::collections::BTreeMap<String, Vec<crate::patches::Patch>>,
    kind: &Kind,
) -> &'a [crate::patches::Patch] {
    let full = format!("{}.{}", kind.plural, kind.group);
    let built_in = !kind.group.contains('.') || kind.group.ends_with(".k8s.io");
    all.get(&full).or_else(|| all.get(kind.plural.as_ref()).filter(|_| built_in)).map_or(&[], Vec::as_slice)
}

impl Engine {
    fn type_of(&self, kind: &Kind) -> Option<Arc<TypeState>> {
        self.types.read().iter().find(|t| t.ty.kind() == kind).cloned()
    }

    fn all_types(&self) -> Vec<Arc<TypeState>> {
        self.types.read().clone()
    }

    /// The configuration's patches of a kind that goes to the host.
    fn patches(&self, kind: &Kind) -> &[crate::patches::Patch] {
        patches_of(&self.settings.patches, kind)
    }

    fn enqueue(&self, kind: &Kind, namespace: &str, name: &str) {
        if let Some(ty) = self.type_of(kind).filter(|_| !name.is_empty()) {
            ty.queue.add(NamespacedName::new(namespace, name));
        }
    }

    async fn reconcile(&self, ty: &TypeState, key: &NamespacedName) -> Result<Outcome, SyncError> {
        let began = tokio::time::Instant::now();
        let kind = ty.ty.kind();
        let pending = kind.group == kind::GATEWAY_GROUP && self.gateway_kinds_pending()
            || *kind == kind::INGRESS && !self.hostnames_known.load(Ordering::Acquire);
        if pending {
            return Ok(Outcome::After(Duration::from_millis(100)));
        }
        let virtual_ = self.virtual_side.get(kind, key);
        let host_name = match virtual_ {
            Some(_) => kind.host_name(&self.names, key),
            None => kind.known_host_name(&self.names, key),
        };
        let host = self.host_side.get(kind, &host_name);
        let believed = self.virtual_side.believes(kind, key) || self.host_side.believes(kind, &host_name);
        let uid = virtual_.as_ref().map_or("", uid_of).to_owned();
        let last = ty.last_seen(key, &uid);
        let facts = self.facts(kind, virtual_.as_ref(), host.as_ref());
        let owner = self.owner.read().clone();
        let ctx = crate::types::Context {
            names: &self.names,
            settings: &self.settings,
            owner: owner.as_ref(),
            facts: &facts,
            patches: self.patches(kind),
            now: self.clock.now(),
        };
        let plan = plan(ty.ty.as_ref(), virtual_.as_ref(), host.as_ref(), &last, &ctx);
        ty.remember(key, &uid, plan.seen);
        self.map(kind, key, &host_name, virtual_.is_some(), host.as_ref());
        let result = self.execute(ty, key, &host_name, virtual_.as_ref(), host.as_ref(), plan.actions).await;
        if let Err(error) = &result {
            ty.metrics.errors.fetch_add(1, Ordering::Relaxed);
            // What is remembered of our own writes may be what does not fit.
            self.host_side.forget(kind, &host_name);
            self.virtual_side.forget(kind, key);
            if !error.is_passing()
                && let Some(virtual_) = &virtual_
            {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                let text = self.names.to_virtual_text(&text, Some((&host_name, key)));
                self.warn(kind, virtual_, "SyncError", &format!("Error syncing: {text}"));
            }
        }
        ty.metrics.observe(began.elapsed());
        match result {
            Err(SyncError::Api(ApiError::Status { retry_after: Some(after), .. })) => Ok(Outcome::After(after)),
            Err(error) if error.api().is_some_and(ApiError::is_conflict) => Ok(Outcome::Retry),
            Ok(Outcome::Done) if believed => Ok(Outcome::After(Side::DOUBT)),
            other => other,
        }
    }

    /// Keeps the pair of objects while either is there.
    fn map(&self, kind: &Kind, key: &NamespacedName, host_name: &NamespacedName, exists: bool, host: Option<&Value>) {
        let decisions = &self.mappings.decisions;
        match (exists, host) {
            (true, Some(host)) => {
                // What the host makes under the same name, such as Endpoints of a synced Service, is not ours.
                let ours = match crate::metadata::owner(host, kind, &self.names) {
                    crate::metadata::Owner::Ours { name, .. } => name == *key,
                    crate::metadata::Owner::Foreign => false,
                };
                if ours && !decisions.record(kind, key, host_name) {
                    tracing::warn!(kind = %kind.kind, host = %host_name, "two virtual objects have one host name");
                }
            }
            (false, None) if !self.is_referred(kind, key) => decisions.forget(&kind.group, &kind.kind, key),
            _ => {}
        }
    }

    fn warn(&self, kind: &Kind, virtual_: &Value, reason: &str, message: &str) {
        let of = |path: &[&str]| virtual_.str_at(path).into();
        let reference = informer::events::ObjectReference {
            api_version: kind.api_version().into(),
            kind: kind.kind.as_ref().into(),
            namespace: of(&["metadata", "namespace"]),
            name: of(&["metadata", "name"]),
            uid: of(&["metadata", "uid"]),
            resource_version: of(&["metadata", "resourceVersion"]),
            field_path: "".into(),
        };
        self.recorder.warning(&reference, reason, message);
    }
}

/// A running syncer. Dropping it stops it without waiting; [`Syncer::shutdown`] waits.
pub struct Syncer {
    engine: Arc<Engine>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    active: AtomicBool,
}

/// Why a syncer could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the virtual cluster's name must not be empty")]
    NoName,
    #[error("the host namespace must not be empty")]
    NoNamespace,
}

impl Syncer {
    /// Starts syncing. Returns at once; [`Syncer::wait_synced`] tells when the first look is complete.
    pub fn start(
        virtual_client: kube::Client,
        host_client: kube::Client,
        config: SyncerConfig,
    ) -> Result<Syncer, StartError> {
        let syncer = Syncer::standby(virtual_client, host_client, config)?;
        syncer.activate();
        Ok(syncer)
    }

    /// Watches both sides and changes nothing until [`Syncer::activate`]: for a replica that may take over.
    pub fn standby(
        virtual_client: kube::Client,
        host_client: kube::Client,
        config: SyncerConfig,
    ) -> Result<Syncer, StartError> {
        if config.names.virtual_cluster().is_empty() {
            return Err(StartError::NoName);
        }
        if config.names.install_namespace().is_empty() {
            return Err(StartError::NoNamespace);
        }
        Ok(start::watch(virtual_client, host_client, config))
    }

    /// Starts to change things. Does nothing the second time.
    pub fn activate(&self) {
        start::activate(self);
    }

    /// Whether the caches of both sides have been complete and all that was found then has been worked on once.
    pub fn has_synced(&self) -> bool {
        self.engine.synced.load(Ordering::Acquire) && self.engine.all_types().iter().all(|t| t.queue.is_idle())
    }

    /// Whether the caches of both sides have been complete once.
    pub fn has_started(&self) -> bool {
        self.engine.virtual_side.factory.has_synced() && self.engine.host_side.factory.has_synced()
    }

    /// Returns once the caches of both sides are complete.
    pub async fn wait_synced(&self) {
        self.engine.virtual_side.factory.wait_synced().await;
        self.engine.host_side.factory.wait_synced().await;
    }

    /// Stops watches and workers; what is being written is finished.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.virtual_side.factory.shutdown().await;
        self.engine.host_side.factory.shutdown().await;
        self.engine.host_wide.shutdown().await;
    }

    /// Requests sent to the host and to the virtual cluster so far, watches aside.
    pub fn requests(&self) -> (u64, u64) {
        let of = |side: &Side| side.requests.load(Ordering::Relaxed);
        (of(&self.engine.host_side), of(&self.engine.virtual_side))
    }

    /// Host names that were found taken, so far.
    pub fn name_clashes(&self) -> u64 {
        self.engine.all_types().iter().map(|t| t.metrics.clashes.load(Ordering::Relaxed)).sum()
    }

    /// Host objects that stand for a virtual object that is gone, by type: none, but for the time it takes to delete them.
    pub fn strays(&self) -> Vec<(String, NamespacedName)> {
        let mut out = Vec::new();
        for ty in self.engine.all_types() {
            out.extend(self.engine.strays_of(&ty).into_iter().map(|name| (ty.name.clone(), name)));
        }
        out
    }

    /// The pairs of virtual and host objects, as they are kept.
    pub fn mappings(&self) -> Vec<Pair> {
        self.engine.mappings.decisions.all().into_iter().filter(|(_, kept)| *kept).map(|(pair, _)| pair).collect()
    }

    /// All metrics in Prometheus's text format.
    pub fn metrics(&self) -> String {
        let types = self.engine.all_types();
        let others = self.engine.others.read();
        let of_types = types.iter().map(|t| (t.name.as_str(), &t.metrics, t.queue.len()));
        let of_others = others.iter().map(|o| (o.name, &*o.metrics, (o.depth)()));
        let mut out = metrics::render(&of_types.chain(of_others).collect::<Vec<_>>());
        out.push_str("# HELP alcove_syncer_kept What is held in memory.\n# TYPE alcove_syncer_kept gauge\n");
        for (what, count) in self.kept() {
            out.push_str(&format!("alcove_syncer_kept{{what=\"{what}\"}} {count}\n"));
        }
        out
    }

    /// What is held in memory, by what it is: none of it may grow while the clusters do not.
    pub fn kept(&self) -> Vec<(String, usize)> {
        let engine = &self.engine;
        let mut out = Vec::new();
        for (side, of) in [("virtual", &engine.virtual_side), ("host", &engine.host_side)] {
            out.extend(of.kept().into_iter().map(|(what, count)| (format!("{side}_{what}"), count)));
        }
        let types = engine.all_types();
        out.push(("host_events".into(), engine.host_events.get().map_or(0, |cache| cache.len())));
        out.push(("names".into(), engine.mappings.decisions.len()));
        out.push(("last_seen".into(), types.iter().map(|t| t.seen.lock().len()).sum()));
        out.push(("retries".into(), types.iter().map(|t| t.queue.tracked()).sum()));
        out
    }

    /// Which host object stands for which virtual one.
    pub fn names(&self) -> &Names {
        &self.engine.names
    }

    /// The name of the host pod of a virtual pod, when it is there and is this very pod's.
    pub fn host_pod_for(&self, virtual_pod: &Value) -> Option<NamespacedName> {
        self.host_pod_object(virtual_pod).map(|host| crate::metadata::name_of(&host))
    }

    /// The same, the whole pod.
    pub fn host_pod_object(&self, virtual_pod: &Value) -> Option<Value> {
        let name = crate::metadata::name_of(virtual_pod);
        let host_name = kind::POD.known_host_name(&self.engine.names, &name);
        let host = self.engine.host_side.get(&kind::POD, &host_name)?;
        match crate::metadata::owner(&host, &kind::POD, &self.engine.names) {
            crate::metadata::Owner::Ours { name: of, uid } if of == name && uid == uid_of(virtual_pod) => Some(host),
            _ => None,
        }
    }

    /// Makes the host Service for a virtual one that is about to be created, and copies the host's choices into it.
    ///
    /// For API servers that can ask before they store; the virtual object gets its uid and is adopted by the engine after.
    /// Errors are the host's own, with host names removed: quota and admission reach the tenant at once.
    pub async fn create_service_on_host(&self, service: &mut Value) -> Result<(), ApiError> {
        self.engine.create_service_on_host(service).await
    }

    /// Whether the host takes a custom resource that is about to be stored in the virtual cluster. The error is the host's own
    /// refusal, with host names removed; a host that does not answer refuses nothing.
    pub async fn check_on_host(&self, group: &str, plural: &str, object: &Value) -> Result<(), ApiError> {
        self.engine.check_on_host(group, plural, object).await
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.engine.virtual_side.factory.cancellation().cancel();
        self.engine.host_side.factory.cancellation().cancel();
        self.engine.host_wide.cancellation().cancel();
    }
}
