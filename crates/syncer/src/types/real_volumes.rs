//! Persistent volumes of tenants on the host, and the host's volumes of tenants' claims: `sync.toHost.persistentVolumes`.
//!
//! Invariants:
//! - A volume refers to claims, classes and Secrets of its own virtual cluster only, whatever the tenant writes.
//! - What is shown of a host volume names no Secret and no claim of the host.
//!
//! Follows: vCluster `resources/persistentvolumes`.

use apimachinery::pod_security::Level;
use apimachinery::{Map, Value, json};

use crate::diff::{present, two_way_same};
use crate::kind::{self, Kind};
use crate::metadata::{
    self, LastSynced, MetadataRules, annotation, hash_value, is_deleting, label, string_map, uid_of,
};
use crate::names::NamespacedName;
use crate::plan::{Action, LastSeen};
use crate::types::volumes::FAKE_VOLUME_LABEL;
use crate::types::{Context, Desired, Reference, Refusal, ToHost, object};

/// On a virtual volume that shows one of the host's: its name there.
pub const HOST_VOLUME_ANNOTATION: &str = "vcluster.loft.sh/host-pv";

const EXCLUDED: [&str; 2] = ["pv.kubernetes.io/bound-by-controller", HOST_VOLUME_ANNOTATION];
const TWO_WAY: [&str; 5] = ["capacity", "accessModes", "persistentVolumeReclaimPolicy", "nodeAffinity", "mountOptions"];

/// Members of volume sources that hold a reference to a Secret, `{name, namespace}`.
const SECRET_REFS: [&str; 6] = [
    "secretRef",
    "controllerPublishSecretRef",
    "nodeStageSecretRef",
    "nodePublishSecretRef",
    "controllerExpandSecretRef",
    "nodeExpandSecretRef",
];

pub struct RealVolumes;

/// The sources of a volume's spec: members that are objects of the driver's.
fn sources(spec: &Value) -> impl Iterator<Item = (&str, &Value)> {
    const OTHER: [&str; 4] = ["capacity", "claimRef", "nodeAffinity", "accessModes"];
    let members = spec.as_object().into_iter().flat_map(|m| m.iter());
    members.map(|(k, v)| (k.as_str(), v)).filter(|(k, v)| v.is_object() && !OTHER.contains(k))
}

/// `(namespace, name)` of all Secrets a volume names.
fn secrets(volume: &Value) -> Vec<(String, String)> {
    let default = volume.str_at(&["spec", "claimRef", "namespace"]);
    let or = |namespace: &str| if namespace.is_empty() { default.to_owned() } else { namespace.to_owned() };
    let mut out = Vec::new();
    for (_, source) in sources(&volume["spec"]) {
        for member in SECRET_REFS {
            if let Some(reference) = source.get(member).filter(|r| !r.is_null()) {
                out.push((or(reference.str_at(&["namespace"])), reference.str_at(&["name"]).to_owned()));
            }
        }
    }
    let azure = &volume["spec"]["azureFile"];
    if !azure.str_at(&["secretName"]).is_empty() {
        out.push((or(azure.str_at(&["secretNamespace"])), azure.str_at(&["secretName"]).to_owned()));
    }
    out.retain(|(_, name)| !name.is_empty());
    out
}

