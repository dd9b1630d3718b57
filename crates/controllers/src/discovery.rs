//! Which resources the API server serves: for the controllers that treat all of them alike.
//!
//! Asks for aggregated discovery and falls back to one request per group and version. A group that cannot be read is named,
//! and the others are given.

use std::collections::HashMap;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{ApiError, Resource, Rest};
use parking_lot::Mutex;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource as discovery tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApiResource {
    pub resource: Resource,
    pub kind: Str,
    pub namespaced: bool,
    pub verbs: Vec<Str>,
}

impl ApiResource {
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|v| v == verb))
    }
}

/// What the server serves.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// Every version of every resource, without subresources; of a group, its preferred version first.
    pub resources: Vec<ApiResource>,
    /// Group versions that could not be read, and why.
    pub failed: Vec<(String, String)>,
}

/// The resources of kinds, read when one is asked for that was not asked for before.
#[derive(Default)]
pub struct Kinds(Mutex<HashMap<(String, String), Resource>>);

impl Kinds {
    /// `None` when the server has no such kind.
    pub async fn resource(&self, rest: &Rest, api_version: &str, kind: &str) -> Result<Option<Resource>, ApiError> {
        let name = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.0.lock().get(&name) {
            return Ok(Some(known.clone()));
        }
        let found = Discovery::read(rest).await?.by_kind(api_version, kind).map(|found| found.resource.clone());
        if let Some(found) = &found {
            self.0.lock().insert(name, found.clone());
        }
        Ok(found)
    }
}

impl Discovery {
    pub async fn read(rest: &Rest) -> Result<Self, ApiError> {
        let mut discovery = Discovery::default();
        for root in ["/api", "/apis"] {
            let answer = rest.get_path(root, AGGREGATED).await?;
            if answer.str_at(&["kind"]) == "APIGroupDiscoveryList" {
                discovery.add_aggregated(&answer);
            } else {
                discovery.add_classic(rest, root, &answer).await;
            }
        }
        Ok(discovery)
    }

    /// Each resource once, in the preferred version that has it.
    pub fn preferred(&self) -> impl Iterator<Item = &ApiResource> {
        self.resources.iter().enumerate().filter_map(|(i, r)| {
            let same =
                |o: &&ApiResource| o.resource.group == r.resource.group && o.resource.resource == r.resource.resource;
            (!self.resources[..i].iter().any(|o| same(&o))).then_some(r)
        })
    }

    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&ApiResource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.resources.iter().find(|r| r.kind == kind && r.resource.version == version && r.resource.group == group)
    }

    fn add_aggregated(&mut self, list: &Value) {
        for group in list.array_at(&["items"]) {
            let name = group.str_at(&["metadata", "name"]);
            for version in group.array_at(&["versions"]) {
                let version_name = version.str_at(&["version"]);
                if version.str_at(&["freshness"]) == "Stale" {
                    let reason = "stale GroupVersion discovery".to_owned();
                    self.failed.push((format!("{name}/{version_name}"), reason));
                    continue;
                }
                for resource in version.array_at(&["resources"]) {
                    self.resources.push(ApiResource {
                        resource: Resource {
                            group: name.into(),
                            version: version_name.into(),
                            resource: resource.str_at(&["resource"]).into(),
                        },
                        kind: resource.str_at(&["responseKind", "kind"]).into(),
                        namespaced: resource.str_at(&["scope"]) == "Namespaced",
                        verbs: resource.array_at(&["verbs"]).iter().filter_map(|v| v.as_str().map(Str::from)).collect(),
                    });
                }
            }
        }
    }

    async fn add_classic(&mut self, rest: &Rest, root: &str, answer: &Value) {
        let mut versions: Vec<String> = Vec::new();
        for version in answer.array_at(&["versions"]) {
            versions.extend(version.as_str().map(str::to_owned));
        }
        for group in answer.array_at(&["groups"]) {
            let preferred = group.str_at(&["preferredVersion", "groupVersion"]);
            let all = group.array_at(&["versions"]).iter().map(|v| v.str_at(&["groupVersion"]));
            versions.push(preferred.to_owned());
            versions.extend(all.filter(|v| *v != preferred).map(str::to_owned));
        }
        for group_version in versions {
            let list = match rest.get_path(&format!("{root}/{group_version}"), "application/json").await {
                Ok(list) => list,
                Err(error) => {
                    self.failed.push((group_version, error.to_string()));
                    continue;
                }
            };
            let (group, version) = group_version.split_once('/').unwrap_or(("", &group_version));
            for resource in list.array_at(&["resources"]) {
                let name = resource.str_at(&["name"]);
                if name.contains('/') {
                    continue;
                }
                self.resources.push(ApiResource {
                    resource: Resource { group: group.into(), version: version.into(), resource: name.into() },
                    kind: resource.str_at(&["kind"]).into(),
                    namespaced: resource["namespaced"] == true,
                    verbs: resource.array_at(&["verbs"]).iter().filter_map(|v| v.as_str().map(Str::from)).collect(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn aggregated_discovery_gives_each_version_and_the_preferred_once() {
        let resource = |verbs: Value| json!({"resource": "widgets", "responseKind": {"kind": "Widget"}, "scope": "Namespaced", "verbs": verbs});
        let list = json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "example.com"}, "versions": [
            {"version": "v2", "resources": [resource(json!(["list", "delete"]))]},
            {"version": "v1", "resources": [resource(json!(["list"]))]},
            {"version": "v0", "freshness": "Stale"},
        ]}]});
        let mut discovery = Discovery::default();
        discovery.add_aggregated(&list);
        assert_eq!(discovery.resources.len(), 2);
        let preferred: Vec<_> = discovery.preferred().map(|r| r.resource.version.to_string()).collect();
        assert_eq!(preferred, ["v2"]);
        assert!(discovery.resources[0].can(&["delete"]) && !discovery.resources[1].can(&["delete"]));
        assert_eq!(discovery.by_kind("example.com/v1", "Widget").unwrap().resource.version, "v1");
        assert_eq!(discovery.failed[0].0, "example.com/v0");
    }
}
