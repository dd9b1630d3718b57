//! Fields that only some users may set: checks of a write that need the authorizer or other objects, and are reported
//! with the errors of validation.
//!
//! Follows: `pkg/registry/resource/utils.go`, `pkg/registry/admissionregistration/*/authz.go`.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupResource;
use apimachinery::status::{Status, StatusResult};

use super::Cx;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Decision, forbidden_message, is_privileged};

/// Namespaces whose claims may ask for administrative access to devices carry this label.
const ADMIN_NAMESPACE: &str = "resource.kubernetes.io/admin-access";
/// Who runs on which node, in the extra information of a service account's token.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Adds what is wrong with a write of `new` over `old` (`None`: a create) to the errors of validation.
pub async fn check(
    cx: &Cx,
    subresource: &str,
    new: &Value,
    old: Option<&Value>,
    errors: &mut Vec<FieldError>,
) -> StatusResult<()> {
    match (cx.resource.gvk.group.as_str(), cx.resource.gvk.kind.as_str(), subresource) {
        ("resource.k8s.io", "ResourceClaim" | "ResourceClaimTemplate", "") if old.is_none() => {
            let mut found = admin_requests(cx, new).await?;
            found.append(errors);
            *errors = found;
        }
        ("resource.k8s.io", "ResourceClaim", "status") => {
            if let Some(old) = old {
                let mut found = claim_status(cx, new, old).await?;
                found.append(errors);
                *errors = found;
            }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy", "") => {
            if errors.is_empty() {
                errors.extend(parameter_kind(cx, new, old).await);
            }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding", "") => {
            if errors.is_empty() {
                errors.extend(parameter_reference(cx, new, old).await?);
            }
        }
        _ => {}
    }
    Ok(())
}

fn is_set(value: &Value, path: &[&str]) -> bool {
    value.at(path).and_then(Value::as_bool) == Some(true)
}

async fn admin_namespace(cx: &Cx, path: FieldPath) -> StatusResult<Vec<FieldError>> {
    let namespace = cx.server.storage.find("", "v1", "namespaces", "", &cx.info.namespace).await?;
    let labelled = namespace.is_some_and(|n| n.str_at(&["metadata", "labels", ADMIN_NAMESPACE]) == "true");
    if labelled {
        return Ok(Vec::new());
    }
    let text =
        format!("admin access to devices requires the `{ADMIN_NAMESPACE}: true` label on the containing namespace");
    Ok(vec![FieldError::forbidden(&path, text)])
}

async fn admin_requests(cx: &Cx, object: &Value) -> StatusResult<Vec<FieldError>> {
    let spec = match cx.resource.gvk.kind.as_str() {
        "ResourceClaimTemplate" => &object["spec"]["spec"],
        _ => &object["spec"],
    };
    let requests = spec.array_at(&["devices", "requests"]);
    match requests.iter().position(|r| is_set(r, &["exactly", "adminAccess"])) {
        // The path is that of a claim, in templates as well.
        Some(i) => {
            let path = FieldPath::new("spec").children(&["devices", "requests"]).index(i).child("adminAccess");
            admin_namespace(cx, path).await
        }
        None => Ok(Vec::new()),
    }
}

fn same(new: &Value, old: &Value, path: &[&str]) -> bool {
    let of = |v: &Value| v.at(path).filter(|v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty())).cloned();
    of(new) == of(old)
}

