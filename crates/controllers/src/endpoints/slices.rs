//! endpointslice: keeps the EndpointSlices of every Service that has a selector.
//!
//! Endpoints are grouped by the ports their pods offer, at most a hundred to a slice. A slice is changed only where it must
//! be, since every node reads every change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{DeleteOptions, Expectations, Informer, ObjectKey, ObjectMeta, Outcome, StrMap, null_default};
use serde::{Deserialize, Serialize};

use super::{EndpointPort, Zones, hostname, ips, is_endpoint, is_v6, pod_reference, ports_on, watch_selected, zones};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue};
use crate::pod;
use crate::resources::{ENDPOINT_SLICES, NODES, SERVICES};
use crate::selector::LabelSelector;
use crate::types::{Node, Pod, Service, cached, controller_reference, to_value};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const OURS: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MAX: usize = 100;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: ObjectMeta,
    pub address_type: Str,
    #[serde(deserialize_with = "null_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<EndpointPort>,
}

cached!(EndpointSlice);

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    pub addresses: Vec<Str>,
    pub conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Conditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

impl Endpoint {
    /// Two states of the same endpoint have the same identity.
    fn identity(&self) -> (String, Vec<Str>) {
        let uid = self.target_ref.as_ref().map(|t| t.str_at(&["uid"]).to_owned()).unwrap_or_default();
        (uid, self.addresses.clone())
    }
}

/// Endpoints of one address type, by the ports they offer.
pub type ByPorts = BTreeMap<Vec<EndpointPort>, Vec<Endpoint>>;

/// The address types that a service has.
fn address_types(service: &Service, pods: &[Arc<Pod>]) -> Vec<&'static str> {
    let mut types: Vec<&'static str> =
        service.spec.ip_families.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if types.is_empty() {
        // Made before families were set: what the pods have tells.
        let v6 = pods.iter().any(|p| ips(p).first().is_some_and(|ip| is_v6(ip)));
        types.push(if v6 || is_v6(&service.spec.cluster_ip) { "IPv6" } else { "IPv4" });
    }
    types
}

/// The endpoints a service should have.
pub fn desired(service: &Service, pods: &[Arc<Pod>], zones: &Zones, address_type: &str) -> ByPorts {
    let mut all = ByPorts::new();
    for pod in pods.iter().filter(|p| is_endpoint(p, true)) {
        let Some(ip) = ips(pod).into_iter().find(|ip| is_v6(ip) == (address_type == "IPv6")) else { continue };
        let (serving, terminating) = (pod::is_ready(pod), pod.metadata.is_deleting());
        let node = (!pod.spec.node_name.is_empty()).then(|| pod.spec.node_name.clone());
        let endpoint = Endpoint {
            addresses: vec![ip.into()],
            conditions: Conditions {
                ready: Some(service.spec.publish_not_ready_addresses || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            },
            hostname: hostname(service, pod),
            target_ref: Some(pod_reference(pod)),
            zone: node.as_ref().and_then(|n| zones.get(n).cloned()),
            node_name: node,
            hints: None,
        };
        all.entry(ports_on(service, pod)).or_default().push(endpoint);
    }
    add_hints(service, &mut all);
    all
}

/// Whether a service asks for topology aware routing, which comes before `trafficDistribution`; there are no hints for it here.
fn asks_for_topology(service: &Service) -> bool {
    let annotations = &service.metadata.annotations;
    let mode = annotations.get("service.kubernetes.io/topology-mode");
    let mode = mode.or_else(|| annotations.get("service.kubernetes.io/topology-aware-hints"));
    matches!(mode, Some("Auto" | "auto"))
}

/// `trafficDistribution`: a ready endpoint hints at its own zone, and node.
fn add_hints(service: &Service, all: &mut ByPorts) {
    let by_node = match service.spec.traffic_distribution.as_str() {
        "PreferClose" | "PreferSameZone" => false,
        "PreferSameNode" => true,
        _ => return,
    };
    if asks_for_topology(service) {
        return;
    }
    for endpoint in all.values_mut().flatten().filter(|e| e.conditions.ready == Some(true)) {
        let mut hints = Value::object();
        if let Some(zone) = &endpoint.zone {
            hints["forZones"] = json!([{"name": zone.as_str()}]);
        }
        if let Some(node) = endpoint.node_name.as_ref().filter(|_| by_node) {
            hints["forNodes"] = json!([{"name": node.as_str()}]);
        }
        if hints.as_object().is_some_and(|h| !h.is_empty()) {
            endpoint.hints = Some(hints);
        }
    }
}

/// What to write so that slices hold the endpoints they should.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>,
    /// Index of an existing slice, and its new endpoints.
    pub update: Vec<(usize, Vec<Endpoint>)>,
    pub delete: Vec<usize>,
}

