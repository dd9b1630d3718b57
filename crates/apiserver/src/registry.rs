//! The resources that are served: built-in ones from data, custom ones added and removed while the server runs.
//!
//! Both take the same road through the handlers. What differs between kinds is behind [`Strategy`]; where objects lie is
//! the resource's [`ResourceCache`].
//!
//! Follows: `k8s.io/apiserver/pkg/registry/rest`, `k8s.io/apiserver/pkg/endpoints.APIGroupVersion`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupKind, GroupResource, GroupVersionKind, GroupVersionResource};
use apimachinery::resources;
use parking_lot::RwLock;
use store::Revision;
use tokio_util::sync::CancellationToken;

use crate::cache::{Caches, Entry, ResourceCache};
use crate::strategy::{BuiltIn, Strategy};

/// A subresource as it is served.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: String,
    pub kind: GroupVersionKind,
    pub verbs: Vec<String>,
}

/// Where objects of a resource are kept.
#[derive(Clone)]
pub struct ResourceStorage {
    pub cache: Arc<ResourceCache>,
    /// The `apiVersion` in which objects are written.
    pub api_version: String,
    /// `{"apiVersion":"..","kind":"..",` of this resource's own version: how an answer to GET starts.
    pub prefix: Arc<[u8]>,
    pub version_hash: String,
}

/// A resource in one version, as it is served.
pub struct Resource {
    pub gvr: GroupVersionResource,
    pub gvk: GroupVersionKind,
    pub list_kind: String,
    pub singular: String,
    pub namespaced: bool,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// Sorted, as discovery shows them.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Absent for kinds that are answered and never kept.
    pub storage: Option<ResourceStorage>,
    pub strategy: Arc<dyn Strategy>,
    /// False for custom resources: their list items name their kind, they have no protobuf form, and so on.
    pub builtin: bool,
    /// What is stored may be in an older version, or lack defaults that the schema has got since: reads bring it up to date.
    pub changes_on_read: bool,
    /// Objects that were written at an earlier revision were shaped by another schema: reads bring them up to date too.
    pub shaped_since: Revision,
    /// The definition is being deleted: nothing new may be created.
    pub terminating: bool,
    /// Cancelled when another schema takes the place of this one, or none: what was sent before may look different now, so
    /// watches end and clients list again.
    pub replaced: CancellationToken,
}

/// A shared handle on a served resource.
pub type ResourceHandle = Arc<Resource>;

impl Resource {
    pub fn api_version(&self) -> String {
        self.gvk.api_version()
    }

    pub fn group_resource(&self) -> GroupResource {
        self.gvr.group_resource()
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: apimachinery::kinds::error_group(&self.gvk).into(), kind: self.gvk.kind.clone() }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether stored objects must be converted before they are sent in this version.
    pub fn converts(&self) -> bool {
        self.changes_on_read || self.storage.as_ref().is_some_and(|s| s.api_version != self.api_version())
    }

    /// Whether an object is sent as it is stored, given that not all are converted.
    pub fn sends_as_stored(&self, entry: &Entry) -> bool {
        entry.revision >= self.shaped_since
    }
}

/// How an answer to GET starts.
pub fn object_prefix(api_version: &str, kind: &str) -> Arc<[u8]> {
    format!("{{\"apiVersion\":{},\"kind\":{},", Value::from(api_version), Value::from(kind)).into_bytes().into()
}

/// A group with its versions, the preferred one first.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    pub name: String,
    pub priority: i32,
    pub versions: Vec<String>,
}

/// All resources at one moment.
#[derive(Clone, Default)]
pub struct Resources {
    by_version: HashMap<(String, String), BTreeMap<String, ResourceHandle>>,
    groups: Vec<GroupInfo>,
    /// Counts changes; part of the ETags of discovery.
    pub generation: u64,
}

impl Resources {
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&ResourceHandle> {
        self.by_version.get(&(group.to_owned(), version.to_owned()))?.get(resource)
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&ResourceHandle> {
        self.in_version(group, version)?.find(|r| r.gvk.kind == kind)
    }

    /// A resource of a group in its preferred version.
    pub fn preferred(&self, group: &str, resource: &str) -> Option<&ResourceHandle> {
        let info = self.groups.iter().find(|g| g.name == group)?;
        info.versions.iter().find_map(|v| self.get(group, v, resource))
    }

    /// The resources of a version, by name; `None` when the version is not served.
    pub fn in_version(&self, group: &str, version: &str) -> Option<impl Iterator<Item = &ResourceHandle> + use<'_>> {
        self.by_version.get(&(group.to_owned(), version.to_owned())).map(|m| m.values())
    }

    /// All groups in discovery order, the core group among them.
    pub fn groups(&self) -> &[GroupInfo] {
        &self.groups
    }

    /// Whether Kubernetes itself has this group.
    pub fn is_builtin_group(&self, name: &str) -> bool {
        self.all().any(|r| r.builtin && r.gvr.group == name)
    }

    pub fn group(&self, name: &str) -> Option<&GroupInfo> {
        self.groups.iter().find(|g| g.name == name)
    }

    pub fn all(&self) -> impl Iterator<Item = &ResourceHandle> {
        self.by_version.values().flat_map(|m| m.values())
    }

