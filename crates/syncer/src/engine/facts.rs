//! What a translation has to know besides the two objects, read from the caches.

use apimachinery::{Map, Value};
use informer::ObjectKey;

use super::Engine;
use super::tokens::belongs_to;
use crate::kind::{self, GATEWAY_GROUP, Kind};
use crate::metadata::{Owner, UID_ANNOTATION, annotation, name_of, owner, string_map, uid_of};
use crate::names::NamespacedName;
use crate::types::endpoints::service_of;
use crate::types::{Facts, Reference};

/// Index of virtual objects by what they refer to: `Kind/namespace/name`.
pub const BY_REFERENCE: &str = "reference";

impl Engine {
    pub(super) fn facts(&self, kind: &Kind, virtual_: Option<&Value>, host: Option<&Value>) -> Facts {
        let mut facts = Facts::default();
        let Some(virtual_) = virtual_ else { return facts };
        let name = name_of(virtual_);
        let side = &self.virtual_side;
        if *kind == kind::POD {
            self.pod_facts(&mut facts, virtual_, host);
        } else if *kind == kind::CONFIG_MAP || *kind == kind::SECRET {
            facts.referred = self.is_referred(kind, &name);
        } else if *kind == kind::RESOURCE_CLAIM {
            facts.users = host.map(|h| self.claim_users(h)).unwrap_or_default();
        } else if kind.group == GATEWAY_GROUP {
            self.gateway_facts(&mut facts, virtual_);
            if kind.plural == "backendtlspolicies"
                && let Some(cache) = side.cache(&kind::SERVICE)
            {
                facts.services =
                    cache.list_namespace(&name.namespace).iter().filter_map(|s| s.to_tree().ok()).collect();
            }
        } else if *kind == kind::ENDPOINTS || *kind == kind::ENDPOINT_SLICE {
            let service = NamespacedName::new(name.namespace, service_of(virtual_));
            facts.service = side.get(&kind::SERVICE, &service);
        } else if *kind == kind::PERSISTENT_VOLUME {
            facts.claim = host.and_then(|h| self.claim_of(h));
        } else if *kind == kind::PERSISTENT_VOLUME_CLAIM {
            if self.settings.persistent_volumes {
                facts.volume = host.and_then(|h| self.virtual_volume(h.str_at(&["spec", "volumeName"])));
            }
            let node = crate::metadata::annotation(virtual_, crate::types::volumes::SELECTED_NODE);
            facts.node_exists =
                node.is_empty() || side.get(&kind::NODE, &NamespacedName::new(String::new(), node)).is_some();
            self.class_fact(&mut facts, &kind::HOST_STORAGE_CLASS, virtual_.str_at(&["spec", "storageClassName"]));
        } else if *kind == kind::INGRESS {
            facts.hostnames_taken = self.hostnames_taken(virtual_, host);
            self.class_fact(&mut facts, &kind::INGRESS_CLASS, virtual_.str_at(&["spec", "ingressClassName"]));
        }
        facts
    }

    fn claim_users(&self, host_claim: &Value) -> Vec<(String, NamespacedName, String)> {
        let namespace = host_claim.str_at(&["metadata", "namespace"]);
        let users = host_claim.array_at(&["status", "reservedFor"]).iter();
        let pod = |user: &Value| {
            let host = self.host_side.get(&kind::POD, &NamespacedName::new(namespace, user.str_at(&["name"])))?;
            match owner(&host, &kind::POD, &self.names) {
                Owner::Ours { name, uid } if uid_of(&host) == user.str_at(&["uid"]) => {
                    Some((uid_of(&host).to_owned(), name, uid))
                }
                _ => None,
            }
        };
        users.filter_map(pod).collect()
    }

    pub(super) fn is_referred(&self, kind: &Kind, name: &NamespacedName) -> bool {
        let value = Reference::new(kind.kind.as_ref(), &name.namespace, &name.name).index_value();
        self.types
            .read()
            .iter()
            .any(|ty| self.virtual_side.cache(ty.ty.kind()).is_some_and(|c| c.count_index(BY_REFERENCE, &value) > 0))
    }

