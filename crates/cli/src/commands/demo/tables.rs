//! What the demo prints: the tenants' view, the host's view, timings.

use std::time::Duration;

use apimachinery::Value;
use informer::{Resource, Rest};

use super::{Tenant, condition, tenant_of};
use crate::failure::Failure;
use crate::table;

/// Kinds shown on the host. Secrets and ConfigMaps show what pods use; the rest is the tenants' own.
pub const HOST_KINDS: [(&str, Resource); 9] = [
    ("Pod", Resource::new("", "v1", "pods")),
    ("Service", Resource::new("", "v1", "services")),
    ("EndpointSlice", Resource::new("discovery.k8s.io", "v1", "endpointslices")),
    ("ConfigMap", Resource::new("", "v1", "configmaps")),
    ("Secret", Resource::new("", "v1", "secrets")),
    ("PersistentVolumeClaim", Resource::new("", "v1", "persistentvolumeclaims")),
    ("ServiceAccount", Resource::new("", "v1", "serviceaccounts")),
    ("Role", Resource::new("rbac.authorization.k8s.io", "v1", "roles")),
    ("RoleBinding", Resource::new("rbac.authorization.k8s.io", "v1", "rolebindings")),
];

pub async fn list(rest: &Rest, resource: &Resource, namespace: &str) -> anyhow::Result<Vec<Value>> {
    rest.list_as::<Value>(resource, namespace, "", "")
        .await
        .map_err(|error| Failure::failed(format!("cannot list {resource}: {error}")).into())
}

/// What each tenant sees of its pods and services.
pub async fn tenants(tenants: &[Tenant]) -> anyhow::Result<()> {
    println!("\nWHAT THE TENANTS SEE");
    let mut rows = Vec::new();
    for tenant in tenants {
        for pod in list(&tenant.rest, &Resource::new("", "v1", "pods"), "").await? {
            let text = |path: &[&str]| pod.str_at(path).to_string();
            let statuses = pod.array_at(&["status", "containerStatuses"]);
            let ready = statuses.iter().filter(|s| s.at(&["ready"]).and_then(Value::as_bool) == Some(true)).count();
            rows.push(vec![
                tenant.name.to_string(),
                text(&["metadata", "namespace"]),
                format!("pod/{}", pod.str_at(&["metadata", "name"])),
                format!("{ready}/{}", pod.array_at(&["spec", "containers"]).len()),
                if condition(&pod, "Ready") { "Running".into() } else { text(&["status", "phase"]) },
                text(&["status", "podIP"]),
                text(&["spec", "nodeName"]),
            ]);
        }
        for service in list(&tenant.rest, &Resource::new("", "v1", "services"), "").await? {
            rows.push(vec![
                tenant.name.to_string(),
                service.str_at(&["metadata", "namespace"]).to_string(),
                format!("service/{}", service.str_at(&["metadata", "name"])),
                String::new(),
                service.str_at(&["spec", "type"]).to_string(),
                service.str_at(&["spec", "clusterIP"]).to_string(),
                String::new(),
            ]);
        }
    }
    print!("{}", table::render(&["CLUSTER", "NAMESPACE", "NAME", "READY", "STATUS", "IP", "NODE"], &rows));
    Ok(())
}

/// What the host sees, and which tenant each object belongs to.
pub async fn host(rest: &Rest, tenants: &[Tenant]) -> anyhow::Result<()> {
    println!("\nWHAT THE HOST SEES");
    let mut rows = Vec::new();
    for tenant in tenants {
        for (kind, resource) in &HOST_KINDS {
            for object in list(rest, resource, &tenant.namespace).await? {
                let owner = tenant_of(&object);
                let source = object.at(&["metadata", "annotations"]);
                let of = |key: &str| source.and_then(|all| all.get(key)).and_then(Value::as_str).unwrap_or("");
                let from = match (of("vcluster.loft.sh/object-namespace"), of("vcluster.loft.sh/object-name")) {
                    ("", "") => String::new(),
                    ("", name) => name.to_string(),
                    (namespace, name) => format!("{namespace}/{name}"),
                };
                rows.push(vec![
                    tenant.namespace.clone(),
                    (*kind).to_string(),
                    object.str_at(&["metadata", "name"]).to_string(),
                    if owner.is_empty() { "-".into() } else { owner.to_string() },
                    from,
                ]);
            }
        }
    }
    print!("{}", table::render(&["NAMESPACE", "KIND", "NAME", "TENANT", "THERE"], &rows));
    Ok(())
}

pub fn timings(timings: &[(&str, Duration)], memory: Option<u64>) {
    println!("\nTIMINGS");
    let mut rows: Vec<Vec<String>> =
        timings.iter().map(|(what, time)| vec![(*what).to_string(), format!("{} ms", time.as_millis())]).collect();
    if let Some(bytes) = memory {
        #[allow(clippy::cast_precision_loss)]
        let mib = bytes as f64 / (1024.0 * 1024.0);
        rows.push(vec!["memory of this process (host, nodes, clusters)".into(), format!("{mib:.1} MiB")]);
    }
    print!("{}", table::render(&["WHAT", "VALUE"], &rows));
}
