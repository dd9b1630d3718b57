//! Volume sources that pods and persistent volumes share, each as a function of the source and its path.

use super::volumes::{flex_options, no_backsteps};
use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{Errors, Report, dns_label, dns_subdomain, optional_one_of, required_string};
use crate::names;

pub(crate) const PORTAL_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

const ISCSI_FORMAT: &str = "must be valid format starting with iqn, eui, or naa";

pub(crate) fn host_path(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.s("path").is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(source.s("path"), &path.child("path"), errors);
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    optional_one_of(source, "type", TYPES, path, errors);
}

pub(crate) fn git_repo(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "repository", path, errors);
    super::volumes::descending_path(source.s("directory"), &path.child("directory"), errors);
}

pub(crate) fn gce_disk(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "pdName", path, errors);
    partition(source, path, errors);
}

pub(crate) fn aws_disk(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "volumeID", path, errors);
    partition(source, path, errors);
}

fn partition(source: &Value, path: &FieldPath, errors: &mut Errors) {
    let partition = source.i("partition");
    if !(0..=255).contains(&partition) {
        errors.invalid(&path.child("partition"), partition, names::inclusive_range_error(1, 255));
    }
}

pub(crate) fn nfs(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "server", path, errors);
    required_string(source, "path", path, errors);
    if !source.s("path").starts_with('/') {
        errors.invalid(&path.child("path"), source.s("path"), "must be an absolute path");
    }
}

pub(crate) fn iscsi(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "targetPortal", path, errors);
    iscsi_target(source, ISCSI_FORMAT, path, errors);
    iscsi_rest(source, ISCSI_FORMAT, false, path, errors);
}

/// The iSCSI source of a persistent volume.
pub(crate) fn iscsi_persistent(source: &Value, volume: &str, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "targetPortal", path, errors);
    if source.has("initiatorName") && volume.len() + 1 + source.s("targetPortal").len() > 64 {
        errors.invalid(&path.child("targetportal"), source.s("targetPortal"), PORTAL_TOO_LONG);
    }
    iscsi_target(source, "must be valid format", path, errors);
    iscsi_rest(source, "must be valid format", true, path, errors);
}

fn iscsi_target(source: &Value, prefix_message: &str, path: &FieldPath, errors: &mut Errors) {
    let iqn = source.s("iqn");
    if iqn.is_empty() {
        errors.required(&path.child("iqn"), "");
    } else {
        iscsi_name(iqn, prefix_message, &path.child("iqn"), errors);
    }
}

fn iscsi_rest(source: &Value, prefix_message: &str, secret_name: bool, path: &FieldPath, errors: &mut Errors) {
    lun(source.i("lun"), path, errors);
    if (source.b("chapAuthDiscovery") || source.b("chapAuthSession")) && !source.has("secretRef") {
        errors.required(&path.child("secretRef"), "");
    }
    if secret_name && source.o("secretRef").is_some_and(|s| s.s("name").is_empty()) {
        errors.required(&path.children(&["secretRef", "name"]), "");
    }
    if let Some(initiator) = source.os("initiatorName") {
        iscsi_name(initiator, prefix_message, &path.child("initiatorname"), errors);
    }
}

fn iscsi_name(name: &str, prefix_message: &str, path: &FieldPath, errors: &mut Errors) {
    let alphanumeric = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_alphanumeric());
    let valid = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => name.len() > 4 && alphanumeric(&name[4..], 16),
        Some("naa") => name.len() > 4 && alphanumeric(&name[4..], 32),
        _ => {
            errors.invalid(path, name, prefix_message);
            return;
        }
    };
    if !valid {
        errors.invalid(path, name, "must be valid format");
    }
}

