//! delete and deletecollection: preconditions, grace periods, propagation, finalizers.
//!
//! Follows: `k8s.io/apiserver/pkg/registry/rest/delete.go`, `generic/registry.Store.Delete`,
//! `pkg/registry/core/pod.podStrategy.CheckGracefulDelete`.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::{GroupKind, GroupResource};
use apimachinery::json;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusDetails, StatusResult};
use apimachinery::time::Timestamp;
use http::Response;

use super::read::ListOptions;
use super::{Cx, body_bytes};
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::cache::Entry;
use crate::negotiate::{self, Encoding};
use crate::options::check_dry_run;
use crate::output::{self, Form, ListMeta};
use crate::selection::Selection;
use crate::storage::WriteFailure;
use crate::strategy::DefaultGarbageCollection;

pub const ORPHAN: &str = "orphan";
pub const FOREGROUND: &str = "foregroundDeletion";
/// Attempts to win a race against other writers before giving up.
const CONFLICT_ATTEMPTS: usize = 100;
/// Priority classes that every server brings along and nobody may delete.
const SYSTEM_PRIORITY_CLASSES: [&str; 2] = ["system-cluster-critical", "system-node-critical"];

/// The options of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options: a body makes the query void.
    async fn read(cx: &Cx, body: RequestBody) -> StatusResult<DeleteOptions> {
        let body = body_bytes(body).await?;
        let bad = |message: String| Box::new(Status::bad_request(message));
        let value = if body.is_empty() {
            let query = &cx.info.query;
            let mut value = Value::object();
            if let Some(text) = query.get("gracePeriodSeconds").filter(|t| !t.is_empty()) {
                let seconds: i64 = text
                    .parse()
                    .map_err(|_| bad(format!("strconv.ParseInt: parsing {}: invalid syntax", Value::from(text))))?;
                value["gracePeriodSeconds"] = seconds.into();
            }
            if let Some(policy) = query.get("propagationPolicy") {
                value["propagationPolicy"] = policy.into();
            }
            if query.get("orphanDependents").is_some() {
                value["orphanDependents"] = query.flag("orphanDependents").into();
            }
            let dry_run: Vec<Value> = query.all("dryRun").map(Value::from).collect();
            if !dry_run.is_empty() {
                value["dryRun"] = Value::Array(dry_run);
            }
            value
        } else {
            let content_type = cx.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
            let Some(encoding) = negotiate::negotiate_input(content_type) else {
                return Err(Box::new(Status::unsupported_media_type(&[negotiate::supported(false)])));
            };
            decode_options(&body, encoding).map_err(bad)?
        };
        Self::from_value(&value)
    }

    pub fn from_value(value: &Value) -> StatusResult<DeleteOptions> {
        let dry_run: Vec<&str> = value.array_at(&["dryRun"]).iter().filter_map(Value::as_str).collect();
        let preconditions = &value["preconditions"];
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let options = DeleteOptions {
            grace_period_seconds: value["gracePeriodSeconds"].as_i64(),
            propagation_policy: text(&value["propagationPolicy"]),
            orphan_dependents: value["orphanDependents"].as_bool(),
            precondition_uid: text(&preconditions["uid"]),
            precondition_resource_version: text(&preconditions["resourceVersion"]),
            dry_run: !dry_run.is_empty(),
        };
        let mut errors = Vec::new();
        let path = FieldPath::new("propagationPolicy");
        if let Some(policy) = &options.propagation_policy {
            if options.orphan_dependents.is_some() {
                let text = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid(&path, policy.as_str(), text));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported(&path, policy.as_str(), &supported));
            }
        }
        check_dry_run(&dry_run, &mut errors);
        if !errors.is_empty() {
            return Err(Box::new(Status::invalid(&GroupKind::new("meta.k8s.io", "DeleteOptions"), "", &errors)));
        }
        Ok(options)
    }

    fn to_value(&self) -> Value {
        let mut value = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period_seconds {
            value["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = &self.propagation_policy {
            value["propagationPolicy"] = policy.as_str().into();
        }
        if let Some(orphan) = self.orphan_dependents {
            value["orphanDependents"] = orphan.into();
        }
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        if let Some(uid) = &self.precondition_uid {
            value.set_at(&["preconditions", "uid"], uid.as_str().into());
        }
        if let Some(version) = &self.precondition_resource_version {
            value.set_at(&["preconditions", "resourceVersion"], version.as_str().into());
        }
        value
    }
}

