//! CustomResourceDefinition as an object: defaults, preparation and validation.
//!
//! Follows: `apiextensions-apiserver/pkg/apis/apiextensions/{v1/defaults.go,validation/validation.go}`. Where all versions
//! are alike upstream moves schema, subresources, columns and selectable fields to the top of the spec before it validates,
//! and its errors say so (`spec.validation`, `spec.subresources`): ours too.

use apimachinery::field::{BadValue, FieldError, FieldPath};
use apimachinery::text::is_print;
use apimachinery::{Map, Value, json, kinds, names};

use super::formats;
use super::names as accepted_names;
use super::open_api::{field_of_path, validate_schema};
use crate::aggregator::trust::check_bundle;

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Fills in what a client may leave out.
pub fn default(definition: &mut Value) {
    let spec = definition.make_object().object_mut("spec");
    if let Some(Value::Object(names)) = spec.get_mut("names") {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or("").to_owned();
        if !kind.is_empty() {
            let unset = |names: &Map, key: &str| names.get(key).and_then(Value::as_str).unwrap_or("").is_empty();
            if unset(names, "singular") {
                names.insert("singular", kind.to_lowercase().into());
            }
            if unset(names, "listKind") {
                names.insert("listKind", format!("{kind}List").into());
            }
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion", json!({"strategy": "None"}));
    }
    if let Some(service) = spec.get_mut("conversion").and_then(|c| c.at_mut(&["webhook", "clientConfig", "service"])) {
        service.make_object().get_or_insert_with("port", || 443.into());
    }
}

/// The status of a new definition.
pub fn prepare_create(definition: &mut Value) {
    let versions = definition.array_at(&["spec", "versions"]);
    let stored: Vec<Value> = versions.iter().filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
    let mut status = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}});
    status["storedVersions"] = match stored.first() {
        Some(first) => Value::Array(vec![first.clone()]),
        None => Value::Null,
    };
    definition["status"] = status;
    drop_false_preserve(definition);
}

fn drop_false_preserve(definition: &mut Value) {
    if definition.at(&["spec", "preserveUnknownFields"]).is_some_and(|v| *v == false) {
        definition.remove_at(&["spec", "preserveUnknownFields"]);
    }
}

/// A version that becomes the storage version is a stored one from now on.
pub fn prepare_update(new: &mut Value) {
    drop_false_preserve(new);
    let versions = new.array_at(&["spec", "versions"]);
    let Some(storage) = versions.iter().find(|v| v["storage"] == true).map(|v| v["name"].clone()) else { return };
    let mut stored = new.array_at(&["status", "storedVersions"]).to_vec();
    if !stored.contains(&storage) {
        stored.push(storage);
        new.set_at(&["status", "storedVersions"], Value::Array(stored));
    }
}

/// A delete first asks for the objects to be removed.
pub fn prepare_delete(definition: &mut Value, now: &str) {
    if definition.at(&["metadata", "deletionTimestamp"]).is_some() {
        return;
    }
    let mut finalizers = definition.array_at(&["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|f| *f == FINALIZER) {
        finalizers.push(FINALIZER.into());
        definition.set_at(&["metadata", "finalizers"], Value::Array(finalizers));
    }
    let mut conditions = definition.array_at(&["status", "conditions"]).to_vec();
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    accepted_names::set_condition(&mut conditions, "Terminating", "True", "InstanceDeletionPending", message, now);
    definition.set_at(&["status", "conditions"], Value::Array(conditions));
}

fn established(definition: &Value) -> bool {
    definition.array_at(&["status", "conditions"]).iter().any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Checks a new definition, metadata aside.
pub fn validate_create(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &definition["spec"];
    let wanted = format!("{}.{}", spec.str_at(&["names", "plural"]), spec.str_at(&["group"]));
    let name = definition.str_at(&["metadata", "name"]);
    for (key, name) in [("generateName", definition.str_at(&["metadata", "generateName"])), ("name", name)] {
        if !name.is_empty() && name != wanted {
            let path = FieldPath::new("metadata").child(key);
            errors.push(FieldError::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group"));
        }
    }
    validate_spec(definition, None, &mut errors);
    validate_stored(definition, &mut errors);
    validate_approval(definition, None, &mut errors);
    validate_preserve(definition, None, &mut errors);
    errors
}

/// Checks a changed definition, metadata aside.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    validate_spec(new, Some(old), &mut errors);
    let always = [&["spec", "group"][..], &["spec", "names", "plural"]];
    let once_established = [&["spec", "scope"][..], &["spec", "names", "kind"]];
    let established = established(old);
    for path in once_established.into_iter().filter(|_| established).chain(always) {
        if new.at(path) != old.at(path) {
            let at = FieldPath::new(path[0]).children(&path[1..]);
            errors.push(FieldError::invalid(&at, new.str_at(path), "field is immutable"));
        }
    }
    validate_stored(new, &mut errors);
    validate_approval(new, Some(old), &mut errors);
    validate_preserve(new, Some(old), &mut errors);
    errors
}

fn preserves(definition: &Value) -> bool {
    definition.at(&["spec", "preserveUnknownFields"]).is_some_and(|v| *v == true)
}

fn validate_preserve(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if preserves(new) && !old.is_some_and(preserves) {
        let path = FieldPath::new("spec").child("preserveUnknownFields");
        let message =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&path, true, message));
    }
}

