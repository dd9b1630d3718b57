//! A custom resource's kind as the handlers see it: one value per served version, made from the definition.
//!
//! Invariant: built once per change of the definition and never changed; requests that run keep the one they began with.
//!
//! Follows: `apiextensions-apiserver/pkg/registry/customresource/strategy.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply::path::PathElement;
use apimachinery::apply::scale::ReplicasPaths;
use apimachinery::apply::{self, Type};
use apimachinery::decode::{self, Format};
use apimachinery::field::{ErrorType, FieldError, FieldPath};
use apimachinery::gvk::{GroupKind, GroupVersionKind};
use apimachinery::json::Str;
use apimachinery::meta::ObjectMeta;
use apimachinery::schema::{Schema, TypeRef};
use apimachinery::status::{Status, StatusResult};
use apimachinery::text::{go_type, go_value};
use apimachinery::time::Timestamp;
use apimachinery::{kinds, names};
use async_trait::async_trait;

use super::columns::{Column, JsonPath};
use super::convert::Converter;
use super::rules::{Ratchet, Rules as CelRules};
use super::schema::Node;
use super::{prune, validate};
use crate::negotiate::Encoding;
use crate::strategy::{Decoded, DecodedTree, FieldValidation, Rules, ScalePaths, Strategy};

/// One version of a definition, compiled.
pub struct Version {
    pub name: String,
    pub node: Arc<Node>,
    /// There are embedded resources and defaults.
    pub embedded_defaults: bool,
    /// Types for apply and decoding.
    pub types: Schema,
    pub rules: CelRules,
    pub status_subresource: bool,
    pub scale: Option<ScalePaths>,
    pub columns: Vec<Column>,
    pub selectable: Vec<(String, JsonPath)>,
    /// The text of a `Warning` header, for deprecated versions.
    pub deprecation: Option<String>,
}

/// All versions of one definition.
pub struct Definition {
    pub group: String,
    pub kind: String,
    pub namespaced: bool,
    pub versions: Vec<Version>,
    pub converter: Converter,
}

impl Definition {
    pub fn version(&self, api_version: &str) -> Option<&Version> {
        let name = api_version.strip_prefix(self.group.as_str())?.strip_prefix('/')?;
        self.versions.iter().find(|v| v.name == name)
    }
}

impl Version {
    /// Fills in defaults.
    fn default(&self, object: &mut Value) {
        prune::default(object, &self.node);
        if self.embedded_defaults {
            // Metadata in a default may have members that there are none of. What was given has been checked before.
            let _ = coerce_embedded(object, &self.node, "", &mut Vec::new());
        }
    }
}

impl apply::Versions for Definition {
    fn schema(&self, api_version: &str) -> Option<Type<'_>> {
        self.version(api_version)?.types.root().map(Type::root)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        // Without a webhook versions differ in their names only; with one, this is not called.
        let mut converted = object.clone();
        converted["apiVersion"] = api_version.into();
        Ok(converted)
    }
}

/// The strategy of one version.
pub struct CustomStrategy {
    definition: Arc<Definition>,
    index: usize,
    gvk: GroupVersionKind,
}

impl CustomStrategy {
    pub fn new(definition: Arc<Definition>, index: usize) -> CustomStrategy {
        let version = definition.versions[index].name.clone();
        let gvk = GroupVersionKind::new(definition.group.as_str(), version.as_str(), definition.kind.as_str());
        CustomStrategy { definition, index, gvk }
    }

    fn version(&self) -> &Version {
        &self.definition.versions[self.index]
    }

    /// Drops unknown fields and checks metadata; returns what strict validation says.
    fn shape(&self, object: &mut Value) -> Result<Vec<String>, String> {
        let node = &self.version().node;
        let mut removed = Vec::new();
        coerce_metadata(object, "", &mut removed)?;
        let mut unknown = Vec::new();
        prune::prune(object, node, true, "", &mut unknown);
        unknown.sort();
        removed.append(&mut unknown);
        prune::drop_nulls(object, node);
        coerce_embedded(object, node, "", &mut unknown)?;
        unknown.sort();
        removed.append(&mut unknown);
        Ok(removed.into_iter().map(|path| format!("unknown field {path:?}")).collect())
    }

