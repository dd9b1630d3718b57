//! `alcove hub install` and `uninstall`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args as ClapArgs;
use deploy::hub::{HubRelease, HubValues, hub_objects};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams};
use serde_json::Value;

use crate::args::{Global, Values};
use crate::commands::config;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::{self, found};
use crate::release;
use crate::ui::Ui;

/// Where a hub goes when no namespace is named.
const NAMESPACE: &str = "alcove-system";

#[derive(Clone, Debug, ClapArgs)]
pub struct Install {
    /// Name of the release
    #[arg(default_value = "alcove-hub")]
    pub name: String,
    /// Values of charts/alcove-hub
    #[command(flatten)]
    pub values: Values,
    /// Print the objects instead of applying them
    #[arg(long)]
    pub print: bool,
    /// Wait until it is ready
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Uninstall {
    /// Name of the release
    #[arg(default_value = "alcove-hub")]
    pub name: String,
}

/// Everything of the release, with its namespace first.
fn objects(name: &str, namespace: &str, values: &HubValues) -> Vec<Value> {
    let release = HubRelease { name, namespace, values, version: env!("CARGO_PKG_VERSION") };
    let mut objects = vec![serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
    })];
    objects.extend(hub_objects(&release));
    objects
}

pub async fn install(global: &Global, args: &Install, ui: &Ui) -> anyhow::Result<ExitCode> {
    deploy::names::check_name(&args.name).map_err(|error| Failure::invalid(error.to_string()))?;
    let values = HubValues::load(&config::sources(&args.values)?, &args.values.set).map_err(|error| {
        Failure::invalid(format!("the values are not valid\n{error}"))
            .hint("charts/alcove-hub/values.yaml has all keys")
    })?;
    let namespace = global.namespace.as_deref().unwrap_or(NAMESPACE);
    let objects = objects(&args.name, namespace, &values);
    if args.print {
        for object in &objects {
            print!("---\n{}", ::config::yaml::to_string(object)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let host = host::connect(global).await?;
    refuse_second_hub(&host, args, namespace).await?;
    let step = ui.step(&format!("Install hub {}...", args.name));
    for object in &objects {
        // A namespace that exists may be somebody else's to describe.
        if object["kind"] == "Namespace" && exists(&host, namespace).await? {
            continue;
        }
        manifests::apply(&host.client, object, namespace).await?;
    }
    if args.wait {
        step.update("Waiting for the hub to come up...");
        let timeout = Duration::from_secs(args.timeout);
        release::wait_until_deployed(&host, &args.name, namespace, deploy::HUB_APP, timeout, &step).await?;
    }
    step.done(&format!("Successfully installed hub {} in namespace {namespace}", args.name));
    ui.info("Use `alcove create NAME` to create a virtual cluster in it");
    Ok(ExitCode::SUCCESS)
}

async fn exists(host: &Host, namespace: &str) -> anyhow::Result<bool> {
    let namespaces: Api<Namespace> = Api::all(host.client.clone());
    let existing = found(namespaces.get(namespace).await).map_err(|error| host::unreachable(&host.context, error))?;
    Ok(existing.is_some())
}

/// Two hubs would run the same clusters.
async fn refuse_second_hub(host: &Host, args: &Install, namespace: &str) -> anyhow::Result<()> {
    let hubs = release::hubs(host).await.map_err(|error| host::unreachable(&host.context, error))?;
    let Some((other_namespace, other)) = hubs.into_iter().find(|hub| *hub != (namespace.into(), args.name.clone()))
    else {
        return Ok(());
    };
    Err(Failure::exists(format!("the host has a hub already: {other} in namespace {other_namespace}"))
        .hint(format!("change it with `alcove hub install {other} -n {other_namespace}`"))
        .into())
}

pub async fn uninstall(global: &Global, args: &Uninstall, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let namespace = global.namespace.as_deref().unwrap_or(NAMESPACE);
    // What it may have beyond the defaults goes too.
    let sets = ["hostPathMapper.enabled=true".to_string()];
    let values = HubValues::load(&[], &sets).map_err(|error| Failure::failed(error.to_string()))?;
    let hubs = release::hubs(&host).await.map_err(|error| host::unreachable(&host.context, error))?;
    if !hubs.contains(&(namespace.to_string(), args.name.clone())) {
        return Err(Failure::not_found(format!("there is no hub {} in namespace {namespace}", args.name)).into());
    }
    let step = ui.step(&format!("Uninstall hub {}...", args.name));
    let objects = objects(&args.name, namespace, &values);
    for object in objects.iter().rev() {
        if matches!(object["kind"].as_str(), Some("Namespace" | "PersistentVolumeClaim")) {
            continue;
        }
        let api = manifests::api_for(&host.client, object, namespace).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        found(api.delete(name, &DeleteParams::background()).await)
            .map_err(|error| Failure::failed(format!("cannot delete {}: {error}", manifests::title(object))))?;
    }
    step.done(&format!("Successfully uninstalled hub {} from namespace {namespace}", args.name));
    ui.info(&format!("its data stays in PersistentVolumeClaim {} of namespace {namespace}", args.name));
    Ok(ExitCode::SUCCESS)
}
