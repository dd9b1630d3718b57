//! `alcove delete`: the hub removes what the cluster has on the host; this waits for it and removes the rest.

use std::process::ExitCode;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::api::{Api, DeleteParams};

use crate::args::{Delete, Global};
use crate::clusters;
use crate::failure::{Failure, Reason};
use crate::host::{self, Host};
use crate::kubeconfig::{self, Change};
use crate::manifests::{found, poll};
use crate::reach;
use crate::release;
use crate::ui::Ui;

/// Objects that are named when a deletion does not end.
const SHOWN: usize = 5;

pub async fn run(global: &Global, args: &Delete, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = match clusters::find(&host, &args.name, global.namespace.as_deref()).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let missing = error.downcast_ref::<Failure>().is_some_and(|failure| failure.reason == Reason::NotFound);
            if missing && args.ignore_not_found {
                ui.info(&format!("virtual cluster {} does not exist", args.name));
                return Ok(ExitCode::SUCCESS);
            }
            return Err(error);
        }
    };
    let namespace = cluster.namespace.as_str();
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let secret_name = deploy::names::config_secret(&args.name);
    let unreachable = |error| host::unreachable(&host.context, error);
    refuse_if_protected(&secrets, &secret_name, &args.name).await?;

    let step = ui.step(&format!("Delete virtual cluster {}...", args.name));
    let timeout = Duration::from_secs(args.timeout);
    let dedicated = cluster.placement == "dedicated";
    if dedicated {
        release::stop(&host, &args.name, namespace, timeout).await?;
    }
    remove_extras(&host, args, namespace, dedicated).await?;
    if dedicated {
        // A cluster with a pod of its own has nobody else to clean up after it.
        clean_up(&host, &args.name, namespace, timeout).await?;
    }
    found(secrets.delete(&secret_name, &DeleteParams::default()).await).map_err(unreachable)?;
    if args.force {
        clean_up(&host, &args.name, namespace, timeout).await?;
    }
    if args.wait {
        let gone = poll(timeout, Duration::from_millis(20), async || {
            matches!(secrets.get_opt(&secret_name).await, Ok(None)).then_some(())
        });
        if gone.await.is_none() {
            let left = hub::leftovers(host.client.clone(), namespace, &args.name).await.unwrap_or_default();
            let waits = if left.is_empty() { String::new() } else { format!("; left are {}", shown(&left)) };
            return Err(Failure::timed_out(format!("virtual cluster {} is still being deleted{waits}", args.name))
                .hint("is the hub that runs it running? `alcove delete --force` cleans up without it")
                .into());
        }
        nothing_is_left(&host, &args.name, namespace, timeout).await?;
    }
    step.done(&format!("Successfully deleted virtual cluster {} in namespace {namespace}", args.name));
    if args.delete_configmap {
        let maps: Api<ConfigMap> = Api::namespaced(host.client.clone(), namespace);
        found(maps.delete(&format!("configmap-{}", args.name), &DeleteParams::default()).await).map_err(unreachable)?;
    }
    reach::end(global, &kubeconfig::context_name(&args.name, namespace, &host.context)).await;
    if args.delete_context {
        let context = kubeconfig::context_name(&args.name, namespace, &host.context);
        kubeconfig::change(&host.paths, &Change::Remove(&context, Some(&host.context)))?;
    }
    delete_namespace(&host, args, namespace, ui).await?;
    Ok(ExitCode::SUCCESS)
}

