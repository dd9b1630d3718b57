//! Paths: what can be done with a resource, by which name, with which parameters.

use crate::json::{Map, Value};
use crate::resources::{self, Resource};
use crate::schema::{self, Scalar, Shape};
use crate::{json, resources::Kind};

use super::{Dialect, Docs, META};

const NAMESPACE_DOC: &str = "object name and auth scope, such as for teams and projects";
const PRETTY_DOC: &str = "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent \
                          indicates a browser or command-line HTTP tool (curl and wget).";

/// Kinds of which a deletion answers with the deleted object.
const DELETED_OBJECT: &[&str] = &[
    "CSIDriver",
    "CSINode",
    "DeviceClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ResourceClaim",
    "ResourceClaimTemplate",
    "ResourceQuota",
    "ResourceSlice",
    "Service",
    "ServiceAccount",
    "StorageClass",
    "VolumeAttachment",
    "VolumeAttributesClass",
];

/// A resource as OpenAPI describes it, built-in or custom.
#[derive(Clone, Debug)]
pub struct ServedResource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Name of the schema of an object and of a list of them.
    pub model: String,
    pub list_model: String,
    /// Objects can be sent as protobuf and patched strategically.
    pub builtin: bool,
    /// Deleting answers with the object.
    pub deletes_object: bool,
    pub subresources: Vec<ServedSubresource>,
}

/// A subresource as OpenAPI describes it.
#[derive(Clone, Debug)]
pub struct ServedSubresource {
    pub name: String,
    pub verbs: Vec<String>,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub model: String,
    /// Requests are passed on; the kind is the options in the query.
    pub connect: bool,
}

impl ServedResource {
    pub fn builtin(r: &'static Resource) -> ServedResource {
        let model =
            |k: Kind| schema::lookup(k.group, k.version, k.kind).map(|t| t.name().to_owned()).unwrap_or_default();
        let list = r.list_kind();
        let list_model = schema::lookup(r.group, r.version, &list).map(|t| t.name().to_owned()).unwrap_or_default();
        let own = r.own_kind();
        ServedResource {
            group: r.group.into(),
            version: r.version.into(),
            plural: r.name.into(),
            kind: r.kind.into(),
            namespaced: r.namespaced,
            verbs: r.verbs.iter().map(|v| v.to_string()).collect(),
            model: model(own),
            list_model,
            builtin: true,
            deletes_object: DELETED_OBJECT.contains(&r.kind),
            subresources: r
                .subresources
                .iter()
                .map(|s| {
                    let kind = s.kind.unwrap_or(own);
                    ServedSubresource {
                        name: s.name.into(),
                        verbs: s.verbs.iter().map(|v| v.to_string()).collect(),
                        group: kind.group.into(),
                        version: kind.version.into(),
                        kind: kind.kind.into(),
                        model: model(kind),
                        connect: kind.kind.starts_with(own.kind) && kind.kind.ends_with("Options"),
                    }
                })
                .collect(),
        }
    }

    /// The schemas that the paths refer to, except those of the meta group.
    pub fn models(&self) -> Vec<String> {
        let mut models = vec![self.model.clone()];
        if self.has("list") {
            models.push(self.list_model.clone());
        }
        models.extend(self.subresources.iter().filter(|s| !s.connect).map(|s| s.model.clone()));
        models
    }

    fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Clone, PartialEq)]
struct Parameter {
    name: String,
    place: &'static str,
    description: String,
    kind: &'static str,
}

