//! Which fields the strategy of a resource resets in a write, and which therefore cannot be owned through it.
//!
//! Follows: `GetResetFields` and `GetResetFieldsFilter` of the strategies under `k8s.io/kubernetes/pkg/registry`.

use std::collections::BTreeMap;

use super::path::PathElement;
use super::set::{Filter, Set};

/// Resources whose main endpoint resets `status`, with what their `/status` resets, beside `spec`.
static STATUS: &[(&str, &str, &[&[&str]])] = &[
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", &[&["metadata"]]),
    ("apiextensions.k8s.io", "customresourcedefinitions", &[]),
    ("apiregistration.k8s.io", "apiservices", &[&["metadata"]]),
    ("apps", "daemonsets", &[]),
    ("apps", "deployments", &[&["metadata", "labels"]]),
    ("apps", "replicasets", &[]),
    ("apps", "statefulsets", &[]),
    ("autoscaling", "horizontalpodautoscalers", &[]),
    ("batch", "cronjobs", &[]),
    ("batch", "jobs", &[]),
    ("", "namespaces", &[]),
    ("", "nodes", &[]),
    ("", "persistentvolumeclaims", &[]),
    ("", "persistentvolumes", &[]),
    ("", "pods", &[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
    ("", "replicationcontrollers", &[]),
    ("", "resourcequotas", &[]),
    ("", "services", &[]),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", &[&["metadata"]]),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", &[&["metadata"]]),
    ("networking.k8s.io", "ingresses", &[]),
    ("networking.k8s.io", "servicecidrs", &[&["metadata"]]),
    ("policy", "poddisruptionbudgets", &[]),
    ("resource.k8s.io", "resourceclaims", &[&["metadata"]]),
    ("storage.k8s.io", "volumeattachments", &[&["metadata"]]),
];

/// What cannot be owned through an endpoint of a built-in resource; `None` when everything can.
pub fn filter(group: &str, resource: &str, subresource: &str) -> Option<Filter> {
    let exclude = |paths: &[&[&str]]| Some(Filter::Exclude(Set::of_fields(paths)));
    match (group, resource, subresource) {
        ("certificates.k8s.io", "certificatesigningrequests", "") => return exclude(&[&["spec"], &["status"]]),
        ("certificates.k8s.io", "certificatesigningrequests", "status") => {
            return exclude(&[&["spec"], &["status", "conditions"]]);
        }
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => {
            return exclude(&[&["spec"], &["status", "certificate"]]);
        }
        ("networking.k8s.io", "servicecidrs", "") => return exclude(&[&["status"]]),
        ("", "namespaces", "finalize") => return exclude(&[&["status"]]),
        ("", "pods", "ephemeralcontainers") => {
            return Some(Filter::Include(vec![pattern(&[Some("spec"), Some("ephemeralContainers")])]));
        }
        // What a resize does not change is dropped, and yet owned.
        ("", "pods", "resize") => return None,
        _ => {}
    }
    let (_, _, also) = STATUS.iter().find(|(g, r, _)| *g == group && *r == resource)?;
    match subresource {
        "" => exclude(&[&["status"]]),
        "status" => {
            let mut paths = vec![&["spec"][..]];
            paths.extend(also.iter());
            exclude(&paths)
        }
        _ => None,
    }
}

fn pattern(steps: &[Option<&str>]) -> Vec<Option<PathElement>> {
    steps.iter().map(|step| step.map(PathElement::field)).collect()
}

/// The filters of a built-in resource's endpoint, the same for each of its versions (`["autoscaling/v1", ...]`).
pub fn filters(group: &str, resource: &str, subresource: &str, api_versions: &[&str]) -> BTreeMap<String, Filter> {
    match filter(group, resource, subresource) {
        Some(filter) => api_versions.iter().map(|v| ((*v).to_owned(), filter.clone())).collect(),
        None => BTreeMap::new(),
    }
}

/// The filters of a custom resource: with a status subresource the main endpoint resets `status`, and `/status` resets
/// everything else.
pub fn custom_resource_filters(
    api_version: &str,
    subresource: &str,
    has_status_subresource: bool,
) -> BTreeMap<String, Filter> {
    let filter = match subresource {
        "" if has_status_subresource => Filter::Exclude(Set::of_fields(&[&["status"]])),
        "status" => Filter::Exclude(Set::of_fields(&[&["metadata"], &["spec"]])),
        _ => return BTreeMap::new(),
    };
    BTreeMap::from([(api_version.to_owned(), filter)])
}