/// Decodes a body of DeleteOptions; a missing kind is fine, another kind is not.
fn decode_options(body: &[u8], encoding: Encoding) -> Result<Value, String> {
    let value = match encoding {
        Encoding::Json => Value::from_slice(body).map_err(|e| {
            let reason = if e.is_eof() { "unexpected end of JSON input".to_owned() } else { e.to_string() };
            format!("couldn't get version/kind; json parse error: {reason}")
        })?,
        Encoding::Yaml => {
            let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
            serde_saphyr::from_str::<Value>(text)
                .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))?
        }
        Encoding::Protobuf => crate::protobuf::decode_delete_options(body)?,
    };
    let kind = value.str_at(&["kind"]);
    if !kind.is_empty() && kind != "DeleteOptions" {
        let version = value.str_at(&["apiVersion"]);
        return Err(format!(
            "no kind {} is registered for version {} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\"",
            Value::from(kind),
            Value::from(version)
        ));
    }
    Ok(value)
}

/// What a delete did.
pub enum Deleted {
    /// The object is gone; its last state, with the revision of the removal.
    Gone(Value),
    /// The object is still there, being deleted.
    Pending(Value),
}

pub async fn delete(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let options = DeleteOptions::read(cx, body).await?;
    default_propagation_warning(cx, &options);
    let name = cx.info.name.clone();
    let namespace = if cx.resource.namespaced { cx.info.namespace.clone() } else { String::new() };
    let deleted = delete_object(cx, &namespace, &name, &options).await?;
    let rules = cx.resource.strategy.rules();
    match deleted {
        Deleted::Pending(object) => {
            let code = if options.orphan_dependents == Some(false) { 202 } else { 200 };
            output::object_response(&cx.resource, &form, code, object).await
        }
        Deleted::Gone(object) if rules.returns_deleted_object => {
            output::object_response(&cx.resource, &form, 200, object).await
        }
        Deleted::Gone(object) => {
            let details = StatusDetails {
                name,
                group: cx.resource.gvr.group.to_string(),
                kind: cx.resource.gvr.resource.to_string(),
                uid: object.uid().to_owned(),
                ..StatusDetails::default()
            };
            let mut form = form;
            form.accepted.convert = None;
            let status = Status::success(0, Some(details)).to_value();
            output::object_response(&cx.resource, &form, 200, status).await
        }
    }
}

/// Jobs keep their pods unless told otherwise, which surprises people.
fn default_propagation_warning(cx: &Cx, options: &DeleteOptions) {
    let unset = options.propagation_policy.is_none() && options.orphan_dependents.is_none();
    if unset && cx.resource.gvr.group == "batch" && cx.resource.gvr.resource == "jobs" {
        cx.warn(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        );
    }
}

/// Deletes one object as the options say, starting over when somebody else writes first.
pub async fn delete_object(cx: &Cx, namespace: &str, name: &str, options: &DeleteOptions) -> StatusResult<Deleted> {
    let storage = &cx.server.storage;
    let resource = &cx.resource;
    if resource.gvk.group == "scheduling.k8s.io" && SYSTEM_PRIORITY_CLASSES.contains(&name) {
        let text = "this is a system priority class and cannot be deleted";
        return Err(Box::new(Status::forbidden(&resource.group_resource(), name, text)));
    }
    let not_found = || Box::new(Status::not_found(&resource.group_resource(), name));
    let mut entry = storage.get(resource, namespace, name).await?;
    for _ in 0..CONFLICT_ATTEMPTS {
        let Some(current) = entry else { return Err(not_found()) };
        match try_delete(cx, &current, options).await? {
            Ok(deleted) => return Ok(deleted),
            Err(newer) => entry = newer.map(|e| Arc::new(*e)),
        }
    }
    Err(Box::new(Status::conflict(&resource.group_resource(), name, "too many other writers, please try again")))
}

