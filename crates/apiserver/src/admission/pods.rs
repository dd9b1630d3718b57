//! RuntimeClass: the overhead and the scheduling of a pod's runtime class. PodResizeValidator: what a node can give to a
//! pod that is resized.
//!
//! Follows: `plugin/pkg/admission/{runtimeclass,podresize}`.

use apimachinery::Value;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::quantity::Quantity;
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use super::pod_resources::{ResourceList, pod_total};
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

/// A bound pod may not grow beyond its node, and only Linux nodes resize.
pub struct PodResizeValidator;

/// Why a pod with these requests does not fit.
fn beyond_node(requests: &ResourceList, allocatable: &ResourceList) -> Option<String> {
    let mut texts = Vec::new();
    for (name, milli) in [("cpu", true), ("memory", false)] {
        let Some(wanted) = requests.get(name) else { continue };
        let number = |q: &Quantity| if milli { q.milli_value() } else { q.value() };
        let there = allocatable.get(name);
        if there.map_or(wanted.sign() > 0, |there| wanted > there) {
            texts.push(format!("{name}, requested: {}, allocatable: {}", number(wanted), there.map_or(0, number)));
        }
    }
    (!texts.is_empty()).then(|| format!("node didn't have enough allocatable resources: {}", texts.join("; ")))
}

#[async_trait]
impl AdmissionPlugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        operation == Operation::Update && subresource == "resize" && gvr.group.is_empty() && gvr.resource == "pods"
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let (Some(pod), Some(old)) = (&request.object, &request.old_object) else { return Ok(()) };
        let name = pod.str_at(&["spec", "nodeName"]);
        // The generation counts changes of the spec: there is none when it stays.
        if name.is_empty() || pod.generation() == old.generation() {
            return Ok(());
        }
        let Some(node) = request.find("", "v1", "nodes", "", name).await? else {
            return Err(request.forbidden(format!("node {name:?} not found")));
        };
        let refuse = |reason: &str, text: String| {
            let status = *request.forbidden(text);
            Err(Box::new(status.with_cause(reason, "", "")))
        };
        if let Some(system) = node.label("kubernetes.io/os").filter(|os| *os != "linux") {
            let text = format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
            return refuse("UnsupportedPlatform", text);
        }
        let mut requests = pod_total(pod, "requests");
        requests.add(&ResourceList::read(&pod["spec"]["overhead"]));
        let allocatable = ResourceList::read(&node["status"]["allocatable"]);
        match beyond_node(&requests, &allocatable) {
            Some(text) => refuse("NodeCapacity", text),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn a_pod_grows_only_as_far_as_its_node_goes() {
        let node = ResourceList::read(&json!({"cpu": "2", "memory": "1Gi"}));
        let said = |wanted: Value| beyond_node(&ResourceList::read(&wanted), &node).unwrap_or_default();
        assert_eq!(said(json!({"cpu": "2", "memory": "1Gi", "example.com/gpu": "9"})), "");
        assert_eq!(
            said(json!({"cpu": "2500m", "memory": "2Gi"})),
            "node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: 2000; memory, requested: 2147483648, allocatable: 1073741824"
        );
    }
}
