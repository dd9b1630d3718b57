//! `alcove hostpath-mapper`: the process that keeps, on one node, the links from tenants' names to the node's files. What they
//! are is in `syncer::host_files`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apimachinery::Value;
use clap::Args as ClapArgs;
use informer::{Factory, RawObject, Resource, Rest, Source};
use syncer::host_files::{Changes, MappedPod, Node};
use syncer::metadata::{MANAGED_BY_LABEL, label, name_of};
use tokio::sync::Notify;

use crate::args::Global;
use crate::commands::serve;
use crate::signals;
use crate::ui::Ui;

/// Files appear without an event of a pod.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, ClapArgs)]
pub struct HostpathMapper {
    /// The virtual cluster
    #[arg(long, env = "VCLUSTER_NAME", value_name = "NAME", required_unless_present = "all")]
    pub name: Option<String>,
    /// Keep the links of all virtual clusters of the host
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    /// The node this runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// Where the node's file system is seen
    #[arg(long, default_value = "/", value_name = "DIRECTORY")]
    pub root: PathBuf,
}

pub async fn run(global: &Global, args: &HostpathMapper, ui: &Ui) -> anyhow::Result<ExitCode> {
    let pods = Resource::new("", "v1", "pods");
    let only = match &args.name {
        Some(name) => Some((serve::namespace(global)?, name.clone())),
        None => None,
    };
    let source = match &only {
        Some((namespace, name)) => {
            Source::namespaced(pods, namespace.clone()).labels(format!("{MANAGED_BY_LABEL}={name}"))
        }
        None => Source::all(pods).labels(MANAGED_BY_LABEL),
    };
    let factory = Factory::new(Rest::new(serve::client(global).await?, "alcove-hostpath-mapper"));
    let cache = factory.informer::<RawObject>(source.fields(format!("spec.nodeName={}", args.node)));
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    cache.on_change(move |_| told.notify_one());
    tokio::select! {
        () = cache.wait_synced() => {}
        () = signals::wait() => return Ok(ExitCode::SUCCESS),
    }
    ui.done(&format!("keeping links of node {} below {}", args.node, args.root.display()));
    let node = Node::new(&args.root);
    loop {
        let objects: Vec<Value> = cache.list().iter().filter_map(|o| o.to_tree().ok()).collect();
        let (node, only) = (node.clone(), only.clone());
        let synced = tokio::task::spawn_blocking(move || sync(&node, only, &objects));
        match synced.await.context("the mapper ended")? {
            Ok(Changes { made: 0, removed: 0 }) => {}
            Ok(Changes { made, removed }) => tracing::info!(made, removed, "links changed"),
            // A node's disk may be full, or a directory on its way out.
            Err(error) => ui.warn(&format!("could not keep the links: {error}")),
        }
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = signals::wait() => break,
        }
    }
    factory.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// Brings the links of one virtual cluster, or of all, up to date.
fn sync(node: &Node, only: Option<(String, String)>, objects: &[Value]) -> std::io::Result<Changes> {
    let mut clusters: BTreeMap<(String, String), Vec<MappedPod>> = BTreeMap::new();
    match only {
        Some(cluster) => drop(clusters.insert(cluster, Vec::new())),
        // Those whose pods are all gone have links too.
        None => clusters.extend(node.clusters()?.into_iter().map(|cluster| (cluster, Vec::new()))),
    }
    for object in objects {
        let cluster = label(object, MANAGED_BY_LABEL);
        if let Some(pod) = MappedPod::of(object, cluster) {
            clusters.entry((name_of(object).namespace, cluster.to_owned())).or_default().push(pod);
        }
    }
    let seen = node.look()?;
    let mut all = Changes::default();
    for ((namespace, name), pods) in clusters {
        let changes = node.sync(&namespace, &name, &pods, &seen)?;
        all.made += changes.made;
        all.removed += changes.removed;
    }
    Ok(all)
}
