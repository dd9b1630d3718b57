//! Labels and annotations of host objects: whose they are, and how both sides' maps are kept equal.
//!
//! The syncer keeps no memory of its own that must survive a restart. What it has to remember about an object is written on
//! the host object: which keys came from the virtual side, and hashes of the virtual values both sides last agreed on.
//!
//! Invariants:
//! - A host object is the syncer's only when its marker label, its kind and its source name all say so, and the source name
//!   translates to the very name the object has ([`owner`]). Everything else is foreign and never touched.
//! - Keys that a host controller added are shown to the tenant and follow the host, until the tenant changes one: then it
//!   is the tenant's, as if it had been there first.
//! - A tenant cannot set a key that the syncer or the host reads as its own.
//!
//! Follows: vCluster `pkg/util/translate` (metadata), which remembers old values in memory instead.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use apimachinery::{Map, Value};

use crate::kind::Kind;
use crate::names::{NAMESPACE_LABEL_PREFIX, Names, NamespacedName, hex_prefix};

pub const MANAGED_BY_LABEL: &str = "vcluster.loft.sh/managed-by";
pub const NAMESPACE_LABEL: &str = "vcluster.loft.sh/namespace";
pub const CONTROLLED_BY_LABEL: &str = "vcluster.loft.sh/controlled-by";

pub const NAME_ANNOTATION: &str = "vcluster.loft.sh/object-name";
pub const NAMESPACE_ANNOTATION: &str = "vcluster.loft.sh/object-namespace";
pub const UID_ANNOTATION: &str = "vcluster.loft.sh/object-uid";
pub const KIND_ANNOTATION: &str = "vcluster.loft.sh/object-kind";
pub const HOST_NAME_ANNOTATION: &str = "vcluster.loft.sh/object-host-name";
pub const HOST_NAMESPACE_ANNOTATION: &str = "vcluster.loft.sh/object-host-namespace";
pub const IMPORTED_ANNOTATION: &str = "vcluster.loft.sh/object-imported";
pub const MANAGED_ANNOTATIONS_ANNOTATION: &str = "vcluster.loft.sh/managed-annotations";
pub const MANAGED_LABELS_ANNOTATION: &str = "vcluster.loft.sh/managed-labels";
/// User annotation: sync this config map, secret or event although nothing refers to it.
pub const FORCE_SYNC_ANNOTATION: &str = "vcluster.loft.sh/force-sync";
/// User annotation: leave the references inside this object as they are.
pub const SKIP_TRANSLATE_ANNOTATION: &str = "vcluster.loft.sh/skip-translate";
/// User annotation: never copy host changes of this object back.
pub const SKIP_BACKSYNC_ANNOTATION: &str = "vcluster.loft.sh/skip-backsync";
/// Hashes of the virtual values that both sides last agreed on, as a JSON object by field.
pub const LAST_SYNCED_ANNOTATION: &str = "alcove.dev/last-synced";

const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Annotations that only the syncer writes. A tenant's own values under these keys are dropped.
const RESERVED_ANNOTATIONS: [&str; 9] = [
    NAME_ANNOTATION,
    NAMESPACE_ANNOTATION,
    UID_ANNOTATION,
    KIND_ANNOTATION,
    HOST_NAME_ANNOTATION,
    HOST_NAMESPACE_ANNOTATION,
    IMPORTED_ANNOTATION,
    MANAGED_ANNOTATIONS_ANNOTATION,
    MANAGED_LABELS_ANNOTATION,
];

/// Labels by which the host finds the control plane's own objects; a tenant's are dropped.
const RESERVED_LABELS: [&str; 3] = ["vcluster.loft.sh/belongs-to", "vcluster.loft.sh/node", "vcluster.loft.sh/service"];

fn reserved_annotation(key: &str) -> bool {
    RESERVED_ANNOTATIONS.contains(&key)
        || key.starts_with("alcove.dev/")
        || key == "vcluster.loft.sh/block-deletion"
        // The whole object again, with the tenant's names and, for Secrets, their values.
        || key == LAST_APPLIED_ANNOTATION
}

