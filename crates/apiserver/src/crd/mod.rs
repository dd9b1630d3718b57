//! Custom resources: definitions become served resources, and their objects are held to their schemas.
//!
//! One task per server follows the definitions. It decides which names are accepted, says so in the definition's status,
//! serves established definitions through the registry, publishes their OpenAPI, and removes the objects of definitions
//! that are being deleted.
//!
//! Invariants:
//! - A definition is served as it was last stored; requests that run keep the one they began with.
//! - One definition that cannot be used is logged and skipped; it never stops the others.
//!
//! Follows: `apiextensions-apiserver/pkg/controller/{status,establish,finalizer}`, `pkg/apiserver/customresource_handler.go`.

mod columns;
mod convert;
pub mod definition;
mod formats;
mod names;
mod open_api;
mod prune;
mod rules;
mod schema;
pub(crate) mod stored;
mod strategy;
mod structural;
mod validate;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use apimachinery::Value;
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::openapi::CustomResource;
use apimachinery::schema::Schema;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use sha2::{Digest, Sha256};
use store::Revision;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::columns::{Column, JsonPath};
use self::convert::Converter;
use self::rules::{Problem, Rules};
use self::schema::Node;
use self::strategy::{CustomStrategy, Definition, Version};
use crate::authn::UserInfo;
use crate::cache::{Entry, ResourceCache};
use crate::registry::{Resource, ResourceStorage, Subresource, object_prefix};
use crate::server::ApiServer;
use crate::storage::Storage;
use crate::strategy::{ScalePaths, Strategy};

pub const GROUP: &str = "apiextensions.k8s.io";
pub const RESOURCE: &str = "customresourcedefinitions";
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// How long to wait before a definition that could not be handled is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// Serves what is established already. Called before the server is ready.
pub fn load(server: &ApiServer) -> Served {
    let mut served = Served::new();
    let Some(cache) = definitions(server.storage()) else { return served };
    for entry in cache.snapshot("", 0, |_| true).entries {
        serve(server, &entry, &mut served);
    }
    served
}

