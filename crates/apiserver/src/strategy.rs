//! What differs between kinds, seen from the handlers: decoding, defaults, checks, conversions, printing.
//!
//! [`BuiltIn`] serves the kinds of Kubernetes from data and rules of `apimachinery`; custom resources bring their own
//! implementation with their schema. Everything here is pure except conversion, which may ask a webhook.

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::apply::path::PathElement;
use apimachinery::apply::scale::ReplicasPaths;
use apimachinery::apply::{self, BuiltinVersions};
use apimachinery::decode::{self, Format};
use apimachinery::field::FieldError;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::kinds;
use apimachinery::protobuf;
use apimachinery::resources;
use apimachinery::schema::{self, TypeRef};
use apimachinery::status::{Status, StatusResult};
use apimachinery::table;
use apimachinery::time::Timestamp;
use async_trait::async_trait;

use crate::admission::expressions::Judge;
use crate::crd::definition;
use crate::negotiate::Encoding;
use crate::signing_requests;

/// What to do about unknown and duplicate fields of a request body (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A decoded request body: the object, defaults not yet applied, and texts for `Warning` headers.
#[derive(Debug)]
pub struct Decoded {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// A tree in decoded form.
#[derive(Debug)]
pub struct DecodedTree {
    pub object: Value,
    /// Unknown fields, such as `unknown field "spec.foo"`.
    pub strict_errors: Vec<String>,
}

pub use apimachinery::kinds::{DefaultGarbageCollection, Strategy as Rules};

/// What differs between kinds.
#[async_trait]
pub trait Strategy: Send + Sync {
    fn rules(&self) -> Rules;

    /// Decodes a request body into an object of this resource's version. `kind` is what the endpoint takes when the body
    /// does not say (subresources may take other kinds than the resource's).
    fn decode(
        &self,
        kind: &GroupVersionKind,
        body: &[u8],
        encoding: Encoding,
        validation: FieldValidation,
    ) -> StatusResult<Decoded>;

    /// Brings a tree that a patch made into the form that [`Self::decode`] gives, with what strict validation says about
    /// it. Fails with the decoder's text.
    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String>;

    /// The schema that strategic merge patches go by; `None` for kinds that have none of those.
    fn patch_schema(&self) -> Option<TypeRef<'_>>;

    /// The versions of the kind, for the ownership of fields.
    fn versions(&self) -> &dyn apply::Versions;

    /// Whether a webhook converts between the versions.
    fn converts_remotely(&self) -> bool {
        false
    }

    /// What cannot be owned through the object's endpoint or one of its subresources, by API version.
    fn reset_fields(&self, subresource: &str) -> BTreeMap<String, apply::set::Filter>;

    /// Fills in defaults.
    fn default_object(&self, object: &mut Value);

    /// Resets what a client may not set in a create.
    fn prepare_create(&self, object: &mut Value);

    /// Resets what a client may not set in an update, and counts the generation.
    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value);

    fn validate_create(&self, object: &Value) -> Vec<FieldError>;
    /// What is excused because it was so before goes to `warnings`.
    fn validate_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Vec<FieldError>;
    fn warnings_create(&self, object: &Value) -> Vec<String>;
    /// Warnings about the object as it is before [`Strategy::prepare_create`].
    fn warnings_before_create(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    fn warnings_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<String>;

    /// The field label in canonical form, or the message of a 400.
    fn convert_field_label(&self, label: &str) -> Result<String, String>;
    /// What a field selector compares.
    fn field_value(&self, object: &Value, label: &str) -> String;
    /// [`Strategy::field_value`] takes objects in the resource's own version only, and only
    /// [`Strategy::all_to_version`] can make them.
    fn converts_fields(&self) -> bool {
        false
    }

    /// The column definitions of a Table.
    fn table_columns(&self) -> Vec<Value>;
    /// The cells of an object's row, and its conditions.
    fn table_row(&self, object: &Value, now: Timestamp) -> (Vec<Value>, Vec<Value>);

    /// Converts a stored object (in any version of the resource) to the version of `kind`.
    async fn to_version(&self, object: Value, kind: &GroupVersionKind) -> StatusResult<Value>;

    /// The same for many objects, in their order.
    async fn all_to_version(&self, objects: Vec<Value>, kind: &GroupVersionKind) -> StatusResult<Vec<Value>> {
        let mut converted = Vec::with_capacity(objects.len());
        for object in objects {
            converted.push(self.to_version(object, kind).await?);
        }
        Ok(converted)
    }

    /// Converts an object that is about to be stored or looked at: unlike [`Strategy::to_version`] this fills in nothing.
    async fn converted(&self, object: Value, kind: &GroupVersionKind) -> StatusResult<Value> {
        self.to_version(object, kind).await
    }

    /// Where `/scale` finds its values; the default is where the built-in kinds have them.
    fn scale_paths(&self) -> ScalePaths {
        ScalePaths::default()
    }

    /// Where the number of replicas is in each version with `/scale`, for those who own it there.
    fn replicas_paths(&self, api_version: &str) -> ReplicasPaths {
        let path = self.scale_paths().spec_replicas;
        BTreeMap::from([(api_version.to_owned(), Some(path.iter().map(|step| PathElement::field(step)).collect()))])
    }

    /// The text of a `Warning` header for every request on a deprecated version.
    fn deprecation(&self) -> Option<String> {
        None
    }
}

/// The members of an object that its Scale shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    /// A label selector object, a map of labels, or text; `None` when there is no selector to show.
    pub selector: Option<Vec<String>>,
}

