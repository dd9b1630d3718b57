//! A host cluster in one process: API server, controllers, scheduler and simulated nodes.
//!
//! What works here works on a real host, because it is the same API and the same code. Nodes are simulated: pods become
//! ready and run nothing; logs say so, and exec is refused.
//!
//! Invariant: parts start in the order API server, nodes, scheduler, controllers and end in the reverse order; the store
//! closes last.

mod pods;
mod storage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::{ApiServer, UserInfo};
use controllers::{Manager, ManagerConfig, ManagerError};
use informer::{ApiError, Clock};
use node::Nodes;
use pki::{ClusterCertificates, PkiError};
use scheduler::driver::Scheduler;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::storage::Provisioner;

/// How the cluster looks and where it keeps its data.
#[derive(Clone, Debug)]
pub struct Config {
    pub nodes: node::Config,
    /// Where the API is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The store's file; in memory without one.
    pub database: Option<PathBuf>,
    /// Complete certificates of the cluster; see [`serving_names`].
    pub certificates: ClusterCertificates,
    pub service_cluster_ip_range: String,
}

/// The names under which the API of a development host is reached from this machine.
pub fn serving_names() -> Vec<String> {
    ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1"]
        .map(str::to_owned)
        .into()
}

/// Why the cluster did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not open the host cluster's store")]
    Store(#[source] store::OpenError),
    #[error("the certificate {0} is missing")]
    MissingCertificate(&'static str),
    #[error("could not make certificates")]
    Certificates(#[from] PkiError),
    #[error("could not set up TLS")]
    Tls(#[source] apiserver::tls::TlsError),
    #[error("could not listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("could not start the host's API server")]
    ApiServer(#[source] apiserver::StartError),
    #[error("could not register the simulated nodes")]
    Nodes(#[source] ApiError),
    #[error("could not create the default storage class")]
    StorageClass(#[source] ApiError),
    #[error("could not start the host's controllers")]
    Controllers(#[from] ManagerError),
}

/// A running host cluster.
pub struct DevHost {
    store: Store,
    api: ApiServer,
    address: SocketAddr,
    serving: JoinHandle<()>,
    stop_serving: CancellationToken,
    nodes: Nodes,
    scheduler: Scheduler,
    provisioner: Provisioner,
    manager: Manager,
}

impl DevHost {
    /// Starts the cluster; returns when its API answers and its nodes are registered.
    pub async fn start(config: Config) -> Result<DevHost, StartError> {
        let store = match &config.database {
            Some(path) => Store::open_sqlite(path, store::Options::default()).await.map_err(StartError::Store)?,
            None => Store::in_memory(store::Options::default()).await,
        };
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let file = |name: &'static str| config.certificates.file(name).ok_or(StartError::MissingCertificate(name));
        let tls = apiserver::tls::server_config(
            file("apiserver.crt")?.as_bytes(),
            file("apiserver.key")?.as_bytes(),
            Some(file("client-ca.crt")?.as_bytes()),
        )
        .map_err(StartError::Tls)?;
        let api_config = apiserver::Config {
            pods: Some(Arc::new(pods::SimulatedPods)),
            service_cluster_ip_range: config.service_cluster_ip_range.clone(),
            advertise_address: config.listen.ip(),
            secure_port: address.port(),
            ..apiserver::Config::default()
        };
        let api = ApiServer::start(api_config, store.clone()).await.map_err(StartError::ApiServer)?;
        let stop_serving = CancellationToken::new();
        let (server, stop) = (api.clone(), stop_serving.clone());
        let serving = tokio::spawn(async move { server.serve(listener, tls, stop).await });
        let client = api.kube_client(UserInfo::admin());
        let clock = Clock::system();
        let nodes = Nodes::start(client.clone(), config.nodes, clock.clone()).await.map_err(StartError::Nodes)?;
        let scheduler = Scheduler::start(client.clone(), scheduler::driver::Config::default(), clock.clone());
        let provisioner = Provisioner::start(client.clone()).await.map_err(StartError::StorageClass)?;
        let root_ca = Some(file("server-ca.crt")?.to_owned());
        let manager = Manager::start(client, ManagerConfig { root_ca, clock, ..ManagerConfig::default() })?;
        info!(%address, "host cluster serving");
        Ok(DevHost { store, api, address, serving, stop_serving, nodes, scheduler, provisioner, manager })
    }

    /// Where the API is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of this cluster in the same process, as an administrator.
    pub fn client(&self) -> kube::Client {
        self.api.kube_client(UserInfo::admin())
    }

    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// Ends everything; what was acknowledged is on disk.
    pub async fn shutdown(self) {
        self.manager.shutdown().await;
        self.provisioner.shutdown().await;
        self.scheduler.shutdown().await;
        self.nodes.shutdown().await;
        self.stop_serving.cancel();
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the host's API server did not end well");
        }
        self.api.shutdown().await;
        self.store.close().await;
    }
}
