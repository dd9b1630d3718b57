//! Server-side apply, and the ownership of fields that every write leaves in `metadata.managedFields`.
//!
//! [`FieldManager`] is the front: [`FieldManager::update`] for creates, updates and other patches (it never fails),
//! [`FieldManager::apply`] for apply patches. Both take and give whole object trees in the request's version; the caller
//! decodes, defaults and validates what comes out. No clock: the time is an argument.
//!
//! Follows: KEP-555, `k8s.io/apimachinery/pkg/util/managedfields`, `sigs.k8s.io/structured-merge-diff` v6.

mod last_applied;
pub mod managed;
mod merge;
pub mod path;
pub mod reset;
pub mod scale;
pub mod set;
pub mod typed;
mod updater;
mod validate;
mod walk;

use std::collections::BTreeMap;

use crate::decode;
use crate::gvk::{GroupVersion, GroupVersionKind};
use crate::json::Value;
use crate::meta::ObjectMeta;
use crate::schema;
use crate::status::Status;
use crate::time::Timestamp;
use managed::{Managed, Manager, Operation, VersionedSet, conflict_status};
use set::{Filter, Set};
pub use typed::Type;
use updater::{UpdateError, Updater};

pub use managed::DecodeError;
pub use merge::merge as merge_typed;
pub use updater::Versions;
pub use validate::validate;
pub use walk::{Comparison, compare, field_set, remove_items};

/// The manager of what was there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 with one cause per field.
    #[error("{}", .0.message)]
    Conflict(Box<Status>),
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 500 with the text alone: the applied object does not fit its type.
    #[error("{0}")]
    Typed(String),
}

impl ApplyError {
    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        match self {
            ApplyError::Conflict(status) => (**status).clone(),
            ApplyError::BadRequest(message) => Status::bad_request(message.as_str()),
            ApplyError::Typed(message) => Status::plain_error(message.as_str()),
        }
    }
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Status {
        error.to_status()
    }
}

/// Tracks ownership for one request.
pub struct FieldManager<'a> {
    /// The kind of the request's version (for `/scale` that of Scale).
    pub kind: &'a GroupVersionKind,
    pub subresource: &'a str,
    pub versions: &'a dyn Versions,
    /// What the resource's strategy resets, by API version; from [`reset::filters`] for built-in kinds.
    pub filters: &'a BTreeMap<String, Filter>,
    pub now: Timestamp,
}

