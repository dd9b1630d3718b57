//! Answers that are computed and never stored: access reviews, rules reviews, token reviews, and who one is.
//!
//! Follows: `pkg/registry/authorization`, `pkg/registry/authentication`.

use apimachinery::field::{BadValue, FieldError, FieldPath};
use apimachinery::gvk::GroupKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::names;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use http::Response;

use super::{Cx, body_bytes, write};
use crate::admission::Operation;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Decision, is_privileged};
use crate::body::{Body, RequestBody};
use crate::managed_fields;
use crate::options::WriteOptions;
use crate::output::{self, Form};
use crate::tokens;

/// Whether this kind is answered here.
pub fn handles(cx: &Cx) -> bool {
    matches!(
        cx.resource.gvk.kind.as_str(),
        "SelfSubjectReview"
            | "TokenReview"
            | "SubjectAccessReview"
            | "SelfSubjectAccessReview"
            | "LocalSubjectAccessReview"
            | "SelfSubjectRulesReview"
    )
}

pub async fn create(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "CreateOptions", false)?;
    let mut object = cx.decode(&cx.resource.gvk, &body, encoding, options.field_validation)?;
    if !object["metadata"].is_object() {
        object["metadata"] = Value::object();
    }
    write::match_namespace(cx, &mut object)?;
    let options_value = options.to_value("CreateOptions");
    let admission = |object: Value| {
        cx.admission(Operation::Create, &cx.resource.gvk, Some(object), None, options_value.clone(), options.dry_run)
    };
    let mut object = cx.admit(admission(object)).await?.unwrap_or_default();
    let kind = cx.resource.gvk.kind.clone();
    let tracked = matches!(kind.as_str(), "SelfSubjectReview" | "SelfSubjectRulesReview");
    if !tracked {
        managed_fields::track_create(cx, &mut object, &options.manager(cx.user_agent()));
    }
    check(&kind, &object)?;
    cx.validate(admission(object.clone())).await?;
    let answer = match kind.as_str() {
        "SelfSubjectReview" => {
            object.metadata_mut().insert("creationTimestamp", write::now().into());
            object.set_at(&["status", "userInfo"], user_value(&cx.user));
            object
        }
        "TokenReview" => token_review(cx, object).await?,
        "SelfSubjectRulesReview" => rules_review(cx, &object).await?,
        "SelfSubjectAccessReview" => {
            let user = UserInfo::clone(&cx.user);
            access_review(cx, object, user).await
        }
        _ => {
            let user = subject(&object);
            access_review(cx, object, user).await
        }
    };
    output::object_response(&cx.resource, &form, 201, answer).await
}

/// A user as `authentication.k8s.io` shows it.
pub fn user_value(user: &UserInfo) -> Value {
    let mut value = Value::object();
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            value[key] = text.as_str().into();
        }
    }
    fn list(items: &[String]) -> Vec<&str> {
        items.iter().map(String::as_str).collect()
    }
    if !user.groups.is_empty() {
        value["groups"] = list(&user.groups).into();
    }
    for (key, items) in &user.extra {
        value.set_at(&["extra", key], list(items).into());
    }
    value
}

