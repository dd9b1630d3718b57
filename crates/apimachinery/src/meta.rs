//! Typed access to `metadata` of an object tree.
//!
//! Reads are lenient, as everywhere on the tree: absent and of another type are the same. Only validation refuses.
//!
//! Follows: `meta/v1.ObjectMeta`, `k8s.io/apimachinery/pkg/api/meta` accessors.

use crate::json::{Map, Value};

static EMPTY: Map = Map::new();

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

impl OwnerReference {
    pub fn from_value(value: &Value) -> Self {
        OwnerReference {
            api_version: value.str_at(&["apiVersion"]).to_owned(),
            kind: value.str_at(&["kind"]).to_owned(),
            name: value.str_at(&["name"]).to_owned(),
            uid: value.str_at(&["uid"]).to_owned(),
            controller: value["controller"] == true,
            block_owner_deletion: value["blockOwnerDeletion"] == true,
        }
    }

    /// The reference as it is stored; the two flags only when set.
    pub fn to_value(&self) -> Value {
        let mut out = Map::with_capacity(6);
        out.insert("apiVersion", self.api_version.as_str().into());
        out.insert("kind", self.kind.as_str().into());
        out.insert("name", self.name.as_str().into());
        out.insert("uid", self.uid.as_str().into());
        if self.controller {
            out.insert("controller", true.into());
        }
        if self.block_owner_deletion {
            out.insert("blockOwnerDeletion", true.into());
        }
        out.into()
    }
}

/// `metadata` of an object. Implemented for [`Value`], which must be the whole object.
pub trait ObjectMeta {
    /// `metadata`, `null` when absent.
    fn metadata(&self) -> &Value;
    /// `metadata`, made when absent.
    fn metadata_mut(&mut self) -> &mut Map;

    fn name(&self) -> &str {
        self.metadata().str_at(&["name"])
    }
    fn generate_name(&self) -> &str {
        self.metadata().str_at(&["generateName"])
    }
    fn namespace(&self) -> &str {
        self.metadata().str_at(&["namespace"])
    }
    fn uid(&self) -> &str {
        self.metadata().str_at(&["uid"])
    }
    fn resource_version(&self) -> &str {
        self.metadata().str_at(&["resourceVersion"])
    }
    fn generation(&self) -> i64 {
        self.metadata()["generation"].as_i64().unwrap_or(0)
    }
    fn creation_timestamp(&self) -> &str {
        self.metadata().str_at(&["creationTimestamp"])
    }
    /// When deletion was asked for, as RFC 3339; `None` while the object is not being deleted.
    fn deletion_timestamp(&self) -> Option<&str> {
        self.metadata()["deletionTimestamp"].as_str()
    }
    fn is_terminating(&self) -> bool {
        self.deletion_timestamp().is_some()
    }
    fn deletion_grace_period_seconds(&self) -> Option<i64> {
        self.metadata()["deletionGracePeriodSeconds"].as_i64()
    }
    fn labels(&self) -> &Map {
        self.metadata()["labels"].as_object().unwrap_or(&EMPTY)
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.labels().get(key).and_then(Value::as_str)
    }
    fn annotations(&self) -> &Map {
        self.metadata()["annotations"].as_object().unwrap_or(&EMPTY)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations().get(key).and_then(Value::as_str)
    }
    fn finalizers(&self) -> Vec<&str> {
        self.metadata().array_at(&["finalizers"]).iter().filter_map(Value::as_str).collect()
    }
    fn has_finalizer(&self, finalizer: &str) -> bool {
        self.metadata().array_at(&["finalizers"]).iter().any(|f| f == finalizer)
    }
    fn owner_references(&self) -> Vec<OwnerReference> {
        self.metadata().array_at(&["ownerReferences"]).iter().map(OwnerReference::from_value).collect()
    }
    /// The owner marked as controller.
    fn controller_of(&self) -> Option<OwnerReference> {
        self.metadata()
            .array_at(&["ownerReferences"])
            .iter()
            .find(|o| o["controller"] == true)
            .map(OwnerReference::from_value)
    }
    fn managed_fields(&self) -> &[Value] {
        self.metadata().array_at(&["managedFields"])
    }

