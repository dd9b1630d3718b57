//! Many virtual control planes in one process.
//!
//! Watches the config Secrets on a host that ask for placement `hub`, runs a control plane for each, one TLS port each,
//! and removes what a cluster has on the host when its Secret is deleted.
//!
//! Invariants:
//! - What should run is read from the Secrets alone; a restarted hub runs the same clusters on the same ports with the same
//!   data.
//! - A Secret that a hub has taken carries [`FINALIZER`]; it goes only when the cluster's host objects and data are gone, so
//!   a deletion that happened while no hub ran is finished later.
//! - Data belongs to the UID of the Secret: a new cluster of an old name never sees old data.
//! - One cluster that cannot start says so in its status and is tried again; the others do not notice.

mod cleanup;
mod run;
mod secret;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use informer::{Factory, Informer, ObjectKey, Outcome, Queue, QueueConfig, Rest, Source, WorkerStats, run_workers};
use parking_lot::Mutex;

pub use cleanup::{CleanupError, release_config_secret, remove_host_objects};
pub use secret::ConfigSecret;

/// On a config Secret: a hub has something to remove before it may go.
pub const FINALIZER: &str = "alcove.dev/hub";

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
}

/// A running hub.
pub struct Hub {
    inner: Arc<Inner>,
}

/// One running cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterInfo {
    pub name: String,
    pub namespace: String,
    pub port: u16,
}

pub(crate) struct Inner {
    pub config: HubConfig,
    pub rest: Rest,
    pub factory: Factory,
    pub secrets: Informer<ConfigSecret>,
    /// What runs, by config Secret.
    pub running: Mutex<BTreeMap<ObjectKey, run::Running>>,
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
        let inner = Arc::new(Inner { config, rest, factory: factory.clone(), secrets, running: Mutex::default() });
        let cancel = factory.cancellation().clone();
        let worker = Arc::clone(&inner);
        factory.spawn(run_workers("hub", WORKERS, queue, cancel, Arc::new(WorkerStats::default()), move |key| {
            let inner = Arc::clone(&worker);
            async move { inner.reconcile(key).await }
        }));
        Hub { inner }
    }

    /// What runs now, by namespace and name.
    pub fn clusters(&self) -> Vec<ClusterInfo> {
        self.inner.running.lock().values().map(run::Running::info).collect()
    }

    /// Stops all control planes; their data stays.
    pub async fn shutdown(self) {
        self.inner.factory.shutdown().await;
        let running = std::mem::take(&mut *self.inner.running.lock());
        futures::future::join_all(running.into_values().map(run::Running::stop)).await;
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
    #[error("cannot start")]
    Start(#[from] run::RunError),
}

impl Inner {
    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, ReconcileError> {
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
        let wanted = secret.content_hash();
        let current = self.running.lock().get(&key).map(|running| (running.uid.clone(), running.content_hash.clone()));
        if current == Some((secret.metadata.uid.to_string(), wanted)) {
            return Ok(Outcome::Done);
        }
        self.stop(&key).await;
        match run::start(self, &name, &secret).await {
            Ok(running) => {
                let port = running.port;
                self.running.lock().insert(key.clone(), running);
                self.rest.patch_json(&key, &secret::set_status("Running", Some(port))).await?;
                Ok(Outcome::Done)
            }
            Err(error) => {
                let text = run::chain(&error);
                tracing::warn!(cluster = %key, error = text, "a virtual cluster did not start");
                self.rest.patch_json(&key, &secret::set_status(&format!("Failed: {text}"), None)).await?;
                Err(error.into())
            }
        }
    }

    async fn stop(&self, key: &ObjectKey) {
        let running = self.running.lock().remove(key);
        if let Some(running) = running {
            running.stop().await;
        }
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
        if let Some(path) = run::data_path(&self.config, &secret.metadata.uid) {
            match tokio::fs::remove_dir_all(&path).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(ReconcileError::Data { path, source }),
            }
        }
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
