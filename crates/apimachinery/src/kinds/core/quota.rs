//! ResourceQuotas and LimitRanges.

use super::resources::{self, quantity};
use crate::field::FieldPath;
use crate::json::{Map, Value};
use crate::kinds::access::Fields;
use crate::kinds::check::{self, Errors, Report, shown, strings};
use crate::kinds::object_meta::{self, MetaRules};
use crate::names;
use crate::quantity::Quantity;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "VolumeAttributesClass",
    "CrossNamespacePodAffinity",
];

fn scope_fits(scope: &str, resource: &str) -> bool {
    let compute =
        matches!(resource, "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory");
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        s if SCOPES.contains(&s) => resource == "pods" || compute,
        _ => true,
    }
}

fn quota_list(list: &Map, path: &FieldPath, errors: &mut Errors) {
    for (name, value) in list.iter() {
        let path = path.key(name);
        resources::quota_name(name, &path, errors);
        resources::quantity_value(name, value, &path, errors);
    }
}

fn misfits<'a>(hard: &'a Map, scope: &'a str) -> impl Iterator<Item = &'a str> {
    hard.keys().map(|k| k.as_str()).filter(move |k| resources::is_standard_quota(k) && !scope_fits(scope, k))
}

fn conflicting(spec: &Value, scopes: &[&str], path: &FieldPath, errors: &mut Errors) {
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(&a) && scopes.contains(&b) {
            errors.invalid(path, shown(spec.v("scopes")), "conflicting scopes");
        }
    }
}

