//! `pods/binding`, `bindings` and `pods/eviction`.
//!
//! Follows: `pkg/registry/core/pod/storage/{storage,eviction}.go`.

use apimachinery::decode::{self, Format};
use apimachinery::field::aggregate;
use apimachinery::gvk::{GroupResource, GroupVersionKind};
use apimachinery::labels::Selector;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult, cause};
use apimachinery::{Value, json, protobuf};
use bytes::Bytes;
use http::Response;

use super::delete::{DeleteOptions, delete_object};
use super::write::{Change, change_object, match_namespace, now};
use super::{Cx, body_bytes};
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::managed_fields;
use crate::negotiate::Encoding;
use crate::options::WriteOptions;
use crate::output::{self, Form};
use crate::registry::ResourceHandle;
use crate::storage::WriteFailure;

/// More pods than this are not waited for. Source: `pkg/registry/core/pod/storage.MaxDisruptedPodSize`.
const DISRUPTED_PODS_MAX: usize = 2000;
const CONFLICT_ATTEMPTS: usize = 20;

/// The same request seen as one on another object of the namespace.
fn on(cx: &Cx, resource: ResourceHandle, name: &str, subresource: &str) -> Cx {
    let mut info = cx.info.clone();
    info.resource = resource.gvr.resource.to_string();
    info.name = name.to_owned();
    info.subresource = subresource.to_owned();
    Cx {
        server: cx.server.clone(),
        info,
        user: cx.user.clone(),
        headers: cx.headers.clone(),
        extensions: http::Extensions::new(),
        method: cx.method.clone(),
        uri: cx.uri.clone(),
        resource,
        warnings: Default::default(),
        conversions: Default::default(),
    }
}

fn pods(cx: &Cx) -> StatusResult<ResourceHandle> {
    cx.server.storage.registry.get("", "v1", "pods").ok_or_else(|| Box::new(Status::path_not_found()))
}

fn success(code: u16) -> Value {
    Status::success(code, None).to_value()
}

const EVICTION: &str = "Eviction";

/// An Eviction of version v1beta1 as one of v1, which has the same fields; old clients still send it.
fn in_current_version(body: &[u8], encoding: Encoding) -> Option<Vec<u8>> {
    const OLD: &str = "policy/v1beta1";
    const NEW: &str = "policy/v1";
    let format = match encoding {
        Encoding::Json => Format::Json,
        Encoding::Yaml => Format::Yaml,
        Encoding::Protobuf => {
            let message = protobuf::open(body).ok().filter(|m| m.api_version == OLD && m.kind == EVICTION)?;
            return Some(protobuf::envelope(NEW, EVICTION, message.raw));
        }
    };
    let mut object = decode::untyped(body, format).ok()?.object;
    (decode::type_meta(&object) == (OLD, EVICTION)).then(|| {
        object.set_at(&["apiVersion"], NEW.into());
        object.to_vec()
    })
}

/// Reads the body of a create on a subresource of a pod and runs admission on it.
async fn read_body(cx: &Cx, kind: &GroupVersionKind, body: RequestBody) -> StatusResult<(Value, WriteOptions)> {
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    // Bindings have no other version, and there is one for each pod.
    let converted = if kind.kind == EVICTION { in_current_version(&body, encoding) } else { None };
    let body = converted.map_or(body, Bytes::from);
    let options = WriteOptions::parse(&cx.info.query, "CreateOptions", false)?;
    let mut object = cx.decode(kind, &body, encoding, options.field_validation)?;
    object.metadata_mut();
    match_namespace(cx, &mut object)?;
    let request = |object: Value| {
        cx.admission(Operation::Create, kind, Some(object), None, options.to_value("CreateOptions"), options.dry_run)
    };
    let object = cx.admit(request(object)).await?.unwrap_or_default();
    if !cx.server.admission.is_empty() {
        cx.validate(request(object.clone())).await?;
    }
    Ok((object, options))
}

