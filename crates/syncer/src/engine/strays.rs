//! Level-triggered to the end: what no event tells is found by comparing the two caches.
//!
//! A host object without its virtual one, and a virtual object without its host one, are put into their type's queue, where
//! [`crate::plan::plan`] decides as always. That is done after every listing of either side (an object that came and went
//! while a watch was broken is told by nothing else) and from time to time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use apimachinery::Value;
use informer::{Informer, ObjectKey, Outcome, RawObject};

use super::side::resource;
use super::{Engine, SyncError, TypeState};
use crate::kind;
use crate::metadata::{IMPORTED_ANNOTATION, KIND_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, NAMESPACE_ANNOTATION};
use crate::names::NamespacedName;

/// How often both sides are compared when nothing happens.
pub const LOOK_EVERY: Duration = Duration::from_secs(180);

/// The virtual object that a host object says it stands for, when it is of this kind.
pub fn source_of(object: &RawObject, gvk: &str) -> Option<NamespacedName> {
    let annotations = &object.metadata.annotations;
    let of = |key| annotations.get(key).unwrap_or_default();
    let kind = of(KIND_ANNOTATION);
    let name = of(NAME_ANNOTATION);
    (!name.is_empty() && (kind.is_empty() || kind == gvk)).then(|| NamespacedName::new(of(NAMESPACE_ANNOTATION), name))
}

impl Engine {
    /// Host objects of a type whose virtual object is gone, by the name that it had.
    pub(super) fn strays_of(&self, ty: &TypeState) -> Vec<NamespacedName> {
        let kind = ty.ty.kind();
        let gvk = kind.gvk();
        let Some(cache) = self.host_side.cache(kind) else { return Vec::new() };
        let living = cache.list().into_iter().filter(|o| !o.metadata.is_deleting());
        let sources = living.filter_map(|o| source_of(&o, &gvk));
        sources.filter(|name| self.virtual_side.get(kind, name).is_none()).collect()
    }

    /// Looks again at everything of a type that is on one side only.
    pub(super) fn look_at_strays(&self, ty: &TypeState) {
        let synced = |c: Option<Informer<RawObject>>| c.is_some_and(|c| c.has_synced());
        let kind = ty.ty.kind();
        if !synced(self.host_side.cache(kind)) || !synced(self.virtual_side.cache(kind)) {
            return;
        }
        let strays = self.strays_of(ty);
        if !strays.is_empty() {
            tracing::debug!(kind = %kind.kind, count = strays.len(), "host objects without a virtual one");
            ty.metrics.strays.fetch_add(strays.len() as u64, Ordering::Relaxed);
        }
        strays.into_iter().for_each(|name| ty.queue.add(name));
        let (Some(virtual_), Some(host)) = (self.virtual_side.cache(kind), self.host_side.cache(kind)) else { return };
        for key in virtual_.keys() {
            let name = NamespacedName::new(key.namespace.as_str(), key.name.as_str());
            let on_host = kind.host_name(&self.names, &name);
            if host.get(&ObjectKey::new(on_host.namespace, on_host.name)).is_none() {
                ty.queue.add(name);
            }
        }
    }

    /// Has the type looked at after each listing of this cache.
    pub(super) fn look_after_listing(self: &Arc<Engine>, ty: &Arc<TypeState>, cache: &Informer<RawObject>) {
        let (engine, ty) = (Arc::downgrade(self), Arc::downgrade(ty));
        cache.on_listed(move |_| {
            if let (Some(engine), Some(ty)) = (engine.upgrade(), ty.upgrade()) {
                engine.look_at_strays(&ty);
            }
        });
    }

    pub(super) async fn look_for_strays(&self) -> Result<Outcome, SyncError> {
        for ty in self.all_types() {
            self.look_at_strays(&ty);
        }
        self.collect_mappings(false);
        self.virtual_side.purge();
        self.host_side.purge();
        if let Err(error) = self.mappings.compare().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not compare the mappings");
        }
        if self.names.syncs_namespaces() {
            self.remove_stray_namespaces().await?;
        }
        Ok(Outcome::After(LOOK_EVERY))
    }

    /// Host namespaces made here for virtual namespaces that went while nobody looked.
    pub(super) async fn remove_stray_namespaces(&self) -> Result<(), SyncError> {
        let Some(virtual_) = self.virtual_side.cache(&kind::NAMESPACE).filter(|c| c.has_synced()) else {
            return Ok(());
        };
        let selector = format!("{MANAGED_BY_LABEL}={}", self.names.cluster_marker());
        self.host_side.requests.fetch_add(1, Ordering::Relaxed);
        let on_host = self.host_side.rest.list_as::<Value>(&resource(&kind::NAMESPACE), "", &selector, "").await;
        for host in on_host? {
            let name = crate::metadata::name_of(&host);
            // Whatever the rules say now: what is in it is the tenant's as long as the virtual namespace is there.
            let of = crate::metadata::annotation(&host, NAME_ANNOTATION);
            let stays = of.is_empty()
                || virtual_.get(&ObjectKey::cluster(of)).is_some()
                || crate::metadata::annotation(&host, IMPORTED_ANNOTATION) == "true"
                || crate::metadata::is_deleting(&host);
            if !stays && self.owns_namespace(&host) {
                self.host_side.delete(&kind::NAMESPACE, &name, crate::metadata::uid_of(&host), None).await?;
            }
        }
        Ok(())
    }
}
