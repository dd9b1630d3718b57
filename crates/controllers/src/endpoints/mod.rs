//! What a Service's selector finds: EndpointSlices, and Endpoints for those who still read them.
//!
//! Follows: `pkg/controller/endpointslice` with `k8s.io/endpointslice`, `pkg/controller/endpoint`,
//! `pkg/controller/endpointslicemirroring`.

pub mod legacy;
pub mod mirroring;
pub mod slices;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, Queue, null_default};
use serde::{Deserialize, Serialize};

use crate::pod;
use crate::selector::LabelSelector;
use crate::types::{IntOrString, Node, Pod, Service, ServicePort};

/// A port as it stands in a slice; also the key by which endpoints are grouped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    #[serde(deserialize_with = "null_default")]
    pub name: Str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub protocol: Str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Str>,
}

/// The number a service port leads to on a pod. Ports that a pod does not have are left out.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i64> {
    let named = |name: &str| {
        let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
        let mut ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter());
        let protocol = |p: &str| if p.is_empty() { Str::const_new("TCP") } else { Str::from(p) };
        ports.find(|p| p.name == name && protocol(&p.protocol) == protocol(&port.protocol)).map(|p| p.container_port)
    };
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::Text(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::Text(name)) => named(name),
    }
}

fn ports_on(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.clone(),
            port: Some(target_port(port, pod)?),
            protocol: if port.protocol.is_empty() { "TCP".into() } else { port.protocol.clone() },
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

/// Whether a pod can be reached, or will say when it can.
fn is_endpoint(pod: &Pod, include_terminating: bool) -> bool {
    !pod::is_terminal(pod)
        && (!pod.status.pod_ip.is_empty() || !pod.status.pod_ips.is_empty())
        && (include_terminating || !pod.metadata.is_deleting())
}

fn hostname(service: &Service, pod: &Pod) -> Option<Str> {
    let named = !pod.spec.hostname.is_empty()
        && pod.spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace;
    named.then(|| pod.spec.hostname.clone())
}

fn ips(pod: &Pod) -> Vec<&str> {
    if pod.status.pod_ips.is_empty() {
        vec![pod.status.pod_ip.as_str()]
    } else {
        pod.status.pod_ips.iter().map(|p| p.ip.as_str()).collect()
    }
}

fn is_v6(ip: &str) -> bool {
    ip.contains(':')
}

fn pod_reference(pod: &Pod) -> Value {
    json!({"kind": "Pod", "namespace": pod.metadata.namespace.as_str(), "name": pod.metadata.name.as_str(),
        "uid": pod.metadata.uid.as_str()})
}

/// Enqueues the services that select a pod whenever something about it matters to them.
fn watch_selected(pods: &Informer<Pod>, services: &Informer<Service>, queue: &Queue<ObjectKey>) {
    let (services, queue) = (services.clone(), queue.clone());
    pods.on_change(move |change| {
        let mut keys: HashSet<ObjectKey> = HashSet::new();
        let mut select = |pod: &Pod| {
            for service in services.list_namespace(&pod.metadata.namespace) {
                let selector = &service.spec.selector;
                if !selector.is_empty() && LabelSelector::from_labels(selector).matches(&pod.metadata.labels) {
                    keys.insert(service.metadata.key());
                }
            }
        };
        match &change {
            informer::Change::Updated { old, new } => {
                let view = |p: &Pod| {
                    (
                        ips(p).join(","),
                        pod::is_ready(p),
                        pod::is_terminal(p),
                        p.metadata.is_deleting(),
                        p.spec.node_name.clone(),
                    )
                };
                let labels_changed = old.metadata.labels != new.metadata.labels;
                if view(old) == view(new) && !labels_changed {
                    return;
                }
                select(new);
                if labels_changed {
                    select(old);
                }
            }
            other => select(other.object()),
        }
        keys.into_iter().for_each(|key| queue.add(key));
    });
}

/// The zones of nodes by name.
type Zones = BTreeMap<Str, Str>;

fn zones(nodes: &[Arc<Node>]) -> Zones {
    let zone = |n: &Node| n.metadata.labels.get("topology.kubernetes.io/zone").map(Str::from);
    nodes.iter().filter_map(|n| Some((n.metadata.name.clone(), zone(n)?))).collect()
}
