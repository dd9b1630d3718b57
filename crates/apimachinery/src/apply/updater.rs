//! What a write does to ownership: who gains, who loses, what conflicts, and what an apply removes from the object.
//!
//! Follows: `sigs.k8s.io/structured-merge-diff/merge/update.go`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::managed::{Conflict, Manager, Operation, VersionedSet};
use super::merge::merge;
use super::path::equal_values;
use super::set::{Filter, Set};
use super::typed::Type;
use super::walk::{Comparison, compare, field_set, reconcile, remove_items};
use crate::json::Value;

pub(super) type Managers = BTreeMap<Manager, VersionedSet>;

/// The API versions in which an object can be expressed.
pub trait Versions: Sync {
    /// The type of the object's kind in a version (`apps/v1`); `None` for versions that are not known (any more): what
    /// managers own in terms of them is dropped.
    fn schema(&self, api_version: &str) -> Option<Type<'_>>;

    /// Converts between two versions that [`Self::schema`] knows. Not called when they are the same.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String>;
}

/// Why an update of ownership failed.
#[derive(Debug)]
pub(super) enum UpdateError {
    Conflicts(Vec<Conflict>),
    Convert(String),
}

/// An object in one version, with its type there.
struct Versioned<'a> {
    value: Cow<'a, Value>,
    ty: Type<'a>,
}

pub(super) struct Updater<'a> {
    pub versions: &'a dyn Versions,
    /// What managers may own, by API version.
    pub filters: &'a BTreeMap<String, Filter>,
}

impl<'a> Updater<'a> {
    /// The object in `api_version`; `None` when that version is not known.
    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Result<Option<Versioned<'v>>, UpdateError>
    where
        'a: 'v,
    {
        let Some(ty) = self.versions.schema(api_version) else { return Ok(None) };
        let value = if object.str_at(&["apiVersion"]) == api_version {
            Cow::Borrowed(object)
        } else {
            Cow::Owned(self.versions.convert(object, api_version).map_err(UpdateError::Convert)?)
        };
        Ok(Some(Versioned { value, ty }))
    }

    fn compare(&self, old: &Value, new: &Value, api_version: &str) -> Result<Option<Comparison>, UpdateError> {
        let (Some(old), Some(new)) = (self.convert(old, api_version)?, self.convert(new, api_version)?) else {
            return Ok(None);
        };
        let mut comparison = compare(old.ty, &old.value, &new.value);
        if let Some(filter) = self.filters.get(api_version) {
            comparison.removed = filter.apply(&comparison.removed);
            comparison.modified = filter.apply(&comparison.modified);
            comparison.added = filter.apply(&comparison.added);
        }
        Ok(Some(comparison))
    }

