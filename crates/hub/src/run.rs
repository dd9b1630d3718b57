//! One cluster of a hub: its port, and its control plane while that runs.
//!
//! The socket belongs to the cluster, not to the control plane: it stays open while the control plane is started anew and
//! while the cluster sleeps, so that no connection is refused.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;

use config::Config;
use controlplane::dns::DnsPlace;
use controlplane::{ControlPlane, Host, Options};
use informer::ObjectKey;
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::ports;
use crate::secret::ConfigSecret;
use crate::sleep::Policy;
use crate::{ClusterInfo, HubConfig, Inner};

/// How often, and how far apart, the port that a cluster had is asked for.
const PORT_TRIES: usize = 25;
const PORT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// A cluster that runs or sleeps.
pub(crate) struct Cluster {
    pub name: String,
    pub port: u16,
    uid: String,
    content_hash: String,
    key: ObjectKey,
    /// Gone when the cluster has been given up.
    socket: Mutex<Option<StdListener>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    control_plane: Option<Arc<ControlPlane>>,
    /// When it sleeps by itself.
    policy: Policy,
    wish: Option<Step>,
    /// Ends what waits for a connection, or for the control plane's wish to be started anew.
    waiting: Option<DropGuard>,
}

/// What is to be done with a cluster next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    None,
    Start,
    /// `with_pods`: it may have pods, which are removed from the host. `forced`: whoever uses it now is not waited for.
    Sleep {
        with_pods: bool,
        forced: bool,
    },
}