const APPROVED: &str = "api-approved.kubernetes.io";

#[derive(Clone, Copy, PartialEq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval(definition: &Value) -> Approval {
    let text = definition.str_at(&["metadata", "annotations", APPROVED]);
    let is_url = || {
        let (scheme, rest) = text.split_once("://")?;
        let host = rest.split(['/', '?', '#']).next()?;
        let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            && !text.contains(|c: char| c.is_ascii_control() || c == ' ');
        (valid && !host.is_empty()).then_some(())
    };
    match text {
        "" => Approval::Missing,
        text if text.starts_with("unapproved") => Approval::Bypassed,
        _ if is_url().is_some() => Approval::Approved,
        _ => Approval::Invalid,
    }
}

fn is_protected(definition: &Value) -> bool {
    let group = definition.str_at(&["spec", "group"]);
    let protected = ["k8s.io", "kubernetes.io"];
    protected.iter().any(|p| group.strip_suffix(p).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// What is to say about an approval.
fn approval_text(state: Approval, given: &str) -> String {
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match state {
        Approval::Missing => format!("protected groups must have approval annotation {APPROVED:?}, {see}"),
        Approval::Invalid => format!(
            "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"
        ),
        Approval::Bypassed => format!("not approved: {given:?}"),
        Approval::Approved => format!("approved in {given}"),
    }
}

/// Status, reason and message of the condition `KubernetesAPIApprovalPolicyConformant`, for groups of the community.
///
/// Source: `apiextensions-apiserver/pkg/controller/apiapproval`.
pub fn approval_condition(definition: &Value) -> Option<(&'static str, &'static str, String)> {
    if !is_protected(definition) {
        return None;
    }
    let state = approval(definition);
    let (status, reason) = match state {
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
    };
    Some((status, reason, approval_text(state, definition.str_at(&["metadata", "annotations", APPROVED]))))
}

/// Groups of the community need a word of approval.
///
/// Source: `apiextensions-apiserver/pkg/apihelpers` (`GetAPIApprovalState`).
fn validate_approval(new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if !is_protected(new) {
        return;
    }
    let state = approval(new);
    if old.is_some_and(|old| approval(old) == state) {
        return;
    }
    let path = FieldPath::new("metadata").child("annotations").key(APPROVED);
    let given = new.str_at(&["metadata", "annotations", APPROVED]);
    match state {
        Approval::Missing => errors.push(FieldError::required(&path, approval_text(state, given))),
        Approval::Invalid => errors.push(FieldError::invalid(&path, given, approval_text(state, given))),
        Approval::Bypassed | Approval::Approved => {}
    }
}

fn validate_stored(definition: &Value, errors: &mut Vec<FieldError>) {
    let path = FieldPath::new("status").child("storedVersions");
    let stored = definition.array_at(&["status", "storedVersions"]);
    if stored.is_empty() {
        errors.push(FieldError::invalid(&path, Value::Null, "must have at least one stored version"));
        return;
    }
    let versions = definition.array_at(&["spec", "versions"]);
    for version in versions.iter().filter(|v| v["storage"] == true && !stored.contains(&v["name"])) {
        let message = format!("must have the storage version {}", version.str_at(&["name"]));
        errors.push(FieldError::invalid(&path, Value::Array(stored.to_vec()), message));
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v["name"] == *name) {
            let v = name.as_str().unwrap_or_default();
            let message = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions"
            );
            errors.push(FieldError::invalid(&path.index(i), v, message));
        }
    }
}

