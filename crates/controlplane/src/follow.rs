//! Keeps certificates right while the cluster runs: names follow the host within moments, what ends soon is made anew.
//!
//! What may not be watched on the host is not followed; names from the configuration are there anyway.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use informer::{Change, Factory, Informer, Resource, Source, TreeObject};
use tokio::sync::Notify;

use crate::certificates::{Certificates, Renewed};
use crate::host::{Host, SECRETS, SERVICES};
use crate::kubelets::NodeAddresses;
use crate::operations::Operations;

const INGRESSES: Resource = Resource::new("networking.k8s.io", "v1", "ingresses");
const NODES: Resource = Resource::new("", "v1", "nodes");
/// How often it is looked whether something ends soon. What is due has 90 days left.
const RENEWAL_PERIOD: Duration = Duration::from_secs(12 * 3600);
/// Until the next try when a certificate could not be made or kept.
const RETRY_PERIOD: Duration = Duration::from_secs(10);

/// The label of Services that stand for nodes of the virtual cluster.
pub(crate) const NODE_SERVICE_LABEL: &str = "vcluster.loft.sh/belongs-to";

/// Names that the host gives to the cluster.
pub(crate) struct HostNames {
    service: Informer<TreeObject>,
    node_services: Informer<TreeObject>,
    ingress: Option<Informer<TreeObject>>,
    nodes: Option<Informer<TreeObject>>,
}

