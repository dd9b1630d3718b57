//! Who depends on whom: what the garbage collector knows of all objects.
//!
//! Keeps a node only for objects that have owners or wait for their dependents; of all others only that they exist. So an
//! idle cluster costs 16 bytes per object.
//!
//! Pure: takes header changes, gives the nodes to look at.

use std::collections::{HashMap, HashSet};

use apimachinery::json::Str;
use informer::{ObjectKey, ObjectMeta, OwnerReference};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// A uid, in 16 bytes that need no alignment of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid([u32; 4]);

impl Uid {
    pub fn new(text: &str) -> Self {
        let number = match uuid::Uuid::try_parse(text) {
            Ok(uuid) => uuid.as_u128(),
            // Not a UUID: two independent hashes.
            Err(_) => u128::from(fnv(0xcbf2_9ce4_8422_2325, text)) << 64 | u128::from(fnv(0x9e37_79b9_7f4a_7c15, text)),
        };
        Uid([number as u32, (number >> 32) as u32, (number >> 64) as u32, (number >> 96) as u32])
    }
}

/// FNV-1a.
fn fnv(seed: u64, text: &str) -> u64 {
    text.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Where an object is: a hash of its kind, namespace and name. References may have the uid of an object and tell another
/// place; they do not mean that object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(u32);

impl Place {
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        let hash = [kind, "/", namespace, "/", name].into_iter().fold(0xcbf2_9ce4_8422_2325, fnv);
        Place((hash ^ (hash >> 32)) as u32)
    }

    /// Where the owner of an object may be: in its namespace, or in none.
    pub fn of_owner(reference: &OwnerReference, namespace: &str) -> [Place; 2] {
        [namespace, ""].map(|namespace| Place::new(&reference.kind, namespace, &reference.name))
    }
}

/// An object that has owners or waits for its dependents.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Index into the collector's table of resources.
    pub resource: usize,
    pub key: ObjectKey,
    pub uid: Str,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// Deleting, and waiting for its dependents to go.
    pub waits_for_dependents: bool,
}

/// What has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Delete the object if its owners are gone, or go on with its foreground deletion.
    Delete(Uid),
    /// Cut the object's dependents loose.
    Orphan(Uid),
}

#[derive(Default)]
pub struct Graph {
    existing: HashMap<Uid, Place>,
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub fn node(&self, uid: Uid) -> Option<&Node> {
        self.nodes.get(&uid)
    }

    /// Whether the object that a reference in this namespace means is known to exist.
    pub fn has_owner(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let place = self.existing.get(&Uid::new(&reference.uid));
        place.is_some_and(|place| Place::of_owner(reference, namespace).contains(place))
    }

    /// Whether an object with the uid of a reference exists, which is not what the reference means.
    pub fn is_elsewhere(&self, reference: &OwnerReference, namespace: &str) -> bool {
        self.existing.contains_key(&Uid::new(&reference.uid)) && !self.has_owner(reference, namespace)
    }

    pub fn dependents(&self, uid: Uid) -> impl Iterator<Item = &Node> {
        self.dependents.get(&uid).into_iter().flatten().filter_map(|d| self.nodes.get(d))
    }