/// Whether all versions agree in what upstream then moves to the top.
fn hoisted(versions: &[Value], keys: &[&str]) -> bool {
    versions.windows(2).all(|w| keys.iter().all(|k| w[0].get(k) == w[1].get(k)))
}

fn validate_spec(definition: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &definition["spec"];
    let path = FieldPath::new("spec");
    let group = spec.str_at(&["group"]);
    let group_path = path.child("group");
    if group.is_empty() {
        errors.push(FieldError::required(&group_path, ""));
    } else {
        match names::is_dns1123_subdomain(group) {
            problems if !problems.is_empty() => {
                errors.push(FieldError::invalid(&group_path, group, problems.join(",")))
            }
            _ if !group.contains('.') => {
                errors.push(FieldError::invalid(&group_path, group, "should be a domain with at least one dot"));
            }
            _ => {}
        }
    }
    match spec.str_at(&["scope"]) {
        "" => errors.push(FieldError::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(FieldError::not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"])),
    }
    let versions = spec.array_at(&["versions"]);
    let has_schema = |v: &Value| v.at(&["schema", "openAPIV3Schema"]).is_some_and(Value::is_object);
    let preserves = preserves(definition);
    // What was stored without a schema may stay so, unless it would be pruned to nothing.
    let always = old.is_none_or(|old| old.array_at(&["spec", "versions"]).iter().all(has_schema));
    for (i, version) in versions.iter().enumerate().filter(|(_, v)| !has_schema(v)) {
        let at = path.child("versions").index(i).child("schema").child("openAPIV3Schema");
        if always {
            errors.push(FieldError::required(&at, ""));
        } else if !preserves && version["served"] == true {
            errors.push(FieldError::required(&at, "because otherwise all fields are pruned"));
        }
    }
    if preserves && versions.iter().any(|v| has_defaults(&v["schema"]["openAPIV3Schema"])) {
        let text = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid(&path.child("preserveUnknownFields"), true, text));
    }
    let status = |v: &Value| v.at(&["subresources", "status"]).is_some_and(Value::is_object);
    let any_status = versions.iter().any(status);
    let unchanged = |v: &Value| {
        let before = old.map_or(&[][..], |old| old.array_at(&["spec", "versions"]));
        before.iter().any(|b| b["name"] == v["name"] && b.get("schema") == v.get("schema"))
    };
    let schema = |v: &Value, path: &FieldPath, status: bool, errors: &mut Vec<FieldError>| {
        if let Some(schema) = v.at(&["schema", "openAPIV3Schema"]).filter(|s| s.is_object()) {
            validate_schema(schema, &path.child("openAPIV3Schema"), status, unchanged(v), errors);
        }
    };
    let same_schema = hoisted(versions, &["schema"]);
    let same_subresources = hoisted(versions, &["subresources"]);
    let same_columns = hoisted(versions, &["additionalPrinterColumns"]);
    let same_selectable = hoisted(versions, &["selectableFields"]);
    for (i, version) in versions.iter().enumerate() {
        let at = path.child("versions").index(i);
        let name = version.str_at(&["name"]);
        let problems = names::is_dns1035_label(name);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(&at.child("name"), name, problems.join(",")));
        }
        for problem in deprecation_problems(version) {
            let warning = version["deprecationWarning"].as_str().unwrap_or_default();
            errors.push(FieldError::invalid(&at.child("deprecationWarning"), warning, problem));
        }
        if !same_schema {
            schema(version, &at.child("schema"), status(version), errors);
        }
        if !same_subresources {
            validate_subresources(version, &at.child("subresources"), errors);
        }
        if !same_columns {
            validate_columns(version, &at.child("additionalPrinterColumns"), errors);
        }
        if !same_selectable {
            validate_selectable(version, &at.child("selectableFields"), errors);
        }
    }
    let mut seen: Vec<&Value> = Vec::new();
    let unique = versions.iter().all(|v| {
        let fresh = !seen.contains(&&v["name"]);
        seen.push(&v["name"]);
        fresh
    });
    if !unique {
        errors.push(FieldError::invalid(
            &path.child("versions"),
            printed(&spec["versions"]),
            "must contain unique version names",
        ));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let message = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(&path.child("versions"), printed(&spec["versions"]), message));
    }
    let first = versions.first();
    let name = first.map_or("", |v| v.str_at(&["name"]));
    let problems = names::is_dns1035_label(name);
    if !name.is_empty() && !problems.is_empty() {
        errors.push(FieldError::invalid(&path.child("version"), name, problems.join(",")));
    }
    validate_names(&spec["names"], &path.child("names"), errors);
    if let Some(first) = first {
        if same_schema {
            schema(first, &path.child("validation"), any_status, errors);
        }
        if same_subresources {
            validate_subresources(first, &path.child("subresources"), errors);
        }
        if same_columns {
            validate_columns(first, &path.child("additionalPrinterColumns"), errors);
        }
        if same_selectable {
            validate_selectable(first, &path.child("selectableFields"), errors);
        }
    }
    let strategy = spec.str_at(&["conversion", "strategy"]);
    if preserves && !strategy.is_empty() && strategy != "None" {
        let at = path.child("conversion").child("strategy");
        errors.push(FieldError::invalid(&at, strategy, "must be None if spec.preserveUnknownFields is true"));
    }
    validate_conversion(&spec["conversion"], old, &path.child("conversion"), errors);
}

