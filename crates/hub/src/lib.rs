//! Many virtual control planes in one process.
//!
//! Watches the config Secrets on a host that ask for placement `hub`, runs a control plane for each, one TLS port each,
//! puts those to sleep that nobody uses, and removes what a cluster has on the host when its Secret is deleted.
//!
//! Invariants:
//! - What should run is read from the Secrets alone; a restarted hub runs the same clusters on the same ports with the same
//!   data.
//! - A Secret that a hub has taken carries [`FINALIZER`]; it goes only when the cluster's host objects and data are gone, so
//!   a deletion that happened while no hub ran is finished later.
//! - Data belongs to the UID of the Secret, be it a directory or a database of its own: a new cluster of an old name never sees old data.
//! - A sleeping cluster keeps its port: the first connection is held by the socket until the control plane answers it.
//! - A paused cluster has neither port nor host pods, until the annotation is taken off.
//! - One cluster that cannot start says so in its status and is tried again; the others do not notice.

mod advertise;
mod cleanup;
mod memory;
mod ports;
mod run;
mod secret;
mod sleep;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use informer::{Factory, Informer, ObjectKey, Outcome, Queue, QueueConfig, Rest, Source, WorkerStats, run_workers};
use parking_lot::Mutex;
use store::{Endpoint, TlsFiles};

pub use cleanup::{CleanupError, leftovers, release_config_secret, remove_host_objects};
pub use controlplane::remove_pods;
pub use ports::bind_lasting;
pub use secret::ConfigSecret;

/// On a config Secret: a hub has something to remove before it may go.
pub const FINALIZER: &str = "alcove.dev/hub";

/// Status of a cluster that the next connection starts.
pub const SLEEPING: &str = "Sleeping";
/// Status of a cluster that is paused.
pub const PAUSED: &str = "Paused";
/// Status of a cluster that is about to run elsewhere.
pub const STOPPED: &str = "Stopped";
/// Status of a cluster whose data is on its way here.
pub const AWAITS_DATA: &str = "WaitingForData";

/// How many clusters are started or stopped at the same time.
const WORKERS: usize = 8;

/// How a hub runs.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Where clusters keep their data, one directory each; without it they live in memory.
    pub data_dir: Option<PathBuf>,
    /// Address the clusters' ports are bound to.
    pub bind_address: IpAddr,
    /// Host name or address that kubeconfigs name.
    pub public_address: String,
    /// A cluster that nobody has used for this long, and that has nothing to do, sleeps. None: they stay awake.
    pub sleep_after: Option<Duration>,
    /// The host's DNS servers; without any, those in `/etc/resolv.conf`.
    pub dns_servers: Vec<SocketAddr>,
    /// A database server: each cluster has a database there, named after this one and the UID of its config Secret. Without
    /// it clusters have files in the data directory.
    pub database: Option<(Endpoint, TlsFiles)>,
    /// Where the host's pods reach this process; then each cluster's Service leads to its port.
    pub advertised: Option<Advertised>,
    /// The image of this process, when it runs in a pod of the host.
    pub image: Option<String>,
}

impl HubConfig {
    /// The database of one cluster.
    fn database_of(&self, uid: &str) -> Option<(Endpoint, TlsFiles)> {
        let (endpoint, tls) = self.database.as_ref()?;
        Some((endpoint.sibling(&uid.replace('-', "_"))?, tls.clone()))
    }
}

/// The pod that a hub runs in.
#[derive(Clone, Debug)]
pub struct Advertised {
    pub address: IpAddr,
    pub pod_name: String,
    pub pod_namespace: String,
    pub node_name: String,
}

/// A running hub.
pub struct Hub {
    inner: Arc<Inner>,
}

/// One cluster that runs or sleeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    pub name: String,
    pub namespace: String,
    pub port: u16,
    /// Where its embedded DNS server answers.
    pub dns: Option<SocketAddr>,
    pub sleeping: bool,
}

