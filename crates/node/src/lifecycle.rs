//! The life of a pod on a simulated node: from its spec and last status to its next status. Pure.
//!
//! Level-triggered: everything that matters is in the pod itself, so any step may be repeated, and a node that restarts goes
//! on where it was. Times have the resolution of `metav1.Time`, one second.
//!
//! Follows: kubelet's status manager (`pkg/kubelet/kubelet_pods.go`, `status/generate.go`).

use std::time::Duration;

use apimachinery::{Map, Value, json};
use jiff::Timestamp;

use crate::behaviour::{Behaviour, Wishes, of_container};

/// Restarts wait this long at first, twice as long each time, at most [`BACKOFF_MAX`]: shorter than a kubelet's ten seconds,
/// for tests wait for it.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What a step may know besides the pod.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    pub now: Timestamp,
    pub host_ip: &'a str,
    /// The address reserved for this pod; the host's own for pods on the host network.
    pub pod_ip: &'a str,
}

/// What is to be done about a pod now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The status to write, when it differs from the present one.
    pub status: Option<Value>,
    /// The pod has stopped and can be removed.
    pub delete: bool,
    /// When to look again without an event.
    pub wake: Option<Duration>,
}

/// Computes the next step of `pod`.
pub fn advance(pod: &Value, context: &Context<'_>) -> Step {
    let old = &pod["status"];
    let deleting = pod.at(&["metadata", "deletionTimestamp"]).is_some();
    if matches!(old.str_at(&["phase"]), "Succeeded" | "Failed") {
        return Step { delete: deleting, ..Step::default() };
    }
    let mut run =
        Run { pod, old, context, wishes: Wishes::of(pod), wake: None, scheduled: scheduled_at(pod, context.now) };
    if deleting && !run.anything_started() {
        return Step { delete: true, ..Step::default() };
    }
    let stopping = deleting || run.past_deadline();
    let (init, initialized) = run.init_containers(stopping);
    let containers = run.containers("containers", "containerStatuses", initialized, stopping);
    let ephemeral = run.containers("ephemeralContainers", "ephemeralContainerStatuses", initialized, stopping);
    let mut status = run.status(init, containers, ephemeral, initialized, stopping);
    if run.past_deadline() {
        status.set_at(&["phase"], "Failed".into());
        status.set_at(&["reason"], "DeadlineExceeded".into());
        status.set_at(&["message"], "Pod was active on the node longer than the specified deadline".into());
    }
    let stopped = matches!(status.str_at(&["phase"]), "Succeeded" | "Failed");
    let changed = status != *old;
    Step {
        delete: deleting && stopped && !changed,
        // A stopped pod is looked at again to be removed once its last status is written.
        wake: if deleting && stopped { Some(Duration::ZERO) } else { run.wake },
        status: changed.then_some(status),
    }
}

struct Run<'a> {
    pod: &'a Value,
    old: &'a Value,
    context: &'a Context<'a>,
    wishes: Wishes,
    wake: Option<Duration>,
    scheduled: Timestamp,
}

/// When the pod came to its node.
fn scheduled_at(pod: &Value, now: Timestamp) -> Timestamp {
    let started = pod.str_at(&["status", "startTime"]);
    started.parse().unwrap_or(now)
}

/// `metav1.Time`: seconds, UTC.
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn find<'v>(list: &'v [Value], name: &str) -> Option<&'v Value> {
    list.iter().find(|v| v.str_at(&["name"]) == name)
}

