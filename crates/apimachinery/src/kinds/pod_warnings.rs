//! Warnings about pods and templates of pods. Follows `pkg/api/pod/warnings.go`.

use super::access::{Fields, semantic_equal};
use super::check::{ip_warnings, strings};
use super::core::pod_spec::APP_ARMOR;
use super::core::{containers, security};
use super::warnings::{claim_spec, deprecated_label, fraction, repeated, selector_term};
use crate::field::FieldPath;
use crate::json::Value;

type Warnings = Vec<String>;

const NO_POD: &str = "a null labelSelector results in matching no pod";

pub(crate) fn pod(pod: &Value, out: &mut Warnings) {
    spec_and_meta(pod, &FieldPath::nil(), out);
}

pub(crate) fn template(template: &Value, path: &FieldPath, out: &mut Warnings) {
    spec_and_meta(template, path, out);
}

fn spec_and_meta(pod: &Value, root: &FieldPath, out: &mut Warnings) {
    let (spec, path) = (pod.v("spec"), root.child("spec"));
    scheduling(spec, &path, out);
    let annotations = pod.v("metadata").v("annotations");
    let annotations_path = root.child("metadata").child("annotations");
    for (key, field) in [
        ("scheduler.alpha.kubernetes.io/critical-pod", "v1.16+; use the \"priorityClassName\""),
        ("security.alpha.kubernetes.io/sysctls", "v1.11+; use the \"sysctls\""),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "v1.11+; use the \"sysctls\""),
    ] {
        if annotations.has(key) {
            out.push(format!("{}: non-functional in {field} field instead", annotations_path.key(key)));
        }
    }
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        volume_source(volume, &path.child("volumes").index(i), out);
    }
    for volume in spec.list("volumes") {
        overlaps(volume, out);
    }
    for (i, ip) in repeated(spec.list("hostAliases").iter().map(|a| a.s("ip"))) {
        out.push(format!("{}: duplicate ip {ip:?}", path.child("hostAliases").index(i).child("ip")));
    }
    let secrets: Vec<&str> = spec.list("imagePullSecrets").iter().map(|s| s.s("name")).collect();
    let at = path.child("imagePullSecrets");
    for (i, name) in repeated(secrets.iter().copied()) {
        out.push(format!("{}: duplicate name {name:?}", at.index(i).child("name")));
    }
    for (i, name) in secrets.into_iter().enumerate().filter(|(_, name)| name.is_empty()) {
        out.push(format!("{}: invalid empty name {name:?}", at.index(i).child("name")));
    }
    for resource in ["memory", "ephemeral-storage"] {
        fraction(spec.v("overhead"), resource, &path.child("overhead"), out);
    }
    const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
    let security = spec.v("securityContext");
    if !security.has("seccompProfile") && annotations.has(SECCOMP) {
        out.push(seccomp(&annotations_path, SECCOMP));
    }
    let all = containers::all(spec, &path);
    for (container, path) in &all {
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{}", container.s("name"));
        if !container.v("securityContext").has("seccompProfile") && annotations.has(&key) {
            out.push(seccomp(&annotations_path, &key));
        }
        if !root.is_nil() {
            app_armor(container, security, annotations, &annotations_path, out);
        }
        amounts(container, path, out);
        hidden_variables(container, path, out);
    }
    ports(&all, out);
    if spec.i("terminationGracePeriodSeconds") < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    pod_affinity(spec.v("affinity"), &path.child("affinity"), out);
    for (i, server) in strings(spec.v("dnsConfig"), "nameservers").into_iter().enumerate() {
        out.extend(ip_warnings(server, &path.child("dnsConfig").child("nameservers").index(i)));
    }
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        out.extend(ip_warnings(alias.s("ip"), &path.child("hostAliases").index(i).child("ip")));
    }
}

fn seccomp(annotations: &FieldPath, key: &str) -> String {
    format!("{}: non-functional in v1.27+; use the \"seccompProfile\" field instead", annotations.key(key))
}

fn scheduling(spec: &Value, path: &FieldPath, out: &mut Warnings) {
    for key in spec.members("nodeSelector").keys() {
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
        }
    }
    let affinity = spec.v("affinity").v("nodeAffinity");
    let at = path.child("affinity").child("nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in affinity.v(required).list("nodeSelectorTerms").iter().enumerate() {
        selector_term(term, false, &at.child(required).child("nodeSelectorTerms").index(i), out);
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in affinity.list(preferred).iter().enumerate() {
        selector_term(term.v("preference"), true, &at.child(preferred).index(i).child("preference"), out);
    }
    for (i, one) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        let key = one.s("topologyKey");
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {key} is {message}", path.child("topologyKey")));
        }
        if !one.has("labelSelector") {
            out.push(format!("{}: {NO_POD}", path.child("labelSelector")));
        }
    }
}