async fn try_delete(
    cx: &Cx,
    entry: &Arc<Entry>,
    options: &DeleteOptions,
) -> StatusResult<Result<Deleted, Option<Box<Entry>>>> {
    let storage = &cx.server.storage;
    let resource = &cx.resource;
    let mut object = resource.strategy.to_version(entry.to_value(), &resource.gvk).await?;
    check_preconditions(cx, &object, options)?;
    if resource.gvr.group == crate::crd::GROUP && resource.gvr.resource == crate::crd::RESOURCE {
        crate::crd::definition::prepare_delete(&mut object, &super::write::now());
    }
    let decision = decide(cx, &mut object, options);
    if let Decision::AlreadyDeleting = decision {
        return Ok(Ok(Deleted::Pending(object)));
    }
    if !cx.server.admission.is_empty() {
        let unchanged = resource.strategy.to_version(entry.to_value(), &resource.gvk).await?;
        let mut request =
            cx.admission(Operation::Delete, &resource.gvk, None, Some(unchanged), options.to_value(), options.dry_run);
        // A request for a collection names no object.
        if cx.info.verb != "deletecollection" {
            request.name = entry.name().to_owned();
        }
        request.namespace = entry.namespace().to_owned();
        let mut second = cx.admission(
            Operation::Delete,
            &resource.gvk,
            None,
            request.old_object.clone(),
            options.to_value(),
            options.dry_run,
        );
        second.name = request.name.clone();
        second.namespace = request.namespace.clone();
        cx.admit(request).await?;
        cx.validate(second).await?;
    }
    let (namespace, name) = (entry.namespace(), entry.name());
    match decision {
        Decision::AlreadyDeleting => Ok(Ok(Deleted::Pending(object))),
        Decision::Update => {
            if options.dry_run {
                return Ok(Ok(Deleted::Pending(object)));
            }
            if storage.encode(resource, &object).await? == *entry.raw() {
                return Ok(Ok(Deleted::Pending(object)));
            }
            match storage.replace(resource, namespace, name, &object, entry.revision).await {
                Ok(entry) => {
                    let object = resource.strategy.to_version(entry.to_value(), &resource.gvk).await?;
                    Ok(Ok(Deleted::Pending(object)))
                }
                Err(WriteFailure::Conflict(newer)) => Ok(Err(newer)),
                Err(WriteFailure::Status(status)) => Err(status),
            }
        }
        Decision::Remove => {
            if options.dry_run {
                return Ok(Ok(Deleted::Gone(object)));
            }
            match storage.remove(resource, namespace, name, entry.revision).await {
                Ok(revision) => {
                    cx.server.hooks.after_delete(storage, resource, &object).await;
                    object.set_resource_version(&revision.to_string());
                    Ok(Ok(Deleted::Gone(object)))
                }
                Err(WriteFailure::Conflict(newer)) => Ok(Err(newer)),
                Err(WriteFailure::Status(status)) => Err(status),
            }
        }
    }
}

fn check_preconditions(cx: &Cx, object: &Value, options: &DeleteOptions) -> StatusResult<()> {
    // Namespaces have a storage of their own, which words it in another way.
    if cx.resource.gvr.resource == "namespaces"
        && cx.resource.gvr.group.is_empty()
        && let Some(uid) = &options.precondition_uid
        && uid != object.uid()
    {
        let message = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object.uid());
        return Err(Box::new(Status::conflict(&cx.resource.group_resource(), object.name(), message)));
    }
    // Upstream puts the kind where the resource belongs.
    let resource = GroupResource::new(cx.resource.gvk.group.clone(), cx.resource.gvk.kind.clone());
    let refuse = |message: String| Err(Box::new(Status::conflict(&resource, object.name(), message)));
    if let Some(uid) = &options.precondition_uid
        && uid != object.uid()
    {
        return refuse(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            object.uid()
        ));
    }
    if let Some(version) = &options.precondition_resource_version
        && version != object.resource_version()
    {
        return refuse(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
            object.resource_version()
        ));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// Graceful deletion is under way and stays as it is.
    AlreadyDeleting,
    /// Write the changed object; it goes later.
    Update,
    Remove,
}

/// Decides what a delete means for an object, changing it (deletion timestamp, finalizers) where it stays.
fn decide(cx: &Cx, object: &mut Value, options: &DeleteOptions) -> Decision {
    let now = Timestamp::from(std::time::SystemTime::now());
    let mut grace = options.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
    let mut graceful = false;
    if object.deletion_grace_period_seconds().is_some_and(|s| s < 0) {
        object.metadata_mut().insert("deletionGracePeriodSeconds", 1.into());
    }
    if is_pod(cx) {
        if object.is_terminating() {
            match object.deletion_grace_period_seconds() {
                None | Some(0) => {}
                Some(current) => match grace {
                    Some(period) if period >= current => return Decision::AlreadyDeleting,
                    None => return Decision::AlreadyDeleting,
                    Some(mut period) => {
                        let deadline = object.deletion_timestamp().and_then(Timestamp::parse).unwrap_or(now);
                        let mut deadline = Timestamp::from_seconds(deadline.seconds - current + period);
                        if deadline < now {
                            deadline = now;
                            if period != 0 {
                                period = 1;
                            }
                        }
                        let metadata = object.metadata_mut();
                        metadata.insert("deletionTimestamp", deadline.to_rfc3339().into());
                        metadata.insert("deletionGracePeriodSeconds", period.into());
                        grace = Some(period);
                        graceful = true;
                    }
                },
            }
        } else {
            let period = pod_grace_period(object, grace);
            let deadline = now.plus(Duration::from_secs(period as u64));
            let generation = object.generation();
            let metadata = object.metadata_mut();
            metadata.insert("deletionTimestamp", deadline.to_rfc3339().into());
            metadata.insert("deletionGracePeriodSeconds", period.into());
            if generation > 0 {
                object.set_generation(generation + 1);
            }
            grace = Some(period);
            graceful = true;
        }
    }
    if cx.resource.gvk.group.is_empty() && cx.resource.gvk.kind == "Namespace" {
        if !object.is_terminating() {
            set_propagation_finalizers(cx, object, options);
            object.metadata_mut().insert("deletionTimestamp", now.to_rfc3339().into());
            object.set_at(&["status", "phase"], "Terminating".into());
            return Decision::Update;
        }
        // The namespace controller takes its finalizer off when the content is gone.
        if !object.array_at(&["spec", "finalizers"]).is_empty() {
            return Decision::AlreadyDeleting;
        }
    }
    set_propagation_finalizers(cx, object, options);
    let pending_finalizers = !object.finalizers().is_empty();
    if !graceful {
        if pending_finalizers {
            mark_as_deleting(object, now);
            return Decision::Update;
        }
        return Decision::Remove;
    }
    if pending_finalizers || grace.unwrap_or(0) > 0 { Decision::Update } else { Decision::Remove }
}

