//! Default classes of claims and ingresses, and growth of claims.
//!
//! Follows: `plugin/pkg/admission/{storage/storageclass/setdefault,storage/persistentvolume/resize,network/defaultingressclass}`.

use std::cmp::Reverse;

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::quantity::Quantity;
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The newest of the classes marked as default; of equally old ones the first by name.
fn default_class(classes: Vec<Value>, annotations: &[&str]) -> Option<String> {
    let marked = classes.into_iter().filter(|c| annotations.iter().any(|a| c.annotation(a) == Some("true")));
    let best = marked.min_by_key(|c| (Reverse(c.creation_timestamp().to_owned()), c.name().to_owned()));
    best.map(|c| c.name().to_owned())
}

/// A claim without class gets the default class.
pub struct DefaultStorageClass;

#[async_trait]
impl AdmissionPlugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create
            && subresource.is_empty()
            && gvr.group.is_empty()
            && gvr.resource == "persistentvolumeclaims"
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let claim = request.object.as_ref().unwrap_or(&Value::Null);
        let named = claim.at(&["spec", "storageClassName"]).is_some_and(|c| !c.is_null());
        if named || claim.annotation(BETA_CLASS).is_some() {
            return Ok(());
        }
        let classes = request.list("storage.k8s.io", "v1", "storageclasses", "").await?;
        let annotations =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        if let (Some(class), Some(claim)) = (default_class(classes, &annotations), request.object.as_mut()) {
            claim.set_at(&["spec", "storageClassName"], class.into());
        }
        Ok(())
    }
}

/// An ingress without class gets the default class.
pub struct DefaultIngressClass;

#[async_trait]
impl AdmissionPlugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create
            && subresource.is_empty()
            && gvr.group == "networking.k8s.io"
            && gvr.resource == "ingresses"
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let ingress = request.object.as_ref().unwrap_or(&Value::Null);
        let named = ingress.at(&["spec", "ingressClassName"]).is_some_and(|c| !c.is_null());
        if named || ingress.annotation("kubernetes.io/ingress.class").is_some() {
            return Ok(());
        }
        let classes = request.list("networking.k8s.io", "v1", "ingressclasses", "").await?;
        let class = default_class(classes, &["ingressclass.kubernetes.io/is-default-class"]);
        if let (Some(class), Some(ingress)) = (class, request.object.as_mut()) {
            ingress.set_at(&["spec", "ingressClassName"], class.into());
        }
        Ok(())
    }
}

/// A claim grows only when it is bound and its class allows it.
pub struct PersistentVolumeClaimResize;

#[async_trait]
impl AdmissionPlugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Update
            && subresource.is_empty()
            && gvr.group.is_empty()
            && gvr.resource == "persistentvolumeclaims"
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let (Some(new), Some(old)) = (&request.object, &request.old_object) else { return Ok(()) };
        let size = |claim: &Value| {
            let size = claim.at(&["spec", "resources", "requests", "storage"]);
            size.and_then(|s| Quantity::from_value(s).ok())
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        if old.str_at(&["status", "phase"]) != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = |claim: &Value| match claim.annotation(BETA_CLASS) {
            Some(class) => class.to_owned(),
            None => claim.str_at(&["spec", "storageClassName"]).to_owned(),
        };
        let name = class(new);
        let found = if name.is_empty() || name != class(old) {
            None
        } else {
            request.find("storage.k8s.io", "v1", "storageclasses", "", &name).await?
        };
        if found.is_some_and(|c| c["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
