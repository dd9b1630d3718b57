//! Containers of a pod: regular, init and ephemeral.

use super::volumes::{self, Volumes};
use super::{env, probes, resources, security};
use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, dns_label, port_number};
use crate::kinds::core::pod_spec::{PodOptions, SpecView};
use crate::names;

/// Every container of a pod spec with its path, init containers first.
pub(crate) fn all<'a>(spec: &'a Value, path: &FieldPath) -> Vec<(&'a Value, FieldPath)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| {
            let path = path.child(list);
            spec.list(list).iter().enumerate().map(move |(i, c)| (c, path.index(i)))
        })
        .collect()
}

pub(crate) fn containers(
    view: &SpecView<'_>,
    vols: &Volumes<'_>,
    path: &FieldPath,
    options: PodOptions,
    errors: &mut Errors,
) {
    let list = view.spec.list("containers");
    if list.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, container) in list.iter().enumerate() {
        let path = path.index(i);
        common(container, view, vols, &path, options, errors);
        let name = container.s("name");
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            names.push(name);
        }
        if let Some(lifecycle) = container.o("lifecycle") {
            probes::lifecycle(lifecycle, view, &path.child("lifecycle"), errors);
        }
        probes::of_container(container, view, &path, errors);
        restart_policy(container, &path, errors);
    }
    host_ports(list, path, errors);
}

pub(crate) fn init_containers(
    view: &SpecView<'_>,
    vols: &Volumes<'_>,
    path: &FieldPath,
    options: PodOptions,
    errors: &mut Errors,
) {
    let mut names: Vec<&str> = view.spec.list("containers").iter().map(|c| c.s("name")).collect();
    for (i, container) in view.spec.list("initContainers").iter().enumerate() {
        let at = path.index(i);
        common(container, view, vols, &at, options, errors);
        match container.os("restartPolicy") {
            None if !container.list("restartPolicyRules").is_empty() => {
                errors.required(&at.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
            }
            None => {}
            Some(_) => restart_policy(container, &at, errors),
        }
        let sidecar = container.s("restartPolicy") == "Always";
        let name = container.s("name");
        if names.contains(&name) {
            errors.duplicate(&at.child("name"), name);
        } else if !name.is_empty() {
            names.push(name);
        }
        host_ports(std::slice::from_ref(container), path, errors);
        if sidecar {
            if let Some(lifecycle) = container.o("lifecycle") {
                probes::lifecycle(lifecycle, view, &at.child("lifecycle"), errors);
            }
            probes::of_container(container, view, &at, errors);
        } else {
            for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container.has(key) {
                    errors.forbidden(&at.child(key), "may not be set for init containers without restartPolicy=Always");
                }
            }
            for (j, policy) in container.list("resizePolicy").iter().enumerate() {
                if policy.s("restartPolicy") == "RestartContainer" && !options.old_restart_in_init {
                    errors.invalid(
                        &at.child("resizePolicy").index(j).child("restartPolicy"),
                        "RestartContainer",
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    );
                }
            }
        }
    }
}

