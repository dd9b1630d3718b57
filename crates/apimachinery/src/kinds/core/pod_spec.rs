//! Pod specs: the rules that hold in pods and in templates alike, and templates themselves.

use super::volumes;
use super::{containers, resources, scheduling, security};
use crate::field::{FieldError, FieldPath};
use crate::json::{Map, Value};
use crate::kinds::access::Fields;
use crate::kinds::check::{self, Errors, Report, dns_label, dns_subdomain, legacy_ip, qualified_name, strings};
use crate::names;

/// What validation lets pass because the object was stored so, or because it is a pod and not a template.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PodOptions {
    pub is_pod: bool,
    pub lenient_token_path: bool,
    pub indivisible_huge_pages: bool,
    pub invalid_selector_values: bool,
    pub invalid_node_affinity_values: bool,
    pub invalid_spread_selector: bool,
    pub lenient_sysctls: bool,
    pub any_se_linux_policy: bool,
    pub lenient_deletion_cost: bool,
    pub old_restart_in_init: bool,
    pub user_namespace_devices: bool,
}

impl PodOptions {
    /// The options of an update: what the stored spec already violates stays allowed.
    pub(crate) fn from_old(old: Option<&Value>, old_annotations: Option<&Map>) -> Self {
        let Some(spec) = old else { return PodOptions::default() };
        let affinity = spec.v("affinity");
        let terms = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
            let pods = affinity.v(kind);
            pods.list("requiredDuringSchedulingIgnoredDuringExecution").iter().chain(
                pods.list("preferredDuringSchedulingIgnoredDuringExecution").iter().map(|t| t.v("podAffinityTerm")),
            )
        });
        let node_terms =
            affinity.v("nodeAffinity").v("requiredDuringSchedulingIgnoredDuringExecution").list("nodeSelectorTerms");
        let all = || spec.list("containers").iter().chain(spec.list("initContainers"));
        PodOptions {
            is_pod: false,
            // The gate that makes volumes be mounted with labels is off.
            any_se_linux_policy: spec.v("securityContext").has("seLinuxChangePolicy"),
            lenient_token_path: spec.list("volumes").iter().any(|v| {
                v.v("projected").list("sources").iter().any(|s| {
                    let mut found = Errors::new();
                    if let Some(t) = s.o("serviceAccountToken") {
                        volumes::local_path(t.s("path"), &FieldPath::nil(), &mut found)
                    }
                    !found.is_empty()
                })
            }),
            indivisible_huge_pages: all().any(|c| {
                let mut found = Errors::new();
                resources::validate(
                    c.v("resources"),
                    resources::Level::Container,
                    &[],
                    &FieldPath::nil(),
                    false,
                    &mut found,
                );
                found.iter().any(|e| e.detail.contains("is not positive integer multiple of"))
            }),
            invalid_selector_values: terms.into_iter().any(|t| {
                ["labelSelector", "namespaceSelector"].iter().any(|k| check::selector_has_invalid_value(t.v(k)))
            }),
            invalid_node_affinity_values: node_terms.iter().any(check::selector_has_invalid_value),
            invalid_spread_selector: spec.list("topologySpreadConstraints").iter().any(|c| {
                let mut found = Errors::new();
                check::label_selector(c.o("labelSelector"), Default::default(), &FieldPath::nil(), &mut found);
                !found.is_empty()
            }),
            lenient_sysctls: spec
                .v("securityContext")
                .list("sysctls")
                .iter()
                .any(|s| security::host_sysctl(spec, s.s("name")).is_some()),
            lenient_deletion_cost: old_annotations.is_some_and(|a| !deletion_cost_is_valid(a)),
            old_restart_in_init: spec.list("initContainers").iter().any(|c| {
                c.s("restartPolicy") != "Always"
                    && c.list("resizePolicy").iter().any(|p| p.s("restartPolicy") == "RestartContainer")
            }),
            user_namespace_devices: spec.ob("hostUsers") == Some(false)
                && all().any(|c| !c.list("volumeDevices").is_empty()),
        }
    }
}

/// A pod spec with what several checks ask of it.
pub(crate) struct SpecView<'a> {
    pub spec: &'a Value,
    pub claim_names: Vec<&'a str>,
    pub host_users: bool,
}

impl<'a> SpecView<'a> {
    pub(crate) fn new(spec: &'a Value) -> Self {
        SpecView {
            spec,
            claim_names: spec.list("resourceClaims").iter().map(|c| c.s("name")).filter(|n| !n.is_empty()).collect(),
            host_users: spec.ob("hostUsers").unwrap_or(true),
        }
    }

