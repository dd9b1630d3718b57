//! What each synced type contributes: the host object it becomes, and what comes back.
//!
//! Pure: everything a type may look at besides the two objects is in [`Context`], gathered by the engine before.

use apimachinery::{Map, Value};
use jiff::Timestamp;

use crate::kind::Kind;
use crate::metadata::HostOwner;
use crate::names::{Names, NamespacedName};
use crate::plan::{Action, LastSeen};
use crate::settings::Settings;

pub mod address_block;
pub mod classes;
pub mod configs;
pub mod custom;
pub mod definition;
pub mod endpoints;
pub mod event;
pub mod gateway;
pub mod ingress;
pub mod network_policy;
pub mod node;
pub mod pod;
pub mod policies;
pub mod real_volumes;
pub mod service;
pub mod volumes;

/// What the engine looked up for one object.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Labels of the object's virtual namespace.
    pub namespace_labels: Map,
    /// Virtual namespaces with their labels; only filled while namespaces are synced.
    pub namespaces: Vec<(String, Value)>,
    /// Virtual Services of the object's namespace.
    pub services: Vec<Value>,
    /// Cluster IP of the control plane's Service on the host.
    pub kube_ip: String,
    /// Cluster IP of the virtual DNS Service; empty when there is none.
    pub dns_ip: String,
    /// The virtual DNS Service exists, but the host gave it no address yet.
    pub dns_pending: bool,
    /// The pod's node is known in the virtual cluster.
    pub node_exists: bool,
    /// Something refers to this config map or secret.
    pub referred: bool,
    /// Virtual reference grants and Gateways; only filled for kinds of the Gateway API.
    pub grants: Vec<Value>,
    pub gateways: Vec<Value>,
    /// Host Gateways that the configuration shows.
    pub host_gateways: Vec<Value>,
    /// Host pods of this cluster by uid, with the virtual pods they stand for: who uses a resource claim.
    pub users: Vec<(String, NamespacedName, String)>,
    /// Host names of an Ingress that another tenant's has.
    pub hostnames_taken: Vec<String>,
    /// The virtual name of the volume a host claim is bound to, when volumes are synced.
    pub volume: Option<String>,
    /// The virtual claim a host volume is bound to.
    pub claim: Option<Value>,
    /// The virtual Service an Endpoints or EndpointSlice belongs to.
    pub service: Option<Value>,
    /// The host Secret that holds the pod's tokens.
    pub token_secret: Option<Value>,
    /// Host class objects by kind and name, for classes that a selector limits. `None`: not on the host.
    pub classes: Vec<(&'static str, Option<Value>)>,
}

/// Everything a translation depends on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub names: &'a Names,
    pub settings: &'a Settings,
    pub owner: Option<&'a HostOwner>,
    pub facts: &'a Facts,
    /// The configuration's patches for this type.
    pub patches: &'a [crate::patches::Patch],
    pub now: Timestamp,
}

impl<'a> Context<'a> {
    pub fn metadata(&self, virtual_: &Value, kind: &Kind, excluded: &[&str]) -> Value {
        let owner = self.owner.filter(|_| self.settings.set_owner);
        crate::metadata::host_metadata(virtual_, kind, self.names, owner, excluded)
    }
}

/// Why an object does not go to the host as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Cannot be, whatever is tried: the tenant is told, and nothing happens until the object changes.
    Never { reason: &'static str, message: String },
    /// Something is missing that may come: looked at again after some seconds.
    NotYet { message: String, retry_seconds: u64 },
}

impl Refusal {
    pub fn warning(message: impl Into<String>) -> Refusal {
        Refusal::Never { reason: "SyncWarning", message: message.into() }
    }

    pub fn error(message: impl Into<String>) -> Refusal {
        Refusal::Never { reason: "SyncError", message: message.into() }
    }

    pub fn not_yet(message: impl Into<String>, retry_seconds: u64) -> Refusal {
        Refusal::NotYet { message: message.into(), retry_seconds }
    }
}

/// What both objects should become, with what else is to be done.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    pub virtual_: Value,
    pub host: Value,
    pub actions: Vec<Action>,
    /// Remembered for the next time while the process lives.
    pub seen: LastSeen,
}

/// A virtual object that another one needs on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `Secret`, `ConfigMap`, ...
    pub kind: String,
    pub name: NamespacedName,
}

