//! What a fresh server has before the first request: the system namespaces and the `kubernetes` Service.
//!
//! Follows: `pkg/controlplane/controller/{systemnamespaces,kubernetesservice}`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;

use crate::config::Config;
use crate::storage::{Storage, WriteFailure};

pub const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing; what is there stays as it is.
pub async fn run(storage: &Arc<Storage>, config: &Config) -> StatusResult<()> {
    if config.bootstrap_rbac {
        crate::rbac::reconcile::run(storage).await?;
        crate::admission::priority::ensure_system_classes(storage).await?;
    }
    for name in SYSTEM_NAMESPACES {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        ensure(storage, "", "v1", "namespaces", namespace).await?;
    }
    crate::services::ensure_default_cidr(storage, &config.service_cluster_ip_range).await?;
    if let Some(ip) = first_service_ip(&config.service_cluster_ip_range) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": ip, "clusterIPs": [ip], "internalTrafficPolicy": "Cluster",
                "ipFamilies": [if ip.contains(':') { "IPv6" } else { "IPv4" }], "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.secure_port}],
                "sessionAffinity": "None", "type": "ClusterIP",
            },
            "status": {"loadBalancer": {}},
        });
        ensure(storage, "", "v1", "services", service).await?;
    }
    let address = config.advertise_address.to_string();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": address}],
            "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}],
        }],
    });
    ensure(storage, "", "v1", "endpoints", endpoints).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "generation": 1,
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if config.advertise_address.is_ipv6() { "IPv6" } else { "IPv4" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": config.secure_port, "protocol": "TCP"}],
    });
    ensure(storage, "discovery.k8s.io", "v1", "endpointslices", slice).await
}

/// Creates an object unless it exists. For objects of the server itself: no admission, no validation.
pub async fn ensure(
    storage: &Arc<Storage>,
    group: &str,
    version: &str,
    resource: &str,
    mut object: Value,
) -> StatusResult<()> {
    let Some(resource) = storage.registry.get(group, version, resource) else { return Ok(()) };
    let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
    if storage.get_cached(&resource, &namespace, &name).is_some() {
        return Ok(());
    }
    let metadata = object.metadata_mut();
    metadata.insert("uid", uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp", crate::handlers::write::now().into());
    match storage.insert(&resource, &namespace, &name, &object).await {
        Ok(_) | Err(WriteFailure::Conflict(_)) => Ok(()),
        Err(WriteFailure::Status(status)) => Err(status),
    }
}

/// The address of the `kubernetes` Service: the first of the range.
pub fn first_service_ip(range: &str) -> Option<String> {
    let (address, _) = range.split(',').next()?.trim().split_once('/')?;
    match address.parse().ok()? {
        std::net::IpAddr::V4(ip) => Some(std::net::Ipv4Addr::from(u32::from(ip) + 1).to_string()),
        std::net::IpAddr::V6(ip) => Some(std::net::Ipv6Addr::from(u128::from(ip) + 1).to_string()),
    }
}