/// Annotations by which a host object is known as the syncer's.
pub fn is_marker_annotation(key: &str) -> bool {
    RESERVED_ANNOTATIONS.contains(&key) || key == LAST_SYNCED_ANNOTATION
}

fn reserved_label(names: &Names, key: &str) -> bool {
    RESERVED_LABELS.contains(&key) || key.starts_with(NAMESPACE_LABEL_PREFIX) || names.renamed_label(key).is_some()
}

/// Keys of host objects that the tenant never sees.
fn hidden_annotation(key: &str) -> bool {
    key.starts_with("vcluster.loft.sh/") || key.starts_with("alcove.dev/") || key == LAST_APPLIED_ANNOTATION
}

/// `metadata.name` and `metadata.namespace`.
pub fn name_of(object: &Value) -> NamespacedName {
    NamespacedName::new(object.str_at(&["metadata", "namespace"]), object.str_at(&["metadata", "name"]))
}

pub fn uid_of(object: &Value) -> &str {
    object.str_at(&["metadata", "uid"])
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    object.str_at(&["metadata", "annotations", key])
}

pub fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object.str_at(&["metadata", "labels", key])
}

pub fn is_deleting(object: &Value) -> bool {
    object.at(&["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    object.array_at(&["metadata", "ownerReferences"]).iter().find(|r| r["controller"] == true)
}

/// The object that owns everything this virtual cluster puts on the host: deleting it deletes all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOwner {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
}

/// Whose a host object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Made by this syncer for the virtual object of that name and uid.
    Ours { name: NamespacedName, uid: String },
    /// Another tenant's, the host administrator's, or a copy some controller made of one of ours.
    Foreign,
}

/// Decides whose a host object is, from what is written on it.
pub fn owner(host: &Value, kind: &Kind, names: &Names) -> Owner {
    let at = name_of(host);
    let marker = label(host, MANAGED_BY_LABEL);
    if at.namespace.is_empty() {
        if marker != names.cluster_marker() {
            return Owner::Foreign;
        }
    } else if !names.is_target_namespace(&at.namespace) || marker != names.virtual_cluster() {
        return Owner::Foreign;
    }
    let source = NamespacedName::new(annotation(host, NAMESPACE_ANNOTATION), annotation(host, NAME_ANNOTATION));
    if source.name.is_empty() || !kind.is_host_name(names, &source, &at) {
        return Owner::Foreign;
    }
    let host_kind = annotation(host, KIND_ANNOTATION);
    if !host_kind.is_empty() && host_kind != kind.gvk() {
        return Owner::Foreign;
    }
    let host_name = annotation(host, HOST_NAME_ANNOTATION);
    let host_namespace = annotation(host, HOST_NAMESPACE_ANNOTATION);
    if (!host_name.is_empty() && host_name != at.name) || (!host_namespace.is_empty() && host_namespace != at.namespace)
    {
        return Owner::Foreign;
    }
    Owner::Ours { name: source, uid: annotation(host, UID_ANNOTATION).to_owned() }
}

/// The labels a virtual object's host object is created with.
pub fn host_labels(virtual_: &Value, names: &Names) -> Map {
    let mut out = Map::new();
    for (key, value) in string_map(virtual_.at(&["metadata", "labels"])) {
        if !reserved_label(names, key) {
            out.insert(names.host_label(key), value.into());
        }
    }
    set_markers(&mut out, virtual_.str_at(&["metadata", "namespace"]), names);
    out
}

fn set_markers(labels: &mut Map, virtual_namespace: &str, names: &Names) {
    if virtual_namespace.is_empty() {
        labels.insert(MANAGED_BY_LABEL, names.cluster_marker().into());
    } else {
        labels.insert(MANAGED_BY_LABEL, names.virtual_cluster().into());
        labels.insert(NAMESPACE_LABEL, virtual_namespace.into());
    }
}

