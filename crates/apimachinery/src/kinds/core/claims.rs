//! PersistentVolumeClaims and PersistentVolumes.

use super::resources::{self, quantity};
use super::volume_sources as sources;
use super::{diff, scheduling};
use crate::field::{BadValue, FieldPath};
use crate::json::Value;
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{self, Errors, Report, SelectorOptions, immutable, label_selector, optional_one_of, strings};
use crate::kinds::object_meta::{self, MetaRules};
use crate::names;
use crate::schema::internal;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// What a stored claim already violates.
#[derive(Clone, Copy, Default)]
pub(crate) struct ClaimOptions {
    invalid_selector_values: bool,
    invalid_group: bool,
}

fn access_modes(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("accessModes");
    let (mut single, mut others) = (false, false);
    for mode in strings(spec, "accessModes") {
        if !ACCESS_MODES.contains(&mode) {
            errors.not_supported(&at, mode, ACCESS_MODES);
        }
        if mode == "ReadWriteOncePod" {
            single = true;
        } else if ACCESS_MODES.contains(&mode) {
            others = true;
        }
    }
    if single && others {
        errors.forbidden(&at, "may not use ReadWriteOncePod with other access modes");
    }
}

fn class_name(name: &str, path: &FieldPath, errors: &mut Errors) {
    errors.messages(path, name, names::name_is_dns_subdomain(name, false));
}

/// The spec of a claim or of a template of one.
pub(crate) fn claim_spec(spec: &Value, path: &FieldPath, options: ClaimOptions, errors: &mut Errors) {
    if spec.list("accessModes").is_empty() {
        errors.required(&path.child("accessModes"), "at least 1 access mode is required");
    }
    let selector = SelectorOptions { allow_invalid_label_value: options.invalid_selector_values, ..Default::default() };
    label_selector(spec.o("selector"), selector, &path.child("selector"), errors);
    access_modes(spec, path, errors);
    let at = path.child("resources").key("storage");
    match spec.v("resources").members("requests").get("storage") {
        None => errors.required(&at, ""),
        Some(storage) => {
            if resources::positive_quantity(storage, &at, errors) {
                resources::quantity_value("storage", storage, &at, errors);
            }
        }
    }
    let class = spec.s("storageClassName");
    if !class.is_empty() {
        class_name(class, &path.child("storageClassName"), errors);
    }
    optional_one_of(spec, "volumeMode", VOLUME_MODES, path, errors);
    let (source, reference) = (spec.o("dataSource"), spec.o("dataSourceRef"));
    if let Some(source) = source {
        data_source(source, options, &path.child("dataSource"), errors);
    }
    if let Some(reference) = reference {
        let at = path.child("dataSourceRef");
        data_source(reference, options, &at, errors);
        let namespace = reference.s("namespace");
        if !namespace.is_empty() {
            errors.messages(&at.child("namespace"), namespace, names::name_is_dns_label(namespace, false));
        }
    }
    if let (Some(source), Some(reference)) = (source, reference) {
        // Upstream prints a path as a value here, which shows nothing.
        let shown = BadValue::Printed("{}".to_owned());
        if !reference.s("namespace").is_empty() {
            errors.invalid(path, shown, "may not be specified when dataSourceRef.namespace is specified");
        } else if ["apiGroup", "kind", "name"].iter().any(|k| source.os(k) != reference.os(k)) {
            errors.invalid(path, shown, "must match dataSourceRef");
        }
    }
    let class = spec.s("volumeAttributesClassName");
    if !class.is_empty() {
        class_name(class, &path.child("volumeAttributesClassName"), errors);
    }
}

fn data_source(source: &Value, options: ClaimOptions, path: &FieldPath, errors: &mut Errors) {
    for key in ["name", "kind"] {
        if source.s(key).is_empty() {
            errors.required(&path.child(key), "");
        }
    }
    let group = source.s("apiGroup");
    if group.is_empty() && source.s("kind") != "PersistentVolumeClaim" {
        errors.invalid(path, source.s("kind"), "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
    }
    if !group.is_empty() && !options.invalid_group {
        errors.messages(&path.child("apiGroup"), group, names::is_dns1123_subdomain(group));
    }
}

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);

pub(crate) fn create_claim(claim: &Value, errors: &mut Errors) {
    object_meta::validate(claim, META, errors);
    claim_spec(claim.v("spec"), &FieldPath::new("spec"), ClaimOptions::default(), errors);
}

