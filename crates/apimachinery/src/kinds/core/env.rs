//! Environment of containers and the downward API's field references.

use super::resources;
use super::volumes::no_backsteps;
use crate::field::FieldPath;
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, dns_label, qualified_name};
use crate::names;

pub(crate) fn env(vars: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (i, var) in vars.iter().enumerate() {
        let path = path.index(i);
        let name = var.s("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.messages(&path.child("name"), name, names::is_relaxed_env_var_name(name));
        }
        if let Some(from) = var.o("valueFrom") {
            value_from(var, from, &path.child("valueFrom"), errors);
        }
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(var: &Value, from: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut count = 0;
    if let Some(field) = from.o("fieldRef") {
        count += 1;
        object_field(field, ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = from.o("resourceFieldRef") {
        count += 1;
        resource_field(resource, &path.child("resourceFieldRef"), false, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(selector) = from.o(key) {
            count += 1;
            key_selector(selector, &path.child(key), errors);
        }
    }
    if let Some(file) = from.o("fileKeyRef") {
        count += 1;
        file_key(file, &path.child("fileKeyRef"), errors);
    }
    if count == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !var.s("value").is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

/// `metadata.labels['key']` as path and key.
fn subscripted(path: &str) -> Option<(&str, &str)> {
    let (head, key) = path.strip_suffix("']")?.split_once("['")?;
    (!head.is_empty()).then_some((head, key))
}

/// What the downward API understands; the message of what it does not.
fn convert_label(version: &str, label: &str) -> Result<String, String> {
    if version != "v1" {
        return Err(format!("unsupported pod version: {version}"));
    }
    if let Some((path, _)) = subscripted(label) {
        return match path {
            "metadata.annotations" | "metadata.labels" => Ok(label.to_owned()),
            _ => Err(format!("field label does not support subscript: {label}")),
        };
    }
    match label {
        "metadata.annotations"
        | "metadata.labels"
        | "metadata.name"
        | "metadata.namespace"
        | "metadata.uid"
        | "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.serviceAccountName"
        | "spec.schedulerName"
        | "status.phase"
        | "status.hostIP"
        | "status.hostIPs"
        | "status.podIP"
        | "status.podIPs" => Ok(label.to_owned()),
        "spec.host" => Ok("spec.nodeName".to_owned()),
        _ => Err(format!("field label not supported: {label}")),
    }
}

/// A reference to a field of the pod, out of `supported` (sorted).
pub(crate) fn object_field(field: &Value, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    for key in ["apiVersion", "fieldPath"] {
        if field.s(key).is_empty() {
            errors.required(&path.child(key), "");
            return;
        }
    }
    let label = field.s("fieldPath");
    let converted = match convert_label(field.s("apiVersion"), label) {
        Ok(converted) => converted,
        Err(message) => {
            errors.invalid(&path.child("fieldPath"), label, format!("error converting fieldPath: {message}"));
            return;
        }
    };
    match subscripted(&converted) {
        Some(("metadata.annotations", key)) => qualified_name(&key.to_lowercase(), path, errors),
        Some(("metadata.labels", key)) => qualified_name(key, path, errors),
        Some((head, _)) => errors.invalid(path, head, "does not support subscript"),
        None if !supported.contains(&converted.as_str()) => {
            errors.not_supported(&path.child("fieldPath"), converted, supported);
        }
        None => {}
    }
}

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to a container's requests or limits.
pub(crate) fn resource_field(field: &Value, path: &FieldPath, volume: bool, errors: &mut Errors) {
    let resource = field.s("resource");
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if volume && field.s("containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !huge {
        errors.not_supported(&path.child("resource"), resource, RESOURCES);
    }
    let divisor = resources::canonical(field.v("divisor"));
    if divisor.is_empty() || divisor == "0" {
        return;
    }
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let sizes = |what: &str| {
        format!(
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {what} resource"
        )
    };
    let at = path.child("divisor");
    match resource {
        "limits.cpu" | "requests.cpu" if !["1m", "1"].contains(&divisor.as_str()) => {
            errors.invalid(&at, resource, "only divisor's values 1m and 1 are supported with the cpu resource");
        }
        "limits.memory" | "requests.memory" if !SIZES.contains(&divisor.as_str()) => {
            errors.invalid(&at, resource, sizes("memory"));
        }
        "limits.ephemeral-storage" | "requests.ephemeral-storage" if !SIZES.contains(&divisor.as_str()) => {
            errors.invalid(&at, resource, sizes("local ephemeral storage"));
        }
        _ if huge && !SIZES.contains(&divisor.as_str()) => errors.invalid(&at, resource, sizes("hugepages")),
        _ => {}
    }
}

fn key_selector(selector: &Value, path: &FieldPath, errors: &mut Errors) {
    let name = selector.s("name");
    errors.messages(&path.child("name"), name, names::name_is_dns_subdomain(name, false));
    let key = selector.s("key");
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.messages(&path.child("key"), key, names::is_config_map_key(key));
    }
}

fn file_key(file: &Value, path: &FieldPath, errors: &mut Errors) {
    let (key, volume, target) = (file.s("key"), file.s("volumeName"), file.s("path"));
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.messages(&path.child("key"), key, names::is_relaxed_env_var_name(key));
    }
    if volume.is_empty() {
        errors.required(&path.child("volumeName"), "");
    } else {
        dns_label(volume, &path.child("volumeName"), errors);
    }
    if target.is_empty() {
        errors.required(&path.child("path"), "");
    } else {
        no_backsteps(target, &path.child("path"), errors);
    }
}

pub(crate) fn env_from(sources: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (i, source) in sources.iter().enumerate() {
        let at = path.index(i);
        let prefix = source.s("prefix");
        if !prefix.is_empty() {
            errors.messages(&at.child("prefix"), prefix, names::is_relaxed_env_var_name(prefix));
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let Some(reference) = source.o(key) else { continue };
            count += 1;
            let (name, at) = (reference.s("name"), at.child(key).child("name"));
            if name.is_empty() {
                errors.required(&at, "");
            } else {
                errors.messages(&at, name, names::name_is_dns_subdomain(name, true));
            }
        }
        // Upstream reports these two at the list.
        if count == 0 {
            errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if count > 1 {
            errors.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
}