fn quota_spec(spec: &Value, errors: &mut Errors) {
    let path = FieldPath::new("spec");
    let hard = spec.members("hard");
    quota_list(hard, &path.child("hard"), errors);
    let scopes = strings(spec, "scopes");
    let at = path.child("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(&at, shown(spec.v("scopes")), "unsupported scope");
        }
        for _ in misfits(hard, scope) {
            errors.invalid(&at, shown(spec.v("scopes")), "unsupported scope applied to resource");
        }
    }
    conflicting(spec, &scopes, &at, errors);
    let Some(selector) = spec.o("scopeSelector") else { return };
    let at = path.child("scopeSelector").child("matchExpressions");
    let mut seen = Vec::new();
    for requirement in selector.list("matchExpressions") {
        let (scope, operator) = (requirement.s("scopeName"), requirement.s("operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        for _ in misfits(hard, scope) {
            errors.invalid(&at, selector, "unsupported scope applied to resource");
        }
        let plain = matches!(
            scope,
            "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
        );
        if plain && operator != "Exists" {
            errors.invalid(
                &at.child("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" => {
                if requirement.list("values").is_empty() {
                    errors.required(
                        &at.child("values"),
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !requirement.list("values").is_empty() {
                    errors.invalid(
                        &at.child("values"),
                        shown(requirement.v("values")),
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
            }
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        seen.push(scope);
    }
    conflicting(spec, &seen, &at, errors);
}

fn quota_status(status: &Value, errors: &mut Errors) {
    for key in ["hard", "used"] {
        quota_list(status.members(key), &FieldPath::new("status").child(key), errors);
    }
}

pub(crate) fn create_quota(quota: &Value, errors: &mut Errors) {
    object_meta::validate(quota, META, errors);
    quota_spec(quota.v("spec"), errors);
    quota_status(quota.v("status"), errors);
}

pub(crate) fn update_quota(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    quota_spec(new.v("spec"), errors);
    let sorted = |o: &'_ Value| -> Vec<String> {
        let mut scopes: Vec<String> = strings(o.v("spec"), "scopes").into_iter().map(str::to_owned).collect();
        scopes.sort();
        scopes.dedup();
        scopes
    };
    if sorted(new) != sorted(old) {
        errors.invalid(&FieldPath::new("spec").child("scopes"), shown(new.v("spec").v("scopes")), check::IMMUTABLE);
    }
}

pub(crate) fn update_quota_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    if new.v("metadata").s("resourceVersion").is_empty() {
        errors.required(&FieldPath::new("resourceVersion"), "");
    }
    quota_status(new.v("status"), errors);
}

/// Upstream validates an updated LimitRange as a new one.
pub(crate) fn limit_range(range: &Value, errors: &mut Errors) {
    object_meta::validate(range, META, errors);
    let path = FieldPath::new("spec").child("limits");
    let mut types: Vec<&str> = Vec::new();
    for (i, limit) in range.v("spec").list("limits").iter().enumerate() {
        let kind = limit.s("type");
        let path = path.index(i);
        let messages = names::is_qualified_name(kind);
        if messages.is_empty() {
            if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
                errors.invalid(&path.child("type"), kind, "must be a standard limit type or fully qualified");
            }
        } else {
            errors.messages(&path.child("type"), kind, messages);
        }
        if types.contains(&kind) {
            errors.duplicate(&path.child("type"), kind);
        }
        types.push(kind);
        limit_item(limit, kind, &path, errors);
    }
}

fn limit_item(limit: &Value, kind: &str, path: &FieldPath, errors: &mut Errors) {
    let mut keys: Vec<&str> = Vec::new();
    let resource_names = |list: &str, errors: &mut Errors| {
        for name in limit.members(list).keys() {
            let at = path.child(list).key(name);
            if matches!(kind, "Pod" | "Container") {
                resources::container_name(name, &at, errors);
            } else {
                resources::name(name, &at, errors);
            }
        }
    };
    resource_names("max", errors);
    resource_names("min", errors);
    let pod = kind == "Pod";
    for list in ["default", "defaultRequest"] {
        if pod {
            if !limit.members(list).is_empty() {
                errors.forbidden(&path.child(list), "may not be specified when `type` is 'Pod'");
            }
        } else {
            resource_names(list, errors);
        }
    }
    if kind == "PersistentVolumeClaim"
        && !limit.members("min").contains_key("storage")
        && !limit.members("max").contains_key("storage")
    {
        errors.required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    resource_names("maxLimitRequestRatio", errors);
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if pod && list.starts_with("default") {
            continue;
        }
        keys.extend(limit.members(list).keys().map(|k| k.as_str()).filter(|k| !keys.contains(k)).collect::<Vec<_>>());
    }
    keys.sort_unstable();
    for key in keys {
        bounds(limit, key, pod, path, errors);
    }
}

/// The order of minimum, request, limit and maximum of one resource.
fn bounds(limit: &Value, key: &str, pod: bool, path: &FieldPath, errors: &mut Errors) {
    let get = |list: &str| limit.members(list).get(key).map(quantity);
    let (min, max, ratio) = (get("min"), get("max"), get("maxLimitRequestRatio"));
    let (default, request) = if pod { (None, None) } else { (get("default"), get("defaultRequest")) };
    let mut say = |list: &str, value: &Quantity, text: String| {
        errors.invalid(&path.child(list).key(key), value.to_string(), text);
    };
    if let (Some(min), Some(max)) = (&min, &max)
        && min > max
    {
        say("min", min, format!("min value {min} is greater than max value {max}"));
    }
    if let (Some(request), Some(min)) = (&request, &min)
        && min > request
    {
        say("defaultRequest", request, format!("min value {min} is greater than default request value {request}"));
    }
    if let (Some(request), Some(max)) = (&request, &max)
        && request > max
    {
        say("defaultRequest", request, format!("default request value {request} is greater than max value {max}"));
    }
    if let (Some(request), Some(default)) = (&request, &default)
        && request > default
    {
        say(
            "defaultRequest",
            request,
            format!("default request value {request} is greater than default limit value {default}"),
        );
    }
    // In these two upstream shows the bound, not the default.
    if let (Some(default), Some(min)) = (&default, &min)
        && min > default
    {
        say("default", min, format!("min value {min} is greater than default value {default}"));
    }
    if let (Some(default), Some(max)) = (&default, &max)
        && default > max
    {
        say("default", max, format!("default value {default} is greater than max value {max}"));
    }
    if let Some(ratio) = &ratio {
        if ratio.milli_value() < 1000 {
            say("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let limit = max.as_f64() / min.as_f64();
            if ratio.as_f64() > limit {
                say("maxLimitRequestRatio", ratio, format!("ratio {ratio} is greater than max/min = {limit:.6}"));
            }
        }
    }
    if let (Some(default), Some(request)) = (&default, &request)
        && !resources::is_overcommit_allowed(key)
        && default != request
    {
        say(
            "defaultRequest",
            request,
            format!("default value {default} must equal to defaultRequest value {request} in {key}"),
        );
    }
}
