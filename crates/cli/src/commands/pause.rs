//! `alcove pause` and `alcove resume`: a cluster stops, its data and its objects stay.
//!
//! In a hub an annotation on the config Secret says so and the hub does the rest. A cluster with a pod of its own is scaled
//! to zero and its host pods are removed from here. Annotations are vCluster's.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::args::{Global, Pause, Resume};
use crate::clusters::{self, Cluster};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::{found, poll};
use crate::ui::Ui;

pub async fn pause(global: &Global, args: &Pause, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    if cluster.status == hub::PAUSED {
        ui.done(&format!("virtual cluster {} is paused already", args.name));
        return Ok(ExitCode::SUCCESS);
    }
    let timeout = Duration::from_secs(args.timeout);
    let step = ui.step(&format!("Pause virtual cluster {}...", args.name));
    if cluster.placement == "hub" {
        annotate(
            &host,
            &cluster,
            &[(deploy::PAUSED_ANNOTATION, json!("true")), (deploy::PAUSED_DATE_ANNOTATION, now())],
        )
        .await?;
        wait_for_status(&host, &cluster, timeout, |status| status == hub::PAUSED).await?;
    } else {
        scale_down(&host, &cluster, ui).await?;
        wait_until_scaled_down(&host, &cluster, timeout).await?;
        annotate(&host, &cluster, &[(deploy::PODS_REMOVED_ANNOTATION, json!("true"))]).await?;
        hub::remove_pods(host.client.clone(), &cluster.namespace, &cluster.name).await?;
    }
    step.done(&format!("Successfully paused virtual cluster {} in namespace {}", args.name, cluster.namespace));
    Ok(ExitCode::SUCCESS)
}

pub async fn resume(global: &Global, args: &Resume, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    if !is_paused(&host, &cluster).await? {
        ui.done(&format!("virtual cluster {} is not paused", args.name));
        return Ok(ExitCode::SUCCESS);
    }
    let step = ui.step(&format!("Resume virtual cluster {}...", args.name));
    start_again(&host, &cluster, Duration::from_secs(args.timeout)).await?;
    step.done(&format!("Successfully resumed virtual cluster {} in namespace {}", args.name, cluster.namespace));
    Ok(ExitCode::SUCCESS)
}

/// Was it stopped with `pause`, by this program or by vCluster's?
pub async fn is_paused(host: &Host, cluster: &Cluster) -> anyhow::Result<bool> {
    if cluster.placement != "hub" {
        return Ok(cluster.status == hub::PAUSED);
    }
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let secret = secrets.get_opt(&deploy::names::config_secret(&cluster.name)).await;
    let secret = secret.map_err(|error| host::unreachable(&host.context, error))?;
    let annotations = secret.and_then(|secret| secret.metadata.annotations).unwrap_or_default();
    Ok(annotations.get(deploy::PAUSED_ANNOTATION).is_some_and(|value| value == "true"))
}

/// Takes the pause back and waits until the cluster runs.
pub async fn start_again(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    if cluster.placement == "hub" {
        let marks = [(deploy::PAUSED_ANNOTATION, Value::Null), (deploy::PAUSED_DATE_ANNOTATION, Value::Null)];
        annotate(host, cluster, &marks).await?;
        return wait_for_status(host, cluster, timeout, |status| matches!(status, "Running" | "Sleeping")).await;
    }
    scale_up(host, cluster).await?;
    let up = poll(timeout, Duration::from_millis(100), async || {
        let now = clusters::find(host, &cluster.name, Some(&cluster.namespace)).await.ok()?;
        (now.status == "Running").then_some(())
    });
    up.await.ok_or_else(|| not_in_time(cluster, timeout, "come up"))?;
    Ok(())
}

fn now() -> Value {
    json!(clusters::now().to_rfc3339())
}

fn not_in_time(cluster: &Cluster, timeout: Duration, what: &str) -> Failure {
    Failure::timed_out(format!("virtual cluster {} did not {what} in {} seconds", cluster.name, timeout.as_secs()))
        .hint(format!("see `alcove describe {} --namespace {}`", cluster.name, cluster.namespace))
}

/// Sets annotations of the config Secret; `null` takes one off.
pub async fn annotate(host: &Host, cluster: &Cluster, annotations: &[(&str, Value)]) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let name = deploy::names::config_secret(&cluster.name);
    let mut patch = json!({"metadata": {"annotations": {}}});
    for (key, value) in annotations {
        patch["metadata"]["annotations"][*key] = value.clone();
    }
    let patched = secrets.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.map_err(|error| host::unreachable(&host.context, error))?;
    Ok(())
}

/// Until the hub has written a status that is wanted; a failed start is an error at once.
pub async fn wait_for_status(
    host: &Host,
    cluster: &Cluster,
    timeout: Duration,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let name = deploy::names::config_secret(&cluster.name);
    let reached = poll(timeout, Duration::from_millis(20), async || {
        let secret = secrets.get_opt(&name).await.ok().flatten()?;
        let status = secret.metadata.annotations.unwrap_or_default().remove(deploy::STATUS_ANNOTATION)?;
        match status {
            status if wanted(&status) => Some(Ok(())),
            status if status.starts_with("Failed") => Some(Err(status)),
            _ => None,
        }
    });
    match reached.await {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => {
            Err(Failure::failed(format!("virtual cluster {} did not start: {status}", cluster.name)).into())
        }
        None => Err(Failure::timed_out(format!(
            "virtual cluster {} has not changed its state in {} seconds",
            cluster.name,
            timeout.as_secs()
        ))
        .hint("is the hub that runs it running?")
        .into()),
    }
}