/// Warnings about formats that mean nothing here, those of `old` aside.
pub fn format_warnings(definition: &Value, old: Option<&Value>) -> Vec<String> {
    let all = |definition: &Value| {
        let mut found = Vec::new();
        for version in definition.array_at(&["spec", "versions"]) {
            unknown_formats(&version["schema"]["openAPIV3Schema"], 0, &mut found);
        }
        found
    };
    let before = old.map(all).unwrap_or_default();
    let new = all(definition).into_iter().filter(|format| !before.contains(format));
    new.map(|format| format!("unrecognized format {format:?}")).collect()
}

fn unknown_formats(schema: &Value, depth: usize, found: &mut Vec<String>) {
    const DEPTH_MAX: usize = 64;
    if !schema.is_object() || depth > DEPTH_MAX {
        return;
    }
    let format = schema.str_at(&["format"]);
    if !format.is_empty() && !formats::is_known(schema.str_at(&["type"]), format) {
        found.push(format.to_owned());
    }
    for key in ["items", "not", "additionalProperties"] {
        unknown_formats(&schema[key], depth + 1, found);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        schema.array_at(&[key]).iter().for_each(|s| unknown_formats(s, depth + 1, found));
    }
    for (_, property) in schema["properties"].as_object().into_iter().flat_map(|m| m.iter()) {
        unknown_formats(property, depth + 1, found);
    }
}

fn has_defaults(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            schema.get("default").is_some_and(|d| !d.is_null())
                || members.iter().any(|(key, member)| {
                    !matches!(key.as_str(), "default" | "enum" | "example") && has_defaults(member)
                })
        }
        Value::Array(list) => list.iter().any(has_defaults),
        _ => false,
    }
}

/// What is wrong with the text that deprecates a version.
fn deprecation_problems(version: &Value) -> Vec<String> {
    let Some(text) = version["deprecationWarning"].as_str() else { return Vec::new() };
    if version["deprecated"] != true {
        return vec!["can only be set for deprecated versions".to_owned()];
    }
    let mut problems = Vec::new();
    if text.len() > 256 {
        problems.push("must be <= 256 characters long".to_owned());
    }
    if text.is_empty() {
        problems.push("must not be an empty string".to_owned());
    }
    if let Some((i, _)) = text.char_indices().find(|(_, c)| !is_print(*c)) {
        problems
            .push(format!("must only contain printable UTF-8 characters; non-printable character found at index {i}"));
    }
    problems
}

