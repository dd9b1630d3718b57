//! Autoscalers and scales.

use super::access::Fields;
use super::check::{self, Errors, NOT_POSITIVE, Report, nonnegative_member};
use super::core::resources::quantity;
use super::object_meta::{self, MetaRules};
use crate::field::FieldPath;
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);

#[derive(Clone, Copy)]
struct References {
    empty_group: bool,
    any_version: bool,
}

pub(crate) fn scale(new: &Value, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    nonnegative_member(new.v("spec"), "replicas", &FieldPath::new("spec"), errors);
}

/// An autoscaler in its v2 form.
pub(crate) fn autoscaler(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        Some(old) => object_meta::validate_update(new, old, true, errors),
        None => object_meta::validate(new, META, errors),
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let old_spec = old.map(|o| o.v("spec"));
    let lowest = if old_spec.is_some_and(|s| s.oi("minReplicas") == Some(0)) { 0 } else { 1 };
    let (min, max) = (spec.oi("minReplicas"), spec.i("maxReplicas"));
    if let Some(min) = min
        && min < lowest
    {
        errors.invalid(&path.child("minReplicas"), min, format!("must be greater than or equal to {lowest}"));
    }
    let at = path.child("maxReplicas");
    if max == 0 {
        errors.required(&at, "must be set and greater than 0");
    } else if max < 0 {
        errors.invalid(&at, max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(&at, max, "must be greater than or equal to `minReplicas`");
    }
    let target = spec.v("scaleTargetRef");
    let same_target = old_spec
        .is_some_and(|s| ["apiVersion", "kind"].iter().all(|key| s.v("scaleTargetRef").s(key) == target.s(key)));
    let options = References {
        any_version: same_target,
        empty_group: !same_target && target.s("kind") == "ReplicationController",
    };
    reference(target, options, &path.child("scaleTargetRef"), errors);
    let mut options = References { any_version: false, empty_group: true };
    options.any_version = old_spec.is_some_and(|s| {
        s.list("metrics")
            .iter()
            .filter(|m| m.s("type") == "Object")
            .filter_map(|m| m.o("object"))
            .any(|object| version_error(object.v("describedObject").s("apiVersion"), options).is_some())
    });
    let metrics = spec.list("metrics");
    let at = path.child("metrics");
    for (i, one) in metrics.iter().enumerate() {
        metric(one, options, &at.index(i), errors);
    }
    if min == Some(0) && !metrics.iter().any(|m| matches!(m.s("type"), "Object" | "External")) {
        errors
            .forbidden(&at, "must specify at least one Object or External metric to support scaling to zero replicas");
    }
    for key in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec.v("behavior").o(key) {
            scaling_rules(rules, &path.child("behavior").child(key), errors);
        }
    }
}

pub(crate) fn autoscaler_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    for key in ["currentReplicas", "desiredReplicas"] {
        nonnegative_member(new.v("status"), key, &FieldPath::new("status"), errors);
    }
}

fn version_error(version: &str, options: References) -> Option<String> {
    if options.any_version {
        return None;
    }
    if version.matches('/').count() > 1 {
        return Some(format!("unexpected GroupVersion string: {version}"));
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    (!options.empty_group && group.is_empty()).then(|| "apiVersion must specify API group".to_owned())
}

fn reference(reference: &Value, options: References, path: &FieldPath, errors: &mut Errors) {
    check::required_path_segment(reference, "kind", path, errors);
    check::required_path_segment(reference, "name", path, errors);
    let version = reference.s("apiVersion");
    if let Some(detail) = version_error(version, options) {
        errors.invalid(&path.child("apiVersion"), version, detail);
    }
}

/// Types of metrics and the member that holds each.
const SOURCES: &[(&str, &str)] = &[
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];

fn metric(metric: &Value, references: References, path: &FieldPath, errors: &mut Errors) {
    let kind = metric.s("type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric source type");
    }
    if !TYPES.contains(&kind) {
        errors.not_supported(&path.child("type"), kind, TYPES);
    }
    let present: Vec<&str> = SOURCES.iter().map(|(_, key)| *key).filter(|key| metric.has(key)).collect();
    if let Some(first) = present.first() {
        source(first, metric.v(first), references, &path.child(first), errors);
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind).map(|(_, key)| *key);
    match expected {
        Some(key) => {
            if !metric.has(key) {
                errors.required(&path.child(key), "must populate information for the given metric source");
            }
        }
        None => errors.not_supported(&path.child("type"), kind, TYPES),
    }
    if present.len() != 1 {
        for other in present.into_iter().filter(|key| Some(*key) != expected) {
            errors.forbidden(&path.child(other), "must populate the given metric source only");
        }
    }
}

