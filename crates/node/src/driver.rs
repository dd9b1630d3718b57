//! Registers simulated nodes, keeps them alive and leads their pods through life.
//!
//! Follows: kubelet's registration, node leases (KEP-589) and status updates.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Value, json};
use informer::events::{ObjectReference, Recorder};
use informer::{
    ApiError, Cached, Change, Clock, DeleteOptions, Factory, Header, Informer, ObjectKey, ObjectMeta, Outcome,
    PatchType, Queue, QueueConfig, Resource, Rest, WorkerStats, clock, run_workers,
};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tracing::{info, warn};

use crate::address::Addresses;
use crate::lifecycle::{Context, advance};

const PODS: Resource = Resource::new("", "v1", "pods");
const NODES: Resource = Resource::new("", "v1", "nodes");
const LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases");
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Kubelet's defaults: leases last 40 s and are renewed every 10 s, the status is written every 5 minutes.
const LEASE_SECONDS: i64 = 40;
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
const STATUS_EVERY_RENEWALS: u64 = 30;
const WORKERS: usize = 8;

/// How many nodes there are and what each of them offers.
#[derive(Clone, Debug)]
pub struct Config {
    pub count: usize,
    /// Nodes are called `PREFIX-0`, `PREFIX-1` and so on.
    pub name_prefix: String,
    /// Quantities: `cpu`, `memory`, `pods`, `ephemeral-storage`.
    pub capacity: BTreeMap<String, String>,
    /// The first address of the pods' range; each node takes 256.
    pub pod_network: Ipv4Addr,
    /// The first address of the nodes themselves.
    pub host_network: Ipv4Addr,
    /// As kubelets report it, such as `v1.36.2`.
    pub kubelet_version: String,
}

impl Default for Config {
    fn default() -> Self {
        let capacity = [("cpu", "16"), ("memory", "64Gi"), ("pods", "250"), ("ephemeral-storage", "100Gi")];
        Config {
            count: 3,
            name_prefix: "node".into(),
            capacity: capacity.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            pod_network: Ipv4Addr::new(10, 244, 0, 0),
            host_network: Ipv4Addr::new(192, 168, 127, 10),
            kubelet_version: "v1.36.2".into(),
        }
    }
}

