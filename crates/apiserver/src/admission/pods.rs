//! RuntimeClass: the overhead and the scheduling of a pod's runtime class.
//!
//! Follows: `plugin/pkg/admission/runtimeclass`.

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use super::pod_resources::ResourceList;
use super::{AdmissionPlugin, AdmissionRequest, Operation};

pub struct RuntimeClass;

impl RuntimeClass {
    async fn class(request: &AdmissionRequest<'_>) -> StatusResult<Option<Value>> {
        let pod = request.object.as_ref().unwrap_or(&Value::Null);
        let Some(name) = pod.at(&["spec", "runtimeClassName"]).and_then(Value::as_str) else { return Ok(None) };
        match request.find("node.k8s.io", "v1", "runtimeclasses", "", name).await? {
            Some(class) => Ok(Some(class)),
            None => Err(request.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }
}

fn overhead(class: Option<&Value>) -> Option<ResourceList> {
    class.filter(|c| c["overhead"].is_object()).map(|c| ResourceList::read(&c["overhead"]["podFixed"]))
}

#[async_trait]
impl AdmissionPlugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Create && subresource.is_empty() && gvr.group.is_empty() && gvr.resource == "pods"
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let Some(class) = Self::class(request).await? else { return Ok(()) };
        let pod = request.object.as_ref().unwrap_or(&Value::Null);
        let given = ResourceList::read(&pod["spec"]["overhead"]);
        let fixed = overhead(Some(&class));
        if let Some(fixed) = &fixed
            && !given.is_empty()
            && given != *fixed
        {
            let text = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(request.forbidden(text));
        }
        let selector = class.at(&["scheduling", "nodeSelector"]).and_then(Value::as_object);
        for (key, value) in selector.into_iter().flat_map(|m| m.iter()) {
            let present = pod.at(&["spec", "nodeSelector", key]);
            if present.is_some_and(|p| p != value) {
                let (value, present) = (value.as_str().unwrap_or(""), present.and_then(Value::as_str).unwrap_or(""));
                return Err(request.forbidden(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {present}"
                )));
            }
        }
        let Some(pod) = request.object.as_mut() else { return Ok(()) };
        if fixed.is_some() && class["overhead"]["podFixed"].is_object() {
            pod.set_at(&["spec", "overhead"], class["overhead"]["podFixed"].clone());
        }
        for (key, value) in selector.into_iter().flat_map(|m| m.iter()) {
            pod.set_at(&["spec", "nodeSelector", key], value.clone());
        }
        let mut tolerations = pod.array_at(&["spec", "tolerations"]).to_vec();
        for toleration in class.array_at(&["scheduling", "tolerations"]) {
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
            }
        }
        if !tolerations.is_empty() {
            pod.set_at(&["spec", "tolerations"], Value::Array(tolerations));
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let class = Self::class(request).await?;
        let pod = request.object.as_ref().unwrap_or(&Value::Null);
        match overhead(class.as_ref()) {
            Some(fixed) if fixed != ResourceList::read(&pod["spec"]["overhead"]) => {
                Err(request.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
            }
            None if pod["spec"]["overhead"].is_object() => {
                Err(request
                    .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
            }
            _ => Ok(()),
        }
    }
}
