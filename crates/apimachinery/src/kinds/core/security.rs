//! Security contexts of pods and containers, and what an operating system excludes.

use super::containers;
use super::volumes::descending_path;
use crate::field::{BadValue, FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, optional_one_of};
use crate::names;

fn user_id(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    if let Some(id) = object.oi(key) {
        for message in names::is_valid_user_id(id) {
            errors.invalid(&path.child(key), id, message);
        }
    }
}

fn group_id(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    if let Some(id) = object.oi(key) {
        for message in names::is_valid_group_id(id) {
            errors.invalid(&path.child(key), id, message);
        }
    }
}

/// The security context of a pod.
pub(crate) fn pod(
    spec: &Value,
    lenient_sysctls: bool,
    any_se_linux_policy: bool,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let Some(context) = spec.o("securityContext") else { return };
    let path = path.child("securityContext");
    group_id(context, "fsGroup", &path, errors);
    user_id(context, "runAsUser", &path, errors);
    group_id(context, "runAsGroup", &path, errors);
    for (i, group) in context.list("supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or(0);
        for message in names::is_valid_group_id(group) {
            errors.invalid(&path.child("supplementalGroups").index(i), group, message);
        }
    }
    if spec.b("hostPID") && spec.b("shareProcessNamespace") {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(spec, context.list("sysctls"), lenient_sysctls, &path.child("sysctls"), errors);
    optional_one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], &path, errors);
    seccomp(context, &path.child("seccompProfile"), errors);
    windows_options(context, &path.child("windowsOptions"), errors);
    app_armor(context, &path.child("appArmorProfile"), errors);
    optional_one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], &path, errors);
    let policies: &[&str] = if any_se_linux_policy { &["MountOption", "Recursive"] } else { &["Recursive"] };
    optional_one_of(context, "seLinuxChangePolicy", policies, &path, errors);
}

fn is_sysctl_name(name: &str) -> bool {
    name.len() <= 253
        && name.split(['.', '/']).all(|segment| {
            let bytes = segment.as_bytes();
            let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|b| edge(b) || matches!(b, b'-' | b'_'))
        })
}

/// The kernel namespace that a sysctl belongs to, when it has one.
fn sysctl_namespace(name: &str) -> Option<&'static str> {
    let name = match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name.replace(['/', '.'], "\u{0}").replace('\u{0}', "."),
        _ => name.to_owned(),
    };
    match name.as_str() {
        "kernel.sem" => Some("ipc"),
        n if n.starts_with("kernel.shm") || n.starts_with("kernel.msg") || n.starts_with("fs.mqueue.") => Some("ipc"),
        n if n.starts_with("net.") => Some("net"),
        _ => None,
    }
}

fn sysctls(spec: &Value, list: &[Value], lenient: bool, path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in list.iter().enumerate() {
        let (name, path) = (sysctl.s("name"), path.index(i).child("name"));
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            errors.invalid(
                &path,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(&name) {
            errors.duplicate(&path, name);
        }
        if !lenient && let Some(message) = host_sysctl(spec, name) {
            errors.invalid(&path, name, message);
        }
        seen.push(name);
    }
}

/// Why a sysctl cannot be set beside a shared host namespace.
pub(crate) fn host_sysctl(spec: &Value, name: &str) -> Option<&'static str> {
    match sysctl_namespace(name) {
        Some("net") if spec.b("hostNetwork") => Some("may not be specified when 'hostNetwork' is true"),
        Some("ipc") if spec.b("hostIPC") => Some("may not be specified when 'hostIPC' is true"),
        _ => None,
    }
}

