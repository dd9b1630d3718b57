//! Service `default/kubernetes` of the virtual cluster: the address of its control plane, as pods on the host reach it.
//!
//! The API server makes that Service with the first address of its range, which on the host is the host's own API server.
//! Here it gets the address of the control plane's Service, and the endpoints that this Service has.

use apimachinery::{Value, json};
use informer::{Outcome, RawObject, Source};

use super::side::resource;
use super::{ControlPlaneAddress, Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind::{self, Kind};
use crate::metadata::uid_of;
use crate::names::NamespacedName;

/// The one key of this reconciler's queue.
pub const KEY: () = ();

fn name() -> NamespacedName {
    NamespacedName::new("default", "kubernetes")
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
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": (Value::Array(subsets.clone())),
        });
        self.put_api_endpoints(&kind::ENDPOINTS, &endpoints, &["subsets"]).await?;
        let addresses: Vec<&str> =
            subsets.iter().flat_map(|s| s.array_at(&["addresses"])).map(|a| a.str_at(&["ip"])).collect();
        // A slice keeps its family: the Service has one address.
        let ipv6 = self.kube_ip.read().contains(':');
        let list: Vec<Value> = addresses
            .into_iter()
            .filter(|ip| ip.contains(':') == ipv6)
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": (if ipv6 { "IPv6" } else { "IPv4" }),
            "endpoints": (Value::Array(list)),
            "ports": (subsets[0]["ports"].clone()),
        });
        self.put_api_endpoints(&kind::ENDPOINT_SLICE, &slice, &["endpoints", "ports"]).await
    }

    /// Changes `members` of the object in the virtual cluster; makes it when it is missing, which it is after the Service
    /// has moved: its controller removes the endpoints of a Service that is deleted.
    async fn put_api_endpoints(&self, kind: &Kind, wanted: &Value, members: &[&str]) -> Result<(), SyncError> {
        // What is not watched cannot be kept up.
        if self.virtual_side.cache(kind).is_none() {
            return Ok(());
        }
        let Some(current) = self.virtual_side.get(kind, &name()) else {
            self.virtual_side.create(kind, wanted).await?;
            return Ok(());
        };
        let mut next = current.clone();
        for member in members {
            next[*member] = wanted[*member].clone();
        }
        if let Some(patch) = merge_patch(&current, &next) {
            self.virtual_side.patch(kind, &name(), "", &patch).await?;
        }
        Ok(())
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