/// Follows the definitions until the server stops. `served`: what [`load`] has served already.
pub async fn run(server: ApiServer, mut served: Served) {
    let Some(cache) = definitions(server.storage()) else { return };
    let mut changed = cache.subscribe();
    for live in served.values_mut() {
        // Looked at again: names may have to be accepted.
        live.revision = 0;
    }
    loop {
        changed.borrow_and_update();
        let retry = reconcile_all(&server, &cache, &mut served).await;
        let wait = async {
            match retry {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel-safe: both only wait.
            result = changed.changed() => if result.is_err() { return },
            () = wait => {}
        }
    }
}

fn definitions(storage: &Storage) -> Option<Arc<ResourceCache>> {
    let resource = storage.registry.get(GROUP, "v1", RESOURCE)?;
    resource.storage.as_ref().map(|s| s.cache.clone())
}

/// What is served for each definition.
pub type Served = BTreeMap<String, Live>;

/// What is served for one definition.
pub struct Live {
    /// Of the definition that was looked at last.
    revision: Revision,
    group: String,
    plural: String,
    generation: Generation,
}

/// A time in which a definition says the same about its objects.
#[derive(Clone)]
struct Generation {
    /// `spec`.
    says: Value,
    since: Revision,
    replaced: CancellationToken,
}

/// Looks at every definition; returns whether to look again soon.
async fn reconcile_all(server: &ApiServer, cache: &ResourceCache, served: &mut Served) -> bool {
    let entries = cache.snapshot("", 0, |_| true).entries;
    let mut retry = false;
    let gone: Vec<String> =
        served.keys().filter(|name| !entries.iter().any(|e| e.name() == name.as_str())).cloned().collect();
    for name in gone {
        if let Some(Live { group, plural, generation, .. }) = served.remove(&name) {
            server.storage().registry.set_custom(&group, &plural, Vec::new());
            server.inner().openapi.set(&group, &plural, Vec::new());
            generation.replaced.cancel();
        }
    }
    let all: Vec<Value> = entries.iter().map(|e| e.to_value()).collect();
    for (entry, definition) in entries.iter().zip(&all) {
        // Names that were not accepted may be free now.
        let waits = condition_is(definition, "NamesAccepted", "False");
        if !waits && served.get(entry.name()).is_some_and(|live| live.revision == entry.revision) {
            continue;
        }
        let generation = serve(server, entry, served);
        let result = match definition.at(&["metadata", "deletionTimestamp"]) {
            Some(_) => finalize(server, definition).await,
            None => report(server, definition, &all, &generation).await,
        };
        if let Err(error) = result {
            tracing::warn!(definition = entry.name(), error, "a definition could not be reconciled, will try again");
            if let Some(live) = served.get_mut(entry.name()) {
                live.revision = 0;
            }
            retry = true;
        }
    }
    retry
}

fn condition_is(definition: &Value, kind: &str, status: &str) -> bool {
    definition.array_at(&["status", "conditions"]).iter().any(|c| c["type"] == kind && c["status"] == status)
}

/// Registers an established definition. Watches that began under another schema end.
fn serve(server: &ApiServer, entry: &Arc<Entry>, served: &mut Served) -> Generation {
    let definition = entry.to_value();
    let group = definition.str_at(&["spec", "group"]).to_owned();
    let plural = definition.str_at(&["spec", "names", "plural"]).to_owned();
    let says = definition["spec"].clone();
    let before = served.remove(entry.name()).map(|live| live.generation);
    let (same, old) = match before {
        Some(before) if before.says == says => (Some(before), None),
        other => (None, other),
    };
    let new = || Generation { says, since: entry.revision, replaced: CancellationToken::new() };
    let generation = same.unwrap_or_else(new);
    let live =
        Live { revision: entry.revision, group: group.clone(), plural: plural.clone(), generation: generation.clone() };
    served.insert(entry.name().to_owned(), live);
    if condition_is(&definition, "Established", "True") {
        register(server, &definition, &generation);
    }
    if let Some(old) = old {
        old.replaced.cancel();
    }
    generation
}

fn register(server: &ApiServer, definition: &Value, generation: &Generation) {
    let (group, plural) = (definition.str_at(&["spec", "group"]), definition.str_at(&["spec", "names", "plural"]));
    match build(server, definition, generation) {
        Ok((resources, published)) => {
            server.storage().registry.set_custom(group, plural, resources);
            server.inner().openapi.set(group, plural, published);
        }
        Err(error) => {
            tracing::warn!(
                definition = definition.str_at(&["metadata", "name"]),
                error,
                "skipping a definition that cannot be served"
            );
        }
    }
}

/// Compiles a definition into the resources that it serves.
fn build(
    server: &ApiServer,
    crd: &Value,
    generation: &Generation,
) -> Result<(Vec<Resource>, Vec<CustomResource>), String> {
    let spec = &crd["spec"];
    let accepted = &crd["status"]["acceptedNames"];
    let text = |key: &str| accepted.str_at(&[key]).to_owned();
    let strings = |key: &str| -> Vec<String> {
        accepted.array_at(&[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let group = spec.str_at(&["group"]).to_owned();
    let (plural, kind, list_kind) = (text("plural"), text("kind"), text("listKind"));
    let namespaced = spec.str_at(&["scope"]) == "Namespaced";
    let mut versions = Vec::new();
    for version in spec.array_at(&["versions"]) {
        versions.push(compile_version(crd, version, &group, &kind)?);
    }
    let converter = Converter::new(crd, Arc::downgrade(server.storage()));
    let definition = Arc::new(Definition { group: group.clone(), kind: kind.clone(), namespaced, versions, converter });
    let storage_version = spec.array_at(&["versions"]).iter().find(|v| v["storage"] == true);
    let storage_version = storage_version.map_or("", |v| v.str_at(&["name"]));
    let cache = server.storage().caches.custom(&group, &plural, namespaced);
    let api_version = format!("{group}/{storage_version}");
    // Objects that were stored before the storage version changed are still in the version they were stored in.
    let stored_versions = crd.array_at(&["status", "storedVersions"]).len();
    let stored_has_defaults =
        definition.versions.iter().any(|version| version.name == storage_version && version.node.has_defaults());
    let terminating = condition_is(crd, "Terminating", "True");
    let mut resources = Vec::new();
    let mut published = Vec::new();
    for (index, raw) in spec.array_at(&["versions"]).iter().enumerate() {
        if raw["served"] != true {
            continue;
        }
        let version = &definition.versions[index];
        let gvk = GroupVersionKind::new(group.as_str(), version.name.as_str(), kind.as_str());
        let verbs = ["get", "patch", "update"].map(str::to_owned).to_vec();
        let mut subresources = Vec::new();
        if version.status_subresource {
            subresources.push(Subresource { name: "status".into(), kind: gvk.clone(), verbs: verbs.clone() });
        }
        if version.scale.is_some() {
            let kind = GroupVersionKind::new("autoscaling", "v1", "Scale");
            subresources.push(Subresource { name: "scale".into(), kind, verbs });
        }
        published.push(CustomResource {
            group: group.clone(),
            version: version.name.clone(),
            plural: plural.clone(),
            kind: kind.clone(),
            list_kind: list_kind.clone(),
            namespaced,
            schema: raw.at(&["schema", "openAPIV3Schema"]).cloned(),
            status: version.status_subresource,
            scale: version.scale.is_some(),
            selectable_fields: version.selectable.iter().map(|(name, _)| format!(".{name}")).collect(),
        });
        resources.push(Resource {
            gvr: GroupVersionResource::new(group.as_str(), version.name.as_str(), plural.as_str()),
            gvk: gvk.clone(),
            list_kind: list_kind.clone(),
            singular: text("singular"),
            namespaced,
            short_names: strings("shortNames"),
            categories: strings("categories"),
            // The order in which upstream lists the verbs of custom resources.
            verbs: ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
                .map(str::to_owned)
                .to_vec(),
            subresources,
            storage: Some(ResourceStorage {
                cache: cache.clone(),
                api_version: api_version.clone(),
                prefix: object_prefix(&gvk.api_version(), &kind),
                version_hash: version_hash(&group, storage_version, &kind),
            }),
            strategy: Arc::new(CustomStrategy::new(definition.clone(), index)),
            builtin: false,
            changes_on_read: stored_versions > 1 || stored_has_defaults,
            shaped_since: generation.since,
            terminating,
            replaced: generation.replaced.clone(),
        });
    }
    Ok((resources, published))
}

/// The strategies of all versions of a definition, without a server: its names count as accepted, and a conversion by
/// webhook fails. For tests and fuzzing.
pub fn strategies(crd: &Value) -> Result<Vec<(GroupVersionKind, Arc<dyn Strategy>)>, String> {
    let spec = &crd["spec"];
    let (group, kind) = (spec.str_at(&["group"]), spec.str_at(&["names", "kind"]));
    let versions = spec.array_at(&["versions"]).iter().map(|version| compile_version(crd, version, group, kind));
    let definition = Arc::new(Definition {
        group: group.to_owned(),
        kind: kind.to_owned(),
        namespaced: spec.str_at(&["scope"]) == "Namespaced",
        versions: versions.collect::<Result<_, _>>()?,
        converter: Converter::new(crd, Weak::new()),
    });
    let of_version = |(index, version): (usize, &Version)| {
        let gvk = GroupVersionKind::new(group, version.name.as_str(), kind);
        let strategy: Arc<dyn Strategy> = Arc::new(CustomStrategy::new(definition.clone(), index));
        (gvk, strategy)
    };
    Ok(definition.versions.iter().enumerate().map(of_version).collect())
}

/// Source: `discovery.StorageVersionHash`.
fn version_hash(group: &str, version: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &digest[..8])
}

fn compile_version(crd: &Value, version: &Value, group: &str, kind: &str) -> Result<Version, String> {
    let name = version.str_at(&["name"]).to_owned();
    let empty = Value::object();
    let open_api = version.at(&["schema", "openAPIV3Schema"]).unwrap_or(&empty);
    let mut node = Node::compile(open_api).map_err(|e| e.to_string())?;
    node.preserve_unknown_fields |= crd.at(&["spec", "preserveUnknownFields"]).is_some_and(|v| *v == true);
    let types = Schema::from_structural(open_api, (group, &name, kind)).map_err(|e| e.to_string())?;
    let mut rule_errors = Vec::new();
    let rules = Rules::compile(&node, "", &mut rule_errors);
    let wrong = rule_errors.iter().find_map(|e| match &e.problem {
        Problem::Invalid(_, text) => Some((&e.path, text)),
        // What was accepted once goes on being applied.
        Problem::TooCostly(_) | Problem::TotalTooHigh(_) => None,
    });
    if let Some((path, error)) = wrong {
        tracing::warn!(kind, path, error, "a stored rule does not compile and is not applied");
    }
    let scale = version.at(&["subresources", "scale"]).map(|scale| {
        // Names between dots, whatever else a path may hold.
        let path = |key: &str| {
            let text = scale.str_at(&[key]);
            let text = text.strip_prefix('.').unwrap_or(text);
            (!text.is_empty()).then(|| text.split('.').map(str::to_owned).collect::<Vec<_>>())
        };
        ScalePaths {
            spec_replicas: path("specReplicasPath").unwrap_or_default(),
            status_replicas: path("statusReplicasPath").unwrap_or_default(),
            selector: path("labelSelectorPath"),
        }
    });
    let columns: Vec<Column> = match version.array_at(&["additionalPrinterColumns"]) {
        [] => vec![Column::age()],
        columns => columns.iter().map(Column::new).collect(),
    };
    let selectable = version.array_at(&["selectableFields"]).iter().filter_map(|f| {
        let path = f.str_at(&["jsonPath"]);
        Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path)?))
    });
    let embedded_defaults = node.has_defaults() && node.has_embedded();
    Ok(Version {
        embedded_defaults,
        deprecation: (version["deprecated"] == true).then(|| match version.str_at(&["deprecationWarning"]) {
            "" => default_deprecation(crd, &name, group, kind),
            text => text.to_owned(),
        }),
        name,
        node: Arc::new(node),
        types,
        rules,
        status_subresource: version.at(&["subresources", "status"]).is_some(),
        scale,
        columns,
        selectable: selectable.collect(),
    })
}