struct Operation {
    method: &'static str,
    id: String,
    description: String,
    action: &'static str,
    gvk: (String, String, String),
    parameters: Vec<Parameter>,
    body: Option<Body>,
    /// Status codes with the schema of the answer (`None`: a string).
    responses: Vec<(&'static str, Option<String>)>,
    produces: Vec<&'static str>,
}

enum Body {
    Model(String, bool),
    Patch(bool),
}

/// The paths of a resource and its subresources.
pub fn resource_paths(r: &ServedResource, dialect: Dialect, docs: &Docs) -> Vec<(String, Value)> {
    let base = super::v3_path(&r.group, &r.version);
    let scope = if r.namespaced { "Namespaced" } else { "" };
    let gv = operation_group(&r.group, &r.version);
    let tag = tag(&r.group, &r.version);
    let collection = if r.namespaced {
        format!("/{base}/namespaces/{{namespace}}/{}", r.plural)
    } else {
        format!("/{base}/{}", r.plural)
    };
    let item = format!("{collection}/{{name}}");
    let gvk = (r.group.clone(), r.version.clone(), r.kind.clone());
    let namespace = r.namespaced.then(|| path_parameter("namespace", NAMESPACE_DOC));
    let name = path_parameter("name", &format!("name of the {}", r.kind));
    let pretty = query("pretty", PRETTY_DOC, "string");
    let kind = r.kind.as_str();
    let article = match kind {
        // A plural has no article.
        k if k.ends_with('s') && !k.ends_with("ss") => "",
        k if k.starts_with(['A', 'E', 'I', 'O', 'U']) => "an ",
        _ => "a ",
    };
    let produces = if r.builtin {
        vec!["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"]
    } else {
        vec!["application/json", "application/yaml"]
    };
    let with_streams = |produces: &[&'static str]| {
        let mut all = produces.to_vec();
        all.push("application/json;stream=watch");
        if r.builtin {
            all.push("application/vnd.kubernetes.protobuf;stream=watch");
        }
        all
    };
    let status = || Some(format!("{META}.Status"));
    let own = || Some(r.model.clone());
    let operation = |method, verb: &str, action, description: String| Operation {
        method,
        id: format!("{verb}{gv}{scope}{kind}"),
        description,
        action,
        gvk: gvk.clone(),
        parameters: Vec::new(),
        body: None,
        responses: Vec::new(),
        produces: produces.clone(),
    };
    let listing = format!("list {}objects of kind {kind}", if r.has("watch") { "or watch " } else { "" });
    let list_options = options(docs, "ListOptions");
    let mut out = Vec::new();

    let mut operations = Vec::new();
    if r.has("list") {
        operations.push(Operation {
            parameters: list_options.clone(),
            responses: vec![("200", Some(r.list_model.clone()))],
            produces: with_streams(&produces),
            ..operation("get", "list", "list", listing.clone())
        });
    }
    if r.has("create") {
        operations.push(Operation {
            parameters: options(docs, "CreateOptions"),
            body: Some(Body::Model(r.model.clone(), true)),
            responses: vec![("200", own()), ("201", own()), ("202", own())],
            ..operation("post", "create", "post", format!("create {article}{kind}"))
        });
    }
    if r.has("deletecollection") {
        let mut parameters = options(docs, "DeleteOptions");
        parameters
            .extend(list_options.iter().filter(|p| p.name != "watch" && p.name != "allowWatchBookmarks").cloned());
        operations.push(Operation {
            id: format!("delete{gv}Collection{scope}{kind}"),
            parameters,
            body: Some(Body::Model(format!("{META}.DeleteOptions"), false)),
            responses: vec![("200", status())],
            ..operation("delete", "", "deletecollection", format!("delete collection of {kind}"))
        });
    }
    let at_collection: Vec<Parameter> = namespace.iter().chain([&pretty]).cloned().collect();
    out.extend(path_item(&collection, operations, &at_collection, &tag, dialect));

    let mut operations = Vec::new();
    if r.has("get") {
        operations.push(Operation {
            responses: vec![("200", own())],
            ..operation("get", "read", "get", format!("read the specified {kind}"))
        });
    }
    if r.has("update") {
        operations.push(Operation {
            parameters: options(docs, "UpdateOptions"),
            body: Some(Body::Model(r.model.clone(), true)),
            responses: vec![("200", own()), ("201", own())],
            ..operation("put", "replace", "put", format!("replace the specified {kind}"))
        });
    }
    if r.has("delete") {
        let answer = || if r.deletes_object { own() } else { status() };
        operations.push(Operation {
            parameters: options(docs, "DeleteOptions"),
            body: Some(Body::Model(format!("{META}.DeleteOptions"), false)),
            responses: vec![("200", answer()), ("202", answer())],
            ..operation("delete", "delete", "delete", format!("delete {article}{kind}"))
        });
    }
    if r.has("patch") {
        operations.push(Operation {
            parameters: options(docs, "PatchOptions"),
            body: Some(Body::Patch(r.builtin)),
            responses: vec![("200", own()), ("201", own())],
            ..operation("patch", "patch", "patch", format!("partially update the specified {kind}"))
        });
    }
    let at_item: Vec<Parameter> = [&name].into_iter().chain(&namespace).chain([&pretty]).cloned().collect();
    out.extend(path_item(&item, operations, &at_item, &tag, dialect));

    if r.namespaced && r.has("list") {
        let all = Operation {
            id: format!("list{gv}{kind}ForAllNamespaces"),
            parameters: list_options,
            responses: vec![("200", Some(r.list_model.clone()))],
            produces: with_streams(&produces),
            ..operation("get", "", "list", listing)
        };
        out.extend(path_item(
            &format!("/{base}/{}", r.plural),
            vec![all],
            std::slice::from_ref(&pretty),
            &tag,
            dialect,
        ));
    }

    for s in &r.subresources {
        let suffix = capitalized(&s.name);
        let gvk = (s.group.clone(), s.version.clone(), s.kind.clone());
        let answer = || Some(s.model.clone());
        let sub_name = if s.kind == r.kind || s.connect || s.kind == "Scale" {
            if s.kind == "Scale" {
                path_parameter("name", "name of the Scale")
            } else {
                path_parameter("name", &format!("name of the {}", if s.connect { &s.kind } else { &r.kind }))
            }
        } else {
            path_parameter("name", &format!("name of the {}", s.kind))
        };
        let mut shared: Vec<Parameter> = [&sub_name].into_iter().chain(&namespace).cloned().collect();
        if s.connect {
            shared.extend(type_options(docs, &s.model));
            let mut variants = vec![(format!("{item}/{}", s.name), "", shared.clone())];
            if s.name == "proxy" {
                let mut with_path = shared.clone();
                with_path.push(path_parameter("path", "path to the resource"));
                variants.push((format!("{item}/proxy/{{path}}"), "WithPath", with_path));
            }
            let methods: &[&'static str] = if s.name == "proxy" {
                &["get", "put", "post", "delete", "options", "head", "patch"]
            } else {
                &["get", "post"]
            };
            for (path, end, shared) in variants {
                let operations = methods
                    .iter()
                    .map(|method| Operation {
                        id: format!("connect{gv}{}{scope}{kind}{suffix}{end}", capitalized(method)),
                        gvk: gvk.clone(),
                        responses: vec![("200", None)],
                        produces: vec!["*/*"],
                        ..operation(
                            method,
                            "",
                            "connect",
                            format!("connect {} requests to {} of {kind}", method.to_uppercase(), s.name),
                        )
                    })
                    .collect();
                out.extend(path_item(&path, operations, &shared, &tag, dialect));
            }
            continue;
        }
        shared.push(pretty.clone());
        let mut operations = Vec::new();
        for verb in &s.verbs {
            let (method, prefix, action, description) = match verb.as_str() {
                "get" => ("get", "read", "get", format!("read {} of the specified {kind}", s.name)),
                "update" => ("put", "replace", "put", format!("replace {} of the specified {kind}", s.name)),
                "patch" => ("patch", "patch", "patch", format!("partially update {} of the specified {kind}", s.name)),
                "create" => ("post", "create", "post", format!("create {} of {article}{kind}", s.name)),
                _ => continue,
            };
            let mut op = Operation {
                id: format!("{prefix}{gv}{scope}{kind}{suffix}"),
                gvk: gvk.clone(),
                responses: vec![("200", answer())],
                ..operation(method, "", action, description)
            };
            match verb.as_str() {
                "get" if s.name == "log" => {
                    op.parameters = type_options(docs, "io.k8s.api.core.v1.PodLogOptions");
                    op.responses = vec![("200", None)];
                    op.produces.insert(0, "text/plain");
                }
                "update" => {
                    op.parameters = options(docs, "UpdateOptions");
                    op.body = Some(Body::Model(s.model.clone(), true));
                    op.responses.push(("201", answer()));
                }
                "patch" => {
                    op.parameters = options(docs, "PatchOptions");
                    op.body = Some(Body::Patch(r.builtin));
                    op.responses.push(("201", answer()));
                }
                "create" => {
                    op.parameters = options(docs, "CreateOptions");
                    op.body = Some(Body::Model(s.model.clone(), true));
                    op.responses.extend([("201", answer()), ("202", answer())]);
                }
                _ => {}
            }
            operations.push(op);
        }
        out.extend(path_item(&format!("{item}/{}", s.name), operations, &shared, &tag, dialect));
    }
    out
}

/// What every server answers besides resources: versions, groups, keys. Paths without resources, with the schema of the
/// answer when it is no plain text.
pub(super) struct Fixed {
    pub path: String,
    pub model: Option<String>,
    id: String,
    description: &'static str,
    tag: String,
    produces: &'static [&'static str],
    consumes: bool,
}

