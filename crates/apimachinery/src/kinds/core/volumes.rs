//! Volumes of pods: one source each, and what each source needs.

use super::volume_sources as sources;
use super::{env, volume_sources};
use crate::field::FieldPath;
use crate::json::{Map, Value};
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, SelectorOptions, dns_label, label_selector};
use crate::kinds::core::pod_spec::PodOptions;
use crate::kinds::object_meta;
use crate::names;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The volumes of a pod that passed validation, by name.
pub(crate) type Volumes<'a> = Vec<(&'a str, &'a Value)>;

type Check = fn(&Value, &FieldPath, &mut Errors);

/// Sources in upstream's order: member, the path of "more than one", the path below, and the check.
const SOURCES: &[(&str, &str, &str, Check)] = &[
    ("hostPath", "hostPath", "hostPath", sources::host_path),
    ("gitRepo", "gitRepo", "gitRepo", sources::git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", sources::gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", sources::aws_disk),
    ("secret", "secret", "secret", secret),
    ("nfs", "nfs", "nfs", sources::nfs),
    ("iscsi", "iscsi", "iscsi", sources::iscsi),
    ("glusterfs", "glusterfs", "glusterfs", sources::glusterfs),
    ("flocker", "flocker", "flocker", sources::flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim", claim),
    ("rbd", "rbd", "rbd", sources::rbd),
    ("cinder", "cinder", "cinder", sources::cinder),
    ("cephfs", "cephFS", "cephfs", sources::cephfs),
    ("quobyte", "quobyte", "quobyte", sources::quobyte),
    ("downwardAPI", "downwarAPI", "downwardAPI", downward),
    ("fc", "fc", "fc", sources::fibre_channel),
    ("flexVolume", "flexVolume", "flexVolume", sources::flex),
    ("configMap", "configMap", "configMap", config_map),
    ("azureFile", "azureFile", "azureFile", sources::azure_file),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", sources::vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", sources::photon),
    ("portworxVolume", "portworxVolume", "portworxVolume", sources::portworx),
    ("azureDisk", "azureDisk", "azureDisk", sources::azure_disk),
    ("storageos", "storageos", "storageos", sources::storage_os),
];

