//! Service `default/kubernetes` of the virtual cluster: the address of its control plane, as pods on the host reach it.
//!
//! The API server makes that Service with the first address of its range, which on the host is the host's own API server.
//! Here it gets the address of the control plane's Service, and the endpoints that this Service has.

use apimachinery::{Value, json};
use informer::{Outcome, RawObject, Source};

use super::side::resource;
use super::{ControlPlaneAddress, Engine, SyncError};
use crate::diff::{merge_patch, present};
use crate::kind;
use crate::metadata::annotation;
use crate::names::NamespacedName;
use crate::plan::READDRESS_ANNOTATION;

/// The one key of this reconciler's queue.
pub const KEY: () = ();

fn name() -> NamespacedName {
    NamespacedName::new("default", "kubernetes")
}

fn slice_endpoints(subsets: &[Value], ipv6: bool) -> Value {
    let addresses = subsets.iter().flat_map(|s| s.array_at(&["addresses"]).iter()).map(|a| a.str_at(&["ip"]));
    let of_family = addresses.filter(|ip| ip.contains(':') == ipv6);
    Value::Array(of_family.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect())
}

impl Engine {
    pub(super) async fn reconcile_api_service(&self) -> Result<Outcome, SyncError> {
        let ip = self.kube_ip.read().clone();
        if ip.is_empty() {
            return Ok(Outcome::Done);
        }
        match self.virtual_side.get(&kind::SERVICE, &name()) {
            Some(service) => {
                if let Some(ports) = present(&service, &["spec", "ports"]) {
                    *self.api_ports.lock() = ports.clone();
                }
                let moving = !annotation(&service, READDRESS_ANNOTATION).is_empty();
                let refused = self.kube_service_refused.lock().as_deref() == Some(ip.as_str());
                if moving || (!refused && service.str_at(&["spec", "clusterIP"]) != ip) {
                    self.move_api_service(&service, &ip).await?;
                }
            }
            // The tenant deleted it. The API server makes it again at its next start only.
            None => self.make_api_service(&ip).await?,
        }
        self.copy_api_endpoints().await?;
        Ok(Outcome::Done)
    }

    /// Its spec with an address, or with any that the virtual range has.
    fn api_service_spec(&self, ip: Option<&str>) -> Value {
        let mut ports = self.api_ports.lock().clone();
        if ports.array_at(&[]).is_empty() {
            ports = json!([{"name": "https", "port": 443, "protocol": "TCP"}]);
        }
        let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "ports": ports});
        if let Some(ip) = ip {
            spec["clusterIP"] = ip.into();
            spec["clusterIPs"] = json!([ip]);
            spec["ipFamilies"] = json!([if ip.contains(':') { "IPv6" } else { "IPv4" }]);
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        spec
    }

    async fn make_api_service(&self, ip: &str) -> Result<(), SyncError> {
        let service = |ip: Option<&str>| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"component": "apiserver", "provider": "kubernetes"},
                },
                "spec": (self.api_service_spec(ip)),
            })
        };
        match self.virtual_side.create(&kind::SERVICE, &service(Some(ip))).await {
            Err(error) if error.is_invalid() => {
                self.keep_other_address(ip, &error);
                self.virtual_side.create(&kind::SERVICE, &service(None)).await?;
            }
            other => drop(other?),
        }
        Ok(())
    }

    fn keep_other_address(&self, ip: &str, error: &informer::ApiError) {
        tracing::warn!(ip, error = error as &dyn std::error::Error, "the API Service does not get the host's address");
        // Not again before the address is another one.
        *self.kube_service_refused.lock() = Some(ip.to_owned());
    }

    /// An address cannot be changed, so the Service is without one for a moment. What it shall be is noted on it with the
    /// first step: whatever fails in between, the second one follows.
    async fn move_api_service(&self, service: &Value, ip: &str) -> Result<(), SyncError> {
        let [away, back] = crate::types::service::readdress(service, &self.api_service_spec(Some(ip)));
        let own = service.str_at(&["spec", "clusterIP"]);
        if annotation(service, READDRESS_ANNOTATION).is_empty() {
            self.virtual_side.patch(&kind::SERVICE, &name(), "", &away).await?;
        }
        match self.virtual_side.patch(&kind::SERVICE, &name(), "", &back).await {
            // An address outside of the virtual range: better the one it had, or any, than none.
            Err(error) if error.is_invalid() => {
                self.keep_other_address(ip, &error);
                let spec = self.api_service_spec((!own.is_empty()).then_some(own));
                let [_, back] = crate::types::service::readdress(service, &spec);
                self.virtual_side.patch(&kind::SERVICE, &name(), "", &back).await?;
            }
            other => drop(other?),
        }
        Ok(())
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
        match self.virtual_side.get(&kind::ENDPOINTS, &name()) {
            Some(endpoints) => {
                let mut wanted = endpoints.clone();
                wanted["subsets"] = Value::Array(subsets.clone());
                if let Some(patch) = merge_patch(&endpoints, &wanted) {
                    self.virtual_side.patch(&kind::ENDPOINTS, &name(), "", &patch).await?;
                }
            }
            // They go with a Service that the tenant deleted.
            None if self.virtual_side.cache(&kind::ENDPOINTS).is_some() => {
                let endpoints = json!({
                    "apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {
                        "name": "kubernetes", "namespace": "default",
                        "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
                    },
                    "subsets": (subsets.clone()),
                });
                self.virtual_side.create(&kind::ENDPOINTS, &endpoints).await?;
            }
            None => {}
        }
        let slice = self.virtual_side.get(&kind::ENDPOINT_SLICE, &name());
        if slice.is_none() && self.virtual_side.cache(&kind::ENDPOINT_SLICE).is_some() {
            let ipv6 = subsets[0].array_at(&["addresses"])[0].str_at(&["ip"]).contains(':');
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"},
                },
                "addressType": (if ipv6 { "IPv6" } else { "IPv4" }),
                "endpoints": (slice_endpoints(&subsets, ipv6)), "ports": (subsets[0]["ports"].clone()),
            });
            self.virtual_side.create(&kind::ENDPOINT_SLICE, &slice).await?;
        } else if let Some(slice) = slice {
            let mut wanted = slice.clone();
            let ipv6 = slice.str_at(&["addressType"]) == "IPv6";
            wanted["endpoints"] = slice_endpoints(&subsets, ipv6);
            wanted["ports"] = subsets[0]["ports"].clone();
            if let Some(patch) = merge_patch(&slice, &wanted) {
                self.virtual_side.patch(&kind::ENDPOINT_SLICE, &name(), "", &patch).await?;
            }
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