impl Run<'_> {
    fn now(&self) -> Value {
        format_time(self.context.now).into()
    }

    fn anything_started(&self) -> bool {
        ["containerStatuses", "initContainerStatuses"].iter().flat_map(|key| self.old.array_at(&[key])).any(|status| {
            status.at(&["state", "running"]).is_some()
                || status.at(&["state", "terminated"]).is_some()
                || status.at(&["lastState", "terminated"]).is_some()
        })
    }

    fn past_deadline(&self) -> bool {
        let deadline = self.pod.at(&["spec", "activeDeadlineSeconds"]).and_then(Value::as_i64);
        let started = !self.old.str_at(&["startTime"]).is_empty();
        started
            && deadline.is_some_and(|seconds| self.since(self.scheduled) >= Duration::from_secs(seconds.max(0) as u64))
    }

    fn since(&self, time: Timestamp) -> Duration {
        Duration::try_from(self.context.now.duration_since(time)).unwrap_or_default()
    }

    /// Remembers to look again in `after`.
    fn wake_in(&mut self, after: Duration) {
        self.wake = Some(self.wake.map_or(after, |w| w.min(after)));
    }

    /// Whether `duration` has passed since `time`; if not, wakes when it has.
    fn passed(&mut self, time: Timestamp, duration: Duration) -> bool {
        let elapsed = self.since(time);
        if elapsed >= duration {
            return true;
        }
        self.wake_in(duration - elapsed);
        false
    }

    /// The statuses of the init containers, and whether the pod's own containers may start.
    fn init_containers(&mut self, stopping: bool) -> (Vec<Value>, bool) {
        let mut statuses = Vec::new();
        let mut may_start = true;
        for container in self.pod.array_at(&["spec", "initContainers"]) {
            let sidecar = container.str_at(&["restartPolicy"]) == "Always";
            let status = self.container(container, "initContainerStatuses", may_start, stopping, true);
            let done = status.at(&["state", "terminated", "exitCode"]).and_then(Value::as_i64) == Some(0);
            may_start &= if sidecar { status["started"] == true } else { done };
            statuses.push(status);
        }
        (statuses, may_start)
    }

    fn containers(&mut self, key: &str, status_key: &str, may_start: bool, stopping: bool) -> Vec<Value> {
        let containers = self.pod.array_at(&["spec", key]).to_vec();
        containers.iter().map(|c| self.container(c, status_key, may_start, stopping, false)).collect()
    }

    /// The next status of one container.
    fn container(&mut self, container: &Value, status_key: &str, may_start: bool, stopping: bool, init: bool) -> Value {
        let name = container.str_at(&["name"]);
        let old = find(self.old.array_at(&[status_key]), name);
        let restarts = old.and_then(|s| s["restartCount"].as_i64()).unwrap_or(0);
        let behaviour = of_container(self.pod, container, init, restarts);
        let mut next = Next {
            restarts,
            last: old.map_or(Value::object(), |s| s["lastState"].clone()),
            state: old.map_or(Value::Null, |s| s["state"].clone()),
        };
        if stopping {
            if next.state.get("terminated").is_none() {
                next.terminate(0, "Completed", &self.now());
            }
            return self.container_status(container, next, false);
        }
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let changed_image =
            old.is_some_and(|s| s["image"] != container["image"]) && next.state.get("running").is_some();
        if changed_image {
            next.restart(&self.now(), 0);
        }
        if let Some(running) = next.state.get("running") {
            if let Behaviour::Ends { after, exit_code } = behaviour {
                let started = running.str_at(&["startedAt"]).parse().unwrap_or(self.context.now);
                if self.passed(started, after) {
                    let reason = if exit_code == 0 { "Completed" } else { "Error" };
                    next.terminate(exit_code, reason, &self.now());
                }
            }
        } else if let Some(terminated) = next.state.get("terminated") {
            let exit_code = terminated["exitCode"].as_i64().unwrap_or(0);
            if self.restarts_after(container, exit_code, init) {
                next.last = next.state.clone();
                next.restarts += 1;
                next.state = json!({"waiting": {"reason": "CrashLoopBackOff",
                    "message": format!("back-off {}s restarting failed container={name}", backoff(next.restarts).as_secs())}});
            }
        }
        if next.state.get("running").is_none() && next.state.get("terminated").is_none() {
            next.state = match behaviour {
                _ if !may_start => waiting("PodInitializing"),
                Behaviour::NoImage => {
                    let reason = if old.is_none() { "ErrImagePull" } else { "ImagePullBackOff" };
                    if old.is_none() {
                        self.wake_in(BACKOFF_FIRST);
                    }
                    json!({"waiting": {"reason": reason, "message": format!("Back-off pulling image \"{}\"", container.str_at(&["image"]))}})
                }
                _ if self.old.str_at(&["startTime"]).is_empty()
                    || !self.passed(self.scheduled, self.wishes.start_delay) =>
                {
                    waiting("ContainerCreating")
                }
                _ => match next
                    .last
                    .at(&["terminated", "finishedAt"])
                    .and_then(Value::as_str)
                    .map(str::parse::<Timestamp>)
                {
                    Some(Ok(finished)) if !changed_image && !self.passed(finished, backoff(next.restarts)) => {
                        next.state
                    }
                    _ => json!({"running": {"startedAt": self.now()}}),
                },
            };
        }
        let ready = self.is_ready(&next, init);
        self.container_status(container, next, ready)
    }

    fn restarts_after(&self, container: &Value, exit_code: i64, init: bool) -> bool {
        let policy = match (init, container.str_at(&["restartPolicy"])) {
            (true, "Always") => "Always",
            (true, _) if exit_code == 0 => "Never",
            _ => self.pod.str_at(&["spec", "restartPolicy"]),
        };
        match policy {
            "Never" => false,
            "OnFailure" => exit_code != 0,
            _ => true,
        }
    }

    fn is_ready(&mut self, next: &Next, init: bool) -> bool {
        if init && next.state.at(&["terminated", "exitCode"]).and_then(Value::as_i64) == Some(0) {
            return true;
        }
        let Some(started) = next.state.at(&["running", "startedAt"]).and_then(Value::as_str) else { return false };
        let started = started.parse().unwrap_or(self.context.now);
        let delay = self.wishes.ready_delay;
        !self.wishes.never_ready && self.passed(started, delay)
    }

    fn container_status(&self, container: &Value, next: Next, ready: bool) -> Value {
        let uid = self.pod.str_at(&["metadata", "uid"]);
        let name = container.str_at(&["name"]);
        let image = container.str_at(&["image"]);
        let ran = next.state.get("waiting").is_none();
        let id = format!("simulated://{uid}/{name}/{}", next.restarts);
        let mut state = next.state;
        if let Some(Value::Object(terminated)) = state.get_mut("terminated") {
            terminated.get_or_insert_with("containerID", || id.as_str().into());
        }
        let mut status = json!({
            "name": name,
            "image": image,
            "imageID": if ran { format!("simulated://{image}") } else { String::new() },
            "lastState": {},
            "ready": ready,
            "started": state.get("running").is_some(),
            "restartCount": next.restarts,
        });
        if ran {
            status.set_at(&["containerID"], id.into());
        }
        for key in ["resources"] {
            if let Some(resources) = container.get(key).filter(|r| r.as_object().is_some_and(|m| !m.is_empty())) {
                status.set_at(&[key], resources.clone());
                if let Some(requests) = resources.get("requests") {
                    status.set_at(&["allocatedResources"], requests.clone());
                }
            }
        }
        status.set_at(&["state"], state);
        status.set_at(&["lastState"], next.last);
        status
    }

    fn status(
        &self,
        init: Vec<Value>,
        containers: Vec<Value>,
        ephemeral: Vec<Value>,
        initialized: bool,
        stopping: bool,
    ) -> Value {
        let mut status = self.old.clone();
        let map = status.make_object();
        let phase = self.phase(&init, &containers, initialized, stopping);
        let containers_ready = !containers.is_empty() && containers.iter().all(|c| c["ready"] == true);
        let gates_open = self.pod.array_at(&["spec", "readinessGates"]).iter().all(|gate| {
            let kind = gate.str_at(&["conditionType"]);
            self.old.array_at(&["conditions"]).iter().any(|c| c["type"] == kind && c["status"] == "True")
        });
        let finished = matches!(phase, "Succeeded" | "Failed");
        let unready = (finished, phase == "Succeeded");
        map.insert("phase", phase.into());
        map.get_or_insert_with("startTime", || self.now());
        map.insert("hostIP", self.context.host_ip.into());
        map.insert("hostIPs", json!([{"ip": self.context.host_ip}]));
        if containers.iter().chain(&init).any(|c| c.at(&["state", "waiting"]).is_none()) {
            map.insert("podIP", self.context.pod_ip.into());
            map.insert("podIPs", json!([{"ip": self.context.pod_ip}]));
        }
        let generation = self.pod.at(&["metadata", "generation"]).cloned();
        if let Some(generation) = &generation {
            map.insert("observedGeneration", generation.clone());
        }
        for (key, list) in [
            ("initContainerStatuses", init),
            ("containerStatuses", containers),
            ("ephemeralContainerStatuses", ephemeral),
        ] {
            if list.is_empty() {
                map.remove(key);
            } else {
                map.insert(key, Value::Array(list));
            }
        }
        let mut conditions =
            Conditions { list: self.old.array_at(&["conditions"]).to_vec(), now: self.now(), generation };
        let reason = |ok: bool, otherwise: &'static str| match unready {
            _ if ok => "",
            (true, true) => "PodCompleted",
            (true, false) => "PodFailed",
            _ => otherwise,
        };
        conditions.set("PodReadyToStartContainers", !finished, "");
        conditions.set("Initialized", initialized, reason(initialized, "ContainersNotInitialized"));
        let not_ready = reason(containers_ready, "ContainersNotReady");
        conditions.set("ContainersReady", containers_ready, not_ready);
        let ready = containers_ready && gates_open;
        let not_ready = if containers_ready && !gates_open { "ReadinessGatesNotReady" } else { not_ready };
        conditions.set("Ready", ready, not_ready);
        conditions.set("PodScheduled", true, "");
        map.insert("conditions", Value::Array(conditions.list));
        status
    }

    /// Source: `pkg/kubelet.getPhase`.
    fn phase(&self, init: &[Value], containers: &[Value], initialized: bool, stopping: bool) -> &'static str {
        let exit = |c: &Value| c.at(&["state", "terminated", "exitCode"]).and_then(Value::as_i64);
        let never = self.pod.str_at(&["spec", "restartPolicy"]) == "Never";
        if init.iter().any(|c| exit(c).is_some_and(|code| code != 0)) && never {
            return "Failed";
        }
        if !containers.is_empty() && containers.iter().all(|c| exit(c).is_some()) {
            let succeeded = containers.iter().all(|c| exit(c) == Some(0));
            let restarts = match self.pod.str_at(&["spec", "restartPolicy"]) {
                _ if stopping => false,
                "Never" => false,
                "OnFailure" => !succeeded,
                _ => true,
            };
            return match (restarts, succeeded) {
                (true, _) => "Running",
                (false, true) => "Succeeded",
                (false, false) => "Failed",
            };
        }
        let started =
            containers.iter().any(|c| c.at(&["state", "waiting"]).is_none() || c["restartCount"].as_i64() > Some(0));
        if initialized && started { "Running" } else { "Pending" }
    }
}

