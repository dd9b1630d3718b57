//! Plugins that run only when they are asked for.
//!
//! Follows: `plugin/pkg/admission/{alwayspullimages,network/denyserviceexternalips,gc,namespace/exists,noderestriction}`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupResource, GroupVersionResource};
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::{Attributes, Authorizer, Decision, is_privileged};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Every pod pulls its images anew, so that nobody runs an image that they may not pull.
pub struct AlwaysPullImages;

#[async_trait]
impl AdmissionPlugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && gvr.group.is_empty()
            && gvr.resource == "pods"
            && matches!(subresource, "" | "ephemeralcontainers")
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(pod) = request.object.as_mut() else { return Ok(()) };
        for key in CONTAINERS {
            let Some(containers) = pod.at_mut(&["spec", key]).and_then(Value::as_array_mut) else { continue };
            for container in containers {
                container["imagePullPolicy"] = "Always".into();
            }
        }
        Ok(())
    }
}

/// Services may not claim external addresses that they did not have.
pub struct DenyServiceExternalIps;

#[async_trait]
impl AdmissionPlugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && gvr.group.is_empty()
            && gvr.resource == "services"
            && subresource.is_empty()
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let ips = |service: &Option<Value>| -> Vec<Value> {
            service.as_ref().map(|s| s.array_at(&["spec", "externalIPs"]).to_vec()).unwrap_or_default()
        };
        let before = ips(&request.old_object);
        if ips(&request.object).iter().all(|ip| before.contains(ip)) {
            return Ok(());
        }
        Err(request.forbidden("Use of external IPs is denied by admission control."))
    }
}

/// Only who may delete an object may change its owners, and only who may update an owner's finalizers may block its
/// deletion.
pub struct OwnerReferencesPermissionEnforcement(pub Arc<dyn Authorizer>);

impl OwnerReferencesPermissionEnforcement {
    async fn may(&self, attributes: Attributes) -> bool {
        is_privileged(&attributes.user) || self.0.authorize(&attributes).await.decision == Decision::Allow
    }
}

#[async_trait]
impl AdmissionPlugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            // The status of a pod is written by its node, which may not delete it.
            && !(gvr.group.is_empty() && gvr.resource == "pods" && subresource == "status")
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let references = |object: &Option<Value>| -> Vec<Value> {
            object.as_ref().map(|o| o.metadata().array_at(&["ownerReferences"]).to_vec()).unwrap_or_default()
        };
        let (new, old) = (references(&request.object), references(&request.old_object));
        if new == old {
            return Ok(());
        }
        let delete = Attributes {
            user: request.user.clone(),
            verb: "delete".to_owned(),
            namespace: request.namespace.clone(),
            group: request.gvr.group.to_string(),
            version: request.gvr.version.to_string(),
            resource: request.gvr.resource.to_string(),
            subresource: request.subresource.clone(),
            name: request.name.clone(),
            is_resource: true,
            ..Attributes::default()
        };
        // A create needs no check: who makes an object may say whose it is.
        if request.operation == Operation::Update && !self.may(delete).await {
            return Err(request.forbidden("cannot set an ownerRef on a resource you can't delete: "));
        }
        let blocking = |r: &&Value| r["blockOwnerDeletion"] == true && !old.contains(r);
        for reference in new.iter().filter(blocking) {
            let (api_version, kind) = (reference.str_at(&["apiVersion"]), reference.str_at(&["kind"]));
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let resource = request.storage.registry.current().by_kind(group, version, kind).cloned();
            let Some(resource) = resource else {
                let text = format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} Kind {kind}"
                );
                return Err(request.forbidden(text));
            };
            let finalizers = Attributes {
                user: request.user.clone(),
                verb: "update".to_owned(),
                namespace: if resource.namespaced { request.namespace.clone() } else { String::new() },
                group: group.to_owned(),
                version: version.to_owned(),
                resource: resource.gvr.resource.to_string(),
                subresource: "finalizers".to_owned(),
                name: reference.str_at(&["name"]).to_owned(),
                is_resource: true,
                ..Attributes::default()
            };
            if !self.may(finalizers).await {
                let text = "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: ";
                return Err(request.forbidden(text));
            }
        }
        Ok(())
    }
}

