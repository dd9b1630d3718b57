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
const BY_ENDPOINTS: &str = "endpoints";

/// Whether Endpoints are a user's and want to be mirrored.
fn wants_mirroring(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.get(SKIP_MIRROR) != Some("true") && !endpoints.metadata.annotations.contains_key(LEADER)
}

fn mirrors(service: &Service) -> bool {
    service.spec.selector.is_empty() && service.spec.kind != "ExternalName"
}

/// The endpoints of a subset list, by address type and ports.
fn desired(subsets: &Value) -> BTreeMap<&'static str, ByPorts> {
    let mut all: BTreeMap<&'static str, ByPorts> = BTreeMap::new();
    for subset in subsets.as_array().into_iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .array_at(&["ports"])
            .iter()
            .map(|p| EndpointPort {
                name: p.str_at(&["name"]).into(),
                port: p["port"].as_i64(),
                protocol: if p.str_at(&["protocol"]).is_empty() {
                    "TCP".into()
                } else {
                    p.str_at(&["protocol"]).into()
                },
                app_protocol: p["appProtocol"].as_str().map(Into::into),
            })
            .collect();
        let ready = subset.array_at(&["addresses"]).iter().map(|a| (a, true));
        let not_ready = subset.array_at(&["notReadyAddresses"]).iter().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready).take(SUBSET_MAX) {
            let ip = address.str_at(&["ip"]);
            let text = |field: &str| address[field].as_str().filter(|t| !t.is_empty()).map(Str::from);
            let endpoint = Endpoint {
                addresses: vec![ip.into()],
                conditions: Conditions { ready: Some(ready), ..Conditions::default() },
                hostname: text("hostname"),
                node_name: text("nodeName"),
                target_ref: address.get("targetRef").filter(|t| !t.is_null()).cloned(),
                ..Endpoint::default()
            };
            let kind = if is_v6(ip) { "IPv6" } else { "IPv4" };
            all.entry(kind).or_default().entry(ports.clone()).or_default().push(endpoint);
        }
    }
    all
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
            for (index, endpoints) in plan.update {
                let mut patch = Value::object();
                patch["endpoints"] = to_value(&endpoints);
                patch.set_at(&["metadata", "labels"], labels.to_value());
                ignore_not_found(self.context.merge(&ENDPOINT_SLICES, &existing[index].metadata, patch).await)?;
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
}
