//! `networking.replicateServices`: single Services that are shown on the other side under a name of the administrator's
//! choice.
//!
//! Invariant: a Service that exists under the wanted name and was not made here is left alone.

use apimachinery::{Value, json};
use informer::{Informer, ObjectKey, Outcome, RawObject, Source};

use super::side::resource;
use super::{Engine, SyncError};
use crate::diff::merge_patch;
use crate::kind;
use crate::metadata::{CONTROLLED_BY_LABEL, label, uid_of};
use crate::names::NamespacedName;
use crate::settings::ReplicatedService;
use crate::types::Context;
use crate::types::classes::{CONTROLLED_BY, replicated};

/// On virtual Services and Endpoints that stand for a Service of the host.
const REPLICA_ANNOTATION: &str = "alcove.dev/replica";

/// Which replica to look at: `(to the host, place in the list)`.
pub type ReplicaKey = (bool, usize);

/// Host Services and Endpoints that replicas are made of.
pub type HostCaches = Vec<(Informer<RawObject>, Informer<RawObject>)>;

fn cached(cache: &Informer<RawObject>, name: &NamespacedName) -> Option<Value> {
    cache.get(&ObjectKey::new(name.namespace.as_str(), name.name.as_str())).and_then(|o| o.to_tree().ok())
}

impl Engine {
    /// Where a replica to the host goes: the install namespace unless the mapping names another.
    fn host_target(&self, mapping: &ReplicatedService) -> NamespacedName {
        let namespace = match mapping.to.namespace.as_str() {
            "" => self.names.install_namespace(),
            namespace => namespace,
        };
        NamespacedName::new(namespace, mapping.to.name.clone())
    }

    pub(super) async fn reconcile_replica(&self, key: &ReplicaKey) -> Result<Outcome, SyncError> {
        if key.0 { self.replicate_to_host(key.1).await } else { self.replicate_from_host(key.1).await }
    }