fn set_source_annotations(annotations: &mut Map, virtual_: &Value, host: &NamespacedName, kind: &Kind) {
    let source = name_of(virtual_);
    annotations.insert(NAME_ANNOTATION, source.name.into());
    if source.namespace.is_empty() {
        annotations.remove(NAMESPACE_ANNOTATION);
    } else {
        annotations.insert(NAMESPACE_ANNOTATION, source.namespace.into());
    }
    annotations.insert(UID_ANNOTATION, uid_of(virtual_).into());
    annotations.insert(KIND_ANNOTATION, kind.gvk().into());
    annotations.insert(HOST_NAME_ANNOTATION, host.name.clone().into());
    if !host.namespace.is_empty() {
        annotations.insert(HOST_NAMESPACE_ANNOTATION, host.namespace.clone().into());
    }
}

/// A new host object's `metadata`. Nothing of the virtual metadata is copied but labels and annotations.
pub fn host_metadata(
    virtual_: &Value,
    kind: &Kind,
    names: &Names,
    owner: Option<&HostOwner>,
    excluded: &[&str],
) -> Value {
    let host = kind.host_name(names, &name_of(virtual_));
    let mut annotations = Map::new();
    for (key, value) in string_map(virtual_.at(&["metadata", "annotations"])) {
        if !reserved_annotation(key) && !excluded.contains(&key) {
            annotations.insert(key, value.into());
        }
    }
    let managed: Vec<&str> = annotations.keys().map(|k| k.as_str()).collect();
    let managed_annotations = managed.join("\n");
    let labels = host_labels(virtual_, names);
    let managed_labels: Vec<&str> = string_map(virtual_.at(&["metadata", "labels"]))
        .map(|(k, _)| k)
        .filter(|k| !reserved_label(names, k))
        .collect();
    let managed_labels = managed_labels.join("\n");
    let mut synced = LastSynced::default();
    synced.set("annotations", &hash_keys(virtual_.at(&["metadata", "annotations"]), &managed_annotations));
    synced.set("labels", &hash_keys(virtual_.at(&["metadata", "labels"]), &managed_labels));
    if !managed_annotations.is_empty() {
        annotations.insert(MANAGED_ANNOTATIONS_ANNOTATION, managed_annotations.into());
    }
    if !managed_labels.is_empty() {
        annotations.insert(MANAGED_LABELS_ANNOTATION, managed_labels.into());
    }
    set_source_annotations(&mut annotations, virtual_, &host, kind);
    annotations.insert(LAST_SYNCED_ANNOTATION, synced.encode().into());

    let mut metadata = Map::new();
    metadata.insert("name", host.name.into());
    if !host.namespace.is_empty() {
        if let Some(owner) = owner.filter(|_| names.install_namespace() == host.namespace) {
            let mut reference = Map::new();
            reference.insert("apiVersion", owner.api_version.clone().into());
            reference.insert("kind", owner.kind.clone().into());
            reference.insert("name", owner.name.clone().into());
            reference.insert("uid", owner.uid.clone().into());
            reference.insert("controller", controller_of(virtual_).is_some().into());
            metadata.insert("ownerReferences", Value::Array(vec![reference.into()]));
        }
        metadata.insert("namespace", host.namespace.into());
    }
    metadata.insert("labels", labels.into());
    metadata.insert("annotations", annotations.into());
    metadata.into()
}

/// Behind the hash of a field that the host does not know.
const UNKNOWN: &str = "-unknown";

/// What both sides last agreed on, by field; lives in an annotation of the host object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastSynced(Map);

impl LastSynced {
    pub fn of(host: &Value) -> LastSynced {
        let text = annotation(host, LAST_SYNCED_ANNOTATION);
        match Value::from_slice(text.as_bytes()) {
            Ok(Value::Object(map)) => LastSynced(map),
            _ => LastSynced::default(),
        }
    }