fn spec(volume: &Value, ctx: &Context<'_>) -> Result<Value, Refusal> {
    let names = ctx.names;
    let mut spec = volume["spec"].clone();
    let strict = ctx.settings.pod_security.is_some_and(|level| level > Level::Privileged);
    for member in ["hostPath", "local"] {
        if strict && spec.get(member).is_some_and(|v| !v.is_null()) {
            return Err(Refusal::error(format!(
                "spec.{member}: paths of the node are not allowed with policies.podSecurityStandard"
            )));
        }
    }
    if secrets(volume).iter().any(|(namespace, _)| namespace.is_empty()) {
        return Err(Refusal::error("a Secret of the volume has no namespace and the volume has no claim"));
    }
    let default = volume.str_at(&["spec", "claimRef", "namespace"]).to_owned();
    if let Some(members) = spec.as_object_mut() {
        for (_, source) in members.iter_mut().filter(|(_, v)| v.is_object()) {
            for member in SECRET_REFS {
                let Some(reference) = source.get_mut(member).filter(|r| !r.is_null()) else { continue };
                let namespace = match reference.str_at(&["namespace"]) {
                    "" => default.as_str(),
                    namespace => namespace,
                };
                let host = kind::SECRET.host_name(names, &NamespacedName::new(namespace, reference.str_at(&["name"])));
                reference["name"] = host.name.into();
                reference["namespace"] = host.namespace.into();
            }
        }
    }
    if let Some(azure) = spec.get_mut("azureFile").filter(|a| !a.is_null()) {
        let namespace = match azure.str_at(&["secretNamespace"]) {
            "" => default.as_str(),
            namespace => namespace,
        };
        let host = kind::SECRET.host_name(names, &NamespacedName::new(namespace, azure.str_at(&["secretName"])));
        azure["secretName"] = host.name.into();
        azure["secretNamespace"] = host.namespace.into();
    }
    for member in ["glusterfs"] {
        // Endpoints are found in the claim's namespace unless another one is named.
        if let Some(source) = spec.get_mut(member).filter(|v| !v.is_null()) {
            let namespace = match source.str_at(&["endpointsNamespace"]) {
                "" => default.as_str(),
                namespace => namespace,
            };
            let host = kind::ENDPOINTS.host_name(names, &NamespacedName::new(namespace, source.str_at(&["endpoints"])));
            source["endpoints"] = host.name.into();
            source["endpointsNamespace"] = host.namespace.into();
        }
    }
    match present(volume, &["spec", "claimRef"]) {
        None => drop(spec.remove_at(&["claimRef"])),
        Some(claim) => {
            let host = kind::PERSISTENT_VOLUME_CLAIM
                .host_name(names, &crate::metadata::name_of(&json!({ "metadata": (claim.clone()) })));
            spec["claimRef"] = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": (host.name), "namespace": (host.namespace),
            });
        }
    }
    let class = volume.str_at(&["spec", "storageClassName"]);
    if !class.is_empty() {
        spec["storageClassName"] = kind::STORAGE_CLASS.cluster_name_on_host(names, class).into();
    }
    Ok(spec)
}

impl ToHost for RealVolumes {
    fn kind(&self) -> &Kind {
        &kind::PERSISTENT_VOLUME
    }

    fn wanted(&self, volume: &Value, ctx: &Context<'_>) -> bool {
        ctx.settings.persistent_volumes
            && label(volume, FAKE_VOLUME_LABEL) != "true"
            && annotation(volume, HOST_VOLUME_ANNOTATION).is_empty()
    }

    fn replaces_older(&self) -> bool {
        // The data outlives a restored virtual cluster.
        false
    }

    fn refers(&self) -> bool {
        true
    }

    fn references(&self, volume: &Value) -> Vec<Reference> {
        secrets(volume).into_iter().map(|(namespace, name)| Reference::new("Secret", &namespace, &name)).collect()
    }