    pub(crate) fn os(&self) -> Option<&'a str> {
        self.spec.o("os").map(|os| os.s("name"))
    }
}

/// Validates a pod spec; `meta` is the pod's metadata, absent in templates.
pub(crate) fn validate(spec: &Value, meta: Option<&Value>, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    let view = SpecView::new(spec);
    if !spec.has("terminationGracePeriodSeconds") {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let vols = volumes::volumes(spec.list("volumes"), meta, &path.child("volumes"), options, errors);
    resource_claims(spec, meta, &path.child("resourceClaims"), errors);
    containers::containers(&view, &vols, &path.child("containers"), options, errors);
    containers::init_containers(&view, &vols, &path.child("initContainers"), options, errors);
    containers::ephemeral_containers(&view, &vols, &path.child("ephemeralContainers"), options, errors);
    pod_resources(&view, path, options, errors);
    if spec.b("hostNetwork") {
        // Upstream reports the container's index at the list of the spec, as here.
        for (i, container) in spec.list("containers").iter().enumerate() {
            for (j, port) in container.list("ports").iter().enumerate() {
                let host = port.i("hostPort");
                if (options.is_pod || host != 0) && host != port.i("containerPort") {
                    errors.invalid(
                        &path.child("containers").index(i).child("ports").index(j).child("hostPort"),
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    );
                }
            }
        }
    }
    enumerated(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    enumerated(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, errors);
    check::labels(spec.members("nodeSelector"), &path.child("nodeSelector"), errors);
    security::pod(spec, options.lenient_sysctls, options.any_se_linux_policy, path, errors);
    scheduling::affinity(spec.o("affinity"), options, &path.child("affinity"), errors);
    dns_config(spec, &path.child("dnsConfig"), errors);
    for (i, gate) in spec.list("readinessGates").iter().enumerate() {
        qualified_name(gate.s("conditionType"), &path.child("readinessGates").index(i).child("conditionType"), errors);
    }
    scheduling_gates(spec, &path.child("schedulingGates"), errors);
    scheduling::topology_spread(
        spec.list("topologySpreadConstraints"),
        options,
        &path.child("topologySpreadConstraints"),
        errors,
    );
    security::host_process(spec, path, errors);
    security::host_users(spec, options.user_namespace_devices, path, errors);
    hostname_override(spec, path, errors);
    name_member(spec, "serviceAccountName", path, errors);
    name_member(spec, "nodeName", path, errors);
    if let Some(seconds) = spec.oi("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.invalid(
            &path.child("activeDeadlineSeconds"),
            seconds,
            names::inclusive_range_error(1, i64::from(i32::MAX)),
        );
    }
    for key in ["hostname", "subdomain"] {
        if !spec.s(key).is_empty() {
            dns_label(spec.s(key), &path.child(key), errors);
        }
    }
    scheduling::tolerations(spec.list("tolerations"), &path.child("tolerations"), errors);
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        legacy_ip(alias.s("ip"), &[], &path.child("ip"), errors);
        for (j, host) in strings(alias, "hostnames").into_iter().enumerate() {
            dns_subdomain(host, &path.child("hostnames").index(j), errors);
        }
    }
    name_member(spec, "priorityClassName", path, errors);
    if let Some(name) = spec.os("runtimeClassName") {
        errors.messages(&path.child("runtimeClassName"), name, names::name_is_dns_subdomain(name, false));
    }
    if let Some(policy) = spec.os("preemptionPolicy") {
        preemption_policy(policy, &path.child("preemptionPolicy"), errors);
    }
    if let Some(overhead) = spec.o("overhead") {
        let limits = crate::json!({"limits": overhead.clone()});
        resources::validate(
            &limits,
            resources::Level::Container,
            &[],
            &path.child("overhead"),
            options.indivisible_huge_pages,
            errors,
        );
    }
    security::os(spec, path, errors);
    file_key_volumes(spec, path, errors);
}

fn enumerated(spec: &Value, key: &str, supported: &[&str], path: &FieldPath, errors: &mut Errors) {
    check::one_of(spec, key, supported, path, errors);
}

fn name_member(spec: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    let name = spec.s(key);
    if !name.is_empty() {
        errors.messages(&path.child(key), name, names::name_is_dns_subdomain(name, false));
    }
}

