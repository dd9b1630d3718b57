//! Where a pod may run: affinity, tolerations, topology spread.

use crate::field::FieldPath;
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::kinds::check::{
    Errors, Report, SelectorOptions, label_name, label_selector, optional_one_of, positive, strings,
};
use crate::kinds::core::pod_spec::PodOptions;
use crate::names;

pub(crate) fn affinity(affinity: Option<&Value>, options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    let Some(affinity) = affinity else { return };
    if let Some(node) = affinity.o("nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(required) = node.o("requiredDuringSchedulingIgnoredDuringExecution") {
            node_selector(
                required,
                options.invalid_node_affinity_values,
                &path.child("requiredDuringSchedulingIgnoredDuringExecution"),
                errors,
            );
        }
        let preferred = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in node.list("preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            weight(term, &preferred.index(i), errors);
            node_selector_term(term.v("preference"), true, &preferred.index(i).child("preference"), errors);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.o(kind) else { continue };
        let path = path.child(kind);
        let required = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in pods.list("requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            pod_affinity_term(term, options, &required.index(i), errors);
        }
        let preferred = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in pods.list("preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            weight(term, &preferred.index(i), errors);
            pod_affinity_term(term.v("podAffinityTerm"), options, &preferred.index(i).child("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &Value, path: &FieldPath, errors: &mut Errors) {
    if !(1..=100).contains(&term.i("weight")) {
        errors.invalid(&path.child("weight"), term.i("weight"), "must be in the range 1-100");
    }
}

/// A node selector has at least one term.
pub(crate) fn node_selector(selector: &Value, lenient: bool, path: &FieldPath, errors: &mut Errors) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector.list("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, lenient, &path.index(i), errors);
    }
}

fn node_selector_term(term: &Value, lenient: bool, path: &FieldPath, errors: &mut Errors) {
    let labels = path.child("matchExpressions");
    for (i, requirement) in term.list("matchExpressions").iter().enumerate() {
        node_label(requirement, lenient, &labels.index(i), errors);
    }
    let fields = path.child("matchFields");
    for (i, requirement) in term.list("matchFields").iter().enumerate() {
        node_field(requirement, &fields.index(i), errors);
    }
}

fn node_label(requirement: &Value, lenient: bool, path: &FieldPath, errors: &mut Errors) {
    let values = requirement.list("values");
    match requirement.s("operator") {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                errors
                    .required(&path.child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    label_name(requirement.s("key"), &path.child("key"), errors);
    if !lenient {
        for (i, value) in strings(requirement, "values").into_iter().enumerate() {
            errors.messages(&path.child("values").index(i), value, names::is_label_value(value));
        }
    }
}

fn node_field(requirement: &Value, path: &FieldPath, errors: &mut Errors) {
    match requirement.s("operator") {
        "In" | "NotIn" => {
            if requirement.list("values").len() != 1 {
                errors.required(
                    &path.child("values"),
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                );
            }
        }
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    if requirement.s("key") != "metadata.name" {
        errors.invalid(&path.child("key"), requirement.s("key"), "not a valid field selector key");
        return;
    }
    for (i, value) in strings(requirement, "values").into_iter().enumerate() {
        errors.messages(&path.child("values").index(i), value, names::name_is_dns_subdomain(value, false));
    }
}

fn pod_affinity_term(term: &Value, options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    let selector = SelectorOptions { allow_invalid_label_value: options.invalid_selector_values, ..Default::default() };
    for key in ["labelSelector", "namespaceSelector"] {
        label_selector(term.o(key), selector, &path.child(key), errors);
    }
    for namespace in strings(term, "namespaces") {
        errors.messages(&path.child("namespace"), namespace, names::name_is_dns_label(namespace, false));
    }
    label_keys(term, path, errors);
    let key = term.s("topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    label_name(key, &path.child("topologyKey"), errors);
}

/// `matchLabelKeys` and `mismatchLabelKeys`.
fn label_keys(term: &Value, path: &FieldPath, errors: &mut Errors) {
    let (keys, mismatch) = (strings(term, "matchLabelKeys"), strings(term, "mismatchLabelKeys"));
    let selector = term.o("labelSelector");
    for (name, list) in [("matchLabelKeys", &keys), ("mismatchLabelKeys", &mismatch)] {
        if list.is_empty() {
            continue;
        }
        if selector.is_none() {
            errors.forbidden(&path.child(name), "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in list.iter().enumerate() {
            label_name(key, &path.child(name).index(i), errors);
        }
    }
    if let Some(selector) = selector {
        let mut in_selector: Vec<&str> = selector.members("matchLabels").keys().map(|k| k.as_str()).collect();
        for requirement in selector.list("matchExpressions") {
            let key = requirement.s("key");
            // The same key twice in the selector, once by the server on behalf of matchLabelKeys, is a conflict.
            if let Some(i) = keys.iter().rposition(|k| *k == key)
                && in_selector.contains(&key)
            {
                errors.invalid(&path.index(i), key, "exists in both matchLabelKeys and labelSelector");
            }
            in_selector.push(key);
        }
    }
    for (i, key) in keys.iter().enumerate() {
        if mismatch.contains(key) {
            errors.invalid(
                &path.child("matchLabelKeys").index(i),
                *key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            );
        }
    }
}

pub(crate) fn tolerations(list: &[Value], path: &FieldPath, errors: &mut Errors) {
    for (i, toleration) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, operator, value, effect) =
            (toleration.s("key"), toleration.s("operator"), toleration.s("value"), toleration.s("effect"));
        if !key.is_empty() {
            label_name(key, &path.child("key"), errors);
        }
        let at = path.child("operator");
        if key.is_empty() && operator != "Exists" {
            errors.invalid(
                &at,
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(&path.child("effect"), effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator {
            "Equal" | "" => {
                let messages = names::is_label_value(value);
                if !messages.is_empty() {
                    errors.invalid(&at, value, messages.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.invalid(&at, value, "value must be empty when `operator` is 'Exists'");
                }
            }
            "Lt" | "Gt" => errors.not_supported(&at, operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errors.not_supported(&at, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(effect, true, &path.child("effect"), errors);
        }
    }
}

pub(crate) fn taint_effect(effect: &str, allow_empty: bool, path: &FieldPath, errors: &mut Errors) {
    match effect {
        "" if !allow_empty => errors.required(path, ""),
        "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
        other => errors.not_supported(path, other, &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
    }
}

pub(crate) fn topology_spread(list: &[Value], options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    for (i, constraint) in list.iter().enumerate() {
        let path = path.index(i);
        positive(constraint.i("maxSkew"), &path.child("maxSkew"), errors);
        if constraint.s("topologyKey").is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        let action = constraint.s("whenUnsatisfiable");
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(&path.child("whenUnsatisfiable"), action, &["DoNotSchedule", "ScheduleAnyway"]);
        }
        let repeated = list[i + 1..]
            .iter()
            .any(|c| c.s("topologyKey") == constraint.s("topologyKey") && c.s("whenUnsatisfiable") == action);
        if repeated {
            errors.duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {action}}}", constraint.s("topologyKey")),
            );
        }
        if let Some(domains) = constraint.oi("minDomains") {
            positive(domains, &path.child("minDomains"), errors);
            if action != "DoNotSchedule" {
                errors.invalid(
                    &path.child("minDomains"),
                    domains,
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"),
                );
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            optional_one_of(constraint, key, &["Honor", "Ignore"], &path, errors);
        }
        label_keys(constraint, &path, errors);
        if !options.invalid_spread_selector {
            label_selector(
                constraint.o("labelSelector"),
                SelectorOptions::default(),
                &path.child("labelSelector"),
                errors,
            );
        }
    }
}