fn source(key: &str, source: &Value, references: References, path: &FieldPath, errors: &mut Errors) {
    let target = source.v("target");
    let at = path.child("target");
    match key {
        "object" | "external" | "pods" => {
            if key == "object" {
                reference(source.v("describedObject"), references, &path.child("describedObject"), errors);
            }
            let metric = source.v("metric");
            if metric.s("name").is_empty() {
                errors.required(&path.child("metric").child("name"), "must specify a metric name");
            } else {
                let name = metric.s("name");
                errors.messages(&path.child("metric").child("name"), name, names::is_path_segment_name(name));
            }
        }
        _ => {
            let name = source.s("name");
            if name.is_empty() {
                errors.required(&path.child("name"), "must specify a resource name");
            } else if key == "containerResource" {
                super::core::resources::container_name(name, &path.child("name"), errors);
            }
            if key == "containerResource" {
                let container = source.s("container");
                if container.is_empty() {
                    errors.required(&path.child("container"), "must specify a container");
                } else {
                    check::dns_label(container, &path.child("container"), errors);
                }
            }
        }
    }
    metric_target(target, &at, errors);
    let (value, average) = (target.has("value"), target.has("averageValue"));
    let utilization = target.has("averageUtilization");
    match key {
        "object" if !value && !average => {
            errors.required(&at.child("averageValue"), "must set either a target value or averageValue");
        }
        "external" if !value && !average => {
            errors.required(&at.child("averageValue"), "must set either a target value for metric or a per-pod target")
        }
        "external" if value && average => {
            errors.forbidden(&at.child("value"), "may not set both a target value for metric and a per-pod target");
        }
        "pods" if !average => {
            errors.required(&at.child("averageValue"), "must specify a positive target averageValue");
        }
        "resource" | "containerResource" if !utilization && !average => errors
            .required(&at.child("averageUtilization"), "must set either a target raw value or a target utilization"),
        "resource" | "containerResource" if utilization && average => {
            errors.forbidden(&at.child("averageValue"), "may not set both a target raw value and a target utilization")
        }
        _ => {}
    }
}

fn metric_target(target: &Value, path: &FieldPath, errors: &mut Errors) {
    let kind = target.s("type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        if let Some(value) = target.o(key)
            && quantity(value).sign() != 1
        {
            errors.invalid(&path.child(key), value, "must be positive");
        }
    }
    if let Some(percent) = target.oi("averageUtilization")
        && percent < 1
    {
        errors.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn scaling_rules(rules: &Value, path: &FieldPath, errors: &mut Errors) {
    if let Some(window) = rules.oi("stabilizationWindowSeconds") {
        let at = path.child("stabilizationWindowSeconds");
        if window < 0 {
            errors.invalid(&at, window, "must be greater than or equal to zero");
        }
        if window > 3600 {
            errors.invalid(&at, window, "must be less than or equal to 3600");
        }
    }
    check::optional_one_of(rules, "selectPolicy", &["Disabled", "Max", "Min"], path, errors);
    let policies = rules.list("policies");
    let at = path.child("policies");
    if policies.is_empty() {
        errors.required(&at, "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = at.index(i);
        if !matches!(policy.s("type"), "Pods" | "Percent") {
            errors.not_supported(&path.child("type"), policy.s("type"), &["Percent", "Pods"]);
        }
        for key in ["value", "periodSeconds"] {
            if policy.i(key) <= 0 {
                errors.invalid(&path.child(key), policy.i(key), NOT_POSITIVE);
            }
        }
        if policy.i("periodSeconds") > 1800 {
            errors.invalid(
                &path.child("periodSeconds"),
                policy.i("periodSeconds"),
                "must be less than or equal to 1800",
            );
        }
    }
    if let Some(tolerance) = rules.o("tolerance")
        && quantity(tolerance).sign() < 0
    {
        errors.invalid(&path.child("tolerance"), tolerance, check::NEGATIVE);
    }
}