pub async fn bind(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let kind = GroupVersionKind::new("", "v1", "Binding");
    let (binding, options) = read_body(cx, &kind, body).await?;
    let name = if cx.info.name.is_empty() { binding.name().to_owned() } else { cx.info.name.clone() };
    if !cx.info.name.is_empty() && binding.name() != cx.info.name {
        return Err(Box::new(Status::bad_request("name in URL does not match name in Binding object")));
    }
    let errors = apimachinery::kinds::validate_create(&kind, &binding);
    if !errors.is_empty() {
        // Upstream does not make a Status of these.
        return Err(Box::new(Status::plain_error(aggregate(&errors))));
    }
    let node = binding.str_at(&["target", "name"]).to_owned();
    let pod_cx = on(cx, pods(cx)?, &name, "binding");
    let refuse = |text: String| Box::new(Status::conflict(&GroupResource::new("", "pods/binding"), &name, text));
    let uid = binding.uid().to_owned();
    let change = Change {
        options: &options,
        options_kind: "UpdateOptions",
        force_create: false,
        precondition_uid: (!uid.is_empty()).then_some(uid.as_str()),
        by_server: true,
        shown: None,
    };
    let version = binding.resource_version().to_owned();
    change_object(&pod_cx, &change, |current| {
        let current = current.ok_or_else(|| pod_cx.not_found())?;
        if !version.is_empty() && version != current.resource_version() {
            let text = format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
                current.resource_version()
            );
            return Err(Box::new(Status::conflict(&GroupResource::new("", "pods"), &name, text)));
        }
        if current.is_terminating() {
            return Err(refuse(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let assigned = current.str_at(&["spec", "nodeName"]);
        if !assigned.is_empty() {
            return Err(refuse(format!("pod {name} is already assigned to node {}", Value::from(assigned))));
        }
        if !current.array_at(&["spec", "schedulingGates"]).is_empty() {
            return Err(refuse(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut pod = current.clone();
        pod.set_at(&["spec", "nodeName"], node.as_str().into());
        pod.remove_at(&["status", "nominatedNodeName"]);
        for (key, value) in binding.annotations().iter() {
            pod.set_annotation(key, value.as_str().unwrap_or(""));
        }
        for (key, value) in binding.labels().iter() {
            pod.set_label(key, value.as_str().unwrap_or(""));
        }
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}));
        Ok(pod)
    })
    .await?;
    output::object_response(&cx.resource, &form, 201, success(201)).await
}

/// Sets a condition of a pod; its transition time changes only with its status.
fn set_condition(pod: &mut Value, mut condition: Value) {
    let kind = condition.str_at(&["type"]).to_owned();
    let conditions = pod.array_at(&["status", "conditions"]);
    let old = conditions.iter().find(|c| c.str_at(&["type"]) == kind);
    let same = old.is_some_and(|c| c.str_at(&["status"]) == condition.str_at(&["status"]));
    let time = match old.and_then(|c| c.get("lastTransitionTime")) {
        Some(time) if same => time.clone(),
        _ => now().into(),
    };
    condition["lastTransitionTime"] = time;
    condition["lastProbeTime"] = Value::Null;
    if pod.generation() > 0 && old.is_some_and(|c| c.get("observedGeneration").is_some()) {
        condition["observedGeneration"] = pod.generation().into();
    }
    let mut conditions = conditions.to_vec();
    match conditions.iter_mut().find(|c| c.str_at(&["type"]) == kind) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
    pod.set_at(&["status", "conditions"], Value::Array(conditions));
}

pub async fn evict(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let kind = GroupVersionKind::new("policy", "v1", "Eviction");
    let (eviction, options) = read_body(cx, &kind, body).await?;
    let name = cx.info.name.as_str();
    if eviction.name() != name {
        return Err(Box::new(Status::bad_request("name in URL does not match name in Eviction object")));
    }
    let mut delete = DeleteOptions::from_value(eviction.get("deleteOptions").unwrap_or(&Value::Null))?;
    if options.dry_run != delete.dry_run {
        if eviction.array_at(&["deleteOptions", "dryRun"]).is_empty() || !options.dry_run {
            delete.dry_run |= options.dry_run;
        } else {
            return Err(Box::new(Status::plain_error("Non-matching dry-run options in request and content")));
        }
    }
    let storage = &cx.server.storage;
    let pod = storage.read(&cx.resource, &cx.info.namespace, name).await?.ok_or_else(|| cx.not_found())?;
    let mut budget_name = String::new();
    let mut pin_version = false;
    if !can_ignore_budgets(&pod) {
        let budgets = budgets_of(cx, &pod).await?;
        if budgets.len() > 1 {
            let text =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Box::new(Status::failure(500, "", text)));
        }
        if let Some(budget) = budgets.into_iter().next() {
            budget_name = budget.name().to_owned();
            if unhealthy_may_go(&pod, &budget) {
                pin_version = true;
            } else {
                take_from_budget(cx, &budget_name, name, delete.dry_run).await?;
            }
        }
    } else if pod.str_at(&["status", "phase"]) == "Pending" && !pod.is_terminating() {
        pin_version = true;
    }
    let pinned_here = pin_version && delete.precondition_resource_version.is_none();
    if pinned_here {
        delete.precondition_resource_version = Some(pod.resource_version().to_owned());
    }
    if !delete.dry_run {
        mark_disrupted(cx, &mut delete).await?;
    }
    let pod_cx = on(cx, cx.resource.clone(), name, "");
    match delete_object(&pod_cx, &cx.info.namespace, name, &delete).await {
        Ok(_) => {}
        Err(status) if status.is_conflict() && pinned_here && !budget_name.is_empty() => {
            return Err(Box::new(being_processed(&budget_name)));
        }
        Err(status) => return Err(status),
    }
    output::object_response(&cx.resource, &form, 201, success(201)).await
}

/// Sets the condition that says why the pod goes away.
async fn mark_disrupted(cx: &Cx, delete: &mut DeleteOptions) -> StatusResult<()> {
    let pod_cx = on(cx, pods(cx)?, &cx.info.name, "status");
    let options = WriteOptions::default();
    let change = Change {
        options: &options,
        options_kind: "UpdateOptions",
        force_create: false,
        precondition_uid: delete.precondition_uid.as_deref(),
        by_server: true,
        shown: None,
    };
    let wanted = delete.precondition_resource_version.clone();
    let (written, _) = change_object(&pod_cx, &change, |current| {
        let current = current.ok_or_else(|| cx.not_found())?;
        if let Some(version) = wanted.as_deref().filter(|v| *v != current.resource_version()) {
            let text = format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                current.resource_version()
            );
            return Err(Box::new(Status::conflict(&GroupResource::new("", "Pod"), &cx.info.name, text)));
        }
        let mut pod = current.clone();
        set_condition(
            &mut pod,
            json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}),
        );
        Ok(pod)
    })
    .await?;
    if delete.precondition_resource_version.is_some() {
        let pod = written.into_value(&pod_cx).await?;
        delete.precondition_resource_version = Some(pod.resource_version().to_owned());
    }
    Ok(())
}