/// Nothing is done in namespaces that do not exist.
pub struct NamespaceExists;

#[async_trait]
impl AdmissionPlugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        operation != Operation::Connect && !(gvr.group.is_empty() && gvr.resource == "namespaces")
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let namespace = request.namespace.as_str();
        if namespace.is_empty() || request.find("", "v1", "namespaces", "", namespace).await?.is_some() {
            return Ok(());
        }
        Err(Box::new(Status::not_found(&GroupResource::new("", "namespaces"), namespace)))
    }
}

/// A node changes itself, its own pods and its own lease, and nothing else.
pub struct NodeRestriction;

/// The name of the node that is asking, when a node asks.
fn node_of<'a>(request: &'a AdmissionRequest<'_>) -> Option<&'a str> {
    request.user.name.strip_prefix("system:node:").filter(|n| !n.is_empty() && request.user.is_in("system:nodes"))
}

/// Labels that a node may set on itself. Source: `k8s.io/kubelet/pkg/apis.IsKubeletLabel`.
fn is_own_label(key: &str) -> bool {
    const LABELS: [&str; 14] = [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/windows-build",
        "kubelet.kubernetes.io",
        "node.kubernetes.io",
    ];
    if LABELS.contains(&key) {
        return true;
    }
    let Some((domain, _)) = key.split_once('/') else { return true };
    let below = |root: &str| domain == root || domain.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'));
    if below("kubelet.kubernetes.io") || below("node.kubernetes.io") {
        return !below("node-restriction.kubernetes.io");
    }
    !below("kubernetes.io") && !below("k8s.io")
}

impl NodeRestriction {
    fn node(request: &AdmissionRequest<'_>, node: &str) -> StatusResult<()> {
        let asked = match request.operation {
            Operation::Create => request.object.as_ref().map_or("", |o| o.name()),
            _ => request.name.as_str(),
        };
        let refuse = |text: String| Err(request.forbidden(text));
        if asked != node {
            let verb = match request.operation {
                Operation::Create => format!("node {node:?} is not allowed to create node {asked:?}"),
                _ => format!("node {node:?} is not allowed to modify node {asked:?}"),
            };
            return refuse(verb);
        }
        let empty = Value::Null;
        let new = request.object.as_ref().unwrap_or(&empty);
        let old = request.old_object.as_ref().unwrap_or(&empty);
        if request.operation == Operation::Delete {
            return refuse(format!("node {node:?} is not allowed to delete node {asked:?}"));
        }
        if request.operation == Operation::Update {
            let same = |path: &[&str]| new.at(path).unwrap_or(&empty) == old.at(path).unwrap_or(&empty);
            if !same(&["spec", "configSource"]) && new.at(&["spec", "configSource"]).is_some_and(|c| !c.is_null()) {
                return refuse(format!("node {node:?} is not allowed to update node configSource"));
            }
            if !same(&["spec", "taints"]) {
                return refuse(format!("node {node:?} is not allowed to modify taints"));
            }
            if !same(&["metadata", "ownerReferences"]) {
                return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
            }
        } else if !new.metadata().array_at(&["ownerReferences"]).is_empty() {
            return refuse(format!("node {node:?} is not allowed to set ownerReferences"));
        }
        let mut changed: Vec<&str> = new
            .labels()
            .keys()
            .chain(old.labels().keys())
            .map(|k| k.as_str())
            .filter(|k| new.label(k) != old.label(k) && !is_own_label(k))
            .collect();
        changed.sort_unstable();
        changed.dedup();
        if changed.is_empty() {
            return Ok(());
        }
        let what = if request.operation == Operation::Create { "set" } else { "modify" };
        refuse(format!("is not allowed to {what} the following labels: {}", changed.join(", ")))
    }

