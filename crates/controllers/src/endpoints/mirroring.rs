//! endpointslice-mirroring: copies Endpoints that users write for Services without a selector into EndpointSlices.
//!
//! Follows: `pkg/controller/endpointslicemirroring`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{DeleteOptions, Expectations, Informer, ObjectKey, Outcome, StrMap};

use super::legacy::Endpoints;
use super::slices::{ByPorts, Conditions, Endpoint, EndpointSlice, MANAGED_BY, SERVICE_NAME, plan};
use super::{EndpointPort, is_v6};
use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::resources::{ENDPOINT_SLICES, ENDPOINTS, SERVICES};
use crate::types::{Service, controller_reference, raw_value, to_value};

const OURS: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// `--mirroring-max-endpoints-per-subset`.
const SUBSET_MAX: usize = 1000;
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BY_ENDPOINTS: &str = "endpoints";

/// Whether Endpoints are a user's and want to be mirrored.
fn wants_mirroring(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.get(SKIP_MIRROR) != Some("true") && !endpoints.metadata.annotations.contains_key(LEADER)
}

fn mirrors(service: &Service) -> bool {
    service.spec.selector.is_empty() && service.spec.kind != "ExternalName"
}

/// Which addresses, and whether they are ready.
type Hosts = BTreeMap<(Str, Str), (bool, Endpoint)>;

fn port_of(port: &Value) -> EndpointPort {
    let protocol = port.str_at(&["protocol"]);
    EndpointPort {
        name: port.str_at(&["name"]).into(),
        port: port["port"].as_i64(),
        protocol: if protocol.is_empty() { "TCP".into() } else { protocol.into() },
        app_protocol: port["appProtocol"].as_str().map(Into::into),
    }
}

fn endpoint_of(address: &Value, ready: bool) -> Endpoint {
    let text = |field: &str| address[field].as_str().filter(|t| !t.is_empty()).map(Str::from);
    Endpoint {
        addresses: vec![address.str_at(&["ip"]).into()],
        conditions: Conditions { ready: Some(ready), ..Conditions::default() },
        hostname: text("hostname"),
        node_name: text("nodeName"),
        target_ref: address.get("targetRef").filter(|t| !t.is_null()).cloned(),
        ..Endpoint::default()
    }
}

/// The endpoints of a subset list, by address type and ports. Ports that the same addresses offer belong together,
/// in whatever subsets they are written; an address that is not ready anywhere on a port is not ready there.
fn desired(subsets: &Value) -> BTreeMap<&'static str, ByPorts> {
    let mut by_port: BTreeMap<Option<EndpointPort>, Hosts> = BTreeMap::new();
    for subset in subsets.as_array().into_iter().flatten() {
        let ports: Vec<EndpointPort> = subset.array_at(&["ports"]).iter().map(port_of).collect();
        let ports: Vec<Option<EndpointPort>> =
            if ports.is_empty() { vec![None] } else { ports.into_iter().map(Some).collect() };
        let ready = subset.array_at(&["addresses"]).iter().map(|a| (a, true));
        let not_ready = subset.array_at(&["notReadyAddresses"]).iter().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready) {
            let key = (address.str_at(&["ip"]).into(), address.str_at(&["targetRef", "uid"]).into());
            for port in &ports {
                let hosts = by_port.entry(port.clone()).or_default();
                if !ready || !hosts.contains_key(&key) {
                    hosts.insert(key.clone(), (ready, endpoint_of(address, ready)));
                }
            }
        }
    }
    let mut by_hosts: BTreeMap<Vec<(Str, Str, bool)>, (Vec<EndpointPort>, Hosts)> = BTreeMap::new();
    for (port, hosts) in by_port {
        let same = hosts.iter().map(|((ip, uid), (ready, _))| (ip.clone(), uid.clone(), *ready)).collect();
        by_hosts.entry(same).or_insert_with(|| (Vec::new(), hosts)).0.extend(port);
    }
    let mut all: BTreeMap<&'static str, ByPorts> = BTreeMap::new();
    for (ports, hosts) in by_hosts.into_values() {
        let (ready, other): (Vec<_>, Vec<_>) = hosts.into_values().partition(|(ready, _)| *ready);
        for (_, endpoint) in ready.into_iter().chain(other).take(SUBSET_MAX) {
            let kind = if is_v6(&endpoint.addresses[0]) { "IPv6" } else { "IPv4" };
            all.entry(kind).or_default().entry(ports.clone()).or_default().push(endpoint);
        }
    }
    all
}

