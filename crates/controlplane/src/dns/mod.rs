//! DNS of a cluster: answered by this process, or by CoreDNS in pods of the cluster.
//!
//! Either way the cluster has Service `kube-system/kube-dns`, whose address on the host synced pods get as their name
//! server. With the embedded server the Service has no selector, and each replica of the control plane keeps an
//! EndpointSlice with its own address and port, which the syncer copies to the host.
//!
//! Follows: vCluster `pkg/coredns` and `pkg/controllers/coredns`.

mod deployed;
mod embedded;
mod manifests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use apiserver::health::HealthCheck;
use apiserver::metrics::MetricsSource;
use apiserver::{ApiServer, UserInfo};
use async_trait::async_trait;
use config::{Config, DnsMode};
use informer::{ApiError, Backoff, DeleteOptions, PatchType, Resource, Rest};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const SERVICE: &str = "kube-dns";
/// The label of everything that belongs to DNS; it differs from the host's `kube-dns` on purpose.
pub(crate) const LABEL: (&str, &str) = ("k8s-app", "vcluster-kube-dns");
/// The port pods of the host reach the server at.
pub const PORT: u16 = 1053;
pub const METRICS_PORT: u16 = 9153;
const RESOLV_CONF: &str = "/etc/resolv.conf";

const SERVICES: Resource = Resource::new("", "v1", "services");
const SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");
const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps");
const NODES: Resource = Resource::new("", "v1", "nodes");

/// Where the embedded server listens, and who reaches it there.
#[derive(Clone, Debug)]
pub struct DnsPlace {
    pub listen: SocketAddr,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The address at which pods reach `listen`; without one the Service has no endpoints.
    pub advertise: Option<IpAddr>,
    /// Tells replicas apart.
    pub identity: String,
    /// Servers to ask instead of those in `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
}

impl DnsPlace {
    /// A free port that only this machine reaches.
    pub fn loopback() -> DnsPlace {
        DnsPlace {
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            metrics: None,
            advertise: None,
            identity: String::new(),
            servers: Vec::new(),
        }
    }

    /// The usual ports of a pod of its own.
    pub fn pod(bind: IpAddr, identity: impl Into<String>, pod_ip: Option<IpAddr>) -> DnsPlace {
        DnsPlace {
            listen: SocketAddr::new(bind, PORT),
            metrics: Some(SocketAddr::new(bind, METRICS_PORT)),
            advertise: pod_ip,
            identity: identity.into(),
            servers: Vec::new(),
        }
    }

    /// A port in a process that many clusters share and pods reach at `address`.
    pub fn shared(bind: IpAddr, address: Option<IpAddr>) -> DnsPlace {
        DnsPlace { listen: SocketAddr::new(bind, 0), advertise: address, ..DnsPlace::loopback() }
    }
}

/// Why DNS did not start.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot listen for DNS on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Start(#[from] dns::StartError),
}

/// Where the embedded server is found once it runs.
pub(crate) type Slot = Arc<RwLock<Option<Arc<dns::Dns>>>>;

/// `/readyz`: does the embedded server know all names?
pub(crate) struct DnsCheck(pub Slot);

#[async_trait]
impl HealthCheck for DnsCheck {
    fn name(&self) -> &str {
        "coredns"
    }

    async fn check(&self) -> Result<(), String> {
        match &*self.0.read() {
            Some(server) if !server.is_ready() => Err("not all Services have been seen yet".into()),
            _ => Ok(()),
        }
    }
}

/// `/metrics/coredns`.
pub(crate) struct DnsMetrics(pub Slot);

impl MetricsSource for DnsMetrics {
    fn name(&self) -> &str {
        "coredns"
    }

    fn render(&self, out: &mut String) {
        if let Some(server) = &*self.0.read() {
            out.push_str(&server.metrics());
        }
    }
}

