//! Defaults of pod specs, wherever they occur, and the further ones of Pods themselves.
//!
//! Follows `pkg/apis/core/v1/defaults.go`: a template gets [`pod_spec`] only, so that a controller's template does not
//! change when a default is added for Pods.

use super::resources;
use crate::json::{Map, Value};
use crate::kinds::access::{Fields, default_integer, default_string, default_to, each, object_at, present};

/// What every pod spec gets.
pub(crate) fn pod_spec(spec: &mut Value) {
    default_string(spec, "dnsPolicy", "ClusterFirst");
    default_string(spec, "restartPolicy", "Always");
    default_to(spec, "securityContext", Value::object());
    default_to(spec, "terminationGracePeriodSeconds", 30i64);
    default_string(spec, "schedulerName", "default-scheduler");
    for v in each(spec, "volumes") {
        volume(v);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in each(spec, list) {
            container(c);
        }
    }
    if let Some(overhead) = present(spec, "overhead") {
        resources::round_up(overhead);
    }
    if let Some(r) = present(spec, "resources") {
        resources::requirements(r);
    }
    // `serviceAccount` is the deprecated alias; both are written.
    let name =
        if spec.s("serviceAccountName").is_empty() { spec.s("serviceAccount") } else { spec.s("serviceAccountName") };
    if !name.is_empty() {
        let name: Value = name.into();
        let spec = spec.make_object();
        spec.insert("serviceAccountName", name.clone());
        spec.insert("serviceAccount", name);
    }
}

/// The template of a controller.
pub(crate) fn pod_template(template: &mut Value) {
    let template = template.make_object();
    template.object_mut("metadata");
    pod_spec(template.get_or_insert_with("spec", Value::object));
}

/// What a Pod gets beyond its spec's defaults.
pub(crate) fn pod(pod: &mut Value) {
    let spec = object_at(pod, "spec");
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for c in each(spec, list) {
            requests_from_limits(c);
        }
    }
    pod_level_resources(spec);
    default_to(spec, "enableServiceLinks", true);
    if spec.b("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for c in each(spec, list) {
                for port in each(c, "ports") {
                    let number = port.i("containerPort");
                    if number != 0 {
                        default_integer(port, "hostPort", number);
                    }
                }
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = container.v("resources").members("limits").clone();
    if limits.is_empty() {
        return;
    }
    let requests = object_at(object_at(container, "resources"), "requests").make_object();
    for (name, value) in limits {
        requests.get_or_insert_with(&name, || value);
    }
}

/// Pod-level requests and hugepage limits follow from the containers and from the pod-level limits.
fn pod_level_resources(spec: &mut Value) {
    let Some(resources) = spec.o("resources") else { return };
    let (limits, requests) = (resources.members("limits").clone(), resources.members("requests").clone());
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut new_limits = limits.clone();
    for (name, total) in resources::aggregate(spec, "limits") {
        if name.starts_with("hugepages-") && !requests.contains_key(&name) {
            new_limits.get_or_insert_with(&name, || total);
        }
    }
    let mut new_requests = requests.clone();
    if !new_limits.is_empty() {
        for (name, total) in resources::aggregate(spec, "requests") {
            if name == "cpu" || name == "memory" {
                new_requests.get_or_insert_with(&name, || total);
            }
        }
        for (name, limit) in new_limits.iter() {
            if resources::is_pod_level(name) {
                new_requests.get_or_insert_with(name, || limit.clone());
            }
        }
    }
    let resources = object_at(spec, "resources").make_object();
    set_list(resources, "limits", new_limits);
    set_list(resources, "requests", new_requests);
}

fn set_list(resources: &mut Map, key: &str, list: Map) {
    if !list.is_empty() {
        resources.insert(key, list.into());
    }
}

fn container(c: &mut Value) {
    if c.s("imagePullPolicy").is_empty() {
        let policy = pull_policy(c.s("image"));
        c.make_object().insert("imagePullPolicy", policy.into());
    }
    default_string(c, "terminationMessagePath", "/dev/termination-log");
    default_string(c, "terminationMessagePolicy", "File");
    resources::requirements(object_at(c, "resources"));
    for port in each(c, "ports") {
        default_string(port, "protocol", "TCP");
    }
    for env in each(c, "env") {
        let Some(from) = present(env, "valueFrom") else { continue };
        if let Some(field) = present(from, "fieldRef") {
            default_string(field, "apiVersion", "v1");
        }
        if let Some(field) = present(from, "resourceFieldRef") {
            default_to(field, "divisor", "0");
        }
        if let Some(file) = present(from, "fileKeyRef") {
            default_to(file, "optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = present(c, name) {
            probe(p);
        }
    }
    if let Some(lifecycle) = present(c, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(get) = present(lifecycle, name).and_then(|h| present(h, "httpGet")) {
                http_get(get);
            }
        }
    }
}

