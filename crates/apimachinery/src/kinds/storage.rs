//! Storage classes, attachments, and what CSI drivers publish.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, SelectorOptions, nonnegative, shown, strings};
use super::core::resources::quantity;
use super::core::{claims, volume_sources};
use super::object_meta::{self, MetaRules};
use crate::field::{FieldError, FieldPath};
use crate::json::{Map, Value};
use crate::names;

const META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);
const MAX_PARAMETERS_BYTES: usize = 256 * 1024;

fn map_bytes(map: &Map) -> usize {
    map.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum()
}

fn provisioner(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
    } else {
        check::qualified_name(&name.to_lowercase(), path, errors);
    }
}

fn parameters(parameters: &Map, allow_empty: bool, path: &FieldPath, errors: &mut Errors) {
    if parameters.len() > 512 {
        return errors.push(FieldError::too_long(path, 512));
    }
    if parameters.contains_key("") {
        errors.invalid(path, "", "field can not be empty.");
    }
    if map_bytes(parameters) > MAX_PARAMETERS_BYTES {
        errors.push(FieldError::too_long(path, MAX_PARAMETERS_BYTES as i64));
    }
    if !allow_empty && parameters.is_empty() {
        errors.required(path, "must contain at least one key/value pair");
    }
}

pub(crate) fn storage_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            check::immutable(new.v(key), old.v(key), &FieldPath::new(key), errors);
        }
        return;
    }
    object_meta::validate(new, META, errors);
    provisioner(new.s("provisioner"), &FieldPath::new("provisioner"), errors);
    parameters(new.members("parameters"), true, &FieldPath::new("parameters"), errors);
    let policy = new.s("reclaimPolicy");
    if !matches!(policy, "" | "Delete" | "Retain") {
        errors.not_supported(&FieldPath::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
    }
    let path = FieldPath::new("volumeBindingMode");
    match new.os("volumeBindingMode") {
        None => errors.required(&path, ""),
        Some("Immediate" | "WaitForFirstConsumer") => {}
        Some(other) => errors.not_supported(&path, other, &["Immediate", "WaitForFirstConsumer"]),
    }
    let mut seen: Vec<Vec<(String, Vec<String>)>> = Vec::new();
    for (i, term) in new.list("allowedTopologies").iter().enumerate() {
        let path = FieldPath::new("allowedTopologies").index(i).child("matchLabelExpressions");
        let map = topology_term(term, &path, errors);
        // One without requirements counts as known.
        if map.is_empty() || seen.contains(&map) {
            errors.duplicate(&path, "");
        }
        seen.push(map);
    }
}

fn topology_term(term: &Value, path: &FieldPath, errors: &mut Errors) -> Vec<(String, Vec<String>)> {
    let mut map: Vec<(String, Vec<String>)> = Vec::new();
    for (i, requirement) in term.list("matchLabelExpressions").iter().enumerate() {
        let path = path.index(i);
        let values = strings(requirement, "values");
        let at = path.child("values");
        if values.is_empty() {
            errors.required(&at, "");
        }
        let mut set: Vec<String> = Vec::new();
        for (j, value) in values.into_iter().enumerate() {
            if set.iter().any(|v| v == value) {
                errors.duplicate(&at.index(j), value);
            } else {
                set.push(value.to_owned());
            }
        }
        set.sort_unstable();
        let key = requirement.s("key");
        check::label_name(key, &path.child("key"), errors);
        if map.iter().any(|(known, _)| known == key) {
            errors.duplicate(&path.child("key"), key);
            map.retain(|(known, _)| known != key);
        }
        map.push((key.to_owned(), set));
    }
    map.sort_unstable();
    map
}