impl FieldManager<'_> {
    fn updater(&self) -> Updater<'_> {
        Updater { versions: self.versions, filters: self.filters }
    }

    /// The object that a create starts from: for built-in kinds what Go's zero value encodes to.
    fn empty_object(&self) -> Value {
        let version = self.kind.api_version();
        let mut object = match self.versions.schema(&version) {
            Some(Type::Known { ty, .. }) if ty.structure().is_some_and(|s| !s.name.is_empty()) => decode::zero(ty),
            _ => Value::object(),
        };
        self.kind.set_on(&mut object);
        object
    }

    /// `live` is being replaced by `new` (a create when `live` is `None`): answers `new` with its `managedFields`.
    ///
    /// Entries in `new` count when they can be read, so that clients can edit them; `[]` and `[{}]` reset. Through a
    /// subresource they never count. An object that cannot be tracked is left without entries.
    pub fn update(&self, live: Option<&Value>, mut new: Value, manager: &str) -> Value {
        let live_entries = live.map_or(&[][..], |live| live.managed_fields());
        let managed = self.entries_to_start_from(live_entries, &new);
        new.metadata_mut().remove("managedFields");
        let mut managed = managed;
        let tracked = !managed.fields.is_empty() || live.is_none_or(|live| live.uid().is_empty());
        if !tracked {
            return new;
        }
        let empty;
        let live = match live {
            Some(live) => live,
            None => {
                empty = self.empty_object();
                &empty
            }
        };
        if self.track_update(live, &new, &mut managed, manager).is_ok() {
            new.set_managed_fields(managed.encode());
        }
        new
    }

    fn entries_to_start_from(&self, live: &[Value], new: &Value) -> Managed {
        let of_live = || Managed::decode(live).unwrap_or_default();
        if !self.subresource.is_empty() {
            return of_live();
        }
        match new["metadata"].get("managedFields").and_then(Value::as_array).map(Vec::as_slice) {
            Some([]) => Managed::default(),
            Some([entry]) if is_empty_entry(entry) => Managed::default(),
            Some(entries) => match Managed::decode(entries) {
                Ok(managed) if !managed.fields.is_empty() => managed,
                _ => of_live(),
            },
            None => of_live(),
        }
    }

    fn track_update(&self, live: &Value, new: &Value, managed: &mut Managed, manager: &str) -> Result<(), UpdateError> {
        let version = self.kind.api_version();
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let manager = Manager::new(manager, Operation::Update, &version, self.subresource);
        let ty = self.versions.schema(&version).ok_or_else(|| UpdateError::Convert(version.clone()))?;
        let invalid = |e: typed::TypedErrors| UpdateError::Convert(e.to_string());
        validate(ty, new, true).map_err(invalid)?;
        validate(ty, live, true).map_err(invalid)?;
        // The change is recorded under a name that nobody can have and then joined with the manager's earlier ones: also
        // the manager's own old fields must go through the comparison.
        let current = Manager::new("\u{0}current-operation", Operation::Update, &version, "");
        self.updater().update(live, new, &version, &mut managed.fields, &current)?;
        strip(&mut managed.fields, &current);
        if let Some(mut changed) = managed.fields.remove(&current) {
            if let Some(previous) = managed.fields.remove(&manager) {
                changed.set = changed.set.union(&previous.set);
            }
            managed.fields.insert(manager.clone(), changed);
            managed.times.insert(manager, self.now.to_rfc3339());
        }
        managed.cap_updates();
        Ok(())
    }

    /// Applies `config` to `live` (`None`: the apply creates).
    ///
    /// Shape: the merged object with its `managedFields`, equal to `live` when nothing changed but times. It may hold
    /// `null` where a field was removed; decoding drops those.
    pub fn apply(&self, live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, ApplyError> {
        let version = self.kind.api_version();
        let gvk = GroupVersionKind::of(config).unwrap_or_else(|e| GroupVersionKind::new(e.0, "", ""));
        if gvk != *self.kind {
            return Err(ApplyError::BadRequest(format!("invalid object type: {gvk}")));
        }
        let empty;
        let live = match live {
            Some(live) => live,
            None => {
                empty = self.empty_object();
                &empty
            }
        };
        let mut managed = Managed::decode(live.managed_fields())
            .map_err(|e| ApplyError::Typed(format!("failed to decode managed fields: {e}")))?;
        if managed.fields.is_empty() {
            self.track_update(&self.empty_object(), live, &mut managed, BEFORE_FIRST_APPLY)
                .map_err(|e| ApplyError::Typed(format!("failed to create manager for existing fields: {}", text(e))))?;
        }
        if config["metadata"].get("managedFields").is_some_and(|f| !f.is_null()) {
            return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        let ty = self
            .versions
            .schema(&version)
            .ok_or_else(|| ApplyError::Typed(format!("no corresponding type for {}", self.kind)))?;
        validate(ty, config, false).map_err(|e| {
            ApplyError::Typed(format!("failed to create typed patch object ({}): {e}", describe(config, &gvk)))
        })?;
        validate(ty, live, true).map_err(|e| {
            ApplyError::Typed(format!("failed to create typed live object ({}): {e}", describe(live, &gvk)))
        })?;

        let before = (manager == last_applied::KUBECTL).then(|| managed.clone());
        let mut result = self.apply_once(live, config, &version, &mut managed, manager, force);
        if manager == last_applied::KUBECTL
            && let Err(UpdateError::Conflicts(conflicts)) = result
        {
            // What `kubectl apply` set on the client's side may be taken over by `kubectl apply --server-side`.
            let allowed = last_applied::allowed_conflicts(live, ty, &version);
            let left: Vec<_> = conflicts.iter().filter(|c| !allowed.has(&c.path)).cloned().collect();
            if left.is_empty() {
                managed = before.unwrap_or_default();
                result = self.apply_once(live, config, &version, &mut managed, manager, true);
            } else {
                let conflicts = if allowed.is_empty() { conflicts } else { left };
                result = Err(UpdateError::Conflicts(conflicts));
            }
        }
        let mut object = match result {
            Ok(Some(object)) => object,
            Ok(None) => live.clone(),
            Err(UpdateError::Conflicts(conflicts)) => {
                return Err(ApplyError::Conflict(Box::new(conflict_status(&conflicts))));
            }
            Err(UpdateError::Convert(message)) => return Err(ApplyError::Typed(message)),
        };
        if manager == last_applied::KUBECTL {
            last_applied::refresh(&mut object, config);
        }
        object.set_managed_fields(managed.encode());
        Ok(object)
    }

    fn apply_once(
        &self,
        live: &Value,
        config: &Value,
        version: &str,
        managed: &mut Managed,
        manager: &str,
        force: bool,
    ) -> Result<Option<Value>, UpdateError> {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        let manager = Manager::new(manager, Operation::Apply, version, self.subresource);
        let object = self.updater().apply(live, config, version, &mut managed.fields, &manager, force)?;
        strip(&mut managed.fields, &manager);
        if object.is_some() {
            managed.times.insert(manager, self.now.to_rfc3339());
        }
        Ok(object)
    }
}

fn text(error: UpdateError) -> String {
    match error {
        UpdateError::Conflicts(conflicts) => conflict_status(&conflicts).message,
        UpdateError::Convert(message) => message,
    }
}

/// `namespace/name; gvk`, as error texts name an object.
fn describe(object: &Value, gvk: &GroupVersionKind) -> String {
    format!("{}/{}; {gvk}", object.namespace(), object.name())
}

fn is_empty_entry(entry: &Value) -> bool {
    entry.as_object().is_some_and(|members| members.values().all(|v| v.is_null() || v == ""))
}

/// Takes from the manager what nobody can own: identity and what the system fills in.
fn strip(managers: &mut BTreeMap<Manager, VersionedSet>, manager: &Manager) {
    let Some(owned) = managers.get_mut(manager) else { return };
    owned.set = owned.set.difference(&Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ]));
    if owned.set.is_empty() {
        managers.remove(manager);
    }
}

