//! Many tenants with many pods on one development host, all in this process: how many requests a synced pod costs the host,
//! how long it takes to get there, and whether memory grows.
//!
//! The host answers without network, so the latency is the syncer's own and the API servers'.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use apimachinery::{Value, json};
use apiserver::{ApiServer, UserInfo};
use devhost::{DevHost, DevHostConfig};
use informer::{DeleteOptions, Factory, RawObject, Resource, Rest, Source};
use syncer::{Syncer, SyncerConfig};
use tokio::sync::mpsc;

use crate::measure::{Report, Row, resident_mib};

const PODS: Resource = Resource::new("", "v1", "pods");
const SERVICES: Resource = Resource::new("", "v1", "services");
const NAMESPACES: Resource = Resource::new("", "v1", "namespaces");
const ACCOUNTS: Resource = Resource::new("", "v1", "serviceaccounts");
/// A simulated node takes 250.
const PODS_OF_A_NODE: usize = 200;
/// Events are kept an hour by default, longer than a run: what is left of earlier rounds would not be seen.
const EVENT_TTL: Duration = Duration::from_secs(30);
/// A pod that does not arrive within this time never will.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    /// Virtual clusters
    #[arg(long, default_value_t = 5)]
    tenants: usize,
    /// Pods in all of them together
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Pods created a second, in all clusters together
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Times that all pods are created and deleted
    #[arg(long, default_value_t = 2)]
    rounds: usize,
}

struct Tenant {
    namespace: String,
    api: Rest,
    syncer: Syncer,
    _server: ApiServer,
}

async fn tenant(host: &DevHost, host_api: &Rest, data: &Path, n: usize) -> anyhow::Result<Tenant> {
    let name = format!("team-{n}");
    let namespace = format!("vcluster-{name}");
    let made = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": (namespace.as_str())}});
    host_api.create(&NAMESPACES, "", &made).await?;
    let made = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": (name.as_str())},
        "spec": {"ports": [{"name": "https", "port": 443}]}});
    host_api.create(&SERVICES, &namespace, &made).await?;
    let made =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": (format!("vc-workload-{name}"))}});
    host_api.create(&ACCOUNTS, &namespace, &made).await?;
    let path = data.join(format!("{name}.db"));
    let store = store::Store::open_sqlite(path, store::Options::default()).await.context("a store")?;
    let server = ApiServer::start(apiserver::Config { event_ttl: EVENT_TTL, ..Default::default() }, store)
        .await
        .context("a virtual API server")?;
    let client = server.kube_client(UserInfo::admin());
    let mut config = SyncerConfig::new(&name, &namespace);
    config.settings.dns_service = None;
    let syncer = Syncer::start(client.clone(), host.client(), config)?;
    syncer.wait_synced().await;
    Ok(Tenant { namespace, api: Rest::new(client, "bench"), syncer, _server: server })
}

