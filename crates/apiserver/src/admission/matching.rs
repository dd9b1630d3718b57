//! Which requests a webhook or policy is about: rules, namespace and object selectors, equivalent versions.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/webhook/{generic,predicates}`,
//! `k8s.io/apiserver/pkg/admission/plugin/policy/matching`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::labels::Selector;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use parking_lot::RwLock;
use store::Revision;

use super::{AdmissionRequest, Operation};

/// Something parsed from stored objects, kept until one of them changes.
pub struct Cached<T> {
    state: RwLock<Option<(Vec<Revision>, Arc<T>)>>,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Cached { state: RwLock::new(None) }
    }
}

impl<T> Cached<T> {
    /// What `build` makes of all objects of these resources (of one group and version), ascending by name. `None` when
    /// there are no objects of the first.
    pub async fn get(
        &self,
        request: &AdmissionRequest<'_>,
        (group, version): (&str, &str),
        resources: &[&str],
        build: impl FnOnce(Vec<Vec<Value>>) -> T,
    ) -> StatusResult<Option<Arc<T>>> {
        request.storage.caches.wait_own().await.map_err(crate::storage::cache_status)?;
        let mut revisions = Vec::with_capacity(resources.len());
        for (i, resource) in resources.iter().enumerate() {
            let resource = request.storage.registry.get(group, version, resource);
            let Some(cache) = resource.as_ref().and_then(|r| r.storage.as_ref()).map(|s| &s.cache) else {
                return Ok(None);
            };
            if i == 0 && cache.is_empty() {
                return Ok(None);
            }
            revisions.push(cache.revision());
        }
        if let Some((at, known)) = &*self.state.read()
            && *at == revisions
        {
            return Ok(Some(known.clone()));
        }
        let mut lists = Vec::with_capacity(resources.len());
        for resource in resources {
            lists.push(request.list(group, version, resource, "").await?);
        }
        let built = Arc::new(build(lists));
        *self.state.write() = Some((revisions, built.clone()));
        Ok(Some(built))
    }
}

/// Objects that configure admission are never judged by webhooks: a bad one could lock everybody out.
pub fn is_admission_configuration(gvr: &GroupVersionResource) -> bool {
    gvr.group == "admissionregistration.k8s.io"
}

/// Policies and their bindings are never judged by policies; configurations of webhooks are.
pub fn is_policy(gvr: &GroupVersionResource) -> bool {
    is_admission_configuration(gvr) && !gvr.resource.ends_with("webhookconfigurations")
}

