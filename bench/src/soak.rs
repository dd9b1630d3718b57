//! The pod soak: thousands of pods under changing workloads, with controllers that are restarted; and how fast controllers
//! are, and what an idle control plane costs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use crate::api::{client, request};
use crate::measure::{Report, Row, cpu_time};

#[derive(clap::Args)]
pub struct SoakOptions {
    /// Decides which changes are made in which order; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Deployments, StatefulSets and Jobs together
    #[arg(long, default_value_t = 50)]
    workloads: usize,
    /// Pods at the end
    #[arg(long, default_value_t = 2000)]
    pods: usize,
    /// How long changes are made
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Milliseconds between two changes
    #[arg(long, default_value_t = 100)]
    pause_ms: u64,
}

/// Memory may grow by this much between the first third of a run and its end.
const GROWTH_MAX: f64 = 1.25;
/// Shorter runs only tell their numbers: the store forgets its history every five minutes, so memory still rises in them.
const JUDGED_MINUTES: u64 = 10;

#[allow(clippy::print_stdout, reason = "the seed is this program's output")]
pub async fn soak(options: SoakOptions) -> anyhow::Result<Report> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = options.seed.unwrap_or(now.as_secs());
    println!("seed {seed}");
    let outcome = devhost::soak::run(devhost::soak::Options {
        seed,
        workloads: options.workloads,
        pods: options.pods,
        duration: Duration::from_secs(options.minutes * 60),
        pause: Duration::from_millis(options.pause_ms),
        ..Default::default()
    })
    .await?;
    let mib = outcome.memory_kib.map(|kib| kib as f64 / 1024.0);
    let growth = mib[1] / mib[0].max(1.0);
    let judged = options.minutes >= JUDGED_MINUTES;
    anyhow::ensure!(
        !judged || growth < GROWTH_MAX,
        "memory grew from {:.0} to {:.0} MiB (seed {seed})",
        mib[0],
        mib[1]
    );
    Ok(Report {
        rows: vec![
            Row::value("changes made", outcome.changes as f64, "changes"),
            Row::value("restarts of the controllers", outcome.restarts as f64, "restarts"),
            Row::value("pods at the end, all as wanted", outcome.pods as f64, "pods"),
            Row::value("last change to the exact end", outcome.settled_in.as_secs_f64(), "s"),
            Row::value("memory after a third of the run", mib[0], "MiB"),
            Row::value("memory at its end", mib[1], "MiB"),
        ],
    })
}

#[derive(clap::Args)]
pub struct ControllerOptions {
    /// Kubeconfig of a cluster with simulated nodes
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Process id of its control plane, for its CPU time while nothing happens
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value_t = 100)]
    replicas: usize,
    /// Deployments, one after another
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds over which the idle control plane is watched
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
}

pub async fn controllers(options: ControllerOptions) -> anyhow::Result<Report> {
    let client = client(&options.kubeconfig).await?;
    let mut report = Report::default();
    if let Some(pid) = options.pid {
        let (begin, before) = (Instant::now(), cpu_time(pid)?);
        tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
        let used = (cpu_time(pid)? - before).as_secs_f64() / begin.elapsed().as_secs_f64();
        report.rows.push(Row::value("CPU of an idle control plane", used * 100.0, "% of a core"));
    }
    let (mut answered, mut created, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..options.runs {
        let name = format!("bench-{}-{run}", std::process::id());
        let pods = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{name}");
        let list: Value = serde_json::from_str(&client.request_text(request("GET", &pods, None)?).await?)?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let watch = request("GET", &format!("{pods}&watch=true&resourceVersion={version}"), None)?;
        let mut lines = client.request_stream(watch).await?.lines();
        // What `kubectl apply` sends for an object that is not there yet.
        let labels = json!({"app": name});
        let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": options.replicas,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "web"}]}}}});
        let begin = Instant::now();
        client.request_text(request("POST", "/apis/apps/v1/namespaces/default/deployments", Some(body))?).await?;
        answered.push(begin.elapsed());
        let (mut seen, mut up) = (0, std::collections::BTreeSet::new());
        while up.len() < options.replicas {
            let line =
                tokio::time::timeout(Duration::from_secs(120), lines.next()).await.context("no event in 120 s")?;
            let event: Value = serde_json::from_str(&line.context("the watch ended")??)?;
            if event["type"] == "ADDED" {
                seen += 1;
                if seen == options.replicas {
                    created.push(begin.elapsed());
                }
            }
            let conditions = event["object"]["status"]["conditions"].as_array();
            if conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")) {
                up.insert(event["object"]["metadata"]["name"].as_str().unwrap_or("").to_owned());
            }
        }
        ready.push(begin.elapsed());
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{name}?propagationPolicy=Foreground");
        client.request_text(request("DELETE", &path, None)?).await?;
        loop {
            let left: Value = serde_json::from_str(&client.request_text(request("GET", &pods, None)?).await?)?;
            if left["items"].as_array().is_none_or(Vec::is_empty) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let replicas = options.replicas;
    report.rows.push(Row::latency(format!("apply of a Deployment of {replicas}, answered"), answered, None));
    report.rows.push(Row::latency(format!("apply to {replicas} pods created"), created, None));
    report.rows.push(Row::latency(format!("apply to {replicas} pods ready"), ready, None));
    Ok(report)
}