fn strings(value: &Value) -> Vec<String> {
    value.array_at(&[]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The user that a SubjectAccessReview asks about.
fn subject(review: &Value) -> UserInfo {
    let spec = &review["spec"];
    let extra = spec["extra"].as_object().into_iter().flat_map(|m| m.iter());
    UserInfo {
        name: spec.str_at(&["user"]).to_owned(),
        uid: spec.str_at(&["uid"]).to_owned(),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(k, v)| (k.as_str().to_lowercase(), strings(v))).collect(),
    }
}

fn check(kind: &str, review: &Value) -> StatusResult<()> {
    let bad = |text: &str| Err(Box::new(Status::bad_request(text)));
    match kind {
        "TokenReview" if review.str_at(&["spec", "token"]).is_empty() => {
            return bad("token is required for TokenReview in authentication");
        }
        "SelfSubjectRulesReview" if review.str_at(&["spec", "namespace"]).is_empty() => {
            return bad("no namespace on request");
        }
        "SubjectAccessReview" | "SelfSubjectAccessReview" | "LocalSubjectAccessReview" => {}
        _ => return Ok(()),
    }
    let errors = check_access_review(kind, review);
    if errors.is_empty() {
        return Ok(());
    }
    // Upstream forgets the kind.
    Err(Box::new(Status::invalid(&GroupKind::new("authorization.k8s.io", ""), "", &errors)))
}

fn check_access_review(kind: &str, review: &Value) -> Vec<FieldError> {
    let spec = &review["spec"];
    let path = FieldPath::new("spec");
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    let go_attributes = || {
        let (p, verb) = (Value::from(other.str_at(&["path"])), Value::from(other.str_at(&["verb"])));
        BadValue::Printed(format!("{{\"Path\":{p},\"Verb\":{verb}}}"))
    };
    match (resource.is_object(), other.is_object()) {
        (true, true) => errors.push(FieldError::invalid(
            &path.child("nonResourceAttributes"),
            go_attributes(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    if kind != "SelfSubjectAccessReview" && spec.str_at(&["user"]).is_empty() && spec.array_at(&["groups"]).is_empty() {
        errors.push(FieldError::invalid(&path.child("user"), "", "at least one of user or group must be specified"));
    }
    check_selectors(resource, &mut errors);
    let local = kind == "LocalSubjectAccessReview";
    let rest = review["metadata"].as_object().into_iter().flat_map(|m| m.iter());
    let rest = rest.filter(|(k, v)| *k != "managedFields" && !(local && *k == "namespace") && !v.is_null());
    if rest.count() > 0 {
        let mut metadata = review["metadata"].clone();
        metadata.remove_at(&["managedFields"]);
        let text = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid(&FieldPath::new("metadata"), metadata, text));
    }
    if local {
        let namespace = resource.str_at(&["namespace"]);
        if resource.is_object() && namespace != review.namespace() {
            let path = path.children(&["resourceAttributes", "namespace"]);
            errors.push(FieldError::invalid(&path, namespace, "must match metadata.namespace"));
        }
        if other.is_object() {
            let path = path.child("nonResourceAttributes");
            errors.push(FieldError::invalid(&path, go_attributes(), "disallowed on this kind of request"));
        }
    }
    errors
}

fn check_selectors(resource: &Value, errors: &mut Vec<FieldError>) {
    for name in ["fieldSelector", "labelSelector"] {
        let selector = &resource[name];
        if !selector.is_object() {
            continue;
        }
        let path = FieldPath::new("spec").children(&["resourceAttributes", name]);
        let raw = selector.str_at(&["rawSelector"]);
        let requirements = selector.array_at(&["requirements"]);
        if !raw.is_empty() && !requirements.is_empty() {
            let text = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(&path.child("rawSelector"), raw, text));
        }
        if raw.is_empty() && requirements.is_empty() {
            let text = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(&path.child("requirements"), text));
        }
        for (i, requirement) in requirements.iter().enumerate() {
            let path = path.child("requirements").index(i);
            let values = requirement.array_at(&["values"]);
            if name == "fieldSelector" && requirement.str_at(&["key"]).is_empty() {
                errors.push(FieldError::required(&path.child("key"), "must be specified"));
            }
            match requirement.str_at(&["operator"]) {
                "In" | "NotIn" if values.is_empty() => {
                    let text = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(&path.child("values"), text));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(&path.child("values"), text));
                }
                _ => {}
            }
            if name == "labelSelector" {
                let key = requirement.str_at(&["key"]);
                for message in names::is_qualified_name(key) {
                    errors.push(FieldError::invalid(&path.child("key"), key, message));
                }
                for (i, value) in values.iter().enumerate() {
                    let value = value.as_str().unwrap_or_default();
                    for message in names::is_label_value(value) {
                        errors.push(FieldError::invalid(&path.child("values").index(i), value, message));
                    }
                }
            }
        }
    }
}

