//! The row of a Pod: its status in one word, out of phase, containers and deletion.

use super::Row;
use super::rows::{age, or};
use crate::json;
use crate::json::Value;
use crate::kinds::access::Fields;
use crate::time::Timestamp;

/// What the container statuses add up to.
struct Summary {
    reason: String,
    restarts: i64,
    ready: usize,
    last_restart: Option<Timestamp>,
}

fn finished(status: &Value) -> Option<Timestamp> {
    Timestamp::parse(status.v("lastState").o("terminated")?.s("finishedAt"))
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    pod.v("spec").list("initContainers").iter().any(|c| c.s("name") == name && c.s("restartPolicy") == "Always")
}

fn condition_holds(pod: &Value, kind: &str) -> bool {
    pod.v("status").list("conditions").iter().find(|c| c.s("type") == kind).is_some_and(|c| c.s("status") == "True")
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Row {
    let (meta, spec, status) = (pod.v("metadata"), pod.v("spec"), pod.v("status"));
    let phase = status.s("phase");
    let mut summary = summarize(pod);
    if meta.has("deletionTimestamp") {
        if status.s("reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            summary.reason = "Terminating".to_owned();
        }
    }
    let sidecars = spec.list("initContainers").iter().filter(|c| c.s("restartPolicy") == "Always").count();
    let total = spec.list("containers").len() + sidecars;
    let mut restarts = summary.restarts.to_string();
    if summary.restarts != 0
        && let Some(last) = summary.last_restart
    {
        restarts = format!("{restarts} ({} ago)", crate::time::human_duration(now.since(last)));
    }
    let gates = spec.list("readinessGates");
    let passed = gates.iter().filter(|g| condition_holds(pod, g.s("conditionType"))).count();
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) };
    let cells = vec![
        meta.v("name").clone(),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        restarts.into(),
        age(meta.v("creationTimestamp"), now).into(),
        or(status.list("podIPs").first().map_or("", |ip| ip.s("ip")), "<none>"),
        or(spec.s("nodeName"), "<none>"),
        or(status.s("nominatedNodeName"), "<none>"),
        gates.into(),
    ];
    let conditions = match phase {
        "Succeeded" => vec![completed("Succeeded", "The pod has completed successfully.")],
        "Failed" => vec![completed("Failed", "The pod failed.")],
        _ => Vec::new(),
    };
    Row { cells, conditions }
}

fn completed(reason: &str, message: &str) -> Value {
    json!({"type": "Completed", "status": "True", "reason": reason, "message": message})
}

/// How a container ended, when no reason was given.
fn ended(terminated: &Value) -> String {
    match (terminated.s("reason"), terminated.i("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.i("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let status = pod.v("status");
    let mut reason = or(status.s("reason"), status.s("phase")).as_str().unwrap_or("").to_owned();
    let gated = |c: &&Value| c.s("type") == "PodScheduled" && c.s("reason") == "SchedulingGated";
    if status.list("conditions").iter().any(|c| gated(&c)) {
        reason = "SchedulingGated".to_owned();
    }
    let mut all = Summary { reason, restarts: 0, ready: 0, last_restart: None };
    let (mut sidecar_restarts, mut last_sidecar_restart) = (0, None);
    let mut initializing = false;
    for (i, container) in status.list("initContainerStatuses").iter().enumerate() {
        let restarts = container.i("restartCount");
        let sidecar = is_sidecar(pod, container.s("name"));
        all.restarts += restarts;
        all.last_restart = all.last_restart.max(finished(container));
        if sidecar {
            sidecar_restarts += restarts;
            last_sidecar_restart = last_sidecar_restart.max(finished(container));
        }
        let state = container.v("state");
        match (state.o("terminated"), state.o("waiting")) {
            (Some(t), _) if t.i("exitCode") == 0 => continue,
            _ if sidecar && container.b("started") => {
                all.ready += usize::from(container.b("ready"));
                continue;
            }
            (Some(t), _) => all.reason = format!("Init:{}", ended(t)),
            (None, Some(w)) if !matches!(w.s("reason"), "" | "PodInitializing") => {
                all.reason = format!("Init:{}", w.s("reason"));
            }
            _ => all.reason = format!("Init:{i}/{}", pod.v("spec").list("initContainers").len()),
        }
        initializing = true;
        break;
    }
    if initializing && !condition_holds(pod, "Initialized") {
        return all;
    }
    all.restarts = sidecar_restarts;
    all.last_restart = last_sidecar_restart;
    let (mut running, mut error) = (false, None);
    for container in status.list("containerStatuses").iter().rev() {
        all.restarts += container.i("restartCount");
        all.last_restart = all.last_restart.max(finished(container));
        let state = container.v("state");
        if let Some(waiting) = state.o("waiting").filter(|w| !w.s("reason").is_empty()) {
            all.reason = waiting.s("reason").to_owned();
        } else if let Some(terminated) = state.o("terminated") {
            all.reason = ended(terminated);
            if terminated.i("exitCode") != 0 {
                error = Some(all.reason.clone());
            }
        } else if container.b("ready") && state.has("running") {
            running = true;
            all.ready += 1;
        }
    }
    if all.reason == "Completed" {
        let ready = condition_holds(pod, "Ready");
        match error {
            _ if running && ready => all.reason = "Running".to_owned(),
            Some(error) => all.reason = error,
            None if running => all.reason = "NotReady".to_owned(),
            None => {}
        }
    }
    all
}
