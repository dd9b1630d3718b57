//! A long run of random changes to workloads, with controllers that are replaced in the middle of their work, and an end
//! whose every pod is known.
//!
//! The same seed makes the same changes in the same order; how far the controllers are when the next one comes is left to
//! chance. Afterwards every workload is written once more, and the run fails unless exactly its pods exist.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use informer::{ApiError, DeleteOptions, PatchType, Resource, Rest};

use crate::{DevHost, DevHostConfig, StartError};

const PODS: Resource = Resource::new("", "v1", "pods");
const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments");
const REPLICA_SETS: Resource = Resource::new("apps", "v1", "replicasets");
const STATEFUL_SETS: Resource = Resource::new("apps", "v1", "statefulsets");
const JOBS: Resource = Resource::new("batch", "v1", "jobs");
const NAMESPACE: &str = "soak";
/// Shorter than the hour of a real cluster, so that a run shows what is kept for longer than it should be.
const EVENT_TTL: Duration = Duration::from_secs(60);
/// Images that a change chooses from; the last one is that of the end.
const IMAGES: [&str; 4] = ["one", "two", "three", "last"];
/// Pods that a node has room for, less than its limit.
const PODS_PER_NODE: usize = 200;

/// How long and how hard.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Workloads: Deployments, StatefulSets and Jobs in turn.
    pub workloads: usize,
    /// Pods at the end, in equal parts. While it runs there are up to twice as many.
    pub pods: usize,
    /// How long changes are made.
    pub duration: Duration,
    /// Time between two changes.
    pub pause: Duration,
    /// Changes between two restarts of the controllers, on average.
    pub changes_per_restart: u64,
    /// How long the end may take.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 1,
            workloads: 50,
            pods: 2000,
            duration: Duration::from_secs(600),
            pause: Duration::from_millis(100),
            changes_per_restart: 200,
            patience: Duration::from_secs(600),
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub changes: u64,
    pub restarts: u64,
    pub pods: usize,
    /// From the last change to the exact end.
    pub settled_in: Duration,
    /// Resident memory of this process in KiB: when the first third of the changes was made, when the last one was, and
    /// at the end.
    pub memory_kib: [u64; 3],
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    #[error("the host did not start")]
    Start(#[from] StartError),
    #[error("a request failed")]
    Request(#[from] ApiError),
    #[error("the end is not exact: {0}")]
    NotExact(String),
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// What one workload should be.
#[derive(Clone, Debug, PartialEq)]
struct Workload {
    name: String,
    resource: Resource,
    replicas: usize,
    image: &'static str,
}

impl Workload {
    fn new(index: usize) -> Workload {
        let (resource, kind) = match index % 3 {
            0 => (DEPLOYMENTS, "deployment"),
            1 => (STATEFUL_SETS, "set"),
            _ => (JOBS, "job"),
        };
        Workload { name: format!("{kind}-{index}"), resource, replicas: 0, image: IMAGES[0] }
    }

    fn is_job(&self) -> bool {
        self.resource == JOBS
    }

    fn object(&self) -> Value {
        let name = self.name.as_str();
        let labels = json!({"app": name});
        let mut template = json!({"metadata": {"labels": labels.clone()}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": self.image}]}});
        if self.is_job() {
            template.set_at(&["spec", "restartPolicy"], "Never".into());
            template.set_at(&["spec", "containers"], json!([{"name": "c", "image": self.image, "command": ["true"]}]));
            return json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
                "spec": {"parallelism": self.replicas, "completions": self.replicas, "template": template}});
        }
        let mut object = json!({"apiVersion": "apps/v1", "metadata": {"name": name}, "spec": {"replicas": self.replicas,
            "selector": {"matchLabels": labels}, "template": template}});
        if self.resource == DEPLOYMENTS {
            object["kind"] = "Deployment".into();
        } else {
            object["kind"] = "StatefulSet".into();
            object.set_at(&["spec", "serviceName"], "none".into());
            object.set_at(&["spec", "podManagementPolicy"], "Parallel".into());
        }
        object
    }
}

struct Soak {
    host: DevHost,
    rest: Rest,
    options: Options,
    random: Random,
    /// What exists.
    present: Vec<Option<Workload>>,
    outcome: Outcome,
}

/// Runs a host of its own through the changes and checks the end.
pub async fn run(options: Options) -> Result<Outcome, SoakError> {
    let nodes = (2 * options.pods).div_ceil(PODS_PER_NODE).max(2);
    let host = DevHost::start(DevHostConfig { nodes, event_ttl: EVENT_TTL, ..DevHostConfig::default() }).await?;
    let rest = Rest::new(host.client(), "soak");
    rest.create(&NAMESPACES, "", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
        .await?;
    let present = vec![None; options.workloads];
    let random = Random(options.seed);
    let mut soak = Soak { host, rest, options, random, present, outcome: Outcome::default() };
    let result = soak.run().await;
    soak.host.stop().await;
    result.map(|()| soak.outcome)
}

impl Soak {
    async fn run(&mut self) -> Result<(), SoakError> {
        let begin = Instant::now();
        while begin.elapsed() < self.options.duration {
            if self.outcome.memory_kib[0] == 0 && begin.elapsed() * 3 > self.options.duration {
                self.outcome.memory_kib[0] = resident_kib();
            }
            self.change().await?;
            self.outcome.changes += 1;
            if self.random.below(self.options.changes_per_restart) == 0 {
                self.host.restart_controllers().await?;
                self.outcome.restarts += 1;
            }
            tokio::time::sleep(self.options.pause).await;
        }
        // One more in any case, while there is work to do.
        self.host.restart_controllers().await?;
        self.outcome.restarts += 1;
        self.outcome.memory_kib[1] = resident_kib();
        let settling = Instant::now();
        self.write_the_end().await?;
        loop {
            match self.inexact().await? {
                None => break,
                Some(what) if settling.elapsed() > self.options.patience => return Err(SoakError::NotExact(what)),
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        self.outcome.settled_in = settling.elapsed();
        self.outcome.memory_kib[2] = resident_kib();
        Ok(())
    }

    /// Creates, scales, rolls or deletes one workload.
    async fn change(&mut self) -> Result<(), SoakError> {
        let index = self.random.below(self.options.workloads as u64) as usize;
        let most = (2 * self.options.pods / self.options.workloads.max(1)).max(1) as u64;
        let replicas = self.random.below(most + 1) as usize;
        let image = IMAGES[self.random.below(IMAGES.len() as u64) as usize];
        let action = self.random.below(10);
        let Some(mut workload) = self.present[index].clone() else {
            let workload = Workload { replicas, image, ..Workload::new(index) };
            return self.create(index, workload).await;
        };
        match action {
            0 => self.delete(index, "Foreground").await,
            1 | 2 => self.delete(index, "Background").await,
            // Of a Job that runs only the parallelism can change.
            _ if workload.is_job() => {
                let patch = json!({"spec": {"parallelism": replicas}});
                self.patch(&workload, patch).await
            }
            3..=6 => {
                workload.replicas = replicas;
                self.patch(&workload, json!({"spec": {"replicas": replicas}})).await?;
                self.present[index] = Some(workload);
                Ok(())
            }
            _ => {
                workload.image = image;
                let containers = json!([{"name": "c", "image": image}]);
                self.patch(&workload, json!({"spec": {"template": {"spec": {"containers": containers}}}})).await?;
                self.present[index] = Some(workload);
                Ok(())
            }
        }
    }

    async fn create(&mut self, index: usize, workload: Workload) -> Result<(), SoakError> {
        match self.rest.create(&workload.resource, NAMESPACE, &workload.object()).await {
            Ok(_) => self.present[index] = Some(workload),
            // The old one waits for its pods still: another change will find it gone.
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn delete(&mut self, index: usize, propagation_policy: &'static str) -> Result<(), SoakError> {
        let Some(workload) = self.present[index].take() else { return Ok(()) };
        let options = DeleteOptions { propagation_policy, ..DeleteOptions::default() };
        match self.rest.delete(&workload.resource, NAMESPACE, &workload.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn patch(&self, workload: &Workload, patch: Value) -> Result<(), SoakError> {
        let (resource, name) = (&workload.resource, workload.name.as_str());
        self.rest.patch(resource, "", NAMESPACE, name, PatchType::Merge, &patch).await?;
        Ok(())
    }

    /// Every workload with its share of the pods and the last image; Jobs are made anew.
    async fn write_the_end(&mut self) -> Result<(), SoakError> {
        let share = self.options.pods / self.options.workloads.max(1);
        for index in 0..self.options.workloads {
            let last = IMAGES[IMAGES.len() - 1];
            let wanted = Workload { replicas: share, image: last, ..Workload::new(index) };
            if wanted.is_job() {
                self.delete(index, "Background").await?;
            } else if self.present[index].is_some() {
                let mut patch = wanted.object();
                patch.remove_at(&["spec", "selector"]);
                self.patch(&wanted, patch).await?;
                self.present[index] = Some(wanted);
                continue;
            }
            let begin = Instant::now();
            loop {
                self.create(index, wanted.clone()).await?;
                if self.present[index].is_some() {
                    break;
                }
                if begin.elapsed() > self.options.patience {
                    return Err(SoakError::NotExact(format!("{} does not go", wanted.name)));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// What is not as it should be, if anything.
    async fn inexact(&mut self) -> Result<Option<String>, SoakError> {
        let pods: Vec<Value> = self.rest.list_as(&PODS, NAMESPACE, "", "").await?;
        let mut expected = 0;
        for workload in self.present.iter().flatten() {
            expected += workload.replicas;
            let object = self.rest.get(&workload.resource, NAMESPACE, &workload.name).await?;
            let ours = pods.iter().filter(|p| p.str_at(&["metadata", "labels", "app"]) == workload.name);
            if let Some(what) = inexact_workload(workload, &object, &ours.collect::<Vec<_>>()) {
                return Ok(Some(format!("{}: {what}", workload.name)));
            }
        }
        if pods.len() != expected {
            return Ok(Some(format!("{} pods, {expected} expected", pods.len())));
        }
        let sets: Vec<Value> = self.rest.list_as(&REPLICA_SETS, NAMESPACE, "", "").await?;
        let busy = sets.iter().filter(|s| s.at(&["spec", "replicas"]).and_then(Value::as_i64) != Some(0)).count();
        let deployments = self.present.iter().flatten().filter(|w| w.resource == DEPLOYMENTS && w.replicas > 0).count();
        if busy != deployments {
            return Ok(Some(format!("{busy} ReplicaSets with replicas, {deployments} Deployments")));
        }
        self.outcome.pods = pods.len();
        Ok(None)
    }
}

fn inexact_workload(workload: &Workload, object: &Value, pods: &[&Value]) -> Option<String> {
    let count = |field: &str| object.at(&["status", field]).and_then(Value::as_i64).unwrap_or(0) as usize;
    let wanted = workload.replicas;
    if pods.len() != wanted {
        return Some(format!("{} pods, {wanted} wanted", pods.len()));
    }
    if workload.is_job() {
        let done = pods.iter().all(|p| p.str_at(&["status", "phase"]) == "Succeeded");
        let complete = object.array_at(&["status", "conditions"]).iter().any(|c| c.str_at(&["type"]) == "Complete");
        if !done || !complete || count("succeeded") != wanted {
            return Some(format!("{} of {wanted} succeeded, complete: {complete}", count("succeeded")));
        }
        return None;
    }
    if object.at(&["status", "observedGeneration"]) != object.at(&["metadata", "generation"]) {
        return Some("its last change is not observed".to_owned());
    }
    for field in ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"] {
        if count(field) != wanted {
            return Some(format!("{field} is {}, {wanted} wanted", count(field)));
        }
    }
    let stray = pods.iter().find(|p| {
        p.array_at(&["spec", "containers"]).first().is_none_or(|c| c.str_at(&["image"]) != workload.image)
            || !p.str_at(&["metadata", "deletionTimestamp"]).is_empty()
            || p.str_at(&["status", "phase"]) != "Running"
    });
    if let Some(stray) = stray {
        return Some(format!("pod {} is not as it should be", stray.str_at(&["metadata", "name"])));
    }
    if workload.resource == STATEFUL_SETS {
        let names: BTreeSet<&str> = pods.iter().map(|p| p.str_at(&["metadata", "name"])).collect();
        let missing = (0..wanted).map(|i| format!("{}-{i}", workload.name)).find(|n| !names.contains(n.as_str()));
        return missing.map(|name| format!("there is no pod {name}"));
    }
    None
}

/// Resident memory of this process, 0 where it is not known.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