fn pod_affinity(affinity: &Value, path: &FieldPath, out: &mut Warnings) {
    for key in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (affinity.v(key), path.child(key));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in terms.list(required).iter().enumerate() {
            if !term.has("labelSelector") {
                out.push(format!("{}: {NO_POD}", path.child(required).index(i).child("labelSelector")));
            }
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for (i, term) in terms.list(preferred).iter().enumerate() {
            if !term.v("podAffinityTerm").has("labelSelector") {
                let at = path.child(preferred).index(i).children(&["podAffinityTerm", "labelSelector"]);
                out.push(format!("{at}: {NO_POD}"));
            }
        }
    }
}

fn volume_source(volume: &Value, path: &FieldPath, out: &mut Warnings) {
    const OLD: &[(&str, &str, &str)] = &[
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (key, shown, message) in OLD {
        if *key == "cephfs"
            && let Some(claim) = volume.v("ephemeral").o("volumeClaimTemplate")
        {
            claim_spec(claim.v("spec"), &path.children(&["ephemeral", "volumeClaimTemplate", "spec"]), out);
        }
        if volume.has(key) {
            out.push(format!("{}: {message}", path.child(shown)));
        }
    }
}

/// A path inside a volume, and where it comes from.
#[derive(Clone, PartialEq)]
struct Placed {
    path: String,
    source: String,
}

impl Placed {
    fn new(path: &str, source: &str) -> Self {
        Placed { path: path.to_owned(), source: source.to_owned() }
    }

    fn print(&self) -> String {
        if self.source.is_empty() { format!("{:?}", self.path) } else { format!("{:?} ({})", self.path, self.source) }
    }

    fn touches(&self, other: &Placed) -> bool {
        let (a, b) = (format!("{}/", self.path), format!("{}/", other.path));
        !self.path.is_empty() && !other.path.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    }
}

/// Adds paths to those of a volume and tells which collide.
fn collisions(all: &mut Vec<Placed>, paths: Vec<Placed>) -> Vec<String> {
    let mut out = Vec::new();
    for mut one in paths {
        one.path.truncate(one.path.trim_end_matches('/').len());
        out.extend(
            all.iter().filter(|other| other.touches(&one)).map(|o| format!("{} with {}", one.print(), o.print())),
        );
        all.push(one);
    }
    out
}

fn items(source: &Value, from: &str) -> Vec<Placed> {
    source.list("items").iter().map(|item| Placed::new(item.s("path"), from)).collect()
}

fn overlaps(volume: &Value, out: &mut Warnings) {
    let name = volume.s("name");
    let mut warn = |what: &str, found: Vec<String>| {
        for one in found {
            out.push(format!("volume {name:?} ({what}): overlapping paths: {one}"));
        }
    };
    for (key, kind, name_key) in
        [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
    {
        let Some(source) = volume.o(key) else { continue };
        let what = if name_key.is_empty() { kind.to_owned() } else { format!("{kind} {:?}", source.s(name_key)) };
        warn(&what, collisions(&mut Vec::new(), items(source, "")));
    }
    let mut all = Vec::new();
    let mut found = Vec::new();
    for source in volume.v("projected").list("sources") {
        if source.as_object().is_none_or(|s| s.is_empty()) {
            found.push(None);
            continue;
        }
        found.extend(collisions(&mut all, projected(source)).into_iter().map(Some));
    }
    for one in found {
        match one {
            Some(one) => out.push(format!("volume {name:?} (Projected): overlapping paths: {one}")),
            None => out.push(format!("volume {name:?} (Projected) has no sources provided")),
        }
    }
}

fn projected(source: &Value) -> Vec<Placed> {
    if let Some(map) = source.o("configMap").filter(|s| s.has("items")) {
        return items(map, &format!("ConfigMap {:?}", map.s("name")));
    }
    if let Some(secret) = source.o("secret").filter(|s| s.has("items")) {
        return items(secret, &format!("Secret {:?}", secret.s("name")));
    }
    if let Some(fields) = source.o("downwardAPI").filter(|s| s.has("items")) {
        return items(fields, "DownwardAPI");
    }
    if let Some(token) = source.o("serviceAccountToken") {
        return vec![Placed::new(token.s("path"), "ServiceAccountToken")];
    }
    if let Some(bundle) = source.o("clusterTrustBundle") {
        let name = bundle.os("name").unwrap_or(bundle.s("signerName"));
        return vec![Placed::new(bundle.s("path"), &format!("ClusterTrustBundle {name:?}"))];
    }
    let Some(certificate) = source.o("podCertificate") else { return Vec::new() };
    [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ]
    .into_iter()
    .filter(|(key, _)| !certificate.s(key).is_empty())
    .map(|(key, from)| Placed::new(certificate.s(key), from))
    .collect()
}

/// What becomes of the old annotation about a container of a new pod.
pub(crate) struct AnnotatedProfile {
    /// `containers` or another list.
    pub list: &'static str,
    pub index: usize,
    /// What goes to the field, unless the pod as a whole has that profile.
    pub profile: Option<Value>,
    pub warning: Option<String>,
}

/// The containers of a new pod that say in an annotation alone which AppArmor profile they want.
pub(crate) fn annotated_profiles(pod: &Value) -> Vec<AnnotatedProfile> {
    let (spec, annotations) = (pod.v("spec"), pod.v("metadata").v("annotations"));
    if spec.v("os").s("name") == "windows" || !annotations.is_object() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in spec.list(list).iter().enumerate() {
            let key = format!("{APP_ARMOR}{}", container.s("name"));
            let Some(annotation) = annotations.os(&key) else { continue };
            if container.v("securityContext").has("appArmorProfile") {
                continue;
            }
            let derived = Some(annotated_profile(annotation)).filter(security::is_app_armor_profile);
            let of_pod = spec.v("securityContext").v("appArmorProfile");
            let same = derived.as_ref().is_some_and(|profile| semantic_equal(profile, of_pod));
            let warning = (!same).then(|| {
                let path = FieldPath::new("metadata").child("annotations").key(&key);
                format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead")
            });
            out.push(AnnotatedProfile { list, index, profile: derived.filter(|_| !same), warning });
        }
    }
    out
}

/// The profile that an annotation stands for.
fn annotated_profile(annotation: &str) -> Value {
    let mut profile = Value::object();
    let (kind, name) = match annotation {
        "unconfined" => ("Unconfined", ""),
        "runtime/default" => ("RuntimeDefault", ""),
        other => match other.strip_prefix("localhost/") {
            Some(name) => ("Localhost", name),
            None => return Value::Null,
        },
    };
    profile.set_at(&["type"], kind.into());
    if kind == "Localhost" {
        profile.set_at(&["localhostProfile"], name.into());
    }
    profile
}

fn app_armor(
    container: &Value,
    security: &Value,
    annotations: &Value,
    annotations_path: &FieldPath,
    out: &mut Warnings,
) {
    let key = format!("{APP_ARMOR}{}", container.s("name"));
    let Some(annotation) = annotations.os(&key) else { return };
    if container.v("securityContext").has("appArmorProfile") {
        return;
    }
    let same = security.o("appArmorProfile").is_some_and(|p| semantic_equal(p, &annotated_profile(annotation)));
    if !same {
        out.push(format!(
            "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
            annotations_path.key(&key)
        ));
    }
}

fn amounts(container: &Value, path: &FieldPath, out: &mut Warnings) {
    for resource in ["memory", "ephemeral-storage"] {
        for key in ["limits", "requests"] {
            fraction(container.v("resources").v(key), resource, &path.child("resources").child(key), out);
        }
    }
}

fn hidden_variables(container: &Value, path: &FieldPath, out: &mut Warnings) {
    let env = container.list("env");
    for (i, name) in repeated(env.iter().map(|one| one.s("name"))) {
        let reference = format!("$({name})");
        let value = env[i].s("value");
        if env[i].has("valueFrom") || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(i)
            ));
        }
    }
}

