//! `alcove create`: puts the objects of a virtual cluster on the host, waits until its API answers, connects.

use std::process::ExitCode;
use std::time::Duration;

use deploy::{Placement, Release};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::Api;

use crate::args::{Connect, Create, Global, PlacementArg};
use crate::clusters::{self, Cluster};
use crate::commands::{config, connect, moving, snapshot};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::{self, found, poll};
use crate::release;
use crate::ui::{Step, Ui};

pub async fn run(global: &Global, args: &Create, ui: &Ui) -> anyhow::Result<ExitCode> {
    deploy::names::check_name(&args.name).map_err(|error| Failure::invalid(error.to_string()))?;
    let mut values = args.values.clone();
    if args.expose {
        values.set.push("controlPlane.service.spec.type=LoadBalancer".into());
    }
    let restored = match &args.restore {
        Some(url) => Some(snapshot::fetch(url, args.snapshot_temp_dir.as_deref(), &mut values, ui).await?),
        None => None,
    };
    // Everything that can be wrong on this side is found before anything changes on the other.
    let config = config::load(&values)?;
    let host = host::connect(global).await?;
    let namespace = global.namespace.clone().unwrap_or_else(|| deploy::names::default_namespace(&args.name));
    let mut existing = check_neighbours(&host, args, &namespace).await?;
    if let Some(cluster) = existing.as_ref().filter(|cluster| moving::was_cut_short(cluster)) {
        moving::recover(&host, cluster, Duration::from_secs(args.timeout), ui).await?;
        existing = check_neighbours(&host, args, &namespace).await?;
    }
    let placement = placement(&host, args, existing.as_ref()).await;
    let moved = existing.as_ref().filter(|existing| current_placement(existing) != placement);
    if moved.is_some() && restored.is_some() {
        return Err(Failure::invalid("a cluster cannot be moved and restored at once")
            .hint(format!("move it first, then use `alcove restore {}`", args.name))
            .into());
    }
    let before = match moved {
        Some(cluster) => Some(stored_config(&host, cluster).await?),
        None => None,
    };
    // Who only moves a cluster changes nothing else.
    let config = match &before {
        Some(before) if values.files.is_empty() && values.set.is_empty() => before.clone(),
        _ => config,
    };
    let shown = if placement == Placement::Hub { PlacementArg::Hub } else { PlacementArg::Dedicated };
    config::warn_without_effect(&config, shown, ui);
    let release = Release {
        name: &args.name,
        namespace: &namespace,
        placement,
        config: &config,
        version: env!("CARGO_PKG_VERSION"),
    };
    // What cannot be rendered is said before anything changes.
    release::render(&release)?;
    if args.upgrade {
        check_changes(&host, &release).await?;
    }
    if let (Some(cluster), Some(before)) = (moved, &before) {
        moving::run(&host, cluster, before, &release, Duration::from_secs(args.timeout), ui).await?;
        return finish(global, args, &host, &namespace, ui).await;
    }
    let step = ui.step(&format!("Create virtual cluster {}...", args.name));
    ensure_namespace(&host, args, &namespace, &step).await?;
    step.update(&format!("Waiting for virtual cluster {} to come up...", args.name));
    put(&host, &release, Duration::from_secs(args.timeout), &step).await?;
    step.done(&format!("Successfully created virtual cluster {} in namespace {namespace}", args.name));
    if let Some(restored) = restored {
        restored.fill(&host, &args.name, &namespace, Duration::from_secs(args.timeout), ui).await?;
    }
    finish(global, args, &host, &namespace, ui).await
}

