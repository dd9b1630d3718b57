//! The resources that a Kubernetes 1.36 API server serves by default, as data: names, verbs, subresources, storage.
//!
//! Immutable static data, shared by every API server in the process. What comes and goes at run time (custom
//! resources, aggregated groups) is the API server's business and is not in here.
//!
//! Follows: `pkg/controlplane`, `pkg/registry/*/rest`, `pkg/kubeapiserver/default_storage_factory_builder.go`.

mod table;

pub use table::{GROUPS, RESOURCES};

/// A served resource. Two versions of one resource, and `events` in its two groups, are separate entries that share a
/// [`Storage`] prefix.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    /// The plural, as in paths.
    pub name: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    /// Sorted, as discovery shows them.
    pub verbs: &'static [&'static str],
    /// Absent for kinds that are answered and never kept (reviews, `bindings`, `componentstatuses`).
    pub storage: Option<Storage>,
    /// Sorted by name.
    pub subresources: &'static [Subresource],
}

/// Where and how objects of a resource are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Path below `/registry/`, without slashes at the ends; exactly upstream's.
    pub prefix: &'static str,
    /// The group and version in which objects are written.
    pub group: &'static str,
    pub version: &'static str,
    /// What discovery shows as `storageVersionHash`.
    pub version_hash: &'static str,
}

/// A subresource such as `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    pub verbs: &'static [&'static str],
    /// The kind it takes and gives, when it is not the resource's own.
    pub kind: Option<Kind>,
}

/// A group, version and kind as static data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// An API group in discovery order.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// `""` is the core group, which `/apis` does not list.
    pub name: &'static str,
    /// `groupPriorityMinimum` of the group's APIService objects (`apiregistration.k8s.io` has none).
    pub priority: i32,
    /// The preferred version first.
    pub versions: &'static [GroupVersion],
}

/// A version of a group, with the `versionPriority` of its APIService object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupVersion {
    pub version: &'static str,
    pub priority: i32,
}

impl Resource {
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The kind of the resource itself.
    pub fn own_kind(&self) -> Kind {
        Kind { group: self.group, version: self.version, kind: self.kind }
    }

    /// The kind a subresource takes and gives.
    pub fn subresource_kind(&self, name: &str) -> Option<Kind> {
        self.subresource(name).map(|s| s.kind.unwrap_or_else(|| self.own_kind()))
    }

    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        join_group_version(self.group, self.version)
    }

    /// The kind of a collection of this resource.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }
}

impl Storage {
    /// The key of an object, `/registry/<prefix>/[<namespace>/]<name>`.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if namespace.is_empty() {
            format!("/registry/{}/{name}", self.prefix)
        } else {
            format!("/registry/{}/{namespace}/{name}", self.prefix)
        }
    }

    /// What the keys of all objects begin with; `namespace` narrows to one namespace. Ends with a slash.
    pub fn key_prefix(&self, namespace: &str) -> String {
        if namespace.is_empty() {
            format!("/registry/{}/", self.prefix)
        } else {
            format!("/registry/{}/{namespace}/", self.prefix)
        }
    }
}

/// `version` for the core group, else `group/version`.
pub fn join_group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The resource at `/apis/<group>/<version>/<name>` (`/api/...` for the core group).
pub fn by_name(group: &str, version: &str, name: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.name == name && r.group == group && r.version == version)
}

/// The resource that serves a kind. Kinds that only subresources use (`Scale`, `Eviction`, ...) have none.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// The resource of a group in its preferred version.
pub fn preferred(group: &str, name: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.name == name && r.group == group)
}

/// The resources of a group and version, sorted by name.
pub fn in_group_version(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |r| r.group == group && r.version == version)
}

/// A group by name.
pub fn group(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|g| g.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_what_1_36_serves() {
        assert_eq!(RESOURCES.len(), 68);
        assert_eq!(RESOURCES.iter().map(|r| r.subresources.len()).sum::<usize>(), 45);
        for r in RESOURCES {
            let group = group(r.group).unwrap_or_else(|| panic!("{} has no group entry", r.name));
            assert!(group.versions.iter().any(|v| v.version == r.version), "{}", r.name);
            assert!(r.verbs.is_sorted() && r.subresources.is_sorted_by_key(|s| s.name), "{}", r.name);
            assert_eq!(by_name(r.group, r.version, r.name), Some(r));
            assert_eq!(by_kind(r.group, r.version, r.kind), Some(r));
        }
        for g in GROUPS {
            for v in g.versions {
                let mut names = in_group_version(g.name, v.version).map(|r| r.name).peekable();
                assert!(names.peek().is_some() && names.is_sorted(), "{}/{}", g.name, v.version);
            }
            assert!(g.versions.is_sorted_by(|a, b| a.priority > b.priority));
        }
    }

    #[test]
    fn keys_are_laid_out_as_upstream_does() {
        for (group, version, resource, namespace, want) in [
            ("", "v1", "pods", "a", "/registry/pods/a/x"),
            ("", "v1", "services", "a", "/registry/services/specs/a/x"),
            ("", "v1", "endpoints", "a", "/registry/services/endpoints/a/x"),
            ("", "v1", "nodes", "", "/registry/minions/x"),
            ("", "v1", "replicationcontrollers", "a", "/registry/controllers/a/x"),
            ("networking.k8s.io", "v1", "ingresses", "a", "/registry/ingress/a/x"),
            ("events.k8s.io", "v1", "events", "a", "/registry/events/a/x"),
            ("apps", "v1", "deployments", "a", "/registry/deployments/a/x"),
            (
                "apiextensions.k8s.io",
                "v1",
                "customresourcedefinitions",
                "",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/x",
            ),
            ("apiregistration.k8s.io", "v1", "apiservices", "", "/registry/apiregistration.k8s.io/apiservices/x"),
        ] {
            let storage = by_name(group, version, resource).unwrap().storage.unwrap();
            assert_eq!(storage.key(namespace, "x"), want);
        }
    }

    #[test]
    fn both_versions_of_an_autoscaler_are_stored_as_v2() {
        let v1 = by_name("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(preferred("autoscaling", "horizontalpodautoscalers").unwrap().version, "v2");
        assert_eq!(v1.storage.unwrap().version, "v2");
        assert_eq!(v1.subresource_kind("status").unwrap().version, "v1");
    }
}