fn is_pod(cx: &Cx) -> bool {
    cx.resource.gvk.group.is_empty() && cx.resource.gvk.kind == "Pod"
}

/// How long a pod has to stop. A pod that runs nowhere goes at once.
fn pod_grace_period(pod: &Value, asked: Option<i64>) -> i64 {
    let period =
        asked.or_else(|| pod.at(&["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64)).unwrap_or(0);
    if pod.str_at(&["spec", "nodeName"]).is_empty() {
        return 0;
    }
    if matches!(pod.str_at(&["status", "phase"]), "Failed" | "Succeeded") {
        return 0;
    }
    if period < 0 { 1 } else { period }
}

fn set_propagation_finalizers(cx: &Cx, object: &mut Value, options: &DeleteOptions) {
    let rules = cx.resource.strategy.rules();
    let supported = rules.garbage_collection != DefaultGarbageCollection::Unsupported;
    let explicit = options.propagation_policy.as_deref();
    let existing = object.finalizers().iter().find_map(|f| match *f {
        ORPHAN => Some(true),
        FOREGROUND => Some(false),
        _ => None,
    });
    let orphan = supported
        && match (options.orphan_dependents, explicit) {
            (Some(orphan), _) => orphan,
            (None, Some(policy)) => policy == "Orphan",
            (None, None) => existing.unwrap_or(rules.garbage_collection == DefaultGarbageCollection::Orphan),
        };
    let foreground = supported
        && match (options.orphan_dependents, explicit) {
            (Some(_), _) => false,
            (None, Some(policy)) => policy == "Foreground",
            (None, None) => existing == Some(false),
        };
    let old: Vec<String> = object.finalizers().iter().map(|f| (*f).to_owned()).collect();
    let mut new: Vec<String> = old.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        new.push(ORPHAN.to_owned());
    }
    if foreground {
        new.push(FOREGROUND.to_owned());
    }
    let same = old.len() == new.len() && old.iter().all(|f| new.contains(f));
    if !same {
        object.set_finalizers(new.into_iter().map(Value::from).collect());
    }
}

fn mark_as_deleting(object: &mut Value, now: Timestamp) {
    if !object.is_terminating() && object.generation() > 0 {
        let generation = object.generation() + 1;
        object.set_generation(generation);
    }
    let later = object.deletion_timestamp().and_then(Timestamp::parse).is_none_or(|t| t > now);
    let metadata = object.metadata_mut();
    if later {
        metadata.insert("deletionTimestamp", now.to_rfc3339().into());
    }
    metadata.insert("deletionGracePeriodSeconds", 0.into());
}

/// Whether an update took the last finalizer from an object that waits for its deletion.
pub fn finished_by_update(new: &Value, current: &Value) -> bool {
    new.finalizers().is_empty()
        && current.is_terminating()
        && current.deletion_grace_period_seconds().unwrap_or(0) == 0
        && !(current.str_at(&["kind"]) == "Namespace" && !new.array_at(&["spec", "finalizers"]).is_empty())
}

pub async fn delete_collection(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let mut list = ListOptions::parse(&cx.info, false)?;
    let selection = Selection::parse(&cx.resource, &cx.info)?;
    list.request.selective = !selection.is_everything();
    let options = DeleteOptions::read(cx, body).await?;
    default_propagation_warning(cx, &options);
    let namespace = if cx.resource.namespaced { cx.info.namespace.as_str() } else { "" };
    let keep = |entry: &Entry| selection.may_match(&cx.resource, entry);
    let mut page = cx.server.storage.list(&cx.resource, namespace, &list.request, keep).await?;
    selection.narrow(&cx.resource, &mut page.entries).await?;
    for entry in &page.entries {
        match delete_object(cx, entry.namespace(), entry.name(), &options).await {
            Ok(_) => {}
            Err(status) if status.is_not_found() => {}
            Err(status) => return Err(status),
        }
    }
    let meta = ListMeta { revision: page.revision, continue_token: page.continue_token, remaining: page.remaining };
    output::list_response(&cx.resource, &form, &meta, &page.entries).await
}
