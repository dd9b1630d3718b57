//! CustomResourceDefinition as an object: defaults, preparation and validation.
//!
//! Follows: `apiextensions-apiserver/pkg/apis/apiextensions/{v1/defaults.go,validation/validation.go}`. Where all versions
//! are alike upstream moves schema, subresources, columns and selectable fields to the top of the spec before it validates,
//! and its errors say so (`spec.validation`, `spec.subresources`): ours too.

use apimachinery::field::{BadValue, FieldError, FieldPath};
use apimachinery::names;
use apimachinery::{Map, Value, json};

use super::columns::JsonPath;
use super::rules::Rules;
use super::schema::Node;
use super::{names as accepted_names, prune, structural, validate};

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
    let conversion = spec.object_mut("conversion");
    if conversion.get("strategy").and_then(Value::as_str).unwrap_or("").is_empty() {
        conversion.insert("strategy", "None".into());
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
    if name != wanted {
        let path = FieldPath::new("metadata").child("name");
        errors.push(FieldError::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group"));
    }
    validate_spec(definition, &mut errors);
    validate_stored(definition, &mut errors);
    if spec["preserveUnknownFields"] == true {
        let path = FieldPath::new("spec").child("preserveUnknownFields");
        let message =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&path, true, message));
    }
    errors
}

/// Checks a changed definition, metadata aside.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    validate_spec(new, &mut errors);
    if established(old) {
        for path in
            [&["spec", "group"][..], &["spec", "names", "plural"], &["spec", "scope"], &["spec", "names", "kind"]]
        {
            if new.at(path) != old.at(path) {
                let at = FieldPath::new(path[0]).children(&path[1..]);
                errors.push(FieldError::invalid(&at, new.str_at(path), "field is immutable"));
            }
        }
    }
    validate_stored(new, &mut errors);
    errors
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

