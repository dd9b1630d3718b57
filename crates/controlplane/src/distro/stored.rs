//! Kinds of objects that are in the store. An API server of an older version may not serve them all: the others stay where
//! they are, and the native distro, or a newer version, has them again.

use apimachinery::resources::RESOURCES;
use store::{RangeRequest, Store};

/// Objects that API servers make from others: nobody misses them.
const DERIVED: [&str; 2] = ["ipaddresses", "servicecidrs"];

/// A kind that has objects.
pub(super) struct Stored {
    /// `plural of group/version`.
    pub name: String,
    /// What answers whoever serves them.
    pub path: String,
}

pub(super) async fn kinds(store: &Store) -> Vec<Stored> {
    let mut found = Vec::new();
    for resource in RESOURCES {
        let Some(storage) = resource.storage.filter(|_| !DERIVED.contains(&resource.name)) else { continue };
        let range = RangeRequest { count_only: true, ..RangeRequest::prefix(storage.key_prefix("")) };
        if store.range(range).await.is_ok_and(|answer| answer.count > 0) {
            let (root, version) = (if resource.group.is_empty() { "/api" } else { "/apis" }, resource.api_version());
            let path = format!("{root}/{version}/{}?limit=1", resource.name);
            found.push(Stored { name: format!("{} of {version}", resource.name), path });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use store::{Expect, Op};

    use super::*;

    #[tokio::test]
    async fn kinds_with_objects_are_found_with_the_paths_that_serve_them() {
        let store = Store::in_memory(store::Options::default()).await;
        for key in ["deviceclasses/gpu", "pods/default/web", "ipaddresses/10.0.0.1", "services/specs/default/web"] {
            let put = Op::Put { value: "{}".into(), lease: 0 };
            store.txn(format!("/registry/{key}").into(), Expect::Absent, put).await.unwrap();
        }
        let found = kinds(&store).await;
        let mut found: Vec<_> = found.iter().map(|kind| (kind.name.as_str(), kind.path.as_str())).collect();
        found.sort_unstable();
        let want = [
            ("deviceclasses of resource.k8s.io/v1", "/apis/resource.k8s.io/v1/deviceclasses?limit=1"),
            ("pods of v1", "/api/v1/pods?limit=1"),
            ("services of v1", "/api/v1/services?limit=1"),
        ];
        assert_eq!(found, want);
        store.close().await;
    }
}
