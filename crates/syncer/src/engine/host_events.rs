//! Host events of the tenant's objects, told on the virtual objects.

use apimachinery::{Value, json};
use informer::{Cached, ObjectKey, Outcome, ReadOnce, Source};

use super::side::resource;
use super::{Engine, SyncError};
use crate::kind::{self, Kind};
use crate::metadata::{Owner, is_deleting, name_of, owner, uid_of};
use crate::names::NamespacedName;
use crate::types::event;

impl Engine {
    /// The virtual object a host event is about.
    fn involved(&self, host_event: &Value) -> Option<Value> {
        let types = self.all_types();
        let reference = &host_event["involvedObject"];
        let of_type = types
            .iter()
            .map(|t| t.ty.kind())
            .find(|k| k.kind == reference.str_at(&["kind"]) && k.api_version() == reference.str_at(&["apiVersion"]));
        let kind = of_type.or_else(|| event::involved_kind(host_event))?;
        let host_name = NamespacedName::new(reference.str_at(&["namespace"]), reference.str_at(&["name"]));
        if let Some(host) = self.host_side.get(kind, &host_name) {
            let uid = reference.str_at(&["uid"]);
            if !uid.is_empty() && uid != uid_of(&host) {
                return None;
            }
            let Owner::Ours { name, .. } = owner(&host, kind, &self.names) else { return None };
            return self.virtual_side.get(kind, &name);
        }
        // The host object is gone already: its last events still are worth telling, when the name speaks for itself.
        self.by_shape(kind, &host_name)
    }

    fn by_shape(&self, kind: &Kind, host: &NamespacedName) -> Option<Value> {
        if let Some(name) = self.mappings.decisions.virtual_of(kind, host) {
            return self.virtual_side.get(kind, &name);
        }
        let suffix = format!("-x-{}", self.names.virtual_cluster());
        let rest = host.name.strip_suffix(&suffix)?;
        let (name, namespace) = rest.rsplit_once("-x-")?;
        let name = NamespacedName::new(namespace, name);
        kind.is_host_name(&self.names, &name, host).then(|| self.virtual_side.get(kind, &name))?
    }

    /// Watches the host's events. They stay there for an hour; what was told already is not kept here as well.
    pub(super) fn watch_events(&self) {
        if !self.settings.events {
            return;
        }
        let source = if self.names.syncs_namespaces() {
            Source::all(resource(&kind::EVENT))
        } else {
            Source::namespaced(resource(&kind::EVENT), self.names.install_namespace())
        };
        let cache = self.host_side.factory.informer::<ReadOnce>(source);
        let queue = self.event_queue.clone();
        cache.on_change(move |change| {
            if !change.is_deleted() {
                let metadata = change.object().metadata();
                queue.add(NamespacedName::new(metadata.namespace.as_str(), metadata.name.as_str()));
            }
        });
        // Once per engine.
        let _ = self.host_events.set(cache);
    }

    pub(super) async fn reconcile_event(&self, key: &NamespacedName) -> Result<Outcome, SyncError> {
        let cache = self.host_events.get();
        let event = cache.and_then(|c| c.get(&ObjectKey::new(key.namespace.as_str(), key.name.as_str())));
        let Some(event) = event else { return Ok(Outcome::Done) };
        let Some(host_event) = event.to_tree() else { return Ok(Outcome::Done) };
        self.tell_event(&host_event).await?;
        event.spend();
        Ok(Outcome::Done)
    }

    async fn tell_event(&self, host_event: &Value) -> Result<Outcome, SyncError> {
        let wanted = match self.involved(host_event) {
            Some(involved) => event::translate(host_event, &involved, &self.names),
            None => match event::translate_forced(host_event) {
                Some(wanted) => wanted,
                None => return Ok(Outcome::Done),
            },
        };
        let Some(wanted) = self.patch_import(&kind::EVENT, host_event, wanted) else { return Ok(Outcome::Done) };
        let name = name_of(&wanted);
        let namespace = self.virtual_side.get(&kind::NAMESPACE, &NamespacedName::new("", name.namespace.clone()));
        if namespace.is_none_or(|n| is_deleting(&n)) {
            return Ok(Outcome::Done);
        }
        match self.virtual_side.create(&kind::EVENT, &wanted).await {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if error.is_already_exists() => {
                let mut patch = json!({});
                for member in ["count", "lastTimestamp", "message", "series", "type"] {
                    if let Some(value) = wanted.get(member).filter(|v| !v.is_null()) {
                        patch[member] = value.clone();
                    }
                }
                self.virtual_side.patch(&kind::EVENT, &name, "", &patch).await?;
                Ok(Outcome::Done)
            }
            // A namespace that is going away takes no more events.
            Err(error) if error.is_forbidden() || error.is_not_found() || error.is_invalid() => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
        }
    }
}