/// Spreads `desired` over the existing slices of one address type, touching as few as possible.
pub fn plan(existing: &[&EndpointSlice], mut desired: ByPorts) -> Plan {
    let mut plan = Plan::default();
    let mut kept: HashMap<Vec<EndpointPort>, Vec<usize>> = HashMap::new();
    for (index, slice) in existing.iter().enumerate() {
        let mut ports = slice.ports.clone();
        ports.sort();
        kept.entry(ports).or_default().push(index);
    }
    if desired.is_empty() {
        // A service without endpoints has one empty slice, so that readers know it was looked at.
        desired.insert(Vec::new(), Vec::new());
    }
    let mut sorted = ByPorts::new();
    for (mut ports, endpoints) in desired {
        ports.sort();
        sorted.entry(ports).or_default().extend(endpoints);
    }
    for (ports, endpoints) in sorted {
        let indexes = kept.remove(&ports).unwrap_or_default();
        let mut wanted: HashMap<(String, Vec<Str>), Endpoint> = HashMap::new();
        let mut order = Vec::new();
        for endpoint in endpoints {
            let identity = endpoint.identity();
            order.push(identity.clone());
            wanted.insert(identity, endpoint);
        }
        // What each slice keeps of its own.
        let mut slices: Vec<(usize, Vec<Endpoint>, bool)> = Vec::new();
        for index in indexes {
            let mut changed = false;
            let mut endpoints = Vec::new();
            for endpoint in &existing[index].endpoints {
                match wanted.remove(&endpoint.identity()) {
                    Some(new) => {
                        changed |= new != *endpoint;
                        endpoints.push(new);
                    }
                    None => changed = true,
                }
            }
            slices.push((index, endpoints, changed));
        }
        let mut left: Vec<Endpoint> = order.iter().filter_map(|identity| wanted.remove(identity)).collect();
        // New endpoints go where a write happens anyway, then where all of them fit, then into new slices.
        slices.sort_by_key(|(index, endpoints, changed)| (!*changed, std::cmp::Reverse(endpoints.len()), *index));
        for (_, endpoints, changed) in &mut slices {
            let room = ENDPOINTS_MAX.saturating_sub(endpoints.len());
            if !left.is_empty() && room > 0 && (*changed || room >= left.len() || left.len() < ENDPOINTS_MAX) {
                let take = room.min(left.len());
                endpoints.extend(left.drain(..take));
                *changed = true;
            }
        }
        while !left.is_empty() {
            let take = left.len().min(ENDPOINTS_MAX);
            plan.create.push((ports.clone(), left.drain(..take).collect()));
        }
        let placeholder = ports.is_empty();
        let mut has_one = !plan.create.is_empty();
        slices.sort_by_key(|(index, ..)| *index);
        for (index, endpoints, changed) in slices {
            if endpoints.is_empty() && (!placeholder || has_one) {
                plan.delete.push(index);
            } else {
                has_one = true;
                if changed {
                    plan.update.push((index, endpoints));
                }
            }
        }
        if placeholder && !has_one {
            plan.create.push((Vec::new(), Vec::new()));
        }
    }
    plan.delete.extend(kept.into_values().flatten());
    plan.delete.sort_unstable();
    plan
}

