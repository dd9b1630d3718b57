//! Service `default/kubernetes` of the virtual cluster: the address of its control plane, as pods on the host reach it.
//!
//! The API server makes that Service with the first address of its range, which on the host is the host's own API server.
//! Here it gets the address of the control plane's Service, and the endpoints that this Service has.

use apimachinery::{Value, json};
use informer::{Outcome, RawObject, Source};

use super::side::resource;
use super::{ControlPlaneAddress, Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind;
use crate::metadata::uid_of;
use crate::names::NamespacedName;

/// The one key of this reconciler's queue.
pub const KEY: () = ();

fn name() -> NamespacedName {
    NamespacedName::new("default", "kubernetes")
}

/// The endpoints of a slice of one address family.
fn api_slice_endpoints(subsets: &[Value], ipv6: bool) -> Value {
    let addresses = subsets.iter().flat_map(|subset| subset.array_at(&["addresses"]).iter());
    let list = addresses
        .map(|address| address.str_at(&["ip"]))
        .filter(|ip| ip.contains(':') == ipv6)
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}));
    Value::Array(list.collect())
}

impl Engine {
    pub(super) async fn reconcile_api_service(&self) -> Result<Outcome, SyncError> {
        let ip = self.kube_ip.read().clone();
        let Some(service) = self.virtual_side.get(&kind::SERVICE, &name()) else { return Ok(Outcome::Done) };
        if ip.is_empty() {
            return Ok(Outcome::Done);
        }
        let refused = self.kube_service_refused.lock().as_deref() == Some(ip.as_str());
        if !refused && service.str_at(&["spec", "clusterIP"]) != ip {
            self.move_api_service(&service, &ip).await?;
        }
        self.copy_api_endpoints().await?;
        Ok(Outcome::Done)
    }

    /// An address cannot be changed: delete and create. Both are the same two requests after a crash in between, because
    /// the API server makes the Service again when it is missing at its start.
    async fn move_api_service(&self, service: &Value, ip: &str) -> Result<(), SyncError> {
        let mut wanted = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
                "ipFamilies": [if ip.contains(':') { "IPv6" } else { "IPv4" }], "ipFamilyPolicy": "SingleStack",
                "ports": (service["spec"]["ports"].clone()),
            },
        });
        if let Some(labels) = service.at(&["metadata", "labels"]) {
            wanted.set_at(&["metadata", "labels"], labels.clone());
        }
        self.virtual_side.delete(&kind::SERVICE, &name(), uid_of(service), None).await?;
        match self.virtual_side.create(&kind::SERVICE, &wanted).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // An address outside of the virtual range: better the old Service than none.
                tracing::warn!(ip, error = &error as &dyn std::error::Error, "the API Service keeps its own address");
                for member in ["clusterIP", "clusterIPs"] {
                    wanted["spec"][member] = service["spec"][member].clone();
                }
                self.virtual_side.create(&kind::SERVICE, &wanted).await?;
                // Not again before something changes.
                *self.kube_service_refused.lock() = Some(ip.to_owned());
                Ok(())
            }
        }
    }

    async fn copy_api_endpoints(&self) -> Result<(), SyncError> {
        let ControlPlaneAddress::HostService(host_service) = &self.control_plane else { return Ok(()) };
        let host_name = NamespacedName::new(self.names.install_namespace(), host_service.clone());
        let cache = self.api_endpoints.get();
        let key = informer::ObjectKey::new(host_name.namespace.as_str(), host_name.name.as_str());
        let Some(host) = cache.and_then(|c| c.get(&key)).and_then(|o| o.to_tree().ok()) else { return Ok(()) };
        // Only the port that is the API's; the nodes' names are the host's business.
        let mut subsets = Vec::new();
        for subset in host.array_at(&["subsets"]) {
            let addresses: Vec<Value> =
                subset.array_at(&["addresses"]).iter().map(|a| json!({"ip": (a.str_at(&["ip"]))})).collect();
            let ports: Vec<Value> = subset
                .array_at(&["ports"])
                .iter()
                .filter(|p| p.str_at(&["name"]) == "https" || subset.array_at(&["ports"]).len() == 1)
                .map(|p| json!({"name": "https", "port": (p["port"].clone()), "protocol": "TCP"}))
                .collect();
            if !addresses.is_empty() && !ports.is_empty() {
                subsets.push(json!({"addresses": addresses, "ports": ports}));
            }
        }
        if subsets.is_empty() {
            return Ok(());
        }
        let endpoints = self.virtual_side.get(&kind::ENDPOINTS, &name());
        if let Some(endpoints) = &endpoints {
            let mut wanted = endpoints.clone();
            wanted["subsets"] = Value::Array(subsets.clone());
            if let Some(patch) = merge_patch(endpoints, &wanted) {
                self.virtual_side.patch(&kind::ENDPOINTS, &name(), "", &patch).await?;
            }
        } else {
            // kube-apiserver is told to keep no endpoints: these are not its own addresses.
            let made = json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
                },
                "subsets": subsets.clone(),
            });
            self.create_missing(&kind::ENDPOINTS, &made).await?;
        }
        if self.virtual_side.get(&kind::ENDPOINT_SLICE, &name()).is_none() {
            let first = subsets[0]["addresses"][0].str_at(&["ip"]);
            let made = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"},
                },
                "addressType": (if first.contains(':') { "IPv6" } else { "IPv4" }),
                "endpoints": api_slice_endpoints(&subsets, first.contains(':')),
                "ports": (subsets[0]["ports"].clone()),
            });
            self.create_missing(&kind::ENDPOINT_SLICE, &made).await?;
        }
        if let Some(slice) = self.virtual_side.get(&kind::ENDPOINT_SLICE, &name()) {
            let mut wanted = slice.clone();
            wanted["endpoints"] = api_slice_endpoints(&subsets, slice.str_at(&["addressType"]) == "IPv6");
            wanted["ports"] = subsets[0]["ports"].clone();
            if let Some(patch) = merge_patch(&slice, &wanted) {
                self.virtual_side.patch(&kind::ENDPOINT_SLICE, &name(), "", &patch).await?;
            }
        }
        Ok(())
    }

    /// What the cache has not seen may exist all the same.
    async fn create_missing(&self, kind: &kind::Kind, object: &Value) -> Result<(), SyncError> {
        match self.virtual_side.create(kind, object).await {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other.map(drop).map_err(SyncError::from),
        }
    }

    /// The endpoints of the control plane's Service.
    pub(super) fn watch_api_endpoints(&self) {
        let ControlPlaneAddress::HostService(service) = &self.control_plane else { return };
        let source = Source::namespaced(resource(&kind::ENDPOINTS), self.names.install_namespace())
            .fields(format!("metadata.name={service}"));
        let cache = self.host_side.factory.informer::<RawObject>(source);
        let queue = self.api_queue.clone();
        cache.on_change(move |_| queue.add(KEY));
        // Once per engine.
        let _ = self.api_endpoints.set(cache);
    }
}