/// The first few of a list.
fn shown(left: &[String]) -> String {
    let more = left.len().saturating_sub(SHOWN);
    let first = left.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// Looks at the host once more: what was deleted may take a moment, and somebody may have finalizers on it.
async fn nothing_is_left(host: &Host, name: &str, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let mut left = Vec::new();
    let gone = poll(timeout, Duration::from_millis(50), async || {
        match hub::leftovers(host.client.clone(), namespace, name).await {
            Ok(found) => {
                left = found;
                left.is_empty().then_some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        }
    });
    match gone.await {
        Some(result) => Ok(result?),
        None => Err(Failure::timed_out(format!("virtual cluster {name} is deleted but left {}", shown(&left)))
            .hint("what waits for a finalizer goes when its owner takes it off, or when you do")
            .into()),
    }
}

/// What only the configuration knows of, and what only Helm knows of.
async fn remove_extras(host: &Host, args: &Delete, namespace: &str, dedicated: bool) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let stored = secrets.get_opt(&deploy::names::config_secret(&args.name)).await;
    let stored = stored.map_err(|error| host::unreachable(&host.context, error))?;
    let text = stored.and_then(|secret| secret.data?.remove("config.yaml")).map(|bytes| bytes.0).unwrap_or_default();
    // A configuration that cannot be read, or is of another version, does not keep the cluster alive.
    let config = ::config::Config::from_yaml("config.yaml", &String::from_utf8_lossy(&text));
    let config = config.unwrap_or_else(|_| ::config::defaults());
    let release = deploy::Release {
        name: &args.name,
        namespace,
        placement: if dedicated { deploy::Placement::Dedicated } else { deploy::Placement::Hub },
        config: &config,
        version: env!("CARGO_PKG_VERSION"),
    };
    release::remove_extras(host, &release, args.keep_pvc).await
}

/// Does what the hub would do, for a host whose hub is gone.
async fn clean_up(host: &Host, name: &str, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let cleaned = poll(timeout, Duration::from_millis(100), async || {
        match hub::remove_host_objects(host.client.clone(), namespace, name).await {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    });
    cleaned
        .await
        .ok_or_else(|| Failure::timed_out(format!("objects of virtual cluster {name} are still being deleted")))??;
    hub::release_config_secret(host.client.clone(), namespace, name).await?;
    Ok(())
}

async fn refuse_if_protected(secrets: &Api<Secret>, secret_name: &str, name: &str) -> anyhow::Result<()> {
    let Ok(Some(secret)) = secrets.get_opt(secret_name).await else { return Ok(()) };
    let annotated = secret
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get("loft.sh/non-deletable"))
        .is_some_and(|v| v == "true");
    let text = secret.data.as_ref().and_then(|data| data.get("config.yaml")).map(|bytes| bytes.0.clone());
    let values =
        text.and_then(|text| ::config::yaml::from_str::<serde_json::Value>(&String::from_utf8_lossy(&text)).ok());
    if values.is_some_and(|values| values["deletion"]["prevent"] == true) {
        return Err(Failure::failed(format!("virtual cluster {name} is protected against deletion"))
            .hint(format!(
                "set deletion.prevent=false first: alcove create {name} --upgrade --set deletion.prevent=false"
            ))
            .into());
    }
    if annotated {
        return Err(Failure::failed(format!("virtual cluster {name} is protected against deletion"))
            .hint(format!("remove the annotation loft.sh/non-deletable from Secret {secret_name} first"))
            .into());
    }
    Ok(())
}

async fn delete_namespace(host: &Host, args: &Delete, namespace: &str, ui: &Ui) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(host.client.clone());
    let unreachable = |error| host::unreachable(&host.context, error);
    let Some(object) = found(namespaces.get(namespace).await).map_err(unreachable)? else { return Ok(()) };
    let ours =
        object.metadata.annotations.unwrap_or_default().get(deploy::CREATED_ANNOTATION).is_some_and(|v| v == "true");
    if !(args.delete_namespace || args.auto_delete_namespace && ours) {
        return Ok(());
    }
    found(namespaces.delete(namespace, &DeleteParams::default()).await).map_err(unreachable)?;
    if args.wait {
        let gone = poll(Duration::from_secs(args.timeout), Duration::from_millis(20), async || {
            matches!(found(namespaces.get(namespace).await), Ok(None)).then_some(())
        });
        if gone.await.is_none() {
            return Err(Failure::timed_out(format!("namespace {namespace} is still being deleted"))
                .hint(format!("see `kubectl get namespace {namespace} -o yaml` for what it waits for"))
                .into());
        }
    }
    ui.done(&format!("Successfully deleted namespace {namespace}"));
    Ok(())
}
