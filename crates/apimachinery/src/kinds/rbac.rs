//! Roles and their bindings.

use super::access::Fields;
use super::check::{self, Errors, Report, SelectorOptions, shown};
use super::object_meta::{self, MetaRules};
use crate::field::FieldPath;
use crate::json::Value;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

fn name(name: &str, _: bool) -> Vec<String> {
    names::is_path_segment_name(name)
}

fn meta(namespaced: bool) -> MetaRules {
    if namespaced { MetaRules::namespaced(name) } else { MetaRules::cluster(name) }
}

fn rule(rule: &Value, namespaced: bool, path: &FieldPath, errors: &mut Errors) {
    if rule.list("verbs").is_empty() {
        errors.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    let urls = rule.v("nonResourceURLs");
    if !rule.list("nonResourceURLs").is_empty() {
        let path = path.child("nonResourceURLs");
        if namespaced {
            errors.invalid(&path, shown(urls), "namespaced rules cannot apply to non-resource URLs");
        }
        if ["apiGroups", "resources", "resourceNames"].iter().any(|key| !rule.list(key).is_empty()) {
            errors.invalid(&path, shown(urls), "rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if rule.list("apiGroups").is_empty() {
        errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if rule.list("resources").is_empty() {
        errors.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
}

/// A Role, or a ClusterRole when not `namespaced`.
pub(crate) fn role(new: &Value, old: Option<&Value>, namespaced: bool, errors: &mut Errors) {
    object_meta::validate(new, meta(namespaced), errors);
    for (i, one) in new.list("rules").iter().enumerate() {
        rule(one, namespaced, &FieldPath::new("rules").index(i), errors);
    }
    if let Some(aggregation) = new.o("aggregationRule").filter(|_| !namespaced) {
        let path = FieldPath::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = aggregation.list("clusterRoleSelectors");
        if selectors.is_empty() {
            errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        let lenient = old.is_some_and(|old| {
            old.v("aggregationRule").list("clusterRoleSelectors").iter().any(check::selector_has_invalid_value)
        });
        let options = SelectorOptions { allow_invalid_label_value: lenient, ..SelectorOptions::default() };
        for (i, selector) in selectors.iter().enumerate() {
            let path = path.index(i);
            check::label_selector(Some(selector), options, &path, errors);
            if !check::selector_is_valid(selector) {
                errors.invalid(&path, Value::Null, "invalid label selector.");
            }
        }
    }
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
}

fn subject(subject: &Value, namespaced: bool, path: &FieldPath, errors: &mut Errors) {
    let (name, group) = (subject.s("name"), subject.s("apiGroup"));
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    match subject.s("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                check::dns_subdomain(name, &path.child("name"), errors);
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject.s("namespace").is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

/// A RoleBinding, or a ClusterRoleBinding when not `namespaced`.
pub(crate) fn binding(new: &Value, old: Option<&Value>, namespaced: bool, errors: &mut Errors) {
    object_meta::validate(new, meta(namespaced), errors);
    let path = FieldPath::new("roleRef");
    let role = new.v("roleRef");
    if role.s("apiGroup") != GROUP {
        errors.not_supported(&path.child("apiGroup"), role.s("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.s("kind")) {
        errors.not_supported(&path.child("kind"), role.s("kind"), kinds);
    }
    check::required_path_segment(role, "name", &path, errors);
    for (i, one) in new.list("subjects").iter().enumerate() {
        subject(one, namespaced, &FieldPath::new("subjects").index(i), errors);
    }
    let Some(old) = old else { return };
    object_meta::validate_update(new, old, true, errors);
    let before = old.v("roleRef");
    if ["apiGroup", "kind", "name"].iter().any(|key| role.s(key) != before.s(key)) {
        errors.invalid(&path, role, "cannot change roleRef");
    }
}
