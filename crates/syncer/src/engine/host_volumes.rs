//! Host volumes of tenants' claims, shown under their own names.

use apimachinery::Value;
use informer::{ObjectKey, Outcome, RawObject, Source};

use super::side::resource;
use super::{Engine, SyncError};
use crate::diff::{merge_patch, split_status};
use crate::kind;
use crate::metadata::{Owner, annotation, owner, uid_of};
use crate::names::NamespacedName;
use crate::types::real_volumes::{HOST_VOLUME_ANNOTATION, shown};
use crate::types::{Context, Facts};

impl Engine {
    fn host_volume(&self, name: &str) -> Option<Value> {
        self.host_volumes.get()?.get(&ObjectKey::cluster(name))?.to_tree().ok()
    }

    /// The virtual claim that a host volume is bound to.
    pub(super) fn claim_of(&self, host_volume: &Value) -> Option<Value> {
        let reference = host_volume.at(&["spec", "claimRef"])?;
        let host = NamespacedName::new(reference.str_at(&["namespace"]), reference.str_at(&["name"]));
        let host_claim = self.host_side.get(&kind::PERSISTENT_VOLUME_CLAIM, &host)?;
        let uid = reference.str_at(&["uid"]);
        if !uid.is_empty() && uid != uid_of(&host_claim) {
            return None;
        }
        match owner(&host_claim, &kind::PERSISTENT_VOLUME_CLAIM, &self.names) {
            Owner::Ours { name, .. } => self.virtual_side.get(&kind::PERSISTENT_VOLUME_CLAIM, &name),
            Owner::Foreign => None,
        }
    }

    /// The name in the virtual cluster of a volume that a claim is bound to; `None` before there is one.
    pub(super) fn virtual_volume(&self, host_name: &str) -> Option<String> {
        let host = self.host_volume(host_name)?;
        match owner(&host, &kind::PERSISTENT_VOLUME, &self.names) {
            Owner::Ours { name, .. } => Some(name.name),
            // Bound when it is shown, so that nobody sees a claim of a volume that does not exist.
            Owner::Foreign => {
                let name = NamespacedName::new("", host_name);
                self.virtual_side.get(&kind::PERSISTENT_VOLUME, &name).map(|_| host_name.to_owned())
            }
        }
    }

    pub(super) fn watch_host_volumes(self: &std::sync::Arc<Engine>) {
        if !self.settings.persistent_volumes {
            return;
        }
        let cache = self.host_side.factory.informer::<RawObject>(Source::all(resource(&kind::PERSISTENT_VOLUME)));
        // Once per engine.
        let _ = self.host_volumes.set(cache.clone());
        let of = std::sync::Arc::downgrade(self);
        cache.on_change(move |change| {
            let Some(engine) = of.upgrade() else { return };
            engine.volume_queue.add(change.object().metadata.name.to_string());
        });
        let of = std::sync::Arc::downgrade(self);
        let source = Source::all(resource(&kind::PERSISTENT_VOLUME));
        self.virtual_side.watch(&kind::PERSISTENT_VOLUME, source).on_change(move |change| {
            let Some(engine) = of.upgrade() else { return };
            if let Some(host) = change.object().metadata.annotations.get(HOST_VOLUME_ANNOTATION) {
                engine.volume_queue.add(host.to_owned());
            }
            // The claim shows its volume once that exists.
            if let Ok(volume) = change.object().to_tree() {
                let claim = &volume["spec"]["claimRef"];
                engine.enqueue(&kind::PERSISTENT_VOLUME_CLAIM, claim.str_at(&["namespace"]), claim.str_at(&["name"]));
            }
        });
        let of = std::sync::Arc::downgrade(self);
        if let Some(claims) = self.host_side.cache(&kind::PERSISTENT_VOLUME_CLAIM) {
            claims.on_change(move |change| {
                let Some(engine) = of.upgrade() else { return };
                let Ok(claim) = change.object().to_tree() else { return };
                let volume = claim.str_at(&["spec", "volumeName"]);
                if !volume.is_empty() {
                    engine.volume_queue.add(volume.to_owned());
                }
            });
        }
    }

    /// One host volume: shown while a virtual claim is bound to it.
    pub(super) async fn reconcile_host_volume(&self, host_name: &str) -> Result<Outcome, SyncError> {
        let name = NamespacedName::new("", host_name);
        let side = &self.virtual_side;
        let host = self.host_volume(host_name);
        if let Some(host) = &host
            && let Owner::Ours { name, .. } = owner(host, &kind::PERSISTENT_VOLUME, &self.names)
        {
            // The tenant's own one has a type that looks after it.
            self.enqueue(&kind::PERSISTENT_VOLUME, "", &name.name);
            if let Some(claim) = self.claim_of(host) {
                let claim = crate::metadata::name_of(&claim);
                self.enqueue(&kind::PERSISTENT_VOLUME_CLAIM, &claim.namespace, &claim.name);
            }
            return Ok(Outcome::Done);
        }
        let existing = side.get(&kind::PERSISTENT_VOLUME, &name);
        if existing.as_ref().is_some_and(|e| annotation(e, HOST_VOLUME_ANNOTATION) != host_name) {
            tracing::warn!(volume = host_name, "not shown: the tenant has a volume of that name");
            return Ok(Outcome::Done);
        }
        let claim = host.as_ref().and_then(|h| self.claim_of(h));
        let (Some(host), Some(claim)) = (host, claim) else {
            let Some(existing) = existing else { return Ok(Outcome::Done) };
            side.delete(&kind::PERSISTENT_VOLUME, &name, uid_of(&existing), None).await?;
            if !existing.array_at(&["metadata", "finalizers"]).is_empty() {
                // Nobody else looks after it.
                let patch = apimachinery::json!({"metadata": {"uid": (uid_of(&existing)), "finalizers": null}});
                match side.patch(&kind::PERSISTENT_VOLUME, &name, "", &patch).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error.into()),
                    _ => side.forget(&kind::PERSISTENT_VOLUME, &name),
                }
            }
            return Ok(Outcome::Done);
        };
        let facts = Facts::default();
        let ctx = Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &facts,
            patches: &[],
            now: self.clock.now(),
        };
        let wanted = shown(&host, &claim, existing.as_ref(), &ctx);
        let Some(existing) = existing else {
            let made = side.create(&kind::PERSISTENT_VOLUME, &wanted).await?;
            let patch =
                apimachinery::json!({"metadata": {"uid": (uid_of(&made))}, "status": (wanted["status"].clone())});
            side.patch(&kind::PERSISTENT_VOLUME, &name, "status", &patch).await?;
            return Ok(Outcome::Done);
        };
        let Some(patch) = merge_patch(&existing, &wanted) else { return Ok(Outcome::Done) };
        let (main, status) = split_status(patch);
        if let Some(main) = main {
            side.patch(&kind::PERSISTENT_VOLUME, &name, "", &main).await?;
        }
        if let Some(status) = status {
            side.patch(&kind::PERSISTENT_VOLUME, &name, "status", &status).await?;
        }
        Ok(Outcome::Done)
    }
}
