//! Host events of the tenant's objects, told on the virtual objects.

use apimachinery::{Value, json};
use informer::Outcome;

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
        let suffix = format!("-x-{}", self.names.virtual_cluster());
        let rest = host.name.strip_suffix(&suffix)?;
        let (name, namespace) = rest.rsplit_once("-x-")?;
        let name = NamespacedName::new(namespace, name);
        kind.is_host_name(&self.names, &name, host).then(|| self.virtual_side.get(kind, &name))?
    }

    pub(super) async fn reconcile_event(&self, key: &NamespacedName) -> Result<Outcome, SyncError> {
        let Some(host_event) = self.host_side.get(&kind::EVENT, key) else { return Ok(Outcome::Done) };
        let wanted = match self.involved(&host_event) {
            Some(involved) => event::translate(&host_event, &involved, &self.names),
            None => match event::translate_forced(&host_event) {
                Some(wanted) => wanted,
                None => return Ok(Outcome::Done),
            },
        };
        let Some(wanted) = self.patch_import(&kind::EVENT, &host_event, wanted) else { return Ok(Outcome::Done) };
        let name = name_of(&wanted);
        let namespace = self.virtual_side.get(&kind::NAMESPACE, &NamespacedName::new("", name.namespace.clone()));
        if namespace.is_none_or(|n| is_deleting(&n)) {
            return Ok(Outcome::Done);
        }
        match self.virtual_side.create(&kind::EVENT, &wanted).await {
            Ok(_) => {
                self.virtual_side.forget(&kind::EVENT, &name);
                Ok(Outcome::Done)
            }
            Err(error) if error.is_already_exists() => {
                let mut patch = json!({});
                for member in ["count", "lastTimestamp", "message", "series", "type"] {
                    if let Some(value) = wanted.get(member).filter(|v| !v.is_null()) {
                        patch[member] = value.clone();
                    }
                }
                self.virtual_side.patch(&kind::EVENT, &name, "", &patch).await?;
                self.virtual_side.forget(&kind::EVENT, &name);
                Ok(Outcome::Done)
            }
            // A namespace that is going away takes no more events.
            Err(error) if error.is_forbidden() || error.is_not_found() || error.is_invalid() => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
        }
    }
}
