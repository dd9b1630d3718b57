//! `alcove debug shell`: a shell beside the control plane, in an ephemeral container of its pod. The image of the control
//! plane holds one program and no shell, so that another image brings the tools.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::args::{DebugShell, Global};
use crate::clusters;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::poll;
use crate::ui::Ui;

/// Begins the names of the containers.
const PREFIX: &str = "debug-shell";

pub async fn run(global: &Global, args: &DebugShell, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    if cluster.placement == "hub" {
        return Err(Failure::failed(format!("virtual cluster {} runs in a hub and has no pod of its own", args.name))
            .hint("use `alcove debug collect`, or kubectl debug on the hub's pod")
            .into());
    }
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let (pod, object) = choose(&host, &pods, args).await?;
    let containers = object["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let Some(target) = containers.iter().find(|container| container["name"] == args.target.as_str()) else {
        let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
        return Err(Failure::not_found(format!("pod {pod} has no container {}", args.target))
            .hint(format!("there are: {}", names.join(", ")))
            .into());
    };
    let container = match running(&object, &args.target) {
        Some(container) => container,
        None => {
            let name = format!("{PREFIX}-{}-{:05x}", args.target, std::process::id() & 0xf_ffff);
            let patch = json!({"spec": {"ephemeralContainers": [ephemeral(target, &name, &args.image)]}});
            let patched =
                pods.patch_ephemeral_containers(&pod, &PatchParams::default(), &Patch::Strategic(patch)).await;
            patched.map_err(|error| host::unreachable(&host.context, error))?;
            ui.info(&format!("Debugger {name} created for container {} in pod {pod}", args.target));
            wait_until_running(&pods, &pod, &name, Duration::from_secs(args.timeout)).await?;
            name
        }
    };
    exec(global, &host, &cluster.namespace, &pod, &container, &args.command)
}

/// The pod that is named, or the newest one that runs.
async fn choose(host: &Host, pods: &Api<Pod>, args: &DebugShell) -> anyhow::Result<(String, Value)> {
    let params = ListParams::default().labels(&deploy::selector(&args.name));
    let list = pods.list(&params).await.map_err(|error| host::unreachable(&host.context, error))?;
    let mut all: Vec<Value> = list.items.into_iter().map(|pod| json!(pod)).collect();
    all.retain(|pod| match &args.pod {
        Some(name) => pod["metadata"]["name"] == name.as_str(),
        None => pod["metadata"]["labels"]["app"] == "vcluster" && pod["status"]["phase"] == "Running",
    });
    all.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_string());
    let pod = all.pop().ok_or_else(|| match &args.pod {
        Some(name) => Failure::not_found(format!("virtual cluster {} has no pod {name}", args.name)),
        None => Failure::not_found(format!("no pod of virtual cluster {} runs", args.name)),
    })?;
    Ok((pod["metadata"]["name"].as_str().unwrap_or_default().to_string(), pod))
}

/// A shell for the target that is there already.
fn running(pod: &Value, target: &str) -> Option<String> {
    let prefix = format!("{PREFIX}-{target}-");
    let statuses = pod["status"]["ephemeralContainerStatuses"].as_array()?;
    let found = statuses.iter().find(|status| {
        status["name"].as_str().is_some_and(|name| name.starts_with(&prefix)) && !status["state"]["running"].is_null()
    })?;
    found["name"].as_str().map(str::to_string)
}

/// Sees the target's processes, its environment and its volumes.
fn ephemeral(target: &Value, name: &str, image: &str) -> Value {
    let mounts = target["volumeMounts"].as_array().cloned().unwrap_or_default();
    // Ephemeral containers take no subpaths.
    let mounts: Vec<Value> =
        mounts.into_iter().filter(|mount| mount["subPath"].is_null() && mount["subPathExpr"].is_null()).collect();
    let mut container = json!({
        "name": name,
        "image": image,
        "command": ["sh", "-c", "sleep 86400"],
        "targetContainerName": target["name"],
        "volumeMounts": mounts,
    });
    for key in ["env", "securityContext"] {
        if !target[key].is_null() {
            container[key] = target[key].clone();
        }
    }
    container
}

async fn wait_until_running(pods: &Api<Pod>, pod: &str, container: &str, timeout: Duration) -> anyhow::Result<()> {
    let mut waits = String::new();
    let started = poll(timeout, Duration::from_millis(200), async || {
        let pod = json!(pods.get(pod).await.ok()?);
        let statuses = pod["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
        let state = &statuses.iter().find(|status| status["name"] == container)?["state"];
        if !state["terminated"].is_null() {
            let reason = state["terminated"]["reason"].as_str().unwrap_or("ended");
            return Some(Err(Failure::failed(format!("the container ended at once: {reason}"))));
        }
        waits = state["waiting"]["reason"].as_str().unwrap_or_default().to_string();
        (!state["running"].is_null()).then_some(Ok(()))
    });
    match started.await {
        Some(result) => Ok(result?),
        None => {
            let waits = if waits.is_empty() { "it has no status yet".to_string() } else { waits };
            Err(Failure::timed_out(format!("container {container} of pod {pod} does not run: {waits}"))
                .hint("can the host pull the image? name another with --image")
                .into())
        }
    }
}

/// Hands the terminal to kubectl.
fn exec(
    global: &Global,
    host: &Host,
    namespace: &str,
    pod: &str,
    container: &str,
    command: &[String],
) -> anyhow::Result<ExitCode> {
    let mut kubectl = std::process::Command::new("kubectl");
    if let Some(file) = &global.kubeconfig {
        kubectl.arg("--kubeconfig").arg(file);
    }
    kubectl.args(["exec", "--context", &host.context, "-n", namespace, pod, "-c", container, "-i"]);
    if command.is_empty() {
        kubectl.args(["-t", "--", "sh"]);
    } else {
        kubectl.arg("--").args(command);
    }
    let status = kubectl.status().context("cannot start kubectl, which `alcove debug shell` needs in the PATH")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_has_what_its_target_has_and_one_that_runs_is_used_again() {
        let target = json!({"name": "syncer", "env": [{"name": "A", "value": "b"}], "volumeMounts": [
            {"name": "data", "mountPath": "/data"}, {"name": "x", "mountPath": "/x", "subPath": "y"}]});
        let made = ephemeral(&target, "debug-shell-syncer-1", "busybox");
        assert_eq!(made["targetContainerName"], "syncer");
        assert_eq!(made["env"], target["env"]);
        assert_eq!(made["volumeMounts"], json!([{"name": "data", "mountPath": "/data"}]));
        assert!(made.get("securityContext").is_none());
        let status = |name: &str, state: &str| json!({"status": {"ephemeralContainerStatuses": [{"name": name, "state": {(state): {}}}]}});
        for (pod, want) in [
            (status("debug-shell-syncer-1", "running"), Some("debug-shell-syncer-1")),
            (status("debug-shell-syncer-1", "terminated"), None),
            (status("debug-shell-other-1", "running"), None),
            (json!({}), None),
        ] {
            assert_eq!(running(&pod, "syncer").as_deref(), want, "{pod}");
        }
    }
}
