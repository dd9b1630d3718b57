//! Plugins that fill in what everybody gets: tolerations of a pod, the taint of a new node, protecting finalizers,
//! topology labels.
//!
//! Follows: `plugin/pkg/admission/{defaulttolerationseconds,nodetaint,storage/storageobjectinuseprotection,podtopologylabels}`.

use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use apimachinery::{Value, json};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Pods leave a node that is not ready or unreachable after five minutes.
pub struct DefaultTolerationSeconds;

#[async_trait]
impl AdmissionPlugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && subresource.is_empty()
            && gvr.group.is_empty()
            && gvr.resource == "pods"
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if let Some(pod) = request.object.as_mut() {
            add_default_tolerations(pod);
        }
        Ok(())
    }
}

fn add_default_tolerations(pod: &mut Value) {
    let mut tolerations = pod.array_at(&["spec", "tolerations"]).to_vec();
    let given = tolerations.len();
    for key in [NOT_READY, UNREACHABLE] {
        let covers = |t: &Value| {
            matches!(t.str_at(&["key"]), k if k == key || k.is_empty())
                && matches!(t.str_at(&["effect"]), "NoExecute" | "")
        };
        if !tolerations[..given].iter().any(covers) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    if tolerations.len() > given {
        pod.set_at(&["spec", "tolerations"], Value::Array(tolerations));
    }
}

/// A new node takes no pods before it is ready.
pub struct TaintNodesByCondition;

#[async_trait]
impl AdmissionPlugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && gvr.group.is_empty() && gvr.resource == "nodes"
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(node) = request.object.as_mut() else { return Ok(()) };
        let mut taints = node.array_at(&["spec", "taints"]).to_vec();
        let same = |t: &Value| t.str_at(&["key"]) == NOT_READY && t.str_at(&["effect"]) == "NoSchedule";
        if !taints.iter().any(same) {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            node.set_at(&["spec", "taints"], Value::Array(taints));
        }
        Ok(())
    }
}

/// Volumes and claims in use are not lost by a delete.
pub struct StorageObjectInUseProtection;

impl StorageObjectInUseProtection {
    fn finalizer(gvr: &GroupVersionResource) -> Option<&'static str> {
        match (gvr.group.as_str(), gvr.resource.as_str()) {
            ("", "persistentvolumes") => Some("kubernetes.io/pv-protection"),
            ("", "persistentvolumeclaims") => Some("kubernetes.io/pvc-protection"),
            ("storage.k8s.io", "volumeattributesclasses") => Some("kubernetes.io/vac-protection"),
            _ => None,
        }
    }
}

#[async_trait]
impl AdmissionPlugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && Self::finalizer(gvr).is_some()
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(finalizer) = Self::finalizer(&request.gvr) else { return Ok(()) };
        if let Some(object) = request.object.as_mut()
            && !object.has_finalizer(finalizer)
        {
            let mut finalizers: Vec<Value> = object.finalizers().into_iter().map(Value::from).collect();
            finalizers.push(finalizer.into());
            object.set_finalizers(finalizers);
        }
        Ok(())
    }
}

/// A pod bound to a node has the node's zone and region as labels.
pub struct PodTopologyLabels;

#[async_trait]
impl AdmissionPlugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create
            && gvr.group.is_empty()
            && matches!((gvr.resource.as_str(), subresource), ("pods", "" | "binding") | ("bindings", ""))
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let object = request.object.as_ref().unwrap_or(&Value::Null);
        let node = if request.is("", "pods") {
            object.str_at(&["spec", "nodeName"])
        } else if object.str_at(&["target", "kind"]) == "Node" {
            object.str_at(&["target", "name"])
        } else {
            ""
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = request.find("", "v1", "nodes", "", node).await? else { return Ok(()) };
        for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
            if let (Some(value), Some(object)) = (node.label(key), request.object.as_mut()) {
                object.set_at(&["metadata", "labels", key], value.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tolerations_are_added_unless_covered() {
        for (given, keys) in [
            (json!([]), vec![NOT_READY, UNREACHABLE]),
            (json!([{"operator": "Exists"}]), vec![""]),
            (json!([{"key": NOT_READY, "effect": "NoExecute"}]), vec![NOT_READY, UNREACHABLE]),
            (json!([{"key": NOT_READY, "effect": "NoSchedule"}]), vec![NOT_READY, NOT_READY, UNREACHABLE]),
        ] {
            let mut pod = json!({"spec": {"tolerations": given}});
            add_default_tolerations(&mut pod);
            let got: Vec<&str> = pod.array_at(&["spec", "tolerations"]).iter().map(|t| t.str_at(&["key"])).collect();
            assert_eq!(got, keys);
        }
    }
}