pub(crate) struct Inner {
    pub config: HubConfig,
    pub rest: Rest,
    pub factory: Factory,
    pub secrets: Informer<ConfigSecret>,
    /// Config Secrets to look at.
    pub queue: Queue<ObjectKey>,
    /// What runs or sleeps, by config Secret.
    pub clusters: Mutex<BTreeMap<ObjectKey, Arc<run::Cluster>>>,
    /// Sockets of clusters that could not be started and will be tried again: nobody else gets their ports.
    pub parked: Mutex<BTreeMap<ObjectKey, std::net::TcpListener>>,
    /// Clusters have stopped.
    pub freed: tokio::sync::Notify,
}

impl Hub {
    /// Starts to watch the host. Clusters start in the background.
    pub fn start(host: kube::Client, config: HubConfig) -> Hub {
        let rest = Rest::new(host, "alcove-hub");
        let factory = Factory::new(rest.clone());
        let selector = format!("app=vcluster,{}={}", deploy::PLACEMENT_LABEL, deploy::PLACEMENT_HUB);
        let secrets: Informer<ConfigSecret> = factory.informer(Source::all(secret::SECRETS).labels(selector));
        let queue: Queue<ObjectKey> =
            Queue::new(QueueConfig { base_delay: Duration::from_millis(20), max_delay: Duration::from_secs(30) });
        let added = queue.clone();
        secrets.on_change(move |change| added.add(change.object().key()));
        let inner = Arc::new(Inner {
            config,
            rest,
            factory: factory.clone(),
            secrets,
            queue: queue.clone(),
            clusters: Mutex::default(),
            parked: Mutex::default(),
            freed: tokio::sync::Notify::new(),
        });
        let cancel = factory.cancellation().clone();
        let worker = Arc::clone(&inner);
        factory.spawn(run_workers("hub", WORKERS, queue, cancel, Arc::new(WorkerStats::default()), move |key| {
            let inner = Arc::clone(&worker);
            async move { inner.reconcile(key).await }
        }));
        factory.spawn(sleep::watch(Arc::clone(&inner)));
        factory.spawn(memory::keep_small(Arc::clone(&inner)));
        Hub { inner }
    }

    /// What runs or sleeps now, by namespace and name.
    pub fn clusters(&self) -> Vec<ClusterInfo> {
        self.inner.clusters.lock().values().map(|cluster| cluster.info()).collect()
    }

    /// Does it know which clusters it should run?
    pub fn is_ready(&self) -> bool {
        self.inner.secrets.has_synced()
    }

    /// Stops all control planes; their data stays.
    pub async fn shutdown(self) {
        self.inner.factory.shutdown().await;
        let clusters = std::mem::take(&mut *self.inner.clusters.lock());
        futures::future::join_all(clusters.into_values().map(|cluster| async move { cluster.stop().await })).await;
    }
}

