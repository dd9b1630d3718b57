//! Flow schemas and priority levels.

use super::access::{Fields, semantic_equal};
use super::check::{self, Errors, Report, shown, strings};
use super::object_meta::{self, MetaRules};
use crate::field::{BadValue, FieldPath};
use crate::json;
use crate::json::Value;
use crate::names;

const META: MetaRules = MetaRules::cluster(names::name_is_dns_subdomain);
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

pub(crate) fn flow_schema(new: &Value, errors: &mut Errors) {
    object_meta::validate(new, META, errors);
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let precedence = spec.i("matchingPrecedence");
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errors.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > 10_000 {
        errors.invalid(&at, precedence, "must not be greater than 10000");
    }
    if precedence == 1 && new.v("metadata").s("name") != "exempt" {
        errors.invalid(&at, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if let Some(method) = spec.o("distinguisherMethod")
        && !matches!(method.s("type"), "ByNamespace" | "ByUser")
    {
        // As the server's own structure prints it.
        let printed = BadValue::Printed(format!("{{\"Type\":{}}}", Value::from(method.s("type"))));
        errors.not_supported(&path.child("distinguisherMethod").child("type"), printed, &["ByNamespace", "ByUser"]);
    }
    let level = spec.v("priorityLevelConfiguration").s("name");
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.required(&at, "must reference a priority level");
    } else {
        check::dns_subdomain(level, &at, errors);
    }
    for (i, rule) in spec.list("rules").iter().enumerate() {
        rules(rule, &path.child("rules").index(i), errors);
    }
    let name = new.v("metadata").s("name");
    if mandatory_schema(name).is_some_and(|fixed| !semantic_equal(spec, &fixed)) {
        errors.invalid(&path, shown(spec), format!("spec of '{name}' must equal the fixed value"));
    }
    conditions(new, errors);
}

fn rules(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    let subjects = rule.list("subjects");
    if subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, one) in subjects.iter().enumerate() {
        subject(one, &path.child("subjects").index(i), errors);
    }
    let (resources, others) = (rule.list("resourceRules"), rule.list("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, one) in resources.iter().enumerate() {
        resource_rule(one, &path.child("resourceRules").index(i), errors);
    }
    for (i, one) in others.iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(one, &path, errors);
        urls(one, &path.child("nonResourceURLs"), errors);
    }
}

fn subject(subject: &Value, path: &FieldPath, errors: &mut Errors) {
    const KINDS: &[(&str, &str)] = &[("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject.s("kind");
    let Some((_, key)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return errors.not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
    };
    let at = path.child(key);
    match subject.o(key) {
        None => errors.required(&at, format!("{key} is required when subject kind is '{kind}'")),
        Some(body) => {
            let name = body.s("name");
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            } else if *key == "serviceAccount" && name != "*" {
                check::dns_subdomain(name, &at.child("name"), errors);
            }
            if *key == "serviceAccount" {
                let namespace = body.s("namespace");
                if namespace.is_empty() {
                    errors.required(&at.child("namespace"), "must specify namespace for service account");
                } else {
                    check::dns_label(namespace, &at.child("namespace"), errors);
                }
            }
        }
    }
    // Users come before groups, and accounts before both.
    for (other, key) in KINDS.iter().filter(|(name, _)| *name != kind) {
        if subject.has(key) {
            errors.forbidden(&path.child(key), format!("{key} is forbidden when subject kind is not '{other}'"));
        }
    }
}

fn verbs(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    let (verbs, at) = (strings(rule, "verbs"), path.child("verbs"));
    if verbs.is_empty() {
        errors.required(&at, "verbs must contain at least one value");
    } else if verbs.contains(&"*") {
        if verbs.len() > 1 {
            errors.invalid(&at, shown(rule.v("verbs")), "if '*' is present, must not specify other verbs");
        }
    } else if verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.not_supported(&at, shown(rule.v("verbs")), VERBS);
    }
}