fn backoff(restarts: i64) -> Duration {
    let doublings = u32::try_from(restarts.saturating_sub(1).clamp(0, 16)).unwrap_or(16);
    BACKOFF_MAX.min(BACKOFF_FIRST * 2_u32.pow(doublings))
}

/// A container's next state while it is being decided.
struct Next {
    restarts: i64,
    last: Value,
    state: Value,
}

impl Next {
    fn terminate(&mut self, exit_code: i64, reason: &str, now: &Value) {
        let started = self.state.at(&["running", "startedAt"]).cloned().unwrap_or(Value::Null);
        let mut terminated = Map::new();
        terminated.insert("exitCode", exit_code.into());
        terminated.insert("reason", reason.into());
        terminated.insert("startedAt", started);
        terminated.insert("finishedAt", now.clone());
        self.state = json!({});
        self.state.set_at(&["terminated"], terminated.into());
    }

    fn restart(&mut self, now: &Value, exit_code: i64) {
        self.terminate(exit_code, "Completed", now);
        self.last = std::mem::replace(&mut self.state, Value::Null);
        self.restarts += 1;
    }
}

struct Conditions {
    list: Vec<Value>,
    now: Value,
    generation: Option<Value>,
}

impl Conditions {
    /// Sets a condition; its transition time moves only when its status does.
    fn set(&mut self, kind: &str, holds: bool, reason: &str) {
        let status = if holds { "True" } else { "False" };
        let i = match self.list.iter().position(|c| c["type"] == kind) {
            Some(i) => i,
            None => {
                self.list.push(json!({"type": kind, "lastProbeTime": null}));
                self.list.len() - 1
            }
        };
        let now = self.now.clone();
        let condition = self.list[i].make_object();
        if condition.get("status").and_then(Value::as_str) != Some(status) {
            condition.insert("lastTransitionTime", now);
        }
        condition.insert("status", status.into());
        if reason.is_empty() {
            condition.remove("reason");
        } else {
            condition.insert("reason", reason.into());
        }
        if let Some(generation) = &self.generation {
            condition.insert("observedGeneration", generation.clone());
        }
    }
}
