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

mod aggregation;
mod backing_store;
mod central;
mod certificates;
mod charts;
mod deny;
mod distro;
pub mod dns;
mod embedded_etcd;
mod extra_args;
mod follow;
mod gate;
mod host;
mod init_manifests;
mod kubeconfigs;
mod kubelets;
mod link;
mod mappings;
mod metrics_api;
pub mod operations;
mod parts;
mod pending;
pub mod placement;
mod restore;
mod service_range;
mod settings;
mod snapshots;
mod write_through;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use std::time::Duration;

use apiserver::{ApiServer, UserInfo};
use deploy::secrets::AdminAccess;
use informer::{Clock, Factory};
use snapshot::archive::Release;
use snapshot::restore::RestoreError;
use store::{Endpoint, Store, TlsFiles};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::Certificates;
use crate::distro::Distro;
use crate::embedded_etcd::EmbeddedEtcd;
use crate::extra_args::ExtraArgs;
use crate::operations::{Operations, Served};
use crate::parts::{Parts, State, Working};

pub use backing_store::BackingStoreError;
pub use certificates::CertificateError;
pub use controllers::{Schedule, ScheduleError};
pub use distro::DistroError;
pub use embedded_etcd::EmbeddedEtcdError;
pub use extra_args::ExtraArgsError;
pub use host::{Host, HostError, acting_as, remove_pods, service_account_user};

/// How long requests that are under way may take when the cluster stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
pub use settings::SettingsError;

/// What a control plane is started with.
pub struct Options {
    /// Name of the virtual cluster.
    pub name: String,
    pub config: config::Config,
    /// Where the store and, without a host, the certificates are kept; without it everything is in memory.
    pub data_dir: Option<PathBuf>,
    /// An opened store in place of the one that the configuration describes. Whoever opened it closes it.
    pub store: Option<Store>,
    /// The store of a configuration that names none; without it a file in the data directory.
    pub database: Option<(Endpoint, TlsFiles)>,
    /// Where an etcd of the cluster's own (`controlPlane.backingStore.etcd.deploy`) is reached, when not by its Service.
    pub etcd: Option<String>,
    /// Where kube-apiserver and kube-controller-manager are, for a configuration that asks for them
    /// (`controlPlane.distro.k8s`); without it the native distro runs whatever the configuration says.
    pub binaries: Option<PathBuf>,
    /// The bound port that serves the API.
    pub listener: TcpListener,
    /// Where clients reach that port, such as `https://127.0.0.1:31000`.
    pub public_url: String,
    /// Which replica this is when there may be several; without it the control plane is alone.
    pub replica: Option<Replica>,
    /// Where the cluster's DNS is served when the configuration asks for the embedded server; without it nowhere.
    pub dns: Option<dns::DnsPlace>,
}

/// One of the pods of a cluster with placement `dedicated`.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Name of the pod: unique among the replicas.
    pub identity: String,
    /// There may be others on the same store: a Lease decides who runs controllers and syncer.
    pub elects: bool,
    /// Addresses of the pod and of its node, which the serving certificate has too.
    pub pod_ip: Option<IpAddr>,
    pub node_ip: Option<IpAddr>,
}