impl Reference {
    pub fn new(kind: impl Into<String>, namespace: &str, name: &str) -> Reference {
        Reference { kind: kind.into(), name: NamespacedName::new(namespace, name) }
    }

    /// As an index has it.
    pub fn index_value(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

/// A type that goes from the virtual cluster to the host.
pub trait ToHost: Send + Sync {
    fn kind(&self) -> &Kind;

    /// Whether the object has a host object at all.
    fn wanted(&self, _virtual: &Value, _ctx: &Context<'_>) -> bool {
        true
    }

    /// Whether [`ToHost::references`] can give anything.
    fn refers(&self) -> bool {
        false
    }

    /// Secrets and ConfigMaps that have to be on the host for this object.
    fn references(&self, _virtual: &Value) -> Vec<Reference> {
        Vec::new()
    }

    /// The host object to create, with what to do after it exists.
    fn translate(&self, virtual_: &Value, ctx: &Context<'_>) -> Result<(Value, Vec<Action>), Refusal>;

    /// What both objects should become. Neither is being deleted.
    fn reconcile(&self, virtual_: &Value, host: &Value, last: &LastSeen, ctx: &Context<'_>)
    -> Result<Desired, Refusal>;

    /// Both exist and at least one of them is being deleted. `None`: the usual way, virtual deletion first.
    fn deleting(&self, _virtual: &Value, _host: &Value, _ctx: &Context<'_>) -> Option<Vec<Action>> {
        None
    }

    /// The host object was there and is gone. `Some`: what to do instead of creating it again.
    fn host_gone(&self, virtual_: &Value, last: &LastSeen) -> Option<Vec<Action>> {
        last.on_host.then(|| vec![Action::delete_virtual(virtual_, None)])
    }

    /// Fields of the host object that either side may change, by the names under which agreement on them is remembered.
    fn two_way_fields(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        Vec::new()
    }

    /// A host object made for an earlier virtual object of the same name is deleted first.
    fn replaces_older(&self) -> bool {
        true
    }
}

/// A type under its resource name.
pub type Named = (&'static str, Box<dyn ToHost>);

/// The built-in types, and whether the settings ask for them.
fn table(settings: &Settings) -> [(&'static str, bool, Box<dyn ToHost>); 16] {
    use crate::kind::{RESOURCE_CLAIM, RESOURCE_CLAIM_TEMPLATE};
    use crate::settings::Wanted;

    [
        ("pods", settings.sync_pods, Box::new(pod::Pods)),
        ("services", settings.services, Box::new(service::Services)),
        ("configmaps", settings.config_maps != Wanted::Off, Box::new(configs::Configs::ConfigMaps)),
        ("secrets", settings.secrets != Wanted::Off, Box::new(configs::Configs::Secrets)),
        ("endpoints", settings.endpoints, Box::new(endpoints::EndpointKinds::Endpoints)),
        ("endpointslices", settings.endpoint_slices, Box::new(endpoints::EndpointKinds::EndpointSlices)),
        ("persistentvolumeclaims", settings.persistent_volume_claims, Box::new(volumes::Claims)),
        ("persistentvolumes", settings.persistent_volumes, Box::new(real_volumes::RealVolumes)),
        ("ingresses", settings.ingresses, Box::new(ingress::Ingresses)),
        ("networkpolicies", settings.network_policies, Box::new(network_policy::NetworkPolicies)),
        ("poddisruptionbudgets", settings.pod_disruption_budgets, Box::new(policies::DisruptionBudgets)),
        ("serviceaccounts", settings.service_accounts, Box::new(policies::ServiceAccounts)),
        ("priorityclasses", settings.priority_classes, Box::new(classes::OwnClasses::Priority)),
        ("storageclasses", settings.storage_classes, Box::new(classes::OwnClasses::Storage)),
        ("resourceclaims", settings.resource_claims, Box::new(custom::Custom(RESOURCE_CLAIM.clone()))),
        (
            "resourceclaimtemplates",
            settings.resource_claim_templates,
            Box::new(custom::Custom(RESOURCE_CLAIM_TEMPLATE.clone())),
        ),
    ]
}

/// The built-in types that the settings ask for.
pub fn built_in(settings: &Settings) -> Vec<Named> {
    table(settings).into_iter().filter(|(_, on, _)| *on).map(|(name, _, ty)| (name, ty)).collect()
}

/// Every type that can go to the host: the built-in ones, those of the Gateway API, and a custom resource as the engine makes
/// one of a definition.
pub fn all() -> Vec<Named> {
    let mut out: Vec<Named> = table(&Settings::default()).into_iter().map(|(name, _, ty)| (name, ty)).collect();
    for what in gateway::GatewayType::ALL {
        out.push((what.plural(), Box::new(gateway::GatewayKind { what, kind: what.kind() })));
    }
    let custom = Kind {
        group: "certs.example.com".into(),
        version: "v1".into(),
        kind: "Certificate".into(),
        plural: "certificates".into(),
        namespaced: true,
        naming: crate::kind::Naming::Namespaced,
    };
    out.push(("custom resources", Box::new(custom::Custom(custom))));
    out
}

/// A Kubernetes object with these parts.
pub fn object(kind: &Kind, metadata: Value) -> Value {
    let mut out = Map::new();
    out.insert("apiVersion", kind.api_version().into());
    out.insert("kind", kind.kind.to_string().into());
    out.insert("metadata", metadata);
    out.into()
}

/// Copies members of an object, those that are there.
pub fn copy_members(from: &Value, to: &mut Value, members: &[&str]) {
    for member in members {
        if let Some(value) = from.get(member).filter(|v| !v.is_null()) {
            to[*member] = value.clone();
        }
    }
}

/// Puts the tenant's names into every `message` of a status.
pub fn show_messages(value: &mut Value, to_virtual: &dyn Fn(&str) -> String) {
    match value {
        Value::Object(map) => {
            for (key, member) in map.iter_mut() {
                match member {
                    Value::String(text) if key.as_str() == "message" => {
                        let shown = to_virtual(text);
                        if shown != text.as_str() {
                            *member = shown.into();
                        }
                    }
                    other => show_messages(other, to_virtual),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| show_messages(v, to_virtual)),
        _ => {}
    }
}

/// Generations in a status count changes of the host object: the current one is the virtual object's current one, and an
/// older one says nothing.
pub fn own_generations(value: &mut Value, host: &Value, virtual_: &Value) {
    const OBSERVED: &str = "observedGeneration";
    match value {
        Value::Object(map) => {
            if let Some(observed) = map.get(OBSERVED) {
                let generation = |o: &Value| o.at(&["metadata", "generation"]).cloned();
                match generation(virtual_).filter(|_| Some(observed) == generation(host).as_ref()) {
                    Some(own) => map.insert(OBSERVED, own),
                    None => map.remove(OBSERVED),
                };
            }
            map.iter_mut().for_each(|(_, v)| own_generations(v, host, virtual_));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| own_generations(v, host, virtual_)),
        _ => {}
    }
}

/// Written by Rancher on whatever cluster it manages: copying it would go round in circles, and tell of host names.
pub const RANCHER_ENDPOINTS: &str = "field.cattle.io/publicEndpoints";

/// `IngressClass` as "ingress class".
fn in_words(class_kind: &str) -> String {
    match class_kind.strip_suffix("Class") {
        Some(of) => format!("{} class", of.to_lowercase()),
        None => class_kind.to_lowercase(),
    }
}

/// True when a class object of the host may be used: selectors limit which.
pub fn check_class(
    ctx: &Context<'_>,
    what: &str,
    class_kind: &'static str,
    class: &str,
    import: &crate::settings::Import,
    key: &str,
) -> Result<(), Refusal> {
    let Some(selector) = import.selector() else { return Ok(()) };
    if class.is_empty() {
        return Ok(());
    }
    let found = ctx.facts.classes.iter().find(|(kind, _)| *kind == class_kind).and_then(|(_, object)| object.as_ref());
    let class_kind = in_words(class_kind);
    match found {
        None => Err(Refusal::warning(format!(
            "did not sync {what} to host because the {class_kind} \"{class}\" couldn't be reached in the host"
        ))),
        Some(object) if !crate::selectors::matches(selector, object.at(&["metadata", "labels"])) => {
            Err(Refusal::warning(format!(
                "did not sync {what} to host because the {class_kind} \"{class}\" in the host does not match the \
                 selector under '{key}'"
            )))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_in_words() {
        for (kind, words) in [
            ("IngressClass", "ingress class"),
            ("StorageClass", "storage class"),
            ("PriorityClass", "priority class"),
            ("RuntimeClass", "runtime class"),
        ] {
            assert_eq!(in_words(kind), words);
        }
    }
}
