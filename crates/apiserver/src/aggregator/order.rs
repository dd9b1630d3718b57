//! In which order discovery names groups and versions. Pure.
//!
//! Follows: `k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper.SortedByGroupAndVersion`,
//! `k8s.io/apiserver/pkg/endpoints/discovery/aggregated`.

use std::collections::BTreeMap;

use crate::registry::compare_versions;

/// The group that comes first, whatever others say.
const FIRST: &str = "apiregistration.k8s.io";

/// A version of a group, with the priorities of its APIService.
#[derive(Clone, Debug)]
pub(crate) struct Entry<S> {
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    pub source: S,
}

/// How groups of one priority are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ties {
    /// By the names of their APIServices (`/apis` in its classic form).
    ServiceName,
    /// By their own names (aggregated discovery).
    GroupName,
}

/// A group with its versions, the preferred one first.
pub(crate) struct Group<S> {
    pub name: String,
    pub versions: Vec<(String, S)>,
}

/// Groups in the order of discovery.
pub(crate) fn ordered<S>(entries: Vec<Entry<S>>, ties: Ties) -> Vec<Group<S>> {
    let mut groups: BTreeMap<String, Vec<Entry<S>>> = BTreeMap::new();
    for entry in entries {
        groups.entry(entry.group.clone()).or_default().push(entry);
    }
    let mut keyed: Vec<_> = groups
        .into_iter()
        .map(|(name, mut versions)| {
            let priority = versions.iter().map(|entry| entry.group_priority).max().unwrap_or_default();
            let leading = versions.iter().filter(|entry| entry.group_priority == priority);
            let tie = match ties {
                Ties::GroupName => name.clone(),
                Ties::ServiceName => leading.map(|entry| format!("{}.{name}", entry.version)).min().unwrap_or_default(),
            };
            versions.sort_by(|a, b| {
                b.version_priority.cmp(&a.version_priority).then_with(|| compare_versions(&b.version, &a.version))
            });
            let versions = versions.into_iter().map(|entry| (entry.version, entry.source)).collect();
            ((name != FIRST, -priority, tie), Group { name, versions })
        })
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    keyed.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_come_before_names() {
        let entries = || {
            [
                ("b.example", "v1", 1000, 100),
                ("a.example", "v2", 1000, 100),
                ("a.example", "v1", 500, 100),
                ("a.example", "v1beta1", 500, 300),
                ("c.example", "v1", 2000, 1),
                ("apiregistration.k8s.io", "v1", 1, 1),
            ]
            .map(|(group, version, group_priority, version_priority)| Entry {
                group: group.to_owned(),
                version: version.to_owned(),
                group_priority,
                version_priority,
                source: (),
            })
            .to_vec()
        };
        let names = |ties| -> Vec<String> {
            let shown = |group: Group<()>| {
                let versions: Vec<String> = group.versions.into_iter().map(|(version, ())| version).collect();
                format!("{}: {}", group.name, versions.join(" "))
            };
            ordered(entries(), ties).into_iter().map(shown).collect()
        };
        let (first, c, a, b) =
            ("apiregistration.k8s.io: v1", "c.example: v1", "a.example: v1beta1 v2 v1", "b.example: v1");
        assert_eq!(names(Ties::GroupName), [first, c, a, b]);
        // `v1.b.example` before `v2.a.example`.
        assert_eq!(names(Ties::ServiceName), [first, c, b, a]);
    }
}
