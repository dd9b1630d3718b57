//! Nodes.

use super::{resources, scheduling};
use crate::field::{BadValue, ErrorType, FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{self, Errors, Report, label_name, legacy_cidr, shown, strings};
use crate::kinds::object_meta::{self, MetaRules};
use crate::names;

const META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);

/// Taints, unique by key and effect. Upstream reports them below `metadata`.
fn taints(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let list = spec.list("taints");
    let path = path.child("taints");
    for (i, taint) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (taint.s("key"), taint.s("value"), taint.s("effect"));
        label_name(key, &path.child("key"), errors);
        let messages = names::is_label_value(value);
        if !messages.is_empty() {
            errors.invalid(&path.child("value"), value, messages.join(";"));
        }
        scheduling::taint_effect(effect, false, &path.child("effect"), errors);
        if list[..i].iter().any(|t| t.s("key") == key && t.s("effect") == effect) {
            let printed = format!(
                "{{\"Key\":{},\"Value\":{},\"Effect\":{},\"TimeAdded\":null}}",
                Value::from(key),
                Value::from(value),
                Value::from(effect)
            );
            errors.push(FieldError::new(
                ErrorType::Duplicate,
                &path,
                BadValue::Printed(printed),
                "taints must be unique by key and effect pair",
            ));
        }
    }
}

fn node_resources(node: &Value, errors: &mut Errors) {
    for list in ["capacity", "allocatable"] {
        for (name, value) in node.v("status").members(list).iter() {
            resources::quantity_value(name, value, &FieldPath::new("status").children(&[list, name]), errors);
        }
    }
}

fn is_feature(name: &str) -> bool {
    let alphanumeric = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric());
    name.split('/').enumerate().all(|(i, segment)| {
        let first = segment.bytes().next();
        alphanumeric(segment)
            && first.is_some_and(|b| if i == 0 { b.is_ascii_uppercase() } else { b.is_ascii_alphabetic() })
    })
}

fn declared_features(node: &Value, errors: &mut Errors) {
    let path = FieldPath::new("status").child("declaredFeatures");
    let list = strings(node.v("status"), "declaredFeatures");
    for (i, name) in list.iter().enumerate() {
        if name.len() > names::DNS1123_SUBDOMAIN_MAX {
            errors.invalid(
                &path.index(i),
                *name,
                format!("invalid feature name {name:?}: must be no more than 253 characters"),
            );
        } else if !is_feature(name) {
            errors.invalid(
                &path.index(i),
                *name,
                format!("invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"),
            );
        }
        if let Some(next) = list.get(i + 1) {
            if next == name {
                errors.duplicate(&path.index(i + 1), *next);
            } else if name > next {
                errors.invalid(&path.index(i + 1), *next, "list must be sorted alphabetically");
            }
        }
    }
}

fn validate(node: &Value, errors: &mut Errors) {
    object_meta::validate(node, META, errors);
    let spec = node.v("spec");
    taints(spec, &FieldPath::new("metadata"), errors);
    node_resources(node, errors);
    declared_features(node, errors);
    let cidrs = strings(spec, "podCIDRs");
    let path = FieldPath::new("spec").child("podCIDRs");
    for (i, cidr) in cidrs.iter().enumerate() {
        legacy_cidr(cidr, &[], &path.index(i), errors);
    }
    if cidrs.len() > 1 {
        let v6 = |c: &&str| check::parse_cidr_sloppy(c).is_some_and(check::Cidr::is_ipv6);
        let dual = cidrs.iter().any(v6) && !cidrs.iter().all(v6);
        if !dual || cidrs.len() > 2 {
            errors.invalid(&path, shown(spec.v("podCIDRs")), "may specify no more than one CIDR for each IP family");
        }
    }
}

/// Swap that is reported, and pods that an old annotation keeps away.
fn reports(node: &Value, errors: &mut Errors) {
    if let Some(capacity) = node.v("status").v("nodeInfo").v("swap").oi("capacity") {
        check::positive(capacity, &FieldPath::new("metadata").children(&["nodeSwapStatus", "capacity"]), errors);
    }
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let avoid = node.v("metadata").v("annotations").os(AVOID).and_then(|text| Value::from_slice(text.as_bytes()).ok());
    for (i, entry) in avoid.iter().flat_map(|avoid| avoid.list("preferAvoidPods")).enumerate() {
        let at = FieldPath::new("metadata").children(&["annotations", AVOID]).index(i).child("PodSignature");
        match entry.v("podSignature").o("podController") {
            None => errors.required(&at, ""),
            Some(controller) if !controller.b("controller") => {
                errors.invalid(&at.children(&["PodController", "Controller"]), false, "must point to a controller");
            }
            Some(_) => {}
        }
    }
}

pub(crate) fn create(node: &Value, errors: &mut Errors) {
    validate(node, errors);
    reports(node, errors);
}

pub(crate) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    create(new, errors);
    update_status(new, old, errors);
}

/// What both the main resource and `/status` check on update.
pub(crate) fn update_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    reports(new, errors);
    node_resources(new, errors);
    declared_features(new, errors);
    let addresses = new.v("status").list("addresses");
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].iter().any(|a| semantic_equal(a, address)) {
            let printed = format!(
                "{{\"Type\":{},\"Address\":{}}}",
                Value::from(address.s("type")),
                Value::from(address.s("address"))
            );
            errors.duplicate(&FieldPath::new("status").child("addresses").index(i), BadValue::Printed(printed));
        }
    }
    let (spec, before, path) = (new.v("spec"), old.v("spec"), FieldPath::new("spec"));
    const CIDR: &str = "node updates may not change podCIDR except from \"\" to valid";
    let (after, was) = (strings(spec, "podCIDRs"), strings(before, "podCIDRs"));
    if !was.is_empty() {
        if was.len() != after.len() {
            errors.forbidden(&path.child("podCIDRs"), CIDR);
        } else {
            for _ in was.iter().zip(&after).filter(|(a, b)| a != b) {
                errors.forbidden(&path.child("podCIDRs"), CIDR);
            }
        }
    }
    if !before.s("providerID").is_empty() && before.s("providerID") != spec.s("providerID") {
        errors.forbidden(&path.child("providerID"), "node updates may not change providerID except from \"\" to valid");
    }
    taints(spec, &FieldPath::new("metadata"), errors);
    if spec.s("externalID") != before.s("externalID") {
        errors.forbidden(&path.child("externalID"), "may not be updated");
    }
}
