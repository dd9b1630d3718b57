//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: other servers change and refuse requests.
//!
//! Mutating webhooks are called one after the other, in the order of their configurations' names; those that ask for it are
//! called once more when a later one changed the object. Validating webhooks are called at once. A webhook that cannot be
//! called refuses the request or does not count, as its `failurePolicy` says; it never takes longer than its timeout.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/webhook/{mutating,validating,generic,request,errors}`.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::meta::ObjectMeta;
use apimachinery::patch::json::JsonPatch;
use apimachinery::status::{Status, StatusResult};
use apimachinery::{Value, json};
use async_trait::async_trait;
use base64::Engine;
use cel::Program;

use super::expressions::{self, Inputs};
use super::matching::{Cached, Criteria, converted, is_admission_configuration, request_value};
use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::authz::Authorizer;
use crate::webhook::Target;

const GROUP_VERSION: (&str, &str) = ("admissionregistration.k8s.io", "v1");

struct Webhook {
    name: String,
    client_config: Value,
    criteria: Criteria,
    conditions: Vec<(String, Result<Program, String>)>,
    /// `failurePolicy: Ignore`.
    ignores_failures: bool,
    timeout: Duration,
    has_side_effects: bool,
    reinvoke: bool,
    /// The first version of AdmissionReview that both sides know.
    review_version: Option<&'static str>,
    /// Members for the request's `options`, so that one webhook can tell many servers apart.
    options: Value,
}

impl Webhook {
    fn read(webhook: &Value) -> Webhook {
        let seconds = webhook["timeoutSeconds"].as_i64().unwrap_or(10).clamp(1, 30);
        let versions = webhook.array_at(&["admissionReviewVersions"]).iter().filter_map(Value::as_str);
        let known = |v: &str| match v {
            "v1" => Some("admission.k8s.io/v1"),
            "v1beta1" => Some("admission.k8s.io/v1beta1"),
            _ => None,
        };
        Webhook {
            name: webhook.str_at(&["name"]).to_owned(),
            client_config: webhook["clientConfig"].clone(),
            criteria: Criteria::of_webhook(webhook),
            conditions: expressions::compile_conditions(
                webhook.array_at(&["matchConditions"]),
                &expressions::environment(),
            ),
            ignores_failures: webhook.str_at(&["failurePolicy"]) == "Ignore",
            timeout: Duration::from_secs(seconds as u64),
            has_side_effects: !matches!(webhook.str_at(&["sideEffects"]), "None" | "NoneOnDryRun"),
            reinvoke: webhook.str_at(&["reinvocationPolicy"]) == "IfNeeded",
            review_version: versions.filter_map(known).next(),
            options: Value::Null,
        }
    }
}

/// Why a webhook did not let a request pass.
enum Failure {
    /// It could not be called, or its answer makes no sense.
    Calling(String),
    /// It said no, or what it wants cannot be done.
    Refused(Box<Status>),
}

/// What a webhook answered.
struct Answer {
    patch: Option<Vec<u8>>,
    warnings: Vec<String>,
}

/// A call that has to be made.
struct Call<'a> {
    webhook: &'a Webhook,
    resource: GroupVersionResource,
    kind: GroupVersionKind,
}

/// The webhooks of all configurations, in order.
async fn webhooks(
    cached: &Cached<Vec<Webhook>>,
    request: &AdmissionRequest<'_>,
    resource: &str,
) -> StatusResult<Option<Arc<Vec<Webhook>>>> {
    let build = |lists: Vec<Vec<Value>>| {
        let configurations = lists.into_iter().flatten();
        configurations
            .flat_map(|c| c.array_at(&["webhooks"]).iter().map(Webhook::read).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    cached.get(request, GROUP_VERSION, &[resource], build).await
}

async fn should_call<'a>(
    webhook: &'a Webhook,
    request: &AdmissionRequest<'_>,
    authorizer: &dyn Authorizer,
) -> StatusResult<Option<Call<'a>>> {
    let Some((resource, kind)) = webhook.criteria.matches(request).await? else { return Ok(None) };
    if !webhook.conditions.is_empty() {
        let (object, old) = converted(request, &kind).await?;
        let value = request_value(request, &resource, &kind);
        let mut inputs = Inputs::new(request, object.as_ref(), old.as_ref(), &value, None, None);
        match expressions::conditions_hold(&webhook.conditions, &mut inputs, authorizer) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(_) if webhook.ignores_failures => return Ok(None),
            Err(error) => return Err(request.forbidden(error)),
        }
    }
    Ok(Some(Call { webhook, resource, kind }))
}