pub(crate) fn update_claim(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    let options = ClaimOptions {
        invalid_selector_values: check::selector_has_invalid_value(before.v("selector")),
        invalid_group: before.v("dataSource").has("apiGroup") || before.v("dataSourceRef").has("apiGroup"),
    };
    object_meta::validate_update(new, old, true, errors);
    object_meta::validate(new, META, errors);
    claim_spec(spec, &path, options, errors);
    let mut munged = spec.clone();
    let mut was = before.clone();
    if before.s("volumeName").is_empty() && spec.has("volumeName") {
        was.set_at(&["volumeName"], spec.v("volumeName").clone());
    }
    let annotation = |o: &Value| o.v("metadata").v("annotations").os(CLASS_ANNOTATION).map(str::to_owned);
    let (old_class, new_class) = (annotation(old), annotation(new));
    let named = spec.os("storageClassName");
    let upgraded = old_class.is_some()
        && !before.has("storageClassName")
        && named.is_some()
        && named == old_class.as_deref()
        && (new_class.is_none() || new_class == old_class);
    if upgraded {
        munged.remove_at(&["storageClassName"]);
    } else {
        if old_class != new_class {
            errors.invalid(
                &FieldPath::new("metadata").children(&["annotations", CLASS_ANNOTATION]),
                new_class.unwrap_or_default(),
                check::IMMUTABLE,
            );
        }
        // A claim without a class may be given one later.
        if named.is_some() && !before.has("storageClassName") && (old_class.is_none() || old_class.as_deref() == named)
        {
            munged.remove_at(&["storageClassName"]);
        }
    }
    let storage = |s: &Value| s.v("resources").members("requests").get("storage").cloned();
    if new.v("status").s("phase") == "Bound" {
        if spec.v("resources").has("requests")
            && let Some(size) = storage(before)
        {
            munged.set_at(&["resources", "requests", "storage"], size);
        }
        match before.o("volumeAttributesClassName") {
            Some(class) => munged.set_at(&["volumeAttributesClassName"], class.clone()),
            None => {
                munged.remove_at(&["volumeAttributesClassName"]);
            }
        }
    }
    if !semantic_equal(&munged, &was) {
        errors.forbidden(
            &path,
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                diff::of("PersistentVolumeClaimSpec", &was, &munged)
            ),
        );
    }
    let size = |s: &Value| storage(s).map(|v| quantity(&v)).unwrap_or_default();
    let capacity = old.v("status").members("capacity").get("storage").map(quantity).unwrap_or_default();
    if size(spec) < size(before) && size(spec) <= capacity {
        errors.forbidden(
            &path.children(&["resources", "requests", "storage"]),
            "field can not be less than status.capacity",
        );
    }
    immutable(spec.v("volumeMode"), before.v("volumeMode"), &FieldPath::new("volumeMode"), errors);
    if spec.v("volumeAttributesClassName") != before.v("volumeAttributesClassName")
        && old.v("status").has("currentVolumeAttributesClassName")
    {
        let at = path.child("volumeAttributesClassName");
        const NOT_NIL: &str = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match spec.os("volumeAttributesClassName") {
            None => errors.forbidden(&at, format!("update to nil {NOT_NIL}")),
            Some("") => errors.forbidden(&at, format!("update to empty string {NOT_NIL}")),
            Some(_) => {}
        }
    }
}

pub(crate) fn update_claim_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    if new.v("metadata").s("resourceVersion").is_empty() {
        errors.required(&FieldPath::new("resourceVersion"), "");
    }
    if new.v("spec").list("accessModes").is_empty() {
        errors.required(&FieldPath::new("Spec").child("accessModes"), "");
    }
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    basic_list(status, "capacity", &path, errors);
    let at = path.child("allocatedResourceStatuses");
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    for (name, state) in status.members("allocatedResourceStatuses").iter() {
        claim_resource(name, &at, errors);
        if !state.as_str().is_some_and(|s| STATES.contains(&s)) {
            let mut sorted = STATES.to_vec();
            sorted.sort_unstable();
            errors.not_supported(&at, name.as_str(), &sorted);
        }
    }
    let at = path.child("allocatedResources");
    for (name, value) in status.members("allocatedResources").iter() {
        if !claim_resource(name, &at, errors) {
            continue;
        }
        if basic(value, &at.key(name), errors) {
            resources::quantity_value("storage", value, &at.key(name), errors);
        }
    }
}

fn claim_resource(name: &str, path: &FieldPath, errors: &mut Errors) -> bool {
    let messages = names::is_qualified_name(name);
    if !messages.is_empty() {
        errors.messages(path, name, messages);
        return false;
    }
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if native && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
        return false;
    }
    true
}

fn basic(value: &Value, path: &FieldPath, errors: &mut Errors) -> bool {
    let number = quantity(value).value();
    if number < 0 {
        errors.invalid(path, number, "must be a valid resource quantity");
    }
    number >= 0
}

