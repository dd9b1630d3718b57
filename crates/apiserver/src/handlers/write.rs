//! create and update, and the loop that every change of an existing object goes through.
//!
//! Order of a change, as upstream has it: make the new object from the current one, managedFields, mutating admission,
//! defaults, hooks, resets, validation, validating admission, compare-and-swap. A conflict starts over with the newer
//! object, unless the request named the version it expects.
//!
//! Follows: `k8s.io/apiserver/pkg/registry/generic/registry.Store`, `k8s.io/apiserver/pkg/registry/rest`,
//! `k8s.io/apiserver/pkg/endpoints/handlers/{create,update}.go`.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::{GroupKind, GroupVersionKind};
use apimachinery::kinds;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use http::Response;
use rand::Rng;

use super::{Cx, body_bytes, delete, permissions};
use crate::admission::Operation;
use crate::body::{Body, RequestBody};
use crate::cache::Entry;
use crate::managed_fields;
use crate::options::WriteOptions;
use crate::output::{self, Form};
use crate::storage::WriteFailure;

/// Attempts to find a free name. Source: `generic/registry.maxNameGenerationCreateAttempts`.
const NAME_ATTEMPTS: usize = 8;
/// Attempts to win a race against other writers before giving up.
const CONFLICT_ATTEMPTS: usize = 100;
/// The longest base of a generated name. Source: `k8s.io/apiserver/pkg/storage/names`.
const GENERATED_BASE_MAX: usize = 58;

/// What a write left behind.
pub enum Written {
    Entry(Arc<Entry>),
    /// Nothing was stored (dry run), or the object is gone.
    Object(Value),
}

impl Written {
    pub async fn respond(self, cx: &Cx, form: &Form, code: u16) -> StatusResult<Response<Body>> {
        match self {
            Written::Entry(entry) => output::entry_response(&cx.resource, form, code, &entry, entry.revision).await,
            Written::Object(object) => output::object_response(&cx.resource, form, code, object).await,
        }
    }

    /// The object in the resource's version.
    pub async fn into_value(self, cx: &Cx) -> StatusResult<Value> {
        match self {
            Written::Entry(entry) => cx.resource.strategy.to_version(entry.to_value(), &cx.resource.gvk).await,
            Written::Object(object) => Ok(object),
        }
    }
}

pub fn now() -> String {
    apimachinery::time::Timestamp::from(std::time::SystemTime::now()).to_rfc3339()
}

/// A random name with this base.
pub fn generated_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let base: String = base.chars().take(GENERATED_BASE_MAX).collect();
    let suffix = (0..5).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char);
    base.chars().chain(suffix).collect()
}

/// The object's namespace must be the request's; an object without one gets it.
pub fn match_namespace(cx: &Cx, object: &mut Value) -> StatusResult<()> {
    let wanted = if cx.resource.namespaced { cx.info.namespace.as_str() } else { "" };
    let given = object.namespace();
    if given == wanted {
        Ok(())
    } else if given.is_empty() || wanted.is_empty() {
        object.set_namespace(wanted);
        Ok(())
    } else {
        Err(Box::new(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )))
    }
}

const TOO_LARGE: u16 = 413;
/// Why nothing can be created.
const TERMINATING: &str = "not allowed while custom resource definition is terminating";

/// `metadata` must be an object: everything after decoding relies on it.
fn ensure_metadata(object: &mut Value) {
    object.metadata_mut();
}

pub async fn create(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    if cx.resource.terminating {
        let refused = Status::method_not_supported(&cx.resource.group_resource(), "create");
        let message = format!("create {TERMINATING}");
        return Err(Box::new(Status { message, ..refused }));
    }
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "CreateOptions", false)?;
    let mut object = cx.decode(&cx.resource.gvk, &body, encoding, options.field_validation)?;
    ensure_metadata(&mut object);
    match_namespace(cx, &mut object)?;
    let written = create_object(cx, object, &options, None).await?;
    written.respond(cx, &form, 201).await
}

