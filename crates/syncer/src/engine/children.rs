//! What controllers of the host make for synced objects, shown to the tenant: the Secret of a Certificate, the Service of an
//! operator's resource.
//!
//! An object belongs to a tenant when a synced object names it (a `reference` patch says where), or owns it. It is marked as
//! imported then: from there on it is synced like others, but never deleted by the syncer.
//!
//! Invariant: an object that carries another tenant's mark, or none of the above, is not touched.

use std::sync::Arc;

use apimachinery::{Map, Value, json};
use informer::{Informer, ObjectKey, Outcome, RawObject, Source};

use super::side::resource;
use super::{Engine, SyncError};
use crate::kind::{self, Kind};
use crate::metadata::{
    HOST_NAME_ANNOTATION, HOST_NAMESPACE_ANNOTATION, IMPORTED_ANNOTATION, KIND_ANNOTATION, MANAGED_BY_LABEL,
    NAME_ANNOTATION, NAMESPACE_ANNOTATION, NAMESPACE_LABEL, Owner, UID_ANNOTATION, is_deleting, label, name_of, owner,
    uid_of,
};
use crate::names::NamespacedName;
use crate::types::classes::mirror;

/// Kinds that host controllers make for others and tenants read.
static CHILDREN: [&Kind; 4] = [&kind::SECRET, &kind::CONFIG_MAP, &kind::SERVICE, &kind::PERSISTENT_VOLUME_CLAIM];

/// A host object to look at: its kind's place in the list of caches, and where it is.
pub type ChildKey = (usize, NamespacedName);

pub struct Children {
    kind: &'static Kind,
    cache: Informer<RawObject>,
}