fn seccomp(context: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(profile) = context.o("seccompProfile") else { return };
    let kind = profile.s("type");
    match kind {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
        other => {
            errors.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
    let at = path.child("localhostProfile");
    match (kind == "Localhost", profile.os("localhostProfile")) {
        (true, None) => errors.required(&at, "must be set when seccomp type is Localhost"),
        (true, Some(target)) => descending_path(target, &at, errors),
        (false, Some(target)) => {
            // As the server's own structure prints it.
            let printed = format!("{{\"Type\":{},\"LocalhostProfile\":{}}}", Value::from(kind), Value::from(target));
            errors.invalid(&at, BadValue::Printed(printed), "can only be set when seccomp type is Localhost");
        }
        (false, None) => {}
    }
}

/// Whether a profile could stand in a security context.
pub(crate) fn is_app_armor_profile(profile: &Value) -> bool {
    let mut context = Value::object();
    context.set_at(&["appArmorProfile"], profile.clone());
    let mut found = Errors::new();
    app_armor(&context, &FieldPath::nil(), &mut found);
    profile.is_object() && found.is_empty()
}

fn app_armor(context: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(profile) = context.o("appArmorProfile") else { return };
    let at = path.child("localhostProfile");
    let local = profile.os("localhostProfile");
    match profile.s("type") {
        "Localhost" => match local {
            None => errors.required(&at, "must be set when AppArmor type is Localhost"),
            Some(name) => {
                if name.trim() != name {
                    errors.invalid(&at, name, "must not be padded with whitespace");
                } else if name.is_empty() {
                    errors.required(&at, "must be set when AppArmor type is Localhost");
                }
                if name.len() > 4095 {
                    errors.push(FieldError::too_long(&at, 4095));
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = local {
                errors.invalid(&at, name, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(&path.child("type"), "type is required when appArmorProfile is set"),
        other => errors.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// The security context of a container.
pub(crate) fn container(context: &Value, host_users: bool, path: &FieldPath, errors: &mut Errors) {
    user_id(context, "runAsUser", path, errors);
    group_id(context, "runAsGroup", path, errors);
    if let Some(mount) = context.os("procMount") {
        if !matches!(mount, "Default" | "Unmasked") {
            errors.not_supported(&path.child("procMount"), mount, &["Default", "Unmasked"]);
        }
        if host_users && mount == "Unmasked" {
            errors.invalid(&path.child("procMount"), mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(context, &path.child("seccompProfile"), errors);
    if context.ob("allowPrivilegeEscalation") == Some(false) {
        if context.b("privileged") {
            errors.invalid(path, context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        for capability in context.v("capabilities").list("add") {
            if *capability == "CAP_SYS_ADMIN" {
                errors.invalid(
                    path,
                    context,
                    "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
                );
            }
        }
    }
    windows_options(context, &path.child("windowsOptions"), errors);
    app_armor(context, &path.child("appArmorProfile"), errors);
}

fn windows_options(context: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(options) = context.o("windowsOptions") else { return };
    if let Some(name) = options.os("gmsaCredentialSpecName") {
        errors.messages(&path.child("gmsaCredentialSpecName"), name, names::is_dns1123_subdomain(name));
    }
    if let Some(spec) = options.os("gmsaCredentialSpec") {
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errors.invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    let Some(full) = options.os("runAsUserName") else { return };
    let at = path.child("runAsUserName");
    if full.is_empty() {
        errors.invalid(&at, full, "runAsUserName cannot be an empty string");
        return;
    }
    if full.chars().any(|c| c.is_ascii_control()) {
        errors.invalid(&at, full, "runAsUserName cannot contain control characters");
        return;
    }
    let parts: Vec<&str> = full.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => {
            errors.invalid(&at, full, "runAsUserName cannot contain more than one backslash");
            return;
        }
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            errors.invalid(&at, full, "runAsUserName's Domain length must be under 256 characters");
        }
        if !is_net_bios(domain) && !is_windows_domain(domain) {
            errors.invalid(&at, full, "runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        errors.invalid(&at, full, "runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        errors.invalid(&at, full, "runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        errors.invalid(&at, full, "runAsUserName's User cannot contain only periods or spaces");
    }
    if user.chars().any(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        errors.invalid(&at, full, r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#);
    }
}

fn is_net_bios(domain: &str) -> bool {
    (1..=15).contains(&domain.chars().count())
        && !domain.starts_with('.')
        && !domain.chars().any(|c| "\\/:*?\"<>|".contains(c))
}

fn is_windows_domain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Rules about Windows host-process pods.
pub(crate) fn host_process(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let of = |v: &Value| v.v("securityContext").v("windowsOptions").ob("hostProcess");
    let pod = of(spec);
    let (mut total, mut host) = (0, 0);
    for (container, at) in containers::all(spec, path) {
        total += 1;
        let own = of(container);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            errors.invalid(
                &at.children(&["securityContext", "windowsOptions", "hostProcess"]),
                own,
                format!("pod hostProcess value must be identical if both are specified, was {pod}"),
            );
        }
        host += usize::from(own.or(pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != total {
        errors.invalid(
            path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        );
    }
    if !spec.b("hostNetwork") {
        errors.invalid(
            &path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        );
    }
}

/// User namespaces exclude the host's other namespaces.
pub(crate) fn host_users(spec: &Value, devices: bool, path: &FieldPath, errors: &mut Errors) {
    if spec.ob("hostUsers") != Some(false) {
        return;
    }
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.b(key) {
            errors.forbidden(&path.child(shown), "when `hostUsers` is false");
        }
    }
    if !devices {
        for (container, at) in containers::all(spec, path) {
            if !container.list("volumeDevices").is_empty() {
                errors.forbidden(&at.child("volumeDevices"), "when `hostUsers` is false");
            }
        }
    }
}

/// `spec.os`: known names, and fields that the other system does not have.
pub(crate) fn os(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(os) = spec.o("os") else { return };
    match os.s("name") {
        "" => errors.required(&path.child("os").child("name"), ""),
        "linux" => {
            const TEXT: &str = "windows options cannot be set for a linux pod";
            if spec.v("securityContext").has("windowsOptions") {
                errors.forbidden(&path.child("securityContext").child("windowsOptions"), TEXT);
            }
            for (container, at) in containers::all(spec, path) {
                if container.v("securityContext").has("windowsOptions") {
                    errors.forbidden(&at.child("securityContext").child("windowsOptions"), TEXT);
                }
            }
        }
        "windows" => windows(spec, path, errors),
        other => errors.not_supported(&path.child("os"), other, &["linux", "windows"]),
    }
}

fn windows(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    const TEXT: &str = "cannot be set for a windows pod";
    if let Some(context) = spec.o("securityContext") {
        let inside = path.child("securityContext");
        // In upstream's order; the second half says whether the field is inside the context.
        for (key, in_context) in [
            ("appArmorProfile", true),
            ("seLinuxOptions", true),
            ("hostUsers", false),
            ("hostPID", false),
            ("hostIPC", false),
            ("seccompProfile", true),
            ("fsGroup", true),
            ("fsGroupChangePolicy", true),
            ("sysctls", true),
            ("shareProcessNamespace", false),
            ("runAsUser", true),
            ("runAsGroup", true),
            ("supplementalGroups", true),
            ("supplementalGroupsPolicy", true),
            ("seLinuxChangePolicy", true),
        ] {
            let set = match key {
                "hostPID" | "hostIPC" => spec.b(key),
                "sysctls" => !context.list(key).is_empty(),
                _ if in_context => context.has(key),
                _ => spec.has(key),
            };
            if set {
                errors.forbidden(&if in_context { inside.child(key) } else { path.child(key) }, TEXT);
            }
        }
    }
    for (container, at) in containers::all(spec, path) {
        let Some(context) = container.o("securityContext") else { continue };
        let at = at.child("securityContext");
        for key in [
            "appArmorProfile",
            "seLinuxOptions",
            "seccompProfile",
            "capabilities",
            "readOnlyRootFilesystem",
            "privileged",
            "allowPrivilegeEscalation",
            "procMount",
            "runAsUser",
            "runAsGroup",
        ] {
            if context.has(key) {
                errors.forbidden(&at.child(key), TEXT);
            }
        }
    }
}