/// The annotations that slices take over.
fn mirrored_annotations(endpoints: &Endpoints) -> StrMap {
    endpoints.metadata.annotations.iter().filter(|(k, _)| !matches!(*k, TRIGGER_TIME | LAST_APPLIED)).collect()
}

/// A merge patch that makes `have` what it should be; nothing when it is.
fn map_patch(have: &StrMap, want: &StrMap) -> Option<Value> {
    if have == want {
        return None;
    }
    let mut patch = want.to_value();
    for (gone, _) in have.iter().filter(|(k, _)| !want.contains_key(k)) {
        patch[gone] = Value::Null;
    }
    Some(patch)
}

fn endpoints_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let ours = slice.metadata.labels.get(MANAGED_BY) == Some(OURS);
    let name = slice.metadata.labels.get(SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone(), name))
}

struct Controller {
    context: Context,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    expectations: Expectations,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("endpointslicemirroring-controller", "endpoint-slice-mirroring-controller");
    let queue = key_queue();
    let endpoints: Informer<Endpoints> = context.factory.informer(ENDPOINTS);
    let services: Informer<Service> = context.factory.informer(SERVICES);
    let slices: Informer<EndpointSlice> = context.factory.informer(ENDPOINT_SLICES);
    slices.add_index(BY_ENDPOINTS, |s, out| out.extend(endpoints_of(s).map(|key| Str::from(key.to_string()))));
    let adds = queue.clone();
    endpoints.on_change(move |change| adds.add(change.object().metadata.key()));
    let adds = queue.clone();
    services.on_change(move |change| adds.add(change.object().metadata.key()));
    let controller = Arc::new(Controller {
        context: context.clone(),
        endpoints: endpoints.clone(),
        services: services.clone(),
        slices: slices.clone(),
        expectations: Expectations::default(),
    });
    let (adds, watcher) = (queue.clone(), controller.clone());
    slices.on_change(move |change| {
        let Some(key) = endpoints_of(change.object()) else { return };
        if matches!(change, informer::Change::Added(_)) {
            watcher.expectations.saw_add(&key);
        }
        adds.add(key);
    });
    let synced = vec![endpoints.synced(), services.synced(), slices.synced()];
    context.run("endpointslice-mirroring", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        if !self.expectations.satisfied(&key) {
            return Ok(Outcome::Done);
        }
        let slices = self.slices.by_index(BY_ENDPOINTS, &key.to_string());
        let endpoints = self.endpoints.get(&key).filter(|e| wants_mirroring(e));
        let mirrored = self.services.get(&key).is_some_and(|s| mirrors(&s));
        let Some(endpoints) = endpoints.filter(|_| mirrored) else {
            for slice in slices {
                self.context.delete(&ENDPOINT_SLICES, &slice.metadata.key(), &DeleteOptions::default()).await?;
            }
            return Ok(Outcome::Done);
        };
        let mut labels: StrMap =
            endpoints.metadata.labels.iter().filter(|(k, _)| *k != SERVICE_NAME && *k != MANAGED_BY).collect();
        labels.insert(SERVICE_NAME, key.name.clone());
        labels.insert(MANAGED_BY, OURS);
        let annotations = mirrored_annotations(&endpoints);
        let mut wanted = desired(&raw_value(&endpoints.subsets));
        let mut creations = Vec::new();
        for address_type in ["IPv4", "IPv6"] {
            let existing: Vec<&EndpointSlice> =
                slices.iter().map(|s| &**s).filter(|s| s.address_type == address_type).collect();
            let by_ports = wanted.remove(address_type).unwrap_or_default();
            let empty = by_ports.is_empty();
            let mut plan = plan(&existing, by_ports);
            if empty {
                // Nothing to mirror needs no slice.
                plan.create.clear();
                plan.update.clear();
                plan.delete = (0..existing.len()).collect();
            }
            let mut updates: BTreeMap<usize, Option<Vec<Endpoint>>> =
                (0..existing.len()).filter(|i| !plan.delete.contains(i)).map(|i| (i, None)).collect();
            updates.extend(plan.update.into_iter().map(|(index, endpoints)| (index, Some(endpoints))));
            for (index, endpoints) in updates {
                let slice = &existing[index].metadata;
                let mut patch = Value::object();
                if let Some(endpoints) = endpoints {
                    patch["endpoints"] = to_value(&endpoints);
                }
                for (field, have, want) in
                    [("labels", &slice.labels, &labels), ("annotations", &slice.annotations, &annotations)]
                {
                    if let Some(change) = map_patch(have, want) {
                        patch.set_at(&["metadata", field], change);
                    }
                }
                if patch.as_object().is_some_and(|p| !p.is_empty()) {
                    ignore_not_found(self.context.merge(&ENDPOINT_SLICES, slice, patch).await)?;
                }
            }
            for index in plan.delete {
                let target = existing[index].metadata.key();
                self.context.delete(&ENDPOINT_SLICES, &target, &DeleteOptions::default()).await?;
            }
            creations.extend(plan.create.into_iter().map(|(ports, endpoints)| (address_type, ports, endpoints)));
        }
        self.expectations.expect(&key, creations.len(), 0);
        for (done, (address_type, ports, list)) in creations.iter().enumerate() {
            let owner = controller_reference("v1", "Endpoints", &endpoints.metadata);
            let mut object = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"generateName": format!("{}-", key.name), "namespace": key.namespace.as_str()},
                "addressType": *address_type});
            object["metadata"]["labels"] = labels.to_value();
            if !annotations.is_empty() {
                object["metadata"]["annotations"] = annotations.to_value();
            }
            object["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
            object["endpoints"] = to_value(list);
            object["ports"] = to_value(ports);
            if let Err(error) = self.context.rest.create(&ENDPOINT_SLICES, &key.namespace, &object).await {
                (done..creations.len()).for_each(|_| self.expectations.saw_add(&key));
                return if error.is_namespace_terminating() { Ok(Outcome::Done) } else { Err(error.into()) };
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_become_endpoints_by_family_and_ports() {
        let all = desired(&json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "notReadyAddresses": [{"ip": "10.0.0.2", "nodeName": "n"}], "ports": [{"port": 80}]}]));
        let v4: Vec<&Endpoint> = all["IPv4"].values().flatten().collect();
        assert_eq!(v4.iter().map(|e| e.conditions.ready).collect::<Vec<_>>(), [Some(true), Some(false)]);
        assert_eq!(v4[1].node_name.as_deref(), Some("n"));
        assert_eq!(all["IPv6"].values().flatten().count(), 1);
        assert_eq!(all["IPv4"].keys().next().unwrap()[0].protocol, "TCP");
    }

    #[test]
    fn ports_of_the_same_addresses_belong_together() {
        let subset = |ip: &str, ready: bool, port: i64| {
            let field = if ready { "addresses" } else { "notReadyAddresses" };
            let mut subset = json!({"ports": [{"port": port}]});
            subset[field] = json!([{"ip": ip}]);
            subset
        };
        // (subsets, for each group its ports and whether its addresses are ready)
        for (subsets, want) in [
            (vec![subset("10.0.0.1", true, 80), subset("10.0.0.1", true, 90)], vec![(vec![80, 90], vec![true])]),
            (
                vec![subset("10.0.0.1", true, 80), subset("10.0.0.2", true, 90)],
                vec![(vec![80], vec![true]), (vec![90], vec![true])],
            ),
            (vec![subset("10.0.0.1", true, 80), subset("10.0.0.1", false, 80)], vec![(vec![80], vec![false])]),
            (
                vec![subset("10.0.0.1", true, 80), subset("10.0.0.1", false, 90)],
                vec![(vec![80], vec![true]), (vec![90], vec![false])],
            ),
        ] {
            let got: Vec<(Vec<i64>, Vec<bool>)> = desired(&Value::Array(subsets.clone()))["IPv4"]
                .iter()
                .map(|(ports, endpoints)| {
                    let ports = ports.iter().filter_map(|p| p.port).collect();
                    (ports, endpoints.iter().filter_map(|e| e.conditions.ready).collect())
                })
                .collect();
            assert_eq!(got, want, "{subsets:?}");
        }
    }

    #[test]
    fn annotations_are_taken_over_but_for_two() {
        let endpoints: Endpoints =
            json!({"metadata": {"annotations": {"a": "b", TRIGGER_TIME: "date", LAST_APPLIED: "{}"}}}).to().unwrap();
        let annotations = mirrored_annotations(&endpoints);
        assert_eq!(annotations.to_value(), json!({"a": "b"}));
        let had: StrMap = [("old", "1")].into_iter().collect();
        assert_eq!(map_patch(&had, &annotations), Some(json!({"a": "b", "old": null})));
        assert_eq!(map_patch(&annotations, &annotations), None);
    }
}