    /// Objects known to exist, and nodes.
    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        (self.existing.len(), self.nodes.len())
    }

    /// Takes over the state of an object; gives what to look at.
    pub fn observe(&mut self, resource: usize, kind: &str, object: &ObjectMeta) -> Vec<Task> {
        let uid = Uid::new(&object.uid);
        self.existing.insert(uid, Place::new(kind, &object.namespace, &object.name));
        let deleting = object.is_deleting();
        let waits = deleting && object.has_finalizer(FOREGROUND);
        let orphans = deleting && object.has_finalizer(ORPHAN);
        let mut tasks = Vec::new();
        let before = self.nodes.remove(&uid);
        let old_owners: Vec<Uid> = before.iter().flat_map(|n| &n.owners).map(|o| Uid::new(&o.uid)).collect();
        let new_owners: Vec<Uid> = object.owner_references.iter().map(|o| Uid::new(&o.uid)).collect();
        for owner in old_owners.iter().filter(|o| !new_owners.contains(o)) {
            self.unlink(*owner, uid);
        }
        for owner in &new_owners {
            self.dependents.entry(*owner).or_default().insert(uid);
        }
        // An owner that waits may have waited for this reference, or for its blockOwnerDeletion.
        if let Some(before) = &before
            && before.owners != object.owner_references
        {
            tasks.extend(old_owners.iter().filter(|o| self.waits(**o)).map(|o| Task::Delete(*o)));
        }
        let owners_changed = before.as_ref().is_none_or(|b| b.owners != object.owner_references);
        let doubtful = |o: &OwnerReference| !self.has_owner(o, &object.namespace) || self.waits(Uid::new(&o.uid));
        if owners_changed && object.owner_references.iter().any(doubtful) {
            tasks.push(Task::Delete(uid));
        }
        if waits && before.as_ref().is_none_or(|b| !b.waits_for_dependents) {
            tasks.extend(self.dependents.get(&uid).into_iter().flatten().map(|d| Task::Delete(*d)));
            tasks.push(Task::Delete(uid));
        }
        if orphans {
            tasks.push(Task::Orphan(uid));
        }
        if !new_owners.is_empty() || waits || orphans {
            self.nodes.insert(
                uid,
                Node {
                    resource,
                    key: object.key(),
                    uid: object.uid.clone(),
                    owners: object.owner_references.clone(),
                    deleting,
                    waits_for_dependents: waits,
                },
            );
        }
        tasks
    }

    /// An object is gone; gives its dependents, and the owners that waited for it.
    pub fn remove(&mut self, uid: Uid) -> Vec<Task> {
        self.existing.remove(&uid);
        let mut tasks = Vec::new();
        if let Some(node) = self.nodes.remove(&uid) {
            for owner in node.owners.iter().map(|o| Uid::new(&o.uid)) {
                self.unlink(owner, uid);
                if self.waits(owner) {
                    tasks.push(Task::Delete(owner));
                }
            }
        }
        tasks.extend(self.dependents.get(&uid).into_iter().flatten().map(|d| Task::Delete(*d)));
        tasks
    }

    fn waits(&self, uid: Uid) -> bool {
        self.nodes.get(&uid).is_some_and(|n| n.waits_for_dependents)
    }

    fn unlink(&mut self, owner: Uid, dependent: Uid) {
        if let Some(dependents) = self.dependents.get_mut(&owner) {
            dependents.remove(&dependent);
            if dependents.is_empty() {
                self.dependents.remove(&owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::{Value, json};

    fn object(uid: &str, owners: &[&str], finalizers: &[&str], deleting: bool) -> ObjectMeta {
        let mut metadata = json!({"name": uid, "namespace": "n", "uid": uid, "finalizers": finalizers});
        let owners: Vec<Value> =
            owners.iter().map(|o| json!({"uid": o, "name": o, "kind": "K", "apiVersion": "v1"})).collect();
        metadata["ownerReferences"] = owners.into();
        if deleting {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        metadata.to().unwrap()
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let (owner, child) = (Uid::new("owner"), Uid::new("child"));
        let mut graph = Graph::default();
        assert!(graph.observe(0, "K", &object("owner", &[], &[], false)).is_empty());
        assert!(graph.observe(1, "K", &object("child", &["owner"], &[], false)).is_empty(), "its owner exists");
        assert_eq!(graph.len(), (2, 1));
        assert_eq!(graph.remove(owner), [Task::Delete(child)]);
        assert!(graph.remove(child).is_empty());
        assert_eq!(graph.len(), (0, 0));
        assert!(graph.dependents.is_empty());
    }

    #[test]
    fn an_object_with_an_unknown_owner_is_looked_at_once() {
        let mut graph = Graph::default();
        let child = object("child", &["owner"], &[], false);
        assert_eq!(graph.observe(0, "K", &child), [Task::Delete(Uid::new("child"))]);
        assert!(graph.observe(0, "K", &child).is_empty(), "nothing about its owners changed");
    }

    #[test]
    fn a_reference_means_an_object_of_its_kind_namespace_and_name() {
        let mut graph = Graph::default();
        graph.observe(0, "K", &object("owner", &[], &[], false));
        // (kind, namespace, name) of the owner as its child tells them, and whether it is that object.
        for (kind, namespace, name, want) in [
            ("K", "n", "owner", true),
            ("K", "other", "owner", false),
            ("Other", "n", "owner", false),
            ("K", "n", "other", false),
        ] {
            let mut child = object(&format!("child-{kind}-{namespace}-{name}"), &["owner"], &[], false);
            child.namespace = namespace.into();
            child.owner_references[0].kind = kind.into();
            child.owner_references[0].name = name.into();
            assert_eq!(graph.observe(0, "K", &child).is_empty(), want, "{kind} {namespace} {name}");
            let reference = &child.owner_references[0];
            assert_eq!(graph.has_owner(reference, namespace), want);
            assert_eq!(graph.is_elsewhere(reference, namespace), !want);
        }
        let mut node = object("node", &[], &[], false);
        node.namespace = "".into();
        graph.observe(0, "K", &node);
        assert!(graph.observe(0, "K", &object("child", &["node"], &[], false)).is_empty(), "an owner in no namespace");
    }

    #[test]
    fn a_foreground_deletion_looks_at_dependents_and_then_at_itself() {
        let (owner, child) = (Uid::new("owner"), Uid::new("child"));
        let mut graph = Graph::default();
        graph.observe(0, "K", &object("owner", &[], &[], false));
        graph.observe(0, "K", &object("child", &["owner"], &[], false));
        let tasks = graph.observe(0, "K", &object("owner", &[], &[FOREGROUND], true));
        assert_eq!(tasks, [Task::Delete(child), Task::Delete(owner)]);
        assert_eq!(graph.dependents(owner).count(), 1);
        assert_eq!(graph.remove(child), [Task::Delete(owner)], "the owner waited for it");
    }

    #[test]
    fn orphaning_and_loss_of_a_reference() {
        let mut graph = Graph::default();
        graph.observe(0, "K", &object("owner", &[], &[], false));
        graph.observe(0, "K", &object("child", &["owner"], &[], false));
        assert_eq!(graph.observe(0, "K", &object("owner", &[], &[ORPHAN], true)), [Task::Orphan(Uid::new("owner"))]);
        graph.observe(0, "K", &object("child", &[], &[], false));
        assert!(graph.remove(Uid::new("owner")).is_empty());
    }
}
