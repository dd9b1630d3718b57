//! Which host cluster is meant, and clients for it and for virtual clusters.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::args::Global;
use crate::failure::Failure;
use crate::home::Home;
use crate::kubeconfig;

/// The host cluster that commands work on.
pub struct Host {
    pub client: kube::Client,
    /// Its context; becomes a part of the names of virtual clusters' contexts.
    pub context: String,
    /// The kubeconfig files in effect.
    pub paths: Vec<PathBuf>,
}

/// Context name of the development host in a kubeconfig.
pub const DEVELOPMENT_CONTEXT: &str = "alcove";

/// `--context`, else the current context (of a virtual cluster: its host's), else the development host of `alcove up`.
pub async fn connect(global: &Global) -> anyhow::Result<Host> {
    let paths = kubeconfig::paths(global.kubeconfig.as_deref());
    let config = kubeconfig::merged(&paths)?;
    let current = global.context.as_deref().or(kubeconfig::current_context(&config));
    let context = match current {
        Some(name) => match kubeconfig::parse_context(name) {
            Some((_, _, parent)) if global.context.is_none() => parent.to_string(),
            _ => name.to_string(),
        },
        None => {
            let home = Home::new(global.data_dir.as_deref())?;
            let own = home.host_kubeconfig();
            if own.exists() && home.control_socket().exists() {
                let config = kubeconfig::read(&own)?;
                let client = client(&config, None).await?;
                return Ok(Host { client, context: DEVELOPMENT_CONTEXT.to_string(), paths });
            }
            // In a pod the host is the cluster that runs it.
            if let Ok(mut config) = kube::Config::incluster() {
                config.connect_timeout = Some(Duration::from_secs(10));
                let client = kube::Client::try_from(config)
                    .map_err(|error| Failure::failed(format!("cannot make a client: {error}")))?;
                return Ok(Host { client, context: "in-cluster".to_string(), paths });
            }
            return Err(Failure::invalid("there is no host cluster: the kubeconfig has no current context")
                .hint("start a development host with `alcove up`, or choose a cluster with --context or --kubeconfig")
                .into());
        }
    };
    if kubeconfig::find(&config, "contexts", &context).is_none() {
        return Err(Failure::invalid(format!("the kubeconfig has no context {context:?}"))
            .hint(format!("contexts: {}", context_names(&config)))
            .into());
    }
    let client = client(&config, Some(&context)).await?;
    Ok(Host { client, context, paths })
}

fn context_names(config: &Value) -> String {
    let names: Vec<&str> = kubeconfig::entries(config, "contexts").filter_map(|entry| entry["name"].as_str()).collect();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}

/// A client for a context of a kubeconfig. Nothing is sent yet.
pub async fn client(config: &Value, context: Option<&str>) -> anyhow::Result<kube::Client> {
    let options = kube::config::KubeConfigOptions { context: context.map(str::to_string), ..Default::default() };
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig::to_kube(config)?, &options)
        .await
        .map_err(|error| Failure::invalid(format!("the kubeconfig is not usable: {error}")))?;
    config.connect_timeout = Some(Duration::from_secs(10));
    kube::Client::try_from(config).map_err(|error| Failure::failed(format!("cannot make a client: {error}")).into())
}

/// Turns the error of a first request to the host into advice.
pub fn unreachable(context: &str, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 401 || status.code == 403 => {
            Failure::failed(format!("the host cluster {context:?} refused: {}", status.message)).into()
        }
        kube::Error::Api(status) => {
            Failure::failed(format!("the host cluster {context:?} answered: {}", status.message)).into()
        }
        error => {
            let hint = if context == DEVELOPMENT_CONTEXT {
                "is it running? start it with `alcove up`".to_string()
            } else {
                format!("check `kubectl --context {context} get namespaces`")
            };
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            Failure::failed(format!("cannot reach the host cluster {context:?}: {text}")).hint(hint).into()
        }
    }
}