/// A running virtual control plane.
pub struct ControlPlane {
    name: String,
    address: SocketAddr,
    access: AdminAccess,
    server: ApiServer,
    store: Store,
    /// Somebody else opened the store and closes it.
    shared: bool,
    parts: Arc<Parts>,
    /// The parts, when there is nobody to elect from.
    working: Option<Working>,
    /// Ends the election and what only time drives.
    background: CancellationToken,
    /// Follows the host.
    following: Option<Factory>,
    serving: CancellationToken,
    tasks: TaskTracker,
    background_tasks: TaskTracker,
    operations: Arc<Operations>,
    dns: Option<dns::ClusterDns>,
    distro: Option<Distro>,
    etcd: Option<EmbeddedEtcd>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("certificates")]
    Certificates(#[from] CertificateError),
    #[error("the host cluster")]
    Host(#[from] HostError),
    #[error("{0}")]
    OwnNamespace(config::Problem),
    #[error("cannot make the data directory {path}")]
    DataDirectory { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store")]
    Store(#[from] store::OpenError),
    #[error("the store does not answer yet")]
    StoreAway(#[source] store::OpenError),
    #[error("the configuration of the API server")]
    Secure(#[from] apiserver::secure::SecureError),
    #[error("controlPlane.backingStore")]
    BackingStore(#[from] BackingStoreError),
    #[error("controlPlane.backingStore.etcd.embedded")]
    EmbeddedEtcd(#[from] EmbeddedEtcdError),
    #[error("the API server did not start")]
    ApiServer(#[from] apiserver::StartError),
    #[error("the listening socket")]
    Listener(#[source] std::io::Error),
    #[error("the certificate of the front proxy")]
    FrontProxy(#[from] apiserver::aggregator::TrustError),
    #[error("TLS")]
    Tls(#[from] apiserver::tls::TlsError),
    #[error("the controllers did not start")]
    Controllers(#[from] controllers::ManagerError),
    #[error("the syncer did not start")]
    Syncer(#[from] syncer::StartError),
    #[error("controlPlane.distro.k8s.apiServer.extraArgs")]
    ExtraArgs(#[from] ExtraArgsError),
    #[error("controlPlane.distro.k8s")]
    Distro(#[from] DistroError),
    #[error("DNS")]
    Dns(#[from] dns::DnsError),
    #[error("a snapshot could not be restored")]
    Restore(#[from] snapshot::restore::RestoreError),
    #[error("the configuration of the syncer")]
    Settings(#[from] settings::SettingsError),
}

impl StartError {
    /// Does it only wait for a store that does not answer yet?
    pub fn is_store_away(&self) -> bool {
        matches!(self, StartError::StoreAway(_))
    }

    /// May the same start succeed later, when something else has come up?
    pub fn is_passing(&self) -> bool {
        match self {
            StartError::Host(_) | StartError::Certificates(_) | StartError::StoreAway(_) => true,
            StartError::Restore(error) => matches!(error, RestoreError::Read(_) | RestoreError::Write(_)),
            _ => false,
        }
    }
}

impl ControlPlane {
    /// Starts all parts; returns when the API answers. With a `host` the cluster's objects are synced to it and its
    /// Secrets are written there; Service `NAME` must exist in the host namespace.
    // Boxed: what starts is compiled here alone, not in each crate that starts a control plane.
    pub fn start(options: Options, host: Option<Host>) -> BoxFuture<'static, Result<ControlPlane, StartError>> {
        Box::pin(ControlPlane::start_whole(options, host))
    }

    async fn start_whole(options: Options, host: Option<Host>) -> Result<ControlPlane, StartError> {
        let Options {
            name,
            config,
            data_dir,
            store,
            database,
            etcd,
            binaries,
            listener,
            public_url,
            replica,
            dns: dns_place,
        } = options;
        let own = host.as_ref().and_then(|host| config.maps_into_own_namespace(&name, &host.namespace));
        if let Some(problem) = own {
            return Err(StartError::OwnNamespace(problem));
        }
        let config = Arc::new(config);
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let service = match &host {
            Some(host) => Some(host.service(&name).await?),
            None => None,
        };
        let names = certificates::fixed_names(&name, &config, host.as_ref(), &public_url);
        let certificates =
            Certificates::load(&name, &names, data_dir.clone(), host.as_ref(), service.as_ref(), Clock::system())
                .await?;
        let mut fixed = names;
        let (pod_ip, node_ip) = replica.as_ref().map_or((None, None), |replica| (replica.pod_ip, replica.node_ip));
        fixed.extend(pod_ip.map(|ip| ip.to_string()));
        let mut now = fixed.clone();
        now.extend(service.iter().flat_map(|service| follow::service_names(&service.object)));
        certificates.serve(&now)?;

        let domain = &config.networking.advanced.cluster_domain;
        let range = match (config.networking.service_cidr.as_str(), &host, &service) {
            ("", Some(host), Some(service)) => service_range::find(host, &name, service).await,
            ("", ..) => None,
            (range, ..) => Some(range.to_string()),
        };
        let tls = apiserver::tls::server_config_with(
            certificates.serving(),
            Some(certificates.file("client-ca.crt").as_bytes()),
        )?;
        // Upstream's kube-apiserver gets its flags itself.
        let is_native = binaries.is_none() || !config.control_plane.distro.k8s.enabled;
        let extra_args = match is_native {
            true => ExtraArgs::parse(&config.control_plane.distro.k8s.api_server.extra_args, replica.is_some())?,
            false => ExtraArgs::default(),
        };
        let mut secure = apiserver::SecureOptions {
            service_account_signing_key: certificates.file("sa.key"),
            service_account_keys: vec![certificates.file("sa.pub")],
            service_account_issuer: format!("https://kubernetes.default.svc.{domain}"),
            ..Default::default()
        };
        extra_args.secure(&mut secure);
        let mut api_config = apiserver::secure_config(&secure)?;
        extra_args.apply(&mut api_config)?;
        api_config.secure_port = address.port();
        if let Some(ip) = pod_ip {
            api_config.advertise_address = ip;
        }
        let node_addresses = kubelets::NodeAddresses::default();
        let link = host.as_ref().map(|host| link::Link::new(host.client.clone()));
        api_config.aggregation = aggregation::options(&certificates, link.as_ref(), &config)?;
        let proxy_identity = api_config.aggregation.identity.clone();
        let state = Arc::new(State::default());
        if let Some(link) = &link {
            if config.sync.to_host.services.enabled {
                api_config.service_addressing = Some(Arc::new(link::HostFirst(Arc::clone(link))));
            }
            api_config.pods = Some(Arc::new(link::HostPods(Arc::clone(link))));
            if let Some(host) = &host {
                let by_hostname = config.networking.advanced.proxy_kubelets.by_hostname;
                let kubelets = kubelets::HostKubelets {
                    host: host.clone(),
                    link: Arc::clone(link),
                    by_hostname,
                    by_ip: node_addresses.clone(),
                };
                api_config.kubelets = Some(Arc::new(kubelets));
                let metrics = metrics_api::Metrics::new(&name, &config, host, link);
                api_config
                    .groups
                    .extend(metrics.map(|metrics| Arc::new(metrics) as Arc<dyn apiserver::groups::ApiGroup>));
            }
            api_config.health_checks.push(Arc::new(parts::SyncerCheck(Arc::clone(&state))));
            api_config.metrics.push(Arc::new(parts::SyncerMetrics(Arc::clone(&state))));
        }
        api_config.metrics.push(Arc::new(parts::ControllerMetrics(Arc::clone(&state))));
        let dns_slot = dns::Slot::default();
        api_config.metrics.push(Arc::new(dns::DnsMetrics(dns_slot.clone())));
        api_config.health_checks.push(Arc::new(dns::DnsCheck(dns_slot.clone())));
        if replica.is_some() {
            // In a hub the process is not the cluster's.
            api_config.metrics.push(Arc::new(parts::ProcessMetrics));
        }
        let host_namespace = host.as_ref().map(|host| host.namespace.as_str()).unwrap_or_default();
        let authorizer = Arc::clone(&api_config.authorizer);
        let central = &config.policies.central_admission;
        central::add(&mut api_config.admission.0, central, &authorizer, &name, host_namespace);
        if let Some(link) = &link {
            write_through::add(&mut api_config.admission.0, &config, link);
        }
        let distro = match &binaries {
            Some(folder) if config.control_plane.distro.k8s.enabled => {
                let distro = Distro::prepare(folder, data_dir.as_deref(), &config, &certificates)?;
                distro::front(&distro, &mut api_config)?;
                Some(distro)
            }
            _ => None,
        };
        if !config.experimental.deny_proxy_requests.is_empty() {
            let inner = Arc::clone(&api_config.authorizer);
            api_config.authorizer = Arc::new(deny::DenyRequests::new(&config.experimental.deny_proxy_requests, inner));
        }
        if let Some(range) = &range {
            api_config.service_cluster_ip_range.clone_from(range);
        }
        let namespace = host.as_ref().map(|host| host.namespace.as_str()).unwrap_or_default();
        let release = Release::new(&name, namespace, env!("CARGO_PKG_VERSION"), &config.to_yaml());
        let operations = Operations::new(&certificates.file("ca.key"), release, data_dir.as_deref());
        api_config.extension = Some(Arc::new(Served(Arc::clone(&operations))));
        let shared = store.is_some();
        let awaited = match &host {
            Some(host) if !shared => host.awaited_data(&name).await?,
            _ => None,
        };
        let embedded = match &binaries {
            Some(binaries) if !shared && embedded_etcd::is_wanted(&config) => {
                let place = embedded_etcd::Place {
                    name: &name,
                    namespace,
                    data_dir: data_dir.as_deref(),
                    binaries,
                    replica: replica.as_ref(),
                };
                Some(EmbeddedEtcd::start(&config, &place, &certificates)?)
            }
            _ => None,
        };
        let (store, found) = match store {
            Some(store) => (store, Found::Own),
            None => {
                let owner = backing_store::Owner {
                    name: &name,
                    namespace,
                    default: database.as_ref(),
                    etcd: etcd.as_deref(),
                    embedded: embedded.as_ref(),
                    data_dir: data_dir.as_deref(),
                    certificates: &certificates,
                };
                open_restored(data_dir.as_deref(), &config, &owner, awaited.as_deref()).await?
            }
        };
        operations.set_store(&store);
        if let (Found::Nothing, Some(id)) = (found, &awaited) {
            tracing::info!(cluster = name, "nobody is served before the cluster's data has arrived");
            operations.gate.await_data(id);
        }
        let server = match ApiServer::start(api_config, store.clone()).await {
            Ok(server) => server,
            Err(error) => {
                if !shared {
                    store.close().await;
                }
                return Err(error.into());
            }
        };
        operations.set_in_flight(server.requests_in_flight());
        let serving = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (api, stop) = (server.clone(), serving.clone());
        tasks.spawn(async move { api.serve(listener, tls, stop).await });

        let access = kubeconfigs::administrator(&certificates, &config, &public_url);
        let parts = Arc::new(Parts {
            name: name.clone(),
            config: Arc::clone(&config),
            server: server.clone(),
            certificates: Arc::clone(&certificates),
            public_url,
            host_version: match &host {
                Some(host) => host.version().await,
                None => None,
            },
            store: store.clone(),
            operations: Arc::clone(&operations),
            host: host.clone().zip(service).zip(link).map(|((host, service), link)| (host, service, link)),
            state,
            upstream: distro.is_some(),
            helm: binaries.as_ref().map(|folder| (folder.join("helm"), loopback(address))),
        });
        let mut control_plane = ControlPlane {
            access,
            name,
            address,
            server,
            store,
            shared,
            parts,
            working: None,
            background: CancellationToken::new(),
            following: None,
            serving,
            tasks,
            background_tasks: TaskTracker::new(),
            operations,
            dns: None,
            distro,
            etcd: embedded,
        };
        let started = async {
            if found == Found::Nothing {
                control_plane.parts.hand_out(&control_plane.background_tasks, control_plane.background.clone());
                return Ok(());
            }
            if let Some(distro) = &control_plane.distro {
                distro.start(&control_plane.store, range.as_deref(), address).await?;
            }
            if let Some(host) = &host {
                control_plane.catch_up(host, found).await?;
            }
            control_plane.start_parts(&config, host.as_ref(), replica.as_ref()).await?;
            // After the syncer, which chooses the address of the Service.
            if let Some(place) = dns_place {
                let (name, server) = (&control_plane.name, &control_plane.server);
                control_plane.dns = Some(dns::ClusterDns::start(name, &config, server, place, dns_slot).await?);
            }
            Ok(())
        };
        if let Err(error) = started.await {
            control_plane.stop().await;
            return Err(error);
        }
        if let Some(identity) = proxy_identity {
            let cancel = control_plane.background.clone();
            let follow = aggregation::follow(identity, Arc::clone(&certificates), cancel);
            control_plane.background_tasks.spawn(follow);
        }
        control_plane.follow(certificates, host, fixed, node_ip, node_addresses);
        Ok(control_plane)
    }

    /// Makes good what happened to the host's pods while the cluster did not run.
    async fn catch_up(&self, host: &Host, found: Found) -> Result<(), StartError> {
        match found {
            // They belong to what was there before.
            Found::Restored => host.remove_synced_pods(&self.name).await?,
            Found::Moved => host.end_waiting(&self.name).await?,
            Found::Own | Found::Nothing => {}
        }
        if host.take_pods_removed(&self.name).await? {
            pending::schedule_again(&self.store).await?;
        }
        Ok(())
    }

    /// Starts what uses the API: at once, or whenever this replica leads.
    async fn start_parts(
        &mut self,
        config: &config::Config,
        host: Option<&Host>,
        replica: Option<&Replica>,
    ) -> Result<(), StartError> {
        self.parts.stand_by().await?;
        match (host, replica) {
            (Some(host), Some(replica)) if replica.elects => {
                let election = parts::election(&self.name, &host.namespace, &replica.identity, config);
                let parts = Arc::clone(&self.parts);
                self.background_tasks.spawn(parts.run_elected(election, self.background.clone()));
            }
            _ => self.working = Some(self.parts.work()?),
        }
        Ok(())
    }

    /// Keeps the certificates right from now on.
    fn follow(
        &mut self,
        certificates: Arc<Certificates>,
        host: Option<Host>,
        fixed: BTreeSet<String>,
        node_ip: Option<IpAddr>,
        node_addresses: kubelets::NodeAddresses,
    ) {
        match host {
            Some(host) => {
                let factory = Factory::new(host.rest.clone());
                let follower = follow::Follower {
                    certificates,
                    name: self.name.clone(),
                    host,
                    fixed,
                    node_ip,
                    node_addresses,
                    operations: Arc::clone(&self.operations),
                    etcd: self.parts.config.store_type() == config::StoreType::DeployedEtcd,
                };
                self.background_tasks.spawn(follower.run(factory.clone()));
                self.following = Some(factory);
            }
            None => {
                let cancel = self.background.clone();
                self.background_tasks.spawn(follow::renew_in_time(certificates, fixed, cancel));
            }
        }
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

    /// The bound address of the embedded DNS server.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.dns.as_ref().and_then(dns::ClusterDns::address)
    }

    /// The API server itself.
    pub fn api_server(&self) -> &ApiServer {
        &self.server
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

    /// Does it serve nobody because its data has not arrived from where it ran before?
    pub fn awaits_data(&self) -> bool {
        self.operations.gate.awaited().is_some()
    }

    /// Must the control plane be started anew: for a snapshot that was handed in, or because authorities were replaced?
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

    /// From now on the cluster says that it is not ready, and works as before: load balancers get time to notice.
    pub fn begin_stop(&self) {
        self.server.begin_shutdown();
    }

    /// Ends the cluster as kube-apiserver ends: not ready; what works on the API; no new connections, requests finish;
    /// watches; the store. The data stays.
    pub async fn stop(self) {
        self.server.begin_shutdown();
        self.background.cancel();
        if let Some(dns) = &self.dns {
            dns.stop().await;
        }
        if let Some(factory) = &self.following {
            factory.shutdown().await;
        }
        if let Some(working) = self.working {
            self.parts.rest(Some(working)).await;
        }
        self.background_tasks.close();
        self.background_tasks.wait().await;
        self.parts.rest(None).await;
        if let Some(distro) = &self.distro {
            distro.stop_others().await;
        }
        self.serving.cancel();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.server.drained()).await.is_err() {
            tracing::warn!(cluster = self.name, "requests were still under way when the cluster stopped");
        }
        self.server.shutdown().await;
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(distro) = &self.distro {
            distro.stop().await;
        }
        if !self.shared {
            self.store.close().await;
        }
        if let Some(etcd) = &self.etcd {
            etcd.stop().await;
        }
    }
}

/// How programs beside this process reach the API.
pub(crate) fn loopback(front: SocketAddr) -> String {
    if front.ip().is_unspecified() { format!("https://127.0.0.1:{}", front.port()) } else { format!("https://{front}") }
}

/// What a cluster starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The data it had.
    Own,
    /// An older snapshot: the host pods are those of what was there before.
    Restored,
    /// Its data from where it ran before, with everything that it has on the host.
    Moved,
    /// Nothing: its data is on the way here.
    Nothing,
}

/// Opens the store; first puts a snapshot that waits in its place. `awaited`: without the data of this name there is
/// nothing to start with.
async fn open_restored(
    data_dir: Option<&Path>,
    config: &config::Config,
    owner: &backing_store::Owner<'_>,
    awaited: Option<&str>,
) -> Result<(Store, Found), StartError> {
    let waiting = match data_dir {
        Some(folder) => restore::waiting(folder).await.map(|(staged, content)| (folder, staged, content)),
        None => None,
    };
    let found = match awaited {
        Some(id) if waiting.as_ref().is_some_and(|(_, staged, _)| staged.id == id) => Found::Moved,
        Some(id) if data_dir.is_some_and(|folder| restore::has_arrived(folder, id)) => Found::Moved,
        Some(_) => return Ok((open_store(None).await?, Found::Nothing)),
        None => Found::Restored,
    };
    let external = backing_store::open(config, owner).await?;
    let Some((folder, staged, content)) = waiting else {
        let store = match external {
            Some((store, _)) => store,
            None => open_store(data_dir).await?,
        };
        return Ok((store, if found == Found::Moved { Found::Moved } else { Found::Own }));
    };
    let outcome = match (content, &external) {
        (Ok(content), Some((store, endpoint))) => {
            // A store of others is not replaced but changed. What was cut short is done again at the next start.
            tracing::info!(endpoint, "a snapshot is put in place of the data");
            let outcome = snapshot::restore::into_store(store, &content).await;
            if let Err(error @ (RestoreError::Read(_) | RestoreError::Write(_))) = outcome {
                store.close().await;
                return Err(error.into());
            }
            outcome
        }
        (Ok(content), None) => snapshot::restore::into_sqlite(&folder.join("state.db"), &content).await,
        (Err(error), _) => Err(error),
    };
    restore::finish(folder, &staged, &outcome);
    // Whatever came of it, the cluster starts: with the snapshot, or with the data it had. One that had none waits on.
    let found = match (&outcome, found) {
        (Ok(_), found) => found,
        (Err(_), Found::Moved) => Found::Nothing,
        (Err(_), _) => Found::Own,
    };
    let store = match (external, found) {
        (Some((store, _)), Found::Nothing) => {
            store.close().await;
            open_store(None).await?
        }
        (None, Found::Nothing) => open_store(None).await?,
        (Some((store, _)), _) => store,
        (None, _) => open_store(data_dir).await?,
    };
    Ok((store, found))
}

async fn open_store(data_dir: Option<&std::path::Path>) -> Result<Store, StartError> {
    let Some(folder) = data_dir else {
        return Ok(Store::in_memory(store::Options::default()).await);
    };
    let failed = |source| StartError::DataDirectory { path: folder.to_path_buf(), source };
    tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    Ok(Store::open_sqlite(folder.join("state.db"), store::Options::default()).await?)
}
