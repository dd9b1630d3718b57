//! `alcove connect` and `alcove disconnect`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::Value;

use crate::args::{Connect, Global};
use crate::clusters::{self, Cluster};
use crate::commands::pause;
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::kubeconfig::{self, Change};
use crate::manifests::poll;
use crate::reach::{self, Forward, Way};
use crate::signals;
use crate::ui::Ui;

pub async fn run(global: &Global, args: &Connect, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    to_cluster(global, &host, &cluster, args, ui).await
}

/// Connects to a cluster that was found.
pub async fn to_cluster(
    global: &Global,
    host: &Host,
    cluster: &Cluster,
    args: &Connect,
    ui: &Ui,
) -> anyhow::Result<ExitCode> {
    let context = match &args.kube_config_context_name {
        Some(name) => name.clone(),
        None => kubeconfig::context_name(&args.name, &cluster.namespace, &host.context),
    };
    let timeout = Duration::from_secs(args.timeout);
    if pause::is_paused(host, cluster).await? {
        let step = ui.step(&format!("Resume virtual cluster {}...", args.name));
        pause::start_again(host, cluster, timeout).await?;
        step.done(&format!("Successfully resumed virtual cluster {} in namespace {}", args.name, cluster.namespace));
    }
    let config = read_kubeconfig(host, &cluster.namespace, &args.name, timeout).await?;
    let way = match &args.server {
        Some(server) => Way::Server(server.clone()),
        None => reach::choose(host, cluster, &config, timeout, Some(ui)).await?,
    };
    // One command and a foreground that is asked for hold the forwarded port themselves.
    let mut held = None;
    let stays = way == Way::Forward && args.command.is_empty() && !args.background_proxy;
    let server = match &way {
        Way::Direct => None,
        Way::Server(server) => Some(server.clone()),
        Way::Forward => {
            let port = if stays || !args.command.is_empty() {
                let forward = Forward::start(host.client.clone(), cluster, args.address, args.local_port).await?;
                let port = forward.port;
                held = Some(forward);
                port
            } else {
                reach::in_background(global, host, cluster, &context, args.address, args.local_port).await?
            };
            Some(format!(
                "https://{}:{port}",
                if args.address.is_unspecified() { "127.0.0.1".into() } else { args.address.to_string() }
            ))
        }
    };
    let mut config = kubeconfig::renamed(&config, &context, server.as_deref(), args.insecure)?;
    wait_until_it_answers(&config, &args.name, timeout, ui).await?;
    if let Some(account) = &args.service_account {
        let token = service_account_token(&config, account, args, ui).await?;
        config["users"][0]["user"] = serde_json::json!({"token": token});
    }
    if !args.command.is_empty() {
        let code = run_command(&config, &args.command).await;
        drop(held);
        return code;
    }
    if args.print {
        print!("{}", config::yaml::to_string(&config)?);
        if stays {
            signals::wait().await;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let before = kubeconfig::current_context(&kubeconfig::merged(&host.paths)?).map(str::to_owned);
    let already = before.as_deref() == Some(context.as_str());
    kubeconfig::change(&host.paths, &Change::AddAndSwitch(&config))?;
    if already {
        ui.done(&format!("already connected to virtual cluster {}", args.name));
    } else {
        ui.done(&format!("Switched active kube context to {context}"));
        ui.info("Use `alcove disconnect` to return to the previous context");
        ui.info("Use `kubectl get namespaces` to see the virtual cluster");
    }
    if stays {
        ui.warn("the connection lasts as long as this command: use CTRL+C to end it");
        signals::wait().await;
        if let Some(before) = before.filter(|before| *before != context) {
            kubeconfig::change(&host.paths, &Change::Switch(&before))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A token of a service account of the virtual cluster, which is made and bound when a role for it is named.
async fn service_account_token(config: &Value, account: &str, args: &Connect, ui: &Ui) -> anyhow::Result<String> {
    let (namespace, name) = account.split_once('/').unwrap_or(("default", account));
    let client = host::client(config, None).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let said = |error: kube::Error| match error {
        kube::Error::Api(status) => Failure::failed(status.message.clone()),
        error => Failure::failed(error.to_string()),
    };
    if let Some(role) = &args.cluster_role {
        if accounts.get_opt(name).await.map_err(said)?.is_none() {
            let object: ServiceAccount = serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?;
            accounts.create(&PostParams::default(), &object).await.map_err(said)?;
            ui.info(&format!("Created service account {namespace}/{name}"));
        }
        let binding = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("alcove:{namespace}:{name}:{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
        });
        crate::manifests::apply(&client, &binding, "").await?;
    }
    // Ten years, when nothing is said.
    let seconds = if args.token_expiration > 0 { args.token_expiration } else { 10 * 365 * 24 * 3600 };
    let request: TokenRequest = serde_json::from_value(
        serde_json::json!({"metadata": {}, "spec": {"audiences": [], "expirationSeconds": seconds}}),
    )?;
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
    let answer = answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 404 => {
            Failure::not_found(format!("service account {namespace}/{name} does not exist in the virtual cluster"))
                .hint("name a ClusterRole with --cluster-role and it is made")
        }
        error => said(error),
    })?;
    let token = answer.status.and_then(|status| status.token).filter(|token| !token.is_empty());
    Ok(token.ok_or_else(|| Failure::failed("the virtual cluster gave no token"))?)
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
async fn run_command(config: &Value, command: &[String]) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let path = folder.path().join("kubeconfig");
    kubeconfig::write(&path, config)?;
    // Without blocking: a forwarded port is served meanwhile.
    let status = tokio::process::Command::new(&command[0]).args(&command[1..]).env("KUBECONFIG", &path).status().await;
    let status = status.map_err(|error| Failure::not_found(format!("cannot run {}: {error}", command[0])))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Back to the context the virtual cluster's was made from.
pub async fn disconnect(global: &Global, ui: &Ui) -> anyhow::Result<ExitCode> {
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
    reach::end(global, current).await;
    ui.done(&format!("Successfully disconnected and switched back to the original context: {parent}"));
    Ok(ExitCode::SUCCESS)
}