/// Creates a decoded object: from managedFields to the store. `managed`: how fields are tracked when not as by a create
/// (an apply that creates has done it already).
pub async fn create_object(
    cx: &Cx,
    mut object: Value,
    options: &WriteOptions,
    tracked: Option<()>,
) -> StatusResult<Written> {
    let strategy = &cx.resource.strategy;
    managed_fields::dedup_owner_references(cx, &mut object, false);
    wipe_system_fields(&mut object);
    strategy.default_object(&mut object);
    if tracked.is_none() {
        managed_fields::track_create(cx, &mut object, &options.manager(cx.user_agent()));
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        let result = try_create(cx, object.clone(), options, false).await;
        match result {
            Err(status) if status.is_already_exists() && object.name().is_empty() && attempts < NAME_ATTEMPTS => {}
            Err(status) if status.is_already_exists() && object.name().is_empty() => {
                let name = status.details.as_ref().map_or("", |d| d.name.as_str());
                return Err(Box::new(Status::generate_name_conflict(&cx.resource.group_resource(), name, 1)));
            }
            // Who owns which field may take as much room as the fields, and is given up for them.
            Err(status) if status.code == TOO_LARGE && !object.managed_fields().is_empty() => {
                object.set_managed_fields(Vec::new());
            }
            other => return other,
        }
    }
}

/// Drops what only the server sets, before anybody can own it.
fn wipe_system_fields(object: &mut Value) {
    let metadata = object.metadata_mut();
    for field in ["creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(field);
    }
}

/// `by_update`: the request is an update or a patch, so that nobody has asked yet whether the user may create.
async fn try_create(cx: &Cx, object: Value, options: &WriteOptions, by_update: bool) -> StatusResult<Written> {
    if cx.resource.terminating {
        let message = format!("create {TERMINATING}");
        return Err(Box::new(Status::forbidden(&cx.resource.group_resource(), object.name(), message)));
    }
    let strategy = &cx.resource.strategy;
    let storage = &cx.server.storage;
    let options_value = options.to_value("CreateOptions");
    let admission = |object: Value| {
        let name = object.name().to_owned();
        let mut request = cx.admission(
            Operation::Create,
            &cx.resource.gvk,
            Some(object),
            None,
            options_value.clone(),
            options.dry_run,
        );
        if !name.is_empty() {
            request.name = name;
        }
        request
    };
    let mut object = cx.admit(admission(object)).await?.unwrap_or_default();
    managed_fields::dedup_owner_references(cx, &mut object, true);
    strategy.default_object(&mut object);

    {
        let metadata = object.metadata_mut();
        metadata.insert("creationTimestamp", now().into());
        metadata.insert("uid", uuid::Uuid::new_v4().to_string().into());
        metadata.remove("deletionTimestamp");
        metadata.remove("deletionGracePeriodSeconds");
        metadata.remove("selfLink");
    }
    if object.name().is_empty() && !object.generate_name().is_empty() {
        let name = generated_name(object.generate_name());
        object.set_name(&name);
    }
    // Nobody refers to a LimitRange by name.
    if object.name().is_empty() && cx.resource.gvr.resource == "limitranges" && cx.resource.gvr.group.is_empty() {
        object.set_name(&uuid::Uuid::new_v4().to_string());
    }
    let reservations = cx.server.hooks.before_create(storage, &cx.resource, &mut object, options.dry_run).await?;
    let checked = check_create(cx, &mut object, by_update, &admission).await;
    let result = match checked {
        Ok(()) => store_create(cx, object, options).await,
        Err(status) => Err(status),
    };
    reservations.finish(result.is_ok() && !options.dry_run).await;
    result
}

