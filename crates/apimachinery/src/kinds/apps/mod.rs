//! Deployments, ReplicaSets, StatefulSets, DaemonSets and ControllerRevisions.

use super::access::{Fields, semantic_equal};
use super::check::{
    self, Errors, Report, SelectorOptions, dns_label, immutable, label_selector, nonnegative, nonnegative_member,
    selector_is_empty, selector_is_valid, selector_matches, shown,
};
use super::core::claims;
use super::core::config::{always_restarts, available_not_above_ready, not_above};
use super::core::pod_spec::{self, PodOptions};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldPath};
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);

fn metadata(new: &Value, old: Option<&Value>, rules: MetaRules, errors: &mut Errors) {
    match old {
        None => object_meta::validate(new, rules, errors),
        Some(old) => object_meta::validate_update(new, old, true, errors),
    }
}

fn options(old: Option<&Value>) -> PodOptions {
    pod_spec::template_options(old.map(|o| o.v("spec").v("template")))
}

/// The selector of a workload: present, well formed, not empty. True when it can be evaluated.
fn selector(spec: &Value, kind: &str, detail: &str, path: &FieldPath, errors: &mut Errors) -> bool {
    let at = path.child("selector");
    let Some(selector) = spec.o("selector") else {
        errors.required(&at, "");
        return true;
    };
    label_selector(Some(selector), SelectorOptions::default(), &at, errors);
    if selector_is_empty(selector) {
        errors.invalid(&at, selector, format!("empty selector is invalid for {kind}"));
    }
    let valid = selector_is_valid(selector);
    if !valid {
        errors.invalid(&at, selector, detail);
    }
    valid
}

fn template_labels(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let template = spec.v("template");
    let selector = spec.v("selector");
    // An absent selector selects nothing, an empty one everything.
    let everything = spec.has("selector") && selector_is_empty(selector);
    let matches = spec.has("selector") && selector_matches(selector, template.v("metadata").members("labels"));
    if !everything && !matches {
        errors.invalid(
            &path.children(&["template", "metadata", "labels"]),
            shown(template.v("metadata").v("labels")),
            "`selector` does not match template `labels`",
        );
    }
}

fn replica_template(spec: &Value, options: PodOptions, path: &FieldPath, errors: &mut Errors) {
    template_labels(spec, path, errors);
    let path = path.child("template");
    pod_spec::template(spec.v("template"), &path, options, errors);
    always_restarts(spec.v("template"), "ReplicaSet", &path, errors);
}

/// A count, or a percentage.
pub(crate) fn int_or_percent(value: &Value, path: &FieldPath, errors: &mut Errors) {
    match value {
        Value::String(text) => errors.messages(path, text, names::is_valid_percent(text)),
        number => nonnegative(number.as_i64().unwrap_or(0), path, errors),
    }
}

fn percent(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    if names::is_valid_percent(text).is_empty() { text.strip_suffix('%')?.parse().ok() } else { None }
}

fn int_or_percent_value(value: &Value) -> i64 {
    percent(value).or_else(|| value.as_i64()).or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

pub(crate) fn at_most_100_percent(value: &Value, path: &FieldPath, errors: &mut Errors) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.invalid(path, value, "must not be greater than 100%");
    }
}