    /// Everything but metadata, whose errors are in `errors` already.
    fn validate(
        &self,
        subresource: &str,
        object: &Value,
        old: Option<&Value>,
        errors: &mut Vec<FieldError>,
        warnings: &mut Vec<String>,
    ) {
        let version = self.version();
        let node = &version.node;
        if subresource == "status" {
            self.validate_status(object, old, errors);
        } else {
            validate::validate(object, old, node, "", errors);
            self.validate_scale(object, true, errors);
            self.validate_scale(object, false, errors);
            validate::validate_embedded(object, node, "", errors);
        }
        let list_errors = |object: &Value| {
            let mut errors = Vec::new();
            validate::validate_lists(object, node, "", &mut errors);
            errors
        };
        // Lists that broke their promise before may go on doing so.
        let found = list_errors(object);
        if !found.is_empty() && old.is_none_or(|old| list_errors(old).is_empty()) {
            errors.extend(found);
        }
        if version.rules.is_empty() {
            return;
        }
        let blocking = |e: &FieldError| {
            matches!(
                e.kind,
                ErrorType::NotSupported
                    | ErrorType::Required
                    | ErrorType::TooLong
                    | ErrorType::TooMany
                    | ErrorType::TypeInvalid
            )
        };
        if errors.iter().any(blocking) {
            let message = "some validation rules were not checked because the object was invalid; \
                           correct the existing errors to complete validation";
            errors.push(FieldError::invalid(&FieldPath::new("<nil>"), Value::Null, message));
            return;
        }
        let ratchet = if old.is_some() { Ratchet::On(warnings) } else { Ratchet::Off };
        version.rules.validate(node, object, old, ratchet, errors);
    }

    /// Through `/status` only the status is looked at; upstream's texts name its parts as if it were the whole.
    fn validate_status(&self, object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        if let (Some(status), Some(node)) = (object.get("status"), self.version().node.properties.get("status")) {
            let mut found = Vec::new();
            validate::validate(status, old.and_then(|o| o.get("status")), node, "", &mut found);
            errors.extend(found.into_iter().map(|mut e| {
                e.field = match e.field.as_str() {
                    "<nil>" => "status".to_owned(),
                    below => format!("status.{below}"),
                };
                e
            }));
        }
        self.validate_scale(object, false, errors);
    }

    /// The numbers that `/scale` shows must be numbers of replicas.
    fn validate_scale(&self, object: &Value, spec: bool, errors: &mut Vec<FieldError>) {
        let Some(paths) = &self.version().scale else { return };
        let steps = if spec { &paths.spec_replicas } else { &paths.status_replicas };
        let at = FieldPath::new(&format!(".{}", steps.join(".")));
        match member_at(object, steps) {
            Ok(None) => {}
            Ok(Some(value)) => match value.as_i64() {
                Some(count) if count < 0 => {
                    errors.push(FieldError::invalid(&at, count, "should be a non-negative integer"));
                }
                Some(count) if count > i64::from(i32::MAX) => {
                    let message = format!("should be less than or equal to {}", i32::MAX);
                    errors.push(FieldError::invalid(&at, count, message));
                }
                Some(_) => {}
                None => {
                    let message = format!(
                        "{at} accessor error: {} is of the type {}, expected int64",
                        go_value(value),
                        go_type(value)
                    );
                    errors.push(FieldError::invalid(&at, 0, message));
                }
            },
            Err(message) => errors.push(FieldError::invalid(&at, 0, message)),
        }
        if let Some(steps) = paths.selector.as_ref().filter(|_| !spec) {
            let at = FieldPath::new(&format!(".{}", steps.join(".")));
            let message = match member_at(object, steps) {
                Ok(Some(value)) if value.as_str().is_none() => {
                    format!(
                        "{at} accessor error: {} is of the type {}, expected string",
                        go_value(value),
                        go_type(value)
                    )
                }
                Ok(_) => return,
                Err(message) => message,
            };
            errors.push(FieldError::invalid(&at, "", message));
        }
    }

    /// A body must say its kind, and the kind must be this one.
    fn check_type(&self, object: &Value, body: &[u8]) -> StatusResult<()> {
        let (api_version, kind) = decode::type_meta(object);
        let wanted = &self.gvk;
        if kind.is_empty() {
            let error = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body));
            return Err(Box::new(Status::bad_request(decode::unrecognized(body, &wanted.kind, &error).message)));
        }
        if api_version != wanted.api_version() {
            return Err(Box::new(Status::bad_request(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({})",
                wanted.api_version()
            ))));
        }
        Ok(())
    }
}

