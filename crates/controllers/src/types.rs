//! Slim views of the kinds that several controllers read: the fields they need, nothing else.
//!
//! All controllers of a process share one cache per resource, so each resource has one type here. Parts that are only
//! copied (pod templates) stay the bytes that were received.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::json::Str;
use informer::{ObjectMeta, OwnerReference, StrMap, null_default};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::selector::LabelSelector;

/// A part of an object that is copied and never read.
pub type Raw = Box<RawValue>;

/// Parses a kept part; an absent one is `null`.
pub fn raw_value(raw: &Option<Raw>) -> Value {
    raw.as_ref().and_then(|r| serde_json::from_str(r.get()).ok()).unwrap_or_default()
}

macro_rules! cached {
    ($($kind:ident),*) => { $(
        impl informer::Cached for $kind {
            fn metadata(&self) -> &informer::ObjectMeta {
                &self.metadata
            }
        }
    )* };
}
pub(crate) use cached;

fn seconds<S: Serializer>(time: &Option<Timestamp>, s: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => s.serialize_str(&informer::clock::format_seconds(*time)),
        None => s.serialize_none(),
    }
}

/// A condition of any kind; `last_update_time` and `last_probe_time` only where a kind has them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: Str,
    pub status: Str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub last_update_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub last_probe_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub last_transition_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub reason: Str,
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub message: Str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    pub fn new(kind: &str, status: bool, reason: &str, message: impl Into<Str>, now: Timestamp) -> Self {
        Condition {
            kind: kind.into(),
            status: if status { "True" } else { "False" }.into(),
            last_transition_time: Some(now),
            reason: reason.into(),
            message: message.into(),
            ..Condition::default()
        }
    }

    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

pub fn find_condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

pub fn condition_is_true(conditions: &[Condition], kind: &str) -> bool {
    find_condition(conditions, kind).is_some_and(Condition::is_true)
}

/// Puts a condition in its place; the time of its last change stays when its status does.
pub fn put_condition(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|c| c.kind == condition.kind) {
        Some(known) => {
            if known.status == condition.status {
                condition.last_transition_time = known.last_transition_time;
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

/// Conditions of a kind that wants a member of them also when it is empty.
pub fn conditions_value(conditions: &[Condition], required: &str) -> Value {
    let mut value = to_value(conditions);
    for condition in value.as_array_mut().into_iter().flatten() {
        if condition.get(required).is_none() {
            condition[required] = "".into();
        }
    }
    value
}

/// Any serializable part as a tree.
pub fn to_value<T: Serialize + ?Sized>(part: &T) -> Value {
    Value::from_serialize(part).unwrap_or_default()
}

/// `5` or `"25%"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    Int(i64),
    Text(Str),
}

impl IntOrString {
    /// The number, a percentage being of `total`. `None` for text that is no percentage.
    pub fn scaled(&self, total: i64, round_up: bool) -> Option<i64> {
        match self {
            IntOrString::Int(i) => Some(*i),
            IntOrString::Text(text) => {
                let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
                let product = percent.checked_mul(total)?;
                Some(if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) })
            }
        }
    }
}

/// A quantity as it was written; parsed where it is added up.
pub type ResourceList = StrMap;