pub(crate) fn attachment(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    volume_sources::csi_driver_name(spec.s("attacher"), &path.child("attacher"), errors);
    let source = spec.v("source");
    let at = path.child("source");
    let volume = source.os("persistentVolumeName");
    match (source.o("inlineVolumeSpec"), volume) {
        (None, None) => {
            errors.required(&at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (Some(_), Some(_)) => {
            errors.forbidden(&at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (None, Some(name)) => {
            if name.is_empty() {
                errors.required(&at.child("persistentVolumeName"), "must specify non empty persistentVolumeName");
            }
        }
        (Some(inline), None) => {
            claims::volume_spec(inline, "", true, false, &at.child("inlineVolumeSpec"), errors);
        }
    }
    check::dns_subdomain(spec.s("nodeName"), &path.child("nodeName"), errors);
    attachment_status(new.v("status"), errors);
    if let Some(name) = volume {
        check::dns_subdomain(name, &FieldPath::new("spec.source.persistentVolumeName"), errors);
    }
    if let Some(old) = old {
        check::immutable(spec, old.v("spec"), &path, errors);
    }
}

fn attachment_status(status: &Value, errors: &mut Errors) {
    let path = FieldPath::new("status");
    if map_bytes(status.members("attachmentMetadata")) > MAX_PARAMETERS_BYTES {
        errors.push(FieldError::too_long(&path.child("attachmentMetadata"), MAX_PARAMETERS_BYTES as i64));
    }
    for key in ["attachError", "detachError"] {
        let Some(error) = status.o(key) else { continue };
        let path = path.child(key);
        if error.s("message").len() > 1024 {
            errors.push(FieldError::too_long(&path.child("message"), MAX_PARAMETERS_BYTES as i64));
        }
        if let Some(code) = error.oi("errorCode")
            && code < 0
        {
            let detail = names::inclusive_range_error(0, i64::from(i32::MAX));
            errors.invalid(&path.child("errorCode"), code, detail);
        }
    }
}

pub(crate) fn csi_node(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let path = FieldPath::new("spec").child("drivers");
    let drivers = new.v("spec").list("drivers");
    for (i, driver) in drivers.iter().enumerate() {
        let path = path.index(i);
        let name = driver.s("name");
        volume_sources::csi_driver_name(name, &path.child("name"), errors);
        let (id, at) = (driver.s("nodeID"), path.child("nodeID"));
        if id.is_empty() {
            errors.required(&at, "");
        }
        if id.len() > 256 {
            errors.invalid(&at, id, "must be 256 characters or less");
        }
        if let Some(count) = driver.v("allocatable").oi("count") {
            nonnegative(count, &path.child("allocatable").child("count"), errors);
        }
        if drivers[..i].iter().any(|d| d.s("name") == name) {
            errors.duplicate(&path.child("name"), name);
        }
        let mut seen = Vec::new();
        for key in strings(driver, "topologyKeys") {
            if key.is_empty() {
                errors.required(&path, "");
            }
            if seen.contains(&key) {
                errors.duplicate(&path, key);
            }
            seen.push(key);
            check::qualified_name(key, &path, errors);
        }
    }
    let Some(old) = old else { return };
    let without_count = |driver: &Value| {
        let mut driver = driver.clone();
        driver.remove_at(&["allocatable"]);
        driver
    };
    for before in old.v("spec").list("drivers") {
        for after in drivers.iter().filter(|d| d.s("name") == before.s("name")) {
            check::immutable(&without_count(after), &without_count(before), &path, errors);
        }
    }
}

pub(crate) fn csi_driver(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        Some(old) => object_meta::validate_update(new, old, true, errors),
        None => object_meta::validate(new, META, errors),
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    for (key, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.has(key) {
            errors.required(&path.child(shown), "");
        }
    }
    const POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];
    check::optional_one_of(spec, "fsGroupPolicy", POLICIES, &path, errors);
    token_requests(spec.list("tokenRequests"), &path.child("tokenRequests"), errors);
    for mode in strings(spec, "volumeLifecycleModes") {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            errors.not_supported(&path.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
        }
    }
    if !spec.has("seLinuxMount") {
        errors.required(&path.child("seLinuxMount"), "");
    }
    if let Some(period) = spec.oi("nodeAllocatableUpdatePeriodSeconds")
        && period < 10
    {
        errors.invalid(
            &path.child("nodeAllocatableUpdatePeriodSeconds"),
            period,
            "must be greater than or equal to 10 seconds",
        );
    }
    if let Some(flag) = spec.ob("serviceAccountTokenInSecrets")
        && spec.list("tokenRequests").is_empty()
    {
        errors.invalid(
            &path.child("serviceAccountTokenInSecrets"),
            flag,
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        );
    }
    if let Some(old) = old {
        let old = old.v("spec");
        check::immutable(spec.v("attachRequired"), old.v("attachRequired"), &path.child("attachedRequired"), errors);
        let key = "volumeLifecycleModes";
        check::immutable(spec.v(key), old.v(key), &path.child(key), errors);
    }
}

fn token_requests(requests: &[Value], path: &FieldPath, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let path = path.index(i);
        let audience = request.s("audience");
        if seen.contains(&audience) {
            errors.duplicate(&path.child("audience"), audience);
            continue;
        }
        seen.push(audience);
        let Some(seconds) = request.oi("expirationSeconds") else { continue };
        let at = path.child("expirationSeconds");
        if seconds < 600 {
            errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

pub(crate) fn csi_capacity(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let class_path = FieldPath::new("storageClassName");
    let topology_path = FieldPath::new("nodeTopology");
    let class = new.s("storageClassName");
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        if !semantic_equal(new.v("nodeTopology"), old.v("nodeTopology")) {
            errors.invalid(&topology_path, shown(new.v("nodeTopology")), check::IMMUTABLE);
        }
        if class != old.s("storageClassName") {
            errors.invalid(&class_path, class, check::IMMUTABLE);
        }
        return;
    }
    object_meta::validate(new, MetaRules::namespaced(names::name_is_dns_subdomain), errors);
    check::label_selector(new.o("nodeTopology"), SelectorOptions::default(), &topology_path, errors);
    check::dns_subdomain(class, &class_path, errors);
    if let Some(capacity) = new.o("capacity")
        && quantity(capacity).sign() < 0
    {
        errors.invalid(&FieldPath::new("capacity"), capacity, check::NEGATIVE);
    }
}

pub(crate) fn attributes_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        for key in ["driverName", "parameters"] {
            if !semantic_equal(new.v(key), old.v(key)) {
                errors.forbidden(&FieldPath::new(key), format!("updates to {key} are forbidden."));
            }
        }
    }
    object_meta::validate(new, META, errors);
    provisioner(new.s("driverName"), &FieldPath::new("driverName"), errors);
    parameters(new.members("parameters"), false, &FieldPath::new("parameters"), errors);
}