    fn translate(&self, volume: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal> {
        let mut host = object(self.kind(), ctx.metadata(volume, self.kind(), &EXCLUDED));
        host["spec"] = spec(volume, ctx)?;
        let mut synced = LastSynced::of(&host);
        for field in TWO_WAY {
            let value = present(volume, &["spec", field]).unwrap_or(&Value::Null);
            synced.set(field, &hash_value(uid_of(volume), value));
        }
        synced.store(&mut host);
        Ok((host, Vec::new()))
    }

    fn reconcile(&self, volume: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>) -> Result<Desired, Refusal> {
        let (mut new_virtual, mut new_host) = (volume.clone(), host.clone());
        let mut synced = LastSynced::of(host);
        for field in TWO_WAY {
            let path = ["spec", field];
            two_way_same(field, uid_of(volume), &path, &mut new_virtual, &mut new_host, &mut synced);
        }
        synced.store(&mut new_host);
        let rules = MetadataRules { excluded: &EXCLUDED, down_only: false };
        let host_only = metadata::sync_metadata(
            &mut new_virtual,
            &mut new_host,
            self.kind(),
            ctx.names,
            rules,
            Some(&last.host_only),
        );
        // Bound on the host: the virtual claim is whose it is.
        if let Some(claim) = &ctx.facts.claim {
            new_virtual["spec"]["claimRef"] = claim_reference(claim, volume);
        }
        reflect_status(&mut new_virtual, host, ctx);
        Ok(Desired {
            virtual_: new_virtual,
            host: new_host,
            actions: Vec::new(),
            seen: LastSeen { on_host: true, host_only },
        })
    }

    fn deleting(&self, volume: &Value, host: &Value, _ctx: &Context<'_>) -> Option<Vec<Action>> {
        Some(match (is_deleting(volume), is_deleting(host)) {
            (true, false) => vec![Action::delete_host(host, None, "the virtual volume is being deleted")],
            (false, true) => vec![Action::delete_virtual(volume, None)],
            _ => Vec::new(),
        })
    }
}

fn claim_reference(claim: &Value, volume: &Value) -> Value {
    // The version is of the moment of binding.
    let version = match volume.str_at(&["spec", "claimRef", "uid"]) == uid_of(claim) {
        true => volume.str_at(&["spec", "claimRef", "resourceVersion"]),
        false => claim.str_at(&["metadata", "resourceVersion"]),
    };
    let mut out = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": (claim.str_at(&["metadata", "namespace"])), "name": (claim.str_at(&["metadata", "name"])),
        "uid": (uid_of(claim)),
    });
    if !version.is_empty() {
        out["resourceVersion"] = version.into();
    }
    out
}

fn reflect_status(volume: &mut Value, host: &Value, ctx: &Context<'_>) {
    if let Some(status) = host.get("status").filter(|s| !s.is_null()) {
        let mut status = status.clone();
        super::show_messages(&mut status, &|text| ctx.names.to_virtual_text(text, None));
        volume["status"] = status;
    }
}

/// The virtual volume that shows a host volume of a virtual claim. `existing` is what is shown now.
pub fn shown(host: &Value, claim: &Value, existing: Option<&Value>, ctx: &Context<'_>) -> Value {
    let host_name = host.str_at(&["metadata", "name"]);
    let mut volume =
        existing.cloned().unwrap_or_else(|| object(&kind::PERSISTENT_VOLUME, json!({ "name": host_name })));
    let keep = |member: &str, hidden: fn(&str) -> bool| -> Map {
        let entries = string_map(host.at(&["metadata", member])).filter(|(k, _)| !hidden(k));
        entries.map(|(k, v)| (k, Value::from(v))).collect()
    };
    volume["metadata"]["labels"] = keep("labels", |k| k.starts_with("vcluster.loft.sh/")).into();
    let mut annotations = keep("annotations", |k| {
        k.starts_with("vcluster.loft.sh/") || k.starts_with("alcove.dev/") || k.starts_with("kubectl.kubernetes.io/")
    });
    annotations.insert(HOST_VOLUME_ANNOTATION, host_name.into());
    volume["metadata"]["annotations"] = annotations.into();
    let mut spec = host["spec"].clone();
    if let Some(members) = spec.as_object_mut() {
        for (_, source) in members.iter_mut().filter(|(_, v)| v.is_object()) {
            for member in SECRET_REFS {
                source.remove_at(&[member]);
            }
        }
    }
    // What is required there names nothing that is.
    if let Some(azure) = spec.get_mut("azureFile").filter(|a| !a.is_null()) {
        azure["secretName"] = "hidden".into();
        azure.remove_at(&["secretNamespace"]);
    }
    spec["claimRef"] = claim_reference(claim, existing.unwrap_or(&Value::Null));
    crate::diff::put(&mut spec, &["storageClassName"], claim.at(&["spec", "storageClassName"]).cloned());
    volume["spec"] = spec;
    reflect_status(&mut volume, host, ctx);
    volume
}