const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Fixed {
    /// The resources of a group and version.
    pub fn group_version(group: &str, version: &str) -> Fixed {
        Fixed {
            path: format!("/{}/", super::v3_path(group, version)),
            model: Some(format!("{META}.APIResourceList")),
            id: format!("get{}APIResources", operation_group(group, version)),
            description: "get available resources",
            tag: tag(group, version),
            produces: OBJECTS,
            consumes: true,
        }
    }

    /// A group; the core group's is the list of its versions.
    pub fn group(group: &str) -> Fixed {
        let words = group_words(group).concat();
        let tag = lower_first(&words);
        if group.is_empty() {
            return Fixed {
                path: "/api/".into(),
                model: Some(format!("{META}.APIVersions")),
                id: "getCoreAPIVersions".into(),
                description: "get available API versions",
                tag,
                produces: OBJECTS,
                consumes: true,
            };
        }
        Fixed {
            path: format!("/apis/{group}/"),
            model: Some(format!("{META}.APIGroup")),
            id: format!("get{words}APIGroup"),
            description: "get information of a group",
            tag,
            produces: OBJECTS,
            consumes: true,
        }
    }

    /// The paths that belong to no group.
    pub fn others() -> Vec<Fixed> {
        vec![
            Fixed {
                path: "/apis/".into(),
                model: Some(format!("{META}.APIGroupList")),
                id: "getAPIVersions".into(),
                description: "get available API versions",
                tag: "apis".into(),
                produces: OBJECTS,
                consumes: true,
            },
            Fixed {
                path: "/version/".into(),
                model: Some("io.k8s.apimachinery.pkg.version.Info".into()),
                id: "getCodeVersion".into(),
                description: "get the version information for this server",
                tag: "version".into(),
                produces: &["application/json"],
                consumes: true,
            },
            Fixed {
                path: "/.well-known/openid-configuration/".into(),
                model: None,
                id: "getServiceAccountIssuerOpenIDConfiguration".into(),
                description: "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
                tag: "WellKnown".into(),
                produces: &["application/json"],
                consumes: false,
            },
            Fixed {
                path: "/openid/v1/jwks/".into(),
                model: None,
                id: "getServiceAccountIssuerOpenIDKeyset".into(),
                description: "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
                tag: "openid".into(),
                produces: &["application/jwk-set+json"],
                consumes: false,
            },
        ]
    }

    /// The path item.
    pub fn item(&self, dialect: Dialect) -> Value {
        let mut op = json!({"operationId": self.id, "description": self.description, "tags": [self.tag]});
        let model = self.model.as_ref().map(|m| dialect.reference(m));
        op["responses"] = answers(&[("200", model)], self.produces, dialect);
        if dialect == Dialect::V2 {
            op["produces"] = json!(self.produces);
            if self.consumes {
                op["consumes"] = json!(self.produces);
            }
            op["schemes"] = json!(["https"]);
        }
        let mut item = Value::object();
        item["get"] = op;
        item
    }
}