/// The labels a slice of a service carries.
fn labels(service: &Service) -> StrMap {
    let mut labels: StrMap = service
        .metadata
        .labels
        .iter()
        .filter(|(k, _)| !matches!(*k, SERVICE_NAME | MANAGED_BY | HEADLESS))
        .map(|(k, v)| (Str::from(k), Str::from(v)))
        .collect();
    if service.spec.cluster_ip == "None" {
        labels.insert(HEADLESS, "");
    }
    labels.insert(SERVICE_NAME, service.metadata.name.clone());
    labels.insert(MANAGED_BY, OURS);
    labels
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    expectations: Expectations,
}

const BY_SERVICE: &str = "service";

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let labels = &slice.metadata.labels;
    let ours = labels.get(MANAGED_BY) == Some(OURS);
    let service = labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone(), service))
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("endpointslice-controller", "endpoint-slice-controller");
    let queue = key_queue();
    let services: Informer<Service> = context.factory.informer(SERVICES);
    let slices: Informer<EndpointSlice> = context.factory.informer(ENDPOINT_SLICES);
    let nodes: Informer<Node> = context.factory.informer(NODES);
    let pods = context.pods();
    slices.add_index(BY_SERVICE, |s, out| out.extend(service_of(s).map(|key| Str::from(key.to_string()))));
    let adds = queue.clone();
    services.on_change(move |change| adds.add(change.object().metadata.key()));
    watch_selected(&pods, &services, &queue);
    let controller = Arc::new(Controller {
        context: context.clone(),
        services: services.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
        expectations: Expectations::default(),
    });
    let (adds, watcher) = (queue.clone(), controller.clone());
    slices.on_change(move |change| {
        let Some(key) = service_of(change.object()) else { return };
        if matches!(change, informer::Change::Added(_)) {
            watcher.expectations.saw_add(&key);
        }
        adds.add(key);
    });
    // Endpoints carry the zone of their node.
    let (adds, all) = (queue.clone(), services.clone());
    nodes.on_change(move |change| {
        let zone = |n: &Node| n.metadata.labels.get("topology.kubernetes.io/zone").map(str::to_owned);
        let changed = match &change {
            informer::Change::Updated { old, new } => zone(old) != zone(new),
            other => zone(other.object()).is_some(),
        };
        if changed {
            all.keys().into_iter().for_each(|key| adds.add(key));
        }
    });
    let synced = vec![services.synced(), pods.synced(), nodes.synced(), slices.synced()];
    context.run("endpointslice", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(service) = self.services.get(&key) else {
            // The slices are collected with their owner.
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        if service.spec.selector.is_empty() || service.spec.kind == "ExternalName" || service.metadata.is_deleting() {
            return Ok(Outcome::Done);
        }
        if !self.expectations.satisfied(&key) {
            return Ok(Outcome::Done);
        }
        let selector = LabelSelector::from_labels(&service.spec.selector);
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|p| selector.matches(&p.metadata.labels));
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let zones = zones(&self.nodes.list());
        let labels = labels(&service);
        let types = address_types(&service, &pods);
        let mut unwanted: HashSet<ObjectKey> = slices.iter().map(|s| s.metadata.key()).collect();
        let mut creations = Vec::new();
        for address_type in types {
            let existing: Vec<&EndpointSlice> = slices
                .iter()
                .map(|s| &**s)
                .filter(|s| s.address_type == address_type && !s.metadata.is_deleting())
                .collect();
            let plan = plan(&existing, desired(&service, &pods, &zones, address_type));
            let deleted: HashSet<usize> = plan.delete.iter().copied().collect();
            for (index, slice) in existing.iter().enumerate().filter(|(i, _)| !deleted.contains(i)) {
                unwanted.remove(&slice.metadata.key());
                let endpoints = plan.update.iter().find(|(i, _)| *i == index).map(|(_, endpoints)| endpoints);
                self.update(slice, endpoints, &labels, &service).await?;
            }
            creations.extend(plan.create.into_iter().map(|(ports, endpoints)| (address_type, ports, endpoints)));
        }
        self.expectations.expect(&key, creations.len(), 0);
        for (done, (address_type, ports, endpoints)) in creations.iter().enumerate() {
            if let Err(error) = self.create(&service, &labels, address_type, ports, endpoints).await {
                (done..creations.len()).for_each(|_| self.expectations.saw_add(&key));
                return if error.is_namespace_terminating() { Ok(Outcome::Done) } else { Err(error.into()) };
            }
        }
        for slice in unwanted {
            self.context.delete(&ENDPOINT_SLICES, &slice, &DeleteOptions::default()).await?;
        }
        Ok(Outcome::Done)
    }

    async fn update(
        &self,
        slice: &EndpointSlice,
        endpoints: Option<&Vec<Endpoint>>,
        labels: &StrMap,
        service: &Service,
    ) -> Result<(), ReconcileError> {
        let owned = slice.metadata.owner_references.iter().any(|o| o.uid == service.metadata.uid);
        if endpoints.is_none() && slice.metadata.labels == *labels && owned {
            return Ok(());
        }
        let mut patch = Value::object();
        if let Some(endpoints) = endpoints {
            patch["endpoints"] = to_value(endpoints);
        }
        let mut all = labels.to_value();
        for (gone, _) in slice.metadata.labels.iter().filter(|(k, _)| !labels.contains_key(k)) {
            all[gone] = Value::Null;
        }
        patch.set_at(&["metadata", "labels"], all);
        if !owned {
            let owner = controller_reference("v1", "Service", &service.metadata);
            patch.set_at(&["metadata", "ownerReferences"], Value::Array(vec![to_value(&owner)]));
        }
        ignore_not_found(self.context.merge(&ENDPOINT_SLICES, &slice.metadata, patch).await)?;
        Ok(())
    }

    async fn create(
        &self,
        service: &Service,
        labels: &StrMap,
        address_type: &str,
        ports: &[EndpointPort],
        endpoints: &[Endpoint],
    ) -> Result<Value, informer::ApiError> {
        let namespace = service.metadata.namespace.as_str();
        let owner = controller_reference("v1", "Service", &service.metadata);
        let mut object = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"generateName": format!("{}-", service.metadata.name), "namespace": namespace},
            "addressType": address_type,
        });
        object["metadata"]["labels"] = labels.to_value();
        object["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
        object["endpoints"] = to_value(endpoints);
        object["ports"] = to_value(ports);
        self.context.rest.create(&ENDPOINT_SLICES, namespace, &object).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ip: &str, ready: bool, extra: Value) -> Arc<Pod> {
        let mut object = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        for (key, value) in extra.as_object().unwrap().iter() {
            object.set_at(&key.split('.').collect::<Vec<_>>(), value.clone());
        }
        Arc::new(object.to().unwrap())
    }

    fn service(extra: Value) -> Service {
        let mut object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"selector": {"a": "b"},
            "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}});
        for (key, value) in extra.as_object().unwrap().iter() {
            object.set_at(&key.split('.').collect::<Vec<_>>(), value.clone());
        }
        object.to().unwrap()
    }

    #[test]
    fn conditions_follow_readiness_and_deletion() {
        let deleting = json!({"metadata.deletionTimestamp": "2026-01-01T00:00:00Z"});
        // (service, pod, (ready, serving, terminating) or absent)
        for (service_extra, pod, want) in [
            (json!({}), pod("a", "10.0.0.1", true, json!({})), Some((true, true, false))),
            (json!({}), pod("a", "10.0.0.1", false, json!({})), Some((false, false, false))),
            (json!({}), pod("a", "10.0.0.1", true, deleting), Some((false, true, true))),
            (
                json!({"spec.publishNotReadyAddresses": true}),
                pod("a", "10.0.0.1", false, json!({})),
                Some((true, false, false)),
            ),
            (json!({}), pod("a", "10.0.0.1", true, json!({"status.phase": "Failed"})), None),
            (json!({}), pod("a", "fd00::1", true, json!({})), None),
        ] {
            let all = desired(&service(service_extra), &[pod], &Zones::new(), "IPv4");
            let got = all.values().flatten().next().map(|e| {
                let c = &e.conditions;
                (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            });
            assert_eq!(got, want);
        }
    }

    #[test]
    fn named_target_ports_are_looked_up_in_each_pod() {
        let other = pod(
            "b",
            "10.0.0.2",
            true,
            json!({"spec.containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]}),
        );
        let all = desired(&service(json!({})), &[pod("a", "10.0.0.1", true, json!({})), other], &Zones::new(), "IPv4");
        let ports: Vec<Option<i64>> = all.keys().map(|p| p[0].port).collect();
        assert_eq!(ports, [Some(8080), Some(9090)]);
    }

    fn endpoint(name: &str, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![name.into()],
            conditions: Conditions { ready: Some(ready), ..Conditions::default() },
            ..Endpoint::default()
        }
    }

    fn port() -> Vec<EndpointPort> {
        vec![EndpointPort { name: "http".into(), port: Some(80), protocol: "TCP".into(), app_protocol: None }]
    }

    fn slice(endpoints: Vec<Endpoint>) -> EndpointSlice {
        EndpointSlice { endpoints, ports: port(), address_type: "IPv4".into(), ..EndpointSlice::default() }
    }

    #[test]
    fn slices_change_only_where_they_must() {
        let many =
            |from: usize, to: usize| (from..to).map(|i| endpoint(&format!("10.0.{i}"), true)).collect::<Vec<_>>();
        let wanted = |endpoints: Vec<Endpoint>| ByPorts::from([(port(), endpoints)]);
        let full = slice(many(0, 100));
        let small = slice(many(100, 110));
        assert_eq!(plan(&[&full, &small], wanted(many(0, 110))), Plan::default(), "nothing to do");
        let grown = plan(&[&full, &small], wanted(many(0, 112)));
        assert_eq!(grown.update.iter().map(|(i, e)| (*i, e.len())).collect::<Vec<_>>(), [(1, 12)]);
        let shrunk = plan(&[&full, &small], wanted(many(0, 100)));
        assert_eq!(shrunk.delete, [1]);
        let fresh = plan(&[], wanted(many(0, 150)));
        assert_eq!(fresh.create.iter().map(|(_, e)| e.len()).collect::<Vec<_>>(), [100, 50]);
        let mut changed = many(0, 110);
        changed[5].conditions.ready = Some(false);
        assert_eq!(plan(&[&full, &small], wanted(changed)).update.len(), 1);
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let fresh = plan(&[], ByPorts::new());
        assert_eq!(fresh.create, [(vec![], vec![])]);
        let empty = EndpointSlice::default();
        assert_eq!(plan(&[&empty], ByPorts::new()), Plan::default());
        let full = slice(vec![endpoint("a", true)]);
        let emptied = plan(&[&full], ByPorts::new());
        assert_eq!((emptied.create.len(), emptied.delete), (1, vec![0]));
    }

    #[test]
    fn traffic_distribution_gives_hints() {
        let zones = Zones::from([("node".into(), "z1".into())]);
        let zone = || json!({"forZones": [{"name": "z1"}]});
        // (trafficDistribution, annotation, value, hints)
        for (distribution, annotation, value, want) in [
            ("PreferSameNode", "", "", Some(json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "node"}]}))),
            ("PreferSameZone", "", "", Some(zone())),
            ("PreferClose", "service.kubernetes.io/topology-mode", "Disabled", Some(zone())),
            ("PreferClose", "service.kubernetes.io/topology-mode", "Auto", None),
            ("PreferClose", "service.kubernetes.io/topology-aware-hints", "auto", None),
            ("", "", "", None),
        ] {
            let mut annotations = Value::object();
            annotations[annotation] = value.into();
            let mut wanted = json!({"spec.trafficDistribution": distribution});
            wanted["metadata.annotations"] = annotations;
            let all = desired(&service(wanted), &[pod("a", "10.0.0.1", true, json!({}))], &zones, "IPv4");
            let hints = all.values().flatten().next().unwrap().hints.clone();
            assert_eq!(hints, want, "{distribution} {annotation}={value}");
        }
    }
}
