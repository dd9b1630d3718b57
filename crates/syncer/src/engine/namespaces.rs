//! Namespace sync: a host namespace for each virtual namespace that a rule maps.
//!
//! Invariant: a host namespace that was there before is used but never deleted; only what was made here goes again.

use apimachinery::{Map, Value, json};
use informer::Outcome;

use super::{Engine, SyncError};
use crate::kind;
use crate::metadata::{IMPORTED_ANNOTATION, MANAGED_BY_LABEL, NAME_ANNOTATION, annotation, is_deleting, label, uid_of};
use crate::names::NamespacedName;

const VIRTUAL_CLUSTER_LABEL: &str = "vcluster.loft.sh/vcluster-name";
const INSTALL_NAMESPACE_LABEL: &str = "vcluster.loft.sh/vcluster-namespace";

impl Engine {
    fn namespace_labels(&self) -> Map {
        let mut labels: Map =
            self.settings.namespace_labels.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))).collect();
        labels.insert(VIRTUAL_CLUSTER_LABEL, self.names.virtual_cluster().into());
        labels.insert(INSTALL_NAMESPACE_LABEL, self.names.install_namespace().into());
        labels.insert(MANAGED_BY_LABEL, self.names.cluster_marker().into());
        labels
    }

    /// True for host namespaces that belong to this virtual cluster.
    pub(super) fn owns_namespace(&self, host: &Value) -> bool {
        label(host, VIRTUAL_CLUSTER_LABEL) == self.names.virtual_cluster()
            && label(host, INSTALL_NAMESPACE_LABEL) == self.names.install_namespace()
    }

    pub(super) fn looks_at_namespaces(&self) -> bool {
        self.names.syncs_namespaces() || self.settings.pod_security.is_some()
    }

    /// The Pod Security Standard of the configuration on every virtual namespace. A tenant may ask for a stricter one in
    /// words of its own; here the labels always say the administrator's.
    async fn label_namespace(&self, name: &NamespacedName) -> Result<(), SyncError> {
        let Some(level) = self.settings.pod_security else { return Ok(()) };
        let Some(existing) = self.virtual_side.get(&kind::NAMESPACE, name).filter(|n| !is_deleting(n)) else {
            return Ok(());
        };
        let level = format!("{level:?}").to_lowercase();
        let mut missing = Map::new();
        for mode in ["enforce", "warn"] {
            let key = format!("pod-security.kubernetes.io/{mode}");
            for (key, value) in [(key.clone(), level.as_str()), (format!("{key}-version"), "latest")] {
                if label(&existing, &key) != value {
                    missing.insert(key, value.into());
                }
            }
        }
        if !missing.is_empty() {
            let patch = json!({"metadata": {"uid": (uid_of(&existing)), "labels": (Value::Object(missing))}});
            self.virtual_side.patch(&kind::NAMESPACE, name, "", &patch).await?;
        }
        Ok(())
    }

    pub(super) async fn reconcile_namespace(&self, namespace: &str) -> Result<Outcome, SyncError> {
        let name = NamespacedName::new("", namespace);
        self.label_namespace(&name).await?;
        let Some(host_name) = self.names.mapped_namespace(namespace) else {
            return Ok(Outcome::Done);
        };
        let host_name = NamespacedName::new("", host_name);
        let virtual_ = self.virtual_side.get(&kind::NAMESPACE, &name);
        let host = match self.host_side.read(&kind::NAMESPACE, &host_name).await {
            Ok(host) => Some(host),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        match (virtual_, host) {
            (Some(virtual_), host) if !is_deleting(&virtual_) => {
                if let Some(host) = &host {
                    let other = label(host, VIRTUAL_CLUSTER_LABEL);
                    if !other.is_empty() && !self.owns_namespace(host) {
                        let message = "Error syncing: the host namespace of this namespace belongs to another cluster";
                        self.warn(&kind::NAMESPACE, &virtual_, "SyncError", message);
                        return Ok(Outcome::Done);
                    }
                }
                self.write_namespace(&host_name, &virtual_, host).await?;
            }
            (_, Some(host)) if self.owns_namespace(&host) => {
                // The objects in it go first, by their own types; a namespace that was there before stays.
                if annotation(&host, IMPORTED_ANNOTATION) != "true" && !is_deleting(&host) {
                    self.host_side.delete(&kind::NAMESPACE, &host_name, uid_of(&host), None).await?;
                }
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// The host namespace with the configuration's patches, which see the tenant's labels and annotations and change ours.
    fn wanted_namespace(&self, name: &NamespacedName, virtual_: &Value) -> Value {
        let plain = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": (name.name.as_str())}});
        let mut wanted = plain.clone();
        let facts = crate::types::Facts::default();
        let ctx = crate::types::Context {
            names: &self.names,
            settings: &self.settings,
            owner: None,
            facts: &facts,
            patches: &[],
            now: self.clock.now(),
        };
        for member in ["labels", "annotations"] {
            wanted["metadata"][member] = json!({});
        }
        let patches = self.patches(&kind::NAMESPACE);
        if let Err(refusal) = crate::patches::apply_to_host(patches, virtual_, &mut wanted, &ctx) {
            let message = format!("a patch of the namespace failed: {refusal:?}");
            self.warn(&kind::NAMESPACE, virtual_, "SyncError", &message);
            wanted = plain;
        }
        // Whatever a patch says: it is this cluster's namespace under this name.
        wanted["metadata"]["name"] = name.name.as_str().into();
        let of = virtual_.str_at(&["metadata", "name"]);
        wanted.set_at(&["metadata", "annotations", NAME_ANNOTATION], of.into());
        let labels = wanted["metadata"].make_object().object_mut("labels");
        for (key, value) in self.namespace_labels() {
            labels.insert(key, value);
        }
        wanted
    }

    async fn write_namespace(
        &self,
        name: &NamespacedName,
        virtual_: &Value,
        host: Option<Value>,
    ) -> Result<(), SyncError> {
        let wanted = self.wanted_namespace(name, virtual_);
        match host {
            None => drop(self.host_side.create(&kind::NAMESPACE, &wanted).await?),
            Some(host) => {
                let mut missing = Map::new();
                for member in ["labels", "annotations"] {
                    let of = wanted.at(&["metadata", member]).and_then(Value::as_object).cloned().unwrap_or_default();
                    let new: Map =
                        of.into_iter().filter(|(k, v)| host.at(&["metadata", member, k]) != Some(v)).collect();
                    if !new.is_empty() {
                        missing.insert(member, new.into());
                    }
                }
                if !missing.is_empty() {
                    let mut patch = json!({"metadata": (Value::Object(missing))});
                    if label(&host, VIRTUAL_CLUSTER_LABEL).is_empty() {
                        patch.set_at(&["metadata", "annotations", IMPORTED_ANNOTATION], "true".into());
                    }
                    self.host_side.change(&kind::NAMESPACE, name, &host, &patch).await?;
                }
            }
        }
        // Pods of this cluster run as this account, wherever they are.
        let account = &self.settings.workload_service_account;
        if !account.is_empty() {
            let object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": (account.as_str()), "namespace": (name.name.as_str())},
                "automountServiceAccountToken": false});
            match self.host_side.create(&kind::SERVICE_ACCOUNT, &object).await {
                Err(error) if !error.is_already_exists() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}
