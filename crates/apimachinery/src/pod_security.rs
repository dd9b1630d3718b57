//! The checks of the Pod Security Standards. Pure.
//!
//! Follows: `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use crate::Value;

/// The newest version of the standards that is known: 1.36.
pub const NEWEST_MINOR: u32 = 36;

/// A level of the standards, from lax to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Why a check forbids a pod: the reason, and the detail in parentheses.
pub type Finding = (String, String);

struct Pod<'a> {
    pod: &'a Value,
    containers: Vec<&'a Value>,
}

impl<'a> Pod<'a> {
    fn new(pod: &'a Value) -> Pod<'a> {
        let keys = ["initContainers", "containers", "ephemeralContainers"];
        Pod { pod, containers: keys.iter().flat_map(|k| pod.array_at(&["spec", k])).collect() }
    }

    fn spec(&self) -> &'a Value {
        &self.pod["spec"]
    }

    /// A member of the pod's own security context.
    fn context(&self, path: &[&str]) -> Option<&'a Value> {
        self.spec()["securityContext"].at(path).filter(|v| !v.is_null())
    }

    /// The names of the containers that `bad` accepts.
    fn containers_that(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers.iter().filter(|c| bad(c)).map(|c| c.str_at(&["name"])).collect()
    }

    fn is_windows(&self) -> bool {
        self.spec().str_at(&["os", "name"]) == "windows"
    }

    fn has_user_namespace(&self) -> bool {
        self.spec()["hostUsers"] == false
    }
}

/// A member of a container's security context.
fn context<'a>(container: &'a Value, path: &[&str]) -> Option<&'a Value> {
    container["securityContext"].at(path).filter(|v| !v.is_null())
}

fn quote<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quote(names))
}

/// `pod and container "a"`.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut parts = Vec::new();
    if pod {
        parts.push("pod".to_owned());
    }
    if !names.is_empty() {
        parts.push(containers(names));
    }
    parts.join(" and ")
}

fn found(reason: &str, detail: String) -> Option<Finding> {
    Some((reason.to_owned(), detail))
}

/// Findings as messages show them.
pub fn details(findings: &[Finding]) -> String {
    let text = |(reason, detail): &Finding| match detail.as_str() {
        "" => reason.clone(),
        detail => format!("{reason} ({detail})"),
    };
    findings.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What forbids the pod (or pod template) at this level and minor version, in the order of messages.
pub fn evaluate(level: Level, minor: u32, pod: &Value) -> Vec<Finding> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let minor = minor.min(NEWEST_MINOR);
    let pod = Pod::new(pod);
    let restricted = level == Level::Restricted;
    let mut findings = vec![app_armor(&pod)];
    if !restricted || minor < 22 {
        findings.push(default_capabilities(&pod));
    }
    findings.push(host_namespaces(&pod));
    if !restricted {
        findings.push(host_path(&pod));
    }
    findings.push(host_ports(&pod));
    if minor >= 34 {
        findings.push(probe_hosts(&pod));
    }
    findings.push(privileged(&pod));
    if !(restricted && minor >= 35 || minor >= 35 && pod.has_user_namespace()) {
        findings.push(proc_mount(&pod));
    }
    findings.push(se_linux(&pod, minor));
    if !restricted || minor < 19 {
        findings.push(if minor < 19 { seccomp_annotations(&pod) } else { seccomp(&pod, false) });
    }
    findings.push(sysctls(&pod, minor));
    findings.push(windows_host_process(&pod));
    if restricted {
        let windows = minor >= 25 && pod.is_windows();
        if minor >= 8 && !windows {
            findings.push(privilege_escalation(&pod));
        }
        if minor >= 22 && !windows {
            findings.push(restricted_capabilities(&pod));
        }
        if minor >= 35 {
            findings.push(proc_mount(&pod));
        }
        findings.push(volumes(&pod));
        let relaxed = minor >= 35 && pod.has_user_namespace();
        if !relaxed {
            findings.push(run_as_non_root(&pod));
        }
        if minor >= 23 && !relaxed {
            findings.push(run_as_user(&pod));
        }
        if minor >= 19 && !windows {
            findings.push(seccomp(&pod, true));
        }
    }
    findings.into_iter().flatten().collect()
}