/// What of DNS runs in this process.
pub(crate) struct ClusterDns {
    server: Option<Arc<dns::Dns>>,
    /// Emptied at the end: the API server, which the DNS server's client holds, holds it.
    slot: Slot,
    /// Other replicas go on when this one ends.
    has_others: bool,
    slice: Option<Slice>,
    rest: Rest,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

/// The EndpointSlice of one replica.
#[derive(Clone)]
struct Slice {
    name: String,
    object: Value,
}

impl ClusterDns {
    /// Starts to answer when the embedded server is asked for, and brings the objects of DNS into the cluster.
    pub async fn start(
        name: &str,
        config: &Arc<Config>,
        server: &ApiServer,
        place: DnsPlace,
        slot: Slot,
    ) -> Result<ClusterDns, DnsError> {
        let client = server.kube_client(UserInfo::new("system:coredns", [apiserver::authn::SYSTEM_MASTERS]));
        let rest = Rest::new(client.clone(), "alcove");
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let replicas = config.control_plane.stateful_set.high_availability.replicas;
        let mut started = ClusterDns {
            server: None,
            slot: Arc::clone(&slot),
            has_others: replicas > 1,
            slice: None,
            rest: rest.clone(),
            cancel: cancel.clone(),
            tasks,
        };
        match config.dns_mode() {
            DnsMode::Off => {
                started.tasks.spawn(retry("remove DNS", cancel, move || {
                    let rest = rest.clone();
                    async move { embedded::remove_slices(&rest, |_| true).await }
                }));
            }
            DnsMode::Embedded => {
                let text = tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default();
                let answers = Arc::new(embedded::start(name, config, client, &place, &text).await?);
                *slot.write() = Some(Arc::clone(&answers));
                let slice = embedded::slice(&place, answers.address());
                let keeper = embedded::Keeper {
                    rest,
                    config: Arc::clone(config),
                    slice: slice.clone(),
                    address: answers.address(),
                    replicas,
                };
                started.tasks.spawn(keeper.run(cancel));
                started.server = Some(answers);
                started.slice = slice;
            }
            DnsMode::Deployed => {
                let deployed = deployed::Deployed { rest, config: Arc::clone(config) };
                started.tasks.spawn(deployed.run(cancel));
            }
        }
        Ok(started)
    }

    /// The bound address of the embedded server.
    pub fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address())
    }

    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Nobody should be sent here any more while others answer.
        if let Some(slice) = self.slice.as_ref().filter(|_| self.has_others)
            && let Err(error) = self.rest.delete(&SLICES, NAMESPACE, &slice.name, &DeleteOptions::default()).await
        {
            tracing::debug!(%error, "the EndpointSlice of DNS stays");
        }
        *self.slot.write() = None;
        if let Some(server) = &self.server {
            server.shutdown().await;
        }
    }
}

/// Tries until it works.
async fn retry<F>(what: &'static str, cancel: CancellationToken, mut work: impl FnMut() -> F)
where
    F: Future<Output = Result<(), ApiError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15), Duration::from_secs(120));
    loop {
        let result = tokio::select! {
            result = work() => result,
            () = cancel.cancelled() => return,
        };
        let Err(error) = result else { return };
        tracing::debug!(%error, what, "DNS is not set up yet, trying again");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Puts an object as it is wanted; what others set beside it stays.
async fn apply(rest: &Rest, resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let text = |key: &str| object.str_at(&["metadata", key]);
    rest.patch(resource, "", text("namespace"), text("name"), PatchType::Apply, object).await.map(drop)
}

async fn delete(rest: &Rest, resource: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
    match rest.delete(resource, namespace, name, &DeleteOptions::background()).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Service `kube-dns`; its endpoints are the pods of a Deployment, or kept by us.
fn service(config: &Config, deployed: bool) -> Value {
    let wanted = &config.control_plane.coredns.service;
    let mut spec = Value::from(wanted.spec.clone());
    if !spec.is_object() {
        spec = json!({});
    }
    if deployed && spec.at(&["selector"]).is_none_or(Value::is_null) {
        spec["selector"] = manifests::labels();
    }
    if spec.array_at(&["ports"]).is_empty() {
        spec["ports"] = json!([
            {"name": "dns", "port": 53, "targetPort": (PORT), "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "targetPort": (PORT), "protocol": "TCP"},
            {"name": "metrics", "port": (METRICS_PORT), "protocol": "TCP"},
        ]);
    }
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": SERVICE,
            "namespace": NAMESPACE,
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"},
            "labels": {"kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": (spec),
    });
    object["metadata"]["labels"][LABEL.0] = LABEL.1.into();
    for (key, value) in &wanted.annotations {
        object["metadata"]["annotations"][key.as_str()] = value.as_str().into();
    }
    for (key, value) in &wanted.labels {
        object["metadata"]["labels"][key.as_str()] = value.as_str().into();
    }
    object
}