fn urls(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    let urls = strings(rule, "nonResourceURLs");
    if urls.is_empty() {
        return errors.required(path, "nonResourceURLs must contain at least one value");
    }
    if urls.contains(&"*") {
        if urls.len() > 1 {
            errors.invalid(
                path,
                shown(rule.v("nonResourceURLs")),
                "if '*' is present, must not specify other non-resource URLs",
            );
        }
        return;
    }
    for (i, url) in urls.into_iter().enumerate() {
        let stars = url.matches('*').count();
        let problem = match url {
            "" => "must not be empty",
            "/" => continue,
            url if !url.starts_with('/') => "must start with slash",
            url if url.contains(' ') => "must not contain white-space",
            url if url.contains("//") => "must not contain double slash",
            url if stars > 1 || (stars == 1 && !url.ends_with("/*")) => "wildcard can only do suffix matching",
            _ => continue,
        };
        errors.invalid(&path.index(i), url, problem);
    }
}

fn resource_rule(rule: &Value, path: &FieldPath, errors: &mut Errors) {
    verbs(rule, path, errors);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let list = strings(rule, key);
        if list.is_empty() {
            errors.required(&path.child(key), format!("resource rules must supply at least one {one}"));
        } else if list.len() > 1 && list.contains(&"*") {
            let detail = format!("if '*' is present, must not specify other {many}");
            errors.invalid(&path.child(key), shown(rule.v(key)), detail);
        }
    }
    let (namespaces, at) = (strings(rule, "namespaces"), path.child("namespaces"));
    if namespaces.is_empty() && !rule.b("clusterScope") {
        errors.required(&at, "resource rules that are not cluster scoped must supply at least one namespace");
    } else if namespaces.contains(&"*") {
        if namespaces.len() > 1 {
            let detail = "if '*' is present, must not specify other namespaces";
            errors.invalid(&at, shown(rule.v("namespaces")), detail);
        }
    } else {
        for (i, namespace) in namespaces.into_iter().enumerate() {
            for message in names::is_dns1123_label(namespace) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errors.invalid(&at.index(i), namespace, detail);
            }
        }
    }
}

/// Conditions of either kind: a type each, and none twice.
pub(crate) fn conditions(object: &Value, errors: &mut Errors) {
    let conditions = object.v("status").list("conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let path = FieldPath::new("status").child("conditions").index(i).child("type");
        let kind = condition.s("type");
        if conditions[..i].iter().any(|c| c.s("type") == kind) {
            errors.duplicate(&path, kind);
        }
        if kind.is_empty() {
            errors.required(&path, "");
        }
    }
}

