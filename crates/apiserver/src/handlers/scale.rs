//! `/scale`: the number of replicas of an object, as an object of its own.
//!
//! A write of the Scale becomes a write of the object: validation and the rest see the object, admission sees the Scale.
//! Ownership of the number is translated both ways.
//!
//! Follows: the ScaleRESTs under `k8s.io/kubernetes/pkg/registry`, `apiextensions-apiserver/pkg/registry/customresource`.

use std::collections::BTreeMap;

use apimachinery::apply::scale::{to_parent, to_scale};
use apimachinery::apply::{ApplyError, BuiltinVersions, FieldManager};
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::{GroupKind, GroupVersionKind};
use apimachinery::labels::Selector;
use apimachinery::meta::ObjectMeta;
use apimachinery::schema::{self, TypeRef};
use apimachinery::status::{Status, StatusResult};
use apimachinery::time::Timestamp;
use apimachinery::{Value, decode, json};
use http::Response;

use super::patch::{PatchRequest, Target};
use super::write::{Change, Shown, Written, change_object, check_name, match_namespace};
use super::{Cx, body_bytes, write};
use crate::body::{Body, RequestBody};
use crate::options::WriteOptions;
use crate::output::{self, Form};
use crate::strategy::{DecodedTree, ScalePaths};

fn at<'v>(object: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(object, |value, step| value.get(step))
}

/// What `/scale` shows of an object.
fn scale_of(object: &Value, kind: &GroupVersionKind, paths: &ScalePaths, custom: bool) -> StatusResult<Value> {
    let mut scale = json!({"metadata": {}, "spec": {}, "status": {"replicas": 0}});
    kind.set_on(&mut scale);
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.metadata().get(field) {
            scale["metadata"][field] = value.clone();
        }
    }
    // A custom resource must say how many it wants. Source: `registry/customresource/etcd.go` (`scaleFromCustomResource`).
    if custom && at(object, &paths.spec_replicas).is_none() {
        let path = paths.spec_replicas.join(".");
        let text = format!("the spec replicas field \".{path}\" does not exist");
        return Err(Box::new(Status::internal_error(text)));
    }
    let count = |path: &[String]| at(object, path).and_then(Value::as_i64).unwrap_or(0);
    match count(&paths.spec_replicas) {
        0 => {}
        replicas => scale["spec"]["replicas"] = replicas.into(),
    }
    scale["status"]["replicas"] = count(&paths.status_replicas).into();
    let selector = match paths.selector.as_deref().and_then(|path| at(object, path)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.to_string(),
        Some(selector)
            if selector.get("matchLabels").is_some_and(Value::is_object)
                || selector.get("matchExpressions").is_some_and(Value::is_array) =>
        {
            Selector::from_label_selector(selector)
                .map_err(|e| Box::new(Status::plain_error(e.to_string())))?
                .to_string()
        }
        // A ReplicationController has a map of labels.
        Some(labels) => labels.as_object().map(|m| Selector::from_map(m).to_string()).unwrap_or_default(),
    };
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    Ok(scale)
}

/// The Scale as a thing to be patched.
struct ScaleTarget<'a> {
    kind: &'a GroupVersionKind,
}

impl ScaleTarget<'_> {
    fn with_manager<T>(&self, f: impl FnOnce(&FieldManager<'_>) -> T) -> T {
        let same = |object: &Value, _: &str| Ok(object.clone());
        f(&FieldManager {
            kind: self.kind,
            subresource: "scale",
            versions: &BuiltinVersions { kind: "Scale", convert: &same },
            filters: &BTreeMap::new(),
            now: Timestamp::from(std::time::SystemTime::now()),
        })
    }
}

impl Target for ScaleTarget<'_> {
    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String> {
        let Some(ty) = self.patch_schema() else { return Err(format!("no type for {}", self.kind)) };
        let decoded = decode::value(&tree, ty).map_err(|e| e.to_string())?;
        Ok(DecodedTree { object: decoded.object, strict_errors: decoded.strict_errors })
    }
    fn patch_schema(&self) -> Option<TypeRef<'_>> {
        schema::lookup(&self.kind.group, &self.kind.version, &self.kind.kind)
    }
    fn default_object(&self, _: &mut Value) {}
    fn track(&self, current: &Value, new: &mut Value, manager: &str) {
        *new = self.with_manager(|m| m.update(Some(current), new.take(), manager));
    }
    fn apply(&self, current: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
        self.with_manager(|m| m.apply(current, config, manager, force))
    }
}

pub async fn get(cx: &Cx) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let namespace = if cx.resource.namespaced { cx.info.namespace.as_str() } else { "" };
    let entry = cx.server.storage.get(&cx.resource, namespace, &cx.info.name).await?;
    let entry = entry.ok_or_else(|| cx.not_found())?;
    let object = Written::Entry(entry).into_value(cx).await?;
    let paths = cx.resource.strategy.scale_paths();
    let scale = scale_of(&object, &write::endpoint_kind(cx), &paths, !cx.resource.builtin)?;
    output::object_response(&cx.resource, &form, 200, scale).await
}