    /// The same before the first agreement on an object that was imported: the virtual one was made from the host's, so what
    /// differs by now changed on the host.
    pub fn of_imported(host: &Value, virtual_: &Value, path: &[&str], fields: &[&str]) -> LastSynced {
        let mut synced = LastSynced::of(host);
        if annotation(host, IMPORTED_ANNOTATION) == "true" {
            for field in fields.iter().filter(|f| !synced.0.contains_key(f)).copied().collect::<Vec<_>>() {
                let value = crate::diff::present(virtual_.at(path).unwrap_or(&Value::Null), &[field]);
                synced.set(field, &hash_value(uid_of(virtual_), value.unwrap_or(&Value::Null)));
            }
        }
        synced
    }

    /// True when the virtual value is the one both sides last agreed on: then a difference is the host's change.
    pub fn agrees(&self, field: &str, hash: &str) -> bool {
        self.0.get(field).and_then(Value::as_str).map(|of| of.strip_suffix(UNKNOWN).unwrap_or(of)) == Some(hash)
    }

    /// The host dropped the value that was agreed on: its version does not know the field.
    pub fn is_unknown(&self, field: &str) -> bool {
        self.0.get(field).and_then(Value::as_str).is_some_and(|of| of.ends_with(UNKNOWN))
    }

    pub fn set_unknown(&mut self, field: &str) {
        let of = self.0.get(field).and_then(Value::as_str).unwrap_or_default();
        let text = format!("{}{UNKNOWN}", of.strip_suffix(UNKNOWN).unwrap_or(of));
        self.0.insert(field, text.into());
    }

    pub fn set(&mut self, field: &str, hash: &str) {
        self.0.insert(field, hash.into());
    }

    pub fn encode(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    pub fn store(&self, host: &mut Value) {
        host.set_at(&["metadata", "annotations", LAST_SYNCED_ANNOTATION], self.encode().into());
    }
}

/// A short hash of a value; `salt` (the object's uid) keeps equal secrets from having equal hashes.
pub fn hash_value(salt: &str, value: &Value) -> String {
    hex_prefix(&format!("{salt}\n{value}"), 12)
}

fn hash_keys(map: Option<&Value>, keys: &str) -> String {
    let mut text = String::new();
    for key in keys.split('\n').filter(|k| !k.is_empty()) {
        if let Some(value) = map.and_then(|m| m.get(key)).and_then(Value::as_str) {
            text.push_str(key);
            text.push('=');
            text.push_str(value);
            text.push('\n');
        }
    }
    hex_prefix(&text, 12)
}

pub fn string_map(map: Option<&Value>) -> impl Iterator<Item = (&str, &str)> {
    map.and_then(Value::as_object)
        .into_iter()
        .flat_map(|m| m.iter())
        .filter_map(|(k, v)| v.as_str().map(|v| (k.as_str(), v)))
}

/// Host-only keys seen earlier in this process, with a hash of the value that both sides had last: lets a key that a host
/// controller removed disappear here as well, and tells whose a difference is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOnlyKeys {
    pub annotations: BTreeMap<String, u64>,
    pub labels: BTreeMap<String, u64>,
}

fn seen_hash(value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What [`sync_metadata`] is told about a type.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetadataRules<'a> {
    /// Annotations that never cross, in either direction.
    pub excluded: &'a [&'a str],
    /// The virtual side is only ever written to the host.
    pub down_only: bool,
}