async fn call(
    call: &Call<'_>,
    request: &AdmissionRequest<'_>,
    objects: (Option<Value>, Option<Value>),
    mutating: bool,
) -> Result<Answer, Failure> {
    let webhook = call.webhook;
    if request.dry_run && webhook.has_side_effects {
        let message = format!("admission webhook {:?} does not support dry run", webhook.name);
        return Err(Failure::Refused(Box::new(Status::bad_request(message))));
    }
    let calling = |reason: String| Failure::Calling(reason);
    let Some(version) = webhook.review_version else {
        return Err(calling(
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
                .to_owned(),
        ));
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let mut body = request_value(request, &call.resource, &call.kind);
    body["uid"] = uid.as_str().into();
    if let Some(more) = webhook.options.as_object() {
        let options = body["options"].make_object();
        more.iter().for_each(|(key, value)| drop(options.insert(key.clone(), value.clone())));
    }
    body["object"] = objects.0.unwrap_or(Value::Null);
    body["oldObject"] = objects.1.unwrap_or(Value::Null);
    let review = json!({"kind": "AdmissionReview", "apiVersion": version, "request": body});
    let target = Target::read(request.storage, &webhook.client_config)
        .await
        .map_err(|e| calling(format!("could not get REST client: {e}")))?;
    let answer = target.call(&review, webhook.timeout).await;
    let answer = answer.map_err(|e| calling(format!("failed to call webhook: {e}")))?;
    let response = &answer["response"];
    verify(&answer, version, &uid, mutating).map_err(|e| calling(format!("received invalid webhook response: {e}")))?;
    let warnings = response.array_at(&["warnings"]).iter().filter_map(Value::as_str).map(str::to_owned);
    let warnings: Vec<String> = warnings.collect();
    if response["allowed"] != true {
        return Err(Failure::Refused(Box::new(denied(&webhook.name, &response["status"]))));
    }
    let patch = match response.str_at(&["patch"]) {
        "" => None,
        text => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            Some(decoded.map_err(|e| calling(format!("received undecodable patch in webhook response: {e}")))?)
        }
    };
    Ok(Answer { patch, warnings })
}

/// Source: `webhookrequest.VerifyAdmissionResponse`.
fn verify(answer: &Value, version: &str, uid: &str, mutating: bool) -> Result<(), String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if version.ends_with("/v1beta1") {
        return Ok(());
    }
    if response.str_at(&["uid"]) != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response.str_at(&["uid"])));
    }
    let (kind, api_version) = (answer.str_at(&["kind"]), answer.str_at(&["apiVersion"]));
    if kind != "AdmissionReview" || api_version != version {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
        ));
    }
    let has_patch = !response.str_at(&["patch"]).is_empty();
    let has_type = response.get("patchType").is_some_and(|t| !t.is_null());
    match (mutating, has_patch, has_type) {
        (true, true, false) => Err("webhook returned response.patch but not response.patchType".to_owned()),
        (true, false, true) => Err("webhook returned response.patchType but not response.patch".to_owned()),
        (true, true, true) if response.str_at(&["patchType"]) != "JSONPatch" => {
            Err(format!("unsupported patch type {:?}", response.str_at(&["patchType"])))
        }
        (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
        (false, _, true) => Err("validating webhook may not return response.patchType".to_owned()),
        _ => Ok(()),
    }
}

/// The refusal of a webhook. Source: `webhookerrors.ToStatusErr`.
fn denied(name: &str, result: &Value) -> Status {
    let mut status = Status::from_value(result).unwrap_or_else(|| {
        let mut status = Status::failure(0, result.str_at(&["reason"]), result.str_at(&["message"]));
        status.code = result["code"].as_i64().and_then(|c| u16::try_from(c).ok()).unwrap_or(0);
        status
    });
    if status.code < 400 {
        status.code = 400;
    }
    status.status = "Failure".to_owned();
    let by = format!("admission webhook {name:?} denied the request");
    status.message = match (status.message.as_str(), status.reason.as_str()) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    status
}