async fn check_create<'a>(
    cx: &'a Cx,
    object: &mut Value,
    by_update: bool,
    admission: &(impl Fn(Value) -> crate::admission::AdmissionRequest<'a> + Sync),
) -> StatusResult<()> {
    let strategy = &cx.resource.strategy;
    match_namespace(cx, object)?;
    cx.warn_all(strategy.warnings_before_create(object));
    strategy.prepare_create(object);
    if cx.resource.builtin {
        set_by_server(cx, object);
    }
    let mut errors = strategy.validate_create(object);
    if cx.resource.builtin {
        permissions::check(cx, "", object, None, &mut errors).await?;
    }
    if !errors.is_empty() {
        return Err(Box::new(Status::invalid(&cx.resource.group_kind(), object.name(), &errors)));
    }
    cx.warn_all(strategy.warnings_create(object));
    if by_update {
        cx.authorize_create().await?;
    }
    if !cx.server.admission.is_empty() {
        cx.validate(admission(object.clone())).await?;
    }
    Ok(())
}

/// What only the server knows about a new object: who asked, and that local APIs are there.
fn set_by_server(cx: &Cx, object: &mut Value) {
    match cx.resource.gvk.kind.as_str() {
        "CertificateSigningRequest" => {
            let extra = cx.user.extra.iter().map(|(k, v)| (k.as_str(), Value::from(v.clone())));
            let extra = Value::Object(extra.collect());
            apimachinery::kinds::set_requester(object, &cx.user.name, &cx.user.uid, &cx.user.groups, extra);
        }
        "APIService" if object.at(&["spec", "service"]).is_none_or(Value::is_null) => {
            object["status"] = crate::bootstrap::local_api_status();
        }
        _ => {}
    }
}

async fn store_create(cx: &Cx, mut object: Value, options: &WriteOptions) -> StatusResult<Written> {
    let storage = &cx.server.storage;
    let name = object.name().to_owned();
    let namespace = object.namespace().to_owned();
    if object.resource_version().parse::<u64>().is_ok_and(|version| version != 0) {
        return Err(Box::new(Status::plain_error("resourceVersion should not be set on objects to be created")));
    }
    // What is no version is none.
    object.set_resource_version("");
    if options.dry_run {
        if storage.get(&cx.resource, &namespace, &name).await?.is_some() {
            return Err(already_exists(cx, &namespace, &name).await);
        }
        return Ok(Written::Object(storage.unwritten(&cx.resource, object)));
    }
    match storage.insert(&cx.resource, &namespace, &name, &object).await {
        Ok(entry) => Ok(Written::Entry(entry)),
        Err(WriteFailure::Conflict(_)) => Err(already_exists(cx, &namespace, &name).await),
        Err(WriteFailure::Status(status)) => Err(status),
    }
}

/// Tells as well when the object of that name is on its way out. Source: `registry/generic/registry/store.go` (`Create`).
async fn already_exists(cx: &Cx, namespace: &str, name: &str) -> Box<Status> {
    let mut status = Status::already_exists(&cx.resource.group_resource(), name);
    if let Ok(Some(entry)) = cx.server.storage.get(&cx.resource, namespace, name).await
        && entry.to_value().deletion_timestamp().is_some()
    {
        status.message = format!("object is being deleted: {}", status.message);
    }
    Box::new(status)
}

pub async fn update(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "UpdateOptions", false)?;
    let mut object = cx.decode(&cx.resource.gvk, &body, encoding, options.field_validation)?;
    ensure_metadata(&mut object);
    match_namespace(cx, &mut object)?;
    check_name(cx, &mut object)?;
    managed_fields::dedup_owner_references(cx, &mut object, false);
    cx.resource.strategy.default_object(&mut object);
    let uid = object.uid().to_owned();
    let change = Change {
        options: &options,
        options_kind: "UpdateOptions",
        force_create: false,
        precondition_uid: (!uid.is_empty()).then_some(uid.as_str()),
        by_server: false,
        shown: None,
    };
    let manager = options.manager(cx.user_agent());
    let (written, created) = change_object(cx, &change, |current| {
        let mut new = object.clone();
        if let Some(current) = current {
            managed_fields::track_update(cx, current, &mut new, &manager);
        } else {
            managed_fields::track_create(cx, &mut new, &manager);
        }
        Ok(new)
    })
    .await?;
    written.respond(cx, &form, if created { 201 } else { 200 }).await
}