fn basic_list(object: &Value, key: &str, path: &FieldPath, errors: &mut Errors) {
    for (name, value) in object.members(key).iter() {
        basic(value, &path.child(key).key(name), errors);
    }
}

type Check = fn(&Value, &FieldPath, &mut Errors);

/// Sources of persistent volumes: member, the path of "more than one", the path below, and the check.
pub(super) const SOURCES: &[(&str, &str, &str, Check)] = &[
    ("hostPath", "hostPath", "hostPath", sources::host_path),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk", sources::gce_disk),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore", sources::aws_disk),
    ("glusterfs", "glusterfs", "glusterfs", sources::glusterfs_persistent),
    ("flocker", "flocker", "flocker", sources::flocker),
    ("nfs", "nfs", "nfs", sources::nfs),
    ("rbd", "rbd", "rbd", sources::rbd),
    ("quobyte", "quobyte", "quobyte", sources::quobyte),
    ("cephfs", "cephFS", "cephfs", sources::cephfs),
    ("iscsi", "iscsi", "iscsi", |_, _, _| {}),
    ("cinder", "cinder", "cinder", sources::cinder_persistent),
    ("fc", "fc", "fc", sources::fibre_channel),
    ("flexVolume", "flexVolume", "flexVolume", sources::flex),
    ("azureFile", "azureFile", "azureFile", sources::azure_file_persistent),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume", sources::vsphere),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk", sources::photon),
    ("portworxVolume", "portworxVolume", "portworxVolume", sources::portworx),
    ("azureDisk", "azureDisk", "azureDisk", sources::azure_disk),
    ("scaleIO", "scaleIO", "scaleIO", sources::scale_io),
    ("local", "local", "local", sources::local),
    ("storageos", "storageos", "storageos", sources::storage_os_persistent),
    ("csi", "csi", "csi", sources::csi_persistent),
];

