//! `distro: k8s`: upstream's kube-apiserver, kube-controller-manager and kube-scheduler on this cluster's store.
//!
//! The store answers them as etcd, on the loopback and for the holder of the cluster's own etcd certificate alone. Users
//! reach the API server of this process, which passes on what upstream answers ([`apiserver::upstream`]). Objects are
//! stored as JSON under the same keys as by the native distro, so that a data directory may be served by either in turn.
//!
//! Invariants:
//! - kube-apiserver starts before what uses it and ends after it; the store's etcd face ends last.
//! - Nothing that upstream's programs do ends this process: they are started again.

pub(crate) mod child;
mod files;
mod flags;
mod lines;
mod stored;

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apiserver::Authorizer;
use apiserver::admission::chain::{PluginError, chain};
use apiserver::metrics::MetricsSource;
use apiserver::tokens::TokenAuthenticator;
use apiserver::upstream::{Reviews, Upstream, UpstreamError};
use config::Config;
use parking_lot::Mutex;
use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::certificates::Certificates;
use child::{Health, Program};
use files::Servers;
use flags::Places;

const API_SERVER: &str = "kube-apiserver";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

/// How long kube-apiserver may take to be ready at first. Source: vCluster's `waitForAPI`.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
const READY_PERIOD: Duration = Duration::from_millis(100);
/// A program that ends this often before it was ever ready is not going to be.
const FIRST_STARTS_MAX: u64 = 5;
/// How long the programs may take to end. Together with the requests that are waited for that is the pod's grace period.
const GRACE: Duration = Duration::from_secs(3);
const API_SERVER_GRACE: Duration = Duration::from_secs(4);
/// The service range when the host's is not known. Source: `--service-cluster-ip-range` of kubeadm.
const SERVICE_RANGE: &str = "10.96.0.0/16";

