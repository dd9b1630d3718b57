//! Cluster DNS, answered from the objects of a cluster: Services, EndpointSlices, namespaces and nodes.
//!
//! Speaks `kube::Client` through informers, and DNS over UDP and TCP. Does not know who its cluster is or how its port is
//! reached.
//!
//! Invariants:
//! - An answer comes from one snapshot; it never mixes two states of a Service.
//! - Names of the cluster are answered without waiting for anything. Until all objects have been seen once, a name that
//!   is not known gets SERVFAIL, not NXDOMAIN.
//! - Memory is bounded: answers that are kept, questions under way, connections, sizes.
//!
//! Follows: the Kubernetes DNS specification 1.1.0; CoreDNS's plugins `kubernetes`, `forward`, `cache`, `hosts`,
//! `rewrite`, `template` and `loop`.

mod block;
mod cache;
mod corefile;
mod forward;
mod metrics;
mod metrics_server;
mod names;
mod objects;
mod resolv_conf;
mod resolver;
mod rewrite;
mod server;
mod snapshot;
mod template;
mod watch;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use informer::{Factory, ObjectKey, Rest};
use regex::Regex;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use block::server_address;
pub use corefile::CorefileError;
pub use forward::Policy;
pub use resolv_conf::ResolvConf;

use block::{Block, Cluster, Context, Forward, Hosts};
use forward::{Forwarder, Upstream};
use metrics::Metrics;
use resolver::{REVERSE_ZONES, Resolver, Setup};
use rewrite::{After, From, Rewrite, To};
use server::Handler;
use zone::Zone;

/// The domain that clients expect whatever a cluster's domain is.
pub const DEFAULT_DOMAIN: &str = "cluster.local";
/// How often a server that saw its own questions come back looks whether they still do.
const LOOP_RETRY: Duration = Duration::from_secs(30);

/// How a DNS server runs.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    pub cluster_domain: String,
    /// Servers for names outside the cluster.
    pub forward: Vec<SocketAddr>,
    pub policy: Policy,
    /// The DNS servers and the domain of the host cluster.
    pub host_servers: Vec<SocketAddr>,
    pub host_domain: String,
    /// Whether names that this cluster does not have are looked for in the host cluster.
    pub fallback_host_cluster: bool,
    pub rules: Vec<Rule>,
    /// Whether `NODE.nodes.vcluster.com` is the API server.
    pub node_names: bool,
    /// What `/etc/resolv.conf` in a Corefile stands for.
    pub resolv_conf: ResolvConf,
    /// A Corefile instead of what the fields above say about the chain.
    pub corefile: Option<String>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            cluster_domain: DEFAULT_DOMAIN.to_string(),
            forward: Vec::new(),
            policy: Policy::Random,
            host_servers: Vec::new(),
            host_domain: DEFAULT_DOMAIN.to_string(),
            fallback_host_cluster: false,
            rules: Vec::new(),
            node_names: false,
            resolv_conf: ResolvConf::default(),
            corefile: None,
        }
    }
}