/// Validates the volumes of a pod and returns those without errors.
pub(crate) fn volumes<'a>(
    list: &'a [Value],
    meta: Option<&Value>,
    path: &FieldPath,
    options: PodOptions,
    errors: &mut Errors,
) -> Volumes<'a> {
    let mut valid: Volumes<'a> = Vec::new();
    let pod_name = meta.map_or("", |m| m.s("name"));
    let created: Vec<String> = list
        .iter()
        .filter(|v| !pod_name.is_empty() && v.has("ephemeral"))
        .map(|v| format!("{pod_name}-{}", v.s("name")))
        .collect();
    for (i, volume) in list.iter().enumerate() {
        let path = path.index(i);
        let name = volume.s("name");
        let mut found = Errors::new();
        source(volume, pod_name, &path, options, &mut found);
        let name_path = path.child("name");
        if name.is_empty() {
            found.required(&name_path, "");
        } else {
            dns_label(name, &name_path, &mut found);
        }
        if valid.iter().any(|(n, _)| *n == name) {
            found.duplicate(&name_path, name);
        }
        if found.is_empty() {
            valid.push((name, volume));
        }
        errors.append(&mut found);
        if let Some(claim) = volume.o("persistentVolumeClaim")
            && created.iter().any(|c| c == claim.s("claimName"))
        {
            errors.invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                claim.s("claimName"),
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    valid
}

fn source(volume: &Value, pod_name: &str, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    let mut count = 0;
    let name = volume.s("name");
    if let Some(empty_dir) = volume.o("emptyDir") {
        count += 1;
        if empty_dir.s("sizeLimit").starts_with('-') {
            errors.forbidden(
                &path.child("emptyDir").child("sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            );
        }
    }
    let mut one = |shown: &str, errors: &mut Errors| {
        if count > 0 {
            errors.forbidden(&path.child(shown), "may not specify more than 1 volume type");
            return false;
        }
        count += 1;
        true
    };
    for (member, shown, below, check) in SOURCES {
        let Some(value) = volume.o(member) else { continue };
        if one(shown, errors) {
            check(value, &path.child(below), errors);
        }
        if *member == "iscsi" && value.has("initiatorName") && name.len() + 1 + value.s("targetPortal").len() > 64 {
            errors.invalid(&path.child("name"), name, volume_sources::PORTAL_TOO_LONG);
        }
    }
    if let Some(projected) = volume.o("projected")
        && one("projected", errors)
    {
        projection(projected, &path.child("projected"), options, errors);
    }
    if let Some(scale_io) = volume.o("scaleIO")
        && one("scaleIO", errors)
    {
        sources::scale_io(scale_io, &path.child("scaleIO"), errors);
    }
    if let Some(csi) = volume.o("csi")
        && one("csi", errors)
    {
        csi_inline(csi, &path.child("csi"), errors);
    }
    if let Some(ephemeral) = volume.o("ephemeral")
        && one("ephemeral", errors)
    {
        claim_template(ephemeral, &path.child("ephemeral"), errors);
        if !pod_name.is_empty() && !name.is_empty() {
            let claim = format!("{pod_name}-{name}");
            for message in names::name_is_dns_subdomain(&claim, false) {
                errors.invalid(&path.child("name"), name, format!("PVC name {claim:?}: {message}"));
            }
        }
    }
    if let Some(image) = volume.o("image")
        && one("image", errors)
    {
        let path = path.child("image");
        if options.is_pod && image.s("reference").is_empty() {
            errors.required(&path.child("reference"), "");
        }
        super::containers::pull_policy(image.s("pullPolicy"), &path.child("pullPolicy"), errors);
    }
    if count == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn file_mode(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    if let Some(mode) = object.oi(key)
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(&path.child(key), mode, MODE);
    }
}

fn secret(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.s("secretName").is_empty() {
        errors.required(&path.child("secretName"), "");
    }
    file_mode(source, "defaultMode", path, errors);
    keys_to_paths(source.list("items"), &path.child("items"), errors);
}

fn config_map(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.s("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
    file_mode(source, "defaultMode", path, errors);
    keys_to_paths(source.list("items"), &path.child("items"), errors);
}

fn keys_to_paths(items: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (i, item) in items.iter().enumerate() {
        key_to_path(item, &path.index(i), errors);
    }
}

fn key_to_path(item: &Value, path: &FieldPath, errors: &mut Errors) {
    for key in ["key", "path"] {
        if item.s(key).is_empty() {
            errors.required(&path.child(key), "");
        }
    }
    local_path(item.s("path"), &path.child("path"), errors);
    file_mode(item, "mode", path, errors);
}

fn claim(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.s("claimName").is_empty() {
        errors.required(&path.child("claimName"), "");
    }
}

fn downward(source: &Value, path: &FieldPath, errors: &mut Errors) {
    file_mode(source, "defaultMode", path, errors);
    // Upstream reports items at the list's parent, without an index.
    for item in source.list("items") {
        downward_file(item, path, errors);
    }
}

const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn downward_file(file: &Value, path: &FieldPath, errors: &mut Errors) {
    if file.s("path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    local_path(file.s("path"), &path.child("path"), errors);
    match (file.o("fieldRef"), file.o("resourceFieldRef")) {
        (Some(field), other) => {
            env::object_field(field, VOLUME_FIELDS, &path.child("fieldRef"), errors);
            if other.is_some() {
                errors.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
        }
        (None, Some(resource)) => env::resource_field(resource, &path.child("resourceFieldRef"), true, errors),
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    file_mode(file, "mode", path, errors);
}

/// The destination paths of a projected volume, each of which may occur once.
struct Destinations<'a> {
    seen: Vec<&'a str>,
}

impl<'a> Destinations<'a> {
    fn add(&mut self, destination: &'a str, shown: &str, path: &FieldPath, errors: &mut Errors) {
        if self.seen.contains(&destination) {
            errors.invalid(path, shown, "conflicting duplicate paths");
        } else {
            self.seen.push(destination);
        }
    }
}

fn projection(projected: &Value, path: &FieldPath, options: PodOptions, errors: &mut Errors) {
    file_mode(projected, "defaultMode", path, errors);
    let mut all = Destinations { seen: Vec::new() };
    for (i, source) in projected.list("sources").iter().enumerate() {
        let source_path = path.child("sources").index(i);
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let Some(keys) = source.o(kind) else { continue };
            count += 1;
            let below = source_path.child(kind);
            let name = keys.s("name");
            if name.is_empty() {
                errors.required(&below.child("name"), "");
            }
            for (j, item) in keys.list("items").iter().enumerate() {
                key_to_path(item, &below.child("items").index(j), errors);
                if !item.s("path").is_empty() {
                    all.add(item.s("path"), name, path, errors);
                }
            }
        }
        if let Some(downward) = source.o("downwardAPI") {
            count += 1;
            for item in downward.list("items") {
                downward_file(item, &source_path.child("downwardAPI"), errors);
                if !item.s("path").is_empty() {
                    all.add(item.s("path"), item.s("path"), path, errors);
                }
            }
        }
        if let Some(token) = source.o("serviceAccountToken") {
            count += 1;
            let below = source_path.child("serviceAccountToken");
            let seconds = token.i("expirationSeconds");
            if seconds < 600 {
                errors.invalid(
                    &below.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            if seconds > 1 << 32 {
                errors.invalid(
                    &below.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            if token.s("path").is_empty() {
                errors.required(&path.child("path"), "");
            } else if !options.lenient_token_path {
                local_path(token.s("path"), &path.child("path"), errors);
            }
        }
        if let Some(bundle) = source.o("clusterTrustBundle") {
            count += 1;
            trust_bundle(bundle, &source_path.child("clusterTrustBundle"), errors);
            all.add(bundle.s("path"), bundle.s("path"), path, errors);
        }
        if let Some(certificate) = source.o("podCertificate") {
            count += 1;
            pod_certificate(certificate, path, &source_path.child("podCertificate"), &mut all, errors);
        }
        if count > 1 {
            errors.forbidden(&source_path, "may not specify more than 1 volume type per source");
        }
    }
}

fn trust_bundle(bundle: &Value, path: &FieldPath, errors: &mut Errors) {
    match (bundle.os("name"), bundle.os("signerName")) {
        (Some(_), Some(_)) => errors.invalid(path, bundle, "only one of name and signerName may be used"),
        (Some(name), None) => {
            if name.is_empty() {
                errors.required(&path.child("name"), "must be a valid object name");
            }
            let signer = name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/")).unwrap_or_default();
            for message in crate::kinds::certificates::trust_bundle_name(&signer, name) {
                errors.invalid(&path.child("name"), name, format!("not a valid clustertrustbundlename: {message}"));
            }
            if let Some(selector) = bundle.o("labelSelector") {
                errors.invalid(
                    &path.child("labelSelector"),
                    selector,
                    "labelSelector must be unset if name is specified",
                );
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(&path.child("signerName"), "must be a valid signer name");
            }
            crate::kinds::certificates::signer_name(signer, &path.child("signerName"), errors);
            label_selector(bundle.o("labelSelector"), SelectorOptions::default(), &path.child("labelSelector"), errors);
        }
        (None, None) => errors.required(path, "either name or signerName must be specified"),
    }
    if bundle.s("path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    local_path(bundle.s("path"), &path.child("path"), errors);
}

fn pod_certificate<'a>(
    source: &'a Value,
    volume_path: &FieldPath,
    path: &FieldPath,
    all: &mut Destinations<'a>,
    errors: &mut Errors,
) {
    let signer = source.s("signerName");
    crate::kinds::certificates::signer_name(signer, &path.child("signerName"), errors);
    for key in source.members("userAnnotations").keys() {
        errors.append(&mut names::is_domain_prefixed_key(&path.child("userAnnotations"), &key.to_lowercase()));
    }
    const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    if !KEY_TYPES.contains(&source.s("keyType")) {
        errors.not_supported(&path.child("keyType"), source.s("keyType"), KEY_TYPES);
    }
    if let Some(seconds) = source.oi("maxExpirationSeconds") {
        let at = path.child("maxExpirationSeconds");
        if seconds < 3600 {
            errors.invalid(&at, seconds, "if provided, maxExpirationSeconds must be >= 3600");
        }
        let max = if signer.starts_with("kubernetes.io/") { 86400 } else { 7862400 };
        if seconds > max {
            errors.invalid(&at, seconds, format!("if provided, maxExpirationSeconds must be <= {max}"));
        }
    }
    let mut any = false;
    for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let destination = source.s(key);
        if !destination.is_empty() {
            any = true;
            local_path(destination, &path.child(key), errors);
            all.add(destination, destination, volume_path, errors);
        }
    }
    if !any {
        errors.required(path, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}

fn csi_inline(csi: &Value, path: &FieldPath, errors: &mut Errors) {
    sources::csi_driver_name(csi.s("driver"), &path.child("driver"), errors);
    if let Some(secret) = csi.o("nodePublishSecretRef") {
        let name = secret.s("name");
        if name.is_empty() {
            errors.required(&path.children(&["nodePublishSecretRef", "name"]), "");
        } else {
            errors.messages(&path.child("name"), name, names::name_is_dns_subdomain(name, false));
        }
    }
}

fn claim_template(ephemeral: &Value, path: &FieldPath, errors: &mut Errors) {
    let path = path.child("volumeClaimTemplate");
    let Some(template) = ephemeral.o("volumeClaimTemplate") else {
        errors.required(&path, "");
        return;
    };
    object_meta::validate_template(template.v("metadata"), &path.child("metadata"), errors);
    super::claims::claim_spec(template.v("spec"), &path.child("spec"), Default::default(), errors);
}

/// A path below the volume's root: relative, not climbing, not starting with `..`.
pub(crate) fn local_path(target: &str, path: &FieldPath, errors: &mut Errors) {
    descending_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

pub(crate) fn descending_path(target: &str, path: &FieldPath, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    no_backsteps(target, path, errors);
}

pub(crate) fn no_backsteps(target: &str, path: &FieldPath, errors: &mut Errors) {
    if target.split('/').any(|step| step == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// Mounts of a container; `devices` are its volume devices.
pub(crate) fn mounts(container: &Value, volumes: &Volumes<'_>, path: &FieldPath, errors: &mut Errors) {
    let devices = container.list("volumeDevices");
    let mut points: Vec<&str> = Vec::new();
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, point) = (mount.s("name"), mount.s("mountPath"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if !volumes.iter().any(|(n, _)| *n == name) {
            errors.not_found(&at.child("name"), name);
        }
        if point.is_empty() {
            errors.required(&at.child("mountPath"), "");
        }
        if points.contains(&point) {
            errors.invalid(&at.child("mountPath"), point, "must be unique");
        }
        points.push(point);
        if devices.iter().any(|d| d.s("name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.s("devicePath") == point) {
            errors.invalid(&at.child("mountPath"), point, "must not already exist as a path in volumeDevices");
        }
        let (sub, expr) = (mount.s("subPath"), mount.s("subPathExpr"));
        if !sub.is_empty() {
            descending_path(sub, &path.child("subPath"), errors);
        }
        if !expr.is_empty() {
            if !sub.is_empty() {
                errors.invalid(&at.child("subPathExpr"), expr, "subPathExpr and subPath are mutually exclusive");
            }
            descending_path(expr, &path.child("subPathExpr"), errors);
        }
        propagation(mount, container, path, errors);
        recursive_read_only(mount, &path.child("recursiveReadOnly"), errors);
    }
}

fn propagation(mount: &Value, container: &Value, path: &FieldPath, errors: &mut Errors) {
    let Some(mode) = mount.os("mountPropagation") else { return };
    let path = path.child("mountPropagation");
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    if !MODES.contains(&mode) {
        errors.not_supported(&path, mode, MODES);
    }
    if mode == "Bidirectional" && !container.v("securityContext").b("privileged") {
        errors.forbidden(&path, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(mount: &Value, path: &FieldPath, errors: &mut Errors) {
    match mount.os("recursiveReadOnly") {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.b("readOnly") {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount.os("mountPropagation").is_some_and(|m| m != "None") {
                errors.forbidden(path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Raw block devices of a container.
pub(crate) fn devices(container: &Value, volumes: &Volumes<'_>, path: &FieldPath, errors: &mut Errors) {
    let mounts = container.list("volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (i, device) in container.list("volumeDevices").iter().enumerate() {
        let at = path.index(i);
        let (name, device_path) = (device.s("name"), device.s("devicePath"));
        let source = volumes.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if names.contains(&name) {
            errors.invalid(&at.child("name"), name, "must be unique");
        }
        match source {
            Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => errors.invalid(
                &at.child("name"),
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
            None => errors.not_found(&at.child("name"), name),
        }
        if device_path.is_empty() {
            errors.required(&at.child("devicePath"), "");
        }
        if paths.contains(&device_path) {
            errors.invalid(&at.child("devicePath"), device_path, "must be unique");
        }
        if device_path.split('/').any(|s| s == "..") {
            errors.invalid(&at.child("devicePath"), device_path, "can not contain backsteps ('..')");
        } else {
            paths.push(device_path);
        }
        if mounts.iter().any(|m| m.s("name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.s("mountPath") == device_path) {
            errors.invalid(&at.child("devicePath"), device_path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.push(name);
        }
    }
}

/// Options of FlexVolumes: the project's own namespaces are reserved.
pub(crate) fn flex_options(options: &Map, path: &FieldPath, errors: &mut Errors) {
    for key in options.keys() {
        let namespace = key.split_once('/').map_or(key.as_str(), |(n, _)| n);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            errors.invalid(&path.key(key), key.as_str(), "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}
