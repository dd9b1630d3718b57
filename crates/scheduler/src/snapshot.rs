//! The cluster as one scheduling decision sees it.
//!
//! Invariant: `requested` and `ports` of a node are the sums over exactly its `pods`.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::StrMap;

use crate::resources::{Amounts, pod_requests};
use crate::types::{Node, NodeSelector, Pod};

/// A node and what runs on it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub pods: Vec<Arc<Pod>>,
    pub allocatable: Amounts,
    pub requested: Amounts,
}

impl NodeInfo {
    pub fn new(node: Arc<Node>) -> NodeInfo {
        let allocatable = Amounts::parse(&node.status.allocatable);
        NodeInfo { node, pods: Vec::new(), allocatable, requested: Amounts::default() }
    }

    pub fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod_requests(&pod));
        self.pods.push(pod);
    }

    /// Takes the pod with this UID off the node, for "what if" questions.
    pub fn remove(&mut self, uid: &str) {
        if let Some(i) = self.pods.iter().position(|p| p.metadata.uid == uid) {
            let pod = self.pods.swap_remove(i);
            self.requested.subtract(&pod_requests(&pod));
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.get(key)
    }
}

/// What a claim means for the choice of a node.
#[derive(Clone, Debug)]
pub enum Claim {
    /// Bound; the volume may be reachable from some nodes only.
    Bound(Option<NodeSelector>),
    /// Unbound, and to be bound before its pod is scheduled.
    UnboundImmediate,
    /// Unbound, bound once a node is chosen.
    UnboundWaiting,
}

/// Nodes with their pods, and the namespaces and claims that pods refer to.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub nodes: Vec<NodeInfo>,
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, StrMap>,
    /// By namespace and claim name.
    pub claims: BTreeMap<(String, String), Claim>,
}

impl Snapshot {
    /// Puts active pods on their nodes. Pods of unknown nodes are left out.
    pub fn new(nodes: impl IntoIterator<Item = Arc<Node>>, pods: impl IntoIterator<Item = Arc<Pod>>) -> Snapshot {
        let mut nodes: Vec<NodeInfo> = nodes.into_iter().map(NodeInfo::new).collect();
        nodes.sort_by(|a, b| a.node.metadata.name.cmp(&b.node.metadata.name));
        for pod in pods {
            if !pod.is_active() || pod.spec.node_name.is_empty() {
                continue;
            }
            if let Ok(i) = nodes.binary_search_by(|n| n.node.metadata.name.as_str().cmp(pod.spec.node_name.as_str())) {
                nodes[i].add(pod);
            }
        }
        Snapshot { nodes, ..Snapshot::default() }
    }

    /// The node of this name.
    pub fn node_mut(&mut self, name: &str) -> Option<&mut NodeInfo> {
        let i = self.nodes.binary_search_by(|n| n.node.metadata.name.as_str().cmp(name)).ok()?;
        Some(&mut self.nodes[i])
    }

    /// Puts a node, with the pods it had when it was known already.
    pub fn put_node(&mut self, node: Arc<Node>) {
        match self.nodes.binary_search_by(|n| n.node.metadata.name.cmp(&node.metadata.name)) {
            Ok(i) => {
                self.nodes[i].allocatable = Amounts::parse(&node.status.allocatable);
                self.nodes[i].node = node;
            }
            Err(i) => self.nodes.insert(i, NodeInfo::new(node)),
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        self.nodes.retain(|n| n.node.metadata.name != name);
    }

    pub fn pods(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<Pod>)> {
        self.nodes.iter().flat_map(|n| n.pods.iter().map(move |p| (n, p)))
    }
}