/// Names that lead somewhere else (`networking.resolveDNS`). They come before the cluster's own names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub source: RuleSource,
    pub target: RuleTarget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleSource {
    /// With at most one `*`, at the beginning or the end.
    Hostname(String),
    Service {
        namespace: String,
        name: String,
    },
    Namespace(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleTarget {
    /// With a `*` where the source has one.
    Hostname(String),
    Ip(IpAddr),
    HostService {
        namespace: String,
        name: String,
    },
    HostNamespace(String),
}

/// The two sockets of a DNS server, on one port.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both; with port 0 to one that is free for both.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Sockets> {
        let mut tries = 0;
        loop {
            let udp = UdpSocket::bind(address).await?;
            let bound = udp.local_addr()?;
            match TcpListener::bind(bound).await {
                Ok(tcp) => return Ok(Sockets { udp, tcp }),
                // The port that was free for UDP is not for TCP.
                Err(_) if address.port() == 0 && tries < 64 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Why a DNS server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is no DNS domain")]
    Domain(String),
    #[error("the Corefile: {0}")]
    Corefile(#[from] CorefileError),
    #[error("the socket")]
    Socket(#[from] std::io::Error),
}

/// A running DNS server.
pub struct Dns {
    address: SocketAddr,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
    factory: Factory,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Dns {
    /// Answers from the objects that `client` sees. Returns at once; see [`Dns::wait_synced`].
    pub fn start(client: kube::Client, config: DnsConfig, sockets: Sockets) -> Result<Dns, StartError> {
        let address = sockets.address()?;
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let metrics = Arc::new(Metrics::default());
        let forwarder = Arc::new(Forwarder::new(Arc::clone(&metrics), tasks.clone(), cancel.clone()));
        let resolv_conf = config.resolv_conf.clone();
        let setup = setup(config, forwarder)?;
        let cluster_zones = Resolver::zone_names(&setup.zones);
        let resolver = Arc::new(Resolver::new(setup));
        let factory = Factory::new(Rest::new(client, "coredns"));
        watch::start(&factory, Arc::clone(&resolver), cluster_zones, resolv_conf);
        let handler = Arc::new(Handler { resolver: Arc::clone(&resolver), metrics: Arc::clone(&metrics) });
        server::serve(handler, sockets.udp, sockets.tcp, &tasks, &cancel);
        tasks.spawn(watch_loops(Arc::clone(&resolver), cancel.clone()));
        Ok(Dns { address, resolver, metrics, factory, tasks, cancel })
    }

    /// The bound address of both sockets.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns once every object has been seen.
    pub async fn wait_synced(&self) {
        self.factory.wait_synced().await;
    }

    /// Whether all objects are in the answers.
    pub fn is_ready(&self) -> bool {
        self.resolver.is_synced()
    }

    /// Counters in Prometheus's text format.
    pub fn metrics(&self) -> String {
        self.metrics.text(self.resolver.forwarder().cache_len(), self.resolver.snapshot().services_len())
    }

    /// Serves [`Dns::metrics`] under `/metrics`, `/health` and `/ready` over plain HTTP.
    pub fn serve_metrics(&self, listener: TcpListener) {
        let (metrics, resolver) = (Arc::clone(&self.metrics), Arc::clone(&self.resolver));
        self.tasks.spawn(metrics_server::serve(listener, metrics, resolver, self.cancel.clone()));
    }

    /// Ends all tasks and waits for them.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.factory.shutdown().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Sees whether questions come back to us, and again while they do.
async fn watch_loops(resolver: Arc<Resolver>, cancel: CancellationToken) {
    loop {
        let probe = async {
            for upstream in resolver.upstreams() {
                resolver.forwarder().probe(&upstream, resolver.loop_name()).await;
            }
        };
        tokio::select! {
            () = probe => {}
            () = cancel.cancelled() => return,
        }
        if !resolver.forwarder().is_looped() {
            return;
        }
        tracing::error!("DNS questions for other servers come back to this one; they are answered with SERVFAIL");
        tokio::select! {
            () = tokio::time::sleep(LOOP_RETRY) => resolver.forwarder().set_looped(false),
            () = cancel.cancelled() => return,
        }
    }
}

fn setup(config: DnsConfig, forwarder: Arc<Forwarder>) -> Result<Setup, StartError> {
    let zone = |domain: &str| Zone::new(domain).ok_or_else(|| StartError::Domain(domain.to_string()));
    let mut zones = vec![zone(&config.cluster_domain)?];
    // Programs that have the usual domain built in find their Services too.
    if zones[0].domain != DEFAULT_DOMAIN {
        zones.push(zone(DEFAULT_DOMAIN)?);
    }
    let host_domain = zone(&config.host_domain)?.domain;
    let host = Arc::new(Upstream::new(config.host_servers, Policy::Random));
    let mut default_block = match &config.corefile {
        None => {
            let mut fallthrough: Vec<String> = REVERSE_ZONES.map(str::to_string).to_vec();
            if config.fallback_host_cluster {
                fallthrough.extend(zones.iter().map(|zone| zone.domain.clone()));
            }
            let upstream = if config.fallback_host_cluster && !host.servers.is_empty() {
                Arc::clone(&host)
            } else {
                Arc::new(Upstream::new(config.forward, config.policy))
            };
            Block {
                zones: vec![String::new()],
                hosts: vec![Hosts {
                    entries: Vec::new(),
                    nodes: true,
                    zones: vec![String::new()],
                    ttl: 60,
                    reverse: true,
                    fallthrough: Some(vec![String::new()]),
                }],
                cluster: Some(Cluster { fallthrough }),
                forwards: vec![Forward { from: String::new(), except: Vec::new(), upstream }],
                ..Block::default()
            }
        }
        Some(text) => {
            let names = Resolver::zone_names(&zones);
            let context = Context { cluster_zones: &names, resolv_conf: &config.resolv_conf, root: true };
            let mut blocks = block::compile(text, &context)?;
            let root = blocks.iter().position(|block| block.zones.iter().any(String::is_empty));
            match root {
                Some(at) if blocks.len() == 1 => blocks.swap_remove(at),
                _ => {
                    let message = "needs one server block, for the root zone; others go to ConfigMap coredns-custom";
                    return Err(corefile::error(1, message).into());
                }
            }
        }
    };
    let mut rewrites = rewrites(&config.rules, &zones, &host_domain);
    if config.node_names
        && let Ok(pattern) = Regex::new(r"\.nodes\.vcluster\.com\.$")
    {
        let to = To::Text(format!("kubernetes.default.svc.{}", zones[0].domain));
        rewrites.push(Rewrite { from: From::Regex(pattern), to, after: After::Stop });
    }
    rewrites.append(&mut default_block.rewrites);
    default_block.rewrites = rewrites;
    let label = || format!("{:016x}", rand::random::<u64>());
    let loop_name = names::name(&format!("{}.{}", label(), label())).unwrap_or_else(Name::root);
    Ok(Setup {
        zones,
        own_service: ObjectKey::new("kube-system", "kube-dns"),
        default_block,
        host,
        host_domain,
        forwarder,
        loop_name,
    })
}

fn rewrites(rules: &[Rule], zones: &[Zone], host_domain: &str) -> Vec<Rewrite> {
    let mut rewrites = Vec::new();
    for rule in rules {
        let to = match &rule.target {
            RuleTarget::Hostname(name) => To::Text(names::normal(name)),
            RuleTarget::Ip(ip) => To::Address(*ip),
            RuleTarget::HostService { namespace, name } => To::Host(format!("{name}.{namespace}.svc.{host_domain}")),
            RuleTarget::HostNamespace(namespace) => To::Host(format!("{namespace}.svc.{host_domain}")),
        };
        let mut add = |from: From| rewrites.push(Rewrite { from, to: to.clone(), after: After::Stop });
        match &rule.source {
            RuleSource::Hostname(name) => {
                let name = names::normal(name);
                add(match (name.strip_prefix('*'), name.strip_suffix('*')) {
                    (Some(suffix), _) => From::StarBefore(suffix.to_string()),
                    (None, Some(prefix)) => From::StarAfter(prefix.to_string()),
                    (None, None) => From::Exact(name),
                });
            }
            RuleSource::Service { namespace, name } => {
                for zone in zones {
                    let name = format!("{name}.{namespace}.svc.{}", zone.domain);
                    // Names of single endpoints exist only where there is a Service.
                    add(match &rule.target {
                        RuleTarget::HostService { .. } => From::Tree(name),
                        _ => From::Exact(name),
                    });
                }
            }
            RuleSource::Namespace(namespace) => {
                for zone in zones {
                    add(From::Children(format!("{namespace}.svc.{}", zone.domain)));
                }
            }
        }
    }
    rewrites
}
