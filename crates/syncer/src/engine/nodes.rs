//! Virtual nodes: there while a pod runs on the host node of that name.

use std::time::Duration;

use apimachinery::Value;
use informer::Outcome;

use super::{Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind;
use crate::metadata::{annotation, uid_of};
use crate::names::NamespacedName;
use crate::settings::Nodes;
use crate::types::node::{fake_node, is_fake, real_node};
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
        Ok(Outcome::Done)
    }

    async fn write_real_node(&self, host_node: &Value, virtual_node: Option<Value>) -> Result<(), SyncError> {
        let wanted = real_node(host_node, virtual_node.as_ref(), None, &self.settings);
        let name = NamespacedName::new("", host_node.str_at(&["metadata", "name"]));
        let Some(existing) = virtual_node else {
            self.virtual_side.create(&kind::NODE, &wanted).await?;
            return Ok(());
        };
        if let Some(patch) = merge_patch(&existing, &wanted) {
            let (main, status) = crate::diff::split_status(patch);
            if let Some(main) = main {
                self.virtual_side.patch(&kind::NODE, &name, "", &main).await?;
            }
            if let Some(status) = status {
                self.virtual_side.patch(&kind::NODE, &name, "status", &status).await?;
            }
        }
        Ok(())
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
        let wanted = fake_node(node, None, &self.settings, self.clock.now());
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
