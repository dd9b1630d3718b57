//! NamespaceLifecycle: nothing is created in namespaces that do not exist or are going away; system namespaces stay.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle`.

use apimachinery::gvk::{GroupResource, GroupVersionResource};
use apimachinery::status::{Status, StatusResult, cause};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl AdmissionPlugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        match operation {
            Operation::Delete => gvr.group.is_empty() && gvr.resource == "namespaces",
            Operation::Create | Operation::Update => {
                // Reviews must not tell whether a namespace exists.
                !(gvr.group.is_empty() && gvr.resource == "namespaces") && gvr.resource != "localsubjectaccessreviews"
            }
            Operation::Connect => false,
        }
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.operation == Operation::Delete {
            if IMMORTAL.contains(&request.name.as_str()) {
                return Err(request.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        let namespace = request.namespace.as_str();
        if namespace.is_empty() {
            return Ok(());
        }
        let Some(found) = request.find("", "v1", "namespaces", "", namespace).await? else {
            return Err(Box::new(Status::not_found(&GroupResource::new("", "namespaces"), namespace)));
        };
        if request.operation == Operation::Create && found.str_at(&["status", "phase"]) == "Terminating" {
            let text = format!("unable to create new content in namespace {namespace} because it is being terminated");
            let message = format!("namespace {namespace} is being terminated");
            let status = *request.forbidden(text);
            return Err(Box::new(status.with_cause(cause::NAMESPACE_TERMINATING, message, "metadata.namespace")));
        }
        Ok(())
    }
}