fn can_ignore_budgets(pod: &Value) -> bool {
    pod.is_terminating() || matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed" | "Pending")
}

fn is_ready(pod: &Value) -> bool {
    pod.array_at(&["status", "conditions"])
        .iter()
        .any(|c| c.str_at(&["type"]) == "Ready" && c.str_at(&["status"]) == "True")
}

/// A pod that is not ready does not count for its budget.
fn unhealthy_may_go(pod: &Value, budget: &Value) -> bool {
    if is_ready(pod) {
        return false;
    }
    let count = |key: &str| budget.at(&["status", key]).and_then(Value::as_i64).unwrap_or(0);
    budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0)
}

fn budgets(cx: &Cx) -> StatusResult<ResourceHandle> {
    let registry = &cx.server.storage.registry;
    registry.get("policy", "v1", "poddisruptionbudgets").ok_or_else(|| Box::new(Status::path_not_found()))
}

async fn budgets_of(cx: &Cx, pod: &Value) -> StatusResult<Vec<Value>> {
    let resource = budgets(cx)?;
    let page = cx.server.storage.list(&resource, &cx.info.namespace, &Default::default(), |_| true).await?;
    let matches = |budget: &Value| {
        let selector = budget.at(&["spec", "selector"]).unwrap_or(&Value::Null);
        Selector::from_label_selector(selector).is_ok_and(|s| s.matches(pod.labels()))
    };
    Ok(page.entries.iter().map(|e| e.to_value()).filter(matches).collect())
}

fn being_processed(budget: &str) -> Status {
    Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10).with_cause(
        cause::DISRUPTION_BUDGET,
        format!("The disruption budget {budget} is still being processed by the server."),
        "",
    )
}