/// Versions as Go prints them in messages, as far as clients can tell.
fn printed(given: &Value) -> BadValue {
    let Some(versions) = given.as_array() else { return BadValue::Printed("null".to_owned()) };
    let one = |v: &Value| {
        let flag = |key: &str| v[key] == true;
        format!(
            "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":null,\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":null,\"SelectableFields\":null}}",
            Value::from(v.str_at(&["name"])),
            flag("served"),
            flag("storage"),
            flag("deprecated")
        )
    };
    BadValue::Printed(format!("[{}]", versions.iter().map(one).collect::<Vec<_>>().join(",")))
}

fn validate_names(given: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    for key in ["plural", "singular", "kind", "listKind"] {
        if given.str_at(&[key]).is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    }
    let mut label = |at: FieldPath, name: &str, mixed_case: bool| {
        let checked = if mixed_case { name.to_lowercase() } else { name.to_owned() };
        let problems = names::is_dns1035_label(&checked);
        if !problems.is_empty() {
            let prefix = if mixed_case { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(FieldError::invalid(&at, name, format!("{prefix}{}", problems.join(","))));
        }
    };
    for (key, mixed_case) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let name = given.str_at(&[key]);
        if !name.is_empty() {
            label(path.child(key), name, mixed_case);
        }
    }
    for (i, short) in given.array_at(&["shortNames"]).iter().enumerate() {
        label(path.child("shortNames").index(i), short.as_str().unwrap_or_default(), false);
    }
    let (kind, list_kind) = (given.str_at(&["kind"]), given.str_at(&["listKind"]));
    if !kind.is_empty() && kind == list_kind {
        let message = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(&path.child("listKind"), list_kind, message));
    }
    for (i, category) in given.array_at(&["categories"]).iter().enumerate() {
        let category = category.as_str().unwrap_or_default();
        let problems = names::is_dns1035_label(category);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(&path.child("categories").index(i), category, problems.join(",")));
        }
    }
}

fn validate_subresources(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(scale) = version.at(&["subresources", "scale"]) else { return };
    let at = path.child("scale");
    let mut check = |key: &str, roots: &[&str], required: bool| {
        let text = scale.str_at(&[key]);
        let at = at.child(key);
        let under = |root: &&str| text.starts_with(&format!("{root}."));
        if text.is_empty() {
            if required {
                errors.push(FieldError::required(&at, ""));
            }
        } else if !text.starts_with('.') {
            errors.push(FieldError::invalid(&at, text, "must be a simple json path starting with ."));
        } else if !roots.iter().any(under) {
            let message = match roots {
                [root] => format!("should be a json path under {root}"),
                _ => format!("should be a json path under either {}", roots.join(" or ")),
            };
            errors.push(FieldError::invalid(&at, text, message));
        }
    };
    check("specReplicasPath", &[".spec"], true);
    check("statusReplicasPath", &[".status"], true);
    check("labelSelectorPath", &[".spec", ".status"], false);
}

fn validate_columns(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for (i, column) in version.array_at(&["additionalPrinterColumns"]).iter().enumerate() {
        let at = path.index(i);
        let text = |key: &str| column.str_at(&[key]);
        if text("name").is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        }
        if text("type").is_empty() {
            let message = format!("must be one of {}", TYPES.join(","));
            errors.push(FieldError::required(&at.child("type"), message));
        } else if !TYPES.contains(&text("type")) {
            let message = format!("must be one of {}", TYPES.join(","));
            errors.push(FieldError::invalid(&at.child("type"), text("type"), message));
        }
        if !text("format").is_empty() && !FORMATS.contains(&text("format")) {
            let message = format!("must be one of {}", FORMATS.join(","));
            errors.push(FieldError::invalid(&at.child("format"), text("format"), message));
        }
        let json_path = text("jsonPath");
        if json_path.is_empty() {
            errors.push(FieldError::required(&at.child("JSONPath"), ""));
        } else if !json_path.starts_with('.') {
            let message = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(&at.child("JSONPath"), json_path, message));
        }
    }
}