    fn sort_groups(&mut self) {
        // Aggregated discovery and /apis order: by priority, then by name; apiregistration.k8s.io always first.
        self.groups.sort_by(|a, b| {
            let first = |g: &GroupInfo| g.name != "apiregistration.k8s.io";
            first(a).cmp(&first(b)).then(b.priority.cmp(&a.priority)).then(a.name.cmp(&b.name))
        });
    }
}

/// The resources of one server.
pub struct Registry {
    current: RwLock<Arc<Resources>>,
}

impl Registry {
    /// All built-in resources.
    pub fn builtin(caches: &Caches) -> Registry {
        let mut all = Resources::default();
        for group in resources::GROUPS {
            let versions: Vec<String> = group.versions.iter().map(|v| v.version.to_owned()).collect();
            for version in &versions {
                all.by_version.insert((group.name.to_owned(), version.clone()), BTreeMap::new());
            }
            all.groups.push(GroupInfo { name: group.name.to_owned(), priority: group.priority, versions });
        }
        for data in resources::RESOURCES {
            let handle = Arc::new(builtin_resource(data, caches));
            let version = all.by_version.entry((data.group.to_owned(), data.version.to_owned())).or_default();
            version.insert(data.name.to_owned(), handle);
        }
        all.sort_groups();
        Registry { current: RwLock::new(Arc::new(all)) }
    }

    /// The resources as of now.
    pub fn current(&self) -> Arc<Resources> {
        self.current.read().clone()
    }

    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<ResourceHandle> {
        self.current.read().get(group, version, resource).cloned()
    }

    /// Replaces the custom resource `group`/`plural`: it is served in exactly these versions afterwards (none removes it).
    /// Handles in use stay valid; requests that come later see the new ones.
    pub fn set_custom(&self, group: &str, plural: &str, versions: Vec<Resource>) {
        let mut current = self.current.write();
        let mut next = Resources::clone(&current);
        next.by_version.retain(|(g, _), resources| {
            if g == group {
                resources.retain(|name, r| name != plural || r.builtin);
            }
            g != group || !resources.is_empty()
        });
        for resource in versions {
            let key = (group.to_owned(), resource.gvr.version.to_string());
            next.by_version.entry(key).or_default().insert(plural.to_owned(), Arc::new(resource));
        }
        let mut served: Vec<String> =
            next.by_version.keys().filter(|(g, _)| g == group).map(|(_, v)| v.clone()).collect();
        served.sort_by(|a, b| compare_versions(b, a));
        let builtin = resources::group(group).is_some();
        if !builtin {
            next.groups.retain(|g| g.name != group);
            if !served.is_empty() {
                next.groups.push(GroupInfo { name: group.to_owned(), priority: 1000, versions: served });
            }
        }
        next.sort_groups();
        next.generation += 1;
        *current = Arc::new(next);
    }
}

fn builtin_resource(data: &'static resources::Resource, caches: &Caches) -> Resource {
    let own_kind = |k: resources::Kind| GroupVersionKind::new(k.group, k.version, k.kind);
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let storage = data.storage.and_then(|s| {
        Some(ResourceStorage {
            cache: caches.builtin(s.prefix)?,
            api_version: resources::join_group_version(s.group, s.version),
            prefix: object_prefix(&data.api_version(), data.kind),
            version_hash: s.version_hash.to_owned(),
        })
    });
    Resource {
        gvr: GroupVersionResource::new(data.group, data.version, data.name),
        gvk: own_kind(data.own_kind()),
        list_kind: data.list_kind(),
        singular: data.singular.to_owned(),
        namespaced: data.namespaced,
        short_names: strings(data.short_names),
        categories: strings(data.categories),
        verbs: strings(data.verbs),
        subresources: data
            .subresources
            .iter()
            .map(|s| Subresource {
                name: s.name.to_owned(),
                kind: own_kind(s.kind.unwrap_or(data.own_kind())),
                verbs: strings(s.verbs),
            })
            .collect(),
        storage,
        strategy: Arc::new(BuiltIn::new(data)),
        builtin: true,
        changes_on_read: false,
        shaped_since: 0,
        terminating: false,
        replaced: CancellationToken::new(),
    }
}

/// The prefixes of all built-in resources and whether they have namespaces, for [`Caches::start`].
pub fn builtin_prefixes() -> impl Iterator<Item = (String, bool)> {
    resources::RESOURCES.iter().filter_map(|r| Some((r.storage?.prefix.to_owned(), r.namespaced)))
}

/// Orders API versions by stability and number: v2 > v1 > v2beta1 > v1beta2 > v1alpha1 > others by name (descending).
/// Source: `k8s.io/apimachinery/pkg/version.CompareKubeAwareVersionStrings`.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    fn parse(v: &str) -> Option<(u8, u64, u64)> {
        let rest = v.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => (2, minor),
            (_, Some(minor)) => (1, minor),
            _ => return None,
        };
        Some((stability, major, minor.parse().ok()?))
    }
    match (parse(a), parse(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_stability_then_number() {
        let mut versions = ["v1alpha1", "foo1", "v10", "v2beta1", "v1", "v1beta2", "v2", "foo10"];
        versions.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo1", "foo10"]);
    }
}