/// Whether `new` is `old` apart from the times in `managedFields`; then `new` gets the old times, so that the write
/// stores nothing.
///
/// Entries are compared in any order: the times are what orders them, so an entry with a later one may stand elsewhere. Upstream
/// compares them one by one and stores a change when two managers wrote in one second and one of them repeats itself later.
///
/// Source: `k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager/equality.go`.
pub fn keep_times_of_noop(new: &mut Value, old: &Value) -> bool {
    let (new_entries, old_entries) = (new.managed_fields(), old.managed_fields());
    if new_entries.is_empty() || new_entries.len() != old_entries.len() {
        return false;
    }
    let same_but_time = |a: &Value, b: &Value| match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().filter(|(key, _)| *key != "time").eq(b.iter().filter(|(key, _)| *key != "time"))
        }
        (a, b) => a == b,
    };
    // No two entries of one list are the same apart from their times.
    if !new_entries.iter().all(|new| old_entries.iter().any(|old| same_but_time(new, old))) {
        return false;
    }
    let old_entries = old_entries.to_vec();
    let new_entries = new.managed_fields().to_vec();
    new.set_managed_fields(old_entries);
    if path::equal_values(new, old) {
        return true;
    }
    new.set_managed_fields(new_entries);
    false
}

/// Checks entries that admission may have changed; the text goes into upstream's warning.
pub fn validate_managed_fields(entries: &[Value]) -> Result<(), DecodeError> {
    Managed::decode(entries).map(drop)
}

/// [`Versions`] of a built-in kind.
pub struct BuiltinVersions<'a> {
    pub kind: &'a str,
    /// Converts between versions of the kind; refuses when there is only one.
    pub convert: &'a (dyn Fn(&Value, &str) -> Result<Value, String> + Sync),
}

impl Versions for BuiltinVersions<'_> {
    fn schema(&self, api_version: &str) -> Option<Type<'_>> {
        let gv = GroupVersion::parse(api_version).ok()?;
        schema::lookup(&gv.group, &gv.version, self.kind).map(Type::root)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        (self.convert)(object, api_version)
    }
}

#[cfg(test)]
mod tests;