/// The object's name must be the path's.
pub fn check_name(cx: &Cx, object: &mut Value) -> StatusResult<()> {
    let given = object.name();
    if given.is_empty() {
        return Err(Box::new(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            cx.info.name
        ))));
    }
    if given != cx.info.name {
        return Err(Box::new(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            cx.info.name
        ))));
    }
    Ok(())
}

/// How an existing object is to be changed.
pub struct Change<'a> {
    pub options: &'a WriteOptions,
    pub options_kind: &'a str,
    /// An object that does not exist is created whatever the kind says (apply).
    pub force_create: bool,
    /// The object must have this uid.
    pub precondition_uid: Option<&'a str>,
    /// The change is the server's own, such as a binding: no admission, resets or validation of an update.
    pub by_server: bool,
    /// What admission sees instead of the object.
    pub shown: Option<&'a (dyn Shown + Sync)>,
}

/// An object as a subresource shows it, which has a kind of its own.
pub trait Shown {
    fn kind(&self) -> &GroupVersionKind;

    /// The subresource of `object`.
    fn show(&self, object: &Value) -> StatusResult<Value>;

    /// Makes `object` what admission has made of its subresource.
    fn take(&self, shown: &Value, object: &mut Value);
}

/// Changes an object: `make` gets what is there (`None`: nothing) and returns what is to be there, with managedFields.
/// Returns whether the object was created.
pub async fn change_object(
    cx: &Cx,
    change: &Change<'_>,
    mut make: impl FnMut(Option<&Value>) -> StatusResult<Value> + Send,
) -> StatusResult<(Written, bool)> {
    let is_apply = change.force_create;
    match change_once(cx, change, &mut make).await {
        // As when it is created. An apply is about who owns what.
        Err(status) if status.code == TOO_LARGE && !is_apply => {
            let unowned = |current: Option<&Value>| {
                let mut new = make(current)?;
                new.set_managed_fields(Vec::new());
                Ok(new)
            };
            change_once(cx, change, unowned).await
        }
        result => result,
    }
}

async fn change_once(
    cx: &Cx,
    change: &Change<'_>,
    mut make: impl FnMut(Option<&Value>) -> StatusResult<Value> + Send,
) -> StatusResult<(Written, bool)> {
    let storage = &cx.server.storage;
    let resource = &cx.resource;
    let namespace = if resource.namespaced { cx.info.namespace.as_str() } else { "" };
    let name = cx.info.name.as_str();
    let allow_create = resource.strategy.rules().create_on_update && cx.info.subresource.is_empty();
    let mut entry = storage.get(resource, namespace, name).await?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let Some(current_entry) = entry else {
            if !allow_create && !change.force_create {
                return Err(cx.not_found());
            }
            if let Some(uid) = change.precondition_uid.filter(|_| !change.force_create) {
                return Err(Box::new(precondition_failed(cx, uid, "")));
            }
            let mut object = made(cx, &mut make, None).await?;
            // Only a create by POST refuses a resourceVersion.
            object.set_resource_version("");
            match try_create(cx, object, change.options, true).await {
                Ok(written) => return Ok((written, true)),
                // Somebody else created it meanwhile: change that one.
                Err(status) if status.is_already_exists() && attempts < CONFLICT_ATTEMPTS => {
                    entry = storage.get(resource, namespace, name).await?;
                    continue;
                }
                Err(status) => return Err(status),
            }
        };
        let current = resource.strategy.to_version(current_entry.to_value(), &resource.gvk).await?;
        match try_update(cx, change, &current_entry, &current, &mut make).await? {
            Attempt::Done(written) => return Ok((written, false)),
            Attempt::Lost(newer) => {
                if attempts >= CONFLICT_ATTEMPTS {
                    return Err(Box::new(modified(cx)));
                }
                entry = newer.map(|e| Arc::new(*e));
            }
        }
    }
}