impl Engine {
    /// Watches all objects of the kinds in the install namespace, where custom resources go to the host.
    pub(super) fn watch_children(self: &Arc<Engine>) {
        let mut all = Vec::new();
        if !self.settings.custom_resources.is_empty() {
            for (n, kind) in CHILDREN.into_iter().filter(|k| self.type_of(k).is_some()).enumerate() {
                let source = Source::namespaced(resource(kind), self.names.install_namespace());
                let cache = self.host_side.factory.informer::<RawObject>(source);
                let queue = self.child_queue.clone();
                cache.on_change(move |change| {
                    let metadata = &change.object().metadata;
                    if !change.is_deleted() && metadata.labels.get(MANAGED_BY_LABEL).is_none() {
                        queue.add((n, NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str())));
                    }
                });
                all.push(Children { kind, cache });
            }
        }
        // Once per engine.
        let _ = self.children.set(all);
    }

    /// A synced object changed: what it names or owns may be on the host already.
    pub(super) fn enqueue_children(&self) {
        for (n, children) in self.children.get().into_iter().flatten().enumerate() {
            for object in children.cache.list() {
                if object.metadata.labels.get(MANAGED_BY_LABEL).is_none() {
                    let name = NamespacedName::new(object.metadata.namespace.as_str(), object.metadata.name.as_str());
                    self.child_queue.add((n, name));
                }
            }
        }
    }

    /// The virtual name of an object that somebody made on the host for one of ours.
    fn child_of(&self, kind: &Kind, host: &Value) -> Option<NamespacedName> {
        let at = name_of(host);
        for ty in self.all_types() {
            let of = ty.ty.kind();
            if !self.settings.custom_resources.iter().any(|c| c.plural == of.plural && c.group == of.group) {
                continue;
            }
            let patches = self.patches(of);
            for object in self.virtual_side.cache(of).map(|c| c.list()).unwrap_or_default() {
                let Ok(object) = object.to_tree() else { continue };
                let named = crate::patches::references(patches, &object);
                let named = named.into_iter().filter(|r| r.kind == kind.kind.as_ref());
                if let Some(found) = named.map(|r| r.name).find(|n| kind.is_host_name(&self.names, n, &at)) {
                    return Some(found);
                }
            }
            for reference in host.array_at(&["metadata", "ownerReferences"]) {
                let parent = NamespacedName::new(at.namespace.as_str(), reference.str_at(&["name"]));
                if reference.str_at(&["kind"]) != of.kind {
                    continue;
                }
                let Some(parent) = self.host_side.get(of, &parent) else { continue };
                if uid_of(&parent) != reference.str_at(&["uid"]) {
                    continue;
                }
                let Owner::Ours { name: parent, .. } = owner(&parent, of, &self.names) else { continue };
                // The parent's host name is a part of most children's names.
                let host_parent = of.host_name(&self.names, &parent).name;
                let name = at.name.replace(&host_parent, &parent.name);
                return Some(NamespacedName::new(parent.namespace, name));
            }
        }
        None
    }

    pub(super) async fn reconcile_child(&self, key: &ChildKey) -> Result<Outcome, SyncError> {
        let Some(children) = self.children.get().and_then(|c| c.get(key.0)) else { return Ok(Outcome::Done) };
        let at = ObjectKey::new(key.1.namespace.as_str(), key.1.name.as_str());
        let host = children.cache.get(&at).and_then(|o| o.to_tree().ok());
        let Some(host) = host.filter(|h| label(h, MANAGED_BY_LABEL).is_empty() && !is_deleting(h)) else {
            return Ok(Outcome::Done);
        };
        let kind = children.kind;
        let Some(name) = self.child_of(kind, &host) else { return Ok(Outcome::Done) };
        if !kind.is_host_name(&self.names, &name, &key.1) {
            // It cannot be found again by its name: a copy, which follows the host.
            return self.copy_child(kind, &host, &name).await;
        }
        let virtual_ = match self.virtual_side.get(kind, &name) {
            Some(existing) => existing,
            None => {
                let mut copy = mirror(&host, kind);
                copy["metadata"]["namespace"] = name.namespace.as_str().into();
                copy["metadata"]["name"] = name.name.as_str().into();
                copy.remove_at(&["status"]);
                match self.virtual_side.create(kind, &copy).await {
                    Err(error) if error.is_already_exists() => return Ok(Outcome::Retry),
                    other => other?,
                }
            }
        };
        let mut annotations = Map::new();
        for (key, value) in [
            (IMPORTED_ANNOTATION, "true".to_owned()),
            (NAME_ANNOTATION, name.name.clone()),
            (NAMESPACE_ANNOTATION, name.namespace.clone()),
            (UID_ANNOTATION, uid_of(&virtual_).to_owned()),
            (KIND_ANNOTATION, kind.gvk()),
            (HOST_NAME_ANNOTATION, key.1.name.clone()),
            (HOST_NAMESPACE_ANNOTATION, key.1.namespace.clone()),
        ] {
            annotations.insert(key, value.into());
        }
        let patch = json!({"metadata": {"uid": (uid_of(&host)), "annotations": annotations, "labels": {
            MANAGED_BY_LABEL: (self.names.virtual_cluster()), NAMESPACE_LABEL: (name.namespace.as_str())}}});
        self.host_side.patch(kind, &key.1, "", &patch).await?;
        Ok(Outcome::Done)
    }

    async fn copy_child(&self, kind: &Kind, host: &Value, name: &NamespacedName) -> Result<Outcome, SyncError> {
        let mut copy = mirror(host, kind);
        copy["metadata"]["namespace"] = name.namespace.as_str().into();
        copy["metadata"]["name"] = name.name.as_str().into();
        copy.remove_at(&["status"]);
        if !matches!(kind.kind.as_ref(), "Secret" | "ConfigMap") {
            return Ok(Outcome::Done);
        }
        copy.set_at(&["metadata", "annotations", IMPORTED_ANNOTATION], "true".into());
        match self.virtual_side.get(kind, name) {
            None => match self.virtual_side.create(kind, &copy).await {
                Err(error) if !error.is_already_exists() => return Err(error.into()),
                _ => {}
            },
            Some(existing) if crate::metadata::annotation(&existing, IMPORTED_ANNOTATION) == "true" => {
                let mut wanted = existing.clone();
                for member in ["data", "binaryData"] {
                    crate::diff::put(&mut wanted, &[member], copy.get(member).cloned());
                }
                if let Some(patch) = crate::diff::merge_patch(&existing, &wanted) {
                    self.virtual_side.patch(kind, name, "", &patch).await?;
                }
            }
            // The tenant's own.
            Some(_) => {}
        }
        Ok(Outcome::Done)
    }
}