/// Brings labels and annotations of both sides together. `virtual_` and `host` are changed to what they should be.
///
/// Returns the keys that are the host's own, for the next call's `seen`.
pub fn sync_metadata(
    virtual_: &mut Value,
    host: &mut Value,
    kind: &Kind,
    names: &Names,
    rules: MetadataRules<'_>,
    seen: Option<&HostOnlyKeys>,
) -> HostOnlyKeys {
    let mut synced = LastSynced::of(host);
    let skip_up = rules.down_only || annotation(virtual_, SKIP_BACKSYNC_ANNOTATION) == "true";
    let mut host_only = HostOnlyKeys::default();

    let managed = annotation(host, MANAGED_ANNOTATIONS_ANNOTATION).to_owned();
    let merge = MapMerge {
        managed: managed.split('\n').filter(|k| !k.is_empty()).collect(),
        agreed: synced.agrees("annotations", &hash_keys(virtual_.at(&["metadata", "annotations"]), &managed)),
        seen: seen.map(|s| &s.annotations),
        skip_up,
    };
    let (virtual_map, host_map, managed_now) = merge.run(
        virtual_.at(&["metadata", "annotations"]),
        host.at(&["metadata", "annotations"]),
        |key| (!reserved_annotation(key) && !rules.excluded.contains(&key)).then(|| key.to_owned()),
        |key| (!hidden_annotation(key) && !rules.excluded.contains(&key)).then(|| key.to_owned()),
        &mut host_only.annotations,
    );
    put_map(virtual_, "annotations", virtual_map);
    put_map(host, "annotations", host_map);
    let managed_now = managed_now.join("\n");
    synced.set("annotations", &hash_keys(virtual_.at(&["metadata", "annotations"]), &managed_now));
    put_annotation(host, MANAGED_ANNOTATIONS_ANNOTATION, &managed_now);

    let managed = annotation(host, MANAGED_LABELS_ANNOTATION).to_owned();
    let merge = MapMerge {
        managed: managed.split('\n').filter(|k| !k.is_empty()).collect(),
        agreed: synced.agrees("labels", &hash_keys(virtual_.at(&["metadata", "labels"]), &managed)),
        seen: seen.map(|s| &s.labels),
        skip_up,
    };
    let (virtual_map, host_map, managed_now) = merge.run(
        virtual_.at(&["metadata", "labels"]),
        host.at(&["metadata", "labels"]),
        |key| (!reserved_label(names, key)).then(|| names.host_label(key)),
        |key| {
            // Under these keys the host object carries the syncer's own markers.
            if RESERVED_LABELS.contains(&key) { None } else { names.virtual_label(key) }
        },
        &mut host_only.labels,
    );
    put_map(virtual_, "labels", virtual_map);
    put_map(host, "labels", host_map);
    let managed_now = managed_now.join("\n");
    synced.set("labels", &hash_keys(virtual_.at(&["metadata", "labels"]), &managed_now));
    put_annotation(host, MANAGED_LABELS_ANNOTATION, &managed_now);

    let namespace = virtual_.str_at(&["metadata", "namespace"]).to_owned();
    set_markers(host["metadata"].make_object().object_mut("labels"), &namespace, names);
    let at = name_of(host);
    set_source_annotations(host["metadata"].make_object().object_mut("annotations"), virtual_, &at, kind);
    synced.store(host);
    host_only
}

pub fn put_annotation(object: &mut Value, key: &str, value: &str) {
    if value.is_empty() {
        object.remove_at(&["metadata", "annotations", key]);
    } else {
        object.set_at(&["metadata", "annotations", key], value.into());
    }
}

fn put_map(object: &mut Value, field: &str, map: Map) {
    if map.is_empty() {
        // An empty map that is there is as good as none.
        if object.at(&["metadata", field]).and_then(Value::as_object).is_some_and(|m| !m.is_empty()) {
            object.remove_at(&["metadata", field]);
        }
    } else {
        object.set_at(&["metadata", field], map.into());
    }
}

struct MapMerge<'a> {
    /// Virtual keys that were written to the host earlier.
    managed: BTreeSet<&'a str>,
    /// The virtual values under those keys did not change since.
    agreed: bool,
    seen: Option<&'a BTreeMap<String, u64>>,
    skip_up: bool,
}