/// The spec of a volume; `inline` ones belong to a VolumeAttachment.
pub(crate) fn volume_spec(
    spec: &Value,
    name: &str,
    inline: bool,
    lenient_affinity: bool,
    path: &FieldPath,
    errors: &mut Errors,
) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    if inline {
        if spec.has("claimRef") {
            errors.forbidden(&path.child("claimRef"), INLINE);
        }
        if !spec.members("capacity").is_empty() {
            errors.forbidden(&path.child("capacity"), INLINE);
        }
        if !spec.has("csi") {
            errors.required(&path.child("csi"), "has to be specified in the context of inline volumes");
        }
    }
    if spec.list("accessModes").is_empty() {
        errors.required(&path.child("accessModes"), "");
    }
    access_modes(spec, path, errors);
    if !inline {
        let (capacity, at) = (spec.members("capacity"), path.child("capacity"));
        if capacity.is_empty() {
            errors.required(&at, "");
        }
        if !capacity.contains_key("storage") || capacity.len() > 1 {
            errors.not_supported(&at, check::shown(spec.v("capacity")), &["storage"]);
        }
        for (resource, value) in capacity.iter() {
            basic(value, &at.key(resource), errors);
            resources::positive_quantity(value, &at.key(resource), errors);
        }
    }
    let policy = spec.s("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        let at = path.child("persistentVolumeReclaimPolicy");
        if inline {
            if policy != "Retain" {
                errors.forbidden(&at, "may only be Retain in the context of inline volumes");
            }
        } else if !matches!(policy, "Delete" | "Recycle" | "Retain") {
            errors.not_supported(&at, policy, &["Delete", "Recycle", "Retain"]);
        }
    }
    let affinity = spec.o("nodeAffinity");
    if let Some(affinity) = affinity {
        let at = path.child("nodeAffinity");
        if inline {
            errors.forbidden(&at, INLINE);
        } else if let Some(required) = affinity.o("required") {
            scheduling::node_selector(required, lenient_affinity, &at.child("required"), errors);
        } else {
            errors.required(&at.child("required"), "must specify required node constraints");
        }
    }
    let mut count = 0;
    for (member, shown, below, check) in SOURCES {
        let Some(source) = spec.o(member) else { continue };
        // FlexVolume alone is not counted against the others.
        if count > 0 && *member != "flexVolume" {
            errors.forbidden(&path.child(shown), "may not specify more than 1 volume type");
            continue;
        }
        count += 1;
        match *member {
            "iscsi" => sources::iscsi_persistent(source, name, &path.child(below), errors),
            _ => check(source, &path.child(below), errors),
        }
        if *member == "local" && (affinity.is_none() || inline) {
            errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
        }
    }
    if count == 0 {
        errors.required(path, "must specify a volume type");
    }
    let host_root = spec.o("hostPath").is_some_and(|h| is_root(h.s("path")));
    if host_root && policy == "Recycle" {
        errors.forbidden(
            &path.child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
    let class = spec.s("storageClassName");
    if !class.is_empty() {
        if inline {
            errors.forbidden(&path.child("storageClassName"), INLINE);
        } else {
            class_name(class, &path.child("storageClassName"), errors);
        }
    }
    if let Some(mode) = spec.os("volumeMode") {
        if inline {
            if mode != "Filesystem" {
                errors.forbidden(
                    &path.child("volumeMode"),
                    "may not specify volumeMode other than Filesystem in the context of inline volumes",
                );
            }
        } else if !VOLUME_MODES.contains(&mode) {
            errors.not_supported(&path.child("volumeMode"), mode, VOLUME_MODES);
        }
    }
    if let Some(class) = spec.os("volumeAttributesClassName") {
        let at = path.child("volumeAttributesClassName");
        if class.is_empty() {
            errors.required(&at, "an empty string is disallowed");
        } else {
            class_name(class, &at, errors);
        }
        if !spec.has("csi") {
            errors.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

/// Whether a path leads to `/` once `.` and `..` are followed.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

const VOLUME_META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);

fn volume(pv: &Value, lenient: bool, errors: &mut Errors) {
    object_meta::validate(pv, VOLUME_META, errors);
    volume_spec(pv.v("spec"), pv.v("metadata").s("name"), false, lenient, &FieldPath::new("spec"), errors);
}

pub(crate) fn create_volume(pv: &Value, errors: &mut Errors) {
    volume(pv, false, errors);
}

pub(crate) fn update_volume(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    let terms = before.v("nodeAffinity").v("required").list("nodeSelectorTerms");
    volume(new, terms.iter().any(check::selector_has_invalid_value), errors);
    let only_sources = |spec: &Value| -> Value {
        SOURCES.iter().filter_map(|(m, ..)| Some((*m, spec.o(m)?.clone()))).collect::<crate::json::Map>().into()
    };
    let (mut after, was) = (only_sources(spec), only_sources(before));
    // The expansion secret may be added later.
    if was.has("csi") && !was.v("csi").has("controllerExpandSecretRef") {
        after.remove_at(&["csi", "controllerExpandSecretRef"]);
    }
    if !semantic_equal(&after, &was) {
        errors.forbidden(
            &path.child("persistentvolumesource"),
            format!("spec.persistentvolumesource is immutable after creation\n{}", diff::of_sources(&was, &after)),
        );
    }
    immutable(spec.v("volumeMode"), before.v("volumeMode"), &FieldPath::new("volumeMode"), errors);
    if before.has("nodeAffinity") && !same_but_stable_labels(spec.v("nodeAffinity"), before.v("nodeAffinity")) {
        let shown = internal::core("VolumeNodeAffinity").filter(|_| spec.has("nodeAffinity"));
        errors.invalid(
            &FieldPath::new("nodeAffinity"),
            shown.map_or(BadValue::from(Value::Null), |ty| {
                BadValue::Printed(internal::compact(spec.v("nodeAffinity"), ty))
            }),
            "field is immutable, except for updating from beta label to GA",
        );
    }
    if before.has("volumeAttributesClassName") && !spec.has("volumeAttributesClassName") {
        errors.forbidden(&path.child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden");
    }
}

/// Whether nothing differs but keys that went from beta topology labels to the stable ones that replaced them.
fn same_but_stable_labels(new: &Value, old: &Value) -> bool {
    let mut was = old.clone();
    let new_terms = new.v("required").list("nodeSelectorTerms");
    let terms = was.at_mut(&["required", "nodeSelectorTerms"]).and_then(Value::as_array_mut);
    for (term, new_term) in terms.into_iter().flatten().zip(new_terms) {
        for key in ["matchExpressions", "matchFields"] {
            for (requirement, new_requirement) in crate::kinds::access::each(term, key).zip(new_term.list(key)) {
                let stable = match requirement.s("key") {
                    "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
                    "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
                    "beta.kubernetes.io/os" => "kubernetes.io/os",
                    "beta.kubernetes.io/arch" => "kubernetes.io/arch",
                    "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
                    _ => continue,
                };
                if new_requirement.s("key") == stable {
                    requirement.make_object().insert("key", stable.into());
                }
            }
        }
    }
    semantic_equal(new, &was)
}

pub(crate) fn update_volume_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    if new.v("metadata").s("resourceVersion").is_empty() {
        errors.required(&FieldPath::new("resourceVersion"), "");
    }
}
