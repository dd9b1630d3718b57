//! One virtual control plane as a value: store, API server, controllers, syncer, certificates.
//!
//! [`ControlPlane::start`] gives a running cluster, [`ControlPlane::stop`] ends it. Nothing here is global: thousands run in
//! one process. Who decides that a cluster should run, and on which port, is not known here.
//!
//! Invariants:
//! - The authority and the token key of a cluster are kept in Secret `NAME-certs` on the host; a control plane that lost
//!   its disk is still the same cluster to its clients.
//! - The API answers before controllers and syncer start; they stop before the API does.
//! - On the host only the cluster's own Secrets are written here; everything else is the syncer's.

mod certificates;
mod host;
mod link;
pub mod operations;
mod pending;
mod restore;
mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, UserInfo};
use deploy::secrets::AdminAccess;
use snapshot::archive::Release;
use store::Store;
use syncer::{Syncer, SyncerConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use certificates::CertificateError;
pub use controllers::{Schedule, ScheduleError};
pub use host::{Host, HostError, remove_pods};

use operations::{Operations, Served};

/// What a control plane is started with.
#[derive(Debug)]
pub struct Options {
    /// Name of the virtual cluster.
    pub name: String,
    pub config: config::Config,
    /// Where the store and, without a host, the certificates are kept; without it everything is in memory.
    pub data_dir: Option<PathBuf>,
    /// The bound port that serves the API.
    pub listener: TcpListener,
    /// Where clients reach that port, such as `https://127.0.0.1:31000`.
    pub public_url: String,
}

/// A running virtual control plane.
pub struct ControlPlane {
    name: String,
    address: SocketAddr,
    access: AdminAccess,
    server: ApiServer,
    store: Store,
    controllers: Option<controllers::Manager>,
    syncer: Option<Arc<Syncer>>,
    serving: CancellationToken,
    tasks: TaskTracker,
    operations: Arc<Operations>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("certificates")]
    Certificates(#[from] CertificateError),
    #[error("the host cluster")]
    Host(#[from] HostError),
    #[error("cannot make the data directory {path}")]
    DataDirectory { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store")]
    Store(#[from] store::OpenError),
    #[error("the configuration of the API server")]
    Secure(#[from] apiserver::secure::SecureError),
    #[error("the API server did not start")]
    ApiServer(#[from] apiserver::StartError),
    #[error("the listening socket")]
    Listener(#[source] std::io::Error),
    #[error("TLS")]
    Tls(#[from] apiserver::tls::TlsError),
    #[error("the controllers did not start")]
    Controllers(#[from] controllers::ManagerError),
    #[error("the syncer did not start")]
    Syncer(#[from] syncer::StartError),
    #[error("a snapshot could not be restored")]
    Restore(#[from] snapshot::restore::RestoreError),
}

impl ControlPlane {
    /// Starts all parts; returns when the API answers. With a `host` the cluster's objects are synced to it and its
    /// kubeconfig and certificates are kept there.
    pub async fn start(options: Options, host: Option<Host>) -> Result<ControlPlane, StartError> {
        let Options { name, config, data_dir, listener, public_url } = options;
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let service = match &host {
            Some(host) => Some(host.service(&name).await?),
            None => None,
        };
        let names = certificates::serving_names(&name, &config, host.as_ref(), service.as_ref(), &public_url);
        let certificates =
            certificates::load(&name, &names, data_dir.as_deref(), host.as_ref(), service.as_ref()).await?;

        let domain = &config.networking.advanced.cluster_domain;
        let range = match (config.networking.service_cidr.as_str(), &host) {
            ("", Some(host)) => host.service_range().await,
            ("", None) => None,
            (range, _) => Some(range.to_string()),
        };
        let file = |name: &str| certificates.file(name).unwrap_or_default();
        let tls = apiserver::tls::server_config(
            file("apiserver.crt").as_bytes(),
            file("apiserver.key").as_bytes(),
            Some(file("client-ca.crt").as_bytes()),
        )?;
        let secure = apiserver::SecureOptions {
            service_account_signing_key: file("sa.key").to_string(),
            service_account_keys: vec![file("sa.pub").to_string()],
            service_account_issuer: format!("https://kubernetes.default.svc.{domain}"),
            ..Default::default()
        };
        let mut api_config = apiserver::secure_config(&secure)?;
        api_config.secure_port = address.port();
        let link = host.as_ref().map(|host| link::Link::new(host.client.clone()));
        if let Some(link) = &link {
            if config.sync.to_host.services.enabled {
                api_config.service_addressing = Some(Arc::new(link::HostFirst(Arc::clone(link))));
            }
            api_config.pods = Some(Arc::new(link::HostPods(Arc::clone(link))));
        }
        if let Some(range) = range {
            api_config.service_cluster_ip_range = range;
        }
        let namespace = host.as_ref().map(|host| host.namespace.as_str()).unwrap_or_default();
        let release = Release::new(&name, namespace, env!("CARGO_PKG_VERSION"), &config.to_yaml());
        let operations = Operations::new(file("ca.key"), release, data_dir.as_deref());
        api_config.extension = Some(Arc::new(Served(Arc::clone(&operations))));
        let (store, restored) = open_restored(data_dir.as_deref()).await?;
        operations.set_store(&store);
        let server = match ApiServer::start(api_config, store.clone()).await {
            Ok(server) => server,
            Err(error) => {
                store.close().await;
                return Err(error.into());
            }
        };
        let serving = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (api, stop) = (server.clone(), serving.clone());
        tasks.spawn(async move { api.serve(listener, tls, stop).await });

        let mut control_plane = ControlPlane {
            access: access(&certificates, &config, &public_url),
            name,
            address,
            server,
            store,
            controllers: None,
            syncer: None,
            serving,
            tasks,
            operations,
        };
        if restored && let Some(host) = &host {
            // They belong to what was there before.
            host.remove_synced_pods(&control_plane.name).await?;
        }
        let controllers = controllers::ManagerConfig {
            root_ca: Some(file("server-ca.crt").to_string()),
            cluster_signing_ca: Some(controllers::SigningCa {
                certificate_pem: file("client-ca.crt").to_string(),
                key_pem: file("client-ca.key").to_string(),
            }),
            controllers: controller_list(&config, host.is_some()),
            ..Default::default()
        };
        match control_plane.start_clients(&config, controllers, host.as_ref(), link, service.as_ref()).await {
            Ok(()) => Ok(control_plane),
            Err(error) => {
                control_plane.stop().await;
                Err(error)
            }
        }
    }

    /// Starts what uses the API, and tells the host how to reach it.
    async fn start_clients(
        &mut self,
        config: &config::Config,
        controllers: controllers::ManagerConfig,
        host: Option<&Host>,
        link: Option<Arc<link::Link>>,
        service: Option<&host::HostService>,
    ) -> Result<(), StartError> {
        let user = |name: &str| UserInfo::new(name, [apiserver::authn::SYSTEM_MASTERS]);
        self.controllers = Some(controllers::Manager::start(
            self.server.kube_client(user("system:kube-controller-manager")),
            controllers,
        )?);
        let (Some(host), Some(link), Some(service)) = (host, link, service) else { return Ok(()) };
        if host.take_pods_removed(&self.name).await? {
            pending::schedule_again(&self.store).await?;
        }
        let mut syncer_config = SyncerConfig::new(&self.name, &host.namespace);
        syncer_config.settings = settings::settings(&self.name, config);
        let client = self.server.kube_client(user("system:vcluster-syncer"));
        let syncer = Arc::new(Syncer::start(client, host.client.clone(), syncer_config)?);
        link.set(&syncer);
        self.syncer = Some(syncer);
        host.write_kubeconfigs(&self.name, config, &self.access, service).await?;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bound address of the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How an administrator reaches the cluster.
    pub fn access(&self) -> &AdminAccess {
        &self.access
    }

    /// A client of the cluster in this process: no socket, no TLS.
    pub fn kube_client(&self, user: UserInfo) -> kube::Client {
        self.server.kube_client(user)
    }

    /// How long nobody has asked the API for anything over the network; nothing while somebody does.
    pub fn idle_for(&self) -> Option<Duration> {
        self.server.inner().activity.idle_for()
    }

    /// What the cluster has to do although nobody asks for anything, such as pods to look after; nothing when it may be
    /// stopped without anybody noticing. Reads every stored pod, job and namespace.
    pub async fn pending_work(&self) -> Option<String> {
        pending::work(&self.store).await
    }

    /// Are there running pods with all of these labels?
    pub async fn has_running_pods(&self, labels: &BTreeMap<String, String>) -> bool {
        pending::has_running_pods(&self.store, labels).await
    }

    /// Was a snapshot handed in that is restored when the control plane is started anew?
    pub fn is_restart_wanted(&self) -> bool {
        self.operations.is_restart_wanted()
    }

    /// Returns when [`ControlPlane::is_restart_wanted`]. Outlives the control plane.
    pub fn restart_wanted(&self) -> impl Future<Output = ()> + Send + 'static {
        let operations = Arc::clone(&self.operations);
        async move { operations.restart_wanted().await }
    }

    /// Where `container://` paths of snapshots begin; before this is called, at `files/` in the data directory.
    pub fn set_container_root(&self, folder: PathBuf) {
        self.operations.set_files(folder);
    }

    /// Ends syncer, controllers, requests and the store, in this order. The data stays.
    pub async fn stop(self) {
        if let Some(syncer) = &self.syncer {
            syncer.shutdown().await;
        }
        if let Some(controllers) = self.controllers {
            controllers.shutdown().await;
        }
        self.serving.cancel();
        self.server.shutdown().await;
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close().await;
    }
}

/// Which controllers run: what looks after nodes and binds volumes is the host's, unless pods are scheduled here.
fn controller_list(config: &config::Config, has_host: bool) -> Vec<String> {
    let mut list = vec!["*"];
    if has_host && !config.virtual_scheduler() {
        list.extend(["-node-lifecycle-controller", "-persistentvolume-binder-controller"]);
    }
    list.into_iter().map(str::to_string).collect()
}

/// Opens the store; first puts a snapshot that waits in its place. Says whether it did.
async fn open_restored(data_dir: Option<&Path>) -> Result<(Store, bool), StartError> {
    let Some(folder) = data_dir else { return Ok((open_store(None).await?, false)) };
    let Some((staged, content)) = restore::waiting(folder).await else {
        return Ok((open_store(Some(folder)).await?, false));
    };
    let outcome = match content {
        Ok(content) => snapshot::restore::into_sqlite(&folder.join("state.db"), &content).await,
        Err(error) => Err(error),
    };
    // Whatever came of it, the cluster starts: with the snapshot, or with the data it had.
    restore::finish(folder, &staged, &outcome);
    Ok((open_store(Some(folder)).await?, outcome.is_ok()))
}

async fn open_store(data_dir: Option<&std::path::Path>) -> Result<Store, StartError> {
    let Some(folder) = data_dir else {
        return Ok(Store::in_memory(store::Options::default()).await);
    };
    let failed = |source| StartError::DataDirectory { path: folder.to_path_buf(), source };
    tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    Ok(Store::open_sqlite(folder.join("state.db"), store::Options::default()).await?)
}

fn access(certificates: &pki::ClusterCertificates, config: &config::Config, public_url: &str) -> AdminAccess {
    let file = |name: &str| certificates.file(name).unwrap_or_default().to_string();
    let server = &config.export_kube_config.server;
    AdminAccess {
        server: if server.is_empty() { public_url.to_string() } else { server.clone() },
        insecure: config.export_kube_config.insecure,
        certificate_authority: file("server-ca.crt"),
        client_certificate: file("admin.crt"),
        client_key: file("admin.key"),
    }
}