// ------------------------------------------------------------------------------------------------------------- pods

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: Str,
    pub hostname: Str,
    pub subdomain: Str,
    pub restart_policy: Str,
    pub priority_class_name: Str,
    pub host_network: bool,
    pub active_deadline_seconds: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub containers: Box<[Container]>,
    #[serde(deserialize_with = "null_default")]
    pub init_containers: Box<[Container]>,
    #[serde(deserialize_with = "null_default")]
    pub volumes: Box<[Volume]>,
    #[serde(deserialize_with = "null_default")]
    pub tolerations: Box<[Toleration]>,
    #[serde(deserialize_with = "null_default")]
    pub scheduling_gates: Box<[Named]>,
    #[serde(deserialize_with = "null_default")]
    pub resource_claims: Box<[PodResourceClaim]>,
    pub overhead: StrMap,
    pub resources: Option<Box<Resources>>,
    /// Only whether it is there, for quota scopes.
    pub affinity: Option<Box<PodAffinityPresence>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodAffinityPresence {
    pub pod_affinity: Option<AffinityTerms>,
    pub pod_anti_affinity: Option<AffinityTerms>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AffinityTerms {
    pub required_during_scheduling_ignored_during_execution: Vec<AffinityTerm>,
    pub preferred_during_scheduling_ignored_during_execution: Vec<WeightedAffinityTerm>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WeightedAffinityTerm {
    pub pod_affinity_term: AffinityTerm,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AffinityTerm {
    pub namespaces: Vec<Str>,
    pub namespace_selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Named {
    pub name: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: Str,
    pub restart_policy: Str,
    #[serde(deserialize_with = "null_default")]
    pub ports: Box<[ContainerPort]>,
    pub resources: Resources,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: Str,
    pub container_port: i64,
    pub protocol: Str,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(deserialize_with = "null_default")]
    pub requests: ResourceList,
    #[serde(deserialize_with = "null_default")]
    pub limits: ResourceList,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    pub name: Str,
    pub persistent_volume_claim: Option<ClaimSource>,
    pub ephemeral: Option<EphemeralSource>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    pub claim_name: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EphemeralSource {
    pub volume_claim_template: Option<Raw>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Toleration {
    pub key: Str,
    pub operator: Str,
    pub value: Str,
    pub effect: Str,
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match self.operator.as_str() {
                "" | "Equal" => self.value == taint.value,
                "Exists" => true,
                "Lt" | "Gt" => match (taint.value.parse::<i64>(), self.value.parse::<i64>()) {
                    (Ok(taint), Ok(own)) => {
                        if self.operator == "Lt" {
                            taint < own
                        } else {
                            taint > own
                        }
                    }
                    _ => false,
                },
                _ => false,
            }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodResourceClaim {
    pub name: Str,
    pub resource_claim_name: Str,
    pub resource_claim_template_name: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: Str,
    pub reason: Str,
    #[serde(rename = "podIP")]
    pub pod_ip: Str,
    #[serde(rename = "podIPs", deserialize_with = "null_default")]
    pub pod_ips: Box<[PodIp]>,
    pub start_time: Option<Timestamp>,
    pub qos_class: Str,
    pub nominated_node_name: Str,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_default")]
    pub container_statuses: Box<[ContainerStatus]>,
    #[serde(deserialize_with = "null_default")]
    pub init_container_statuses: Box<[ContainerStatus]>,
    #[serde(deserialize_with = "null_default")]
    pub resource_claim_statuses: Box<[PodResourceClaim]>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    pub name: Str,
    pub restart_count: i64,
    pub state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    pub exit_code: i64,
    pub finished_at: Option<Timestamp>,
}

// -------------------------------------------------------------------------------------------------------- workloads

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub metadata: ObjectMeta,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaSetSpec {
    pub replicas: Option<i64>,
    pub min_ready_seconds: i64,
    pub selector: LabelSelector,
    pub template: Option<Raw>,
}

/// Also the status of a ReplicationController, which has no `terminating_replicas`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplicaSetStatus {
    pub replicas: i64,
    pub fully_labeled_replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub terminating_replicas: Option<i64>,
    pub observed_generation: i64,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: ObjectMeta,
    pub spec: DeploymentSpec,
    pub status: DeploymentStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentSpec {
    pub replicas: Option<i64>,
    pub selector: LabelSelector,
    pub template: Option<Raw>,
    pub strategy: Strategy,
    pub min_ready_seconds: i64,
    pub revision_history_limit: Option<i64>,
    pub paused: bool,
    pub progress_deadline_seconds: Option<i64>,
}

/// `strategy` of a Deployment, `updateStrategy` of a StatefulSet or DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Strategy {
    #[serde(rename = "type")]
    pub kind: Str,
    pub rolling_update: Option<RollingUpdate>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RollingUpdate {
    pub max_surge: Option<IntOrString>,
    pub max_unavailable: Option<IntOrString>,
    pub partition: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeploymentStatus {
    pub observed_generation: i64,
    pub replicas: i64,
    pub updated_replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub unavailable_replicas: i64,
    pub terminating_replicas: Option<i64>,
    pub collision_count: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

/// A stored revision of a StatefulSet's or DaemonSet's template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControllerRevision {
    pub metadata: ObjectMeta,
    pub data: Option<Raw>,
    pub revision: i64,
}

// --------------------------------------------------------------------------------------------------------- services

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Str,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Str,
    pub selector: StrMap,
    #[serde(deserialize_with = "null_default")]
    pub ports: Vec<ServicePort>,
    pub publish_not_ready_addresses: bool,
    #[serde(deserialize_with = "null_default")]
    pub ip_families: Vec<Str>,
    pub traffic_distribution: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    pub name: Str,
    pub protocol: Str,
    pub port: i64,
    pub target_port: Option<IntOrString>,
    pub app_protocol: Option<Str>,
}

// ------------------------------------------------------------------------------------------------------------ nodes

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: ObjectMeta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    pub unschedulable: bool,
    #[serde(deserialize_with = "null_default")]
    pub taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    pub key: Str,
    #[serde(skip_serializing_if = "Str::is_empty")]
    pub value: Str,
    pub effect: Str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub time_added: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<NodeCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeCondition {
    #[serde(rename = "type")]
    pub kind: Str,
    pub status: Str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub last_heartbeat_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub last_transition_time: Option<Timestamp>,
    pub reason: Str,
    pub message: Str,
}

// ------------------------------------------------------------------------------------------------------- namespaces

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: ObjectMeta,
    pub spec: NamespaceSpec,
    pub status: NamespaceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    #[serde(deserialize_with = "null_default")]
    pub finalizers: Vec<Str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    pub phase: Str,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

// ---------------------------------------------------------------------------------------------------------- storage

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PersistentVolumeClaim {
    pub metadata: ObjectMeta,
    pub spec: ClaimSpec,
    pub status: ClaimStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSpec {
    #[serde(deserialize_with = "null_default")]
    pub access_modes: Vec<Str>,
    pub resources: Resources,
    pub selector: Option<LabelSelector>,
    pub storage_class_name: Option<Str>,
    pub volume_mode: Str,
    pub volume_name: Str,
    pub volume_attributes_class_name: Option<Str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClaimStatus {
    pub phase: Str,
    pub capacity: ResourceList,
}

cached!(Pod, ReplicaSet, Deployment, ControllerRevision, Service, Node, Namespace, PersistentVolumeClaim);

/// A controlling owner reference to an object.
pub fn controller_reference(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Pods as they come from a cache.
pub type Pods = Vec<Arc<Pod>>;