async fn claim_status(cx: &Cx, new: &Value, old: &Value) -> StatusResult<Vec<FieldError>> {
    let results = |claim: &Value| claim.array_at(&["status", "allocation", "devices", "results"]).to_vec();
    let admin = |claim: &Value| results(claim).iter().position(|r| is_set(r, &["adminAccess"]));
    let mut errors = Vec::new();
    if admin(old).is_none()
        && let Some(i) = admin(new)
    {
        let path = FieldPath::new("status").children(&["allocation", "devices", "results"]).index(i);
        errors = admin_namespace(cx, path.child("adminAccess")).await?;
    }
    let verb = cx.info.verb.as_str();
    if !same(new, old, &["status", "allocation"]) || !same(new, old, &["status", "reservedFor"]) {
        let refused = denied(cx, &claim_attributes(cx, "binding", verb, "", "")).await;
        if let Some(reason) = refused {
            let text = format!(
                "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {reason}"
            );
            errors.push(FieldError::forbidden(&FieldPath::new("status").child("allocation"), text));
        }
    }
    if new.at(&["status", "allocation"]).is_none_or(Value::is_null) {
        return Ok(errors);
    }
    let mut verbs = vec![format!("arbitrary-node:{verb}")];
    if runs_on(&cx.user, allocated_node(new)) {
        verbs.insert(0, format!("associated-node:{verb}"));
    }
    for driver in changed_drivers(new, old) {
        let mut first = None;
        let mut allowed = false;
        for verb in &verbs {
            match denied(cx, &claim_attributes(cx, "driver", verb, &cx.info.namespace, &driver)).await {
                None => {
                    allowed = true;
                    break;
                }
                Some(reason) => {
                    first.get_or_insert(reason);
                }
            }
        }
        if !allowed {
            let text = format!(
                "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {}",
                verbs.join(" "),
                first.unwrap_or_default()
            );
            errors.push(FieldError::forbidden(&FieldPath::new("status").child("devices"), text));
        }
    }
    Ok(errors)
}

/// Drivers whose entries in `status.devices` are added, changed or removed, sorted.
fn changed_drivers(new: &Value, old: &Value) -> std::collections::BTreeSet<String> {
    let devices = |claim: &Value| claim.array_at(&["status", "devices"]).to_vec();
    let (after, before) = (devices(new), devices(old));
    let (here, there) = (after.iter().filter(|d| !before.contains(d)), before.iter().filter(|d| !after.contains(d)));
    here.chain(there).map(|d| d.str_at(&["driver"]).to_owned()).collect()
}

/// The one node that an allocation is tied to.
fn allocated_node(claim: &Value) -> &str {
    let terms = claim.array_at(&["status", "allocation", "nodeSelector", "nodeSelectorTerms"]);
    let [term] = terms else { return "" };
    let ([field], []) = (term.array_at(&["matchFields"]), term.array_at(&["matchExpressions"])) else { return "" };
    let [value] = field.array_at(&["values"]) else { return "" };
    match (field.str_at(&["key"]), field.str_at(&["operator"])) {
        ("metadata.name", "In") => value.as_str().unwrap_or(""),
        _ => "",
    }
}

/// Whether a user is a service account that is tied to this node.
fn runs_on(user: &UserInfo, node: &str) -> bool {
    !node.is_empty()
        && user.name.starts_with("system:serviceaccount:")
        && user.extra.get(NODE_NAME).is_some_and(|names| names.len() == 1 && names[0] == node)
}

fn claim_attributes(cx: &Cx, subresource: &str, verb: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        user: UserInfo::clone(&cx.user),
        verb: verb.to_owned(),
        namespace: namespace.to_owned(),
        group: cx.info.group.clone(),
        version: cx.info.version.clone(),
        resource: cx.info.resource.clone(),
        subresource: subresource.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    }
}

/// Why a user may not do something, as a refusal of such a request reads; `None` when they may.
async fn denied(cx: &Cx, attributes: &Attributes) -> Option<String> {
    if is_privileged(&attributes.user) {
        return None;
    }
    let answer = cx.server.config.authorizer.authorize(attributes).await;
    if answer.decision == Decision::Allow {
        return None;
    }
    let resource = GroupResource::new(&attributes.group, &attributes.resource);
    let text = forbidden_message(attributes, &answer.reason);
    Some(Status::forbidden(&resource, &attributes.name, text).message)
}

/// The user as Go prints one.
fn printed(user: &UserInfo) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k}:[{}]", v.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}

