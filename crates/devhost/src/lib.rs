//! A host cluster for development and tests, in one process: API server, controllers, scheduler, simulated nodes.
//!
//! The same engine as a virtual control plane, with the scheduler and nodes that a virtual cluster borrows from its host.
//! Nothing runs in its containers; see `node` for what pods report.
//!
//! Invariants:
//! - [`DevHost::start`] on the same directory gives the same cluster: data, authority, service account key.
//! - The API answers when `start` returns; nodes are registered by then.

mod pods;
pub mod soak;
mod storage;
mod streams;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::aggregator::{self, ClientTrust, ProxyIdentity};
use apiserver::{ApiServer, UserInfo};
use pki::ClusterCertificates;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::storage::Provisioner;

const CONTROLLERS_USER: &str = "system:kube-controller-manager";

/// How a development host is started.
#[derive(Clone, Debug)]
pub struct DevHostConfig {
    /// How many simulated nodes there are.
    pub nodes: usize,
    /// Where data and certificates are kept; without it everything is in memory.
    pub data_dir: Option<PathBuf>,
    /// Address and port of the API; port 0 takes a free one.
    pub bind: SocketAddr,
    /// How long Events are kept.
    pub event_ttl: Duration,
}

impl Default for DevHostConfig {
    fn default() -> Self {
        DevHostConfig {
            nodes: 3,
            data_dir: None,
            bind: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0),
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// How an administrator reaches the host. All PEM.
#[derive(Clone, Debug)]
pub struct AdminAccess {
    pub server: String,
    pub certificate_authority: String,
    pub client_certificate: String,
    pub client_key: String,
}

/// Why the host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot make the data directory {}", path.display())]
    DataDirectory { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store")]
    Store(#[from] store::OpenError),
    #[error("certificates")]
    Certificates(#[from] pki::PkiError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the configuration of the API server")]
    Secure(#[from] apiserver::secure::SecureError),
    #[error("the API server did not start")]
    ApiServer(#[from] apiserver::StartError),
    #[error("the certificate of the front proxy")]
    FrontProxy(#[from] aggregator::TrustError),
    #[error("TLS")]
    Tls(#[from] apiserver::tls::TlsError),
    #[error("the controllers did not start")]
    Controllers(#[from] controllers::ManagerError),
    #[error("the nodes could not be registered")]
    Nodes(#[source] informer::ApiError),
    #[error("the default storage class could not be created")]
    StorageClass(#[source] informer::ApiError),
}

/// A running development host.
pub struct DevHost {
    address: SocketAddr,
    access: AdminAccess,
    server: ApiServer,
    store: Store,
    /// Absent only while they are being replaced.
    controllers: Option<controllers::Manager>,
    controllers_config: controllers::ManagerConfig,
    scheduler: scheduler::driver::Scheduler,
    nodes: node::Nodes,
    provisioner: Provisioner,
    serving: CancellationToken,
    tasks: TaskTracker,
}

impl DevHost {
    pub async fn start(config: DevHostConfig) -> Result<DevHost, StartError> {
        // The port comes first: a second host on the same directory must not open its store.
        let listen = |source| StartError::Listen { address: config.bind, source };
        let listener = TcpListener::bind(config.bind).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let certificates = certificates(&config, address)?;
        let file = |name: &str| certificates.file(name).unwrap_or_default().to_string();
        let tls = apiserver::tls::server_config(
            file("apiserver.crt").as_bytes(),
            file("apiserver.key").as_bytes(),
            Some(file("client-ca.crt").as_bytes()),
        )?;
        let store = open_store(&config).await?;
        let mut api_config = apiserver::secure_config(&apiserver::SecureOptions {
            service_account_signing_key: file("sa.key"),
            service_account_keys: vec![file("sa.pub")],
            ..Default::default()
        })?;
        api_config.secure_port = address.port();
        api_config.event_ttl = config.event_ttl;
        api_config.pods = Some(Arc::new(pods::SimulatedPods::default()));
        api_config.aggregation = aggregation(&certificates)?;
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

        let client = |user: &str| server.kube_client(UserInfo::new(user, [apiserver::authn::SYSTEM_MASTERS]));
        let clock = informer::Clock::system();
        let controllers_config = controllers::ManagerConfig {
            root_ca: Some(file("server-ca.crt")),
            cluster_signing_ca: Some(controllers::SigningCa {
                certificate_pem: file("client-ca.crt"),
                key_pem: file("client-ca.key"),
            }),
            policy_checker: Some(policy_checker(&server)),
            ..Default::default()
        };
        let controllers = Some(controllers::Manager::start(client(CONTROLLERS_USER), controllers_config.clone())?);
        let scheduler = scheduler::driver::Scheduler::start(
            client("system:kube-scheduler"),
            scheduler::driver::Config::default(),
            clock.clone(),
        );
        let provisioner =
            Provisioner::start(client("system:alcove-provisioner")).await.map_err(StartError::StorageClass)?;
        let node_config = node::Config { count: config.nodes, ..node::Config::default() };
        let nodes = node::Nodes::start(client("system:nodes"), node_config, clock).await.map_err(StartError::Nodes)?;
        let access = AdminAccess {
            server: format!("https://{address}"),
            certificate_authority: file("server-ca.crt"),
            client_certificate: file("admin.crt"),
            client_key: file("admin.key"),
        };
        Ok(DevHost {
            address,
            access,
            server,
            store,
            controllers,
            controllers_config,
            scheduler,
            nodes,
            provisioner,
            serving,
            tasks,
        })
    }

    /// The bound address of the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn access(&self) -> &AdminAccess {
        &self.access
    }

    /// An administrator's client in this process: no socket, no TLS.
    pub fn client(&self) -> kube::Client {
        self.kube_client(UserInfo::admin())
    }

    /// A client of one user in this process.
    pub fn kube_client(&self, user: UserInfo) -> kube::Client {
        self.server.kube_client(user)
    }

    /// Ends the controllers and starts new ones, which know nothing of what the old ones did: what happens when their
    /// process is replaced.
    pub async fn restart_controllers(&mut self) -> Result<(), StartError> {
        if let Some(old) = self.controllers.take() {
            old.shutdown().await;
        }
        let client = self.server.kube_client(UserInfo::new(CONTROLLERS_USER, [apiserver::authn::SYSTEM_MASTERS]));
        self.controllers = Some(controllers::Manager::start(client, self.controllers_config.clone())?);
        Ok(())
    }

    /// Ends nodes, scheduler, controllers, requests and the store, in this order. The data stays.
    pub async fn stop(self) {
        self.nodes.shutdown().await;
        self.provisioner.shutdown().await;
        self.scheduler.shutdown().await;
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

fn certificates(config: &DevHostConfig, address: SocketAddr) -> Result<ClusterCertificates, StartError> {
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"]
            .map(str::to_string)
            .to_vec();
    names.push("kubernetes.default.svc.cluster.local".to_string());
    names.push(address.ip().to_string());
    let folder = config.data_dir.as_ref().map(|folder| folder.join("pki"));
    let kept = match &folder {
        Some(folder) => pki::files::read(folder)?,
        None => BTreeMap::new(),
    };
    let certificates = ClusterCertificates::complete(kept.clone(), &names)?;
    if let Some(folder) = folder
        && *certificates.files() != kept
    {
        pki::files::write(&folder, certificates.files())?;
    }
    Ok(certificates)
}

/// Extension servers are reached from this process, wherever their endpoints are.
fn aggregation(certificates: &ClusterCertificates) -> Result<aggregator::Options, aggregator::TrustError> {
    let file = |name: &str| certificates.file(name).unwrap_or_default().to_string();
    let identity = ProxyIdentity::new(&file("front-proxy-client.crt"), &file("front-proxy-client.key"))?;
    let trust = ClientTrust::with_front_proxy(file("client-ca.crt"), file("front-proxy-ca.crt"));
    Ok(aggregator::Options { identity: Some(identity), trust: Some(Arc::new(trust)), ..Default::default() })
}

async fn open_store(config: &DevHostConfig) -> Result<Store, StartError> {
    let Some(folder) = &config.data_dir else {
        return Ok(Store::in_memory(store::Options::default()).await);
    };
    let failed = |source| StartError::DataDirectory { path: folder.clone(), source };
    tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    Ok(Store::open_sqlite(folder.join("state.db"), store::Options::default()).await?)
}

/// Tells of policies what the server finds odd about their types.
fn policy_checker(server: &ApiServer) -> controllers::PolicyChecker {
    let server = server.clone();
    controllers::PolicyChecker::new(move |policy| {
        let remarks = server.policy_remarks(policy).into_iter();
        remarks.map(|r| controllers::ExpressionWarning { field_ref: r.field, warning: r.text }).collect()
    })
}
