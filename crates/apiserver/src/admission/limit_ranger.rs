//! LimitRanger: defaults, minima, maxima and ratios of the resources of containers, pods and claims in a namespace.
//!
//! Follows: `plugin/pkg/admission/limitranger`.

use apimachinery::Value;
use apimachinery::field::aggregate_texts;
use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::quantity::Quantity;
use apimachinery::status::StatusResult;
use async_trait::async_trait;

use super::pod_resources::{ResourceList, pod_total};
use super::{AdmissionPlugin, AdmissionRequest, Operation};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

impl LimitRanger {
    async fn ranges(request: &AdmissionRequest<'_>) -> StatusResult<Vec<Value>> {
        if request.old_object.as_ref().is_some_and(ObjectMeta::is_terminating) {
            return Ok(Vec::new());
        }
        request.list("", "v1", "limitranges", &request.namespace).await
    }
}

#[async_trait]
impl AdmissionPlugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        gvr.group.is_empty()
            && matches!(
                (gvr.resource.as_str(), operation, subresource),
                ("pods", Operation::Create, "")
                    | ("pods", Operation::Update, "resize")
                    | ("persistentvolumeclaims", Operation::Create | Operation::Update, "")
            )
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.gvr.resource != "pods" {
            return Ok(());
        }
        let ranges = Self::ranges(request).await?;
        if let Some(pod) = request.object.as_mut() {
            ranges.iter().for_each(|range| set_defaults(range, pod));
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let ranges = Self::ranges(request).await?;
        let Some(object) = &request.object else { return Ok(()) };
        for range in &ranges {
            let errors =
                if request.gvr.resource == "pods" { check_pod(range, object) } else { check_claim(range, object) };
            if !errors.is_empty() {
                return Err(request.forbidden(aggregate_texts(errors)));
            }
        }
        Ok(())
    }
}

/// Fills in the default requests and limits of containers and notes what it did.
fn set_defaults(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (Value::object(), Value::object());
    for limit in range.array_at(&["spec", "limits"]).iter().filter(|l| l.str_at(&["type"]) == "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (name, quantity) in limit[from].as_object().into_iter().flat_map(|m| m.iter()) {
                to[name.as_str()] = quantity.clone();
            }
        }
    }
    let mut notes = Vec::new();
    for (key, shown) in [("containers", "container"), ("initContainers", "init container")] {
        let Some(containers) = pod.at_mut(&["spec", key]).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let name = container.str_at(&["name"]).to_owned();
            for (kind, word, defaults) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                let mut set = Vec::new();
                for (resource, quantity) in defaults.as_object().into_iter().flat_map(|m| m.iter()) {
                    let path = ["resources", kind, resource.as_str()];
                    if container.at(&path).is_none() {
                        container.set_at(&path, quantity.clone());
                        set.push(resource.as_str());
                    }
                }
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {shown} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.set_at(&["metadata", "annotations", ANNOTATION], note.into());
    }
}

fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in range.array_at(&["spec", "limits"]) {
        match limit.str_at(&["type"]) {
            "Container" => {
                for key in ["containers", "initContainers"] {
                    for container in pod.array_at(&["spec", key]) {
                        let of =
                            |kind: &str| ResourceList::read(container.at(&["resources", kind]).unwrap_or(&Value::Null));
                        check(limit, "Container", &of("requests"), &of("limits"), &mut errors);
                    }
                }
            }
            "Pod" => check(limit, "Pod", &pod_total(pod, "requests"), &pod_total(pod, "limits"), &mut errors),
            _ => {}
        }
    }
    errors
}

fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let requests = ResourceList::read(claim.at(&["spec", "resources", "requests"]).unwrap_or(&Value::Null));
    let kind = "PersistentVolumeClaim";
    for limit in range.array_at(&["spec", "limits"]).iter().filter(|l| l.str_at(&["type"]) == kind) {
        for (name, enforced) in &ResourceList::read(&limit["min"]).0 {
            errors.extend(min_error(kind, name, enforced, requests.get(name), None));
        }
        for (name, enforced) in &ResourceList::read(&limit["max"]).0 {
            let head = format!("maximum {name} usage per {kind} is {enforced}");
            match requests.get(name) {
                None => errors.push(format!("{head}.  No request is specified")),
                Some(request) if request > enforced => errors.push(format!("{head}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    errors
}

fn check(limit: &Value, kind: &str, requests: &ResourceList, limits: &ResourceList, errors: &mut Vec<String>) {
    for (name, enforced) in &ResourceList::read(&limit["min"]).0 {
        errors.extend(min_error(kind, name, enforced, requests.get(name), limits.get(name)));
    }
    for (name, enforced) in &ResourceList::read(&limit["max"]).0 {
        let head = format!("maximum {name} usage per {kind} is {enforced}");
        match (limits.get(name), requests.get(name)) {
            (None, _) => errors.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if limit > enforced => errors.push(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if request > enforced => errors.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (name, enforced) in &ResourceList::read(&limit["maxLimitRequestRatio"]).0 {
        let head = format!("{name} max limit to request ratio per {kind} is {enforced}");
        let set = |list: &ResourceList| list.get(name).filter(|q| !q.is_zero()).map(Quantity::as_f64);
        match (set(requests), set(limits)) {
            (None, _) => errors.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit / request;
                if ratio > enforced.as_f64() {
                    errors.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn min_error(
    kind: &str,
    name: &str,
    enforced: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let head = format!("minimum {name} usage per {kind} is {enforced}");
    match (request, limit) {
        (None, _) => Some(format!("{head}.  No request is specified")),
        (Some(request), _) if request < enforced => Some(format!("{head}, but request is {request}")),
        (_, Some(limit)) if limit < enforced => Some(format!("{head}, but limit is {limit}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn resources_outside_of_a_range_are_refused() {
        let range = json!({"spec": {"limits": [{"type": "Container", "min": {"memory": "10Mi"}, "max": {"cpu": "1"},
            "maxLimitRequestRatio": {"cpu": "2"}}]}});
        for (resources, want) in [
            (json!({"requests": {"memory": "10Mi", "cpu": "1"}, "limits": {"cpu": "1"}}), vec![]),
            (
                json!({"requests": {"memory": "1Mi", "cpu": "1"}, "limits": {"cpu": "1"}}),
                vec!["minimum memory usage per Container is 10Mi, but request is 1Mi"],
            ),
            (
                json!({"requests": {"memory": "1Gi", "cpu": "100m"}, "limits": {"cpu": "1"}}),
                vec!["cpu max limit to request ratio per Container is 2, but provided ratio is 10.000000"],
            ),
            (
                json!({"requests": {"memory": "1Gi", "cpu": "2"}, "limits": {"cpu": "2"}}),
                vec!["maximum cpu usage per Container is 1, but limit is 2"],
            ),
        ] {
            let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            assert_eq!(check_pod(&range, &pod), want);
        }
    }
}