/// Takes one disruption from the budget, or says why not.
async fn take_from_budget(cx: &Cx, budget: &str, pod: &str, dry_run: bool) -> StatusResult<()> {
    let resource = budgets(cx)?;
    let storage = &cx.server.storage;
    let namespace = cx.info.namespace.as_str();
    let budget_cx = on(cx, resource.clone(), budget, "status");
    for _ in 0..CONFLICT_ATTEMPTS {
        let Some(entry) = storage.get(&resource, namespace, budget).await? else { return Ok(()) };
        let current = entry.to_value();
        let mut object = current.clone();
        check_budget(&object)?;
        if dry_run {
            return Ok(());
        }
        let left = object.at(&["status", "disruptionsAllowed"]).and_then(Value::as_i64).unwrap_or(0) - 1;
        object.set_at(&["status", "disruptionsAllowed"], left.into());
        if left == 0 {
            disallow(&mut object);
        }
        object.set_at(&["status", "disruptedPods", pod], now().into());
        managed_fields::track_update(&budget_cx, &current, &mut object, "kube-apiserver");
        match storage.replace(&resource, namespace, budget, &object, entry.revision).await {
            Ok(_) => return Ok(()),
            Err(WriteFailure::Conflict(_)) => {}
            Err(WriteFailure::Status(status)) => return Err(status),
        }
    }
    let text = format!("couldn't update PodDisruptionBudget {} due to conflicts", Value::from(budget));
    Err(Box::new(Status::timeout(text, 10)))
}

/// Says in the budget's conditions that no more disruptions are allowed.
fn disallow(budget: &mut Value) {
    let observed = budget.at(&["status", "observedGeneration"]).and_then(Value::as_i64).unwrap_or(0);
    let mut conditions = budget.array_at(&["status", "conditions"]).to_vec();
    let old = conditions.iter().position(|c| c.str_at(&["type"]) == "DisruptionAllowed");
    let time = match old.map(|i| &conditions[i]).filter(|c| c.str_at(&["status"]) == "False") {
        Some(condition) => condition["lastTransitionTime"].clone(),
        None => now().into(),
    };
    let mut condition = json!({
        "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
        "observedGeneration": observed,
    });
    condition["lastTransitionTime"] = time;
    match old {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
    budget.set_at(&["status", "conditions"], Value::Array(conditions));
}

fn check_budget(budget: &Value) -> StatusResult<()> {
    let count = |key: &str| budget.at(&["status", key]).and_then(Value::as_i64).unwrap_or(0);
    let name = budget.name();
    if count("observedGeneration") < budget.generation() {
        return Err(Box::new(being_processed(name)));
    }
    let forbidden =
        |text: &str| Err(Box::new(Status::forbidden(&GroupResource::new("policy", "poddisruptionbudget"), name, text)));
    if count("disruptionsAllowed") < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = budget.at(&["status", "disruptedPods"]).and_then(Value::as_object).map_or(0, |m| m.len());
    if disrupted > DISRUPTED_PODS_MAX {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if count("disruptionsAllowed") > 0 {
        return Ok(());
    }
    let conditions = budget.array_at(&["status", "conditions"]);
    let refused = conditions.iter().find(|c| {
        c.str_at(&["type"]) == "DisruptionAllowed"
            && c.str_at(&["status"]) == "False"
            && !c.str_at(&["message"]).is_empty()
    });
    let reason = match refused {
        Some(c) if c.str_at(&["reason"]) == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            c.str_at(&["message"])
        ),
        _ if count("currentHealthy") <= count("desiredHealthy") => format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            count("desiredHealthy"),
            count("currentHealthy")
        ),
        Some(c) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            c.str_at(&["reason"]),
            c.str_at(&["message"])
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    };
    let status = Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
    Err(Box::new(status.with_cause(cause::DISRUPTION_BUDGET, reason, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evictions_of_the_older_version_are_read_as_current_ones() {
        let eviction = |version: &str| json!({"apiVersion": version, "kind": "Eviction", "metadata": {"name": "p"}});
        let current = eviction("policy/v1").to_vec();
        let message = |version: &str| protobuf::envelope(version, "Eviction", b"raw");
        for (body, encoding, want) in [
            (eviction("policy/v1beta1").to_vec(), Encoding::Json, Some(current.clone())),
            (
                b"apiVersion: policy/v1beta1\nkind: Eviction\nmetadata: {name: p}".to_vec(),
                Encoding::Yaml,
                Some(current.clone()),
            ),
            (message("policy/v1beta1"), Encoding::Protobuf, Some(message("policy/v1"))),
            (message("policy/v1"), Encoding::Protobuf, None),
            (current, Encoding::Json, None),
            (eviction("policy/v2").to_vec(), Encoding::Json, None),
            (b"{}".to_vec(), Encoding::Json, None),
        ] {
            assert_eq!(in_current_version(&body, encoding), want, "{}", String::from_utf8_lossy(&body));
        }
    }
}