pub(crate) fn preemption_policy(policy: &str, path: &FieldPath, errors: &mut Errors) {
    match policy {
        "PreemptLowerPriority" | "Never" => {}
        "" => errors.required(path, ""),
        other => errors.not_supported(path, other, &["PreemptLowerPriority", "Never"]),
    }
}

fn resource_claims(spec: &Value, meta: Option<&Value>, path: &FieldPath, errors: &mut Errors) {
    let mirror = meta.is_some_and(|m| m.members("annotations").contains_key("kubernetes.io/config.mirror"));
    let mut names: Vec<&str> = Vec::new();
    for (i, claim) in spec.list("resourceClaims").iter().enumerate() {
        if mirror {
            errors.forbidden(&FieldPath::unnamed(), "static pods do not support resource claims");
            continue;
        }
        let path = path.index(i);
        let name = claim.s("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            dns_label(name, &path.child("name"), errors);
            names.push(name);
        }
        match (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName")) {
            (true, true) => errors.invalid(
                &path,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => {
                errors.invalid(&path, claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`");
            }
            _ => {}
        }
        for key in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = claim.os(key) {
                errors.messages(&path.child(key), name, names::name_is_dns_subdomain(name, false));
            }
        }
    }
}

fn pod_resources(view: &SpecView<'_>, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    let Some(pod) = view.spec.o("resources") else { return };
    let path = path.child("resources");
    if view.os() == Some("windows") {
        errors.forbidden(&path, "may not be set for a windows pod");
        return;
    }
    if pod.has("claims") {
        errors.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    resources::validate(pod, resources::Level::Pod, &view.claim_names, &path, options.indivisible_huge_pages, errors);
    resources::pod_consistency(view.spec, &path, errors);
}

fn dns_config(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let config = spec.o("dnsConfig");
    if spec.s("dnsPolicy") == "None" {
        match config {
            None => {
                errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
                return;
            }
            Some(c) if c.list("nameservers").is_empty() => {
                errors.required(
                    &path.child("nameservers"),
                    "must provide at least one DNS nameserver when `dnsPolicy` is None",
                );
                return;
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else { return };
    let at = path.child("nameservers");
    let servers = strings(config, "nameservers");
    if servers.len() > 3 {
        errors.invalid(&at, config.v("nameservers"), "must not have more than 3 nameservers");
    }
    for (i, server) in servers.into_iter().enumerate() {
        legacy_ip(server, &[], &at.index(i), errors);
    }
    let at = path.child("searches");
    let searches = strings(config, "searches");
    if searches.len() > 32 {
        errors.invalid(&at, config.v("searches"), "must not have more than 32 search paths");
    }
    if searches.join(" ").len() > 2048 {
        errors.invalid(
            &at,
            config.v("searches"),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, search) in searches.into_iter().enumerate() {
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            errors.messages(&at.index(i), search, names::is_dns1123_subdomain_with_underscore(search));
        }
    }
    for (i, option) in config.list("options").iter().enumerate() {
        if option.s("name").is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

fn scheduling_gates(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in spec.list("schedulingGates").iter().enumerate() {
        let name = gate.s("name");
        qualified_name(name, &path.index(i), errors);
        if seen.contains(&name) {
            errors.duplicate(&path.index(i), name);
        }
        seen.push(name);
    }
}

fn hostname_override(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(name) = spec.os("hostnameOverride") else { return };
    let at = path.child("hostnameOverride");
    if spec.b("setHostnameAsFQDN") {
        errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.b("hostNetwork") {
        errors.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.push(FieldError::too_long(&at, 64));
    }
    dns_subdomain(name, &at, errors);
}

fn file_key_volumes(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    for (container, at) in containers::all(spec, path) {
        for (i, var) in container.list("env").iter().enumerate() {
            let Some(file) = var.v("valueFrom").o("fileKeyRef") else { continue };
            let at = at.child("env").index(i).children(&["valueFrom", "fileKeyRef", "volumeName"]);
            let name = file.s("volumeName");
            match spec.list("volumes").iter().rfind(|v| v.s("name") == name) {
                None => errors.not_found(&at, name),
                Some(v) if !v.has("emptyDir") => {
                    errors.invalid(&at, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}

fn deletion_cost_is_valid(annotations: &Map) -> bool {
    let Some(value) = annotations.get("controller.kubernetes.io/pod-deletion-cost").and_then(Value::as_str) else {
        return true;
    };
    value.parse::<i32>().is_ok()
        && !value.starts_with('+')
        && !(value.len() > 1 && value.starts_with('0'))
        && !value.starts_with("-0")
}

/// Annotations with a meaning for pods.
pub(crate) fn annotations(annotations: &Map, spec: &Value, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    let get = |key: &str| annotations.get(key).and_then(Value::as_str);
    if let Some(mirror) = get("kubernetes.io/config.mirror")
        && spec.s("nodeName").is_empty()
    {
        errors.invalid(
            &path.key("kubernetes.io/config.mirror"),
            mirror,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    if !options.lenient_deletion_cost && !deletion_cost_is_valid(annotations) {
        const KEY: &str = "controller.kubernetes.io/pod-deletion-cost";
        errors.invalid(&path.key(KEY), get(KEY).unwrap_or(""), "must be a 32bit integer");
    }
    for (key, value) in annotations.iter() {
        let value = value.as_str().unwrap_or("");
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            seccomp_profile(value, &path.child(key), errors);
        }
    }
    for (key, value) in annotations.iter() {
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        let value = value.as_str().unwrap_or("");
        if !containers::all(spec, &FieldPath::nil()).iter().any(|(c, _)| c.s("name") == container) {
            errors.invalid(&path.key(key), container, "container not found");
        }
        if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
            errors.invalid(&path.key(key), value, format!("invalid AppArmor profile name: {value:?}"));
        }
    }
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(crate) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn seccomp_profile(profile: &str, path: &FieldPath, errors: &mut Errors) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        p => match p.strip_prefix("localhost/") {
            Some(target) => volumes::descending_path(target, path, errors),
            None => errors.invalid(path, profile, "must be a valid seccomp profile"),
        },
    }
}

/// Deprecated annotations must agree with the fields that replaced them.
pub(crate) fn annotations_match_fields(annotations: &Map, spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let get = |key: &str| annotations.get(key).and_then(Value::as_str);
    let at = path.child("securityContext").child("seccompProfile");
    if let (Some(profile), Some(value)) = (spec.v("securityContext").o("seccompProfile"), get(SECCOMP_POD)) {
        profile_matches(profile, value, "seccomp", &at, errors);
    }
    for (container, at) in containers::all(spec, path) {
        let profile = container.v("securityContext").o("seccompProfile");
        if let (Some(profile), Some(value)) = (profile, get(&format!("{SECCOMP_CONTAINER}{}", container.s("name")))) {
            profile_matches(profile, value, "seccomp", &at.child("securityContext").child("seccompProfile"), errors);
        }
    }
    if spec.v("os").s("name") == "windows" {
        return;
    }
    for (container, at) in containers::all(spec, path) {
        let own = container.v("securityContext").o("appArmorProfile");
        let profile = own.or_else(|| spec.v("securityContext").o("appArmorProfile"));
        if let (Some(profile), Some(value)) = (profile, get(&format!("{APP_ARMOR}{}", container.s("name")))) {
            profile_matches(profile, value, "apparmor", &at.child("securityContext").child("appArmorProfile"), errors);
        }
    }
}

fn profile_matches(profile: &Value, annotation: &str, what: &str, path: &FieldPath, errors: &mut Errors) {
    let same_type = match profile.s("type") {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || (what == "seccomp" && annotation == "docker/default"),
        "Localhost" => match annotation.strip_prefix("localhost/") {
            Some(name) if Some(name) == profile.os("localhostProfile") => true,
            Some(_) => {
                errors.forbidden(
                    &path.child("localhostProfile"),
                    format!("{what} profile in annotation and field must match"),
                );
                return;
            }
            None => false,
        },
        _ => true,
    };
    if !same_type {
        errors.forbidden(&path.child("type"), format!("{what} type in annotation and field must match"));
    }
}

/// A pod template with its metadata.
pub(crate) fn template(template: &Value, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    let meta = template.v("metadata");
    let spec = template.v("spec");
    let notes = meta.members("annotations");
    check::labels(meta.members("labels"), &path.child("labels"), errors);
    check::annotations(notes, &path.child("annotations"), errors);
    annotations(notes, spec, &path.child("annotations"), options, errors);
    validate(spec, None, &path.child("spec"), options, errors);
    annotations_match_fields(notes, spec, &path.child("spec"), errors);
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(
            &path.children(&["spec", "ephemeralContainers"]),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// The options for a template that replaces another.
pub(crate) fn template_options(old: Option<&Value>) -> PodOptions {
    PodOptions::from_old(old.and_then(|t| t.o("spec")), old.map(|t| t.v("metadata").members("annotations")))
}