fn app_armor(pod: &Pod<'_>) -> Option<Finding> {
    let allowed = |t: &Value| matches!(t.as_str(), Some("RuntimeDefault" | "Localhost"));
    let path = ["appArmorProfile", "type"];
    let mut values = BTreeSet::new();
    let mut bad = |t: Option<&Value>| {
        let bad = t.filter(|t| !allowed(t));
        values.extend(bad.and_then(Value::as_str).map(str::to_owned));
        bad.is_some()
    };
    let pod_bad = bad(pod.context(&path));
    let names = pod.containers_that(|c| bad(context(c, &path)));
    let mut values: Vec<String> = values.into_iter().collect();
    let mut parts: Vec<String> = Some(setters(pod_bad, &names)).into_iter().filter(|s| !s.is_empty()).collect();
    let annotations = pod.pod["metadata"]["annotations"].as_object().into_iter().flat_map(|m| m.iter());
    let annotations: Vec<String> = annotations
        .filter(|(k, _)| k.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .filter_map(|(k, v)| Some((k, v.as_str()?)))
        .filter(|(_, v)| !(v.is_empty() || *v == "runtime/default" || v.starts_with("localhost/")))
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    if !annotations.is_empty() {
        parts.push(plural("annotation", "annotations", annotations.len()).to_owned());
        values.extend(annotations);
    }
    if parts.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    found(reason, format!("{} must not set AppArmor profile type to {}", parts.join(" and "), quote(&values)))
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The containers that add capabilities beyond `allowed`, and those capabilities.
fn added<'a>(pod: &Pod<'a>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let mut bad = BTreeSet::new();
    let names = pod.containers_that(|c| {
        let added = c["securityContext"].array_at(&["capabilities", "add"]).iter().filter_map(Value::as_str);
        let forbidden: Vec<&str> = added.filter(|a| !allowed.contains(a)).collect();
        bad.extend(&forbidden);
        !forbidden.is_empty()
    });
    (names, bad)
}

fn default_capabilities(pod: &Pod<'_>) -> Option<Finding> {
    let (names, bad) = added(pod, &DEFAULT_CAPABILITIES);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quote(bad));
    found("non-default capabilities", detail)
}

fn restricted_capabilities(pod: &Pod<'_>) -> Option<Finding> {
    let missing =
        pod.containers_that(|c| !c["securityContext"].array_at(&["capabilities", "drop"]).iter().any(|d| d == "ALL"));
    let (names, bad) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !missing.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&missing)));
    }
    if !names.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&names),
            quote(bad)
        ));
    }
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Finding> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|k| pod.spec()[**k] == true)
        .map(|k| format!("{k}=true"))
        .collect();
    if set.is_empty() { None } else { found("host namespaces", set.join(", ")) }
}

fn host_path(pod: &Pod<'_>) -> Option<Finding> {
    let volumes = pod.spec().array_at(&["volumes"]).iter().filter(|v| v["hostPath"].is_object());
    let names: Vec<&str> = volumes.map(|v| v.str_at(&["name"])).collect();
    if names.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quote(&names)))
}

fn host_ports(pod: &Pod<'_>) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let names = pod.containers_that(|c| {
        let used: Vec<String> = c
            .array_at(&["ports"])
            .iter()
            .filter_map(|p| p["hostPort"].as_i64())
            .filter(|p| *p != 0)
            .map(|p| p.to_string())
            .collect();
        ports.extend(used.iter().cloned());
        !used.is_empty()
    });
    if names.is_empty() {
        return None;
    }
    let listed: Vec<String> = ports.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", listed.len()),
        listed.join(", ")
    );
    found("hostPort", detail)
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Finding> {
    let mut hosts = BTreeSet::new();
    let names = pod.containers_that(|c| {
        let handlers = [
            c.at(&["livenessProbe"]),
            c.at(&["readinessProbe"]),
            c.at(&["startupProbe"]),
            c.at(&["lifecycle", "postStart"]),
            c.at(&["lifecycle", "preStop"]),
        ];
        let named = handlers.into_iter().flatten().flat_map(|h| {
            [h.str_at(&["httpGet", "host"]), h.str_at(&["tcpSocket", "host"])].into_iter().filter(|h| !h.is_empty())
        });
        let named: Vec<&str> = named.collect();
        hosts.extend(named.iter().copied());
        !named.is_empty()
    });
    let names: Vec<&str> = names.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len()),
        quote(hosts)
    );
    found("probe or lifecycle host", detail)
}