/// What of a workload is looked at here.
struct Workload {
    kind: &'static str,
    name: String,
    replicas: i32,
    annotations: std::collections::BTreeMap<String, String>,
}

/// The workloads of a cluster: the control plane, and an etcd of its own.
async fn workloads(host: &Host, cluster: &Cluster) -> anyhow::Result<Vec<Workload>> {
    let mut all = Vec::new();
    let sets: Api<StatefulSet> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let deployments: Api<Deployment> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let unreachable = |error| host::unreachable(&host.context, error);
    for name in [cluster.name.clone(), format!("{}-etcd", cluster.name)] {
        if let Some(set) = found(sets.get(&name).await).map_err(unreachable)? {
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let annotations = set.metadata.annotations.unwrap_or_default();
            all.push(Workload { kind: "statefulsets", name: name.clone(), replicas, annotations });
        }
        if let Some(deployment) = found(deployments.get(&name).await).map_err(unreachable)? {
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let annotations = deployment.metadata.annotations.unwrap_or_default();
            all.push(Workload { kind: "deployments", name, replicas, annotations });
        }
    }
    Ok(all)
}

async fn patch_workload(host: &Host, cluster: &Cluster, workload: &Workload, patch: &Value) -> anyhow::Result<()> {
    let (namespace, params) = (cluster.namespace.as_str(), PatchParams::default());
    let patched = if workload.kind == "statefulsets" {
        let api: Api<StatefulSet> = Api::namespaced(host.client.clone(), namespace);
        api.patch(&workload.name, &params, &Patch::Merge(patch)).await.map(drop)
    } else {
        let api: Api<Deployment> = Api::namespaced(host.client.clone(), namespace);
        api.patch(&workload.name, &params, &Patch::Merge(patch)).await.map(drop)
    };
    patched.map_err(|error| host::unreachable(&host.context, error))
}

async fn scale_down(host: &Host, cluster: &Cluster, ui: &Ui) -> anyhow::Result<()> {
    for workload in workloads(host, cluster).await? {
        if workload.replicas == 0 && workload.annotations.contains_key(deploy::PAUSED_ANNOTATION) {
            continue;
        }
        ui.info(&format!("Scale down {} {}/{}...", workload.kind, cluster.namespace, workload.name));
        scale_to_zero(host, cluster, &workload).await?;
    }
    Ok(())
}

async fn scale_to_zero(host: &Host, cluster: &Cluster, workload: &Workload) -> anyhow::Result<()> {
    let mut patch = json!({"metadata": {"annotations": {}}, "spec": {"replicas": 0}});
    let annotations = &mut patch["metadata"]["annotations"];
    annotations[deploy::PAUSED_ANNOTATION] = json!("true");
    // Who pauses what was scaled to nothing wants it back one day all the same.
    annotations[deploy::PAUSED_REPLICAS_ANNOTATION] = json!(workload.replicas.max(1).to_string());
    annotations[deploy::PAUSED_DATE_ANNOTATION] = now();
    patch_workload(host, cluster, workload, &patch).await
}

/// Has the cluster a workload for a control plane of its own?
pub async fn has_control_plane(host: &Host, cluster: &Cluster) -> anyhow::Result<bool> {
    Ok(workloads(host, cluster).await?.iter().any(|workload| workload.name == cluster.name))
}

/// Scales the control plane of a dedicated cluster to zero, and leaves an etcd of its own and the host pods alone.
pub async fn scale_down_control_plane(host: &Host, cluster: &Cluster) -> anyhow::Result<()> {
    for workload in workloads(host, cluster).await?.iter().filter(|workload| workload.name == cluster.name) {
        scale_to_zero(host, cluster, workload).await?;
    }
    Ok(())
}

async fn scale_up(host: &Host, cluster: &Cluster) -> anyhow::Result<()> {
    for workload in workloads(host, cluster).await? {
        if workload.annotations.get(deploy::PAUSED_ANNOTATION).is_none_or(|value| value != "true") {
            continue;
        }
        let before = workload.annotations.get(deploy::PAUSED_REPLICAS_ANNOTATION);
        let replicas: i32 = before.and_then(|text| text.parse().ok()).filter(|count| *count > 0).unwrap_or(1);
        let mut patch = json!({"metadata": {"annotations": {}}, "spec": {"replicas": replicas}});
        for mark in [deploy::PAUSED_ANNOTATION, deploy::PAUSED_REPLICAS_ANNOTATION, deploy::PAUSED_DATE_ANNOTATION] {
            patch["metadata"]["annotations"][mark] = Value::Null;
        }
        patch_workload(host, cluster, &workload, &patch).await?;
    }
    Ok(())
}

/// Until no pod of the control plane is left: its syncer would bring the removed host pods back.
pub async fn wait_until_scaled_down(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let params = kube::api::ListParams::default().labels(&format!("app=vcluster,release={}", cluster.name));
    let gone = poll(timeout, Duration::from_millis(100), async || {
        pods.list(&params).await.ok().filter(|list| list.items.is_empty()).map(drop)
    });
    gone.await.ok_or_else(|| not_in_time(cluster, timeout, "stop"))?;
    Ok(())
}