/// What `make` makes, with the help of the webhook that converts between versions.
async fn made(
    cx: &Cx,
    make: &mut (impl FnMut(Option<&Value>) -> StatusResult<Value> + Send),
    current: Option<&Value>,
) -> StatusResult<Value> {
    loop {
        let result = make(current);
        if !managed_fields::resolve(cx).await {
            return result;
        }
    }
}

enum Attempt {
    Done(Written),
    /// Somebody else wrote first.
    Lost(Option<Box<Entry>>),
}

fn modified(cx: &Cx) -> Status {
    Status::conflict(
        &cx.resource.group_resource(),
        &cx.info.name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )
}

/// Where the object is in the store, which upstream tells.
fn store_key(cx: &Cx) -> String {
    let Some(storage) = &cx.resource.storage else { return String::new() };
    let namespace = if cx.resource.namespaced { cx.info.namespace.as_str() } else { "" };
    String::from_utf8_lossy(&storage.cache.store_key(namespace, &cx.info.name)).into_owned()
}

fn precondition_failed(cx: &Cx, wanted: &str, found: &str) -> Status {
    Status::conflict(
        &cx.resource.group_resource(),
        &cx.info.name,
        format!(
            "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}",
            store_key(cx)
        ),
    )
}

async fn try_update(
    cx: &Cx,
    change: &Change<'_>,
    entry: &Arc<Entry>,
    current: &Value,
    make: &mut (impl FnMut(Option<&Value>) -> StatusResult<Value> + Send),
) -> StatusResult<Attempt> {
    let resource = &cx.resource;
    let strategy = &resource.strategy;
    let storage = &cx.server.storage;
    let options = change.options;
    if let Some(uid) = change.precondition_uid
        && uid != current.uid()
    {
        return Err(Box::new(precondition_failed(cx, uid, current.uid())));
    }
    let new = made(cx, make, Some(current)).await?;
    let options_value = options.to_value(change.options_kind);
    let admission = |new: Value| {
        let (kind, new, old) = match change.shown {
            None => (&resource.gvk, new, current.clone()),
            Some(shown) => (shown.kind(), shown.show(&new)?, shown.show(current)?),
        };
        let options_value = options_value.clone();
        Ok(cx.admission(Operation::Update, kind, Some(new), Some(old), options_value, options.dry_run))
    };
    let mut new = if cx.server.admission.is_empty() || change.by_server {
        new
    } else if let Some(shown) = change.shown {
        let mut new = new;
        let admitted = cx.admit(admission(new.clone())?).await?.unwrap_or_default();
        shown.take(&admitted, &mut new);
        new
    } else {
        let mut new = cx.admit(admission(new)?).await?.unwrap_or_default();
        strategy.default_object(&mut new);
        new
    };
    managed_fields::dedup_owner_references(cx, &mut new, true);

    // resourceVersion
    match new.resource_version() {
        "" | "0" if strategy.rules().unconditional_update => {}
        "" | "0" => {
            let path = FieldPath::new("metadata").child("resourceVersion");
            let error = FieldError::invalid(&path, 0, "must be specified for an update");
            let kind = GroupKind::new(resource.gvr.group.clone(), resource.gvr.resource.clone());
            return Err(Box::new(Status::invalid(&kind, &cx.info.name, &[error])));
        }
        text => match crate::storage::parse_revision(text) {
            Ok(revision) if revision == entry.revision => {}
            Ok(_) => return Err(Box::new(modified(cx))),
            Err(reason) => {
                return Err(Box::new(Status::plain_error(reason)));
            }
        },
    }
    new.set_resource_version(&entry.revision.to_string());

    let reservations = cx
        .server
        .hooks
        .before_update(storage, resource, &cx.info.subresource, &mut new, current, options.dry_run)
        .await?;
    let checked = match change.by_server {
        true => Ok(()),
        false => check_update(cx, &mut new, current, &admission).await,
    };
    let result = match checked {
        Ok(()) => store_update(cx, options, entry, current, new).await,
        Err(status) => Err(status),
    };
    let committed = matches!(result, Ok(Attempt::Done(_))) && !options.dry_run;
    reservations.finish(committed).await;
    result
}