fn privileged(pod: &Pod<'_>) -> Option<Finding> {
    let names = pod.containers_that(|c| context(c, &["privileged"]).is_some_and(|p| *p == true));
    if names.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let names = pod.containers_that(|c| {
        let kind = context(c, &["procMount"]).and_then(Value::as_str).filter(|k| *k != "Default");
        kinds.extend(kind);
        kind.is_some()
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quote(kinds));
    found("procMount", detail)
}

fn se_linux(pod: &Pod<'_>, minor: u32) -> Option<Finding> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |options: Option<&Value>| {
        let Some(options) = options else { return false };
        let kind = options.str_at(&["type"]);
        let allowed = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (minor >= 31 && kind == "container_engine_t");
        if !allowed {
            types.insert(kind.to_owned());
        }
        let (has_user, has_role) = (!options.str_at(&["user"]).is_empty(), !options.str_at(&["role"]).is_empty());
        user |= has_user;
        role |= has_role;
        !allowed || has_user || has_role
    };
    let pod_bad = bad(pod.context(&["seLinuxOptions"]));
    let names = pod.containers_that(|c| bad(context(c, &["seLinuxOptions"])));
    if !pod_bad && names.is_empty() {
        return None;
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quote(&types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    let detail =
        format!("{} set forbidden securityContext.seLinuxOptions: {}", setters(pod_bad, &names), data.join("; "));
    found("seLinuxOptions", detail)
}

fn seccomp_annotations(pod: &Pod<'_>) -> Option<Finding> {
    let annotations = &pod.pod["metadata"]["annotations"];
    let mut keys = vec!["seccomp.security.alpha.kubernetes.io/pod".to_owned()];
    keys.extend(
        pod.containers
            .iter()
            .map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.str_at(&["name"]))),
    );
    let valid = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let bad: BTreeSet<String> = keys
        .iter()
        .filter_map(|k| Some((k, annotations.get(k)?.as_str()?)))
        .filter(|(_, v)| !valid(v))
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let listed: Vec<String> = bad.into_iter().collect();
    let detail = format!("forbidden {} {}", plural("annotation", "annotations", listed.len()), listed.join(", "));
    found("seccompProfile", detail)
}

fn seccomp(pod: &Pod<'_>, required: bool) -> Option<Finding> {
    let valid = |t: &str| matches!(t, "Localhost" | "RuntimeDefault");
    let kind = |profile: &Value| profile.str_at(&["type"]).to_owned();
    let mut values = BTreeSet::new();
    let pod_kind = pod.context(&["seccompProfile"]).map(kind);
    let pod_bad = pod_kind.as_deref().is_some_and(|k| !valid(k));
    values.extend(pod_kind.clone().filter(|_| pod_bad));
    let covered = pod_kind.is_some() && !pod_bad;
    let names = pod.containers_that(|c| {
        let bad = context(c, &["seccompProfile"]).map(kind).filter(|k| !valid(k));
        let is_bad = bad.is_some();
        values.extend(bad);
        is_bad
    });
    if pod_bad || !names.is_empty() {
        let detail = format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters(pod_bad, &names),
            quote(&values)
        );
        return found("seccompProfile", detail);
    }
    let missing = pod.containers_that(|c| !covered && context(c, &["seccompProfile"]).is_none());
    if !required || missing.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        containers(&missing)
    );
    found("seccompProfile", detail)
}

