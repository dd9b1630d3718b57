//! endpoints: keeps the Endpoints object of every Service that has a selector.
//!
//! Follows: `pkg/controller/endpoint`, `pkg/api/v1/endpoints` (`RepackSubsets`).

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{Cached, DeleteOptions, Informer, ObjectKey, ObjectMeta, Outcome, StrMap};
use serde::Deserialize;

use super::slices::HEADLESS;
use super::{EndpointPort, hostname, ips, is_endpoint, is_v6, pod_reference, ports_on, watch_selected};
use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::pod;
use crate::resources::{ENDPOINTS, SERVICES};
use crate::selector::LabelSelector;
use crate::types::{Pod, Raw, Service, raw_value, to_value};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OURS: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const ADDRESSES_MAX: usize = 1000;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    pub metadata: ObjectMeta,
    pub subsets: Option<Raw>,
}

impl Cached for Endpoints {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The subsets of a service, and whether addresses had to be left out.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Value, bool) {
    let v6 = match service.spec.ip_families.first() {
        Some(family) => family == "IPv6",
        None => is_v6(&service.spec.cluster_ip),
    };
    // Ports -> addresses by (ip, pod uid), ready and not.
    let mut grouped: BTreeMap<Vec<EndpointPort>, BTreeMap<(String, Str), (bool, Value)>> = BTreeMap::new();
    let not_ready_too = service.spec.publish_not_ready_addresses;
    for pod in pods.iter().filter(|p| is_endpoint(p, not_ready_too)) {
        let Some(ip) = ips(pod).into_iter().find(|ip| is_v6(ip) == v6) else { continue };
        let mut address = json!({"ip": ip});
        if !pod.spec.node_name.is_empty() {
            address["nodeName"] = pod.spec.node_name.as_str().into();
        }
        if let Some(hostname) = hostname(service, pod) {
            address["hostname"] = hostname.into();
        }
        address["targetRef"] = pod_reference(pod);
        let ready = not_ready_too || pod::is_ready(pod);
        let mut ports = ports_on(service, pod);
        if ports.is_empty() && !service.spec.ports.is_empty() {
            continue;
        }
        ports.sort();
        grouped.entry(ports).or_default().insert((ip.to_owned(), pod.metadata.uid.clone()), (ready, address));
    }
    let total: usize = grouped.values().map(BTreeMap::len).sum();
    let mut room = ADDRESSES_MAX;
    let mut subsets = Vec::new();
    for (ports, addresses) in grouped {
        let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
        // Ready ones first when there is no room for all.
        let mut all: Vec<(bool, Value)> = addresses.into_values().collect();
        if total > ADDRESSES_MAX {
            all.sort_by_key(|(ready, _)| !*ready);
        }
        for (is_ready, address) in all.into_iter().take(room) {
            if is_ready {
                ready.push(address)
            } else {
                not_ready.push(address)
            }
            room -= 1;
        }
        let mut subset = Value::object();
        if !ready.is_empty() {
            subset["addresses"] = Value::Array(ready);
        }
        if !not_ready.is_empty() {
            subset["notReadyAddresses"] = Value::Array(not_ready);
        }
        if !ports.is_empty() {
            let mut ports = to_value(&ports);
            for port in ports.as_array_mut().into_iter().flatten() {
                if port.str_at(&["name"]).is_empty() {
                    port.remove_at(&["name"]);
                }
            }
            subset["ports"] = ports;
        }
        subsets.push(subset);
    }
    (Value::Array(subsets), total > ADDRESSES_MAX)
}

