//! Names of API types: group, version, kind and resource in their usual combinations.
//!
//! A *kind* is the schema's name (`Pod`), a *resource* the noun in the URL (`pods`). The core group is `""`.
//!
//! Follows: `k8s.io/apimachinery/pkg/runtime/schema`.

use std::fmt;

use crate::json::{Str, Value};

/// `apps/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersion {
    pub group: Str,
    pub version: Str,
}

/// `Deployment.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKind {
    pub group: Str,
    pub kind: Str,
}

/// `deployments.apps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    pub group: Str,
    pub resource: Str,
}

/// `apps/v1, Kind=Deployment`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Str,
    pub version: Str,
    pub kind: Str,
}

/// `apps/v1, Resource=deployments`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionResource {
    pub group: Str,
    pub version: Str,
    pub resource: Str,
}

/// An `apiVersion` with more than one slash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected GroupVersion string: {0}")]
pub struct ParseGroupVersionError(pub String);

impl GroupVersion {
    pub fn new(group: impl Into<Str>, version: impl Into<Str>) -> Self {
        GroupVersion { group: group.into(), version: version.into() }
    }

    /// Reads `apps/v1`, `v1` or `""`.
    pub fn parse(api_version: &str) -> Result<Self, ParseGroupVersionError> {
        if api_version.is_empty() || api_version == "/" {
            return Ok(GroupVersion::default());
        }
        match api_version.split_once('/') {
            None => Ok(GroupVersion::new("", api_version)),
            Some((group, version)) if !version.contains('/') => Ok(GroupVersion::new(group, version)),
            Some(_) => Err(ParseGroupVersionError(api_version.to_owned())),
        }
    }

    pub fn with_kind(&self, kind: impl Into<Str>) -> GroupVersionKind {
        GroupVersionKind { group: self.group.clone(), version: self.version.clone(), kind: kind.into() }
    }

    pub fn with_resource(&self, resource: impl Into<Str>) -> GroupVersionResource {
        GroupVersionResource { group: self.group.clone(), version: self.version.clone(), resource: resource.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.version.is_empty()
    }
}

impl fmt::Display for GroupVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.version) } else { write!(f, "{}/{}", self.group, self.version) }
    }
}

impl GroupKind {
    pub fn new(group: impl Into<Str>, kind: impl Into<Str>) -> Self {
        GroupKind { group: group.into(), kind: kind.into() }
    }

    pub fn with_version(&self, version: impl Into<Str>) -> GroupVersionKind {
        GroupVersionKind { group: self.group.clone(), version: version.into(), kind: self.kind.clone() }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.kind) } else { write!(f, "{}.{}", self.kind, self.group) }
    }
}

impl GroupResource {
    pub fn new(group: impl Into<Str>, resource: impl Into<Str>) -> Self {
        GroupResource { group: group.into(), resource: resource.into() }
    }

    /// Reads `deployments.apps` or `pods`.
    pub fn parse(text: &str) -> Self {
        match text.split_once('.') {
            Some((resource, group)) => GroupResource::new(group, resource),
            None => GroupResource::new("", text),
        }
    }

    pub fn with_version(&self, version: impl Into<Str>) -> GroupVersionResource {
        GroupVersionResource { group: self.group.clone(), version: version.into(), resource: self.resource.clone() }
    }

    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.resource.is_empty()
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.resource) } else { write!(f, "{}.{}", self.resource, self.group) }
    }
}

impl GroupVersionKind {
    pub fn new(group: impl Into<Str>, version: impl Into<Str>, kind: impl Into<Str>) -> Self {
        GroupVersionKind { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// What `apiVersion` and `kind` of an object say; empty parts when absent.
    pub fn of(object: &Value) -> Result<Self, ParseGroupVersionError> {
        Ok(GroupVersion::parse(object.str_at(&["apiVersion"]))?.with_kind(object.str_at(&["kind"])))
    }

    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn group_kind(&self) -> GroupKind {
        GroupKind { group: self.group.clone(), kind: self.kind.clone() }
    }

    /// The object's `apiVersion`.
    pub fn api_version(&self) -> String {
        self.group_version().to_string()
    }

    /// Writes `apiVersion` and `kind`.
    pub fn set_on(&self, object: &mut Value) {
        object["apiVersion"] = self.api_version().into();
        object["kind"] = self.kind.clone().into();
    }

    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.version.is_empty() && self.kind.is_empty()
    }
}

impl fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

impl GroupVersionResource {
    pub fn new(group: impl Into<Str>, version: impl Into<Str>, resource: impl Into<Str>) -> Self {
        GroupVersionResource { group: group.into(), version: version.into(), resource: resource.into() }
    }

    pub fn group_version(&self) -> GroupVersion {
        GroupVersion { group: self.group.clone(), version: self.version.clone() }
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource { group: self.group.clone(), resource: self.resource.clone() }
    }

    pub fn is_empty(&self) -> bool {
        self.group.is_empty() && self.version.is_empty() && self.resource.is_empty()
    }
}

impl fmt::Display for GroupVersionResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Resource={}", self.group, self.version, self.resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_split_at_their_one_slash() {
        for (input, want) in [
            ("v1", Ok(("", "v1"))),
            ("apps/v1", Ok(("apps", "v1"))),
            ("", Ok(("", ""))),
            ("/", Ok(("", ""))),
            ("a/b/c", Err("unexpected GroupVersion string: a/b/c".to_owned())),
        ] {
            let got = GroupVersion::parse(input);
            let got = got.as_ref().map(|gv| (&*gv.group, &*gv.version)).map_err(|e| e.to_string());
            assert_eq!(got, want, "input {input:?}");
        }
    }

    #[test]
    fn names_print_as_upstream_prints_them() {
        assert_eq!(GroupResource::new("apps", "deployments").to_string(), "deployments.apps");
        assert_eq!(GroupKind::new("", "Pod").to_string(), "Pod");
        assert_eq!(GroupVersionKind::new("", "v1", "Pod").to_string(), "/v1, Kind=Pod");
        assert_eq!(GroupVersionResource::new("apps", "v1", "d").to_string(), "apps/v1, Resource=d");
    }
}