fn ports(all: &[(&Value, FieldPath)], out: &mut Warnings) {
    let mut seen: Vec<(FieldPath, &Value)> = Vec::new();
    let each = || {
        all.iter().flat_map(|(container, path)| {
            let path = path.child("ports");
            container.list("ports").iter().enumerate().map(move |(i, port)| (path.index(i), port))
        })
    };
    for (path, port) in each() {
        let (host_ip, host_port) = (port.s("hostIP"), port.i("hostPort"));
        if !host_ip.is_empty() && host_port == 0 {
            out.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{host_ip}}}",
                port.s("name"),
                port.i("containerPort"),
                port.s("protocol")
            ));
        }
        for (other_path, other) in &seen {
            if ["containerPort", "protocol"].iter().any(|key| !semantic_equal(other.v(key), port.v(key))) {
                continue;
            }
            let (other_ip, other_port) = (other.s("hostIP"), other.i("hostPort"));
            let relation = if host_ip == other_ip && host_port == other_port {
                "duplicate"
            } else if host_port == 0 || other_port == 0 {
                "overlapping"
            } else if host_port == other_port && (host_ip.is_empty() != other_ip.is_empty()) {
                "dangerously ambiguous"
            } else {
                continue;
            };
            out.push(format!("{path}: {relation} port definition with {other_path}"));
        }
        seen.push((path, port));
    }
    let mut names: Vec<(&str, FieldPath)> = Vec::new();
    for (path, port) in each() {
        let name = port.s("name");
        if name.is_empty() {
            continue;
        }
        match names.iter().find(|(known, _)| *known == name) {
            Some((_, other)) => out.push(format!(
                "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
            )),
            None => names.push((name, path)),
        }
    }
}