/// Names the newest served version that is not deprecated, if there is one of at least the same stability.
fn default_deprecation(crd: &Value, version: &str, group: &str, kind: &str) -> String {
    let newer = crd
        .array_at(&["spec", "versions"])
        .iter()
        .filter(|v| v["served"] == true && v["deprecated"] != true)
        .map(|v| v.str_at(&["name"]))
        .filter(|v| crate::registry::compare_versions(v, version).is_gt())
        .max_by(|a, b| crate::registry::compare_versions(a, b));
    match newer {
        Some(newer) => format!("{group}/{version} {kind} is deprecated; use {group}/{newer} {kind}"),
        None => format!("{group}/{version} {kind} is deprecated"),
    }
}

/// Writes which names are accepted and whether the definition is established, when that is news.
async fn report(server: &ApiServer, definition: &Value, all: &[Value], generation: &Generation) -> Result<(), String> {
    let Some(status) = names::status(definition, all, &crate::handlers::write::now()) else { return Ok(()) };
    let mut update = definition.clone();
    update["status"] = status;
    // Served before it is said to be, so that nobody who waits for the condition comes too early.
    if condition_is(&update, "Established", "True") {
        register(server, &update, generation);
    }
    let path = format!("{PATH}/{}/status", definition.str_at(&["metadata", "name"]));
    match send(server, Method::PUT, &path, Some(&update)).await {
        // Somebody else changed it: that change brings it here again.
        Ok(404 | 409) => Ok(()),
        Ok(code) if code < 300 => Ok(()),
        Ok(code) => Err(format!("the status was refused with code {code}")),
        Err(error) => Err(error),
    }
}