/// Group, version and resource of a kind, stars for what is not known.
fn resource_of(cx: &Cx, kind: &Value) -> (String, String, String, bool) {
    let (group, version) = match kind.str_at(&["apiVersion"]).split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", kind.str_at(&["apiVersion"])),
    };
    let resources = cx.server.storage.registry.current();
    let resource = resources.by_kind(group, version, kind.str_at(&["kind"])).map(|r| r.gvr.resource.to_string());
    let known = resource.is_some();
    (group.to_owned(), version.to_owned(), resource.unwrap_or_else(|| "*".to_owned()), known)
}

/// Who makes a policy with parameters must be able to read all of them.
async fn parameter_kind(cx: &Cx, new: &Value, old: Option<&Value>) -> Option<FieldError> {
    let path = ["spec", "paramKind"];
    let kind = new.at(&path).filter(|k| k.is_object())?;
    if old.is_some_and(|old| old.at(&path) == Some(kind)) || is_privileged(&cx.user) {
        return None;
    }
    let (group, version, resource, _) = resource_of(cx, kind);
    let attributes = Attributes {
        user: UserInfo::clone(&cx.user),
        verb: "get".to_owned(),
        namespace: "*".to_owned(),
        group,
        version,
        resource,
        name: "*".to_owned(),
        is_resource: true,
        ..Attributes::default()
    };
    if cx.server.config.authorizer.authorize(&attributes).await.decision == Decision::Allow {
        return None;
    }
    let text = format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        printed(&cx.user),
        kind.str_at(&["kind"]),
        kind.str_at(&["apiVersion"])
    );
    Some(FieldError::forbidden(&FieldPath::new("spec").child("paramKind"), text))
}

/// Who binds a policy to parameters must be able to read these.
async fn parameter_reference(cx: &Cx, new: &Value, old: Option<&Value>) -> StatusResult<Option<FieldError>> {
    let path = ["spec", "paramRef"];
    let Some(reference) = new.at(&path).filter(|r| r.is_object()) else { return Ok(None) };
    let policy_name = new.str_at(&["spec", "policyName"]);
    let unchanged =
        |old: &Value| old.at(&path) == Some(reference) && old.str_at(&["spec", "policyName"]) == policy_name;
    if old.is_some_and(unchanged) || is_privileged(&cx.user) {
        return Ok(None);
    }
    let policies = match cx.resource.gvk.kind.as_str() {
        "MutatingAdmissionPolicyBinding" => "mutatingadmissionpolicies",
        _ => "validatingadmissionpolicies",
    };
    let policy = cx.server.storage.find("admissionregistration.k8s.io", "v1", policies, "", policy_name).await?;
    let kind = policy.as_ref().and_then(|p| p.at(&["spec", "paramKind"])).filter(|k| k.is_object());
    let any = || ("*".to_owned(), "*".to_owned(), "*".to_owned(), true);
    let (group, version, resource, known) = kind.map_or_else(any, |kind| resource_of(cx, kind));
    let name = reference.str_at(&["name"]);
    let verb = if name.is_empty() { "list" } else { "get" };
    let attributes = Attributes {
        user: UserInfo::clone(&cx.user),
        verb: verb.to_owned(),
        namespace: reference.str_at(&["namespace"]).to_owned(),
        group,
        version,
        resource,
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    };
    if cx.server.config.authorizer.authorize(&attributes).await.decision == Decision::Allow {
        return Ok(None);
    }
    let user = printed(&cx.user);
    let lacks = format!("user {user} does not have \"{verb}\" permission");
    let text = match kind {
        None if policy.is_none() => format!(
            "unable to get policy {policy_name} to determine minimum required permissions and {lacks} for all groups, versions and resources"
        ),
        Some(kind) if !known => format!(
            "unable to resolve paramKind {{{} {}}} to determine minimum required permissions and {lacks} for all groups, versions and resources",
            kind.str_at(&["apiVersion"]),
            kind.str_at(&["kind"])
        ),
        _ if policies.starts_with("mutating") => {
            // Upstream has the words the other way round here.
            format!("user {verb} does not have \"{user}\" permission on the object referenced by paramRef")
        }
        _ => format!("{lacks} on the object referenced by paramRef"),
    };
    Ok(Some(FieldError::forbidden(&FieldPath::new("spec").child("paramRef"), text)))
}