    /// Takes from all managers but `workflow` what changed or went.
    fn transfer(
        &self,
        old: &Value,
        new: &Value,
        version: &str,
        managers: &mut Managers,
        workflow: &Manager,
        force: bool,
    ) -> Result<Comparison, UpdateError> {
        let own = self
            .compare(old, new, version)?
            .ok_or_else(|| UpdateError::Convert(format!("no type for version {version}")))?;
        let mut others: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        let mut conflicts: Vec<(Manager, Set)> = Vec::new();
        let mut removed: Vec<(Manager, Set)> = Vec::new();
        let mut unknown = Vec::new();
        for (manager, owned) in managers.iter() {
            if manager == workflow {
                continue;
            }
            let comparison = if owned.api_version == version {
                Some(&own)
            } else {
                if !others.contains_key(&owned.api_version) {
                    others.insert(owned.api_version.clone(), self.compare(old, new, &owned.api_version)?);
                }
                others.get(&owned.api_version).and_then(Option::as_ref)
            };
            let Some(comparison) = comparison else {
                unknown.push(manager.clone());
                continue;
            };
            let mut taken = owned.set.intersection(&comparison.modified);
            if !comparison.added.is_empty() {
                taken = taken.union(&owned.set.intersection(&comparison.added));
            }
            if !taken.is_empty() {
                conflicts.push((manager.clone(), taken));
            }
            if !comparison.removed.is_empty() {
                removed.push((manager.clone(), comparison.removed.clone()));
            }
        }
        if !force && !conflicts.is_empty() {
            return Err(UpdateError::Conflicts(
                conflicts
                    .into_iter()
                    .flat_map(|(manager, set)| {
                        set.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path })
                    })
                    .collect(),
            ));
        }
        for manager in unknown {
            managers.remove(&manager);
        }
        for (manager, lost) in conflicts.into_iter().chain(removed) {
            if let Some(owned) = managers.get_mut(&manager) {
                owned.set = owned.set.difference(&lost);
            }
        }
        managers.retain(|_, owned| !owned.set.is_empty());
        Ok(own)
    }

    /// `old` became `new` by the hand of `manager`, who gets everything that changed or came.
    pub fn update(
        &self,
        old: &Value,
        new: &Value,
        version: &str,
        managers: &mut Managers,
        manager: &Manager,
    ) -> Result<(), UpdateError> {
        self.reconcile(old, managers)?;
        let comparison = self.transfer(old, new, version, managers, manager, true)?;
        let owned = managers.remove(manager).map(|owned| owned.set).unwrap_or_default();
        let mut set = owned.difference(&comparison.removed).union(&comparison.modified).union(&comparison.added);
        if let Some(filter) = self.filters.get(version) {
            set = filter.apply(&set);
        }
        if !set.is_empty() {
            managers.insert(manager.clone(), VersionedSet { set, api_version: version.to_owned() });
        }
        Ok(())
    }

    /// `manager` wants `config` to hold in `live`. Answers the new object, `None` when it is the old one.
    pub fn apply(
        &self,
        live: &Value,
        config: &Value,
        version: &str,
        managers: &mut Managers,
        manager: &Manager,
        force: bool,
    ) -> Result<Option<Value>, UpdateError> {
        debug_assert_eq!(manager.operation, Operation::Apply);
        self.reconcile(live, managers)?;
        let ty = self
            .versions
            .schema(version)
            .ok_or_else(|| UpdateError::Convert(format!("no type for version {version}")))?;
        let merged = merge(ty, live, config);
        let mut set = field_set(ty, config);
        if let Some(filter) = self.filters.get(version) {
            set = filter.apply(&set);
        }
        let last = managers.insert(manager.clone(), VersionedSet { set, api_version: version.to_owned() });
        let new = match last {
            Some(last) if !last.set.is_empty() => self.prune(merged, managers, version, &last)?,
            _ => merged,
        };
        self.transfer(live, &new, version, managers, manager, force)?;
        Ok((!equal_values(live, &new)).then_some(new))
    }

    /// Removes what the manager applied last time and nobody owns now.
    fn prune(
        &self,
        merged: Value,
        managers: &Managers,
        version: &str,
        last: &VersionedSet,
    ) -> Result<Value, UpdateError> {
        // What is still owned is not removed; mostly that is everything.
        let current = managers.values().filter(|m| m.api_version == version);
        if last.api_version == version && current.into_iter().any(|m| last.set.is_subset(&m.set)) {
            return Ok(merged);
        }
        let Some(at_last) = self.convert(&merged, &last.api_version)? else { return Ok(merged) };
        let mut pruned = remove_items(at_last.ty, &at_last.value, &last.set.with_named_fields(Some(at_last.ty)));
        pruned = self.add_back_owned(&at_last.value, pruned, &last.api_version, managers)?;
        pruned = self.add_back_dangling(&at_last, pruned, last)?;
        match self.convert(&pruned, version)? {
            Some(converted) => Ok(converted.value.into_owned()),
            None => Err(UpdateError::Convert(format!("no type for version {version}"))),
        }
    }

    /// Puts back what somebody still owns.
    fn add_back_owned(
        &self,
        merged: &Value,
        mut pruned: Value,
        pruned_version: &str,
        managers: &Managers,
    ) -> Result<Value, UpdateError> {
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for managed in managers.values() {
            let set = owned.entry(&managed.api_version).or_default();
            *set = set.union(&managed.set);
        }
        // The version at hand first: it needs no conversion.
        let first = owned.remove(pruned_version).map(|set| (pruned_version, set));
        for (version, owned) in first.into_iter().chain(owned) {
            let Some(at_merged) = self.convert(merged, version)? else { continue };
            let kept = {
                let Some(at_pruned) = self.convert(&pruned, version)? else { continue };
                let ty = Some(at_merged.ty);
                let merged_set = field_set(at_merged.ty, &at_merged.value).with_named_fields(ty);
                let pruned_set = field_set(at_pruned.ty, &at_pruned.value).with_named_fields(ty);
                let gone = merged_set.difference(&pruned_set.union(&owned.with_named_fields(ty)));
                remove_items(at_merged.ty, &at_merged.value, &gone)
            };
            pruned = kept;
        }
        Ok(pruned)
    }

    /// Puts back what fell although it was never the manager's.
    fn add_back_dangling(
        &self,
        merged: &Versioned<'_>,
        pruned: Value,
        last: &VersionedSet,
    ) -> Result<Value, UpdateError> {
        let Some(pruned) = self.convert(&pruned, &last.api_version)? else {
            return Ok(merged.value.clone().into_owned());
        };
        let ty = Some(merged.ty);
        let pruned_set = field_set(pruned.ty, &pruned.value).with_named_fields(ty);
        let merged_set = field_set(merged.ty, &merged.value).with_named_fields(ty);
        let gone = merged_set.difference(&pruned_set).intersection(&last.set.with_named_fields(ty));
        Ok(remove_items(merged.ty, &merged.value, &gone))
    }

    /// Adapts what managers own to types that became atomic since.
    fn reconcile(&self, _live: &Value, managers: &mut Managers) -> Result<(), UpdateError> {
        managers.retain(|_, owned| match self.versions.schema(&owned.api_version) {
            Some(ty) => {
                if let Some(set) = reconcile(ty, &owned.set) {
                    owned.set = set;
                }
                true
            }
            None => false,
        });
        Ok(())
    }
}
