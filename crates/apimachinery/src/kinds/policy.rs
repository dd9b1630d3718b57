//! Disruption budgets, priority classes, runtime classes and leases.

use super::access::Fields;
use super::apps::{at_most_100_percent, int_or_percent};
use super::check::{self, Errors, Report, SelectorOptions, nonnegative_member};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldPath};
use crate::json::Value;
use crate::names;

const CLUSTER_META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);

pub(crate) fn disruption_budget(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        errors.invalid(&path, spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if let Some(value) = spec.o(key) {
            int_or_percent(value, &path.child(key), errors);
            at_most_100_percent(value, &path.child(key), errors);
        }
    }
    let lenient = old.is_some_and(|o| check::selector_has_invalid_value(o.v("spec").v("selector")));
    let options = SelectorOptions { allow_invalid_label_value: lenient, ..SelectorOptions::default() };
    check::label_selector(spec.o("selector"), options, &path.child("selector"), errors);
    const POLICIES: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];
    check::optional_one_of(spec, "unhealthyPodEvictionPolicy", POLICIES, &path, errors);
}

pub(crate) fn disruption_budget_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    check::conditions(status.list("conditions"), &path.child("conditions"), errors);
    for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        nonnegative_member(status, key, &path, errors);
    }
}

/// The classes a system has, and their values.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn system_class_error(class: &Value) -> Option<String> {
    let name = class.v("metadata").s("name");
    let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if class.i("value") != *value {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    class.b("globalDefault").then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

pub(crate) fn priority_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        if new.i("value") != old.i("value") {
            errors.forbidden(&FieldPath::new("value"), "may not be changed in an update.");
        }
        let path = FieldPath::new("preemptionPolicy");
        return check::immutable(new.v("preemptionPolicy"), old.v("preemptionPolicy"), &path, errors);
    }
    object_meta::validate(new, CLUSTER_META, errors);
    if new.v("metadata").s("name").starts_with("system-") {
        if let Some(reason) = system_class_error(new) {
            errors.forbidden(
                &FieldPath::new("metadata").child("name"),
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {reason}"),
            );
        }
    } else if new.i("value") > 1_000_000_000 {
        errors.forbidden(&FieldPath::new("value"), "maximum allowed value of a user defined priority is 1000000000");
    }
    if let Some(policy) = new.os("preemptionPolicy") {
        super::core::pod_spec::preemption_policy(policy, &FieldPath::new("preemptionPolicy"), errors);
    }
}

pub(crate) fn runtime_class(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let path = FieldPath::new("handler");
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
        return check::immutable(new.v("handler"), old.v("handler"), &path, errors);
    }
    object_meta::validate(new, CLUSTER_META, errors);
    let handler = new.s("handler");
    if handler.is_empty() {
        errors.required(&path, "");
    } else {
        check::dns_label(handler, &path, errors);
    }
    if let Some(overhead) = new.o("overhead") {
        let mut limits = Value::object();
        limits.set_at(&["limits"], overhead.v("podFixed").clone());
        super::core::resources::validate(
            &limits,
            super::core::resources::Level::Container,
            &[],
            &FieldPath::new("overhead"),
            false,
            errors,
        );
    }
    let Some(scheduling) = new.o("scheduling") else { return };
    let path = FieldPath::new("scheduling");
    check::labels(scheduling.members("nodeSelector"), &path.child("nodeSelector"), errors);
    let tolerations = scheduling.list("tolerations");
    let path = path.child("tolerations");
    super::core::scheduling::tolerations(tolerations, &path, errors);
    let key = |t: &'_ Value| ["key", "operator", "value", "effect"].map(|k| t.s(k).to_owned());
    for (i, one) in tolerations.iter().enumerate() {
        if tolerations[..i].iter().any(|other| key(other) == key(one)) {
            // As the server's own structure prints it.
            let [key, operator, value, effect] = ["key", "operator", "value", "effect"].map(|k| Value::from(one.s(k)));
            let printed = format!(
                "{{\"Key\":{key},\"Operator\":{operator},\"Value\":{value},\"Effect\":{effect},\"TolerationSeconds\":{}}}",
                one.v("tolerationSeconds")
            );
            errors.duplicate(&path.index(i), BadValue::Printed(printed));
        }
    }
}

pub(crate) fn lease(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        Some(old) => object_meta::validate_update(new, old, false, errors),
        None => {
            let mut rules = MetaRules::namespaced(names::name_is_dns_subdomain);
            rules.kube_finalizers = false;
            object_meta::validate(new, rules, errors);
        }
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    if let Some(seconds) = spec.oi("leaseDurationSeconds")
        && seconds <= 0
    {
        errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    if let Some(transitions) = spec.oi("leaseTransitions")
        && transitions < 0
    {
        errors.invalid(&path.child("leaseTransitions"), transitions, check::NEGATIVE);
    }
    let strategy = spec.os("strategy");
    if let Some(strategy) = strategy {
        let path = path.child("strategy").child("strategy");
        if strategy.contains('/') {
            check::qualified_name(strategy, &path, errors);
        } else if strategy != "OldestEmulationVersion" {
            errors.not_supported(&path, strategy, &["OldestEmulationVersion"]);
        }
    }
    if !spec.s("preferredHolder").is_empty() && strategy.unwrap_or("").is_empty() {
        errors.forbidden(&path.child("preferredHolder"), "may only be specified if `strategy` is defined");
    }
}