async fn check_update<'a>(
    cx: &'a Cx,
    new: &mut Value,
    current: &Value,
    admission: &(impl Fn(Value) -> StatusResult<crate::admission::AdmissionRequest<'a>> + Sync),
) -> StatusResult<()> {
    let strategy = &cx.resource.strategy;
    // A Scale has become a change of the object itself by now.
    let subresource = Some(cx.info.subresource.as_str()).filter(|s| *s != "scale").unwrap_or("");
    match_namespace(cx, new)?;
    new.set_generation(current.generation());
    strategy.prepare_update(subresource, new, current);
    {
        let old = &current["metadata"];
        let metadata = new.metadata_mut();
        if metadata.get("uid").and_then(Value::as_str).unwrap_or("").is_empty() {
            metadata.insert("uid", old["uid"].clone());
        }
        for key in ["creationTimestamp", "deletionTimestamp"] {
            if let Some(value) = old.get(key) {
                metadata.insert(key, value.clone());
            }
        }
        if let Some(grace) = old.get("deletionGracePeriodSeconds")
            && metadata.get("deletionGracePeriodSeconds").is_none()
        {
            metadata.insert("deletionGracePeriodSeconds", grace.clone());
        }
        metadata.remove("selfLink");
    }
    let mut errors = kinds::validate_common_update(new, current, cx.resource.namespaced);
    let mut excused = Vec::new();
    let mut own = strategy.validate_update(subresource, new, current, &mut excused);
    if cx.resource.builtin {
        permissions::check(cx, subresource, new, Some(current), &mut own).await?;
    }
    errors.append(&mut own);
    cx.warn_all(excused);
    if !errors.is_empty() {
        return Err(Box::new(Status::invalid(&cx.resource.group_kind(), new.name(), &errors)));
    }
    cx.warn_all(strategy.warnings_update(subresource, new, current));
    apimachinery::apply::keep_times_of_noop(new, current);
    if !cx.server.admission.is_empty() {
        cx.validate(admission(new.clone())?).await?;
    }
    Ok(())
}

async fn store_update(
    cx: &Cx,
    options: &WriteOptions,
    entry: &Arc<Entry>,
    current: &Value,
    new: Value,
) -> StatusResult<Attempt> {
    let storage = &cx.server.storage;
    let resource = &cx.resource;
    let namespace = entry.namespace();
    if delete::finished_by_update(&new, current) {
        if options.dry_run {
            return Ok(Attempt::Done(Written::Object(new)));
        }
        return match storage.remove(resource, namespace, entry.name(), entry.revision).await {
            // The answer keeps the version before the removal.
            Ok(_) => {
                cx.server.hooks.after_delete(storage, resource, &new).await;
                Ok(Attempt::Done(Written::Object(new)))
            }
            Err(WriteFailure::Conflict(newer)) => Ok(Attempt::Lost(newer)),
            Err(WriteFailure::Status(status)) => Err(status),
        };
    }
    let encoded = storage.encode(resource, &new).await?;
    if encoded == *entry.raw() {
        // Nothing changed: no write, no event.
        return Ok(Attempt::Done(Written::Entry(entry.clone())));
    }
    if options.dry_run {
        return Ok(Attempt::Done(Written::Object(storage.unwritten(resource, new))));
    }
    match storage.replace(resource, namespace, entry.name(), &new, entry.revision).await {
        Ok(entry) => Ok(Attempt::Done(Written::Entry(entry))),
        Err(WriteFailure::Conflict(newer)) => Ok(Attempt::Lost(newer)),
        Err(WriteFailure::Status(status)) => Err(status),
    }
}

/// The kind that an endpoint takes.
pub fn endpoint_kind(cx: &Cx) -> GroupVersionKind {
    match cx.resource.subresource(&cx.info.subresource) {
        Some(subresource) => subresource.kind.clone(),
        None => cx.resource.gvk.clone(),
    }
}