impl HostNames {
    /// Starts to watch what the cluster's names depend on; `changed` is told about every change.
    pub async fn watch(host: &Host, factory: &Factory, name: &str, changed: &Arc<Notify>) -> HostNames {
        let in_namespace = |resource: Resource| Source::namespaced(resource, host.namespace.as_str());
        let own = format!("metadata.name={name}");
        let tell = |informer: &Informer<TreeObject>| {
            let changed = Arc::clone(changed);
            informer.on_change(move |_: Change<'_, TreeObject>| changed.notify_one());
        };
        let service = factory.informer(in_namespace(SERVICES).fields(own.clone()));
        let node_services = factory.informer(in_namespace(SERVICES).labels(format!("{NODE_SERVICE_LABEL}={name}")));
        tell(&service);
        tell(&node_services);
        let mut ingress = None;
        if host.may_watch(&INGRESSES, &host.namespace).await {
            let informer = factory.informer(in_namespace(INGRESSES).fields(own));
            tell(&informer);
            ingress = Some(informer);
        }
        let mut nodes = None;
        if host.may_watch(&NODES, "").await {
            // Of nodes only the addresses count; heartbeats are in Leases, so this is quiet.
            let informer = factory.informer(NODES);
            tell(&informer);
            nodes = Some(informer);
        }
        HostNames { service, node_services, ingress, nodes }
    }

    /// Returns once everything that is watched is known.
    pub async fn wait_synced(&self) {
        self.service.wait_synced().await;
        self.node_services.wait_synced().await;
        for informer in [&self.ingress, &self.nodes].into_iter().flatten() {
            informer.wait_synced().await;
        }
    }

    /// The names now; `node_ip` is the address of this process's node.
    pub fn now(&self, node_ip: Option<IpAddr>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for service in self.service.list() {
            names.extend(service_names(&service.value));
            if service.value.str_at(&["spec", "type"]) == "NodePort" {
                names.extend(node_ip.map(|ip| ip.to_string()));
                for node in self.nodes.iter().flat_map(|nodes| nodes.list()) {
                    names.extend(node_names(&node.value));
                }
            }
        }
        for service in self.node_services.list() {
            names.extend(service_names(&service.value));
        }
        for ingress in self.ingress.iter().flat_map(|ingress| ingress.list()) {
            names.extend(ingress_names(&ingress.value));
        }
        names
    }
}

fn texts(values: &[Value]) -> impl Iterator<Item = String> {
    values.iter().filter_map(Value::as_str).filter(|text| !text.is_empty() && *text != "None").map(str::to_string)
}

/// Cluster addresses, external addresses, and what a load balancer has given.
pub(crate) fn service_names(service: &Value) -> Vec<String> {
    let mut names: Vec<String> = texts(service.array_at(&["spec", "clusterIPs"])).collect();
    names.extend(texts(service.array_at(&["spec", "externalIPs"])));
    for ingress in service.array_at(&["status", "loadBalancer", "ingress"]) {
        let both = [ingress.str_at(&["ip"]), ingress.str_at(&["hostname"])];
        names.extend(both.into_iter().filter(|text| !text.is_empty()).map(str::to_string));
    }
    names
}

fn ingress_names(ingress: &Value) -> Vec<String> {
    let rules = ingress.array_at(&["spec", "rules"]).iter().map(|rule| rule.str_at(&["host"]).to_string());
    let mut names: Vec<String> = rules.filter(|host| !host.is_empty()).collect();
    for tls in ingress.array_at(&["spec", "tls"]) {
        names.extend(texts(tls.array_at(&["hosts"])));
    }
    names
}

fn node_names(node: &Value) -> Vec<String> {
    let addresses = node.array_at(&["status", "addresses"]).iter();
    let known = addresses.filter(|a| ["InternalIP", "ExternalIP"].contains(&a.str_at(&["type"])));
    known.map(|a| a.str_at(&["address"]).to_string()).filter(|a| !a.is_empty()).collect()
}

/// What a control plane with a host does about its certificates until it stops.
pub(crate) struct Follower {
    pub certificates: Arc<Certificates>,
    pub name: String,
    pub host: Host,
    /// Names that do not depend on the host.
    pub fixed: BTreeSet<String>,
    pub node_ip: Option<IpAddr>,
    pub node_addresses: NodeAddresses,
    pub operations: Arc<Operations>,
    /// The store is reached with a certificate of the cluster's.
    pub etcd: bool,
}

impl Follower {
    /// Runs until the factory is shut down.
    pub async fn run(self, factory: Factory) {
        let cancel = factory.cancellation().clone();
        let changed = Arc::new(Notify::new());
        let names = HostNames::watch(&self.host, &factory, &self.name, &changed).await;
        let synced = tokio::select! {
            // Cancel-safe: both only wait.
            () = names.wait_synced() => true,
            () = cancel.cancelled() => false,
        };
        if !synced {
            return;
        }
        // A Secret that somebody removes is written again; leaves that somebody makes anew are taken over.
        let secret = Source::namespaced(SECRETS, self.host.namespace.as_str())
            .fields(format!("metadata.name={}", deploy::names::certs_secret(&self.name)));
        let told = Arc::clone(&changed);
        factory.headers(secret, move |_| told.notify_one());
        loop {
            let mut all = self.fixed.clone();
            all.extend(names.now(self.node_ip));
            let services = names.node_services.list();
            self.node_addresses.set(services.iter().map(|service| &service.value));
            let mut pause = RENEWAL_PERIOD;
            match self.certificates.serve(&all) {
                Ok(true) => tracing::info!(cluster = self.name, ?all, "serving a new certificate"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the serving certificate is not current");
                    pause = RETRY_PERIOD;
                }
            }
            match self.certificates.renew().await {
                Ok(Renewed::Leaves) => {
                    tracing::info!(cluster = self.name, "certificates were made anew");
                    if self.etcd {
                        // The connection to the store shows the old one.
                        self.operations.want_restart();
                    }
                }
                Ok(Renewed::Rotated) => {
                    tracing::info!(cluster = self.name, "the authorities were replaced; the cluster starts anew");
                    self.operations.want_restart();
                }
                Ok(Renewed::Nothing) => {}
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "certificates could not be renewed");
                    pause = RETRY_PERIOD;
                }
            }
            tokio::select! {
                // Cancel-safe: a notification that is not taken stays.
                () = cancel.cancelled() => return,
                () = changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// The same without a host: only time passes.
pub(crate) async fn renew_in_time(
    certificates: Arc<Certificates>,
    names: BTreeSet<String>,
    cancel: tokio_util::sync::CancellationToken,
) {
    loop {
        tokio::select! {
            // Cancel-safe: both only wait.
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_PERIOD) => {}
        }
        let renewed = async {
            certificates.serve(&names)?;
            certificates.renew().await
        };
        if let Err(error) = renewed.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "certificates could not be renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn names_are_taken_from_services_ingresses_and_nodes() {
        for (what, got, want) in [
            (
                "service",
                service_names(&json!({"spec": {"clusterIPs": ["10.0.0.1", "fd00::1"], "externalIPs": ["1.2.3.4"]},
                    "status": {"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "lb.example"}]}}})),
                vec!["10.0.0.1", "fd00::1", "1.2.3.4", "9.9.9.9", "lb.example"],
            ),
            ("headless", service_names(&json!({"spec": {"clusterIPs": ["None"]}})), vec![]),
            (
                "ingress",
                ingress_names(
                    &json!({"spec": {"rules": [{"host": "a.example"}, {}], "tls": [{"hosts": ["b.example"]}]}}),
                ),
                vec!["a.example", "b.example"],
            ),
            (
                "node",
                node_names(&json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.1"},
                    {"type": "Hostname", "address": "n"}, {"type": "ExternalIP", "address": "5.5.5.5"}]}})),
                vec!["10.1.0.1", "5.5.5.5"],
            ),
        ] {
            assert_eq!(got, want, "{what}");
        }
    }
}