/// Deletes the objects of a definition, then lets the definition go.
async fn finalize(server: &ApiServer, definition: &Value) -> Result<(), String> {
    let finalizers = definition.array_at(&["metadata", "finalizers"]);
    if !finalizers.iter().any(|f| *f == definition::FINALIZER) {
        return Ok(());
    }
    let spec = &definition["spec"];
    let (group, plural) = (spec.str_at(&["group"]), spec.str_at(&["names", "plural"]));
    let cache = server.storage().caches.custom(group, plural, spec.str_at(&["scope"]) == "Namespaced");
    let served = spec.array_at(&["versions"]).iter().find(|v| v["served"] == true);
    if condition_is(definition, "Established", "True")
        && let Some(version) = served
    {
        let mut namespaces: Vec<String> =
            cache.snapshot("", 0, |_| true).entries.iter().map(|e| e.namespace().to_owned()).collect();
        namespaces.dedup();
        for namespace in namespaces {
            let scope = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
            let path = format!("/apis/{group}/{}{scope}/{plural}", version.str_at(&["name"]));
            send(server, Method::DELETE, &path, None).await?;
        }
        if !cache.is_empty() {
            return Err("objects still have finalizers".to_owned());
        }
    }
    let mut update = definition.clone();
    let left: Vec<Value> = finalizers.iter().filter(|f| **f != definition::FINALIZER).cloned().collect();
    update.set_at(&["metadata", "finalizers"], Value::Array(left));
    let path = format!("{PATH}/{}", definition.str_at(&["metadata", "name"]));
    match send(server, Method::PUT, &path, Some(&update)).await {
        Ok(404 | 409) => Ok(()),
        Ok(code) if code < 300 => Ok(()),
        Ok(code) => Err(format!("the finalizer could not be removed: code {code}")),
        Err(error) => Err(error),
    }
}

/// A request of the server to itself; returns the answer's code.
pub(crate) async fn send(server: &ApiServer, method: Method, path: &str, body: Option<&Value>) -> Result<u16, String> {
    let user = UserInfo::new("system:apiserver", [crate::authn::SYSTEM_MASTERS]);
    let body = Full::new(Bytes::from(body.map(Value::to_vec).unwrap_or_default()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::USER_AGENT, "kube-apiserver/alcove")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| e.to_string())?;
    let response = server.service(user).oneshot(request).await.map_err(|e| e.to_string())?;
    let code = response.status().as_u16();
    if code >= 400 && code != 404 && code != 409 {
        let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        tracing::debug!(path, code, body = %String::from_utf8_lossy(&body), "the server refused its own request");
    }
    Ok(code)
}