/// Why a cluster cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the Secret has no readable key config.yaml")]
    NoConfig,
    #[error("config.yaml: {0}")]
    Config(#[from] config::ConfigError),
    #[error("no free port on {address}")]
    Port { address: std::net::IpAddr, source: std::io::Error },
    #[error("config.yaml: {0}")]
    Sleep(#[from] crate::sleep::PolicyError),
    #[error("the listening socket")]
    Socket(#[source] std::io::Error),
    #[error("control plane")]
    Start(#[from] controlplane::StartError),
}

impl RunError {
    /// The status of the cluster, which is tried again. `Pending` when nothing but time is needed.
    pub fn status(&self, cluster: &ObjectKey) -> String {
        let text = chain(self);
        tracing::warn!(%cluster, error = text, "a virtual cluster did not start");
        match self {
            RunError::Start(error) if error.is_store_away() => format!("Pending: {text}"),
            _ => format!("Failed: {text}"),
        }
    }
}

impl Cluster {
    /// Takes the port; nothing runs yet. `inherited` is the socket of the same cluster from before a change.
    pub async fn new(
        hub: &Inner,
        key: &ObjectKey,
        name: &str,
        secret: &ConfigSecret,
        inherited: Option<StdListener>,
    ) -> Result<Cluster, RunError> {
        let socket = match inherited {
            Some(socket) => socket,
            None => listen(hub, &secret.metadata.uid, secret.port()).await?,
        };
        let address = hub.config.bind_address;
        let port = socket.local_addr().map_err(|source| RunError::Port { address, source })?.port();
        // A configuration that cannot be read is said when the control plane starts.
        let policy = secret.config_text().and_then(|text| Config::from_yaml("config.yaml", &text).ok());
        let policy = policy.and_then(|config| Policy::of(&config, hub.config.sleep_after).ok()).unwrap_or_default();
        Ok(Cluster {
            name: name.to_string(),
            port,
            uid: secret.metadata.uid.to_string(),
            content_hash: secret.content_hash(),
            key: key.clone(),
            socket: Mutex::new(Some(socket)),
            state: Mutex::new(State { policy, ..State::default() }),
        })
    }

    /// Another handle of the socket.
    fn socket(&self) -> std::io::Result<StdListener> {
        match &*self.socket.lock() {
            Some(socket) => socket.try_clone(),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives the socket away: to the cluster's next form, or to be closed. The control plane must have been stopped.
    pub fn take_socket(&self) -> Option<StdListener> {
        self.socket.lock().take()
    }

    pub fn is_for(&self, uid: &str, content_hash: &str) -> bool {
        self.uid == uid && self.content_hash == content_hash
    }

    pub fn info(&self) -> ClusterInfo {
        let state = self.state.lock();
        ClusterInfo {
            name: self.name.clone(),
            namespace: self.key.namespace.to_string(),
            port: self.port,
            dns: state.control_plane.as_ref().and_then(|running| running.dns_address()),
            sleeping: state.control_plane.is_none(),
        }
    }

    /// What is said about it on the host.
    pub fn status(&self) -> &'static str {
        match &self.state.lock().control_plane {
            None => crate::SLEEPING,
            Some(running) if running.awaits_data() => crate::AWAITS_DATA,
            Some(_) => "Running",
        }
    }

    pub fn policy(&self) -> Policy {
        self.state.lock().policy.clone()
    }

    pub fn control_plane(&self) -> Option<Arc<ControlPlane>> {
        self.state.lock().control_plane.clone()
    }

    /// Says what is to be done; the queue brings the cluster to a worker.
    pub fn wish(&self, hub: &Inner, step: Step) {
        self.state.lock().wish = Some(step);
        hub.queue.add(self.key.clone());
    }

    /// What is to be done, once. A wish that time has overtaken is none.
    pub fn next_step(&self) -> Step {
        let mut state = self.state.lock();
        let wish = state.wish.take();
        match (&state.control_plane, wish) {
            (None, Some(Step::Start)) => Step::Start,
            (Some(running), _) if running.is_restart_wanted() => Step::Start,
            (Some(running), Some(step @ Step::Sleep { forced, .. })) => {
                // Somebody may have come since the wish was made.
                if forced || running.idle_for().is_some() { step } else { Step::None }
            }
            _ => Step::None,
        }
    }

    /// Starts the control plane on the cluster's socket.
    pub async fn start(&self, hub: &Inner, secret: &ConfigSecret) -> Result<(), RunError> {
        let text = secret.config_text().ok_or(RunError::NoConfig)?;
        let config = Config::from_yaml("config.yaml", &text)?;
        let policy = Policy::of(&config, hub.config.sleep_after)?;
        let socket = self.socket().map_err(RunError::Socket)?;
        let public = &hub.config.public_address;
        let port = self.port;
        // A host with Services knows the cluster by one; elsewhere the port is what there is.
        let public_url = match &hub.config.advertised {
            Some(_) if public.is_empty() => format!("https://{}.{}.svc", self.name, self.key.namespace),
            _ if public.contains(':') => format!("https://[{public}]:{port}"),
            _ => format!("https://{public}:{port}"),
        };
        let options = Options {
            name: self.name.clone(),
            config,
            data_dir: data_path(&hub.config, &self.uid),
            listener: TcpListener::from_std(socket).map_err(RunError::Socket)?,
            public_url,
            store: None,
            database: hub.config.database_of(&self.uid),
            etcd: None,
            binaries: None,
            replica: None,
            dns: Some(DnsPlace {
                servers: hub.config.dns_servers.clone(),
                ..DnsPlace::shared(hub.config.bind_address, hub.config.advertised.as_ref().map(|at| at.address))
            }),
        };
        // On the host a cluster has the rights of its own service account and no others, as it has in a pod of its own.
        let account = &options.config.control_plane.advanced.service_account.name;
        let account = if account.is_empty() { deploy::names::service_account(&self.name) } else { account.clone() };
        let user = controlplane::service_account_user(&self.key.namespace, &account);
        let host = Host::new(controlplane::acting_as(hub.rest.client(), &user), self.key.namespace.to_string())
            .with_own_image(hub.config.image.clone());
        let control_plane = Arc::new(ControlPlane::start(options, Some(host)).await?);
        let cancel = CancellationToken::new();
        let (wanted, ended) = (control_plane.restart_wanted(), cancel.clone());
        let (queue, key, stop) = (hub.queue.clone(), self.key.clone(), hub.factory.cancellation().clone());
        hub.factory.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = ended.cancelled() => {}
                () = wanted => queue.add(key),
            }
        });
        let mut state = self.state.lock();
        state.control_plane = Some(control_plane);
        state.policy = policy;
        state.waiting = Some(cancel.drop_guard());
        Ok(())
    }

    /// Waits for the first connection. The control plane must have been stopped.
    pub fn sleep(self: &Arc<Self>, hub: &Arc<Inner>) {
        let cancel = CancellationToken::new();
        let ended = cancel.clone();
        self.state.lock().waiting = Some(cancel.drop_guard());
        // The deprecation is about types that may change their descriptor; a listener keeps the one it owns.
        #[allow(deprecated)]
        let socket = self.socket().and_then(|socket| AsyncFd::with_interest(socket, Interest::READABLE));
        let (cluster, hub_then, key) = (Arc::downgrade(self), Arc::downgrade(hub), self.key.clone());
        let stop = hub.factory.cancellation().clone();
        hub.factory.spawn(async move {
            let ready = match &socket {
                Ok(socket) => tokio::select! {
                    () = stop.cancelled() => return,
                    () = ended.cancelled() => return,
                    // The connection stays where it is: the control plane will accept it.
                    ready = socket.readable() => ready.map(drop),
                },
                Err(error) => Err(std::io::Error::from(error.kind())),
            };
            if let Err(error) = ready {
                tracing::warn!(%error, cluster = %key, "a sleeping cluster's port cannot be watched; it wakes");
            }
            if let (Some(cluster), Some(hub)) = (cluster.upgrade(), hub_then.upgrade()) {
                cluster.wish(&hub, Step::Start);
            }
        });
    }

    /// Ends the control plane; the port stays.
    pub async fn stop(&self) {
        let running = {
            let mut state = self.state.lock();
            state.waiting = None;
            state.control_plane.take()
        };
        let Some(mut running) = running else { return };
        // Whoever looks at it for a moment gives it back.
        let control_plane = loop {
            match Arc::try_unwrap(running) {
                Ok(control_plane) => break control_plane,
                Err(shared) => running = shared,
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        control_plane.stop().await;
    }
}

/// The directory of a cluster's data.
pub(crate) fn data_path(config: &HubConfig, uid: &str) -> Option<PathBuf> {
    // A UID is made by the host; anything that could leave the directory is none.
    let safe = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    config.data_dir.as_ref().filter(|_| safe).map(|folder| folder.join(uid))
}

/// The port the cluster had, else a free one.
async fn listen(hub: &Inner, cluster: &str, recorded: Option<u16>) -> Result<StdListener, RunError> {
    let address = hub.config.bind_address;
    let ready = |listener: StdListener| listener.set_nonblocking(true).map(|()| listener).map_err(RunError::Socket);
    if let Some(port) = recorded {
        // Whoever had it until now may be about to close it.
        for _ in 0..PORT_TRIES {
            match StdListener::bind((address, port)) {
                Ok(listener) => return ready(listener),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                Err(_) => break,
            }
        }
        tracing::warn!(port, "a cluster's port is taken; it gets another");
    }
    ready(ports::bind_lasting(address, cluster).map_err(|source| RunError::Port { address, source })?)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