    async fn pod(request: &AdmissionRequest<'_>, node: &str) -> StatusResult<()> {
        let refuse = |text: String| Err(request.forbidden(text));
        let of_node = |pod: &Value| pod.str_at(&["spec", "nodeName"]) == node;
        match (request.operation, request.subresource.as_str()) {
            (Operation::Create, "") => {
                let Some(pod) = &request.object else { return Ok(()) };
                if pod.annotation("kubernetes.io/config.mirror").is_none() {
                    return refuse(format!(
                        "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
                    ));
                }
                if !of_node(pod) {
                    return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
                }
                Ok(())
            }
            (Operation::Update, "status") | (Operation::Delete, "") => {
                let pod = request.old_object.as_ref().or(request.object.as_ref());
                if pod.is_some_and(of_node) {
                    return Ok(());
                }
                let what =
                    if request.operation == Operation::Delete { "delete pods" } else { "update pod status for pods" };
                refuse(format!("node {node:?} can only {what} with spec.nodeName set to itself"))
            }
            (Operation::Create, "eviction") => {
                let pod = request.find("", "v1", "pods", &request.namespace, &request.name).await?;
                if pod.is_none_or(|p| of_node(&p)) {
                    return Ok(());
                }
                refuse(format!("node {node:?} can only evict pods with spec.nodeName set to itself"))
            }
            (Operation::Update, "") => {
                refuse("unexpected operation \"UPDATE\", node can only create and delete mirror pods".to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl AdmissionPlugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        operation != Operation::Connect
            && matches!(
                (gvr.group.as_str(), gvr.resource.as_str()),
                ("", "pods" | "nodes" | "serviceaccounts")
                    | ("coordination.k8s.io", "leases")
                    | ("storage.k8s.io", "csinodes")
            )
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.user.name.strip_prefix("system:node:").is_none() {
            return Ok(());
        }
        let request = &*request;
        let Some(node) = node_of(request) else { return Ok(()) };
        let own = |o: &Option<Value>| o.as_ref().is_none_or(|o| o.name() == node);
        match (request.gvr.resource.as_str(), request.subresource.as_str()) {
            ("nodes", _) => Self::node(request, node),
            ("pods", _) => Self::pod(request, node).await,
            ("serviceaccounts", "token") => {
                let reference = request.object.as_ref().map(|o| &o["spec"]["boundObjectRef"]);
                let kind = reference.map_or("", |r| r.str_at(&["kind"]));
                if kind != "Pod" {
                    return Err(request.forbidden("node requested token not bound to a pod"));
                }
                let name = reference.map_or("", |r| r.str_at(&["name"]));
                let pod = request.find("", "v1", "pods", &request.namespace, name).await?;
                if pod.is_some_and(|p| p.str_at(&["spec", "nodeName"]) == node) {
                    return Ok(());
                }
                Err(request.forbidden("node requested token bound to a pod scheduled on a different node"))
            }
            ("leases", _) => {
                if request.namespace != "kube-node-lease" {
                    let text = "can only access leases in the \"kube-node-lease\" system namespace";
                    return Err(request.forbidden(text));
                }
                if own(&request.object) && own(&request.old_object) {
                    return Ok(());
                }
                Err(request.forbidden("can only access node lease with the same name as the requesting node"))
            }
            ("csinodes", _) if !(own(&request.object) && own(&request.old_object)) => {
                Err(request.forbidden("can only access CSINode with the same name as the requesting node"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_label_themselves_within_limits() {
        for (key, own) in [
            ("kubernetes.io/hostname", true),
            ("example.com/rack", true),
            ("plain", true),
            ("foo.kubelet.kubernetes.io/x", true),
            ("node.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.k8s.io/y", false),
        ] {
            assert_eq!(is_own_label(key), own, "{key}");
        }
    }
}