/// The path item that lists the resources of a group and version, for documents of custom resources.
pub fn discovery_path(group: &str, version: &str, dialect: Dialect) -> (String, Value) {
    let fixed = Fixed::group_version(group, version);
    let item = fixed.item(dialect);
    (fixed.path, item)
}

fn path_item(
    path: &str,
    operations: Vec<Operation>,
    shared: &[Parameter],
    tag: &str,
    dialect: Dialect,
) -> Option<(String, Value)> {
    if operations.is_empty() {
        return None;
    }
    let mut item = Map::new();
    for op in &operations {
        item.insert(op.method, op_value(op, tag, dialect));
    }
    let mut shared: Vec<&Parameter> = shared.iter().collect();
    shared.sort_by(|a, b| a.name.cmp(&b.name));
    item.insert("parameters", shared.iter().map(|p| parameter(p, dialect)).collect::<Vec<_>>().into());
    Some((path.to_owned(), Value::Object(item)))
}

fn op_value(op: &Operation, tag: &str, dialect: Dialect) -> Value {
    let mut parameters: Vec<&Parameter> = op.parameters.iter().collect();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    let mut parameters: Vec<Value> = parameters.into_iter().map(|p| parameter(p, dialect)).collect();
    let (group, version, kind) = &op.gvk;
    let mut out = json!({
        "operationId": op.id,
        "description": op.description,
        "tags": [tag],
        "x-kubernetes-action": op.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    let responses: Vec<(&str, Option<String>)> =
        op.responses.iter().map(|(code, m)| (*code, m.as_ref().map(|m| dialect.reference(m)))).collect();
    out["responses"] = answers(&responses, &op.produces, dialect);
    if let Some(body) = &op.body {
        let (model, required, types): (String, bool, Vec<&str>) = match body {
            Body::Model(model, required) => (model.clone(), *required, vec!["*/*"]),
            Body::Patch(builtin) => {
                let mut types = vec!["application/json-patch+json", "application/merge-patch+json"];
                if *builtin {
                    types.push("application/strategic-merge-patch+json");
                }
                types.push("application/apply-patch+yaml");
                (format!("{META}.Patch"), true, types)
            }
        };
        let reference = dialect.reference(&model);
        match dialect {
            Dialect::V3 => {
                let mut content = Map::new();
                for t in &types {
                    content.insert(*t, json!({"schema": {"$ref": reference}}));
                }
                out["requestBody"]["content"] = Value::Object(content);
                if required {
                    out["requestBody"]["required"] = true.into();
                }
            }
            Dialect::V2 => {
                let mut p = json!({"in": "body", "name": "body", "schema": {"$ref": reference}});
                if required {
                    p["required"] = true.into();
                }
                parameters.insert(0, p);
                out["consumes"] = json!(types);
            }
        }
    }
    if dialect == Dialect::V2 {
        if out.get("consumes").is_none() {
            out["consumes"] = json!(["*/*"]);
        }
        out["produces"] = json!(op.produces);
        out["schemes"] = json!(["https"]);
    }
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    out
}

/// Answers by status code; an answer without schema is a string.
fn answers(responses: &[(&str, Option<String>)], produces: &[&str], dialect: Dialect) -> Value {
    let mut out = json!({"401": {"description": "Unauthorized"}});
    for (code, reference) in responses {
        let description = match *code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let schema = match reference {
            Some(r) => json!({"$ref": r}),
            None => json!({"type": "string"}),
        };
        let mut answer = json!({"description": description});
        match dialect {
            Dialect::V2 => answer["schema"] = schema,
            Dialect::V3 => {
                let mut content = Map::new();
                for t in produces {
                    let mut one = Value::object();
                    one["schema"] = schema.clone();
                    content.insert(*t, one);
                }
                answer["content"] = Value::Object(content);
            }
        }
        out[*code] = answer;
    }
    out
}

fn parameter(p: &Parameter, dialect: Dialect) -> Value {
    let mut out = json!({"name": p.name, "in": p.place});
    if !p.description.is_empty() {
        out["description"] = p.description.as_str().into();
    }
    if p.place == "path" {
        out["required"] = true.into();
    }
    match dialect {
        Dialect::V3 => out["schema"] = json!({"type": p.kind, "uniqueItems": true}),
        Dialect::V2 => {
            out["type"] = p.kind.into();
            out["uniqueItems"] = true.into();
        }
    }
    out
}

fn path_parameter(name: &str, description: &str) -> Parameter {
    Parameter { name: name.into(), place: "path", description: description.into(), kind: "string" }
}

fn query(name: &str, description: &str, kind: &'static str) -> Parameter {
    Parameter { name: name.into(), place: "query", description: description.into(), kind }
}

/// The query parameters of an options type of the meta group.
fn options(docs: &Docs, name: &str) -> Vec<Parameter> {
    type_options(docs, &format!("{META}.{name}"))
}

fn type_options(docs: &Docs, model: &str) -> Vec<Parameter> {
    let Some(ty) = schema::lookup_name(model) else { return Vec::new() };
    ty.fields()
        .filter(|f| !matches!(f.name(), "apiVersion" | "kind"))
        .filter_map(|f| {
            let ty = match f.ty().shape() {
                Shape::List(_) => f.ty().element()?,
                _ => f.ty(),
            };
            let kind = match ty.scalar()? {
                Scalar::String => "string",
                Scalar::Bool => "boolean",
                Scalar::Int32 | Scalar::Int64 => "integer",
                _ => return None,
            };
            Some(query(f.name(), docs.of_field(model, f.name()), kind))
        })
        .collect()
}

/// `AppsV1`, `RbacAuthorizationV1`, `CoreV1`.
fn operation_group(group: &str, version: &str) -> String {
    format!("{}{}", group_words(group).concat(), capitalized(version))
}

/// `apps_v1`, `rbacAuthorization_v1`, `core_v1`.
fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", lower_first(&group_words(group).concat()))
}

fn lower_first(words: &str) -> String {
    let mut chars = words.chars();
    chars.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default() + chars.as_str()
}

fn group_words(group: &str) -> Vec<String> {
    if group.is_empty() {
        return vec!["Core".into()];
    }
    let short = if resources::group(group).is_some() || group.ends_with(".k8s.io") {
        group.strip_suffix(".k8s.io").unwrap_or(group)
    } else {
        group
    };
    short.split('.').map(capitalized).collect()
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default() + chars.as_str()
}