    fn set_name(&mut self, name: &str) {
        self.metadata_mut().insert("name", name.into());
    }
    /// An empty namespace removes the field.
    fn set_namespace(&mut self, namespace: &str) {
        self.set_or_remove("namespace", namespace);
    }
    fn set_uid(&mut self, uid: &str) {
        self.set_or_remove("uid", uid);
    }
    /// An empty version removes the field.
    fn set_resource_version(&mut self, resource_version: &str) {
        self.set_or_remove("resourceVersion", resource_version);
    }
    /// Zero removes the field.
    fn set_generation(&mut self, generation: i64) {
        if generation == 0 {
            self.metadata_mut().remove("generation");
        } else {
            self.metadata_mut().insert("generation", generation.into());
        }
    }
    fn set_label(&mut self, key: &str, value: &str) {
        self.metadata_mut().object_mut("labels").insert(key, value.into());
    }
    fn set_annotation(&mut self, key: &str, value: &str) {
        self.metadata_mut().object_mut("annotations").insert(key, value.into());
    }
    /// Removes an annotation, and `annotations` with the last one.
    fn remove_annotation(&mut self, key: &str) -> Option<Value> {
        let annotations = self.metadata_mut().get_mut("annotations")?.as_object_mut()?;
        let removed = annotations.remove(key);
        if annotations.is_empty() {
            self.metadata_mut().remove("annotations");
        }
        removed
    }
    /// No finalizers removes the field.
    fn set_finalizers(&mut self, finalizers: Vec<Value>) {
        if finalizers.is_empty() {
            self.metadata_mut().remove("finalizers");
        } else {
            self.metadata_mut().insert("finalizers", Value::Array(finalizers));
        }
    }
    /// Adds a finalizer that is not there yet.
    fn add_finalizer(&mut self, finalizer: &str) {
        if !self.has_finalizer(finalizer) {
            let mut finalizers = self.metadata().array_at(&["finalizers"]).to_vec();
            finalizers.push(finalizer.into());
            self.set_finalizers(finalizers);
        }
    }
    fn remove_finalizer(&mut self, finalizer: &str) {
        let mut finalizers = self.metadata().array_at(&["finalizers"]).to_vec();
        finalizers.retain(|f| !(*f == *finalizer));
        self.set_finalizers(finalizers);
    }
    /// No entries removes the field.
    fn set_managed_fields(&mut self, entries: Vec<Value>) {
        if entries.is_empty() {
            self.metadata_mut().remove("managedFields");
        } else {
            self.metadata_mut().insert("managedFields", Value::Array(entries));
        }
    }
    #[doc(hidden)]
    fn set_or_remove(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.metadata_mut().remove(key);
        } else {
            self.metadata_mut().insert(key, value.into());
        }
    }
}

impl ObjectMeta for Value {
    fn metadata(&self) -> &Value {
        &self["metadata"]
    }
    fn metadata_mut(&mut self) -> &mut Map {
        self.make_object().object_mut("metadata")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn metadata_is_read_leniently_and_written_sparsely() {
        let mut pod = json!({"metadata": {"name": "a", "labels": {"app": "web"}, "generation": 3,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]}});
        assert_eq!((pod.name(), pod.label("app"), pod.generation()), ("a", Some("web"), 3));
        assert_eq!(pod.controller_of().map(|o| o.name), Some("r".to_owned()));
        assert_eq!(pod.owner_references()[0].to_value(), pod["metadata"]["ownerReferences"][0]);
        pod.add_finalizer("x/y");
        pod.add_finalizer("x/y");
        assert_eq!(pod.finalizers(), ["x/y"]);
        pod.remove_finalizer("x/y");
        pod.set_namespace("");
        pod.set_annotation("k", "v");
        pod.remove_annotation("k");
        assert_eq!(pod["metadata"].as_object().map(|m| m.len()), Some(4));
        assert_eq!(Value::Null.name(), "");
    }
}
