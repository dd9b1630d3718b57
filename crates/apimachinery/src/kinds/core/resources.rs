//! Resource lists: names, quantities, requests against limits, quality of service.
//!
//! Follows `pkg/apis/core/validation` (`validateResourceRequirements` and below), `pkg/apis/core/helper` and
//! `k8s.io/component-helpers/resource`.

use crate::field::FieldPath;
use crate::json::{Map, Value};
use crate::kinds::access::{Fields, present};
use crate::kinds::check::{Errors, NEGATIVE, Report, dns_label};
use crate::names;
use crate::quantity::Quantity;

/// The quantity in a tree; zero for what is none (decoding has refused such values).
pub(crate) fn quantity(v: &Value) -> Quantity {
    Quantity::from_value(v).unwrap_or_default()
}

/// The canonical text of a quantity, empty when absent.
pub(crate) fn canonical(v: &Value) -> String {
    if v.is_null() { String::new() } else { quantity(v).to_string() }
}

/// Rounds each quantity of a list up to a thousandth, as storage keeps them, and writes it canonically.
pub(crate) fn round_up(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        let Ok(q) = Quantity::from_value(value) else { continue };
        let milli = Quantity::parse(&format!("{}m", q.milli_value())).unwrap_or_default();
        // Quantities beyond the range of thousandths saturate; they have nothing to round.
        let text = if milli > q { milli.to_string() } else { q.to_string() };
        if *value != text.as_str() {
            *value = text.into();
        }
    }
}

/// The same for limits and requests.
pub(crate) fn requirements(requirements: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = present(requirements, list) {
            round_up(list);
        }
    }
}

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Resources that may be set for a pod as a whole.
pub(crate) fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_page(name)
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Resources that devices offer under a domain of their own.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

const STANDARD_QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

pub(crate) fn is_standard_quota(name: &str) -> bool {
    STANDARD_QUOTA.contains(&name) || is_quota_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    is_standard_quota(name) || name == "storage"
}

/// Resources that are counted in whole pieces.
pub(crate) fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