pub async fn run(options: Options) -> anyhow::Result<Report> {
    let nodes = options.pods.div_ceil(PODS_OF_A_NODE).max(1) + 1;
    // Stores on disk, as those of real clusters: what memory shows is what the parts keep.
    let data = tempfile::tempdir()?;
    let host = DevHostConfig {
        event_ttl: EVENT_TTL,
        nodes,
        data_dir: Some(data.path().join("host")),
        ..DevHostConfig::default()
    };
    let host = DevHost::start(host).await.context("the host")?;
    let host_api = Rest::new(host.client(), "bench");
    let mut tenants = Vec::with_capacity(options.tenants);
    for n in 0..options.tenants {
        tenants.push(tenant(&host, &host_api, data.path(), n).await?);
    }
    let (sender, mut seen) = mpsc::unbounded_channel::<(bool, String, Instant)>();
    let factory = Factory::new(host_api.clone());
    let watched = factory.informer::<RawObject>(Source::all(PODS));
    let arrivals = sender.clone();
    watched.on_change(move |change| {
        let pod = change.object();
        let key = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
        // Nobody listens any more when the run is over.
        drop(arrivals.send((change.is_deleted(), key, Instant::now())));
    });
    watched.wait_synced().await;
    let (done, mut running) = mpsc::unbounded_channel::<String>();
    let mut watches = Vec::new();
    for tenant in &tenants {
        let factory = Factory::new(tenant.api.clone());
        let pods = factory.informer::<RawObject>(Source::all(PODS));
        let (done, namespace) = (done.clone(), tenant.namespace.clone());
        pods.on_change(move |change| {
            let phase = change.object().to_tree().map(|p| p.str_at(&["status", "phase"]).to_owned());
            if !change.is_deleted() && phase.is_ok_and(|p| p == "Running") {
                drop(done.send(format!("{namespace}/{}", change.object().metadata.name)));
            }
        });
        pods.wait_synced().await;
        watches.push(factory);
    }
    let requests = |tenants: &[Tenant]| tenants.iter().map(|t| t.syncer.requests().0).sum::<u64>();
    let mut report = Report::default();
    let pid = std::process::id();
    let each = options.pods.div_ceil(options.tenants.max(1));
    let mut per_pod = Vec::new();
    for round in 0..options.rounds.max(1) {
        let before = requests(&tenants);
        let mut created: HashMap<String, Instant> = HashMap::new();
        let mut calls = Vec::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
        for n in 0..each {
            for tenant in &tenants {
                pace.tick().await;
                let name = format!("p-{round}-{n}");
                let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": (name.as_str())},
                    "spec": {"containers": [{"name": "c", "image": "web"}], "terminationGracePeriodSeconds": 0}});
                let begin = Instant::now();
                created.insert(format!("{}/{name}", tenant.namespace), begin);
                tenant.api.create(&PODS, "default", &pod).await?;
                calls.push(begin.elapsed());
            }
        }
        let expected = created.len();
        let mut arrived: Vec<Duration> = Vec::with_capacity(expected);
        let mut up = std::collections::HashSet::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while arrived.len() < expected || up.len() < expected {
            tokio::select! {
                event = seen.recv() => {
                    let Some((false, key, at)) = event else { continue };
                    let Some((namespace, host_name)) = key.split_once('/') else { continue };
                    let name = host_name.split("-x-").next().unwrap_or_default();
                    if let Some(begin) = created.remove(&format!("{namespace}/{name}")) {
                        arrived.push(at.saturating_duration_since(begin));
                    }
                }
                key = running.recv() => {
                    if let Some(key) = key.filter(|k| k.contains(&format!("/p-{round}-"))) {
                        up.insert(key);
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    anyhow::bail!("{} of {expected} pods arrived, {} run", arrived.len(), up.len());
                }
            }
        }
        per_pod.push((requests(&tenants) - before) as f64 / expected as f64);
        report.rows.push(Row::latency(format!("round {round}: virtual pod create call"), calls, None));
        report.rows.push(Row::latency(format!("round {round}: virtual pod created to host pod seen"), arrived, None));
        for n in 0..each {
            for tenant in &tenants {
                let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
                tenant.api.delete(&PODS, "default", &format!("p-{round}-{n}"), &options).await?;
            }
        }
        let mut left = usize::MAX;
        while left > 0 {
            left = 0;
            for tenant in &tenants {
                let pods: Vec<Value> = host_api.list_as(&PODS, &tenant.namespace, "", "").await?;
                left += pods.len();
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline + PATIENCE, "{left} pods stay on the host");
            if left > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let mut kept: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
        for (what, count) in tenants.iter().flat_map(|t| t.syncer.kept()) {
            *kept.entry(what).or_default() += count;
        }
        for (what, count) in kept {
            report.rows.push(Row::value(format!("round {round}: kept by the syncers: {what}"), count as f64, ""));
        }
        report.rows.push(Row::value(
            format!("round {round}: resident memory after deletion"),
            resident_mib(pid)?,
            "MiB",
        ));
    }
    for (round, requests) in per_pod.iter().enumerate() {
        report.rows.push(Row::value(
            format!("round {round}: host API requests per pod, create to running"),
            *requests,
            "",
        ));
    }
    for tenant in &tenants {
        tenant.syncer.shutdown().await;
    }
    let _keep: Vec<Arc<Factory>> = watches.into_iter().map(Arc::new).collect();
    Ok(report)
}