fn labels(service: &Service) -> StrMap {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS, "");
    }
    labels.insert(MANAGED_BY, OURS);
    labels
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("endpoint-controller", "endpoint-controller");
    let queue = key_queue();
    let services: Informer<Service> = context.factory.informer(SERVICES);
    let endpoints: Informer<Endpoints> = context.factory.informer(ENDPOINTS);
    let pods = context.pods();
    let adds = queue.clone();
    services.on_change(move |change| adds.add(change.object().metadata.key()));
    watch_selected(&pods, &services, &queue);
    let adds = queue.clone();
    endpoints.on_change(move |change| adds.add(change.object().metadata.key()));
    let synced = vec![services.synced(), pods.synced(), endpoints.synced()];
    let controller = Arc::new(Controller { context: context.clone(), services, pods, endpoints });
    context.run("endpoints", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let known = self.endpoints.get(&key);
        let Some(service) = self.services.get(&key) else {
            // Endpoints without a Service are only ours to remove when we made them.
            let ours = known.is_some_and(|e| e.metadata.labels.get(MANAGED_BY) == Some(OURS));
            if ours {
                self.context.delete(&ENDPOINTS, &key, &DeleteOptions::default()).await?;
            }
            return Ok(Outcome::Done);
        };
        if service.spec.selector.is_empty() || service.spec.kind == "ExternalName" {
            return Ok(Outcome::Done);
        }
        let selector = LabelSelector::from_labels(&service.spec.selector);
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|p| selector.matches(&p.metadata.labels));
        let (subsets, over) = subsets(&service, &pods);
        let labels = labels(&service);
        match known {
            None => {
                let mut object = json!({"kind": "Endpoints", "apiVersion": "v1",
                    "metadata": {"name": key.name.as_str(), "namespace": key.namespace.as_str()}});
                object["metadata"]["labels"] = labels.to_value();
                if over {
                    object.set_at(&["metadata", "annotations", OVER_CAPACITY], "truncated".into());
                }
                object["subsets"] = subsets;
                match self.context.rest.create(&ENDPOINTS, &key.namespace, &object).await {
                    Ok(_) => {}
                    Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some(known) => {
                let mut current = raw_value(&known.subsets);
                if current.is_null() {
                    current = Value::Array(Vec::new());
                }
                let marked = known.metadata.annotations.get(OVER_CAPACITY) == Some("truncated");
                if current == subsets && known.metadata.labels == labels && marked == over {
                    return Ok(Outcome::Done);
                }
                let mut patch = Value::object();
                patch["subsets"] = if subsets.as_array().is_some_and(Vec::is_empty) { Value::Null } else { subsets };
                let mut all = labels.to_value();
                for (gone, _) in known.metadata.labels.iter().filter(|(k, _)| !labels.contains_key(k)) {
                    all[gone] = Value::Null;
                }
                patch.set_at(&["metadata", "labels"], all);
                if marked != over {
                    let mark = if over { "truncated".into() } else { Value::Null };
                    patch.set_at(&["metadata", "annotations", OVER_CAPACITY], mark);
                }
                ignore_not_found(self.context.merge(&ENDPOINTS, &known.metadata, patch).await)?;
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_hold_ready_and_other_addresses_by_ports() {
        let pod = |name: &str, ip: &str, ready: bool| -> Arc<Pod> {
            Arc::new(
                json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"nodeName": "node"},
                "status": {"phase": "Running", "podIP": ip,
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
                .to()
                .unwrap(),
            )
        };
        let service: Service = json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}], "ipFamilies": ["IPv4"]}})
        .to()
        .unwrap();
        let (subsets, over) =
            subsets(&service, &[pod("b", "10.0.0.2", true), pod("a", "10.0.0.1", true), pod("c", "10.0.0.3", false)]);
        assert!(!over);
        let ips = |field: &str| -> Vec<String> {
            subsets[0].array_at(&[field]).iter().map(|a| a.str_at(&["ip"]).to_owned()).collect()
        };
        assert_eq!(ips("addresses"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips("notReadyAddresses"), ["10.0.0.3"]);
        assert_eq!(subsets[0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
        assert_eq!(subsets[0]["addresses"][0]["targetRef"]["name"], "a");
    }
}