/// Reviews are answered, not stored; policies do not see them.
pub fn is_review(gvr: &GroupVersionResource) -> bool {
    matches!(gvr.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
}

/// What a webhook or policy is about.
pub struct Criteria {
    pub rules: Vec<Value>,
    pub exclude: Vec<Value>,
    /// Also requests in other versions of what the rules name.
    pub equivalent: bool,
    /// No rules: everything (bindings of policies).
    pub rules_optional: bool,
    namespace_selector: Result<Selector, String>,
    object_selector: Result<Selector, String>,
}

fn selector(value: &Value) -> Result<Selector, String> {
    // No selector selects everything; an empty one too.
    if value.is_object() {
        Selector::from_label_selector(value).map_err(|e| e.to_string())
    } else {
        Ok(Selector::everything())
    }
}

impl Criteria {
    /// Of a webhook.
    pub fn of_webhook(webhook: &Value) -> Criteria {
        Criteria {
            rules: webhook.array_at(&["rules"]).to_vec(),
            exclude: Vec::new(),
            equivalent: webhook.str_at(&["matchPolicy"]) != "Exact",
            rules_optional: false,
            namespace_selector: selector(&webhook["namespaceSelector"]),
            object_selector: selector(&webhook["objectSelector"]),
        }
    }

    /// Of `matchConstraints` of a policy or `matchResources` of a binding.
    pub fn of_match_resources(resources: &Value, rules_optional: bool) -> Criteria {
        Criteria {
            rules: resources.array_at(&["resourceRules"]).to_vec(),
            exclude: resources.array_at(&["excludeResourceRules"]).to_vec(),
            equivalent: resources.str_at(&["matchPolicy"]) != "Exact",
            rules_optional,
            namespace_selector: selector(&resources["namespaceSelector"]),
            object_selector: selector(&resources["objectSelector"]),
        }
    }

    /// Whether the request matches, and as which resource and kind.
    pub async fn matches(
        &self,
        request: &AdmissionRequest<'_>,
    ) -> StatusResult<Option<(GroupVersionResource, GroupVersionKind)>> {
        if self.by_rules(request, &self.exclude).is_some() {
            return Ok(None);
        }
        let matched = if self.rules.is_empty() && self.rules_optional {
            Some((request.gvr.clone(), request.gvk.clone()))
        } else {
            self.by_rules(request, &self.rules)
        };
        let Some(matched) = matched else { return Ok(None) };
        let broken = |e: &String| Box::new(Status::internal_error(e));
        let object_selector = self.object_selector.as_ref().map_err(broken)?;
        if !object_selector.is_empty() {
            let labels_match =
                |object: &Option<Value>| object.as_ref().is_some_and(|o| object_selector.matches(o.labels()));
            if !labels_match(&request.object) && !labels_match(&request.old_object) {
                return Ok(None);
            }
        }
        let namespace_selector = self.namespace_selector.as_ref().map_err(broken)?;
        if !namespace_selector.is_empty() && !in_namespaces(request, namespace_selector).await? {
            return Ok(None);
        }
        Ok(Some(matched))
    }

    fn by_rules(
        &self,
        request: &AdmissionRequest<'_>,
        rules: &[Value],
    ) -> Option<(GroupVersionResource, GroupVersionKind)> {
        if rules.iter().any(|r| rule_matches(r, request, &request.gvr)) {
            return Some((request.gvr.clone(), request.gvk.clone()));
        }
        if !self.equivalent {
            return None;
        }
        let resources = request.storage.registry.current();
        let own = resources.get(&request.gvr.group, &request.gvr.version, &request.gvr.resource)?;
        let own_cache = &own.storage.as_ref()?.cache;
        let others = resources
            .all()
            .filter(|r| r.gvr != request.gvr && r.storage.as_ref().is_some_and(|s| Arc::ptr_eq(&s.cache, own_cache)));
        let others: Vec<_> = others.collect();
        rules.iter().find_map(|rule| {
            let other = others.iter().find(|r| rule_matches(rule, request, &r.gvr))?;
            // A Scale is the same whatever version of the object it belongs to.
            let kind = if request.gvk == own.gvk { &other.gvk } else { &request.gvk };
            Some((other.gvr.clone(), kind.clone()))
        })
    }
}

async fn in_namespaces(request: &AdmissionRequest<'_>, selector: &Selector) -> StatusResult<bool> {
    if request.gvk.group.is_empty() && request.gvk.kind == "Namespace" {
        let object = request.object.as_ref().or(request.old_object.as_ref());
        return Ok(object.is_some_and(|o| selector.matches(o.labels())));
    }
    if request.namespace.is_empty() {
        return Ok(true);
    }
    let namespace = request.find("", "v1", "namespaces", "", &request.namespace).await?;
    Ok(namespace.is_some_and(|n| selector.matches(n.labels())))
}

/// Source: `plugin/webhook/predicates/rules`.
fn rule_matches(rule: &Value, request: &AdmissionRequest<'_>, gvr: &GroupVersionResource) -> bool {
    let any = |key: &str, wanted: &str| {
        rule.array_at(&[key]).iter().filter_map(Value::as_str).any(|v| v == "*" || v == wanted)
    };
    let namespaced = !request.namespace.is_empty() && !(gvr.group.is_empty() && gvr.resource == "namespaces");
    let scope = match rule.str_at(&["scope"]) {
        "Namespaced" => namespaced,
        "Cluster" => !namespaced,
        _ => true,
    };
    let names = rule.array_at(&["resourceNames"]);
    scope
        && any("operations", request.operation.as_str())
        && any("apiGroups", &gvr.group)
        && any("apiVersions", &gvr.version)
        && rule
            .array_at(&["resources"])
            .iter()
            .filter_map(Value::as_str)
            .any(|pattern| resource_matches(pattern, &gvr.resource, &request.subresource))
        && (names.is_empty() || names.iter().any(|n| *n == request.name.as_str()))
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    let (main, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    (main == "*" || main == resource) && (sub == "*" || sub == subresource)
}

/// The objects of a request in the version that the rules asked for.
pub async fn converted(
    request: &AdmissionRequest<'_>,
    kind: &GroupVersionKind,
) -> StatusResult<(Option<Value>, Option<Value>)> {
    if *kind == request.gvk {
        return Ok((request.object.clone(), request.old_object.clone()));
    }
    let resource = request.storage.registry.get(&request.gvr.group, &request.gvr.version, &request.gvr.resource);
    let Some(resource) = resource else { return Ok((request.object.clone(), request.old_object.clone())) };
    let mut out = Vec::with_capacity(2);
    for object in [&request.object, &request.old_object] {
        out.push(match object {
            Some(object) => Some(resource.strategy.to_version(object.clone(), kind).await?),
            None => None,
        });
    }
    let old = out.pop().flatten();
    Ok((out.pop().flatten(), old))
}

/// The request as webhooks and expressions see it, without the objects.
pub fn request_value(
    request: &AdmissionRequest<'_>,
    resource: &GroupVersionResource,
    kind: &GroupVersionKind,
) -> Value {
    let gvk = |k: &GroupVersionKind| apimachinery::json!({"group": k.group.as_str(), "version": k.version.as_str(), "kind": k.kind.as_str()});
    let gvr = |r: &GroupVersionResource| apimachinery::json!({"group": r.group.as_str(), "version": r.version.as_str(), "resource": r.resource.as_str()});
    let mut value = apimachinery::json!({
        "kind": gvk(kind), "resource": gvr(resource),
        "requestKind": gvk(&request.gvk), "requestResource": gvr(&request.gvr),
        "operation": request.operation.as_str(), "dryRun": request.dry_run,
        "userInfo": crate::handlers::reviews::user_value(&request.user),
    });
    for (key, text) in [
        ("subResource", request.subresource.as_str()),
        ("requestSubResource", request.subresource.as_str()),
        ("name", request.name.as_str()),
        ("namespace", request.namespace.as_str()),
    ] {
        if !text.is_empty() {
            value[key] = text.into();
        }
    }
    if request.options.is_object() && request.operation != Operation::Connect {
        value["options"] = request.options.clone();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_resources_and_subresources() {
        for (pattern, resource, subresource, want) in [
            ("pods", "pods", "", true),
            ("pods", "pods", "status", false),
            ("pods/*", "pods", "status", true),
            ("pods/*", "pods", "", true),
            ("*", "pods", "", true),
            ("*", "pods", "status", false),
            ("*/*", "pods", "status", true),
            ("*/scale", "deployments", "scale", true),
            ("*/scale", "deployments", "", false),
        ] {
            assert_eq!(resource_matches(pattern, resource, subresource), want, "{pattern} {resource}/{subresource}");
        }
    }
}
