//! Which collection of objects: group, version, resource, and the part of it that is wanted.

use std::fmt;

use apimachinery::json::Str;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// A resource's URL coordinates. Built-in ones are constants made with [`Resource::new`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: Str,
    pub version: Str,
    pub resource: Str,
}

impl Resource {
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Resource { group: Str::const_new(group), version: Str::const_new(version), resource: Str::const_new(resource) }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection (`name` empty) or of one object, optionally of a subresource.
    pub fn path(&self, namespace: &str, name: &str, subresource: &str) -> String {
        let mut path = String::with_capacity(96);
        if self.group.is_empty() {
            path.push_str("/api/");
        } else {
            path.push_str("/apis/");
            path.push_str(&self.group);
            path.push('/');
        }
        path.push_str(&self.version);
        if !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(&self.resource);
        for part in [name, subresource] {
            if !part.is_empty() {
                path.push('/');
                path.extend(utf8_percent_encode(part, PATH));
            }
        }
        path
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%').add(b'/');
const QUERY: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'&').add(b'+').add(b'%').add(b'=');

/// Appends `key=value` to a query string, encoded.
pub(crate) fn push_query(query: &mut String, key: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    query.push_str(key);
    query.push('=');
    query.extend(utf8_percent_encode(value, QUERY));
}

/// The part of a resource that an informer watches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub resource: Resource,
    /// Empty: all namespaces, or a cluster-scoped resource.
    pub namespace: Str,
    pub label_selector: Str,
    pub field_selector: Str,
    /// Asks the server for `PartialObjectMetadata`.
    pub metadata_only: bool,
}

impl Source {
    pub fn all(resource: Resource) -> Self {
        Source {
            resource,
            namespace: Str::const_new(""),
            label_selector: Str::const_new(""),
            field_selector: Str::const_new(""),
            metadata_only: false,
        }
    }

    pub fn namespaced(resource: Resource, namespace: impl Into<Str>) -> Self {
        Source { namespace: namespace.into(), ..Source::all(resource) }
    }

    pub fn labels(self, selector: impl Into<Str>) -> Self {
        Source { label_selector: selector.into(), ..self }
    }

    pub fn fields(self, selector: impl Into<Str>) -> Self {
        Source { field_selector: selector.into(), ..self }
    }

    pub fn metadata_only(self) -> Self {
        Source { metadata_only: true, ..self }
    }
}

impl From<Resource> for Source {
    fn from(resource: Resource) -> Self {
        Source::all(resource)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.resource.fmt(f)?;
        for (name, value) in
            [("namespace", &self.namespace), ("labels", &self.label_selector), ("fields", &self.field_selector)]
        {
            if !value.is_empty() {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_api() {
        let pods = Resource::new("", "v1", "pods");
        let deployments = Resource::new("apps", "v1", "deployments");
        for (got, want) in [
            (pods.path("", "", ""), "/api/v1/pods"),
            (pods.path("a", "b", "status"), "/api/v1/namespaces/a/pods/b/status"),
            (deployments.path("a", "", ""), "/apis/apps/v1/namespaces/a/deployments"),
            (
                Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles").path("", "system:node", ""),
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
            ),
        ] {
            assert_eq!(got, want);
        }
        let mut query = String::new();
        push_query(&mut query, "labelSelector", "a=b,c in (d,e)");
        assert_eq!(query, "labelSelector=a%3Db,c%20in%20(d,e)");
    }
}