pub(crate) fn priority_level(new: &Value, errors: &mut Errors) {
    const ZERO_SHARES: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
    object_meta::validate(new, META, errors);
    if new.v("metadata").v("annotations").has(ZERO_SHARES) {
        errors.forbidden(
            &FieldPath::new("metadata").child("annotations"),
            format!("annotation '{ZERO_SHARES}' is forbidden"),
        );
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    let kind = spec.s("type");
    if (new.v("metadata").s("name") == "exempt") != (kind == "Exempt") {
        errors.invalid(&path.child("type"), kind, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match kind {
        "Exempt" => {
            if spec.has("limited") {
                errors.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
            }
            if let Some(exempt) = spec.o("exempt") {
                shares(exempt, &path.child("exempt"), errors);
                lendable(exempt, &path.child("exempt"), errors);
            }
        }
        "Limited" => {
            if spec.has("exempt") {
                errors.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            match spec.o("limited") {
                None => errors.required(&path.child("limited"), "must not be empty when type is Limited"),
                Some(body) => limited(body, &path.child("limited"), errors),
            }
        }
        other => errors.not_supported(&path.child("type"), other, &["Exempt", "Limited"]),
    }
    let name = new.v("metadata").s("name");
    if let Some(fixed) = mandatory_level(name) {
        let mut compared = spec.clone();
        let mut except = "";
        if name == "exempt" {
            // An administrator may change how much the exempt level lends.
            compared.make_object().insert("exempt", fixed.v("exempt").clone());
            except = " except the 'spec.exempt' field";
        }
        if !semantic_equal(&compared, &fixed) {
            errors.invalid(&path, shown(spec), format!("spec of '{name}'{except} must equal the fixed value"));
        }
    }
    conditions(new, errors);
}

/// The spec that a FlowSchema must have that every server brings along.
fn mandatory_schema(name: &str) -> Option<Value> {
    let everything = |groups: &[&str]| {
        let subjects: Vec<Value> = groups.iter().map(|g| json!({"kind": "Group", "group": {"name": *g}})).collect();
        let mut rule = json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                "clusterScope": true}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        });
        rule["subjects"] = Value::Array(subjects);
        Value::Array(vec![rule])
    };
    let (mut spec, groups): (Value, &[&str]) = match name {
        "exempt" => {
            (json!({"priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1}), &["system:masters"])
        }
        "catch-all" => (
            json!({"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 10000,
                "distinguisherMethod": {"type": "ByUser"}}),
            &["system:unauthenticated", "system:authenticated"],
        ),
        _ => return None,
    };
    spec["rules"] = everything(groups);
    Some(spec)
}

/// The same for priority levels.
fn mandatory_level(name: &str) -> Option<Value> {
    match name {
        "exempt" => Some(json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}})),
        "catch-all" => Some(json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "lendablePercent": 0, "limitResponse": {"type": "Reject"}}})),
        _ => None,
    }
}

fn shares(body: &Value, path: &FieldPath, errors: &mut Errors) {
    let shares = body.i("nominalConcurrencyShares");
    if shares < 0 {
        errors.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
}

fn lendable(body: &Value, path: &FieldPath, errors: &mut Errors) {
    if let Some(percent) = body.oi("lendablePercent")
        && !(0..=100).contains(&percent)
    {
        errors.invalid(&path.child("lendablePercent"), percent, "must be between 0 and 100, inclusive");
    }
}

fn limited(body: &Value, path: &FieldPath, errors: &mut Errors) {
    shares(body, path, errors);
    let response = body.v("limitResponse");
    let at = path.child("limitResponse");
    let queuing = response.o("queuing");
    match response.s("type") {
        "Reject" => {
            if queuing.is_some() {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                errors.forbidden(&at.child("queuing"), detail);
            }
        }
        "Queue" => match queuing {
            None => errors.required(&at.child("queuing"), "must not be empty if limited.limitResponse.type is Limited"),
            Some(body) => queues(body, &at.child("queuing"), errors),
        },
        other => errors.not_supported(&at.child("type"), other, &["Queue", "Reject"]),
    }
    lendable(body, path, errors);
    if let Some(percent) = body.oi("borrowingLimitPercent")
        && percent < 0
    {
        let detail = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), percent, detail);
    }
}

const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that picks a hand of queues.
const MAX_HASH_BITS: f64 = 60.0;

fn queues(body: &Value, path: &FieldPath, errors: &mut Errors) {
    let (length, queues, hand) = (body.i("queueLengthLimit"), body.i("queues"), body.i("handSize"));
    if length <= 0 {
        errors.invalid(&path.child("queueLengthLimit"), length, "must be positive");
    }
    let at = path.child("queues");
    if queues <= 0 {
        errors.invalid(&at, queues, "must be positive");
    } else if queues > MAX_QUEUES {
        errors.invalid(&at, queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    let at = path.child("handSize");
    let bits = ((queues as f64).log2() * hand as f64).ceil();
    if hand <= 0 {
        errors.invalid(&at, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(&at, hand, format!("should not be greater than queues ({queues})"));
    } else if bits > MAX_HASH_BITS {
        errors.invalid(
            &at,
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
            ),
        );
    }
}
