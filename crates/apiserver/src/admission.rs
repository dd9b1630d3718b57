//! Checks and changes of objects between authorization and storage: the [`AdmissionPlugin`] seam.
//!
//! All mutating calls run in the order of the plugins, then defaulting and validation, then all validating calls. A write
//! that is retried after a conflict runs them again on the newer object.
//!
//! Follows: `k8s.io/apiserver/pkg/admission`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use crate::authn::UserInfo;
use crate::storage::Storage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// One write on its way to the store.
pub struct AdmissionRequest<'a> {
    pub operation: Operation,
    pub gvk: GroupVersionKind,
    pub gvr: GroupVersionResource,
    pub subresource: String,
    pub namespace: String,
    /// Empty when a create asks for a generated name and none is chosen yet.
    pub name: String,
    /// What is to be written; `None` for deletions. Mutating plugins change it in place.
    pub object: Option<Value>,
    /// What is there; `None` for creations.
    pub old_object: Option<Value>,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`; for connections the connect options.
    pub options: Value,
    pub dry_run: bool,
    pub user: UserInfo,
    /// Texts for `Warning` headers of the answer.
    pub warnings: Vec<String>,
    /// Read access to everything stored, and writes that bypass admission.
    pub storage: &'a Arc<Storage>,
}

impl AdmissionRequest<'_> {
    /// Whether the request is about this resource itself, not one of its subresources.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.gvr.group == group && self.gvr.resource == resource
    }
}

/// One admission plugin. The default methods admit everything unchanged.
#[async_trait]
pub trait AdmissionPlugin: Send + Sync {
    /// The name as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Whether the plugin wants to see such requests at all; keeps uninterested plugins off hot paths.
    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool;

    /// Changes `request.object` or refuses the request.
    async fn admit(&self, _request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        Ok(())
    }

    /// Refuses the request or lets it pass. Must not change the object.
    async fn validate(&self, _request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        Ok(())
    }
}

/// The plugins of one server, in order.
#[derive(Clone, Default)]
pub struct AdmissionChain(pub Vec<Arc<dyn AdmissionPlugin>>);

impl AdmissionChain {
    pub async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        for plugin in &self.0 {
            if plugin.handles(request.operation, &request.gvr, &request.subresource) {
                plugin.admit(request).await?;
            }
        }
        Ok(())
    }

    pub async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        for plugin in &self.0 {
            if plugin.handles(request.operation, &request.gvr, &request.subresource) {
                plugin.validate(request).await?;
            }
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
