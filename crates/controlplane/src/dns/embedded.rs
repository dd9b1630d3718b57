//! The embedded server: what it is told, and the objects that lead to it.

use std::net::SocketAddr;
use std::sync::Arc;

use apimachinery::{Value, json};
use config::{Config, ResolveDns};
use dns::{Dns, DnsConfig, Policy, ResolvConf, Rule, RuleSource, RuleTarget, Sockets};
use informer::{ApiError, Factory, Header, Informer, Resource, Rest, Source};
use syncer::names::Names;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    CONFIG_MAPS, DnsError, DnsPlace, LABEL, NAMESPACE, SERVICE, SERVICES, SLICES, Slice, apply, delete, retry,
};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "dns.alcove.dev";
/// On the Service when it has no endpoints: where the server listens.
const ADDRESS_ANNOTATION: &str = "alcove.dev/dns-address";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Starts the server. Its usual port may be taken (several clusters on one machine); then it takes a free one, which its
/// EndpointSlice names.
pub(super) async fn start(
    name: &str,
    config: &Config,
    client: kube::Client,
    place: &DnsPlace,
    resolv_conf: &str,
) -> Result<Dns, DnsError> {
    let sockets = match Sockets::bind(place.listen).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && place.listen.port() != 0 => {
            let mut free = place.listen;
            free.set_port(0);
            tracing::warn!(address = %place.listen, "the DNS port is taken; another one is used");
            Sockets::bind(free).await
        }
        result => result,
    };
    let sockets = sockets.map_err(|source| DnsError::Listen { address: place.listen, source })?;
    let answers = Dns::start(client, settings(name, config, place, resolv_conf), sockets)?;
    if let Some(address) = place.metrics {
        match TcpListener::bind(address).await {
            Ok(listener) => answers.serve_metrics(listener),
            Err(error) => tracing::warn!(%address, %error, "metrics of DNS are not served on their own port"),
        }
    }
    Ok(answers)
}

/// What of `vcluster.yaml` the server is told.
fn settings(name: &str, config: &Config, place: &DnsPlace, resolv_conf: &str) -> DnsConfig {
    let resolv_conf = ResolvConf::parse(resolv_conf);
    let networking = &config.networking;
    let servers = if place.servers.is_empty() { resolv_conf.servers.clone() } else { place.servers.clone() };
    let mut forward = servers.clone();
    let mut policy = Policy::Random;
    let policies = &config.policies.network_policy;
    if policies.enabled && !networking.advanced.fallback_host_cluster {
        // Pods that may not reach the host's server still resolve public names.
        policy = Policy::Sequential;
        forward.extend(dns::server_address(&policies.fallback_dns));
    }
    let corefile = &config.control_plane.coredns.overwrite_config;
    DnsConfig {
        cluster_domain: networking.advanced.cluster_domain.clone(),
        forward,
        policy,
        host_domain: resolv_conf.cluster_domain().unwrap_or(dns::DEFAULT_DOMAIN).to_string(),
        host_servers: servers,
        fallback_host_cluster: networking.advanced.fallback_host_cluster,
        rules: networking.resolve_dns.iter().filter_map(|entry| rule(name, entry)).collect(),
        node_names: networking.advanced.proxy_kubelets.by_hostname,
        resolv_conf,
        corefile: (!corefile.is_empty()).then(|| corefile.clone()),
    }
}

/// One entry of `networking.resolveDNS`, which the configuration has checked.
fn rule(name: &str, entry: &ResolveDns) -> Option<Rule> {
    let split = |text: &str| text.split_once('/').map(|(namespace, name)| (namespace.to_string(), name.to_string()));
    let source = if !entry.hostname.is_empty() {
        RuleSource::Hostname(entry.hostname.clone())
    } else if !entry.service.is_empty() {
        let (namespace, name) = split(&entry.service)?;
        RuleSource::Service { namespace, name }
    } else {
        RuleSource::Namespace(entry.namespace.clone())
    };
    let target = &entry.target;
    let target = if !target.hostname.is_empty() {
        RuleTarget::Hostname(target.hostname.clone())
    } else if !target.ip.is_empty() {
        RuleTarget::Ip(target.ip.parse().ok()?)
    } else if !target.host_service.is_empty() {
        let (namespace, name) = split(&target.host_service)?;
        RuleTarget::HostService { namespace, name }
    } else if !target.host_namespace.is_empty() {
        RuleTarget::HostNamespace(target.host_namespace.clone())
    } else {
        let parts: Vec<&str> = target.virtual_cluster_service.split('/').collect();
        let [host_namespace, cluster, namespace, service] = parts.as_slice() else { return None };
        // The name of this cluster may be left out.
        let cluster: &str = if cluster.is_empty() { name } else { cluster };
        let host = Names::new(cluster, *host_namespace).host_service(service, namespace);
        RuleTarget::HostService { namespace: host.namespace, name: host.name }
    };
    Some(Rule { source, target })
}

