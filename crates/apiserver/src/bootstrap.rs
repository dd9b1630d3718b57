//! What a fresh server has before the first request: the system namespaces, the `kubernetes` Service and the
//! APIService objects of what it serves.
//!
//! Follows: `pkg/controlplane/controller/{systemnamespaces,kubernetesservice}`.

use std::sync::Arc;

use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use apimachinery::{Value, json, resources};

use crate::config::Config;
use crate::storage::{Storage, WriteFailure};

pub const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Creates what is missing, and brings the endpoints of the server itself up to date. Other things stay as they are.
pub async fn run(storage: &Arc<Storage>, config: &Config) -> StatusResult<()> {
    // Parts that do not need each other run at the same time, so that they share durable commits.
    let access = async {
        if config.bootstrap_rbac {
            crate::rbac::reconcile::run(storage).await?;
            crate::admission::priority::ensure_system_classes(storage).await?;
        }
        Ok(())
    };
    let namespaces = futures::future::try_join_all(SYSTEM_NAMESPACES.map(|name| {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        ensure(storage, "", "v1", "namespaces", namespace)
    }));
    let cidr = crate::services::ensure_default_cidr(storage, &config.service_cluster_ip_range);
    let flow = crate::flow_control::ensure(storage);
    futures::try_join!(access, namespaces, cidr, flow, api_services(storage), own_service(storage, config)).map(drop)
}

/// The `kubernetes` Service and its endpoints.
async fn own_service(storage: &Arc<Storage>, config: &Config) -> StatusResult<()> {
    if let Some(ip) = first_service_ip(&config.service_cluster_ip_range) {
        let ports = json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.secure_port}]);
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": ip, "clusterIPs": [ip], "internalTrafficPolicy": "Cluster",
                "ipFamilies": [if ip.contains(':') { "IPv6" } else { "IPv4" }], "ipFamilyPolicy": "SingleStack",
                "sessionAffinity": "None", "type": "ClusterIP",
            },
            "status": {"loadBalancer": {}},
        });
        service["spec"]["ports"] = ports;
        reconcile(storage, "", "v1", "services", service, &[&["spec", "ports"]]).await?;
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
    reconcile(storage, "", "v1", "endpoints", endpoints, &[&["subsets"]]).await?;
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
    reconcile(storage, "discovery.k8s.io", "v1", "endpointslices", slice, &[&["endpoints"], &["ports"]]).await
}

/// The status of an APIService that this server answers itself.
pub fn local_api_status() -> Value {
    json!({"conditions": [{
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": crate::handlers::write::now(),
    }]})
}

/// The APIService objects of the built-in groups.
async fn api_services(storage: &Arc<Storage>) -> StatusResult<()> {
    let services = resources::GROUPS.iter().filter(|g| g.name != "apiregistration.k8s.io").flat_map(|group| {
        group.versions.iter().map(move |version| {
            let mut service = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {
                    "name": format!("{}.{}", version.version, group.name),
                    "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
                },
                "spec": {
                    "version": version.version, "groupPriorityMinimum": group.priority,
                    "versionPriority": version.priority,
                },
                "status": local_api_status(),
            });
            if !group.name.is_empty() {
                service.set_at(&["spec", "group"], group.name.into());
            }
            ensure(storage, "apiregistration.k8s.io", "v1", "apiservices", service)
        })
    });
    // At the same time, so that they share one durable commit.
    futures::future::try_join_all(services).await.map(drop)
}

/// Creates an object, or sets these fields of the one that exists.
async fn reconcile(
    storage: &Arc<Storage>,
    group: &str,
    version: &str,
    resource: &str,
    object: Value,
    fields: &[&[&str]],
) -> StatusResult<()> {
    let Some(handle) = storage.registry.get(group, version, resource) else { return Ok(()) };
    let Some(entry) = storage.get_cached(&handle, object.namespace(), object.name()) else {
        return ensure(storage, group, version, resource, object).await;
    };
    let mut current = entry.to_value();
    let stale = fields.iter().any(|path| current.at(path) != object.at(path));
    if !stale {
        return Ok(());
    }
    for path in fields {
        current.set_at(path, object.at(path).cloned().unwrap_or_default());
    }
    match storage.replace(&handle, object.namespace(), object.name(), &current, entry.revision).await {
        Ok(_) | Err(WriteFailure::Conflict(_)) => Ok(()),
        Err(WriteFailure::Status(status)) => Err(status),
    }
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
