//! Ownership seen through `/scale`: `spec.replicas` of the Scale is one field of the main object.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields/scalehandler.go`.

use std::collections::BTreeMap;

use super::managed::{DecodeError, Managed, VersionedSet};
use super::path::PathElement;
use super::set::Set;
use crate::json::Value;

/// The API version of Scale.
const SCALE_VERSION: &str = "autoscaling/v1";

/// Where each API version of the main kind has its number of replicas; `None` for versions without scale subresource.
pub type ReplicasPaths = BTreeMap<String, Option<Vec<PathElement>>>;

/// The usual place, in these versions.
pub fn spec_replicas(api_versions: &[&str]) -> ReplicasPaths {
    let path = vec![PathElement::field("spec"), PathElement::field("replicas")];
    api_versions.iter().map(|v| ((*v).to_owned(), Some(path.clone()))).collect()
}

/// A path given as `.spec.replicas`, as definitions of custom resources write it.
pub fn replicas_path(json_path: &str) -> Vec<PathElement> {
    json_path.trim_start_matches('.').split('.').map(PathElement::field).collect()
}

fn replicas() -> Set {
    Set::of_fields(&[&["spec", "replicas"]])
}

/// The entries of the Scale: those of the object that own its number of replicas.
pub fn to_scale(parent_entries: &[Value], paths: &ReplicasPaths) -> Result<Vec<Value>, DecodeError> {
    let parent = Managed::decode(parent_entries)?;
    let mut scale = Managed::default();
    for (manager, owned) in parent.fields {
        let Some(Some(path)) = paths.get(&owned.api_version) else { continue };
        if owned.set.has(path) {
            if let Some(time) = parent.times.get(&manager) {
                scale.times.insert(manager.clone(), time.clone());
            }
            scale.fields.insert(manager, VersionedSet { set: replicas(), api_version: SCALE_VERSION.to_owned() });
        }
    }
    Ok(scale.encode())
}

/// The entries of the object after the Scale was written with `scale_entries`; `api_version` is that of the request's
/// main resource.
pub fn to_parent(
    parent_entries: &[Value],
    scale_entries: &[Value],
    api_version: &str,
    paths: &ReplicasPaths,
) -> Result<Vec<Value>, DecodeError> {
    let parent = Managed::decode(parent_entries)?;
    let mut scale = Managed::decode(scale_entries)?.fields;
    let mut out = Managed { fields: BTreeMap::new(), times: parent.times };
    for (manager, mut owned) in parent.fields {
        let Some(path) = paths.get(&owned.api_version) else { continue };
        if let Some(path) = path.as_ref().filter(|path| owned.set.has(path)) {
            // Not among the Scale's managers any more: the field was taken.
            if scale.remove(&manager).is_none() {
                let mut taken = Set::new();
                taken.insert(path);
                owned.set = owned.set.difference(&taken);
                if owned.set.is_empty() {
                    continue;
                }
            }
        }
        out.fields.insert(manager, owned);
    }
    let path = paths.get(api_version).cloned().flatten().unwrap_or_default();
    for (manager, owned) in scale {
        if owned.set.intersection(&replicas()).is_empty() {
            continue;
        }
        let mut set = Set::new();
        set.insert(&path);
        out.fields.insert(manager, VersionedSet { set, api_version: api_version.to_owned() });
    }
    Ok(out.encode())
}