/// The EndpointSlice that leads here; none when nobody but this machine could follow it.
pub(super) fn slice(place: &DnsPlace, bound: SocketAddr) -> Option<Slice> {
    let address = place.advertise.filter(|address| !address.is_loopback() && !address.is_unspecified())?;
    let name = if place.identity.is_empty() { SERVICE.to_string() } else { format!("{SERVICE}-{}", place.identity) };
    let mut ports = vec![
        json!({"name": "dns", "port": (bound.port()), "protocol": "UDP"}),
        json!({"name": "dns-tcp", "port": (bound.port()), "protocol": "TCP"}),
    ];
    if let Some(metrics) = place.metrics {
        ports.push(json!({"name": "metrics", "port": (metrics.port()), "protocol": "TCP"}));
    }
    let mut object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": (name.as_str()), "namespace": NAMESPACE, "labels": {}},
        "addressType": (if address.is_ipv4() { "IPv4" } else { "IPv6" }),
        "endpoints": [{
            "addresses": [(address.to_string())],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
        "ports": (Value::Array(ports)),
    });
    for (key, value) in [(MANAGED_BY, MANAGER), (SERVICE_NAME, SERVICE), LABEL] {
        object["metadata"]["labels"][key] = value.into();
    }
    Some(Slice { name, object })
}

/// Removes EndpointSlices that lead to an embedded server.
pub(super) async fn remove_slices(rest: &Rest, stale: impl Fn(&str) -> bool) -> Result<(), ApiError> {
    let slices: Vec<Header> = rest.list_as(&SLICES, NAMESPACE, &format!("{MANAGED_BY}={MANAGER}"), "").await?;
    for slice in slices.iter().filter(|slice| stale(&slice.metadata.name)) {
        delete(rest, &SLICES, NAMESPACE, &slice.metadata.name).await?;
    }
    Ok(())
}

/// Keeps the objects that lead to the embedded server.
pub(super) struct Keeper {
    pub rest: Rest,
    pub config: Arc<Config>,
    pub slice: Option<Slice>,
    pub address: SocketAddr,
    pub replicas: u32,
}

impl Keeper {
    pub async fn run(self, cancel: CancellationToken) {
        let factory = Factory::new(self.rest.clone());
        let source = Source::namespaced(SERVICES, NAMESPACE).fields(format!("metadata.name={SERVICE}"));
        let services: Informer<Header> = factory.informer(source.metadata_only());
        let gone = Arc::new(Notify::new());
        let told = Arc::clone(&gone);
        services.on_change(move |change| {
            if change.is_deleted() {
                told.notify_one();
            }
        });
        while !cancel.is_cancelled() {
            retry("the Service of the embedded server", cancel.clone(), || self.put()).await;
            tokio::select! {
                // Somebody removed the Service: without it no new pod has a name server.
                () = gone.notified() => {}
                () = cancel.cancelled() => {}
            }
        }
        factory.shutdown().await;
    }

    async fn put(&self) -> Result<(), ApiError> {
        let mut service = super::service(&self.config, false);
        if self.slice.is_none() {
            // Nobody but this machine reaches it; here people find out where.
            service["metadata"]["annotations"][ADDRESS_ANNOTATION] = self.address.to_string().into();
        }
        apply(&self.rest, &SERVICES, &service).await?;
        if let Some(slice) = &self.slice {
            apply(&self.rest, &SLICES, &slice.object).await?;
        }
        let (own, replicas) = (self.slice.as_ref().map(|slice| slice.name.as_str()), self.replicas);
        remove_slices(&self.rest, |name| Some(name) != own && !is_replica(name, replicas)).await?;
        self.remove_deployment().await
    }