impl Default for ScalePaths {
    fn default() -> Self {
        let path = |steps: [&str; 2]| steps.map(str::to_owned).to_vec();
        ScalePaths {
            spec_replicas: path(["spec", "replicas"]),
            status_replicas: path(["status", "replicas"]),
            selector: Some(path(["spec", "selector"])),
        }
    }
}

/// The kinds of Kubernetes.
pub struct BuiltIn {
    resource: &'static resources::Resource,
    gvk: GroupVersionKind,
    versions: BuiltinVersions<'static>,
}

/// Converts an object of a kind that is served in two versions.
fn convert(object: &Value, api_version: &str) -> Result<Value, String> {
    let kind = object.str_at(&["kind"]);
    match (kind, object.str_at(&["apiVersion"]), api_version) {
        (_, from, to) if from == to => Ok(object.clone()),
        ("Event", "v1", "events.k8s.io/v1") => Ok(kinds::event_to_events_group(object)),
        ("Event", "events.k8s.io/v1", "v1") => Ok(kinds::event_to_core(object)),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => Ok(kinds::hpa_to_v1(object)),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => Ok(kinds::hpa_to_v2(object)),
        (_, from, to) => Err(format!("{kind} cannot be converted from {from} to {to}")),
    }
}

impl BuiltIn {
    pub fn new(resource: &'static resources::Resource) -> BuiltIn {
        let gvk = GroupVersionKind::new(resource.group, resource.version, resource.kind);
        let versions = BuiltinVersions { kind: resource.kind, convert: &convert };
        BuiltIn { resource, gvk, versions }
    }

    fn is_definition(&self) -> bool {
        self.resource.group == crate::crd::GROUP && self.resource.name == crate::crd::RESOURCE
    }
}

#[async_trait]
impl Strategy for BuiltIn {
    fn rules(&self) -> Rules {
        kinds::strategy(&self.gvk)
    }

    fn decode(
        &self,
        kind: &GroupVersionKind,
        body: &[u8],
        encoding: Encoding,
        validation: FieldValidation,
    ) -> StatusResult<Decoded> {
        let bad = |message: String| Box::new(Status::bad_request(message));
        let ty = schema::lookup(&kind.group, &kind.version, &kind.kind);
        let decoded = match (encoding, ty) {
            (Encoding::Protobuf, _) => protobuf::object(body, kind),
            (Encoding::Json, Some(ty)) => decode::object(body, Format::Json, kind, ty),
            (Encoding::Yaml, Some(ty)) => decode::object(body, Format::Yaml, kind, ty),
            (_, None) => return Err(bad(format!("no kind {:?} is registered", kind.kind.as_str()))),
        };
        strict(decoded.map_err(|e| bad(e.message))?, kind, validation)
    }

    fn decode_tree(&self, tree: Value) -> Result<DecodedTree, String> {
        let Some(ty) = self.patch_schema() else { return Ok(DecodedTree { object: tree, strict_errors: Vec::new() }) };
        let (api_version, kind) = decode::type_meta(&tree);
        decode::check_kind(api_version, kind, &self.gvk).map_err(|e| e.message)?;
        let mut decoded = decode::value(&tree, ty).map_err(|e| e.to_string())?;
        // A patch may take `kind` away: it is the endpoint's all the same.
        self.gvk.set_on(&mut decoded.object);
        Ok(DecodedTree { object: decoded.object, strict_errors: decoded.strict_errors })
    }

