//! Host objects that tenants see: classes, CSI objects, config maps and secrets. The host's state wins, always.
//!
//! Invariant: a virtual object that is not marked as a copy is the tenant's and stays as it is.

use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, Outcome, Queue, RawObject};

use super::{Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind::{self, Kind};
use crate::metadata::{annotation, name_of, uid_of};
use crate::names::NamespacedName;
use crate::settings::{Import, Settings};
use crate::types::classes::{IMPORTED_FROM_ANNOTATION, import_config, import_target, imported, mirror};

/// A host object to look at: its kind's place in [`Imports::kinds`], and where it is.
pub type ImportKey = (usize, NamespacedName);

pub struct Imports {
    pub queue: Queue<ImportKey>,
    pub kinds: Vec<ImportedKind>,
}

pub struct ImportedKind {
    pub kind: &'static Kind,
    pub import: Import,
    /// Caches of host namespaces, for kinds that live in some.
    pub namespaces: Vec<Informer<RawObject>>,
}

impl Imports {
    /// The kinds that the settings ask for.
    pub fn new(settings: &Settings) -> Imports {
        let all = || Import::On(json!({}));
        let csi = if settings.import_csi { all() } else { Import::Off };
        let configs = |mappings: &[crate::settings::ImportMapping]| {
            if mappings.is_empty() { Import::Off } else { all() }
        };
        let kinds = [
            (&kind::INGRESS_CLASS, settings.import_ingress_classes.clone()),
            (&kind::HOST_STORAGE_CLASS, settings.import_storage_classes.clone()),
            (&kind::RUNTIME_CLASS, settings.import_runtime_classes.clone()),
            (&kind::HOST_PRIORITY_CLASS, settings.import_priority_classes.clone()),
            (&kind::CSI_DRIVER, csi.clone()),
            (&kind::CSI_NODE, csi),
            (&kind::CONFIG_MAP, configs(&settings.import_config_maps)),
            (&kind::SECRET, configs(&settings.import_secrets)),
        ]
        .into_iter()
        .filter(|(_, import)| import.is_on())
        .map(|(kind, import)| ImportedKind { kind, import, namespaces: Vec::new() })
        .collect();
        Imports { queue: Queue::default(), kinds }
    }
}

impl Engine {
    fn import_mappings(&self, kind: &Kind) -> &[crate::settings::ImportMapping] {
        if kind.kind == "Secret" { &self.settings.import_secrets } else { &self.settings.import_config_maps }
    }

    /// Where a host object is shown and as what.
    fn import_of(&self, from: &ImportedKind, host_name: &NamespacedName) -> Option<(NamespacedName, Option<Value>)> {
        if !from.kind.namespaced {
            let host = self.host_side.get(from.kind, host_name);
            let wanted = host.filter(|h| imported(h, from.kind, &from.import)).map(|h| {
                let mut wanted = mirror(&h, from.kind);
                wanted.set_at(&["metadata", "annotations", IMPORTED_FROM_ANNOTATION], "true".into());
                wanted
            });
            return Some((host_name.clone(), wanted));
        }
        let mappings = self.import_mappings(from.kind);
        let install = self.names.install_namespace();
        let target = import_target(mappings, &host_name.namespace, &host_name.name, install)?;
        let key = ObjectKey::new(host_name.namespace.as_str(), host_name.name.as_str());
        let host = from.namespaces.iter().find_map(|c| c.get(&key)).and_then(|o| o.to_tree().ok());
        let wanted = host.and_then(|h| import_config(&h, from.kind, &target));
        Some((NamespacedName::new(target.0, target.1), wanted))
    }

    pub(super) async fn reconcile_import(&self, key: &ImportKey) -> Result<Outcome, SyncError> {
        let from = &self.imports.kinds[key.0];
        let Some((name, wanted)) = self.import_of(from, &key.1) else { return Ok(Outcome::Done) };
        let side = &self.virtual_side;
        let existing = side.get(from.kind, &name);
        let ours = existing.as_ref().is_some_and(|e| annotation(e, IMPORTED_FROM_ANNOTATION) == "true");
        match (wanted, existing) {
            (Some(mut wanted), None) => {
                wanted["apiVersion"] = from.kind.api_version().into();
                wanted["kind"] = from.kind.kind.to_string().into();
                match side.create(from.kind, &wanted).await {
                    Err(error) if error.is_not_found() && !name.namespace.is_empty() => {
                        let namespace = json!({
                            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": (name.namespace.as_str())},
                        });
                        side.create(&kind::NAMESPACE, &namespace).await?;
                        return Ok(Outcome::Retry);
                    }
                    other => other.map(drop)?,
                }
            }
            (Some(wanted), Some(existing)) if ours => {
                let mut merged = existing.clone();
                let Some(map) = wanted.as_object() else { return Ok(Outcome::Done) };
                for (member, value) in map.iter() {
                    if !matches!(member.as_str(), "apiVersion" | "kind" | "metadata") {
                        merged[member.as_str()] = value.clone();
                    }
                }
                if let Some(map) = existing.as_object() {
                    for member in map.keys().filter(|k| wanted.get(k).is_none()) {
                        merged.remove_at(&[member]);
                    }
                }
                for member in ["labels", "annotations"] {
                    crate::diff::put(&mut merged, &["metadata", member], wanted.at(&["metadata", member]).cloned());
                }
                let Some(patch) = merge_patch(&existing, &merged) else { return Ok(Outcome::Done) };
                match side.patch(from.kind, &name, "", &patch).await {
                    // Fields that cannot be changed: a new object.
                    Err(error) if error.is_invalid() => {
                        side.delete(from.kind, &name, uid_of(&existing), None).await?;
                        return Ok(Outcome::Retry);
                    }
                    other => other.map(drop)?,
                }
            }
            (None, Some(existing)) if ours => side.delete(from.kind, &name, uid_of(&existing), None).await?,
            (Some(_), Some(_)) => {
                tracing::debug!(kind = %from.kind.kind, %name, "not imported: the tenant has an object of that name");
            }
            (None, _) => {}
        }
        Ok(Outcome::Done)
    }

    /// Copies whose host object went away while nobody looked.
    pub(super) async fn sweep_imports(&self) -> Result<(), SyncError> {
        for from in &self.imports.kinds {
            let Some(cache) = self.virtual_side.cache(from.kind) else { continue };
            let mut wanted: Vec<NamespacedName> = Vec::new();
            if from.kind.namespaced {
                for host in from.namespaces.iter().flat_map(|c| c.list()) {
                    let host = NamespacedName::new(host.metadata.namespace.as_str(), host.metadata.name.as_str());
                    if let Some((name, Some(_))) = self.import_of(from, &host) {
                        wanted.push(name);
                    }
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
                    self.import_of(from, &name).is_none_or(|(_, wanted)| wanted.is_none())
                };
                if gone {
                    self.virtual_side.delete(from.kind, &name, uid_of(&tree), None).await?;
                }
            }
        }
        Ok(())
    }
}