/// Why a cluster is not as its Secret wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error("cannot write to the host")]
    Host(#[from] informer::ApiError),
    #[error("cannot remove host objects")]
    Cleanup(#[from] CleanupError),
    #[error("cannot remove the data in {path}")]
    Data { path: PathBuf, source: std::io::Error },
    #[error("cannot remove the data")]
    Database(#[from] store::OpenError),
    #[error("cannot remove host pods")]
    Pods(#[from] controlplane::HostError),
    #[error("cannot start")]
    Start(#[from] run::RunError),
}

impl Inner {
    async fn reconcile(self: &Arc<Self>, key: ObjectKey) -> Result<Outcome, ReconcileError> {
        let Some(secret) = self.secrets.get(&key) else {
            // Gone without our finalizer: forced by somebody. What runs is stopped; host objects are not ours to judge.
            self.stop(&key).await;
            return Ok(Outcome::Done);
        };
        let Some(name) = secret.cluster_name() else {
            tracing::warn!(secret = %key, "a config Secret without the label release is left alone");
            return Ok(Outcome::Done);
        };
        if secret.metadata.deletion_timestamp.is_some() {
            return self.remove(&key, &name, &secret).await;
        }
        if !secret.has_finalizer() {
            self.rest.patch_json(&key, &secret::add_finalizer(&secret)).await?;
            // The change comes back as an event.
            return Ok(Outcome::Done);
        }
        match secret.moving() {
            deploy::MOVING_STOP => return self.hand_over(&key, &name, &secret).await,
            deploy::MOVING_GONE => return self.forget(&key, &name, &secret).await,
            _ => {}
        }
        if secret.is_paused() {
            return self.pause(&key, &name, &secret).await;
        }
        let wanted = secret.content_hash();
        let current = self.cluster(&key).filter(|current| current.is_for(&secret.metadata.uid, &wanted));
        let Some(cluster) = current else {
            let socket = self.stop(&key).await;
            return self.start(&key, &name, &secret, socket).await;
        };
        match cluster.next_step() {
            run::Step::None => {}
            run::Step::Start => self.wake(&key, &cluster, &secret).await?,
            run::Step::Sleep { with_pods, .. } => self.put_to_sleep(&key, &name, &cluster, with_pods).await?,
        }
        Ok(Outcome::Done)
    }

    fn cluster(&self, key: &ObjectKey) -> Option<Arc<run::Cluster>> {
        self.clusters.lock().get(key).cloned()
    }

    /// Brings up a cluster that this hub does not know yet. One that slept goes on sleeping.
    async fn start(
        self: &Arc<Self>,
        key: &ObjectKey,
        name: &str,
        secret: &ConfigSecret,
        socket: Option<std::net::TcpListener>,
    ) -> Result<Outcome, ReconcileError> {
        let result = async {
            let cluster = Arc::new(run::Cluster::new(self, key, name, secret, socket).await?);
            if secret.status() == SLEEPING {
                cluster.sleep(self);
            } else if let Err(error) = cluster.start(self, secret).await {
                let socket = cluster.take_socket();
                self.parked.lock().extend(socket.map(|socket| (key.clone(), socket)));
                return Err(error);
            }
            Ok::<_, run::RunError>(cluster)
        };
        match result.await {
            Ok(cluster) => {
                let (port, status) = (cluster.port, cluster.status());
                let at = self.config.advertised.as_ref();
                if let Err(error) = advertise::publish(&self.rest, at, &key.namespace, name, port).await {
                    cluster.stop().await;
                    return Err(error.into());
                }
                self.clusters.lock().insert(key.clone(), cluster);
                self.rest.patch_json(key, &secret::set_status(status, Some(port))).await?;
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.rest.patch_json(key, &secret::set_status(&error.status(key), None)).await?;
                Err(error.into())
            }
        }
    }

    /// Starts the control plane of a cluster that sleeps, or anew that of one that asks for it.
    async fn wake(&self, key: &ObjectKey, cluster: &run::Cluster, secret: &ConfigSecret) -> Result<(), ReconcileError> {
        let slept = cluster.info().sleeping;
        cluster.stop().await;
        if let Err(error) = cluster.start(self, secret).await {
            self.rest.patch_json(key, &secret::set_status(&error.status(key), None)).await?;
            return Err(error.into());
        }
        if cluster.status() == AWAITS_DATA {
            self.rest.patch_json(key, &secret::set_status(AWAITS_DATA, None)).await?;
        } else if slept || secret.status() != "Running" {
            self.rest.patch_json(key, &secret::set_awake()).await?;
        }
        Ok(())
    }

    async fn put_to_sleep(
        self: &Arc<Self>,
        key: &ObjectKey,
        name: &str,
        cluster: &Arc<run::Cluster>,
        with_pods: bool,
    ) -> Result<(), ReconcileError> {
        cluster.stop().await;
        self.freed.notify_one();
        if with_pods {
            // Noted first: should this process end now, the pods are scheduled again all the same.
            self.rest.patch_json(key, &secret::set_pods_removed()).await?;
            controlplane::remove_pods(self.rest.client().clone(), &key.namespace, name).await?;
        }
        // From here on a connection wakes it, also one that came meanwhile.
        cluster.sleep(self);
        self.rest.patch_json(key, &secret::set_sleeping(sleep::now_seconds())).await?;
        tracing::info!(cluster = %key, with_pods, "a virtual cluster sleeps");
        Ok(())
    }

    async fn pause(&self, key: &ObjectKey, name: &str, secret: &ConfigSecret) -> Result<Outcome, ReconcileError> {
        self.stop(key).await;
        if secret.status() == PAUSED {
            return Ok(Outcome::Done);
        }
        advertise::withdraw(&self.rest, self.config.advertised.as_ref(), &key.namespace, name).await?;
        self.rest.patch_json(key, &secret::set_pods_removed()).await?;
        controlplane::remove_pods(self.rest.client().clone(), &key.namespace, name).await?;
        self.rest.patch_json(key, &secret::set_status(PAUSED, None)).await?;
        Ok(Outcome::Done)
    }

    /// Ends the control plane of a cluster that moves elsewhere. Its host objects stay as they are.
    async fn hand_over(&self, key: &ObjectKey, name: &str, secret: &ConfigSecret) -> Result<Outcome, ReconcileError> {
        self.stop(key).await;
        if secret.status() != STOPPED {
            advertise::withdraw(&self.rest, self.config.advertised.as_ref(), &key.namespace, name).await?;
            self.rest.patch_json(key, &secret::set_status(STOPPED, None)).await?;
        }
        Ok(Outcome::Done)
    }

    /// Removes the data of a cluster that runs elsewhere now, and lets the Secret go.
    async fn forget(&self, key: &ObjectKey, name: &str, secret: &ConfigSecret) -> Result<Outcome, ReconcileError> {
        self.stop(key).await;
        advertise::withdraw(&self.rest, self.config.advertised.as_ref(), &key.namespace, name).await?;
        self.remove_data(&secret.metadata.uid).await?;
        self.rest.patch_json(key, &secret::leave(secret)).await?;
        tracing::info!(cluster = %key, "a virtual cluster has moved away");
        Ok(Outcome::Done)
    }

    async fn remove_data(&self, uid: &str) -> Result<(), ReconcileError> {
        if let Some((database, tls)) = self.config.database_of(uid) {
            database.remove_database(&tls).await?;
        }
        let Some(path) = run::data_path(&self.config, uid) else { return Ok(()) };
        match tokio::fs::remove_dir_all(&path).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(ReconcileError::Data { path, source }),
            _ => Ok(()),
        }
    }

    /// Ends a cluster; gives its socket, which is closed when nobody takes it.
    async fn stop(&self, key: &ObjectKey) -> Option<std::net::TcpListener> {
        let parked = self.parked.lock().remove(key);
        let running = self.clusters.lock().remove(key);
        let Some(cluster) = running else { return parked };
        cluster.stop().await;
        self.freed.notify_one();
        cluster.take_socket()
    }

    /// Stops the cluster, removes its host objects and its data, then lets the Secret go.
    async fn remove(&self, key: &ObjectKey, name: &str, secret: &ConfigSecret) -> Result<Outcome, ReconcileError> {
        self.stop(key).await;
        if !secret.has_finalizer() {
            return Ok(Outcome::Done);
        }
        if !cleanup::remove_with(&self.rest, &key.namespace, name).await? {
            return Ok(Outcome::After(Duration::from_millis(50)));
        }
        self.remove_data(&secret.metadata.uid).await?;
        match self.rest.patch_json(key, &secret::remove_finalizer(secret)).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

/// Merge patches of config Secrets.
trait PatchSecret {
    fn patch_json(
        &self,
        key: &ObjectKey,
        patch: &apimachinery::Value,
    ) -> impl Future<Output = Result<(), informer::ApiError>> + Send;
}

impl PatchSecret for Rest {
    async fn patch_json(&self, key: &ObjectKey, patch: &apimachinery::Value) -> Result<(), informer::ApiError> {
        self.patch(&secret::SECRETS, "", &key.namespace, &key.name, informer::PatchType::Merge, patch).await.map(drop)
    }
}
