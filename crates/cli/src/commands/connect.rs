//! `alcove connect` and `alcove disconnect`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;
use serde_json::Value;

use crate::args::{Connect, Global};
use crate::clusters;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::kubeconfig::{self, Change};
use crate::manifests::poll;
use crate::ui::Ui;

pub async fn run(global: &Global, args: &Connect, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    to_cluster(&host, &cluster.namespace, args, ui).await
}

/// Connects to a cluster whose namespace is known.
pub async fn to_cluster(host: &Host, namespace: &str, args: &Connect, ui: &Ui) -> anyhow::Result<ExitCode> {
    let context = match &args.kube_config_context_name {
        Some(name) => name.clone(),
        None => kubeconfig::context_name(&args.name, namespace, &host.context),
    };
    let timeout = Duration::from_secs(args.timeout);
    let config = read_kubeconfig(host, namespace, &args.name, timeout).await?;
    let config = kubeconfig::renamed(&config, &context, args.server.as_deref(), args.insecure)?;
    wait_until_it_answers(&config, &args.name, timeout, ui).await?;
    if !args.command.is_empty() {
        return run_command(&config, &args.command);
    }
    if args.print {
        print!("{}", config::yaml::to_string(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    let already = kubeconfig::current_context(&kubeconfig::merged(&host.paths)?) == Some(context.as_str());
    kubeconfig::change(&host.paths, &Change::AddAndSwitch(&config))?;
    if already {
        ui.done(&format!("already connected to virtual cluster {}", args.name));
    } else {
        ui.done(&format!("Switched active kube context to {context}"));
        ui.info("Use `alcove disconnect` to return to the previous context");
        ui.info("Use `kubectl get namespaces` to see the virtual cluster");
    }
    Ok(ExitCode::SUCCESS)
}

/// The kubeconfig in Secret `vc-NAME`; waits for it while the cluster starts.
pub async fn read_kubeconfig(host: &Host, namespace: &str, name: &str, timeout: Duration) -> anyhow::Result<Value> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), namespace);
    let secret_name = deploy::names::kubeconfig_secret(name);
    let secret = poll(timeout, Duration::from_millis(200), async || match secrets.get_opt(&secret_name).await {
        Ok(Some(secret)) => Some(Ok(secret)),
        Ok(None) => None,
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 401 => {
            Some(Err(kube::Error::Api(status)))
        }
        Err(_) => None,
    })
    .await
    .ok_or_else(|| {
        Failure::timed_out(format!("Secret {secret_name} with the kubeconfig did not appear in namespace {namespace}"))
            .hint("is the cluster running? see `alcove list`")
    })?
    .map_err(|error| host::unreachable(&host.context, error))?;
    let bytes = secret
        .data
        .and_then(|mut data| data.remove("config"))
        .ok_or_else(|| Failure::failed(format!("Secret {secret_name} has no key \"config\"")))?;
    let text =
        String::from_utf8(bytes.0).map_err(|_| Failure::failed(format!("Secret {secret_name} does not hold text")))?;
    kubeconfig::parse(&text).with_context(|| format!("Secret {secret_name}"))
}

/// Until the cluster's `default/default` ServiceAccount can be read: then pods can be created.
async fn wait_until_it_answers(config: &Value, name: &str, timeout: Duration, ui: &Ui) -> anyhow::Result<()> {
    let client = host::client(config, None).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
    // Most of the time it answers at once and nothing needs to be said.
    if let Ok(Ok(Some(_))) = tokio::time::timeout(Duration::from_millis(300), accounts.get_opt("default")).await {
        return Ok(());
    }
    let step = ui.step("Waiting for the virtual cluster to come up...");
    let mut last_error = String::new();
    let answered = poll(timeout, Duration::from_millis(50), async || match accounts.get_opt("default").await {
        Ok(Some(_)) => Some(()),
        Ok(None) => None,
        Err(error) => {
            last_error = error.to_string();
            None
        }
    })
    .await;
    match answered {
        Some(()) => {
            step.done("the virtual cluster is up and running");
            Ok(())
        }
        None => {
            let server = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str).unwrap_or_default();
            Err(Failure::timed_out(format!("virtual cluster {name} does not answer at {server}: {last_error}"))
                .hint("if it has another address from here, name it with --server")
                .into())
        }
    }
}

/// Runs the command with a private kubeconfig; its exit code becomes ours.
fn run_command(config: &Value, command: &[String]) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let path = folder.path().join("kubeconfig");
    kubeconfig::write(&path, config)?;
    let status = std::process::Command::new(&command[0]).args(&command[1..]).env("KUBECONFIG", &path).status();
    let status = status.map_err(|error| Failure::not_found(format!("cannot run {}: {error}", command[0])))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Back to the context the virtual cluster's was made from.
pub fn disconnect(global: &Global, ui: &Ui) -> anyhow::Result<ExitCode> {
    let paths = kubeconfig::paths(global.kubeconfig.as_deref());
    let config = kubeconfig::merged(&paths)?;
    let Some(current) = kubeconfig::current_context(&config) else {
        return Err(Failure::invalid("the kubeconfig has no current context; nothing to disconnect from").into());
    };
    let Some((_, _, parent)) = kubeconfig::parse_context(current) else {
        return Err(Failure::invalid(format!("the current context {current:?} is not one of a virtual cluster"))
            .hint("choose a context with `kubectl config use-context NAME`")
            .into());
    };
    if kubeconfig::find(&config, "contexts", parent).is_none() {
        return Err(Failure::not_found(format!("the original context {parent:?} is no longer in the kubeconfig"))
            .hint("choose a context with `kubectl config use-context NAME`")
            .into());
    }
    kubeconfig::change(&paths, &Change::Switch(parent))?;
    ui.done(&format!("Successfully disconnected and switched back to the original context: {parent}"));
    Ok(ExitCode::SUCCESS)
}