impl MapMerge<'_> {
    fn run(
        &self,
        virtual_: Option<&Value>,
        host: Option<&Value>,
        host_key: impl Fn(&str) -> Option<String>,
        virtual_key: impl Fn(&str) -> Option<String>,
        host_only: &mut BTreeMap<String, u64>,
    ) -> (Map, Map, Vec<String>) {
        let mut new_virtual: Map = virtual_.and_then(Value::as_object).cloned().unwrap_or_default();
        let mut new_host: Map = host.and_then(Value::as_object).cloned().unwrap_or_default();
        let mut managed = Vec::new();
        for (key, value) in string_map(virtual_) {
            let Some(on_host) = host_key(key) else { continue };
            let was_managed = self.managed.contains(key);
            match new_host.get(&on_host).and_then(Value::as_str).map(str::to_owned) {
                Some(host_value) if host_value == value => {
                    if was_managed || self.skip_up {
                        managed.push(key.to_owned());
                    } else {
                        host_only.insert(key.to_owned(), seen_hash(value));
                    }
                }
                Some(host_value) => {
                    let before = self.seen.and_then(|seen| seen.get(key).copied());
                    // The host has what both sides had: the tenant has changed it since.
                    let tenants = before == Some(seen_hash(&host_value));
                    let hosts_turn = if was_managed { self.agreed } else { !tenants };
                    if hosts_turn && !self.skip_up {
                        new_virtual.insert(key, host_value.into());
                    } else {
                        new_host.insert(on_host, value.into());
                    }
                    if was_managed || tenants || self.skip_up {
                        managed.push(key.to_owned());
                    } else {
                        // Not the new value: what is written now may yet fail.
                        host_only.insert(key.to_owned(), before.unwrap_or_else(|| seen_hash(value)));
                    }
                }
                None if was_managed && self.agreed && !self.skip_up => {
                    new_virtual.remove(key);
                }
                None if !was_managed && self.seen.is_some_and(|s| s.contains_key(key)) => {
                    new_virtual.remove(key);
                }
                None => {
                    new_host.insert(on_host, value.into());
                    managed.push(key.to_owned());
                }
            }
        }
        for (on_host, value) in string_map(host) {
            let Some(key) = virtual_key(on_host) else { continue };
            if virtual_.and_then(|v| v.get(&key)).is_some() {
                continue;
            }
            if self.managed.contains(key.as_str()) {
                new_host.remove(on_host);
            } else if !self.skip_up {
                host_only.insert(key.clone(), seen_hash(value));
                new_virtual.insert(key, value.into());
            }
        }
        // A key the tenant removed, under a name that the way back does not show (the renamed and the hidden ones).
        for key in &self.managed {
            if virtual_.and_then(|v| v.get(key)).is_none()
                && let Some(on_host) = host_key(key)
            {
                new_host.remove(&on_host);
            }
        }
        managed.sort();
        (new_virtual, new_host, managed)
    }
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;
    use crate::kind;

    fn names() -> Names {
        Names::new("vc", "host")
    }

    fn virtual_object() -> Value {
        json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1",
            "labels": {"app": "web", "release": "mine"}, "annotations": {"a": "1"}}})
    }

    fn created(virtual_: &Value) -> Value {
        json!({"metadata": host_metadata(virtual_, &kind::CONFIG_MAP, &names(), None, &[])})
    }

    fn sync(virtual_: &mut Value, host: &mut Value, seen: Option<&HostOnlyKeys>) -> HostOnlyKeys {
        sync_metadata(virtual_, host, &kind::CONFIG_MAP, &names(), MetadataRules::default(), seen)
    }

    #[test]
    fn a_created_object_says_where_it_comes_from() {
        let host = created(&virtual_object());
        let release = names().host_label("release");
        let mut annotations = host["metadata"]["annotations"].clone();
        annotations.remove_at(&[LAST_SYNCED_ANNOTATION]);
        assert_eq!(
            host["metadata"]["labels"],
            json!({"app": "web", (release): "mine", "vcluster.loft.sh/managed-by": "vc",
                "vcluster.loft.sh/namespace": "default"})
        );
        assert_eq!(
            annotations,
            json!({"a": "1",
                "vcluster.loft.sh/managed-annotations": "a",
                "vcluster.loft.sh/managed-labels": "app\nrelease",
                "vcluster.loft.sh/object-name": "web",
                "vcluster.loft.sh/object-namespace": "default",
                "vcluster.loft.sh/object-uid": "u1",
                "vcluster.loft.sh/object-kind": "/v1, Kind=ConfigMap",
                "vcluster.loft.sh/object-host-name": "web-x-default-x-vc",
                "vcluster.loft.sh/object-host-namespace": "host"})
        );
        assert_eq!(
            owner(&host, &kind::CONFIG_MAP, &names()),
            Owner::Ours { name: NamespacedName::new("default", "web"), uid: "u1".into() }
        );
    }

    #[test]
    fn an_object_is_ours_only_when_everything_on_it_says_so() {
        let good = created(&virtual_object());
        for (path, value) in [
            (["metadata", "labels", MANAGED_BY_LABEL].as_slice(), "other"),
            (&["metadata", "namespace"], "elsewhere"),
            (&["metadata", "name"], "copy"),
            (&["metadata", "annotations", NAME_ANNOTATION], "other"),
            (&["metadata", "annotations", NAME_ANNOTATION], ""),
            (&["metadata", "annotations", NAMESPACE_ANNOTATION], "other"),
            (&["metadata", "annotations", KIND_ANNOTATION], "/v1, Kind=Secret"),
            (&["metadata", "annotations", HOST_NAME_ANNOTATION], "other"),
            (&["metadata", "annotations", HOST_NAMESPACE_ANNOTATION], "other"),
        ] {
            let mut host = good.clone();
            host.set_at(path, value.into());
            assert_eq!(owner(&host, &kind::CONFIG_MAP, &names()), Owner::Foreign, "{path:?} = {value}");
        }
        assert_eq!(owner(&good, &kind::CONFIG_MAP, &Names::new("vc2", "host")), Owner::Foreign);
    }

    #[test]
    fn a_tenant_cannot_forge_the_syncers_keys() {
        let mut virtual_ = virtual_object();
        for key in RESERVED_ANNOTATIONS {
            virtual_.set_at(&["metadata", "annotations", key], "forged".into());
        }
        virtual_.set_at(&["metadata", "annotations", LAST_APPLIED_ANNOTATION], "secret".into());
        virtual_.set_at(&["metadata", "annotations", LAST_SYNCED_ANNOTATION], "forged".into());
        virtual_.set_at(&["metadata", "labels", MANAGED_BY_LABEL], "other-tenant".into());
        virtual_.set_at(&["metadata", "labels", NAMESPACE_LABEL], "other".into());
        virtual_.set_at(&["metadata", "labels", &names().namespace_label("env")], "prod".into());
        virtual_.set_at(&["metadata", "labels", &names().host_label("release")], "x".into());
        let host = created(&virtual_);
        assert!(matches!(owner(&host, &kind::CONFIG_MAP, &names()), Owner::Ours { .. }));
        assert!(!host.to_string().contains("forged"), "{host}");
        assert!(!host.to_string().contains("prod"), "{host}");
        assert!(!host["metadata"]["annotations"].to_string().contains("secret"));
        assert_eq!(host.str_at(&["metadata", "labels", NAMESPACE_LABEL]), "default");
    }

    #[test]
    fn both_sides_converge_and_stay() {
        // (what happens after creation, on which side, what both must show)
        enum Edit {
            Virtual(&'static str, Option<&'static str>),
            Host(&'static str, Option<&'static str>),
        }
        use Edit::*;
        for (edits, virtual_want, host_want) in [
            (vec![], Some("1"), Some("1")),
            (vec![Virtual("a", Some("2"))], Some("2"), Some("2")),
            (vec![Host("a", Some("3"))], Some("3"), Some("3")),
            (vec![Virtual("a", Some("2")), Host("a", Some("3"))], Some("2"), Some("2")), // the virtual side wins
            (vec![Virtual("a", None)], None, None),
            (vec![Host("a", None)], None, None),
        ] {
            let mut virtual_ = virtual_object();
            let mut host = created(&virtual_);
            for edit in &edits {
                let (object, key, value) = match edit {
                    Virtual(k, v) => (&mut virtual_, k, v),
                    Host(k, v) => (&mut host, k, v),
                };
                put_annotation(object, key, value.unwrap_or(""));
            }
            sync(&mut virtual_, &mut host, None);
            let (once_virtual, once_host) = (virtual_.clone(), host.clone());
            assert_eq!(virtual_.at(&["metadata", "annotations", "a"]).and_then(Value::as_str), virtual_want);
            assert_eq!(host.at(&["metadata", "annotations", "a"]).and_then(Value::as_str), host_want);
            sync(&mut virtual_, &mut host, None);
            assert_eq!((virtual_, host), (once_virtual, once_host), "a second run changes nothing");
        }
    }

    #[test]
    fn keys_of_host_controllers_are_shown_and_left_alone() {
        let mut virtual_ = virtual_object();
        let mut host = created(&virtual_);
        put_annotation(&mut host, "cni/ip", "10.0.0.1");
        let before = host.clone();
        let seen = sync(&mut virtual_, &mut host, None);
        assert_eq!(annotation(&virtual_, "cni/ip"), "10.0.0.1");
        assert_eq!(host, before, "showing a key costs no host request");
        put_annotation(&mut host, "cni/ip", "10.0.0.2");
        // Also when the first write to the tenant failed.
        for _ in 0..2 {
            sync(&mut virtual_.clone(), &mut host, Some(&seen));
        }
        let seen = sync(&mut virtual_, &mut host, Some(&seen));
        assert_eq!(annotation(&virtual_, "cni/ip"), "10.0.0.2");
        let seen = sync(&mut virtual_, &mut host, Some(&seen));
        put_annotation(&mut host, "cni/ip", "");
        sync(&mut virtual_, &mut host, Some(&seen));
        assert_eq!(annotation(&virtual_, "cni/ip"), "");
        assert_eq!(annotation(&host, "cni/ip"), "");
    }

    #[test]
    fn a_host_key_that_the_tenant_changes_becomes_the_tenants() {
        let mut virtual_ = virtual_object();
        let mut host = created(&virtual_);
        put_annotation(&mut host, "note", "host");
        host.set_at(&["metadata", "labels", "team"], "host".into());
        let seen = sync(&mut virtual_, &mut host, None);
        assert_eq!((annotation(&virtual_, "note"), label(&virtual_, "team")), ("host", "host"));
        put_annotation(&mut virtual_, "note", "tenant");
        virtual_.set_at(&["metadata", "labels", "team"], "tenant".into());
        // Without the memory, as after a restart, nobody knows whose change it is: the host's value stays.
        let (mut forgotten, mut untouched) = (virtual_.clone(), host.clone());
        sync(&mut forgotten, &mut untouched, None);
        assert_eq!((annotation(&forgotten, "note"), label(&forgotten, "team")), ("host", "host"));
        let seen = sync(&mut virtual_, &mut host, Some(&seen));
        assert_eq!((annotation(&host, "note"), label(&host, "team")), ("tenant", "tenant"));
        assert!(annotation(&host, MANAGED_ANNOTATIONS_ANNOTATION).contains("note"));
        // From then on like any other key of the tenant.
        put_annotation(&mut host, "note", "host again");
        let seen = sync(&mut virtual_, &mut host, Some(&seen));
        assert_eq!(annotation(&virtual_, "note"), "host again");
        put_annotation(&mut virtual_, "note", "");
        sync(&mut virtual_, &mut host, Some(&seen));
        assert_eq!(annotation(&host, "note"), "");
    }

    #[test]
    fn a_renamed_label_can_be_removed() {
        let mut virtual_ = virtual_object();
        let mut host = created(&virtual_);
        virtual_.remove_at(&["metadata", "labels", "release"]);
        sync(&mut virtual_, &mut host, None);
        assert_eq!(label(&host, &names().host_label("release")), "");
        assert_eq!(label(&virtual_, "release"), "");
    }

    #[test]
    fn markers_removed_on_the_host_come_back() {
        let mut virtual_ = virtual_object();
        let mut host = created(&virtual_);
        host.remove_at(&["metadata", "labels", NAMESPACE_LABEL]);
        sync(&mut virtual_, &mut host, None);
        assert_eq!(label(&host, NAMESPACE_LABEL), "default");
        assert_eq!(label(&virtual_, NAMESPACE_LABEL), "");
    }
}