/// What is at a path; an error in Go's words when something on the way is no object.
fn member_at<'v>(object: &'v Value, steps: &[String]) -> Result<Option<&'v Value>, String> {
    let mut value = object;
    for (i, step) in steps.iter().enumerate() {
        if !value.is_object() {
            let at = steps[..i].join(".");
            return Err(format!(
                ".{at} accessor error: {} is of the type {}, expected map[string]interface {{}}",
                go_value(value),
                go_type(value)
            ));
        }
        match value.get(step) {
            Some(inner) => value = inner,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

/// Finalizers that somebody else might use as well.
fn finalizer_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
    let before = old.map(|o| o.finalizers().to_vec()).unwrap_or_default();
    let mut added: Vec<&str> = object.finalizers().iter().copied().filter(|f| !before.contains(f)).collect();
    added.sort_unstable();
    added.dedup();
    let mut warnings = Vec::new();
    for finalizer in added {
        for problem in names::is_qualified_name(finalizer) {
            warnings.push(format!("metadata.finalizers: {finalizer:?}: {problem}"));
        }
        if !finalizer.contains('/') && !STANDARD.contains(&finalizer) {
            let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
            warnings.push(format!(
                "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            ));
        }
    }
    warnings
}

/// Checks that `metadata` is what an object's metadata is, dropping unknown members.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/objectmeta` (coercion by decoding into ObjectMeta).
fn coerce_metadata(object: &mut Value, at: &str, removed: &mut Vec<String>) -> Result<(), String> {
    let Some(metadata) = object.get_mut("metadata") else { return Ok(()) };
    if metadata.is_null() {
        *metadata = Value::object();
        return Ok(());
    }
    let Some(ty) = apimachinery::schema::lookup_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else {
        return Ok(());
    };
    let decoded = decode::value(metadata, ty).map_err(|e| e.to_string())?;
    *metadata = decoded.object;
    removed.extend(decoded.strict_errors.iter().filter_map(|e| {
        let path = e.strip_prefix("unknown field \"")?.strip_suffix('"')?;
        Some(format!("{at}metadata.{path}"))
    }));
    Ok(())
}

/// Checks that embedded resources have kinds that are text, and metadata as above.
fn coerce_embedded(value: &mut Value, node: &Node, path: &str, removed: &mut Vec<String>) -> Result<(), String> {
    if node.embedded_resource && value.is_object() {
        for key in ["apiVersion", "kind"] {
            if let Some(other) = value.get(key).filter(|v| v.as_str().is_none()) {
                let at = FieldPath::new(&format!("{path}.{key}"));
                return Err(FieldError::invalid(&at, other, "must be a string").to_string());
            }
        }
        let given = value.get("metadata").cloned();
        if let Err(error) = coerce_metadata(value, &format!("{path}."), removed) {
            let at = FieldPath::new(&format!("{path}.metadata"));
            return Err(FieldError::invalid(&at, given.unwrap_or_default(), error).to_string());
        }
    }
    match value {
        Value::Array(list) => {
            let Some(items) = &node.items else { return Ok(()) };
            list.iter_mut()
                .enumerate()
                .try_for_each(|(i, item)| coerce_embedded(item, items, &format!("{path}[{i}]"), removed))
        }
        Value::Object(map) => map.iter_mut().try_for_each(|(name, member)| match node.member(name) {
            Some(child) => coerce_embedded(member, child, &validate::child_path(node, path, name), removed),
            None => Ok(()),
        }),
        _ => Ok(()),
    }
}

#[async_trait]
impl Strategy for CustomStrategy {
    fn rules(&self) -> Rules {
        Rules { unconditional_update: false, ..Rules::DEFAULT }
    }

    fn decode(
        &self,
        kind: &GroupVersionKind,
        body: &[u8],
        encoding: Encoding,
        validation: FieldValidation,
    ) -> StatusResult<Decoded> {
        let bad = |message: String| Box::new(Status::bad_request(message));
        if kind.group != self.gvk.group {
            // A Scale or another built-in kind.
            let Some(ty) = apimachinery::schema::lookup(&kind.group, &kind.version, &kind.kind) else {
                return Err(bad(format!("no kind {:?} is registered", kind.kind.as_str())));
            };
            let format = if encoding == Encoding::Yaml { Format::Yaml } else { Format::Json };
            let decoded = decode::object(body, format, kind, ty).map_err(|e| bad(e.message))?;
            return crate::strategy::strict(decoded, kind, validation);
        }
        let format = match encoding {
            Encoding::Json => Format::Json,
            Encoding::Yaml => Format::Yaml,
            Encoding::Protobuf => {
                return Err(Box::new(Status::unsupported_media_type(&["application/json", "application/yaml"])));
            }
        };
        let mut decoded = decode::recognized(body, format, &kind.kind).map_err(|e| bad(e.message))?;
        if decoded.object.is_null() {
            decoded.object = Value::object();
        }
        self.check_type(&decoded.object, body)?;
        // A body of another kind is refused when the object is validated: by then its name is known.
        let other = decode::type_meta(&decoded.object).1.to_owned();
        kind.set_on(&mut decoded.object);
        if other != kind.kind.as_str() {
            let error = FieldError::invalid(&FieldPath::new("kind"), other.as_str(), format!("must be {}", kind.kind));
            let given = GroupKind::new(kind.group.clone(), other.as_str());
            return Err(Box::new(Status::invalid(&given, decoded.object.name(), &[error])));
        }
        kind.set_on(&mut decoded.object);
        let unknown =
            self.shape(&mut decoded.object).map_err(|e| bad(decode::cannot_be_handled(kind, &kind.kind, &e)))?;
        decoded.strict_errors.extend(unknown);
        crate::strategy::strict(decoded, kind, validation)
    }

    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String> {
        let mut object = tree;
        let (api_version, kind) = decode::type_meta(&object);
        decode::check_kind(api_version, kind, &self.gvk).map_err(|e| e.message)?;
        self.gvk.set_on(&mut object);
        let strict_errors = self.shape(&mut object)?;
        Ok(DecodedTree { object, strict_errors })
    }

    fn patch_schema(&self) -> Option<TypeRef<'_>> {
        None
    }

    fn versions(&self) -> &dyn apply::Versions {
        &*self.definition
    }

    fn converts_remotely(&self) -> bool {
        matches!(self.definition.converter, Converter::Webhook(_))
    }

    fn reset_fields(&self, subresource: &str) -> BTreeMap<String, apply::set::Filter> {
        if subresource == "status" {
            // Owners in other versions are compared in theirs.
            let versions = self.definition.versions.iter().filter(|version| version.status_subresource);
            let versions = versions.map(|version| format!("{}/{}", self.definition.group, version.name));
            return versions
                .flat_map(|version| apply::reset::custom_resource_filters(&version, subresource, true))
                .collect();
        }
        let has_status = self.version().status_subresource;
        apply::reset::custom_resource_filters(&self.gvk.api_version(), subresource, has_status)
    }

    fn default_object(&self, object: &mut Value) {
        self.version().default(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.version().status_subresource
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        object.set_at(&["metadata", "generation"], 1.into());
    }

    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        let copy = |from: &Value, to: &mut Value, key: &str| match from.get(key) {
            Some(value) => to[key] = value.clone(),
            None => {
                to.as_object_mut().map(|m| m.remove(key));
            }
        };
        if subresource == "status" {
            // Everything but status and managedFields stays.
            let status = new.get("status").cloned();
            let managed = new.at(&["metadata", "managedFields"]).cloned();
            let resource_version = new.at(&["metadata", "resourceVersion"]).cloned();
            *new = old.clone();
            match status {
                Some(status) => new["status"] = status,
                None => {
                    new.as_object_mut().map(|m| m.remove("status"));
                }
            }
            for (key, value) in [("managedFields", managed), ("resourceVersion", resource_version)] {
                match value {
                    Some(value) => new.set_at(&["metadata", key], value),
                    None => {
                        new.remove_at(&["metadata", key]);
                    }
                }
            }
            return;
        }
        if self.version().status_subresource {
            copy(old, new, "status");
        }
        // Everything outside metadata (and status, where it is a subresource) is desired state.
        let has_status = self.version().status_subresource;
        let desired = |(name, _): &(&Str, &Value)| match name.as_str() {
            "metadata" | "apiVersion" => false,
            "status" => !has_status,
            _ => true,
        };
        let same = match (new.as_object(), old.as_object()) {
            (Some(new), Some(old)) => new.iter().filter(desired).eq(old.iter().filter(desired)),
            _ => false,
        };
        if !same {
            let generation = old.at(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
            new.set_at(&["metadata", "generation"], (generation + 1).into());
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = kinds::validate_custom_metadata(object, self.definition.namespaced);
        self.validate("", object, None, &mut errors, &mut Vec::new());
        errors
    }

    fn validate_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Vec<FieldError> {
        let mut errors = kinds::validate_custom_metadata_update(new, old, self.definition.namespaced);
        self.validate(subresource, new, Some(old), &mut errors, warnings);
        errors
    }

    fn warnings_create(&self, object: &Value) -> Vec<String> {
        finalizer_warnings(object, None)
    }

    fn warnings_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<String> {
        if subresource.is_empty() { finalizer_warnings(new, Some(old)) } else { Vec::new() }
    }

    fn convert_field_label(&self, label: &str) -> Result<String, String> {
        let known = matches!(label, "metadata.name" | "metadata.namespace")
            || self.version().selectable.iter().any(|(name, _)| name == label);
        if known { Ok(label.to_owned()) } else { Err(format!("field label not supported: {label}")) }
    }

    fn field_value(&self, object: &Value, label: &str) -> String {
        match label {
            "metadata.name" => object.str_at(&["metadata", "name"]).to_owned(),
            "metadata.namespace" => object.str_at(&["metadata", "namespace"]).to_owned(),
            _ => {
                let path = self.version().selectable.iter().find(|(name, _)| name == label);
                match path.and_then(|(_, path)| path.first(object)) {
                    Some(Value::String(s)) => s.to_string(),
                    Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
                    _ => String::new(),
                }
            }
        }
    }

    fn converts_fields(&self) -> bool {
        matches!(self.definition.converter, super::convert::Converter::Webhook(_))
    }

    fn table_columns(&self) -> Vec<Value> {
        super::columns::definitions(&self.version().columns)
    }

    fn table_row(&self, object: &Value, now: Timestamp) -> (Vec<Value>, Vec<Value>) {
        (super::columns::cells(&self.version().columns, object, now), Vec::new())
    }

    async fn to_version(&self, object: Value, kind: &GroupVersionKind) -> StatusResult<Value> {
        let mut converted = self.all_to_version(vec![object], kind).await?;
        converted.pop().ok_or_else(|| Box::new(Status::internal_error("a conversion lost its object")))
    }

    async fn all_to_version(&self, objects: Vec<Value>, kind: &GroupVersionKind) -> StatusResult<Vec<Value>> {
        let wanted = kind.api_version();
        let mut objects = objects;
        // What was stored before a default or a field was added or removed reads as if written today, in the version that
        // it is stored in: the schema of another one only takes fields away.
        for object in &mut objects {
            if let Some(version) = self.definition.version(object.str_at(&["apiVersion"])) {
                prune::prune(object, &version.node, true, "", &mut Vec::new());
                version.default(object);
            }
        }
        let other: Vec<bool> = objects.iter().map(|object| object.str_at(&["apiVersion"]) != wanted).collect();
        let mut objects = self.definition.converter.convert(objects, &wanted).await?;
        if let Some(version) = self.definition.version(&wanted) {
            for (object, _) in objects.iter_mut().zip(other).filter(|(_, other)| *other) {
                prune::prune(object, &version.node, true, "", &mut Vec::new());
            }
        }
        Ok(objects)
    }

    async fn converted(&self, object: Value, kind: &GroupVersionKind) -> StatusResult<Value> {
        let wanted = kind.api_version();
        let mut objects = self.definition.converter.convert(vec![object], &wanted).await?;
        let mut object =
            objects.pop().ok_or_else(|| Box::new(Status::internal_error("a conversion lost its object")))?;
        if let Some(version) = self.definition.version(&wanted) {
            prune::prune(&mut object, &version.node, true, "", &mut Vec::new());
        }
        Ok(object)
    }

    fn deprecation(&self) -> Option<String> {
        self.version().deprecation.clone()
    }

    fn replicas_paths(&self, _: &str) -> ReplicasPaths {
        let group = &self.definition.group;
        let versions = self.definition.versions.iter().map(|version| {
            let path = |paths: &ScalePaths| paths.spec_replicas.iter().map(|step| PathElement::field(step)).collect();
            (format!("{group}/{}", version.name), version.scale.as_ref().map(path))
        });
        versions.collect()
    }

    fn scale_paths(&self) -> ScalePaths {
        self.version().scale.clone().unwrap_or_default()
    }
}