/// A pod as bytes, with the name of its node.
struct NodePod {
    metadata: ObjectMeta,
    node_name: String,
    json: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Assignment {
    spec: AssignmentSpec,
    status: AssignmentStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AssignmentSpec {
    node_name: String,
    host_network: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AssignmentStatus {
    #[serde(rename = "podIP")]
    pod_ip: String,
}

impl<'de> Deserialize<'de> for NodePod {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(d)?;
        let header: Header = serde_json::from_str(json.get()).map_err(serde::de::Error::custom)?;
        let assignment: Assignment = serde_json::from_str(json.get()).map_err(serde::de::Error::custom)?;
        Ok(NodePod { metadata: header.metadata, node_name: assignment.spec.node_name, json })
    }
}

impl Cached for NodePod {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The running nodes.
pub struct Nodes {
    factory: Factory,
}

struct Shared {
    config: Config,
    rest: Rest,
    clock: Clock,
    recorder: Recorder,
    pods: Informer<NodePod>,
    queue: Queue<ObjectKey>,
    addresses: Mutex<Addresses>,
}

impl Nodes {
    /// Registers the nodes and starts them.
    ///
    /// Errors: the first registration that fails.
    pub async fn start(client: kube::Client, config: Config, clock: Clock) -> Result<Nodes, ApiError> {
        let rest = Rest::new(client, "kubelet");
        let factory = Factory::new(rest.clone());
        let shared = Arc::new(Shared {
            recorder: Recorder::start(&factory, clock.clone(), "kubelet"),
            rest,
            clock,
            pods: factory.informer(PODS),
            queue: Queue::new(QueueConfig {
                base_delay: Duration::from_millis(20),
                max_delay: Duration::from_secs(10),
            }),
            addresses: Mutex::new(Addresses::new(config.pod_network)),
            config,
        });
        for index in 0..shared.config.count {
            shared.register(index).await?;
        }
        info!(nodes = shared.config.count, "simulated nodes registered");
        let listener = shared.clone();
        shared.pods.on_change(move |change| listener.pod_changed(&change));
        let (worker, starter, cancel) = (shared.clone(), factory.clone(), factory.cancellation().clone());
        let ended = cancel.clone();
        factory.spawn(async move {
            starter.wait_synced().await;
            let queue = worker.queue.clone();
            run_workers("node", WORKERS, queue, ended, Arc::<WorkerStats>::default(), move |key| {
                let shared = worker.clone();
                async move { shared.step(&key).await }
            })
            .await;
        });
        factory.spawn(async move { shared.keep_alive(&cancel).await });
        Ok(Nodes { factory })
    }

    /// Stops the nodes without deregistering them, as a powered-off machine would.
    pub async fn shutdown(&self) {
        self.factory.shutdown().await;
    }
}

impl Shared {
    fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.config.name_prefix)
    }

    /// The index of one of our nodes.
    fn index(&self, name: &str) -> Option<usize> {
        let index = name.strip_prefix(&self.config.name_prefix)?.strip_prefix('-')?.parse().ok()?;
        (index < self.config.count && self.name(index) == name).then_some(index)
    }

    fn host_ip(&self, index: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.config.host_network) + u32::try_from(index).unwrap_or(0))
    }

    async fn register(&self, index: usize) -> Result<(), ApiError> {
        let name = self.name(index);
        let range = self.addresses.lock().range(index);
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name,
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                    "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64"},
                "annotations": {"sim.alcove.dev/simulated": "true"}},
            "spec": {"podCIDR": range, "podCIDRs": [range]}});
        match self.rest.create(&NODES, "", &node).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
        self.write_status(index).await?;
        self.renew_lease(index).await
    }

    async fn write_status(&self, index: usize) -> Result<(), ApiError> {
        let now = self.clock.now_rfc3339();
        let name = self.name(index);
        let current = self.rest.get(&NODES, "", &name).await?;
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            let old = current.array_at(&["status", "conditions"]).iter().find(|c| c["type"] == kind);
            let since = old.filter(|c| c["status"] == status).map(|c| c.str_at(&["lastTransitionTime"]));
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now, "lastTransitionTime": since.unwrap_or(&now)})
        };
        let conditions = vec![
            condition(
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ];
        // Extended resources that others have put on the node stay.
        let resources = |key: &str| {
            let mut map = current.at(&["status", key]).cloned().unwrap_or_else(Value::object);
            for (name, amount) in &self.config.capacity {
                map.set_at(&[name], amount.as_str().into());
            }
            map
        };
        let version = &self.config.kubelet_version;
        let mut patch = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": self.host_ip(index).to_string()}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"machineID": name, "systemUUID": name, "bootID": name, "kernelVersion": "simulated",
                "osImage": "simulated", "containerRuntimeVersion": "simulated://1.0", "kubeletVersion": version,
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"}}});
        patch.set_at(&["status", "conditions"], conditions.into());
        patch.set_at(&["status", "capacity"], resources("capacity"));
        patch.set_at(&["status", "allocatable"], resources("allocatable"));
        self.rest.patch(&NODES, "status", "", &name, PatchType::Merge, &patch).await.map(drop)
    }

    async fn renew_lease(&self, index: usize) -> Result<(), ApiError> {
        let name = self.name(index);
        let now = clock::format_micros(self.clock.now());
        let patch = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}});
        match self.rest.patch(&LEASES, "", LEASE_NAMESPACE, &name, PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => {
                let mut lease = patch;
                lease["apiVersion"] = "coordination.k8s.io/v1".into();
                lease["kind"] = "Lease".into();
                lease["metadata"] = json!({"name": name, "namespace": LEASE_NAMESPACE});
                match self.rest.create(&LEASES, LEASE_NAMESPACE, &lease).await {
                    Err(error) if !error.is_already_exists() => Err(error),
                    _ => Ok(()),
                }
            }
            result => result.map(drop),
        }
    }

    async fn keep_alive(&self, cancel: &tokio_util::sync::CancellationToken) {
        let mut renewals = 0_u64;
        loop {
            tokio::select! {
                // Cancel-safe: both only wait.
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LEASE_RENEWAL) => {}
            }
            renewals += 1;
            for index in 0..self.config.count {
                let mut result = self.renew_lease(index).await;
                if renewals.is_multiple_of(STATUS_EVERY_RENEWALS) {
                    result = result.and(self.write_status(index).await);
                }
                if let Err(error) = result {
                    let error: &dyn std::error::Error = &error;
                    warn!(node = self.name(index), error, "could not renew a simulated node, will try again");
                }
            }
        }
    }

    fn pod_changed(&self, change: &Change<'_, NodePod>) {
        let pod = change.object();
        if self.index(&pod.node_name).is_none() {
            return;
        }
        if change.is_deleted() {
            self.addresses.lock().free(&pod.metadata.uid);
            return;
        }
        if let Ok(assignment) = serde_json::from_str::<Assignment>(pod.json.get())
            && !assignment.spec.host_network
            && let Ok(address) = assignment.status.pod_ip.parse()
        {
            self.addresses.lock().adopt(&pod.metadata.uid, address);
        }
        self.queue.add(pod.metadata.key());
    }

    async fn step(&self, key: &ObjectKey) -> Result<Outcome, ApiError> {
        let Some(cached) = self.pods.get(key) else { return Ok(Outcome::Done) };
        let Some(index) = self.index(&cached.node_name) else { return Ok(Outcome::Done) };
        let pod: Value = serde_json::from_str(cached.json.get())?;
        let host_ip = self.host_ip(index);
        let pod_ip = if pod.at(&["spec", "hostNetwork"]).is_some_and(|v| *v == true) {
            host_ip
        } else {
            match self.addresses.lock().of(&cached.metadata.uid, index) {
                Some(address) => address,
                // A pod that ends frees its address; look again then.
                None => return Ok(Outcome::After(Duration::from_secs(1))),
            }
        };
        let (host_ip, pod_ip) = (host_ip.to_string(), pod_ip.to_string());
        let step = advance(&pod, &Context { now: self.clock.now(), host_ip: &host_ip, pod_ip: &pod_ip });
        let (namespace, name) = (cached.metadata.namespace.as_str(), cached.metadata.name.as_str());
        if let Some(status) = step.status {
            self.tell(&cached, &pod["status"], &status);
            let mut patch = json!({"metadata": {"uid": cached.metadata.uid.as_str(),
                "resourceVersion": cached.metadata.resource_version.as_str()}});
            patch["status"] = status;
            match self.rest.patch(&PODS, "status", namespace, name, PatchType::Merge, &patch).await {
                Ok(_) => {}
                // Someone else changed the pod; its event brings the new state.
                Err(error) if error.is_not_found() => return Ok(Outcome::Done),
                Err(error) if error.is_conflict() => return Ok(Outcome::Retry),
                Err(error) => return Err(error),
            }
        } else if step.delete {
            let options =
                DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(cached.metadata.uid.clone()) };
            match self.rest.delete(&PODS, namespace, name, &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => self.addresses.lock().free(&cached.metadata.uid),
            }
        }
        Ok(step.wake.map_or(Outcome::Done, Outcome::After))
    }

    /// The events a kubelet records about what has just happened.
    fn tell(&self, pod: &NodePod, old: &Value, new: &Value) {
        let host = self.recorder.with_host(&pod.node_name);
        let kinds = [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")];
        for (key, field) in kinds {
            for status in new.array_at(&[key]) {
                let name = status.str_at(&["name"]);
                let before = old.array_at(&[key]).iter().find(|s| s.str_at(&["name"]) == name);
                let was = |state: &str| before.is_some_and(|s| s.at(&["state", state]).is_some());
                let image = status.str_at(&["image"]);
                let mut object = ObjectReference::new("v1", "Pod", &pod.metadata);
                object.field_path = format!("spec.{field}{{{name}}}").into();
                if status.at(&["state", "running"]).is_some() && !was("running") {
                    host.normal(&object, "Pulled", format!("Container image \"{image}\" already present on machine"));
                    host.normal(&object, "Created", format!("Container created: {name}"));
                    host.normal(&object, "Started", format!("Container started: {name}"));
                }
                if was("running") && status.at(&["state", "terminated"]).is_some() && pod.metadata.is_deleting() {
                    host.normal(&object, "Killing", format!("Stopping container {name}"));
                }
                match status.str_at(&["state", "waiting", "reason"]) {
                    "ErrImagePull" => {
                        host.warning(&object, "Failed", format!("Failed to pull image \"{image}\": not found"));
                    }
                    "ImagePullBackOff" => {
                        host.normal(&object, "BackOff", format!("Back-off pulling image \"{image}\""));
                    }
                    "CrashLoopBackOff" => {
                        host.warning(&object, "BackOff", format!("Back-off restarting failed container {name}"));
                    }
                    _ => {}
                }
            }
        }
    }
}