fn validate_spec(definition: &Value, errors: &mut Vec<FieldError>) {
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
    for (i, _) in versions.iter().enumerate().filter(|(_, v)| !has_schema(v)) {
        let at = path.child("versions").index(i).child("schema").child("openAPIV3Schema");
        errors.push(FieldError::required(&at, ""));
    }
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
        if !same_schema {
            validate_schema(version, &at.child("schema").child("openAPIV3Schema"), errors);
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
            printed(versions),
            "must contain unique version names",
        ));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let message = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(&path.child("versions"), printed(versions), message));
    }
    if let Some(first) = versions.first() {
        let name = first.str_at(&["name"]);
        let problems = names::is_dns1035_label(name);
        if !problems.is_empty() {
            errors.push(FieldError::invalid(&path.child("version"), name, problems.join(",")));
        }
        validate_names(&spec["names"], &path.child("names"), errors);
        if same_schema {
            validate_schema(first, &path.child("validation").child("openAPIV3Schema"), errors);
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
    validate_conversion(&spec["conversion"], &path.child("conversion"), errors);
}

/// Versions as Go prints them in messages, as far as clients can tell.
fn printed(versions: &[Value]) -> BadValue {
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
    let text = format!("[{}]", versions.iter().map(one).collect::<Vec<_>>().join(","));
    BadValue::from(Value::from_slice(text.as_bytes()).unwrap_or_default())
}

fn validate_names(given: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let mut label = |at: FieldPath, name: &str, required: bool| {
        if name.is_empty() {
            if required {
                errors.push(FieldError::required(&at, ""));
            }
            return;
        }
        let problems = names::is_dns1035_label(&name.to_lowercase());
        if !problems.is_empty() {
            errors.push(FieldError::invalid(&at, name, problems.join(",")));
        }
    };
    let plural = given.str_at(&["plural"]);
    label(path.child("plural"), plural, true);
    label(path.child("singular"), given.str_at(&["singular"]), true);
    label(path.child("kind"), given.str_at(&["kind"]), true);
    label(path.child("listKind"), given.str_at(&["listKind"]), true);
    for (i, short) in given.array_at(&["shortNames"]).iter().enumerate() {
        label(path.child("shortNames").index(i), short.as_str().unwrap_or_default(), true);
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

fn validate_schema(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(schema) = version.at(&["schema", "openAPIV3Schema"]) else { return };
    let before = errors.len();
    structural::validate(schema, path, errors);
    if errors.len() > before {
        return;
    }
    let node = match Node::compile(schema) {
        Ok(node) => node,
        Err(bad) => {
            errors.push(FieldError::invalid(&path.child("pattern"), bad.pattern.as_str(), bad.to_string()));
            return;
        }
    };
    validate_defaults(&node, path, errors);
    let mut problems = Vec::new();
    Rules::compile(&node, &mut problems);
    for problem in problems {
        let at = FieldPath::new(&format!("{path}.{}", problem.path)).child(problem.member);
        if problem.too_costly {
            errors.push(FieldError::forbidden(&at, problem.message));
            continue;
        }
        let rule = &problem.rule;
        let optional = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        let mut shown = json!({"Rule": rule.rule, "Message": rule.message, "MessageExpression": rule.message_expression,
            "FieldPath": rule.field_path});
        shown["Reason"] = optional(&rule.reason);
        shown["OptionalOldSelf"] = rule.optional_old_self.map_or(Value::Null, Value::Bool);
        errors.push(FieldError::invalid(&at, BadValue::from(shown), problem.message));
    }
}

/// Defaults must be what the schema allows.
fn validate_defaults(node: &Node, path: &FieldPath, errors: &mut Vec<FieldError>) {
    if let Some(default) = &node.default {
        let at = path.child("default");
        let mut value = default.clone();
        let mut removed = Vec::new();
        prune::prune(&mut value, node, false, "", &mut removed);
        if removed.is_empty() {
            prune::default(&mut value, node);
            let mut problems = Vec::new();
            validate::validate(&value, node, "", &mut problems);
            errors.extend(problems.into_iter().map(|mut e| {
                e.field = match e.field.as_str() {
                    "<nil>" => at.to_string(),
                    below => format!("{at}.{below}"),
                };
                e
            }));
        } else {
            errors.push(FieldError::invalid(&at, BadValue::from(default.clone()), "must not have unknown fields"));
        }
    }
    for (name, child) in &node.properties {
        validate_defaults(child, &path.child("properties").key(name), errors);
    }
    if let super::schema::Additional::Schema(child) = &node.additional {
        validate_defaults(child, &path.child("additionalProperties"), errors);
    }
    if let Some(items) = &node.items {
        validate_defaults(items, &path.child("items"), errors);
    }
}

fn validate_subresources(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    let Some(scale) = version.at(&["subresources", "scale"]) else { return };
    let at = path.child("scale");
    let mut check = |key: &str, roots: &[&str], required: bool| {
        let text = scale.str_at(&[key]);
        let at = at.child(key);
        if text.is_empty() {
            if required {
                errors.push(FieldError::required(&at, ""));
            }
            return;
        }
        let members = text.starts_with('.').then(|| JsonPath::parse(text)).flatten().and_then(|p| p.members());
        let under = |root: &&str| text.starts_with(&format!("{root}."));
        match members {
            None => errors.push(FieldError::invalid(&at, text, "should be a json path")),
            Some(_) if !roots.iter().any(under) => {
                let message = match roots {
                    [root] => format!("should be a json path under {root}"),
                    _ => format!("should be a json path under either {}", roots.join(" or ")),
                };
                errors.push(FieldError::invalid(&at, text, message));
            }
            Some(_) => {}
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
        } else if !json_path.starts_with('.') || JsonPath::parse(json_path).is_none() {
            let message = "must be a simple json path starting with .";
            errors.push(FieldError::invalid(&at.child("JSONPath"), json_path, message));
        }
    }
}

fn validate_selectable(version: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    const MAX: usize = 8;
    let fields = version.array_at(&["selectableFields"]);
    if fields.len() > MAX {
        errors.push(FieldError::too_many(path, fields.len() as i64, MAX as i64));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let at = path.index(i).child("jsonPath");
        let text = field.str_at(&["jsonPath"]);
        if text.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let Some(members) = JsonPath::parse(text).and_then(|p| p.members()) else {
            errors.push(FieldError::invalid(&at, text, "is an invalid path: does not refer to a valid field"));
            continue;
        };
        let mut node = version.at(&["schema", "openAPIV3Schema"]);
        for member in &members {
            node = node.and_then(|n| n.at(&["properties", member]));
        }
        match node {
            None => errors.push(FieldError::invalid(&at, text, "is an invalid path: does not refer to a valid field")),
            Some(_) if members.first().is_some_and(|m| m == "metadata") => {
                errors.push(FieldError::invalid(&at, text, "must not point to fields in metadata"));
            }
            Some(node) if !matches!(node.str_at(&["type"]), "string" | "integer" | "boolean") => {
                let message = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                errors.push(FieldError::invalid(&at, text, message));
            }
            Some(_) => {}
        }
        if seen.contains(&text) {
            errors.push(FieldError::duplicate(&at, text));
        }
        seen.push(text);
    }
}

fn validate_conversion(conversion: &Value, path: &FieldPath, errors: &mut Vec<FieldError>) {
    match conversion.str_at(&["strategy"]) {
        "None" => {
            if conversion.get("webhook").is_some() {
                let message = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(&path.child("webhook").child("clientConfig"), message));
            }
        }
        "Webhook" => {
            if conversion.at(&["webhook", "clientConfig"]).is_none() {
                let message = "required when strategy is set to Webhook";
                errors.push(FieldError::required(&path.child("webhook").child("clientConfig"), message));
            }
            let versions = conversion.array_at(&["webhook", "conversionReviewVersions"]);
            if versions.is_empty() {
                errors.push(FieldError::required(&path.child("conversionReviewVersions"), ""));
            } else if !versions.iter().any(|v| *v == "v1" || *v == "v1beta1") {
                let shown = Value::Array(versions.to_vec());
                let message = "must include at least one of v1, v1beta1";
                errors.push(FieldError::invalid(&path.child("conversionReviewVersions"), shown, message));
            }
        }
        "" => errors.push(FieldError::required(&path.child("strategy"), "")),
        other => errors.push(FieldError::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
}