fn validate_selectable(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    const MAX: usize = 8;
    let Some(schema) = version.at(&["schema", "openAPIV3Schema"]) else { return };
    let mut seen: Vec<String> = Vec::new();
    for (i, field) in version.array_at(&["selectableFields"]).iter().enumerate() {
        let at = path.index(i).child("jsonPath");
        let text = field.str_at(&["jsonPath"]);
        if text.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let (shown, node) = match field_of_path(schema, text, false) {
            Ok(found) => found,
            Err(reason) => {
                errors.push(FieldError::invalid(&at, text, format!("is an invalid path: {reason}")));
                continue;
            }
        };
        if shown.split(['.', '[']).next() == Some("metadata") {
            errors.push(FieldError::invalid(&at, text, "must not point to fields in metadata"));
        }
        if !matches!(node.str_at(&["type"]), "string" | "integer" | "boolean") {
            let message = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(&at, text, message));
        }
        if seen.contains(&shown) {
            errors.push(FieldError::duplicate(&at, text));
        } else {
            seen.push(shown);
        }
    }
    if seen.len() > MAX {
        errors.push(FieldError::too_many(path, seen.len() as i64, MAX as i64));
    }
}

fn ca_bundle_problem(bundle: &str) -> Result<(), String> {
    if bundle.is_empty() { Ok(()) } else { check_bundle(bundle).map_err(|error| error.to_string()) }
}

/// Is the conversion webhook's bundle one that no authority can be taken from? Such a definition is not established.
pub fn has_broken_bundle(definition: &Value) -> bool {
    ca_bundle_problem(definition.str_at(&["spec", "conversion", "webhook", "clientConfig", "caBundle"])).is_err()
}

/// Until a definition is established, and while its bundle is broken anyway.
fn may_have_broken_bundle(old: Option<&Value>) -> bool {
    old.is_none_or(|old| {
        let mut conditions = old.array_at(&["status", "conditions"]).iter();
        !conditions.any(|c| c["type"] == "Established" && c["status"] == "True") || has_broken_bundle(old)
    })
}

/// Names and paths are those of upstream's internal version.
fn validate_conversion(conversion: &Value, old: Option<&Value>, path: &FieldPath, errors: &mut Vec<FieldError>) {
    const ACCEPTED: [&str; 2] = ["v1", "v1beta1"];
    let strategy = conversion.str_at(&["strategy"]);
    match strategy {
        "None" | "Webhook" => {}
        "" => errors.push(FieldError::required(&path.child("strategy"), "")),
        other => errors.push(FieldError::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
    let config = conversion.at(&["webhook", "clientConfig"]).filter(|c| c.is_object());
    let config_path = path.child("webhookClientConfig");
    let versions = conversion.array_at(&["webhook", "conversionReviewVersions"]);
    let versions_path = path.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let message = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.push(FieldError::forbidden(&config_path, message));
        }
        if !versions.is_empty() {
            errors.push(FieldError::forbidden(&versions_path, message));
        }
        return;
    }
    match config {
        None => errors.push(FieldError::required(&config_path, "required when strategy is set to Webhook")),
        Some(config) => {
            errors.extend(kinds::validate_webhook_client_config(config, &config_path));
            let bundle = config.str_at(&["caBundle"]);
            if let (false, Err(problem)) = (may_have_broken_bundle(old), ca_bundle_problem(bundle)) {
                errors.push(FieldError::invalid(&config_path.child("caBundle"), bundle, problem));
            }
        }
    }
    if versions.is_empty() {
        errors.push(FieldError::required(&versions_path, ""));
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        let text = version.as_str().unwrap_or_default();
        if versions[..i].contains(version) {
            errors.push(FieldError::invalid(&versions_path.index(i), text, "duplicate version"));
            continue;
        }
        for problem in names::is_dns1035_label(text) {
            errors.push(FieldError::invalid(&versions_path.index(i), text, problem));
        }
    }
    let accepted = |versions: &[Value]| versions.iter().any(|v| ACCEPTED.iter().any(|a| *v == *a));
    // What was accepted when fewer versions were known stays.
    let required = old.is_none_or(|old| {
        let before = old.array_at(&["spec", "conversion", "webhook", "conversionReviewVersions"]);
        before.is_empty() || accepted(before)
    });
    if required && !accepted(versions) {
        let message = format!("must include at least one of {}", ACCEPTED.join(", "));
        errors.push(FieldError::invalid(&versions_path, Value::Array(versions.to_vec()), message));
    }
}
