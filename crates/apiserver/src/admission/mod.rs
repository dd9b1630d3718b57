//! Checks and changes of objects between authorization and storage: the [`AdmissionPlugin`] seam.
//!
//! All mutating calls run in the order of the plugins, then defaulting and validation, then all validating calls. A write
//! that is retried after a conflict runs them again on the newer object.
//!
//! Follows: `k8s.io/apiserver/pkg/admission`.

pub mod certificates;
pub mod chain;
pub mod classes;
pub mod defaults;
pub mod expressions;
pub mod lifecycle;
pub mod limit_ranger;
pub mod matching;
pub mod optional;
pub mod pod_resources;
pub mod pod_security;
pub mod pods;
pub mod policy;
pub mod priority;
pub mod quota;
pub mod service_account;
pub mod webhook;

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
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
    /// A webhook or policy changed the object: the server's own plugins look at it once more.
    pub reinvoke: bool,
    /// Read access to everything stored, and writes that bypass admission.
    pub storage: &'a Arc<Storage>,
}

impl AdmissionRequest<'_> {
    /// Whether the request is about this resource itself, not one of its subresources.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.gvr.group == group && self.gvr.resource == resource
    }

    /// 403 as plugins answer it. Source: `admission.NewForbidden`.
    pub fn forbidden(&self, reason: impl std::fmt::Display) -> Box<Status> {
        let object = self.object.as_ref().unwrap_or(&Value::Null);
        let name = [self.name.as_str(), object.name(), object.generate_name()];
        let name = name.into_iter().find(|n| !n.is_empty()).unwrap_or("Unknown");
        Box::new(Status::forbidden(&self.gvr.group_resource(), name, reason))
    }

    /// A stored object as it is now.
    pub async fn find(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> StatusResult<Option<Value>> {
        self.storage.find(group, version, resource, namespace, name).await
    }

    /// All stored objects of a resource in a namespace (`""`: all), ascending by name.
    pub async fn list(&self, group: &str, version: &str, resource: &str, namespace: &str) -> StatusResult<Vec<Value>> {
        self.storage.all(group, version, resource, namespace).await
    }
}

/// One admission plugin. The default methods admit everything unchanged.
#[async_trait]
pub trait AdmissionPlugin: Send + Sync {
    /// The name as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Whether the plugin wants to see such requests at all; keeps uninterested plugins off hot paths.
    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool;

    /// Whether the plugin calls webhooks or policies. Such plugins see to their own repetition.
    fn is_dynamic(&self) -> bool {
        false
    }

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
        if !std::mem::take(&mut request.reinvoke) {
            return Ok(());
        }
        for plugin in self.0.iter().filter(|p| !p.is_dynamic()) {
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
