//! Virtual nodes: there while a pod runs on the host node of that name.

use std::time::Duration;

use apimachinery::Value;
use informer::{Outcome, RawObject, Source};

use super::side::resource;
use super::{Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind;
use crate::metadata::{MANAGED_BY_LABEL, annotation, uid_of};
use crate::names::NamespacedName;
use crate::settings::Nodes;
use crate::types::node::{
    BELONGS_TO_LABEL, NODE_ANNOTATION, fake_node, is_fake, node_changes, node_service, real_node, reduce_allocatable,
    remember_node,
};
use crate::types::pod::{OWNER_SET_KIND_ANNOTATION, is_daemon_set_pod};

/// Index of pods by the node they are on, on both sides.
pub const BY_NODE: &str = "node";

impl Engine {
    /// Pods of daemon sets do not keep a node: they would keep it for ever.
    fn node_needed(&self, node: &str) -> bool {
        self.virtual_side.by_index(&kind::POD, BY_NODE, node).iter().any(|p| !is_daemon_set_pod(p))
            || self
                .host_side
                .by_index(&kind::POD, BY_NODE, node)
                .iter()
                .any(|p| annotation(p, OWNER_SET_KIND_ANNOTATION) != "DaemonSet")
    }

    pub(super) async fn reconcile_node(&self, node: &str) -> Result<Outcome, SyncError> {
        let name = NamespacedName::new("", node);
        let virtual_node = self.virtual_side.get(&kind::NODE, &name);
        match &self.settings.nodes {
            Nodes::Fake => match virtual_node {
                Some(existing) if is_fake(&existing) && !self.node_needed(node) => {
                    self.virtual_side.delete(&kind::NODE, &name, uid_of(&existing), None).await?;
                }
                None if self.node_needed(node) => {
                    self.ensure_node(node).await?;
                }
                _ => {}
            },
            Nodes::Real { all, labels, .. } => {
                let host_node = self.host_side.get(&kind::NODE, &name);
                let wanted = host_node.filter(|h| {
                    let selected = labels.iter().all(|(k, v)| crate::metadata::label(h, k) == v.as_str());
                    if *all || !labels.is_empty() { selected } else { self.node_needed(node) }
                });
                match (wanted, virtual_node) {
                    (Some(host_node), virtual_node) => self.write_real_node(&host_node, virtual_node).await?,
                    (None, Some(existing)) => {
                        self.virtual_side.delete(&kind::NODE, &name, uid_of(&existing), None).await?;
                    }
                    (None, None) => {}
                }
            }
        }
        self.reconcile_node_service(node).await?;
        self.show_node_address(node).await?;
        Ok(Outcome::Done)
    }

    /// Invented nodes get their address when it is known.
    async fn show_node_address(&self, node: &str) -> Result<(), SyncError> {
        let name = NamespacedName::new("", node);
        let Some(ip) = self.node_address(node) else { return Ok(()) };
        let Some(existing) = self.virtual_side.get(&kind::NODE, &name).filter(is_fake) else { return Ok(()) };
        let wanted = crate::types::node::addresses(node, Some(&ip), &self.settings);
        if existing.at(&["status", "addresses"]) != Some(&wanted) {
            let patch =
                apimachinery::json!({"metadata": {"uid": (uid_of(&existing))}, "status": {"addresses": wanted}});
            self.virtual_side.patch(&kind::NODE, &name, "status", &patch).await?;
        }
        Ok(())
    }

    async fn write_real_node(&self, host_node: &Value, mut virtual_node: Option<Value>) -> Result<(), SyncError> {
        let name = NamespacedName::new("", host_node.str_at(&["metadata", "name"]));
        let mut host_node = host_node.clone();
        let syncs_back = matches!(self.settings.nodes, Nodes::Real { sync_back_changes: true, .. });
        if syncs_back && let Some(existing) = &mut virtual_node {
            while let Some(patch) = node_changes(existing, &host_node) {
                host_node = self.host_side.patch(&kind::NODE, &name, "", &patch).await?;
                // Before anything of the host is shown: what the tenant changes meanwhile is a change of this.
                *existing = self.virtual_side.patch(&kind::NODE, &name, "", &remember_node(existing)).await?;
            }
        }
        let ip = self.node_address(&name.name);
        let mut wanted = real_node(&host_node, virtual_node.as_ref(), ip.as_deref(), &self.settings);
        if self.settings.virtual_scheduler {
            reduce_allocatable(&mut wanted, &self.foreign_pods(&name.name));
        }
        let patches = super::patches_of(&self.settings.import_patches, &kind::NODE);
        if !patches.is_empty() {
            let facts = crate::types::Facts::default();
            let ctx = crate::types::Context {
                names: &self.names,
                settings: &self.settings,
                owner: None,
                facts: &facts,
                patches: &[],
                now: self.clock.now(),
            };
            if let Err(refusal) = crate::patches::apply_to_import(patches, &host_node, &mut wanted, &ctx) {
                tracing::warn!(node = %name, ?refusal, "not shown: a patch failed");
                return Ok(());
            }
        }
        let Some(existing) = virtual_node else {
            self.virtual_side.create(&kind::NODE, &wanted).await?;
            return Ok(());
        };
        if let Some(patch) = merge_patch(&existing, &wanted) {
            let (main, status) = crate::diff::split_status(patch);
            if let Some(mut main) = main {
                if syncs_back {
                    // Lists are written whole: one that the tenant has just changed is looked at first.
                    let version = existing.str_at(&["metadata", "resourceVersion"]);
                    main.set_at(&["metadata", "resourceVersion"], version.into());
                }
                self.virtual_side.patch(&kind::NODE, &name, "", &main).await?;
            }
            if let Some(status) = status {
                self.virtual_side.patch(&kind::NODE, &name, "status", &status).await?;
            }
        }
        Ok(())
    }

    /// Pods on a host node that are not this virtual cluster's.
    fn foreign_pods(&self, node: &str) -> Vec<Value> {
        let Some(pods) = self.all_pods.get() else { return Vec::new() };
        let own = self.names.virtual_cluster();
        let pods = pods.by_index(BY_NODE, node).into_iter().filter(|p| {
            p.metadata.labels.get(MANAGED_BY_LABEL) != Some(own)
                || !self.names.is_target_namespace(&p.metadata.namespace)
        });
        pods.filter_map(|p| p.to_tree().ok())
            .filter(|p| !matches!(p.str_at(&["status", "phase"]), "Succeeded" | "Failed"))
            .collect()
    }

    /// A scheduler inside the virtual cluster has to know how much of a node others use: all pods of the host are watched.
    pub(super) fn watch_all_pods(&self) {
        if !self.settings.virtual_scheduler {
            return;
        }
        let pods = self.host_side.factory.informer::<RawObject>(Source::all(resource(&kind::POD)));
        pods.add_index(BY_NODE, |pod: &RawObject, out: &mut Vec<apimachinery::json::Str>| {
            let node = pod.to_tree().map(|p| p.str_at(&["spec", "nodeName"]).to_owned()).unwrap_or_default();
            if !node.is_empty() {
                out.push(node.into());
            }
        });
        let (queue, own) = (self.node_queue.clone(), self.names.virtual_cluster().to_owned());
        pods.on_change(move |change| {
            let pod = change.object();
            if pod.metadata.labels.get(MANAGED_BY_LABEL) != Some(own.as_str())
                && let Ok(pod) = pod.to_tree()
                && !pod.str_at(&["spec", "nodeName"]).is_empty()
            {
                // Many pods change at once; one look is enough for all.
                queue.add_after(pod.str_at(&["spec", "nodeName"]).to_owned(), Duration::from_secs(1));
            }
        });
        // Once per engine.
        let _ = self.all_pods.set(pods);
    }

    /// The address under which a node's kubelet is reached through the control plane.
    fn node_address(&self, node: &str) -> Option<String> {
        let name = NamespacedName::new(self.names.install_namespace(), self.names.node_service(node));
        let service =
            self.node_services.get()?.get(&informer::ObjectKey::new(name.namespace.as_str(), name.name.as_str()))?;
        let ip = service.to_tree().ok()?.str_at(&["spec", "clusterIP"]).to_owned();
        (!ip.is_empty() && ip != "None").then_some(ip)
    }

    /// The Service that stands for a node's kubelet: there while the node is, where the control plane has pods that can
    /// answer for it.
    async fn reconcile_node_service(&self, node: &str) -> Result<(), SyncError> {
        if !self.settings.proxy_kubelets_by_ip {
            return Ok(());
        }
        let selector = self.control_plane_selector.read().clone();
        let Some(services) = self.node_services.get() else { return Ok(()) };
        let name = NamespacedName::new(self.names.install_namespace(), self.names.node_service(node));
        let key = informer::ObjectKey::new(name.namespace.as_str(), name.name.as_str());
        let existing = services.get(&key);
        let needed = self.virtual_side.get(&kind::NODE, &NamespacedName::new("", node)).is_some();
        match existing {
            None if needed && selector.as_object().is_some_and(|s| !s.is_empty()) => {
                let owner = self.owner.read().clone();
                let made = node_service(node, &name, &selector, owner.as_ref(), &self.names);
                match self.host_side.create(&kind::SERVICE, &made).await {
                    Err(error) if !error.is_already_exists() => return Err(error.into()),
                    _ => self.host_side.forget(&kind::SERVICE, &name),
                }
            }
            Some(existing) if !needed => {
                self.host_side.delete(&kind::SERVICE, &name, &existing.metadata.uid, None).await?;
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn watch_node_services(&self) {
        if !self.settings.proxy_kubelets_by_ip {
            return;
        }
        let source = Source::namespaced(resource(&kind::SERVICE), self.names.install_namespace())
            .labels(format!("{BELONGS_TO_LABEL}={}", self.names.virtual_cluster()));
        let services = self.host_side.factory.informer::<RawObject>(source);
        let queue = self.node_queue.clone();
        services.on_change(move |change| {
            if let Some(node) = change.object().metadata.annotations.get(NODE_ANNOTATION) {
                queue.add(node.to_owned());
            }
        });
        // Once per engine.
        let _ = self.node_services.set(services);
    }

    /// Makes sure a pod can be bound to the node. `false`: not yet.
    pub(super) async fn ensure_node(&self, node: &str) -> Result<bool, SyncError> {
        let name = NamespacedName::new("", node);
        if self.virtual_side.get(&kind::NODE, &name).is_some() {
            return Ok(true);
        }
        if let Nodes::Real { .. } = self.settings.nodes {
            self.node_queue.add(node.to_owned());
            return Ok(false);
        }
        // Two pods of one node come at the same time: the second waits for the first's node.
        let _turn = self.node_creation.lock().await;
        if self.virtual_side.get(&kind::NODE, &name).is_some() {
            return Ok(true);
        }
        let wanted = fake_node(node, self.node_address(node).as_deref(), &self.settings, self.clock.now());
        let made = match self.virtual_side.create(&kind::NODE, &wanted).await {
            Ok(made) => made,
            Err(error) if error.is_already_exists() => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        // Admission taints new nodes until their kubelet reports.
        if !made.array_at(&["spec", "taints"]).is_empty() {
            let patch = apimachinery::json!({"spec": {"taints": null}});
            self.virtual_side.patch(&kind::NODE, &name, "", &patch).await?;
        }
        Ok(true)
    }

    /// How long a pod waits for its node.
    pub(super) const NODE_WAIT: Duration = Duration::from_millis(100);
}
