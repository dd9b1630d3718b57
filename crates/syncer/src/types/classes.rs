//! Classes: tenants' own on the host, and the host's for tenants.

use apimachinery::{Map, Value, json};

use crate::kind::{self, Kind};
use crate::metadata::{self, MetadataRules, string_map};
use crate::plan::{Action, LastSeen};
use crate::settings::{Import, ImportMapping};
use crate::types::{Context, Desired, Refusal, ToHost, object};

const PRIORITY_MAX: i64 = 1_000_000_000;
/// Which class is the default is each cluster's own business.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// PriorityClasses or StorageClasses that tenants make.
pub enum OwnClasses {
    Priority,
    Storage,
}

impl OwnClasses {
    fn fields(&self, class: &Value, host: &mut Value) {
        let Some(map) = class.as_object() else { return };
        for (key, value) in map.iter() {
            if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "globalDefault") {
                host[key.as_str()] = value.clone();
            }
        }
        if let OwnClasses::Priority = self {
            host["globalDefault"] = false.into();
            if class["value"].as_i64().is_some_and(|v| v > PRIORITY_MAX) {
                host["value"] = PRIORITY_MAX.into();
            }
        }
    }
}

impl ToHost for OwnClasses {
    fn kind(&self) -> &Kind {
        match self {
            OwnClasses::Priority => &kind::PRIORITY_CLASS,
            OwnClasses::Storage => &kind::STORAGE_CLASS,
        }
    }

    fn wanted(&self, class: &Value, ctx: &Context<'_>) -> bool {
        match self {
            OwnClasses::Priority => {
                ctx.settings.priority_classes && !class.str_at(&["metadata", "name"]).starts_with("system-")
            }
            OwnClasses::Storage => ctx.settings.storage_classes,
        }
    }