pub async fn update(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let encoding = cx.input_encoding()?;
    let body = body_bytes(body).await?;
    let options = WriteOptions::parse(&cx.info.query, "UpdateOptions", false)?;
    let kind = write::endpoint_kind(cx);
    let mut scale = cx.decode(&kind, &body, encoding, options.field_validation)?;
    scale.metadata_mut();
    match_namespace(cx, &mut scale)?;
    check_name(cx, &mut scale)?;
    let manager = options.manager(cx.user_agent());
    let uid = scale.uid().to_owned();
    let target = ScaleTarget { kind: &kind };
    change(cx, &form, &options, &kind, (!uid.is_empty()).then_some(uid.as_str()), |current| {
        let mut new = scale.clone();
        target.track(current, &mut new, &manager);
        Ok(new)
    })
    .await
}

pub async fn patch(cx: &Cx, body: RequestBody) -> StatusResult<Response<Body>> {
    let mut request = PatchRequest::read(cx, body).await?;
    let form = Form::negotiate(&cx.resource, &cx.info, &cx.headers)?;
    let options = request.options.clone();
    let kind = write::endpoint_kind(cx);
    let target = ScaleTarget { kind: &kind };
    change(cx, &form, &options, &kind, None, |current| {
        let mut new = request.make(cx, &target, Some(current))?;
        match_namespace(cx, &mut new)?;
        check_name(cx, &mut new)?;
        Ok(new)
    })
    .await
}

/// The Scale that admission sees.
struct OwnScale<'a> {
    kind: &'a GroupVersionKind,
    paths: &'a ScalePaths,
}

impl Shown for OwnScale<'_> {
    fn kind(&self) -> &GroupVersionKind {
        self.kind
    }

    fn show(&self, object: &Value) -> StatusResult<Value> {
        scale_of(object, self.kind, self.paths, false)
    }

    fn take(&self, shown: &Value, object: &mut Value) {
        let replicas = replicas_of(shown);
        if replicas != at(object, &self.paths.spec_replicas).and_then(Value::as_i64).unwrap_or(0) {
            set_replicas(object, self.paths, replicas);
        }
    }
}

fn replicas_of(scale: &Value) -> i64 {
    scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0)
}

fn set_replicas(object: &mut Value, paths: &ScalePaths, replicas: i64) {
    let steps: Vec<&str> = paths.spec_replicas.iter().map(String::as_str).collect();
    object.set_at(&steps, replicas.into());
}

/// Changes the object by changing its Scale.
async fn change(
    cx: &Cx,
    form: &Form,
    options: &WriteOptions,
    kind: &GroupVersionKind,
    precondition_uid: Option<&str>,
    mut make: impl FnMut(&Value) -> StatusResult<Value> + Send,
) -> StatusResult<Response<Body>> {
    let paths = cx.resource.strategy.scale_paths();
    let version = cx.resource.api_version();
    let versions = cx.resource.strategy.replicas_paths(&version);
    let own = OwnScale { kind, paths: &paths };
    let change = Change {
        options,
        options_kind: "UpdateOptions",
        force_create: false,
        precondition_uid,
        by_server: false,
        shown: Some(&own),
    };
    let unreadable = |e: apimachinery::apply::DecodeError| Box::new(Status::plain_error(e.to_string()));
    let (written, _) = change_object(cx, &change, |current| {
        let current = current.ok_or_else(|| cx.not_found())?;
        let mut scale = scale_of(current, kind, &paths, false)?;
        scale.set_managed_fields(to_scale(current.managed_fields(), &versions).map_err(unreadable)?);
        let new = make(&scale)?;
        let replicas = replicas_of(&new);
        if replicas < 0 && cx.resource.builtin {
            let path = FieldPath::new("spec").child("replicas");
            let error = FieldError::invalid(&path, replicas, "must be greater than or equal to 0");
            let kind = GroupKind::new("autoscaling", "Scale");
            return Err(Box::new(Status::invalid(&kind, current.name(), &[error])));
        }
        let mut object = current.clone();
        set_replicas(&mut object, &paths, replicas);
        // A Scale without a version changes whatever is there, custom resources too.
        object.set_resource_version(match new.resource_version() {
            "" => current.resource_version(),
            version => version,
        });
        let entries = to_parent(current.managed_fields(), new.managed_fields(), &version, &versions);
        object.set_managed_fields(entries.map_err(unreadable)?);
        Ok(object)
    })
    .await?;
    let object = written.into_value(cx).await?;
    output::object_response(&cx.resource, form, 200, scale_of(&object, kind, &paths, false)?).await
}
