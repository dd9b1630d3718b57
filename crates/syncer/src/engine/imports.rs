//! Host objects that tenants see: classes, CSI objects, config maps and secrets, custom resources, Gateways. The host's state
//! wins, always.
//!
//! Invariant: a virtual object that is not marked as a copy is the tenant's and stays as it is.

use std::sync::Arc;

use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, Outcome, Queue, RawObject};
use parking_lot::RwLock;

use super::{Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind::{self, GATEWAY_GROUP, Kind};
use crate::metadata::{MANAGED_BY_LABEL, annotation, label, name_of, uid_of};
use crate::names::NamespacedName;
use crate::settings::{Import, ImportMapping, Settings};
use crate::types::classes::{IMPORTED_FROM_ANNOTATION, import_config, import_target, imported, mirror};
use crate::types::{Context, Facts, gateway};

/// A host object to look at: its kind's place in [`Imports::kinds`], and where it is.
pub type ImportKey = (usize, NamespacedName);

#[derive(Default)]
pub struct Imports {
    pub queue: Queue<ImportKey>,
    /// Grows when definitions of custom resources become known.
    pub kinds: RwLock<Vec<Arc<ImportedKind>>>,
}

pub struct ImportedKind {
    pub kind: Kind,
    pub import: Import,
    /// Which objects are shown where, for kinds that live in namespaces.
    pub mappings: Vec<ImportMapping>,
    /// Caches of the host namespaces of the mappings.
    pub namespaces: Vec<Informer<RawObject>>,
}

impl ImportedKind {
    pub fn new(kind: Kind, import: Import, mappings: Vec<ImportMapping>) -> ImportedKind {
        ImportedKind { kind, import, mappings, namespaces: Vec::new() }
    }

    /// The host namespaces to look into; empty text: all of them.
    pub fn host_namespaces(&self, install_namespace: &str) -> Vec<String> {
        if !self.kind.namespaced {
            return Vec::new();
        }
        if self.kind == kind::CSI_STORAGE_CAPACITY {
            return vec![String::new()];
        }
        let of = |m: &ImportMapping| match m.from.split_once('/') {
            Some(("", _)) | None => install_namespace.to_owned(),
            Some((namespace, _)) => namespace.to_owned(),
        };
        let mut namespaces: Vec<String> = self.mappings.iter().map(of).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        namespaces
    }

    /// The virtual name of a host object.
    fn target(&self, host: &NamespacedName, install_namespace: &str) -> Option<NamespacedName> {
        if !self.kind.namespaced {
            return Some(host.clone());
        }
        if self.kind == kind::CSI_STORAGE_CAPACITY {
            let name = crate::names::safe_concat(&[&host.name, "x", &host.namespace]);
            return Some(NamespacedName::new("kube-system", name));
        }
        let target = import_target(&self.mappings, &host.namespace, &host.name, install_namespace)?;
        Some(NamespacedName::new(target.0, target.1))
    }

    fn is_gateway(&self) -> bool {
        self.kind.group == GATEWAY_GROUP && self.kind.plural == "gateways"
    }
}

/// The built-in kinds that the settings ask for.
pub fn built_in(settings: &Settings) -> Vec<ImportedKind> {
    let all = |on: bool| if on { Import::On(json!({})) } else { Import::Off };
    let kinds = [
        (&kind::INGRESS_CLASS, settings.import_ingress_classes.clone(), &[][..]),
        (&kind::HOST_STORAGE_CLASS, settings.import_storage_classes.clone(), &[]),
        (&kind::RUNTIME_CLASS, settings.import_runtime_classes.clone(), &[]),
        (&kind::HOST_PRIORITY_CLASS, settings.import_priority_classes.clone(), &[]),
        (&kind::DEVICE_CLASS, settings.import_device_classes.clone(), &[]),
        (&kind::CSI_DRIVER, all(settings.import_csi_drivers), &[]),
        (&kind::CSI_NODE, all(settings.import_csi_nodes), &[]),
        (&kind::CSI_STORAGE_CAPACITY, all(settings.import_csi_storage_capacities), &[]),
        (&kind::CONFIG_MAP, all(!settings.import_config_maps.is_empty()), settings.import_config_maps.as_slice()),
        (&kind::SECRET, all(!settings.import_secrets.is_empty()), settings.import_secrets.as_slice()),
    ];
    let on = kinds.into_iter().filter(|(_, import, _)| import.is_on());
    on.map(|(kind, import, mappings)| ImportedKind::new(kind.clone(), import, mappings.to_vec())).collect()
}

impl Engine {
    fn imported_kind(&self, n: usize) -> Option<Arc<ImportedKind>> {
        self.imports.kinds.read().get(n).cloned()
    }

    fn host_object(&self, from: &ImportedKind, name: &NamespacedName) -> Option<Value> {
        if !from.kind.namespaced {
            return self.host_side.get(&from.kind, name);
        }
        let key = ObjectKey::new(name.namespace.as_str(), name.name.as_str());
        from.namespaces.iter().find_map(|c| c.get(&key)).and_then(|o| o.to_tree().ok())
    }

    /// Where a host object is shown and as what.
    fn import_of(&self, from: &ImportedKind, host_name: &NamespacedName) -> Option<(NamespacedName, Option<Value>)> {
        let target = from.target(host_name, self.names.install_namespace())?;
        let host = self.host_object(from, host_name);
        let wanted = host.and_then(|host| {
            let mut copy = self.copy_of(from, &host, &target)?;
            copy["apiVersion"] = from.kind.api_version().into();
            copy["kind"] = from.kind.kind.to_string().into();
            let mut copy = self.patch_import(&from.kind, &host, copy)?;
            if from.kind.group == GATEWAY_GROUP && from.kind.plural == "gatewayclasses" {
                // How the host is built; no patch brings it back.
                copy.remove_at(&["spec", "parametersRef"]);
            }
            Some(copy)
        });
        Some((target, wanted))
    }

    fn copy_of(&self, from: &ImportedKind, host: &Value, target: &NamespacedName) -> Option<Value> {
        if from.kind.kind == "ConfigMap" || from.kind.kind == "Secret" && from.kind.group.is_empty() {
            return import_config(host, &from.kind, &(target.namespace.clone(), target.name.clone()));
        }
        if !imported(host, &from.kind, &from.import) {
            return None;
        }
        if from.is_gateway() && !self.settings.import_gateways.as_ref().is_some_and(|i| gateway::selected(host, i)) {
            return None;
        }
        if from.kind == kind::CSI_NODE && self.virtual_side.get(&kind::NODE, target).is_none() {
            return None;
        }
        let mut copy = mirror(host, &from.kind);
        if from.kind.namespaced {
            copy["metadata"]["namespace"] = target.namespace.as_str().into();
            copy["metadata"]["name"] = target.name.as_str().into();
        }
        if from.is_gateway() {
            let mut of_host = copy.clone();
            of_host["metadata"]["namespace"] = host["metadata"]["namespace"].clone();
            of_host["metadata"]["name"] = host["metadata"]["name"].clone();
            copy = gateway::shown(&of_host, self.settings.import_gateways.as_ref()?);
            copy["metadata"]["namespace"] = target.namespace.as_str().into();
            copy["metadata"]["name"] = target.name.as_str().into();
        }
        copy.set_at(&["metadata", "annotations", IMPORTED_FROM_ANNOTATION], "true".into());
        Some(copy)
    }

    /// Applies the configuration's patches. `None`: a patch failed, and nothing half-done is shown.
    pub(super) fn patch_import(&self, kind: &Kind, host: &Value, mut copy: Value) -> Option<Value> {
        let patches = super::patches_of(&self.settings.import_patches, kind);
        if patches.is_empty() {
            return Some(copy);
        }
        let facts = Facts::default();
        let ctx = Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &facts,
            patches: &[],
            now: self.clock.now(),
        };
        match crate::patches::apply_to_import(patches, host, &mut copy, &ctx) {
            Ok(()) => Some(copy),
            Err(refusal) => {
                tracing::warn!(kind = %kind.kind, object = %name_of(host), ?refusal, "not imported: a patch failed");
                None
            }
        }
    }

    /// Whether the host's Gateways are in the caches.
    pub(super) fn host_gateways_known(&self) -> bool {
        let kinds = self.imports.kinds.read();
        let mut gateways = kinds.iter().filter(|k| k.is_gateway()).peekable();
        gateways.peek().is_some() && gateways.all(|k| k.namespaces.iter().all(|c| c.has_synced()))
    }

    /// Host Gateways that are shown to the tenant.
    pub(super) fn shown_gateways(&self) -> Vec<Value> {
        let kinds = self.imports.kinds.read();
        let caches = kinds.iter().filter(|k| k.is_gateway()).flat_map(|k| k.namespaces.iter());
        let objects = caches.flat_map(|c| c.list()).filter_map(|o| o.to_tree().ok());
        objects.filter(|g| label(g, MANAGED_BY_LABEL).is_empty()).collect()
    }

    /// Objects that a selector on classes had refused, or lets go no more.
    pub(super) fn import_changed(&self, kind: &Kind) {
        let limited = |import: &Import| import.selector().is_some();
        let settings = &self.settings;
        if *kind == kind::INGRESS_CLASS && limited(&settings.import_ingress_classes) {
            self.enqueue_all(&kind::INGRESS);
        } else if *kind == kind::HOST_STORAGE_CLASS && limited(&settings.import_storage_classes) {
            self.enqueue_all(&kind::PERSISTENT_VOLUME_CLAIM);
        } else if *kind == kind::RUNTIME_CLASS && limited(&settings.import_runtime_classes)
            || *kind == kind::HOST_PRIORITY_CLASS && limited(&settings.import_priority_classes)
        {
            self.enqueue_all(&kind::POD);
        } else if kind.group == GATEWAY_GROUP {
            self.enqueue_gateway_kinds();
        }
    }

    /// The host object of a copy that the tenant changed.
    pub(super) fn enqueue_import_of(&self, n: usize, copy: &Value) {
        let Some(from) = self.imported_kind(n) else { return };
        let name = name_of(copy);
        if !from.kind.namespaced {
            self.imports.queue.add((n, name));
            return;
        }
        let install = self.names.install_namespace();
        for key in from.namespaces.iter().flat_map(|c| c.keys()) {
            let host = NamespacedName::new(key.namespace.as_str(), key.name.as_str());
            if from.target(&host, install).as_ref() == Some(&name) {
                self.imports.queue.add((n, host));
            }
        }
    }

    /// Looks again at an imported object of a cluster-scoped kind.
    pub(super) fn enqueue_import(&self, kind: &Kind, name: &str) {
        if let Some(n) = self.imports.kinds.read().iter().position(|k| k.kind == *kind) {
            self.imports.queue.add((n, NamespacedName::new("", name)));
        }
    }

    pub(super) async fn reconcile_import(&self, key: &ImportKey) -> Result<Outcome, SyncError> {
        let Some(from) = self.imported_kind(key.0) else { return Ok(Outcome::Done) };
        let kind = &from.kind;
        let Some((name, wanted)) = self.import_of(&from, &key.1) else { return Ok(Outcome::Done) };
        let side = &self.virtual_side;
        let existing = side.get(kind, &name);
        let ours = existing.as_ref().is_some_and(|e| annotation(e, IMPORTED_FROM_ANNOTATION) == "true");
        match (wanted, existing) {
            (Some(wanted), None) => {
                let made = match side.create(kind, &wanted).await {
                    Err(error) if error.is_not_found() && !name.namespace.is_empty() => {
                        self.ensure_namespace(&name.namespace).await?;
                        return Ok(Outcome::Retry);
                    }
                    other => other?,
                };
                if let Some(status) = wanted.get("status").filter(|s| !s.is_null() && made.get("status") != Some(s)) {
                    self.patch_import_status(kind, &name, uid_of(&made), status).await?;
                }
            }
            (Some(wanted), Some(existing)) if ours => {
                let mut merged = existing.clone();
                let Some(map) = wanted.as_object() else { return Ok(Outcome::Done) };
                for (member, value) in map.iter() {
                    if !matches!(member.as_str(), "apiVersion" | "kind" | "metadata" | "status") {
                        merged[member.as_str()] = value.clone();
                    }
                }
                if let Some(map) = existing.as_object() {
                    for member in map.keys().filter(|k| *k != "status" && wanted.get(k).is_none()) {
                        merged.remove_at(&[member]);
                    }
                }
                for member in ["labels", "annotations"] {
                    crate::diff::put(&mut merged, &["metadata", member], wanted.at(&["metadata", member]).cloned());
                }
                if let Some(patch) = merge_patch(&existing, &merged) {
                    match side.patch(kind, &name, "", &patch).await {
                        // Fields that cannot be changed: a new object.
                        Err(error) if error.is_invalid() => {
                            side.delete(kind, &name, uid_of(&existing), None).await?;
                            return Ok(Outcome::Retry);
                        }
                        other => other.map(drop)?,
                    }
                }
                if let Some(status) = wanted.get("status").filter(|s| !s.is_null() && existing.get("status") != Some(s))
                {
                    self.patch_import_status(kind, &name, uid_of(&existing), status).await?;
                }
            }
            (None, Some(existing)) if ours => side.delete(kind, &name, uid_of(&existing), None).await?,
            (Some(_), Some(_)) => {
                tracing::debug!(kind = %kind.kind, %name, "not imported: the tenant has an object of that name");
            }
            (None, _) => {}
        }
        Ok(Outcome::Done)
    }

    async fn patch_import_status(
        &self,
        kind: &Kind,
        name: &NamespacedName,
        uid: &str,
        status: &Value,
    ) -> Result<(), SyncError> {
        let patch = json!({"metadata": {"uid": uid}, "status": (status.clone())});
        match self.virtual_side.patch(kind, name, "status", &patch).await {
            // A kind without status subresource has it in the object itself.
            Err(error) if error.is_not_found() => drop(self.virtual_side.patch(kind, name, "", &patch).await?),
            other => drop(other?),
        }
        Ok(())
    }

    /// Copies whose host object went away while nobody looked.
    pub(super) async fn sweep_imports(&self, n: usize) -> Result<(), SyncError> {
        let Some(from) = self.imported_kind(n) else { return Ok(()) };
        let Some(cache) = self.virtual_side.cache(&from.kind) else { return Ok(()) };
        let mut wanted: Vec<NamespacedName> = Vec::new();
        for host in from.namespaces.iter().flat_map(|c| c.keys()) {
            let host = NamespacedName::new(host.namespace.as_str(), host.name.as_str());
            if let Some((name, Some(_))) = self.import_of(&from, &host) {
                wanted.push(name);
            }
        }
        for copy in cache.list() {
            if copy.metadata.annotations.get(IMPORTED_FROM_ANNOTATION) != Some("true") {
                continue;
            }
            let Ok(tree) = copy.to_tree() else { continue };
            let name = name_of(&tree);
            let gone = if from.kind.namespaced {
                !wanted.contains(&name)
            } else {
                self.import_of(&from, &name).is_none_or(|(_, wanted)| wanted.is_none())
            };
            if gone {
                self.virtual_side.delete(&from.kind, &name, uid_of(&tree), None).await?;
            }
        }
        Ok(())
    }
}