    fn gateway_facts(&self, facts: &mut Facts, object: &Value) {
        let all = |plural: &str| -> Vec<Value> {
            let cache = self.virtual_side.cache_named(&format!("{plural}.{GATEWAY_GROUP}"));
            cache.map(|c| c.list()).unwrap_or_default().iter().filter_map(|o| o.to_tree().ok()).collect()
        };
        facts.grants = all("referencegrants");
        facts.gateways = all("gateways");
        facts.host_gateways = self.shown_gateways();
        let namespaces = self.virtual_side.cache(&kind::NAMESPACE).map(|c| c.list()).unwrap_or_default();
        facts.namespaces =
            namespaces.iter().map(|n| (n.metadata.name.to_string(), n.metadata.labels.to_value())).collect();
        let class = object.str_at(&["spec", "gatewayClassName"]);
        if !class.is_empty() {
            let found = all("gatewayclasses").into_iter().find(|c| c.str_at(&["metadata", "name"]) == class);
            facts.classes.push(("GatewayClass", found));
        }
    }

    fn pod_facts(&self, facts: &mut Facts, pod: &Value, host: Option<&Value>) {
        let name = name_of(pod);
        let side = &self.virtual_side;
        if let Some(namespace) = side.get(&kind::NAMESPACE, &NamespacedName::new("", name.namespace.clone())) {
            let labels = namespace.at(&["metadata", "labels"]).cloned().unwrap_or_default();
            facts.namespace_labels = string_map(Some(&labels)).map(|(k, v)| (k, Value::from(v))).collect::<Map>();
        }
        if self.names.syncs_namespaces() {
            let all = side.cache(&kind::NAMESPACE).map(|c| c.list()).unwrap_or_default();
            facts.namespaces =
                all.iter().map(|n| (n.metadata.name.to_string(), n.metadata.labels.to_value())).collect();
        }
        facts.kube_ip = self.kube_ip.read().clone();
        if let Some(dns) = &self.settings.dns_service {
            let host_dns = kind::SERVICE.known_host_name(&self.names, dns);
            let service = self.host_side.get(&kind::SERVICE, &host_dns);
            facts.dns_ip = service.map(|s| s.str_at(&["spec", "clusterIP"]).to_owned()).unwrap_or_default();
            // A cluster without DNS does not wait for one.
            facts.dns_pending = facts.dns_ip.is_empty() && side.get(&kind::SERVICE, dns).is_some();
        }
        // Only a pod that is made now, or gets new containers, needs the variables.
        let containers = |p: &Value| p.array_at(&["spec", "ephemeralContainers"]).len();
        if host.is_none_or(|h| containers(h) < containers(pod))
            && pod.at(&["spec", "enableServiceLinks"]).is_some_and(|v| *v == true)
            && let Some(cache) = side.cache(&kind::SERVICE)
        {
            facts.services = cache.list_namespace(&name.namespace).iter().filter_map(|s| s.to_tree().ok()).collect();
        }
        let node = pod.str_at(&["spec", "nodeName"]);
        facts.node_exists =
            !node.is_empty() && side.cache(&kind::NODE).is_some_and(|c| c.get(&ObjectKey::cluster(node)).is_some());
        let secret = self.names.token_secret(&name.name, &name.namespace);
        facts.token_secret = self
            .host_side
            .get(&kind::SECRET, &secret)
            .filter(|s| belongs_to(s, &name) && annotation(s, UID_ANNOTATION) == uid_of(pod));
        self.class_fact(facts, &kind::HOST_PRIORITY_CLASS, pod.str_at(&["spec", "priorityClassName"]));
        self.class_fact(facts, &kind::RUNTIME_CLASS, pod.str_at(&["spec", "runtimeClassName"]));
    }

    fn class_fact(&self, facts: &mut Facts, kind: &'static Kind, class: &str) {
        if !class.is_empty() && self.host_side.cache(kind).is_some() {
            let object = self.host_side.get(kind, &NamespacedName::new("", class));
            facts.classes.push((kind.kind.as_ref(), object));
        }
    }
}