/// A resource name; true when nothing was wrong.
pub(crate) fn name(name: &str, path: &FieldPath, errors: &mut Errors) -> bool {
    let messages = names::is_qualified_name(name);
    if !messages.is_empty() {
        errors.messages(path, name, messages);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

pub(crate) fn container_name(resource: &str, path: &FieldPath, errors: &mut Errors) {
    name(resource, path, errors);
    if !resource.contains('/') {
        if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(resource) {
            errors.invalid(path, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        errors.invalid(path, resource, "doesn't follow extended resource name standard");
    }
}

pub(crate) fn quota_name(resource: &str, path: &FieldPath, errors: &mut Errors) {
    name(resource, path, errors);
    if !resource.contains('/') && !is_standard_quota(resource) {
        errors.invalid(path, resource, "must be a standard resource for quota");
    }
}

/// A quantity of a resource: not negative, and whole where pieces are counted.
pub(crate) fn quantity_value(resource: &str, value: &Value, path: &FieldPath, errors: &mut Errors) {
    let q = quantity(value);
    if q.sign() < 0 {
        errors.invalid(path, q.to_string(), NEGATIVE);
    }
    if is_integer(resource) && q.milli_value() % 1000 != 0 {
        errors.invalid(path, q.to_string(), "must be an integer");
    }
}

pub(crate) fn positive_quantity(value: &Value, path: &FieldPath, errors: &mut Errors) -> bool {
    let q = quantity(value);
    if q.sign() <= 0 {
        errors.invalid(path, q.to_string(), "must be greater than zero");
        return false;
    }
    true
}

/// Whose requirements are validated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Container,
    Pod,
}

fn huge_page_text(resource: &str, q: &Quantity) -> Option<String> {
    let size = Quantity::parse(resource.strip_prefix("hugepages-")?).ok();
    let divisible = size.is_some_and(|s| s.sign() > 0 && s.milli_value() % 1000 == 0 && q.value() % s.value() == 0);
    (!divisible).then(|| format!("{q} is not positive integer multiple of {resource}"))
}

/// Limits and requests.
pub(crate) fn validate(
    requirements: &Value,
    level: Level,
    claims: &[&str],
    path: &FieldPath,
    indivisible: bool,
    errors: &mut Errors,
) {
    let (limits, requests) = (requirements.members("limits"), requirements.members("requests"));
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let (mut compute, mut huge) = (false, false);
    let mut check = |resource: &str, value: &Value, at: &FieldPath, errors: &mut Errors| {
        match level {
            Level::Container => container_name(resource, at, errors),
            Level::Pod => {
                if name(resource, at, errors) && !is_pod_level(resource) {
                    errors.not_supported(at, resource, &["cpu", "hugepages-", "memory"]);
                }
            }
        }
        quantity_value(resource, value, at, errors);
        compute |= matches!(resource, "cpu" | "memory");
    };
    for (resource, value) in limits.iter() {
        let at = limits_path.key(resource);
        check(resource, value, &at, errors);
        if is_huge_page(resource) {
            huge = true;
            huge_page(resource, value, indivisible, &at, errors);
        }
    }
    for (resource, value) in requests.iter() {
        let at = requests_path.key(resource);
        check(resource, value, &at, errors);
        let request = quantity(value);
        match limits.get(resource) {
            Some(limit) => {
                let limit = quantity(limit);
                if request != limit && !is_overcommit_allowed(resource) {
                    errors.invalid(
                        &requests_path,
                        request.to_string(),
                        format!("must be equal to {resource} limit of {limit}"),
                    );
                } else if request > limit {
                    errors.invalid(
                        &requests_path,
                        request.to_string(),
                        format!("must be less than or equal to {resource} limit of {limit}"),
                    );
                }
            }
            None if !is_overcommit_allowed(resource) => {
                errors.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
        if is_huge_page(resource) {
            huge = true;
            huge_page(resource, value, indivisible, &at, errors);
        }
    }
    if huge && !compute {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    claim_names(requirements.list("claims"), claims, &path.child("claims"), errors);
}

fn huge_page(resource: &str, value: &Value, indivisible: bool, path: &FieldPath, errors: &mut Errors) {
    let q = quantity(value);
    if !indivisible && let Some(text) = huge_page_text(resource, &q) {
        errors.invalid(path, q.to_string(), text);
    }
}

fn claim_names(list: &[Value], pod_claims: &[&str], path: &FieldPath, errors: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (i, claim) in list.iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (claim.s("name"), claim.s("request"));
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if seen.iter().any(|s| s == name) {
            errors.duplicate(&path, name);
        } else {
            let mut key = name.to_owned();
            if !request.is_empty() {
                dns_label(request, &path.child("request"), errors);
                key = format!("{name}/{request}");
            }
            if seen.contains(&key) {
                errors.duplicate(&path, key.as_str());
            } else if request.is_empty() && seen.iter().any(|s| s.split_once('/').is_some_and(|(n, _)| n == name)) {
                errors.duplicate(&path, name);
            }
            seen.push(key);
        }
        if !pod_claims.contains(&name) {
            let mut sorted = pod_claims.to_vec();
            sorted.sort_unstable();
            let mut error = crate::field::FieldError::not_found(&path, name);
            error.detail = if sorted.is_empty() {
                "must be one of the names in pod.spec.resourceClaims which is empty".to_owned()
            } else {
                format!("must be one of the names in pod.spec.resourceClaims: {}", sorted.join(", "))
            };
            errors.push(error);
        }
    }
}

fn add(total: &mut Vec<(String, Quantity)>, list: &Map) {
    for (name, value) in list.iter() {
        let q = quantity(value);
        match total.iter_mut().find(|(n, _)| n == name.as_str()) {
            Some((_, sum)) => sum.add(&q),
            None => total.push((name.to_string(), q)),
        }
    }
}

fn add_all(total: &mut Vec<(String, Quantity)>, other: &[(String, Quantity)]) {
    for (name, q) in other {
        match total.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => sum.add(q),
            None => total.push((name.clone(), q.clone())),
        }
    }
}

fn raise(total: &mut Vec<(String, Quantity)>, other: &[(String, Quantity)]) {
    for (name, q) in other {
        match total.iter_mut().find(|(n, _)| n == name) {
            Some((_, max)) if *max < *q => *max = q.clone(),
            Some(_) => {}
            None => total.push((name.clone(), q.clone())),
        }
    }
}

/// What all containers of a pod need together (`list` is `requests` or `limits`): the sum of the regular ones and the
/// sidecars, or what the greediest init container needs, whichever is more.
pub(crate) fn aggregate_quantities(spec: &Value, list: &str) -> Vec<(String, Quantity)> {
    let mut total = Vec::new();
    for container in spec.list("containers") {
        add(&mut total, container.v("resources").members(list));
    }
    let (mut sidecars, mut init) = (Vec::new(), Vec::new());
    for container in spec.list("initContainers") {
        let own = container.v("resources").members(list);
        if container.s("restartPolicy") == "Always" {
            add(&mut total, own);
            add(&mut sidecars, own);
            raise(&mut init, &sidecars);
        } else {
            let mut sum = Vec::new();
            add(&mut sum, own);
            add_all(&mut sum, &sidecars);
            raise(&mut init, &sum);
        }
    }
    raise(&mut total, &init);
    total
}

/// The same as values of a resource list.
pub(crate) fn aggregate(spec: &Value, list: &str) -> Vec<(String, Value)> {
    aggregate_quantities(spec, list).into_iter().map(|(n, q)| (n, q.to_string().into())).collect()
}

/// Pod-level requests cover the containers; container limits stay below the pod's.
pub(crate) fn pod_consistency(spec: &Value, path: &FieldPath, errors: &mut Errors) {
    let resources = spec.v("resources");
    let (requests, limits) = (resources.members("requests"), resources.members("limits"));
    let sorted = |list: &str| {
        let mut all = aggregate_quantities(spec, list);
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    for (name, sum) in sorted("requests") {
        let Some(pod) = requests.get(&name).map(quantity) else { continue };
        if sum > pod {
            errors.invalid(
                &path.child("requests").key(&name),
                pod.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
    for (name, sum) in sorted("limits") {
        let Some(pod) = limits.get(&name).map(quantity).filter(|_| is_huge_page(&name)) else { continue };
        if sum > pod {
            errors.invalid(
                &path.child("limits").key(&name),
                pod.to_string(),
                format!("must be greater than or equal to aggregate container limits of {sum}"),
            );
        }
    }
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (name, limit) in container.v("resources").members("limits").iter() {
            let (Some(pod), limit) = (limits.get(name).map(quantity), quantity(limit)) else { continue };
            if limit > pod {
                errors.invalid(
                    &path.child("containers").index(i).key(name).child("limits"),
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {pod}"),
                );
            }
        }
    }
}

/// The quality-of-service class that a pod's resources give it.
pub fn qos_class(spec: &Value) -> &'static str {
    const COMPUTE: [&str; 2] = ["cpu", "memory"];
    let positive = |list: &Map| -> Vec<(&'static str, Quantity)> {
        COMPUTE.iter().filter_map(|n| Some((*n, quantity(list.get(n)?)))).filter(|(_, q)| q.sign() > 0).collect()
    };
    let mut guaranteed = true;
    let (mut requests, mut limits): (Vec<(&str, Quantity)>, Vec<(&str, Quantity)>) = (Vec::new(), Vec::new());
    let sum = |to: &mut Vec<(&'static str, Quantity)>, from: Vec<(&'static str, Quantity)>| {
        for (name, q) in from {
            match to.iter_mut().find(|(n, _)| *n == name) {
                Some((_, total)) => total.add(&q),
                None => to.push((name, q)),
            }
        }
    };
    if let Some(pod) = spec.o("resources") {
        sum(&mut requests, positive(pod.members("requests")));
        let own = positive(pod.members("limits"));
        if !pod.members("limits").is_empty() && own.len() < 2 {
            guaranteed = false;
        }
        sum(&mut limits, own);
    } else {
        for container in spec.list("containers").iter().chain(spec.list("initContainers")) {
            let resources = container.v("resources");
            sum(&mut requests, positive(resources.members("requests")));
            let own = positive(resources.members("limits"));
            guaranteed &= own.len() == 2;
            sum(&mut limits, own);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let covered = requests.iter().all(|(n, r)| limits.iter().any(|(m, l)| n == m && l == r));
    if guaranteed && covered && requests.len() == limits.len() { "Guaranteed" } else { "Burstable" }
}
