//! Removes everything a virtual cluster has on its host, and nothing else.
//!
//! Ours are: objects in the cluster's host namespace that carry its `managed-by` label (synced), its `vcluster-name` label
//! (written by the control plane) or its `release` label (rendered by `deploy`); and cluster-scoped objects marked for this
//! namespace and name. The config Secret itself stays: it is the record that something is left to do.

use apimachinery::{Value, json};
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};

/// Why host objects could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {resource} of virtual cluster {cluster}")]
pub struct CleanupError {
    verb: &'static str,
    resource: String,
    cluster: String,
    source: ApiError,
}

/// Synced kinds. Workloads first, so that nothing that is used goes before its user.
const SYNCED: &[Resource] = &[
    Resource::new("", "v1", "pods"),
    Resource::new("networking.k8s.io", "v1", "ingresses"),
    Resource::new("networking.k8s.io", "v1", "networkpolicies"),
    Resource::new("policy", "v1", "poddisruptionbudgets"),
    Resource::new("", "v1", "services"),
    Resource::new("", "v1", "endpoints"),
    Resource::new("discovery.k8s.io", "v1", "endpointslices"),
    Resource::new("", "v1", "persistentvolumeclaims"),
    Resource::new("", "v1", "configmaps"),
    Resource::new("", "v1", "secrets"),
    Resource::new("", "v1", "serviceaccounts"),
];

const SYNCED_CLUSTER_SCOPED: &[Resource] = &[
    Resource::new("", "v1", "persistentvolumes"),
    Resource::new("storage.k8s.io", "v1", "storageclasses"),
    Resource::new("scheduling.k8s.io", "v1", "priorityclasses"),
];

/// What `deploy` renders; the Service goes last because it owns the rest.
const RENDERED: &[Resource] = &[
    Resource::new("apps", "v1", "statefulsets"),
    Resource::new("apps", "v1", "deployments"),
    Resource::new("apps", "v1", "daemonsets"),
    Resource::new("policy", "v1", "poddisruptionbudgets"),
    Resource::new("networking.k8s.io", "v1", "networkpolicies"),
    Resource::new("networking.k8s.io", "v1", "ingresses"),
    Resource::new("monitoring.coreos.com", "v1", "servicemonitors"),
    Resource::new("gateway.networking.k8s.io", "v1", "tlsroutes"),
    Resource::new("discovery.k8s.io", "v1", "endpointslices"),
    Resource::new("", "v1", "resourcequotas"),
    Resource::new("", "v1", "limitranges"),
    Resource::new("rbac.authorization.k8s.io", "v1", "rolebindings"),
    Resource::new("rbac.authorization.k8s.io", "v1", "roles"),
    Resource::new("", "v1", "serviceaccounts"),
    Resource::new("", "v1", "services"),
];