fn failed_call(webhook: &Webhook, reason: &str) -> Box<Status> {
    Box::new(Status::internal_error(format!("failed calling webhook {:?}: {reason}", webhook.name)))
}

/// Webhooks of configurations that are not objects of this server: nobody can change or delete them through it.
fn fixed(configurations: &[Value], options: &Value) -> Arc<Vec<Webhook>> {
    let webhooks = configurations.iter().flat_map(|c| c.array_at(&["webhooks"]));
    Arc::new(webhooks.map(|w| Webhook { options: options.clone(), ..Webhook::read(w) }).collect())
}

fn handles(operation: Operation, gvr: &GroupVersionResource) -> bool {
    let _ = operation;
    !is_admission_configuration(gvr)
}

/// Webhooks that change objects.
pub struct MutatingAdmissionWebhook {
    authorizer: Arc<dyn Authorizer>,
    cached: Cached<Vec<Webhook>>,
    fixed: Option<Arc<Vec<Webhook>>>,
}

impl MutatingAdmissionWebhook {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        MutatingAdmissionWebhook { authorizer, cached: Cached::default(), fixed: None }
    }

    /// Webhooks of these MutatingWebhookConfigurations only, which are no objects of the server. `options` is added to the
    /// `options` of each request.
    pub fn central(authorizer: Arc<dyn Authorizer>, configurations: &[Value], options: &Value) -> Self {
        let fixed = Some(fixed(configurations, options));
        MutatingAdmissionWebhook { authorizer, cached: Cached::default(), fixed }
    }

    /// Calls one webhook; true when it changed the object.
    async fn invoke(&self, webhook: &Webhook, request: &mut AdmissionRequest<'_>) -> StatusResult<bool> {
        let Some(invocation) = should_call(webhook, request, self.authorizer.as_ref()).await? else { return Ok(false) };
        let objects = converted(request, &invocation.kind).await?;
        let object = objects.0.clone();
        let answer = match call(&invocation, request, objects, true).await {
            Ok(answer) => answer,
            Err(Failure::Refused(status)) => return Err(status),
            Err(Failure::Calling(reason)) if webhook.ignores_failures => {
                tracing::warn!(webhook = webhook.name, reason, "a webhook could not be called; it does not count");
                return Ok(false);
            }
            Err(Failure::Calling(reason)) => return Err(failed_call(webhook, &reason)),
        };
        request.warnings.extend(answer.warnings);
        let Some(patch) = answer.patch else { return Ok(false) };
        let Some(object) = object else {
            return Err(Box::new(Status::internal_error(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                webhook.name
            ))));
        };
        let undecodable =
            |e: apimachinery::patch::PatchError| format!("received undecodable patch in webhook response: {e}");
        let patch = match JsonPatch::decode(&patch).map_err(undecodable) {
            Ok(patch) => patch,
            Err(_) if webhook.ignores_failures => return Ok(false),
            Err(reason) => return Err(failed_call(webhook, &reason)),
        };
        let patched = patch.apply(&object).map_err(|e| Box::new(Status::internal_error(e)))?;
        let changed = patched != object;
        if changed {
            set_object(request, patched, &invocation.kind).await?;
        }
        Ok(changed)
    }
}

/// Puts a changed object back into the request, in the request's version, with defaults.
pub(super) async fn set_object(
    request: &mut AdmissionRequest<'_>,
    object: Value,
    kind: &GroupVersionKind,
) -> StatusResult<()> {
    request.reinvoke = true;
    let resource = request.storage.registry.get(&request.gvr.group, &request.gvr.version, &request.gvr.resource);
    let Some(resource) = resource else {
        request.object = Some(object);
        return Ok(());
    };
    let mut object =
        if *kind == request.gvk { object } else { resource.strategy.converted(object, &request.gvk).await? };
    if object.str_at(&["kind"]) == resource.gvk.kind {
        resource.strategy.default_object(&mut object);
    }
    if !object["metadata"].is_object() {
        object.metadata_mut();
    }
    request.object = Some(object);
    Ok(())
}