/// A selector of a review in its usual text form.
fn selector_text(selector: &Value) -> String {
    let raw = selector.str_at(&["rawSelector"]);
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let requirement = |r: &Value| {
        let key = r.str_at(&["key"]);
        let values = strings(&r["values"]);
        match (r.str_at(&["operator"]), values.as_slice()) {
            ("In", [one]) => Some(format!("{key}={one}")),
            ("NotIn", [one]) => Some(format!("{key}!={one}")),
            _ => None,
        }
    };
    selector.array_at(&["requirements"]).iter().filter_map(requirement).collect::<Vec<_>>().join(",")
}

/// What a review asks about, as a request of `user`.
fn attributes(spec: &Value, user: UserInfo) -> Attributes {
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let other = &spec["nonResourceAttributes"];
        return Attributes {
            user,
            verb: other.str_at(&["verb"]).to_owned(),
            path: other.str_at(&["path"]).to_owned(),
            ..Attributes::default()
        };
    }
    let text = |key: &str| resource.str_at(&[key]).to_owned();
    Attributes {
        user,
        verb: text("verb"),
        namespace: text("namespace"),
        group: text("group"),
        version: if text("version").is_empty() { "*".to_owned() } else { text("version") },
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
        is_resource: true,
        path: String::new(),
        field_selector: selector_text(&resource["fieldSelector"]),
        label_selector: selector_text(&resource["labelSelector"]),
    }
}

async fn access_review(cx: &Cx, mut review: Value, user: UserInfo) -> Value {
    let attributes = attributes(&review["spec"], user);
    let mut status = json!({"allowed": false});
    if is_privileged(&attributes.user) {
        status["allowed"] = true.into();
    } else {
        let answer = cx.server.config.authorizer.authorize(&attributes).await;
        status["allowed"] = (answer.decision == Decision::Allow).into();
        if answer.decision == Decision::Deny {
            status["denied"] = true.into();
        }
        if !answer.reason.is_empty() {
            status["reason"] = answer.reason.into();
        }
    }
    review["status"] = status;
    review
}

async fn rules_review(cx: &Cx, review: &Value) -> StatusResult<Value> {
    let namespace = review.str_at(&["spec", "namespace"]);
    let answer = cx.server.config.authorizer.rules(&cx.user, namespace).await;
    let (mut resource_rules, mut other_rules) = (Vec::new(), Vec::new());
    for rule in &answer.rules {
        let value = rule.to_value();
        if !rule.resources.is_empty() {
            let mut value = value.clone();
            value.remove_at(&["nonResourceURLs"]);
            resource_rules.push(value);
        }
        if !rule.non_resource_urls.is_empty() {
            let mut other = Value::object();
            for key in ["verbs", "nonResourceURLs"] {
                other[key] = value[key].clone();
            }
            other_rules.push(other);
        }
    }
    let mut status =
        json!({"resourceRules": resource_rules, "nonResourceRules": other_rules, "incomplete": answer.incomplete});
    if !answer.error.is_empty() {
        status["evaluationError"] = answer.error.into();
    }
    let mut out = json!({"metadata": {}, "spec": {}, "status": status});
    cx.resource.gvk.set_on(&mut out);
    Ok(out)
}

async fn token_review(cx: &Cx, mut review: Value) -> StatusResult<Value> {
    let config = &cx.server.config;
    let mut audiences = strings(&review["spec"]["audiences"]);
    if audiences.is_empty() {
        audiences.clone_from(&config.api_audiences);
    }
    let token = review.str_at(&["spec", "token"]);
    review["status"] = match tokens::authenticate(&config.token_authenticators, token, &audiences).await {
        Ok(found) => {
            let audiences: Vec<&str> = found.audiences.iter().map(String::as_str).collect();
            json!({"authenticated": true, "user": user_value(&found.user), "audiences": audiences})
        }
        Err(error) => json!({"user": {}, "error": error}),
    };
    Ok(review)
}