pub(crate) fn ephemeral_containers(
    view: &SpecView<'_>,
    vols: &Volumes<'_>,
    path: &FieldPath,
    options: PodOptions,
    errors: &mut Errors,
) {
    let others: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| view.spec.list(l)).map(|c| c.s("name")).collect();
    let mut names = others.clone();
    for (i, container) in view.spec.list("ephemeralContainers").iter().enumerate() {
        let path = path.index(i);
        common(container, view, vols, &path, options, errors);
        image_whitespace(container, &path, errors);
        let name = container.s("name");
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            names.push(name);
        }
        let target = container.s("targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        // In the order of the type's fields.
        for key in [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ] {
            let set = match container.o(key) {
                None => false,
                Some(Value::Array(a)) => !a.is_empty(),
                Some(v) if key == "resources" => !crate::kinds::access::is_zero(v),
                Some(_) => true,
            };
            if set {
                errors.forbidden(&path.child(key), "cannot be set for an Ephemeral Container");
            }
        }
        for (j, mount) in container.list("volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !mount.s(key).is_empty() {
                    errors.forbidden(
                        &path.child("volumeMounts").index(j).child(key),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
    }
}

fn common(
    container: &Value,
    view: &SpecView<'_>,
    vols: &Volumes<'_>,
    path: &FieldPath,
    options: PodOptions,
    errors: &mut Errors,
) {
    let name = container.s("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        dns_label(name, &path.child("name"), errors);
    }
    if container.s("image").is_empty() {
        errors.required(&path.child("image"), "");
    }
    match container.s("terminationMessagePolicy") {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.required(&path.child("terminationMessagePolicy"), ""),
        other => {
            errors.not_supported(&path.child("terminationMessagePolicy"), other, &["File", "FallbackToLogsOnError"])
        }
    }
    ports(container.list("ports"), &path.child("ports"), errors);
    env::env(container.list("env"), &path.child("env"), errors);
    env::env_from(container.list("envFrom"), &path.child("envFrom"), errors);
    volumes::mounts(container, vols, &path.child("volumeMounts"), errors);
    volumes::devices(container, vols, &path.child("volumeDevices"), errors);
    pull_policy(container.s("imagePullPolicy"), &path.child("imagePullPolicy"), errors);
    resources::validate(
        container.v("resources"),
        resources::Level::Container,
        &view.claim_names,
        &path.child("resources"),
        options.indivisible_huge_pages,
        errors,
    );
    resize_policy(container.list("resizePolicy"), view.spec.s("restartPolicy"), &path.child("resizePolicy"), errors);
    if let Some(context) = container.o("securityContext") {
        security::container(context, view.host_users, &path.child("securityContext"), errors);
    }
}

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn ports(ports: &[Value], path: &FieldPath, errors: &mut Errors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let mut path_of = path.index(i);
        let name = port.s("name");
        if !name.is_empty() {
            let messages = names::is_valid_port_name(name);
            if !messages.is_empty() {
                errors.messages(&path_of.child("name"), name, messages);
            } else if names.contains(&name) {
                errors.duplicate(&path_of.child("name"), name);
            } else {
                names.push(name);
            }
        }
        path_of = path.index(i);
        let number = port.i("containerPort");
        if number == 0 {
            errors.required(&path_of.child("containerPort"), "");
        } else {
            port_number(number, &path_of.child("containerPort"), errors);
        }
        let host = port.i("hostPort");
        if host != 0 {
            port_number(host, &path_of.child("hostPort"), errors);
        }
        crate::kinds::check::one_of(port, "protocol", PROTOCOLS, &path_of, errors);
    }
}

fn host_ports(containers: &[Value], path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container.list("ports").iter().enumerate() {
            let number = port.i("hostPort");
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", port.s("protocol"), port.s("hostIP"));
            if seen.contains(&key) {
                errors.duplicate(&path.index(i).child("ports").index(j).child("hostPort"), key);
            } else {
                seen.push(key);
            }
        }
    }
}

pub(crate) fn pull_policy(policy: &str, path: &FieldPath, errors: &mut Errors) {
    const POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
    if policy.is_empty() {
        errors.required(path, "");
    } else if !POLICIES.contains(&policy) {
        errors.not_supported(path, policy, POLICIES);
    }
}

fn resize_policy(list: &[Value], pod_restart: &str, path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, policy) in list.iter().enumerate() {
        let (resource, restart) = (policy.s("resourceName"), policy.s("restartPolicy"));
        if seen.contains(&resource) {
            errors.duplicate(&path.index(i), resource);
        }
        seen.push(resource);
        match resource {
            "cpu" | "memory" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.required(path, ""),
            other => errors.not_supported(path, other, &["NotRequired", "RestartContainer"]),
        }
        if pod_restart == "Never" && restart != "NotRequired" {
            errors.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_policy(container: &Value, path: &FieldPath, errors: &mut Errors) {
    let rules = container.list("restartPolicyRules");
    match container.os("restartPolicy") {
        None if rules.is_empty() => return,
        None => errors.required(&path.child("restartPolicy"), "must specify restartPolicy when restart rules are used"),
        Some("Always" | "Never" | "OnFailure") => {}
        Some(other) => errors.not_supported(&path.child("restartPolicy"), other, &["Always", "Never", "OnFailure"]),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.push(FieldError::too_many(&path, rules.len() as i64, 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        if !matches!(rule.s("action"), "Restart" | "RestartAllContainers") {
            errors.not_supported(&path.child("action"), rule.s("action"), &["Restart", "RestartAllContainers"]);
        }
        let Some(codes) = rule.o("exitCodes") else {
            errors.required(&path.child("exitCodes"), "must be specified");
            continue;
        };
        let path = path.child("exitCodes");
        if !matches!(codes.s("operator"), "In" | "NotIn") {
            errors.not_supported(&path.child("operator"), codes.s("operator"), &["In", "NotIn"]);
        }
        let values = codes.list("values").len();
        if values > 255 {
            errors.push(FieldError::too_many(&path.child("values"), values as i64, 255));
        }
    }
}

/// An image name with blanks around it, which only pods refuse.
pub(crate) fn image_whitespace(container: &Value, path: &FieldPath, errors: &mut Errors) {
    let image = container.s("image");
    if image.trim().len() != image.len() {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}