#[async_trait]
impl AdmissionPlugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn is_dynamic(&self) -> bool {
        true
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        handles(operation, gvr)
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let known = match &self.fixed {
            Some(fixed) => Some(fixed.clone()),
            None => webhooks(&self.cached, request, "mutatingwebhookconfigurations").await?,
        };
        let Some(webhooks) = known else { return Ok(()) };
        let mut last_change = None;
        for (i, webhook) in webhooks.iter().enumerate() {
            if self.invoke(webhook, request).await? {
                last_change = Some(i);
            }
        }
        // Those that were called before the last change and want to see it.
        for webhook in webhooks.iter().take(last_change.unwrap_or(0)).filter(|w| w.reinvoke) {
            self.invoke(webhook, request).await?;
        }
        Ok(())
    }
}

/// Webhooks that only say yes or no.
pub struct ValidatingAdmissionWebhook {
    authorizer: Arc<dyn Authorizer>,
    cached: Cached<Vec<Webhook>>,
    fixed: Option<Arc<Vec<Webhook>>>,
}

impl ValidatingAdmissionWebhook {
    pub fn new(authorizer: Arc<dyn Authorizer>) -> Self {
        ValidatingAdmissionWebhook { authorizer, cached: Cached::default(), fixed: None }
    }

    /// As [`MutatingAdmissionWebhook::central`].
    pub fn central(authorizer: Arc<dyn Authorizer>, configurations: &[Value], options: &Value) -> Self {
        let fixed = Some(fixed(configurations, options));
        ValidatingAdmissionWebhook { authorizer, cached: Cached::default(), fixed }
    }
}

#[async_trait]
impl AdmissionPlugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, _subresource: &str) -> bool {
        handles(operation, gvr)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let known = match &self.fixed {
            Some(fixed) => Some(fixed.clone()),
            None => webhooks(&self.cached, request, "validatingwebhookconfigurations").await?,
        };
        let Some(webhooks) = known else { return Ok(()) };
        let mut calls = Vec::new();
        for webhook in webhooks.iter() {
            calls.extend(should_call(webhook, request, self.authorizer.as_ref()).await?);
        }
        let mut prepared = Vec::with_capacity(calls.len());
        for invocation in calls {
            let objects = converted(request, &invocation.kind).await?;
            prepared.push((invocation, objects));
        }
        let shared = &*request;
        let answers = futures::future::join_all(prepared.into_iter().map(|(invocation, objects)| async move {
            (invocation.webhook, call(&invocation, shared, objects, false).await)
        }))
        .await;
        let mut refused = None;
        for (webhook, answer) in answers {
            match answer {
                Ok(answer) => request.warnings.extend(answer.warnings),
                Err(Failure::Refused(status)) => {
                    refused.get_or_insert(status);
                }
                Err(Failure::Calling(reason)) if webhook.ignores_failures => {
                    tracing::warn!(webhook = webhook.name, reason, "a webhook could not be called; it does not count");
                }
                Err(Failure::Calling(reason)) => {
                    refused.get_or_insert_with(|| failed_call(webhook, &reason));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let answer = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let check = |response: Value, mutating| verify(&answer(response), "admission.k8s.io/v1", "u", mutating);
        assert_eq!(check(json!({"uid": "u", "allowed": true}), false), Ok(()));
        assert_eq!(check(json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"}), true), Ok(()));
        for (response, mutating) in [
            (json!({"uid": "x"}), true),
            (json!({"uid": "u", "patch": "W10="}), true),
            (json!({"uid": "u", "patchType": "JSONPatch"}), true),
            (json!({"uid": "u", "patch": "W10=", "patchType": "Merge"}), true),
            (json!({"uid": "u", "patch": "W10="}), false),
        ] {
            assert!(check(response.clone(), mutating).is_err(), "{response}");
        }
    }

    #[test]
    fn refusals_name_the_webhook() {
        for (result, code, message) in [
            (Value::Null, 400, "admission webhook \"h\" denied the request without explanation"),
            (json!({"code": 403, "message": "no"}), 403, "admission webhook \"h\" denied the request: no"),
            (json!({"reason": "Odd", "code": 200}), 400, "admission webhook \"h\" denied the request: Odd"),
        ] {
            let status = denied("h", &result);
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }
}