    async fn replicate_to_host(&self, n: usize) -> Result<Outcome, SyncError> {
        let mapping = &self.settings.replicate_to_host[n];
        let target = self.host_target(mapping);
        let side = &self.host_side;
        let existing = match side.read(&kind::SERVICE, &target).await {
            Ok(existing) => Some(existing),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        if existing.as_ref().is_some_and(|e| label(e, CONTROLLED_BY_LABEL) != CONTROLLED_BY) {
            tracing::warn!(service = %target, "not replicated: the host has a Service of that name");
            return Ok(Outcome::Done);
        }
        let Some(service) = self.virtual_side.get(&kind::SERVICE, &mapping.from) else {
            if let Some(existing) = existing {
                side.delete(&kind::SERVICE, &target, uid_of(&existing), None).await?;
            }
            return Ok(Outcome::Done);
        };
        let facts = crate::types::Facts::default();
        let owner = self.owner.read().clone();
        let ctx = Context {
            names: &self.names,
            settings: &self.settings,
            owner: owner.as_ref(),
            facts: &facts,
            patches: &[],
            now: self.clock.now(),
        };
        let wanted = replicated(&service, &target.namespace, &target.name, &ctx);
        match existing {
            None => drop(side.create(&kind::SERVICE, &wanted).await?),
            Some(existing) => {
                let mut merged = existing.clone();
                merged["spec"]["ports"] = wanted["spec"]["ports"].clone();
                crate::diff::put(&mut merged, &["spec", "selector"], wanted.at(&["spec", "selector"]).cloned());
                // Target ports and node ports that the host filled in stay.
                let same = existing.array_at(&["spec", "ports"]).iter().zip(wanted.array_at(&["spec", "ports"])).all(
                    |(a, b)| {
                        ["name", "port", "protocol", "targetPort"].iter().all(|m| b.get(m).is_none_or(|v| a[*m] == *v))
                    },
                ) && existing.array_at(&["spec", "ports"]).len()
                    == wanted.array_at(&["spec", "ports"]).len();
                if same {
                    merged["spec"]["ports"] = existing["spec"]["ports"].clone();
                }
                if let Some(patch) = merge_patch(&existing, &merged) {
                    side.patch(&kind::SERVICE, &target, "", &patch).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    async fn replicate_from_host(&self, n: usize) -> Result<Outcome, SyncError> {
        let mapping = &self.settings.replicate_from_host[n];
        let Some((services, endpoints)) = self.replica_sources.get().and_then(|s| s.get(n)) else {
            return Ok(Outcome::Done);
        };
        let side = &self.virtual_side;
        let existing = side.get(&kind::SERVICE, &mapping.to);
        if existing.as_ref().is_some_and(|e| label(e, CONTROLLED_BY_LABEL) != CONTROLLED_BY) {
            tracing::warn!(service = %mapping.to, "not replicated: the virtual cluster has a Service of that name");
            return Ok(Outcome::Done);
        }
        let Some(host) = cached(services, &mapping.from) else {
            if let Some(existing) = existing {
                side.delete(&kind::SERVICE, &mapping.to, uid_of(&existing), None).await?;
            }
            return Ok(Outcome::Done);
        };
        self.ensure_namespace(&mapping.to.namespace).await?;
        let labels = json!({CONTROLLED_BY_LABEL: CONTROLLED_BY});
        let ports: Vec<Value> = host
            .array_at(&["spec", "ports"])
            .iter()
            .map(|p| {
                // The address behind is the host Service's own: its port, not the pods'.
                let mut port = json!({"port": (p["port"].clone()), "protocol": (p["protocol"].clone())});
                if !p.str_at(&["name"]).is_empty() {
                    port["name"] = p["name"].clone();
                }
                port
            })
            .collect();
        let headless = host.str_at(&["spec", "clusterIP"]) == "None";
        let subsets = if headless {
            cached(endpoints, &mapping.from).map(|e| plain_subsets(&e)).unwrap_or_default()
        } else {
            vec![json!({"addresses": [{"ip": (host.str_at(&["spec", "clusterIP"]))}], "ports": (ports.clone())})]
        };
        let metadata = json!({
            "name": (mapping.to.name.as_str()), "namespace": (mapping.to.namespace.as_str()), "labels": labels,
            "annotations": {REPLICA_ANNOTATION: "true"},
        });
        match existing {
            None => {
                let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": (metadata.clone()),
                    "spec": {"clusterIP": "None", "ports": (ports.clone())}});
                side.create(&kind::SERVICE, &service).await?;
            }
            Some(existing) => {
                let known: Vec<Value> = existing
                    .array_at(&["spec", "ports"])
                    .iter()
                    .map(|p| {
                        let mut p = p.clone();
                        p.remove_at(&["targetPort"]);
                        p
                    })
                    .collect();
                if known != ports {
                    let patch = json!({"spec": {"ports": (ports.clone())}});
                    side.patch(&kind::SERVICE, &mapping.to, "", &patch).await?;
                }
            }
        }
        match side.read(&kind::ENDPOINTS, &mapping.to).await {
            Ok(existing) => {
                let mut wanted = existing.clone();
                wanted["subsets"] = Value::Array(subsets);
                if let Some(patch) = merge_patch(&existing, &wanted) {
                    side.patch(&kind::ENDPOINTS, &mapping.to, "", &patch).await?;
                }
            }
            Err(error) if error.is_not_found() => {
                let object = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets});
                side.create(&kind::ENDPOINTS, &object).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Done)
    }

    /// Replicas that no mapping asks for any more.
    pub(super) async fn sweep_replicas(&self) -> Result<(), SyncError> {
        let selector = format!("{CONTROLLED_BY_LABEL}={CONTROLLED_BY}");
        let wanted: Vec<NamespacedName> = self.settings.replicate_to_host.iter().map(|m| self.host_target(m)).collect();
        let services = resource(&kind::SERVICE);
        let install = self.names.install_namespace();
        for service in self.host_side.rest.list_as::<Value>(&services, install, &selector, "").await? {
            let name = crate::metadata::name_of(&service);
            if !wanted.contains(&name) {
                self.host_side.delete(&kind::SERVICE, &name, uid_of(&service), None).await?;
            }
        }
        for service in self.virtual_side.rest.list_as::<Value>(&services, "", &selector, "").await? {
            let name = crate::metadata::name_of(&service);
            // The label alone is the tenant's to set.
            let ours = crate::metadata::annotation(&service, REPLICA_ANNOTATION) == "true";
            if ours && !self.settings.replicate_from_host.iter().any(|m| m.to == name) {
                self.virtual_side.delete(&kind::SERVICE, &name, uid_of(&service), None).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn ensure_namespace(&self, namespace: &str) -> Result<(), SyncError> {
        let name = NamespacedName::new("", namespace);
        if namespace.is_empty() || self.virtual_side.get(&kind::NAMESPACE, &name).is_some() {
            return Ok(());
        }
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        match self.virtual_side.create(&kind::NAMESPACE, &object).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn watch_replicas(&self) {
        let mut sources: HostCaches = Vec::new();
        for (n, mapping) in self.settings.replicate_from_host.iter().enumerate() {
            let of = |kind: &crate::kind::Kind| {
                let source = Source::namespaced(resource(kind), mapping.from.namespace.as_str())
                    .fields(format!("metadata.name={}", mapping.from.name));
                let cache = self.host_side.factory.informer::<RawObject>(source);
                let queue = self.replica_queue.clone();
                cache.on_change(move |_| queue.add((false, n)));
                cache
            };
            sources.push((of(&kind::SERVICE), of(&kind::ENDPOINTS)));
            self.replica_queue.add((false, n));
        }
        // Once per engine.
        let _ = self.replica_sources.set(sources);
        let (to_host, from_host) = (self.settings.replicate_to_host.clone(), self.settings.replicate_from_host.clone());
        let queue = self.replica_queue.clone();
        for n in 0..to_host.len() {
            queue.add((true, n));
        }
        if to_host.is_empty() && from_host.is_empty() {
            return;
        }
        self.virtual_side.watch(&kind::SERVICE, Source::all(resource(&kind::SERVICE))).on_change(move |change| {
            let at = &change.object().metadata;
            let is = |name: &NamespacedName| name.namespace == at.namespace.as_str() && name.name == at.name.as_str();
            for (n, _) in to_host.iter().enumerate().filter(|(_, m)| is(&m.from)) {
                queue.add((true, n));
            }
            for (n, _) in from_host.iter().enumerate().filter(|(_, m)| is(&m.to)) {
                queue.add((false, n));
            }
        });
    }
}

fn plain_subsets(endpoints: &Value) -> Vec<Value> {
    let mut subsets = endpoints.array_at(&["subsets"]).to_vec();
    for subset in &mut subsets {
        for member in ["addresses", "notReadyAddresses"] {
            for address in subset.get_mut(member).and_then(Value::as_array_mut).into_iter().flatten() {
                // Pods and nodes of the host.
                for reference in ["targetRef", "nodeName", "hostname"] {
                    address.remove_at(&[reference]);
                }
            }
        }
    }
    subsets
}