pub(crate) fn deployment(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    metadata(new, old, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    nonnegative_member(spec, "replicas", &path, errors);
    if selector(spec, "deployment", "invalid label selector", &path, errors) {
        replica_template(spec, options(old), &path, errors);
    }
    deployment_strategy(spec.v("strategy"), &path.child("strategy"), errors);
    nonnegative_member(spec, "minReadySeconds", &path, errors);
    nonnegative_member(spec, "revisionHistoryLimit", &path, errors);
    if let Some(seconds) = spec.oi("progressDeadlineSeconds") {
        let at = path.child("progressDeadlineSeconds");
        nonnegative(seconds, &at, errors);
        if seconds <= spec.i("minReadySeconds") {
            errors.invalid(&at, seconds, "must be greater than minReadySeconds");
        }
    }
    if let Some(old) = old {
        immutable(spec.v("selector"), old.v("spec").v("selector"), &path.child("selector"), errors);
    }
}

const SURGE: [(&str, &str); 2] = [("maxUnavailable", "MaxUnavailable"), ("maxSurge", "MaxSurge")];
const PARTITION: [(&str, &str); 2] = [("partition", "Partition"), ("maxUnavailable", "MaxUnavailable")];

fn deployment_strategy(strategy: &Value, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("rollingUpdate");
    let rolling = strategy.o("rollingUpdate");
    match (strategy.s("type"), rolling) {
        ("Recreate", Some(_)) => {
            errors.forbidden(&at, "may not be specified when strategy `type` is 'Recreate'");
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => errors.required(&at, "this should be defaulted and never be nil"),
        ("RollingUpdate", Some(rolling)) => {
            let (unavailable, surge) = (rolling.v("maxUnavailable"), rolling.v("maxSurge"));
            let down = at.child("maxUnavailable");
            int_or_percent(unavailable, &down, errors);
            int_or_percent(surge, &at.child("maxSurge"), errors);
            if int_or_percent_value(unavailable) == 0 && int_or_percent_value(surge) == 0 {
                errors.invalid(&down, unavailable, "may not be 0 when `maxSurge` is 0");
            }
            at_most_100_percent(unavailable, &down, errors);
        }
        _ => errors.not_supported(path, printed_strategy(strategy, SURGE), &["Recreate", "RollingUpdate"]),
    }
}

/// A strategy as the server's own structure prints it, with the members that a rolling update has in this kind.
fn printed_strategy(strategy: &Value, members: [(&str, &str); 2]) -> BadValue {
    let rolling = strategy.o("rollingUpdate").map_or("null".to_owned(), |r| {
        let members: Vec<String> = members.iter().map(|(key, shown)| format!("\"{shown}\":{}", r.v(key))).collect();
        format!("{{{}}}", members.join(","))
    });
    BadValue::Printed(format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", Value::from(strategy.s("type"))))
}

fn collision_count(new: &Value, old: &Value, errors: &mut Errors) {
    let (count, before) = (new.v("status").oi("collisionCount"), old.v("status").oi("collisionCount"));
    let decremented = match (count, before) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a < b,
        _ => false,
    };
    if decremented {
        errors.invalid(&FieldPath::new("status").child("collisionCount"), count.unwrap_or(0), "cannot be decremented");
    }
}

pub(crate) fn deployment_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    for key in [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ] {
        nonnegative_member(status, key, &path, errors);
    }
    not_above(status, "replicas", &["updatedReplicas", "readyReplicas", "availableReplicas"], &path, errors);
    available_not_above_ready(status, "readyReplicas", &path, errors);
    collision_count(new, old, errors);
}

pub(crate) fn replica_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    metadata(new, old, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    nonnegative_member(spec, "replicas", &path, errors);
    nonnegative_member(spec, "minReadySeconds", &path, errors);
    if selector(spec, "deployment", "invalid label selector", &path, errors) {
        replica_template(spec, options(old), &path, errors);
    }
    if let Some(old) = old {
        immutable(spec.v("selector"), old.v("spec").v("selector"), &path.child("selector"), errors);
    }
}

pub(crate) fn daemon_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    metadata(new, old, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    if let Some(old) = old {
        immutable(spec.v("selector"), old.v("spec").v("selector"), &path.child("selector"), errors);
    }
    let wanted = spec.o("selector");
    label_selector(wanted, SelectorOptions::default(), &path.child("selector"), errors);
    let template = spec.v("template");
    let labels = template.v("metadata").members("labels");
    let valid = wanted.is_none_or(selector_is_valid);
    if valid && !wanted.is_some_and(|s| selector_matches(s, labels)) {
        errors.invalid(
            &path.children(&["template", "metadata", "labels"]),
            shown(template.v("metadata").v("labels")),
            "`selector` does not match template `labels`",
        );
    }
    if let Some(selector) = wanted.filter(|s| selector_is_empty(s)) {
        errors.invalid(&path.child("selector"), selector, "empty selector is invalid for daemonset");
    }
    pod_spec::template(template, &path.child("template"), options(old), errors);
    always_restarts(template, "DaemonSet", &path.child("template"), errors);
    nonnegative_member(spec, "minReadySeconds", &path, errors);
    daemon_set_strategy(spec.v("updateStrategy"), &path.child("updateStrategy"), errors);
    nonnegative_member(spec, "revisionHistoryLimit", &path, errors);
}

fn daemon_set_strategy(strategy: &Value, path: &FieldPath, errors: &mut Errors) {
    match strategy.s("type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let at = path.child("rollingUpdate");
            let Some(rolling) = strategy.o("rollingUpdate") else { return errors.required(&at, "") };
            let (down, up) = (at.child("maxUnavailable"), at.child("maxSurge"));
            let (unavailable, surge) = (rolling.v("maxUnavailable"), rolling.v("maxSurge"));
            int_or_percent(unavailable, &down, errors);
            int_or_percent(surge, &up, errors);
            at_most_100_percent(unavailable, &down, errors);
            at_most_100_percent(surge, &up, errors);
            match (int_or_percent_value(unavailable) != 0, int_or_percent_value(surge) != 0) {
                (true, true) => errors.invalid(&up, surge, "may not be set when maxUnavailable is non-zero"),
                (false, false) => errors.required(&down, "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        _ => errors.not_supported(path, printed_strategy(strategy, SURGE), &["RollingUpdate", "OnDelete"]),
    }
}

pub(crate) fn daemon_set_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    for key in [
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ] {
        nonnegative_member(new.v("status"), key, &FieldPath::new("status"), errors);
    }
    collision_count(new, old, errors);
}

const STATEFUL_SET_META: MetaRules = MetaRules::namespaced(names::name_is_dns_label);

pub(crate) fn stateful_set(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    metadata(new, old, STATEFUL_SET_META, errors);
    let options = options(old);
    // A stored template that is invalid by now does not block other changes.
    let lenient = old.is_some_and(|o| {
        let mut found = Errors::new();
        stateful_set_spec(o.v("spec"), true, true, options, &mut found);
        !found.is_empty()
    });
    stateful_set_spec(new.v("spec"), old.is_some(), !lenient, options, errors);
    let Some(old) = old else { return };
    let mut munged = new.v("spec").clone();
    for key in [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ] {
        match old.v("spec").get(key) {
            Some(v) => munged.set_at(&[key], v.clone()),
            None => {
                munged.remove_at(&[key]);
            }
        }
    }
    if !semantic_equal(&munged, old.v("spec")) {
        errors.forbidden(
            &FieldPath::new("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

fn stateful_set_spec(spec: &Value, update: bool, check_template: bool, options: PodOptions, errors: &mut Errors) {
    let path = FieldPath::new("spec");
    match spec.s("podManagementPolicy") {
        "" => errors.required(&path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => errors.invalid(&path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'"),
    }
    stateful_set_strategy(spec.v("updateStrategy"), &path.child("updateStrategy"), errors);
    if let Some(policy) = spec.o("persistentVolumeClaimRetentionPolicy") {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for key in ["whenDeleted", "whenScaled"] {
            if !matches!(policy.s(key), "Retain" | "Delete") {
                errors.not_supported(&path.child(key), policy.s(key), &["Retain", "Delete"]);
            }
        }
    }
    let claim_templates = spec.list("volumeClaimTemplates");
    if !update {
        for (i, claim) in claim_templates.iter().enumerate() {
            let path = path.child("volumeClaimTemplates").index(i).child("spec");
            claims::claim_spec(claim.v("spec"), &path, Default::default(), errors);
        }
    }
    nonnegative_member(spec, "replicas", &path, errors);
    nonnegative_member(spec, "minReadySeconds", &path, errors);
    if let Some(ordinals) = spec.o("ordinals") {
        nonnegative(ordinals.i("start"), &path.child("ordinals.start"), errors);
    }
    if !update && !spec.s("serviceName").is_empty() {
        dns_label(spec.s("serviceName"), &path.child("serviceName"), errors);
    }
    if selector(spec, "statefulset", "", &path, errors) {
        stateful_set_template(spec, claim_templates, check_template, options, &path, errors);
    }
    always_restarts(spec.v("template"), "StatefulSet", &path.child("template"), errors);
}

fn stateful_set_template(
    spec: &Value,
    claim_templates: &[Value],
    check_template: bool,
    options: PodOptions,
    path: &FieldPath,
    errors: &mut Errors,
) {
    template_labels(spec, path, errors);
    let mut template = spec.v("template").clone();
    // The controller sets these, and adds a volume for each claim.
    for key in ["subdomain", "hostname"] {
        template.remove_at(&["spec", key]);
    }
    if !claim_templates.is_empty() {
        let mut claimed: Vec<&str> = Vec::new();
        for name in claim_templates.iter().map(|c| c.v("metadata").s("name")) {
            if !claimed.contains(&name) {
                claimed.push(name);
            }
        }
        let mut volumes: Vec<Value> = claimed
            .iter()
            .map(|name| crate::json!({"name": *name, "persistentVolumeClaim": {"claimName": *name}}))
            .collect();
        volumes.extend(template.v("spec").list("volumes").iter().filter(|v| !claimed.contains(&v.s("name"))).cloned());
        template.set_at(&["spec", "volumes"], Value::Array(volumes));
    }
    let path = path.child("template");
    if check_template {
        pod_spec::template(&template, &path, options, errors);
    }
    let meta = template.v("metadata");
    check::labels(meta.members("labels"), &path.child("labels"), errors);
    let notes = meta.members("annotations");
    check::annotations(notes, &path.child("annotations"), errors);
    pod_spec::annotations(notes, template.v("spec"), &path.child("annotations"), options, errors);
}

fn stateful_set_strategy(strategy: &Value, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("rollingUpdate");
    match (strategy.s("type"), strategy.o("rollingUpdate")) {
        ("", _) => errors.required(path, ""),
        ("OnDelete", Some(rolling)) => {
            errors.invalid(&at, rolling, "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate", Some(rolling)) => {
            nonnegative_member(rolling, "partition", &at, errors);
            if let Some(unavailable) = rolling.o("maxUnavailable") {
                let at = at.child("maxUnavailable");
                int_or_percent(unavailable, &at, errors);
                if int_or_percent_value(unavailable) == 0 {
                    errors.invalid(&at, unavailable, "cannot be 0");
                }
                at_most_100_percent(unavailable, &at, errors);
            }
        }
        ("OnDelete" | "RollingUpdate", None) => {}
        _ => errors.invalid(path, printed_strategy(strategy, PARTITION), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

pub(crate) fn stateful_set_status(new: &Value, old: &Value, errors: &mut Errors) {
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    for key in [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ] {
        nonnegative_member(status, key, &path, errors);
    }
    const COUNTS: &[&str] = &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    not_above(status, "replicas", COUNTS, &path, errors);
    available_not_above_ready(status, "status.readyReplicas", &path, errors);
    object_meta::validate_update(new, old, true, errors);
    collision_count(new, old, errors);
}

pub(crate) fn controller_revision(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    object_meta::validate(new, META, errors);
    nonnegative(new.i("revision"), &FieldPath::new("revision"), errors);
    let path = FieldPath::new("data");
    match old {
        Some(old) => immutable(new.v("data"), old.v("data"), &path, errors),
        None => match new.o("data") {
            None => errors.required(&path, "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => errors.required(&path, "data must be a valid JSON object"),
        },
    }
}