    fn patch_schema(&self) -> Option<TypeRef<'_>> {
        schema::lookup(&self.gvk.group, &self.gvk.version, &self.gvk.kind)
    }

    fn versions(&self) -> &dyn apply::Versions {
        &self.versions
    }

    fn reset_fields(&self, subresource: &str) -> BTreeMap<String, apply::set::Filter> {
        let versions: Vec<String> = resources::RESOURCES
            .iter()
            .filter(|r| r.group == self.resource.group && r.name == self.resource.name)
            .map(resources::Resource::api_version)
            .collect();
        let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
        apply::reset::filters(self.resource.group, self.resource.name, subresource, &versions)
    }

    fn default_object(&self, object: &mut Value) {
        kinds::default_object(&self.gvk, object);
        if self.is_definition() {
            definition::default(object);
        }
    }
    fn prepare_create(&self, object: &mut Value) {
        kinds::prepare_create(&self.gvk, object);
        if self.is_definition() {
            definition::prepare_create(object);
        }
    }
    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        let now = Timestamp::from(std::time::SystemTime::now()).to_rfc3339();
        kinds::prepare_update(&self.gvk, subresource, new, old, &now);
        if self.is_definition() && subresource.is_empty() {
            definition::prepare_update(new);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let judge = Judge::default();
        let mut errors = kinds::validate_create_with(&self.gvk, object, &|e| judge.refused(e));
        if self.is_definition() {
            errors.extend(definition::validate_create(object));
        }
        if &*self.gvk.group == "certificates.k8s.io" && &*self.gvk.kind == "CertificateSigningRequest" {
            signing_requests::validate(object, &mut errors);
        }
        errors
    }
    fn validate_update(&self, subresource: &str, new: &Value, old: &Value, _: &mut Vec<String>) -> Vec<FieldError> {
        let judge = Judge::default();
        let mut errors = kinds::validate_update_with(&self.gvk, subresource, new, old, &|e| judge.refused(e));
        if self.is_definition() && subresource.is_empty() {
            errors.extend(definition::validate_update(new, old));
        }
        errors
    }
    fn warnings_before_create(&self, object: &Value) -> Vec<String> {
        kinds::warnings_before_create(&self.gvk, object)
    }
    fn warnings_create(&self, object: &Value) -> Vec<String> {
        let mut warnings = kinds::warnings_create(&self.gvk, object);
        if self.is_definition() {
            warnings.extend(definition::format_warnings(object, None));
        }
        warnings
    }
    fn warnings_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<String> {
        let mut warnings = kinds::warnings_update(&self.gvk, subresource, new, old);
        if self.is_definition() && subresource.is_empty() {
            warnings.extend(definition::format_warnings(new, Some(old)));
        }
        warnings
    }

    fn convert_field_label(&self, label: &str) -> Result<String, String> {
        kinds::convert_field_label(&self.gvk, label).map(str::to_owned)
    }
    fn field_value(&self, object: &Value, label: &str) -> String {
        let wanted = self.gvk.api_version();
        // Stored events are core ones, whatever version is asked.
        if object.str_at(&["apiVersion"]) != wanted
            && let Ok(converted) = convert(object, &wanted)
        {
            return kinds::field_value(&self.gvk, &converted, label);
        }
        kinds::field_value(&self.gvk, object, label)
    }

    fn table_columns(&self) -> Vec<Value> {
        table::columns(&self.gvk).iter().map(table::Column::to_value).collect()
    }
    fn table_row(&self, object: &Value, now: Timestamp) -> (Vec<Value>, Vec<Value>) {
        let row = table::row(&self.gvk, object, now);
        (row.cells, row.conditions)
    }

    async fn to_version(&self, object: Value, kind: &GroupVersionKind) -> StatusResult<Value> {
        if object.str_at(&["apiVersion"]) == kind.api_version() {
            return Ok(object);
        }
        convert(&object, &kind.api_version()).map_err(|e| Box::new(Status::internal_error(e)))
    }
}

/// Duplicate keys of a YAML document come as one text of several lines, and are warned of one by one.
pub fn one_by_one(strict_errors: Vec<String>) -> Vec<String> {
    let lines = |error: String| match error.strip_prefix("yaml: unmarshal errors:") {
        Some(lines) => lines.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect(),
        None => vec![error],
    };
    strict_errors.into_iter().flat_map(lines).collect()
}

/// What becomes of unknown and duplicate members.
pub fn strict(decoded: decode::Decoded, kind: &GroupVersionKind, validation: FieldValidation) -> StatusResult<Decoded> {
    match (validation, decoded.strict_error()) {
        (FieldValidation::Strict, Some(error)) => {
            let message = decode::cannot_be_handled(kind, &kind.kind, &error);
            Err(Box::new(Status::bad_request(message)))
        }
        (FieldValidation::Warn, Some(_)) => {
            Ok(Decoded { object: decoded.object, warnings: one_by_one(decoded.strict_errors) })
        }
        _ => Ok(Decoded { object: decoded.object, warnings: Vec::new() }),
    }
}