/// Why upstream's programs do not run.
#[derive(Debug, thiserror::Error)]
pub enum DistroError {
    #[error(
        "there is no {program}: the init container copies it from controlPlane.distro.k8s.image; elsewhere name a directory with --binaries or ALCOVE_BINARIES"
    )]
    Missing { program: PathBuf },
    #[error("cannot prepare {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("cannot write certificates for upstream's programs")]
    Files(#[from] pki::PkiError),
    #[error("the connection to {API_SERVER}")]
    Upstream(#[from] UpstreamError),
    #[error("no free port on the loopback")]
    Port(#[source] std::io::Error),
    #[error("admission")]
    Admission(#[from] PluginError),
    #[error("TLS of the etcd face")]
    Face(#[from] apiserver::tls::TlsError),
    #[error("{API_SERVER} {last}")]
    Ended { last: String },
    #[error("{API_SERVER} was not ready within {} s", READY_TIMEOUT.as_secs())]
    NotReady,
}

/// Upstream's programs of one cluster.
pub(crate) struct Distro {
    config: Arc<Config>,
    certificates: Arc<Certificates>,
    binaries: PathBuf,
    /// Where programs run and leave their process ids.
    work: PathBuf,
    /// Certificates; gone with this.
    folder: tempfile::TempDir,
    upstream: Arc<Upstream>,
    ports: [u16; 3],
    programs: Arc<Programs>,
    api_server: CancellationToken,
    others: CancellationToken,
    face: CancellationToken,
    /// Whatever happens to this, nothing stays behind.
    _ends: [DropGuard; 3],
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    api_server: TaskTracker,
    others: TaskTracker,
    face: TaskTracker,
}

/// What runs, for metrics.
#[derive(Default)]
pub(crate) struct Programs {
    api_server: Arc<Health>,
    controller_manager: Arc<Health>,
    scheduler: Arc<Health>,
}

impl Distro {
    /// Prepares everything; nothing runs yet.
    pub fn prepare(
        binaries: &Path,
        data_dir: Option<&Path>,
        config: &Arc<Config>,
        certificates: &Arc<Certificates>,
    ) -> Result<Distro, DistroError> {
        let k8s = &config.control_plane.distro.k8s;
        let own = |command: &[String]| command.is_empty();
        let needed = [
            (own(&k8s.api_server.command), API_SERVER),
            (k8s.controller_manager.enabled && own(&k8s.controller_manager.command), CONTROLLER_MANAGER),
            (config.virtual_scheduler() && own(&k8s.scheduler.command), SCHEDULER),
        ];
        for (_, name) in needed.iter().filter(|(needed, _)| *needed) {
            let program = binaries.join(name);
            if !program.is_file() {
                return Err(DistroError::Missing { program });
            }
        }
        let folder = tempfile::Builder::new().prefix("alcove-k8s-").tempdir();
        let folder = folder.map_err(|source| DistroError::Folder { path: std::env::temp_dir(), source })?;
        let work = data_dir.map_or_else(|| folder.path().to_path_buf(), |data| data.join("k8s"));
        std::fs::create_dir_all(&work).map_err(|source| DistroError::Folder { path: work.clone(), source })?;
        let work = work.canonicalize().map_err(|source| DistroError::Folder { path: work.clone(), source })?;
        let ports = free_ports().map_err(DistroError::Port)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        let upstream = Arc::new(Upstream::new(address, &files::credentials(certificates))?);
        let (api_server, others, face) = Default::default();
        let guard = |token: &CancellationToken| token.clone().drop_guard();
        Ok(Distro {
            config: Arc::clone(config),
            certificates: Arc::clone(certificates),
            binaries: binaries.canonicalize().unwrap_or_else(|_| binaries.to_path_buf()),
            work,
            folder,
            upstream,
            ports,
            programs: Arc::default(),
            _ends: [guard(&others), guard(&api_server), guard(&face)],
            api_server,
            others,
            face,
            tasks: Mutex::default(),
        })
    }

    pub fn upstream(&self) -> Arc<Upstream> {
        Arc::clone(&self.upstream)
    }

    /// Starts kube-apiserver on the store and waits until it is ready, then the others. `front` is where this process
    /// serves the cluster's API.
    pub async fn start(&self, store: &Store, range: Option<&str>, front: SocketAddr) -> Result<(), DistroError> {
        let servers = self.servers(front);
        files::write(self.folder.path(), &self.certificates, &servers)?;
        let etcd = self.serve_store(store).await?;
        let [api_port, controller_manager_port, scheduler_port] = self.ports;
        let places = Places {
            binaries: &self.binaries,
            folder: self.folder.path(),
            api_port,
            controller_manager_port,
            scheduler_port,
            etcd: &etcd,
            service_range: range.unwrap_or(SERVICE_RANGE),
            split_authorities: self.certificates.file("server-ca.crt") != self.certificates.file("client-ca.crt"),
        };
        let line = flags::api_server(&self.config, &places);
        let program = self.program(API_SERVER, line, API_SERVER_GRACE, &self.programs.api_server);
        {
            let tasks = self.tasks.lock();
            tasks.api_server.spawn(program.keep_running(self.api_server.clone()));
            tasks.others.spawn(self.follow_certificates(servers));
        }
        self.ready().await?;
        let k8s = &self.config.control_plane.distro.k8s;
        let tasks = self.tasks.lock();
        // For the log: nothing waits for it.
        let (telling, cancel) = (tell_unserved(Arc::clone(&self.upstream), store.clone()), self.others.clone());
        tasks.others.spawn(async move { cancel.run_until_cancelled(telling).await });
        if k8s.controller_manager.enabled {
            let line = flags::controller_manager(&self.config, &places);
            let program = self.program(CONTROLLER_MANAGER, line, GRACE, &self.programs.controller_manager);
            tasks.others.spawn(program.keep_running(self.others.clone()));
        }
        if self.config.virtual_scheduler() {
            let line = flags::scheduler(&self.config, &places);
            let program = self.program(SCHEDULER, line, GRACE, &self.programs.scheduler);
            tasks.others.spawn(program.keep_running(self.others.clone()));
        }
        Ok(())
    }

    fn program(&self, name: &'static str, line: Vec<String>, grace: Duration, health: &Arc<Health>) -> Program {
        Program { name, line, folder: self.work.clone(), grace, health: Arc::clone(health) }
    }

    /// Autoscalers read metrics that the process in front has; otherwise there is no need of it.
    fn servers(&self, front: SocketAddr) -> Servers {
        let direct = format!("https://{}", self.upstream.address());
        let metrics = self.config.at("integrations.metricsServer.enabled").and_then(serde_json::Value::as_bool);
        Servers {
            controller_manager: if metrics == Some(true) { crate::loopback(front) } else { direct.clone() },
            scheduler: direct,
        }
    }

    /// Serves the store as etcd; returns its URL.
    async fn serve_store(&self, store: &Store) -> Result<String, DistroError> {
        let file = |name: &str| self.certificates.file(name);
        let tls = apiserver::tls::server_config_for_clients(
            file("etcd-server.crt").as_bytes(),
            file("etcd-server.key").as_bytes(),
            file("etcd-ca.crt").as_bytes(),
        )?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(DistroError::Port)?;
        let url = format!("https://{}", listener.local_addr().map_err(DistroError::Port)?);
        let options = etcdface::Options { client_urls: vec![url.clone()], ..Default::default() };
        let face = etcdface::Face::new(store.clone(), options);
        let stop = self.face.clone();
        self.tasks.lock().face.spawn(async move {
            if let Err(error) = face.serve(etcdface::Listener::Tls(listener, tls), stop).await {
                tracing::error!(%error, "the store is not served as etcd any more");
            }
        });
        Ok(url)
    }

    /// Waits until kube-apiserver says that it is ready.
    async fn ready(&self) -> Result<(), DistroError> {
        let wait = async {
            loop {
                if self.upstream.is_ok("/readyz").await {
                    return Ok(());
                }
                let health = &self.programs.api_server;
                if health.starts() >= FIRST_STARTS_MAX || (health.starts() == 0 && !health.last_end().is_empty()) {
                    return Err(DistroError::Ended { last: health.last_end() });
                }
                tokio::time::sleep(READY_PERIOD).await;
            }
        };
        tokio::time::timeout(READY_TIMEOUT, wait).await.unwrap_or(Err(DistroError::NotReady))
    }

    /// Writes the files again when certificates were renewed.
    fn follow_certificates(&self, servers: Servers) -> impl Future<Output = ()> + Send + 'static {
        let (certificates, upstream) = (Arc::clone(&self.certificates), Arc::clone(&self.upstream));
        let (folder, cancel) = (self.folder.path().to_path_buf(), self.others.clone());
        let mut changes = certificates.changes();
        async move {
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                if let Err(error) = files::write(&folder, &certificates, &servers) {
                    tracing::error!(error = &error as &dyn std::error::Error, "renewed certificates cannot be written");
                }
                if let Err(error) = upstream.replace(&files::credentials(&certificates)) {
                    tracing::error!(error = &error as &dyn std::error::Error, "renewed certificates cannot be used");
                }
            }
        }
    }

    /// Ends what works on the API.
    pub async fn stop_others(&self) {
        self.others.cancel();
        let others = self.tasks.lock().others.clone();
        others.close();
        others.wait().await;
    }

    /// Ends kube-apiserver, then the etcd face. The store stays open.
    pub async fn stop(&self) {
        self.stop_others().await;
        let (api_server, face) = {
            let tasks = self.tasks.lock();
            (tasks.api_server.clone(), tasks.face.clone())
        };
        self.api_server.cancel();
        api_server.close();
        api_server.wait().await;
        self.face.cancel();
        face.close();
        face.wait().await;
    }
}

/// Says which objects of the store this version of kube-apiserver does not serve.
async fn tell_unserved(upstream: Arc<Upstream>, store: Store) {
    let mut unserved = Vec::new();
    for kind in stored::kinds(&store).await {
        if !upstream.is_ok(&kind.path).await {
            unserved.push(kind.name);
        }
    }
    if !unserved.is_empty() {
        let objects = unserved.join(", ");
        tracing::warn!(objects, "{API_SERVER} does not serve these, which are in the store: they stay as they are");
    }
}

/// Makes the API server of this process the one in front.
pub(crate) fn front(distro: &Distro, config: &mut apiserver::Config) -> Result<(), DistroError> {
    let reviews = Arc::new(Reviews::new(distro.upstream()));
    config.upstream = Some(distro.upstream());
    config.token_authenticators = vec![Arc::clone(&reviews) as Arc<dyn TokenAuthenticator>];
    config.tokens = None;
    let authorizer: Arc<dyn Authorizer> = reviews;
    // Connections to pods are admitted here; who may do what is upstream's word for the plugins too.
    config.admission = chain(&authorizer, &[], &[])?;
    config.authorizer = authorizer;
    config.metrics.push(Arc::new(ProgramMetrics(Arc::clone(&distro.programs))));
    Ok(())
}

/// Three ports that are free now.
fn free_ports() -> std::io::Result<[u16; 3]> {
    // Held together, so that they differ.
    let bind = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = [bind()?, bind()?, bind()?];
    let port = |n: usize| listeners[n].local_addr().map(|address| address.port());
    Ok([port(0)?, port(1)?, port(2)?])
}

/// `/metrics/distro`: whether upstream's programs run, and how often they were started.
pub(crate) struct ProgramMetrics(pub Arc<Programs>);

impl MetricsSource for ProgramMetrics {
    fn name(&self) -> &str {
        "distro"
    }

    fn render(&self, out: &mut String) {
        let programs = [
            (API_SERVER, &self.0.api_server),
            (CONTROLLER_MANAGER, &self.0.controller_manager),
            (SCHEDULER, &self.0.scheduler),
        ];
        let started: Vec<_> = programs.iter().filter(|(_, health)| health.starts() > 0).collect();
        let _ = writeln!(out, "# TYPE alcove_program_up gauge");
        for (name, health) in &started {
            let _ = writeln!(out, "alcove_program_up{{program=\"{name}\"}} {}", u8::from(health.is_running()));
        }
        let _ = writeln!(out, "# TYPE alcove_program_starts_total counter");
        for (name, health) in &started {
            let _ = writeln!(out, "alcove_program_starts_total{{program=\"{name}\"}} {}", health.starts());
        }
    }
}