const RENDERED_CLUSTER_SCOPED: &[Resource] = &[
    Resource::new("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
    Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles"),
];

/// Removes the host objects of a cluster without a hub. `true` when none is left; `false` when some are on their way out
/// and it should be called again.
pub async fn remove_host_objects(client: kube::Client, namespace: &str, name: &str) -> Result<bool, CleanupError> {
    remove_with(&Rest::new(client, "alcove"), namespace, name).await
}

pub(crate) async fn remove_with(rest: &Rest, namespace: &str, name: &str) -> Result<bool, CleanupError> {
    let mut left = 0;
    let synced = format!("vcluster.loft.sh/managed-by={name}");
    for resource in SYNCED {
        left += remove(rest, resource, namespace, &synced, name).await?;
    }
    let marker = format!("vcluster.loft.sh/managed-by={}", cluster_scoped_marker(namespace, name));
    for resource in SYNCED_CLUSTER_SCOPED {
        left += remove(rest, resource, "", &marker, name).await?;
    }
    // What synced objects hang on stays until they are gone.
    if left > 0 {
        return Ok(false);
    }
    let written = format!("app=vcluster,vcluster-name={name}");
    left += remove(rest, &Resource::new("", "v1", "secrets"), namespace, &written, name).await?;
    let rendered = deploy::selector(name);
    for resource in RENDERED {
        left += remove(rest, resource, namespace, &rendered, name).await?;
    }
    for resource in RENDERED_CLUSTER_SCOPED {
        // Two releases of one name in two namespaces share the label; the name of the object tells them apart.
        for object in [deploy::names::cluster_role(name, namespace), deploy::names::namespaces_role(name, namespace)] {
            left += remove_named(rest, resource, &rendered, &object, name).await?;
        }
    }
    Ok(left == 0)
}

/// The value of `managed-by` on cluster-scoped objects: `NAMESPACE-x-NAME`, shortened with a hash when longer than 63.
pub(crate) fn cluster_scoped_marker(namespace: &str, name: &str) -> String {
    use sha2::{Digest, Sha256};
    let full = format!("{namespace}-x-{name}");
    if full.len() <= 63 {
        return full;
    }
    let digest = Sha256::digest(full.as_bytes());
    let hex: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", &full[..52])
}

/// What a cluster still has on its host, and what keeps each of it there. The config Secret is not counted.
pub async fn leftovers(client: kube::Client, namespace: &str, name: &str) -> Result<Vec<String>, CleanupError> {
    let rest = Rest::new(client, "alcove");
    let synced = format!("vcluster.loft.sh/managed-by={name}");
    let marker = format!("vcluster.loft.sh/managed-by={}", cluster_scoped_marker(namespace, name));
    let rendered = deploy::selector(name);
    let mut left = Vec::new();
    for (resources, within, labels) in
        [(SYNCED, namespace, &synced), (SYNCED_CLUSTER_SCOPED, "", &marker), (RENDERED, namespace, &rendered)]
    {
        for resource in resources {
            let items = list(&rest, resource, within, labels, name).await?;
            left.extend(items.iter().map(|item| describe(resource, item)));
        }
    }
    for resource in RENDERED_CLUSTER_SCOPED {
        let object = deploy::names::cluster_role(name, namespace);
        let items = list(&rest, resource, "", &rendered, name).await?;
        let ours = items.iter().filter(|item| item.str_at(&["metadata", "name"]) == object);
        left.extend(ours.map(|item| describe(resource, item)));
    }
    Ok(left)
}

/// One object that is still there, in words.
fn describe(resource: &Resource, item: &Value) -> String {
    let name = item.str_at(&["metadata", "name"]);
    let finalizers = item.array_at(&["metadata", "finalizers"]).iter().filter_map(Value::as_str);
    let finalizers: Vec<&str> = finalizers.collect();
    let kind = resource.resource.as_str();
    match (item.at(&["metadata", "deletionTimestamp"]).is_some(), finalizers.as_slice()) {
        (true, []) => format!("{kind}/{name} (on its way out)"),
        (true, waiting) => format!("{kind}/{name} (waits for {})", waiting.join(", ")),
        (false, _) => format!("{kind}/{name}"),
    }
}

async fn list(
    rest: &Rest,
    resource: &Resource,
    namespace: &str,
    labels: &str,
    cluster: &str,
) -> Result<Vec<Value>, CleanupError> {
    match rest.list_as::<Value>(resource, namespace, labels, "").await {
        Ok(items) => Ok(items),
        // A host may lack a kind or the right to see it; then nothing of it was synced.
        Err(error) if error.is_not_found() || error.is_forbidden() => Ok(Vec::new()),
        Err(source) => {
            Err(CleanupError { verb: "list", resource: resource.to_string(), cluster: cluster.into(), source })
        }
    }
}

/// Deletes what matches; returns how many there were.
async fn remove(
    rest: &Rest,
    resource: &Resource,
    namespace: &str,
    labels: &str,
    cluster: &str,
) -> Result<usize, CleanupError> {
    let items = list(rest, resource, namespace, labels, cluster).await?;
    for item in &items {
        delete(rest, resource, namespace, item, cluster).await?;
    }
    Ok(items.len())
}

async fn remove_named(
    rest: &Rest,
    resource: &Resource,
    labels: &str,
    object: &str,
    cluster: &str,
) -> Result<usize, CleanupError> {
    let items = list(rest, resource, "", labels, cluster).await?;
    let ours: Vec<&Value> = items.iter().filter(|item| item.str_at(&["metadata", "name"]) == object).collect();
    for item in &ours {
        delete(rest, resource, "", item, cluster).await?;
    }
    Ok(ours.len())
}

async fn delete(
    rest: &Rest,
    resource: &Resource,
    namespace: &str,
    item: &Value,
    cluster: &str,
) -> Result<(), CleanupError> {
    let name = item.str_at(&["metadata", "name"]);
    let failed = |verb| {
        let (resource, cluster) = (resource.to_string(), cluster.to_string());
        move |source| CleanupError { verb, resource, cluster, source }
    };
    if item.at(&["metadata", "deletionTimestamp"]).is_some() {
        // On its way. Only the syncer's own finalizers would hold it now, and the syncer is gone.
        return Ok(());
    }
    let mut options = DeleteOptions::uid(item.str_at(&["metadata", "uid"]));
    options.propagation_policy = "Background";
    if resource.resource.as_str() == "pods" {
        // The tenant is gone; nobody waits for a graceful end.
        options.grace_period_seconds = Some(0);
    }
    match rest.delete(resource, namespace, name, &options).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(failed("delete")(error)),
    }
}

/// Takes our finalizer off a config Secret, for a host whose hub is gone for good.
pub async fn release_config_secret(client: kube::Client, namespace: &str, name: &str) -> Result<(), ApiError> {
    let rest = Rest::new(client, "alcove");
    let secret_name = deploy::names::config_secret(name);
    let secrets = Resource::new("", "v1", "secrets");
    let secret = match rest.get(&secrets, namespace, &secret_name).await {
        Err(error) if error.is_not_found() => return Ok(()),
        result => result?,
    };
    let others: Vec<Value> = secret
        .array_at(&["metadata", "finalizers"])
        .iter()
        .filter(|finalizer| finalizer.as_str() != Some(crate::FINALIZER))
        .cloned()
        .collect();
    let patch = json!({"metadata": {"finalizers": (Value::Array(others))}});
    match rest.patch(&secrets, "", namespace, &secret_name, PatchType::Merge, &patch).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
