//! A custom resource's kind as the handlers see it: one value per served version, made from the definition.
//!
//! Invariant: built once per change of the definition and never changed; requests that run keep the one they began with.
//!
//! Follows: `apiextensions-apiserver/pkg/registry/customresource/strategy.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::apply::{self, Type};
use apimachinery::decode::{self, Format};
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::kinds;
use apimachinery::schema::{Schema, TypeRef};
use apimachinery::status::{Status, StatusResult};
use apimachinery::time::Timestamp;
use async_trait::async_trait;

use super::columns::{Column, JsonPath};
use super::convert::Converter;
use super::rules::Rules as CelRules;
use super::schema::Node;
use super::{prune, validate};
use crate::negotiate::Encoding;
use crate::strategy::{Decoded, DecodedTree, FieldValidation, Rules, ScalePaths, Strategy};

/// One version of a definition, compiled.
pub struct Version {
    pub name: String,
    pub node: Arc<Node>,
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

impl apply::Versions for Definition {
    fn schema(&self, api_version: &str) -> Option<Type<'_>> {
        self.version(api_version)?.types.root().map(Type::root)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        // Only the name of the version: a webhook is not asked about the ownership of fields, so what is owned through
        // another version under another name stops being owned there at the next apply.
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
        let mut removed = Vec::new();
        coerce_metadata(object, &mut removed)?;
        prune::drop_nulls(object, &self.version().node);
        let mut unknown = Vec::new();
        prune::prune(object, &self.version().node, true, "", &mut unknown);
        removed.extend(unknown);
        removed.sort();
        Ok(removed.into_iter().map(|path| format!("unknown field {path:?}")).collect())
    }

    fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let version = self.version();
        let mut errors = Vec::new();
        let mut schema_errors = Vec::new();
        validate::validate(object, &version.node, "", &mut schema_errors);
        if let Some(old) = old {
            validate::ratchet(&mut schema_errors, object, old, &version.node);
        }
        let blocked = !schema_errors.is_empty();
        errors.append(&mut schema_errors);
        let mut list_errors = Vec::new();
        validate::validate_lists(object, &version.node, "", &mut list_errors);
        if let Some(old) = old {
            validate::ratchet(&mut list_errors, object, old, &version.node);
        }
        errors.append(&mut list_errors);
        validate::validate_embedded(object, &version.node, "", &mut errors);
        if blocked {
            if !version.rules.is_empty() {
                let message = "some validation rules were not checked because the object was invalid; \
                               correct the existing errors to complete validation";
                errors.push(FieldError::invalid(&FieldPath::new("<nil>"), Value::Null, message));
            }
        } else {
            version.rules.validate(object, old, &mut errors);
        }
        errors
    }
}

/// Checks that `metadata` is what an object's metadata is, dropping unknown members.
///
/// Source: `apiextensions-apiserver/pkg/apiserver/schema/objectmeta` (coercion by decoding into ObjectMeta).
fn coerce_metadata(object: &mut Value, removed: &mut Vec<String>) -> Result<(), String> {
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
        Some(format!("metadata.{path}"))
    }));
    Ok(())
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
        let mut decoded = decode::untyped(body, format).map_err(|e| {
            let text = String::from_utf8_lossy(body);
            let cut: String = text.chars().take(1024).collect();
            bad(format!("error decoding {cut:?}: {e}"))
        })?;
        if !decoded.object.is_object() {
            return Err(bad("the object provided is unrecognized (must be of type object)".to_owned()));
        }
        let (api_version, own_kind) = decode::type_meta(&decoded.object);
        if !api_version.is_empty() && api_version != kind.api_version() {
            return Err(bad(format!(
                "the API version in the data ({api_version}) does not match the expected API version ({})",
                kind.api_version()
            )));
        }
        decode::check_kind(api_version, own_kind, kind).map_err(|e| bad(e.message))?;
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

    fn reset_fields(&self, subresource: &str) -> BTreeMap<String, apply::set::Filter> {
        let has_status = self.version().status_subresource;
        apply::reset::custom_resource_filters(&self.gvk.api_version(), subresource, has_status)
    }

    fn default_object(&self, object: &mut Value) {
        prune::default(object, &self.version().node);
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
        let desired = |object: &Value| {
            let mut object = object.clone();
            if let Some(map) = object.as_object_mut() {
                map.remove("metadata");
                map.remove("apiVersion");
                if self.version().status_subresource {
                    map.remove("status");
                }
            }
            object
        };
        if desired(new) != desired(old) {
            let generation = old.at(&["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
            new.set_at(&["metadata", "generation"], (generation + 1).into());
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = kinds::validate_custom_metadata(object, self.definition.namespaced);
        errors.extend(self.validate(object, None));
        errors
    }

    fn validate_update(&self, _subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = kinds::validate_custom_metadata_update(new, old, self.definition.namespaced);
        errors.extend(self.validate(new, Some(old)));
        errors
    }

    fn warnings_create(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    fn warnings_update(&self, _subresource: &str, _new: &Value, _old: &Value) -> Vec<String> {
        Vec::new()
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
        let mut objects = self.definition.converter.convert(objects, &wanted).await?;
        // What was stored before a default or a field was added or removed reads as if written today.
        if let Some(version) = self.definition.version(&wanted) {
            for object in &mut objects {
                prune::prune(object, &version.node, true, "", &mut Vec::new());
                prune::default(object, &version.node);
            }
        }
        Ok(objects)
    }

    fn deprecation(&self) -> Option<String> {
        self.version().deprecation.clone()
    }

    fn scale_paths(&self) -> ScalePaths {
        self.version().scale.clone().unwrap_or_default()
    }
}
