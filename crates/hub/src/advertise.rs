//! Where a cluster's Service leads: an EndpointSlice at the hub's pod and the cluster's port there.
//!
//! On a host where the hub has no address that pods reach (the development host), there is none.

use apimachinery::{Value, json};
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};

use crate::Advertised;

const SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices");

fn slice_name(cluster: &str) -> String {
    format!("{cluster}-hub")
}

/// The slice of Service `NAME`. Its ports are those of the Service by name.
fn slice(at: &Advertised, namespace: &str, name: &str, port: u16) -> Value {
    let port = |name: &str| json!({"name": name, "port": (i64::from(port)), "protocol": "TCP"});
    let mut endpoint = json!({
        "addresses": [(at.address.to_string())],
        "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    if !at.pod_name.is_empty() {
        endpoint["targetRef"] =
            json!({"kind": "Pod", "namespace": (at.pod_namespace.as_str()), "name": (at.pod_name.as_str())});
    }
    if !at.node_name.is_empty() {
        endpoint["nodeName"] = at.node_name.as_str().into();
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": (slice_name(name)),
            "namespace": namespace,
            "labels": {
                "app": "vcluster",
                "release": name,
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "alcove-hub",
            },
        },
        "addressType": (if at.address.is_ipv6() { "IPv6" } else { "IPv4" }),
        "endpoints": [endpoint],
        "ports": [(port("https")), (port("kubelet"))],
    })
}

/// Leads the Service of a cluster to its port.
pub(crate) async fn publish(
    rest: &Rest,
    at: Option<&Advertised>,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(), ApiError> {
    let Some(at) = at else { return Ok(()) };
    let slice = slice(at, namespace, name, port);
    let written = rest.patch(&SLICES, "", namespace, &slice_name(name), PatchType::Apply, &slice).await;
    match written {
        // The type of addresses cannot change: the hub's pod came back with another.
        Err(error) if error.is_invalid() => {
            withdraw(rest, Some(at), namespace, name).await?;
            rest.create(&SLICES, namespace, &slice).await.map(drop)
        }
        result => result.map(drop),
    }
}

/// The Service of a cluster leads nowhere.
pub(crate) async fn withdraw(
    rest: &Rest,
    at: Option<&Advertised>,
    namespace: &str,
    name: &str,
) -> Result<(), ApiError> {
    if at.is_none() {
        return Ok(());
    }
    match rest.delete(&SLICES, namespace, &slice_name(name), &DeleteOptions::default()).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