    fn translate(&self, class: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        if let OwnClasses::Storage = self {
            // Parameters of provisioners name Secrets by namespace: any of the host's could be read through them.
            for (key, value) in string_map(class.get("parameters")) {
                if key.contains("secret-namespace") || key.contains("secretNamespace") {
                    return Err(Refusal::error(format!(
                        "parameters.{key}: {value:?} would name a Secret of the host and is not supported"
                    )));
                }
            }
        }
        let mut host = object(self.kind(), ctx.metadata(class, self.kind(), &DEFAULT_CLASS));
        self.fields(class, &mut host);
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, class: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let mut new_virtual = class.clone();
        let mut new_host = host.clone();
        let rules = MetadataRules { excluded: &DEFAULT_CLASS, down_only: true };
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            self.kind(),
            ctx.names,
            rules,
            Some(&last.host_only),
        );
        self.fields(class, &mut new_host);
        Ok(Desired {
            virtual_: class.clone(),
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }
}

/// The virtual copy of a host object that is shown as it is: classes, CSI objects.
pub fn mirror(host: &Value, kind: &Kind) -> Value {
    let mut out = host.clone();
    let mut metadata = Map::new();
    metadata.insert("name", host.str_at(&["metadata", "name"]).into());
    for member in ["labels", "annotations"] {
        let map: Map = string_map(host.at(&["metadata", member]))
            .filter(|(k, _)| !k.starts_with("kubectl.kubernetes.io/") && !k.starts_with("alcove.dev/"))
            .map(|(k, v)| (k, Value::from(v)))
            .collect();
        if !map.is_empty() {
            metadata.insert(member, map.into());
        }
    }
    out["metadata"] = metadata.into();
    out["apiVersion"] = kind.api_version().into();
    out["kind"] = kind.kind.to_string().into();
    if kind.kind == "PriorityClass" {
        // Only one class can be the default in a cluster, and the tenant may have its own.
        out["globalDefault"] = false.into();
    }
    out
}

/// True for host classes that are shown.
pub fn imported(host: &Value, kind: &Kind, import: &Import) -> bool {
    let Import::On(selector) = import else { return false };
    let name = host.str_at(&["metadata", "name"]);
    // They exist in every cluster.
    if kind.kind == "PriorityClass" && name.starts_with("system-") {
        return false;
    }
    // What a tenant made on the host is that tenant's.
    if !metadata::label(host, metadata::MANAGED_BY_LABEL).is_empty() {
        return false;
    }
    crate::selectors::matches(selector, host.at(&["metadata", "labels"]))
}

/// Annotation on virtual objects that are copies of host objects: they follow the host and go when it goes.
pub const IMPORTED_FROM_ANNOTATION: &str = "alcove.dev/imported";

/// Where a host ConfigMap or Secret is shown: exact name first, then the whole namespace, then the shorter forms that speak
/// about the control plane's own namespace.
pub fn import_target(
    mappings: &[ImportMapping],
    namespace: &str,
    name: &str,
    install_namespace: &str,
) -> Option<(String, String)> {
    let find = |from: &str| mappings.iter().find(|m| m.from == from).map(|m| m.to.as_str());
    let split = |to: &str| -> (String, String) {
        match to.split_once('/') {
            Some((ns, "*" | "")) => (ns.to_owned(), name.to_owned()),
            Some((ns, n)) => (ns.to_owned(), n.to_owned()),
            None => (to.to_owned(), name.to_owned()),
        }
    };
    if let Some(to) = find(&format!("{namespace}/{name}")).or_else(|| find(&format!("{namespace}/*"))) {
        return Some(split(to));
    }
    if namespace == install_namespace {
        return find(&format!("/{name}")).or_else(|| find("")).map(split);
    }
    None
}

/// The virtual copy of an imported host ConfigMap or Secret. `None`: never shown.
pub fn import_config(host: &Value, kind: &Kind, target: &(String, String)) -> Option<Value> {
    let name = host.str_at(&["metadata", "name"]);
    if name == crate::names::ROOT_CA_CONFIG_MAP || !metadata::label(host, metadata::MANAGED_BY_LABEL).is_empty() {
        return None;
    }
    let mut out = mirror(host, kind);
    out["metadata"]["namespace"] = target.0.as_str().into();
    out["metadata"]["name"] = target.1.as_str().into();
    out.set_at(&["metadata", "annotations", IMPORTED_FROM_ANNOTATION], "true".into());
    if out.str_at(&["type"]) == "kubernetes.io/service-account-token" {
        out["type"] = "Opaque".into();
    }
    Some(out)
}

/// A ServiceReplica: see [`replicated`].
pub const CONTROLLED_BY: &str = "vcluster";

/// The host Service that `networking.replicateServices.toHost` asks for.
pub fn replicated(service: &Value, to_namespace: &str, to_name: &str, ctx: &Context<'_>) -> Value {
    let namespace = service.str_at(&["metadata", "namespace"]);
    let ports: Vec<Value> = service
        .array_at(&["spec", "ports"])
        .iter()
        .map(|p| {
            let mut p = p.clone();
            p.remove_at(&["nodePort"]);
            p
        })
        .collect();
    let mut out = object(
        &kind::SERVICE,
        json!({
            "name": to_name, "namespace": to_namespace,
            "labels": {(metadata::CONTROLLED_BY_LABEL): CONTROLLED_BY},
        }),
    );
    if let Some(owner) = ctx.owner.filter(|_| to_namespace == ctx.names.install_namespace()) {
        out["metadata"]["ownerReferences"] = json!([{
            "apiVersion": (owner.api_version.as_str()), "kind": (owner.kind.as_str()),
            "name": (owner.name.as_str()), "uid": (owner.uid.as_str()), "controller": false,
        }]);
    }
    out["spec"] = json!({ "ports": ports });
    if let Some(selector) = crate::selectors::host_map_selector(service.at(&["spec", "selector"]), namespace, ctx.names)
    {
        out["spec"]["selector"] = selector;
    }
    if service.str_at(&["spec", "clusterIP"]) == "None" {
        out["spec"]["clusterIP"] = "None".into();
    }
    out
}