fn probe(p: &mut Value) {
    for (key, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_integer(p, key, value);
    }
    if let Some(get) = present(p, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = present(p, "grpc") {
        default_to(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    default_string(get, "path", "/");
    default_string(get, "scheme", "HTTP");
}

/// `Always` for the tag `latest`, also when it is implied; `IfNotPresent` for any other tag and for digests.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    // A reference the parser refuses has no tag, so it counts as one that need not be pulled again.
    match image_tag(image) {
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let after_slash = name.rfind('/').map_or(0, |i| i + 1);
    let (repository, tag) = match name[after_slash..].find(':') {
        Some(i) => (&name[..after_slash + i], Some(&name[after_slash + i + 1..])),
        None => (name, None),
    };
    let valid_path = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
            && p.as_bytes()[0].is_ascii_alphanumeric()
            && p.as_bytes()[p.len() - 1].is_ascii_alphanumeric()
    };
    let mut parts = repository.split('/').peekable();
    let first_is_host = repository.contains('/')
        && parts
            .peek()
            .is_some_and(|h| h.contains(['.', ':']) || *h == "localhost" || h.bytes().any(|b| b.is_ascii_uppercase()));
    if first_is_host {
        parts.next();
    }
    const NAME_MAX: usize = 255;
    let path: Vec<&str> = parts.collect();
    if !path.iter().all(|part| valid_path(part)) || path.join("/").len() > NAME_MAX {
        return None;
    }
    match (tag, digest) {
        (Some(tag), _) => Some(tag),
        (None, Some(_)) => None,
        (None, None) => Some("latest"),
    }
}

/// A volume of a pod, which is an emptyDir when it names no source.
fn volume(v: &mut Value) {
    let no_source = v.as_object().is_some_and(|m| m.iter().all(|(k, v)| k == "name" || v.is_null()));
    if no_source {
        v.make_object().insert("emptyDir", Value::object());
    }
    volume_source(v);
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = present(v, name) {
            default_to(source, "defaultMode", 0o644);
        }
    }
    if let Some(source) = present(v, "downwardAPI") {
        downward_items(source);
    }
    if let Some(projected) = present(v, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = present(source, "serviceAccountToken") {
                default_to(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = present(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(image) = present(v, "image")
        && image.s("pullPolicy").is_empty()
    {
        let policy = pull_policy(image.s("reference"));
        image.make_object().insert("pullPolicy", policy.into());
    }
    if let Some(template) = present(v, "ephemeral").and_then(|e| present(e, "volumeClaimTemplate")) {
        object_at(template, "metadata");
        claim_spec(object_at(template, "spec"));
    }
}

/// The sources that pods and persistent volumes share.
pub(crate) fn volume_source(v: &mut Value) {
    if let Some(path) = present(v, "hostPath") {
        default_to(path, "type", "");
    }
    if let Some(iscsi) = present(v, "iscsi") {
        default_string(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = present(v, "rbd") {
        default_string(rbd, "pool", "rbd");
        default_string(rbd, "user", "admin");
        default_string(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = present(v, "azureDisk") {
        default_to(disk, "cachingMode", "ReadWrite");
        default_to(disk, "kind", "Shared");
        default_to(disk, "fsType", "ext4");
        default_to(disk, "readOnly", false);
    }
    if let Some(scale) = present(v, "scaleIO") {
        default_string(scale, "storageMode", "ThinProvisioned");
        default_string(scale, "fsType", "xfs");
    }
}

fn downward_items(source: &mut Value) {
    for item in each(source, "items") {
        if let Some(field) = present(item, "fieldRef") {
            default_string(field, "apiVersion", "v1");
        }
        if let Some(field) = present(item, "resourceFieldRef") {
            default_to(field, "divisor", "0");
        }
    }
}

/// The spec of a claim, in a PersistentVolumeClaim and in templates of one.
pub(crate) fn claim_spec(spec: &mut Value) {
    default_to(spec, "volumeMode", "Filesystem");
    resources::requirements(object_at(spec, "resources"));
}