    /// What a deployed CoreDNS left behind, when it was ours.
    async fn remove_deployment(&self) -> Result<(), ApiError> {
        const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");
        let deployment = match self.rest.get(&DEPLOYMENTS, NAMESPACE, "coredns").await {
            Err(error) if error.is_not_found() => return Ok(()),
            result => result?,
        };
        if deployment.str_at(&["metadata", "labels", LABEL.0]) != LABEL.1 {
            return Ok(());
        }
        for (resource, namespace, name) in [
            (Resource::new("rbac.authorization.k8s.io", "v1", "clusterrolebindings"), "", "system:coredns"),
            (Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles"), "", "system:coredns"),
            (Resource::new("", "v1", "serviceaccounts"), NAMESPACE, "coredns"),
            (CONFIG_MAPS, NAMESPACE, "coredns"),
            // Last: it tells that something is left.
            (DEPLOYMENTS, NAMESPACE, "coredns"),
        ] {
            delete(&self.rest, &resource, namespace, name).await?;
        }
        Ok(())
    }
}

/// The slice of a pod `NAME-N` of a set of this size, with more than one.
fn is_replica(slice: &str, replicas: u32) -> bool {
    let number = slice.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
    replicas > 1 && number.is_some_and(|number| number < replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_reaches_the_server() {
        let config = Config::from_yaml(
            "t",
            "networking:\n  advanced: {clusterDomain: corp.internal, fallbackHostCluster: true}\n  \
             resolveDNS:\n  - {hostname: '*.a.com', target: {hostname: '*.b.com'}}\n  - {hostname: c.com, target: {ip: 1.2.3.4}}\n  \
             - {service: n/s, target: {hostService: h/t}}\n  - {namespace: here, target: {hostNamespace: there}}\n  \
             - {hostname: d.com, target: {vClusterService: vcluster-b/b/default/web}}\n",
        )
        .unwrap();
        let text = "search vcluster-a.svc.host.local svc.host.local host.local\nnameserver 10.96.0.10\n";
        let settings = settings("a", &config, &DnsPlace::loopback(), text);
        assert_eq!(settings.cluster_domain, "corp.internal");
        assert_eq!((settings.host_domain.as_str(), settings.fallback_host_cluster), ("host.local", true));
        assert_eq!(settings.host_servers, ["10.96.0.10:53".parse().unwrap()]);
        assert!(settings.node_names);
        let s = |text: &str| text.to_string();
        let host = |namespace: &str, name: &str| RuleTarget::HostService { namespace: s(namespace), name: s(name) };
        let name = |text: &str| RuleSource::Hostname(s(text));
        assert_eq!(
            settings.rules,
            [
                Rule { source: name("*.a.com"), target: RuleTarget::Hostname(s("*.b.com")) },
                Rule { source: name("c.com"), target: RuleTarget::Ip("1.2.3.4".parse().unwrap()) },
                Rule { source: RuleSource::Service { namespace: s("n"), name: s("s") }, target: host("h", "t") },
                Rule { source: RuleSource::Namespace(s("here")), target: RuleTarget::HostNamespace(s("there")) },
                Rule { source: name("d.com"), target: host("vcluster-b", "web-x-default-x-b") },
            ]
        );
    }

    #[test]
    fn a_slice_leads_only_where_pods_can_go() {
        let bound: SocketAddr = "0.0.0.0:1053".parse().unwrap();
        let any = bound.ip();
        for (advertise, want) in [(None, false), (Some("127.0.0.1"), false), (Some("10.1.2.3"), true)] {
            let place = DnsPlace::pod(any, "team-a-0", advertise.map(|text| text.parse().unwrap()));
            let slice = slice(&place, bound);
            assert_eq!(slice.is_some(), want, "{advertise:?}");
            if let Some(slice) = slice {
                assert_eq!(slice.name, "kube-dns-team-a-0");
                assert_eq!(slice.object["endpoints"][0]["addresses"][0], "10.1.2.3");
                assert_eq!(slice.object.array_at(&["ports"]).len(), 3);
            }
        }
        for (name, replicas, want) in [
            ("kube-dns-a-0", 3, true),
            ("kube-dns-a-2", 3, true),
            ("kube-dns-a-3", 3, false),
            ("kube-dns-a-0", 1, false),
        ] {
            assert_eq!(is_replica(name, replicas), want, "{name} of {replicas}");
        }
    }
}