fn sysctls(pod: &Pod<'_>, minor: u32) -> Option<Finding> {
    let allowed = |name: &str| match name {
        "kernel.shm_rmid_forced"
        | "net.ipv4.ip_local_port_range"
        | "net.ipv4.tcp_syncookies"
        | "net.ipv4.ping_group_range"
        | "net.ipv4.ip_unprivileged_port_start" => true,
        "net.ipv4.ip_local_reserved_ports" => minor >= 27,
        "net.ipv4.tcp_keepalive_time"
        | "net.ipv4.tcp_fin_timeout"
        | "net.ipv4.tcp_keepalive_intvl"
        | "net.ipv4.tcp_keepalive_probes" => minor >= 29,
        "net.ipv4.tcp_rmem" | "net.ipv4.tcp_wmem" => minor >= 32,
        _ => false,
    };
    let set = pod.spec()["securityContext"].array_at(&["sysctls"]).iter().map(|s| s.str_at(&["name"]));
    let bad: Vec<&str> = set.filter(|n| !allowed(n)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Finding> {
    let path = ["windowsOptions", "hostProcess"];
    let on = |v: Option<&Value>| v.is_some_and(|v| *v == true);
    let pod_bad = on(pod.context(&path));
    let names = pod.containers_that(|c| on(context(c, &path)));
    if !pod_bad && names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters(pod_bad, &names));
    found("hostProcess", detail)
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Finding> {
    let names = pod.containers_that(|c| context(c, &["allowPrivilegeEscalation"]).is_none_or(|v| *v == true));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    found("allowPrivilegeEscalation != false", detail)
}

const VOLUME_TYPES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

fn volumes(pod: &Pod<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let has = |v: &Value, kinds: &[&'static str]| kinds.iter().find(|k| v[**k].is_object()).copied();
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in pod.spec().array_at(&["volumes"]).iter().filter(|v| has(v, &ALLOWED).is_none()) {
        names.push(volume.str_at(&["name"]));
        types.insert(has(volume, &VOLUME_TYPES).unwrap_or("unknown"));
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", names.len()),
        quote(&names),
        plural("uses", "use", names.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quote(&types)
    );
    found("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Finding> {
    const REASON: &str = "runAsNonRoot != true";
    let pod_value = pod.context(&["runAsNonRoot"]).and_then(Value::as_bool);
    let value = |c: &Value| context(c, &["runAsNonRoot"]).and_then(Value::as_bool);
    let explicit = pod.containers_that(|c| value(c) == Some(false));
    if pod_value == Some(false) || !explicit.is_empty() {
        let who = setters(pod_value == Some(false), &explicit);
        return found(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit = pod.containers_that(|c| value(c).is_none() && pod_value != Some(true));
    if implicit.is_empty() {
        return None;
    }
    found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)))
}

fn run_as_user(pod: &Pod<'_>) -> Option<Finding> {
    let root = |v: Option<&Value>| v.and_then(Value::as_i64) == Some(0);
    let pod_bad = root(pod.context(&["runAsUser"]));
    let names = pod.containers_that(|c| root(context(c, &["runAsUser"])));
    if !pod_bad && names.is_empty() {
        return None;
    }
    found("runAsUser=0", format!("{} must not set runAsUser=0", setters(pod_bad, &names)))
}

#[cfg(test)]
mod tests {
    use crate::json;

    use super::*;

    #[test]
    fn pods_are_judged_by_level_and_version() {
        let text = |level, minor, spec: Value| {
            let pod = json!({"metadata": {}, "spec": spec});
            let findings = evaluate(level, minor, &pod);
            findings.into_iter().map(|(reason, detail)| format!("{reason} ({detail})")).collect::<Vec<_>>().join(", ")
        };
        use Level::{Baseline, Privileged, Restricted};
        let plain = json!({"containers": [{"name": "c"}]});
        let host = json!({"hostNetwork": true, "hostIPC": true, "containers": [{"name": "c"}]});
        let caps =
            json!({"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "KILL"]}}}]});
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}, "containers": []});
        for (level, minor, spec, want) in [
            (Privileged, 36, &host, ""),
            (Baseline, 36, &plain, ""),
            (Baseline, 36, &host, "host namespaces (hostNetwork=true, hostIPC=true)"),
            (
                Baseline,
                36,
                &caps,
                "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (Baseline, 31, &sysctl, "forbidden sysctls (net.ipv4.tcp_rmem)"),
            (Baseline, 36, &sysctl, ""),
            (
                Restricted,
                1,
                &plain,
                "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
            ),
        ] {
            assert_eq!(text(level, minor, spec.clone()), want, "{level:?} 1.{minor}");
        }
        assert_eq!(evaluate(Restricted, 36, &json!({"spec": plain})).len(), 4);
    }
}