/// `iqn.yyyy-mm.reversed.domain:name`.
fn is_iqn(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("iqn.") else { return false };
    let Some((head, tail)) = rest.split_once(':') else { return false };
    let bytes = head.as_bytes();
    let date = bytes.len() > 8
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && bytes[5..7].iter().all(u8::is_ascii_digit)
        && bytes[7] == b'.';
    date && bytes[8..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !tail.is_empty()
        && !tail.chars().any(|c| c.is_whitespace() || "^,;*&$|".contains(c))
}

fn lun(lun: i64, path: &FieldPath, errors: &mut Errors) {
    if !(0..=255).contains(&lun) {
        errors.invalid(&path.child("lun"), lun, names::inclusive_range_error(0, 255));
    }
}

pub(crate) fn fibre_channel(source: &Value, path: &FieldPath, errors: &mut Errors) {
    let (targets, wwids) = (source.list("targetWWNs"), source.list("wwids"));
    let at = path.child("targetWWNs");
    if targets.is_empty() && wwids.is_empty() {
        errors.required(&at, "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !wwids.is_empty() {
        errors.invalid(&at, source.v("targetWWNs"), "targetWWNs and wwids can not be specified simultaneously");
    }
    if !targets.is_empty() {
        match source.oi("lun") {
            None => errors.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(number) => lun(number, path, errors),
        }
    }
}

pub(crate) fn glusterfs(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "endpoints", path, errors);
    required_string(source, "path", path, errors);
}

pub(crate) fn glusterfs_persistent(source: &Value, path: &FieldPath, errors: &mut Errors) {
    glusterfs(source, path, errors);
    if let Some(namespace) = source.os("endpointsNamespace") {
        let path = path.child("endpointsNamespace");
        if namespace.is_empty() {
            errors.invalid(&path, "", "if the endpointnamespace is set, it must be a valid namespace name");
        } else {
            errors.messages(&path, namespace, names::name_is_dns_label(namespace, false));
        }
    }
}

pub(crate) fn flocker(source: &Value, path: &FieldPath, errors: &mut Errors) {
    let (name, uuid) = (source.s("datasetName"), source.s("datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

pub(crate) fn rbd(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.list("monitors").is_empty() {
        errors.required(&path.child("monitors"), "");
    }
    required_string(source, "image", path, errors);
}

pub(crate) fn cinder(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "volumeID", path, errors);
    secret_name(source, false, path, errors);
}

pub(crate) fn cinder_persistent(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "volumeID", path, errors);
    secret_name(source, true, path, errors);
}

fn secret_name(source: &Value, namespace: bool, path: &FieldPath, errors: &mut Errors) {
    let Some(secret) = source.o("secretRef") else { return };
    if secret.s("name").is_empty() {
        errors.required(&path.children(&["secretRef", "name"]), "");
    }
    if namespace && secret.s("namespace").is_empty() {
        errors.required(&path.children(&["secretRef", "namespace"]), "");
    }
}

pub(crate) fn cephfs(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.list("monitors").is_empty() {
        errors.required(&path.child("monitors"), "");
    }
}

pub(crate) fn quobyte(source: &Value, path: &FieldPath, errors: &mut Errors) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.s("registry");
    if registry.is_empty() {
        errors.required(&path.child("registry"), PAIRS);
    } else if source.s("tenant").len() >= 65 {
        errors.required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else {
        for pair in registry.split(',') {
            let valid = match pair.strip_prefix('[') {
                Some(rest) => rest.split_once("]:").is_some_and(|(_, port)| !port.contains(':')),
                None => pair.matches(':').count() == 1,
            };
            if !valid {
                errors.invalid(&path.child("registry"), registry, PAIRS);
            }
        }
    }
    required_string(source, "volume", path, errors);
}

pub(crate) fn flex(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "driver", path, errors);
    flex_options(source.members("options"), &path.child("options"), errors);
}

pub(crate) fn azure_file(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "secretName", path, errors);
    required_string(source, "shareName", path, errors);
}

pub(crate) fn azure_file_persistent(source: &Value, path: &FieldPath, errors: &mut Errors) {
    azure_file(source, path, errors);
    if source.os("secretNamespace") == Some("") {
        errors.required(&path.child("secretNamespace"), "");
    }
}

pub(crate) fn azure_disk(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "diskName", path, errors);
    required_string(source, "diskURI", path, errors);
    optional_one_of(source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path, errors);
    optional_one_of(source, "kind", &["Dedicated", "Managed", "Shared"], path, errors);
    let uri = source.s("diskURI");
    match source.os("kind") {
        Some("Managed") if !uri.starts_with("/subscriptions/") => errors.not_supported(
            &path.child("diskURI"),
            uri,
            &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"],
        ),
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => errors.not_supported(
            &path.child("diskURI"),
            uri,
            &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"],
        ),
        _ => {}
    }
}

pub(crate) fn vsphere(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "volumePath", path, errors);
}

pub(crate) fn photon(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "pdID", path, errors);
}

pub(crate) fn portworx(source: &Value, path: &FieldPath, errors: &mut Errors) {
    required_string(source, "volumeID", path, errors);
}

pub(crate) fn scale_io(source: &Value, path: &FieldPath, errors: &mut Errors) {
    for key in ["gateway", "system", "volumeName"] {
        required_string(source, key, path, errors);
    }
}

pub(crate) fn storage_os(source: &Value, path: &FieldPath, errors: &mut Errors) {
    storage_os_names(source, path, errors);
    secret_name(source, false, path, errors);
}

pub(crate) fn storage_os_persistent(source: &Value, path: &FieldPath, errors: &mut Errors) {
    storage_os_names(source, path, errors);
    secret_name(source, true, path, errors);
}

fn storage_os_names(source: &Value, path: &FieldPath, errors: &mut Errors) {
    let name = source.s("volumeName");
    if name.is_empty() {
        errors.required(&path.child("volumeName"), "");
    } else {
        dns_label(name, &path.child("volumeName"), errors);
    }
    let namespace = source.s("volumeNamespace");
    if !namespace.is_empty() {
        dns_label(namespace, &path.child("volumeNamespace"), errors);
    }
}

pub(crate) fn local(source: &Value, path: &FieldPath, errors: &mut Errors) {
    if source.s("path").is_empty() {
        errors.required(&path.child("path"), "");
    } else {
        no_backsteps(source.s("path"), &path.child("path"), errors);
    }
}

/// The name of a CSI driver: a DNS subdomain in any case, of at most 63 characters.
pub(crate) fn csi_driver_name(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    errors.messages(path, name, names::is_dns1123_subdomain(&name.to_lowercase()));
}

/// The CSI source of a persistent volume.
pub(crate) fn csi_persistent(source: &Value, path: &FieldPath, errors: &mut Errors) {
    csi_driver_name(source.s("driver"), &path.child("driver"), errors);
    required_string(source, "volumeHandle", path, errors);
    for key in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let Some(secret) = source.o(key) else { continue };
        let path = path.child(key);
        let (name, namespace) = (secret.s("name"), secret.s("namespace"));
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            dns_subdomain(name, &path.child("name"), errors);
        }
        if namespace.is_empty() {
            errors.required(&path.child("namespace"), "");
        } else {
            dns_label(namespace, &path.child("namespace"), errors);
        }
    }
}
