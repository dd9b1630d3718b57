//! CoreDNS in pods of the cluster: its objects, and the lines of the nodes in its ConfigMap.

use std::sync::Arc;

use apimachinery::{Value, json};
use config::Config;
use informer::{ApiError, Change, Factory, Informer, PatchType, Resource, Rest, Source, TreeObject};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{CONFIG_MAPS, NAMESPACE, NODES, apply, embedded, manifests, retry};

const CONFIG_MAP: &str = "coredns";

pub(super) struct Deployed {
    pub rest: Rest,
    pub config: Arc<Config>,
}

impl Deployed {
    pub async fn run(self, cancel: CancellationToken) {
        retry("the objects of CoreDNS", cancel.clone(), || self.put()).await;
        let factory = Factory::new(self.rest.clone());
        let nodes: Informer<TreeObject> = factory.informer(NODES);
        let source = Source::namespaced(CONFIG_MAPS, NAMESPACE).fields(format!("metadata.name={CONFIG_MAP}"));
        let maps: Informer<TreeObject> = factory.informer(source);
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        nodes.on_change(move |change| {
            let lines = |object: &TreeObject| host_line(&object.value);
            // Heartbeats of nodes are no changes here.
            if !matches!(&change, Change::Updated { old, new } if lines(old) == lines(new)) {
                told.notify_one();
            }
        });
        let told = Arc::clone(&changed);
        maps.on_change(move |_| told.notify_one());
        tokio::select! {
            () = factory.wait_synced() => {}
            () = cancel.cancelled() => {}
        }
        while !cancel.is_cancelled() {
            retry("the nodes' lines for CoreDNS", cancel.clone(), || self.write_hosts(&nodes, &maps)).await;
            tokio::select! {
                () = changed.notified() => {}
                () = cancel.cancelled() => {}
            }
        }
        factory.shutdown().await;
    }

    /// Applied at every start, so that an upgrade reaches the cluster.
    async fn put(&self) -> Result<(), ApiError> {
        let objects = match manifests::objects(&self.config) {
            Ok(objects) => objects,
            Err(error) => {
                tracing::error!(error, "controlPlane.coredns.overwriteManifests cannot be applied");
                return Ok(());
            }
        };
        for mut object in objects {
            let (resource, namespaced) = self.resource(&object).await?;
            if namespaced && object.str_at(&["metadata", "namespace"]).is_empty() {
                object["metadata"]["namespace"] = NAMESPACE.into();
            }
            apply(&self.rest, &resource, &object).await?;
        }
        embedded::remove_slices(&self.rest, |_| true).await
    }

    /// The resource of an object's kind, and whether it has namespaces.
    async fn resource(&self, object: &Value) -> Result<(Resource, bool), ApiError> {
        let api_version = object.str_at(&["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = object.str_at(&["kind"]);
        if let Some(known) = apimachinery::resources::by_kind(group, version, kind) {
            let resource = Resource { group: group.into(), version: version.into(), resource: known.name.into() };
            return Ok((resource, known.namespaced));
        }
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let known = self.rest.get_path(&path, "application/json").await?;
        let found = known
            .array_at(&["resources"])
            .iter()
            .find(|resource| resource.str_at(&["kind"]) == kind && !resource.str_at(&["name"]).contains('/'));
        match found {
            Some(found) => {
                let name = found.str_at(&["name"]);
                let resource = Resource { group: group.into(), version: version.into(), resource: name.into() };
                Ok((resource, found["namespaced"] == true))
            }
            None => Err(ApiError::Status {
                code: 404,
                reason: "NotFound".into(),
                message: format!("no matches for kind {kind:?} in version {api_version:?}"),
                details: Box::default(),
                retry_after: None,
            }),
        }
    }

    async fn write_hosts(&self, nodes: &Informer<TreeObject>, maps: &Informer<TreeObject>) -> Result<(), ApiError> {
        let mut lines: Vec<String> = nodes.list().iter().map(|node| host_line(&node.value)).collect();
        lines.sort();
        let text = lines.join("\n");
        let maps = maps.list();
        // Nothing to write to until the objects are there.
        let Some(map) = maps.first() else { return Ok(()) };
        if map.value.str_at(&["data", "NodeHosts"]) == text {
            return Ok(());
        }
        let patch = json!({"data": {"NodeHosts": (text)}});
        match self.rest.patch(&CONFIG_MAPS, "", NAMESPACE, CONFIG_MAP, PatchType::Merge, &patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// `ADDRESS NAME`
fn host_line(node: &Value) -> String {
    let addresses = node.array_at(&["status", "addresses"]);
    let last = |kind: &str| addresses.iter().rfind(|address| address.str_at(&["type"]) == kind);
    let address = last("InternalIP").map_or("", |address| address.str_at(&["address"]));
    let name = last("Hostname").map_or(node.str_at(&["metadata", "name"]), |address| address.str_at(&["address"]));
    format!("{address} {name}")
}