/// Connects, or says how to.
async fn finish(global: &Global, args: &Create, host: &Host, namespace: &str, ui: &Ui) -> anyhow::Result<ExitCode> {
    if !args.connect && !args.print {
        ui.info(&format!("Use `alcove connect {} --namespace {namespace}` to access it", args.name));
        ui.info(&format!(
            "or `alcove connect {} --namespace {namespace} -- kubectl get ns` for one command",
            args.name
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = clusters::find(host, &args.name, Some(namespace)).await?;
    let connect_args = Connect {
        kube_config_context_name: args.kube_config_context_name.clone(),
        background_proxy: args.background_proxy,
        ..Connect::after_create(&args.name, args.print, args.timeout)
    };
    connect::to_cluster(global, host, &cluster, &connect_args, ui).await
}

fn current_placement(cluster: &Cluster) -> Placement {
    if cluster.placement == "hub" { Placement::Hub } else { Placement::Dedicated }
}

/// The configuration that a cluster runs with.
async fn stored_config(host: &Host, cluster: &Cluster) -> anyhow::Result<::config::Config> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let name = deploy::names::config_secret(&cluster.name);
    let secret = secrets.get_opt(&name).await.map_err(|error| host::unreachable(&host.context, error))?;
    let text = secret.and_then(|secret| secret.data?.remove("config.yaml")).map(|bytes| bytes.0).unwrap_or_default();
    ::config::Config::from_yaml("config.yaml", &String::from_utf8_lossy(&text))
        .map_err(|error| Failure::invalid(format!("Secret {name} holds no valid configuration: {error}")).into())
}

/// One virtual cluster per namespace, and none of this name yet unless it is to be changed.
async fn check_neighbours(host: &Host, args: &Create, namespace: &str) -> anyhow::Result<Option<Cluster>> {
    let mut existing = None;
    for cluster in clusters::list(host, Some(namespace)).await? {
        if cluster.name != args.name {
            return Err(Failure::exists(format!(
                "namespace {namespace} holds the virtual cluster {} already",
                cluster.name
            ))
            .hint("there is one virtual cluster per namespace; choose another with --namespace")
            .into());
        }
        if !args.upgrade {
            return Err(Failure::exists(format!(
                "virtual cluster {} exists already in namespace {namespace}",
                args.name
            ))
            .hint(format!(
                "use `alcove connect {}`, or `alcove create {} --upgrade` to change it",
                args.name, args.name
            ))
            .into());
        }
        existing = Some(cluster);
    }
    Ok(existing)
}

/// As asked for; else where the cluster is already; else what the host offers.
async fn placement(host: &Host, args: &Create, existing: Option<&Cluster>) -> Placement {
    match (args.placement.map(Placement::from), existing) {
        (Some(asked), _) => asked,
        (None, Some(existing)) => current_placement(existing),
        (None, None) => release::placement_of(host).await,
    }
}

/// Some things cannot change under a cluster that has data.
async fn check_changes(host: &Host, release: &Release<'_>) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), release.namespace);
    let stored = secrets.get_opt(&deploy::names::config_secret(release.name)).await;
    let Some(secret) = stored.map_err(|error| host::unreachable(&host.context, error))? else { return Ok(()) };
    let before = secret.metadata.annotations.unwrap_or_default().remove(deploy::STORE_ANNOTATION).unwrap_or_default();
    let now = release.config.store_type();
    if !before.is_empty() && !release.config.store_may_follow(&before) {
        return Err(Failure::invalid(format!(
            "the cluster keeps its data in {before}; it cannot change to {}",
            now.as_str()
        ))
        .hint("take a snapshot, and create a cluster with the other controlPlane.backingStore from it: alcove create NAME --restore URL")
        .into());
    }
    Ok(())
}

async fn ensure_namespace(host: &Host, args: &Create, namespace: &str, step: &Step<'_>) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(host.client.clone());
    let unreachable = |error| host::unreachable(&host.context, error);
    let existing = found(api.get(namespace).await).map_err(unreachable)?;
    let terminating = existing.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some());
    if terminating {
        step.update("Waiting until namespace is terminated...");
        let gone = poll(Duration::from_secs(args.timeout), Duration::from_millis(200), async || {
            matches!(found(api.get(namespace).await), Ok(None)).then_some(())
        });
        gone.await.ok_or_else(|| Failure::timed_out(format!("namespace {namespace} is still being deleted")))?;
    }
    if existing.is_some() && !terminating {
        return Ok(());
    }
    if !args.create_namespace {
        return Err(Failure::not_found(format!("namespace {namespace} does not exist"))
            .hint("create it, or leave out --create-namespace=false")
            .into());
    }
    manifests::apply(&host.client, &deploy::namespace(namespace), "").await?;
    Ok(())
}

/// Puts the objects of the release on the host and waits until the hub says that the cluster runs, or until its pod is
/// ready.
pub async fn put(host: &Host, release: &Release<'_>, timeout: Duration, step: &Step<'_>) -> anyhow::Result<()> {
    release::apply(host, release).await?;
    match release.placement {
        Placement::Hub => wait_until_running(host, release.name, release.namespace, timeout).await,
        Placement::Dedicated => release::wait_until_ready(host, release.name, release.namespace, timeout, step).await,
    }
}

/// Until the hub has written the kubeconfig and says that the cluster runs.
pub async fn wait_until_running(host: &Host, name: &str, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let config_name = deploy::names::config_secret(name);
    let kubeconfig_name = deploy::names::kubeconfig_secret(name);
    let mut picked_up = false;
    let outcome = poll(timeout, Duration::from_millis(20), async || {
        let config = secrets.get_opt(&config_name).await.ok().flatten()?;
        let status = config.metadata.annotations.unwrap_or_default().get(deploy::STATUS_ANNOTATION).cloned();
        match status.as_deref() {
            Some("Running" | "Sleeping") => secrets.get_opt(&kubeconfig_name).await.ok().flatten().map(|_| Ok(())),
            Some(failed) if failed.starts_with("Failed") => Some(Err(failed.to_string())),
            _ => None,
        }
    })
    .await;
    match outcome {
        Some(Ok(())) => Ok(()),
        Some(Err(status)) => Err(Failure::failed(format!("virtual cluster {} did not start: {status}", name)).into()),
        None => {
            let mut waits = String::new();
            if let Ok(Some(config)) = secrets.get_opt(&config_name).await {
                let status = config.metadata.annotations.unwrap_or_default().remove(deploy::STATUS_ANNOTATION);
                picked_up = status.is_some();
                waits = status.filter(|status| status.starts_with("Pending")).map_or(waits, |s| format!(": {s}"));
            }
            let failure = Failure::timed_out(format!(
                "virtual cluster {name} did not come up in {} seconds{waits}",
                timeout.as_secs()
            ));
            Err(match picked_up {
                true => failure.hint("see the hub's log for the reason"),
                false => failure.hint(format!(
                    "no hub on host {:?} took it; is `alcove up` or `alcove hub` running?",
                    host.context
                )),
            }
            .into())
        }
    }
}
