//! What a kubelet or a scheduler reports about a pod's devices and containers.

use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{self, Errors, Report};
use crate::names;

/// The claim that the scheduler made for extended resources of containers.
pub(crate) fn extended_claim(pod: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(status) = pod.v("status").o("extendedResourceClaimStatus") else { return };
    let mappings = status.list("requestMappings");
    let list = path.child("requestMappings");
    if mappings.is_empty() {
        errors.required(&list, "at least one request mapping is required");
    }
    let identity = |m: &Value| ["containerName", "resourceName", "requestName"].map(|key| m.s(key).to_owned());
    let spec = pod.v("spec");
    for (i, mapping) in mappings.iter().enumerate() {
        let (at, name, resource) = (list.index(i), mapping.s("containerName"), mapping.s("resourceName"));
        let container =
            ["containers", "initContainers"].iter().flat_map(|l| spec.list(l)).find(|c| c.s("name") == name);
        match container {
            None => errors.invalid(
                &at.child("containerName"),
                name,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(container) if !container.v("resources").members("requests").contains_key(resource) => errors.invalid(
                &at.child("resourceName"),
                resource,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                 spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        check::dns_label(mapping.s("requestName"), &path.child("requestName"), errors);
        if mappings[..i].iter().any(|other| identity(other) == identity(mapping)) {
            for key in ["containerName", "resourceName", "requestName"] {
                errors.duplicate(&at.child(key), mapping.s(key));
            }
        }
    }
    let (claim, at) = (status.s("resourceClaimName"), path.child("resourceClaimName"));
    if claim.is_empty() {
        errors.required(&at, "");
    } else {
        errors.messages(&at, claim, names::name_is_dns_subdomain(claim, false));
    }
}

/// Users and devices of containers.
pub(crate) fn container_statuses(pod: &Value, path: &FieldPath, errors: &mut Errors) {
    let (status, spec) = (pod.v("status"), pod.v("spec"));
    const LISTS: [(&str, Option<&str>); 3] = [
        ("containerStatuses", Some("containers")),
        ("initContainerStatuses", Some("initContainers")),
        ("ephemeralContainerStatuses", None),
    ];
    for (list, _) in LISTS {
        for (i, one) in status.list(list).iter().enumerate() {
            let Some(linux) = one.v("user").o("linux") else { continue };
            let at = path.child(list).index(i).children(&["user", "linux"]);
            match spec.v("os").s("name") {
                "windows" => errors.forbidden(&at, "cannot be set for a windows pod"),
                "" | "linux" => linux_user(linux, &at, errors),
                _ => {}
            }
        }
    }
    for (list, containers) in LISTS {
        for (i, one) in status.list(list).iter().enumerate() {
            let at = path.child(list).index(i).child("allocatedResourcesStatus");
            let allocated = one.list("allocatedResourcesStatus");
            match containers {
                None if !allocated.is_empty() => errors.forbidden(&at, "must not be specified in container status"),
                None => {}
                Some(containers) => {
                    let container = spec.list(containers).iter().find(|c| c.s("name") == one.s("name"));
                    for (j, resource) in allocated.iter().enumerate() {
                        allocated_resource(resource, container, &at.index(j), errors);
                    }
                }
            }
        }
    }
}

fn linux_user(user: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut id = |value: i64, at: &FieldPath| {
        if !(0..=i64::from(i32::MAX)).contains(&value) {
            errors.invalid(at, value, names::inclusive_range_error(0, i64::from(i32::MAX)));
        }
    };
    id(user.i("uid"), &path.child("uid"));
    id(user.i("gid"), &path.child("gid"));
    for (i, group) in user.list("supplementalGroups").iter().enumerate() {
        id(group.as_i64().unwrap_or_default(), &path.child("supplementalGroups").index(i));
    }
}

/// The longest message about the health of a device.
const MAX_HEALTH_MESSAGE: usize = 1024;

fn allocated_resource(resource: &Value, container: Option<&Value>, path: &FieldPath, errors: &mut Errors) {
    let name = resource.s("name");
    if let Some(container) = container {
        let resources = container.v("resources");
        let (found, wanted) = if name.starts_with("claim:") {
            let claim = |c: &Value| match c.s("request") {
                "" => format!("claim:{}", c.s("name")),
                request => format!("claim:{}/{request}", c.s("name")),
            };
            (
                resources.list("claims").iter().any(|c| claim(c) == name),
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
                 'claim:<claimName>' if request is empty",
            )
        } else {
            (resources.members("requests").contains_key(name), "must match one of the container's resource requests")
        };
        if !found {
            errors.invalid(&path.child("name"), name, wanted);
        }
    }
    let devices = resource.list("resources");
    for (i, device) in devices.iter().enumerate() {
        let at = path.child("resources").index(i);
        let health = device.s("health");
        const HEALTH: &[&str] = &["Healthy", "Unhealthy", "Unknown"];
        if !HEALTH.contains(&health) {
            errors.not_supported(&at.child("health"), health, HEALTH);
        }
        if let Some(message) = device.os("message") {
            if message.is_empty() {
                errors.required(&at.child("message"), "must be non-empty if specified");
            } else if message.len() > MAX_HEALTH_MESSAGE {
                errors.push(FieldError::too_long(&at.child("message"), MAX_HEALTH_MESSAGE as i64));
            }
        }
        let id = device.s("resourceID");
        if devices[..i].iter().any(|other| other.s("resourceID") == id) {
            errors.duplicate(&at.child("resourceID"), id);
        }
    }
}
