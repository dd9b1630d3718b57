//! `alcove list` and `alcove describe`.

use std::process::ExitCode;

use apimachinery::time::{Timestamp, human_duration};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::args::{Describe, Global, List, Output};
use crate::clusters::{self, Cluster};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::{kubeconfig, table};

/// Is the current context this cluster's?
fn is_connected(host: &Host, cluster: &Cluster) -> bool {
    let config = kubeconfig::merged(&host.paths).unwrap_or_else(|_| kubeconfig::empty());
    kubeconfig::current_context(&config)
        == Some(&kubeconfig::context_name(&cluster.name, &cluster.namespace, &host.context))
}

pub async fn run(global: &Global, args: &List) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let clusters = clusters::list(&host, global.namespace.as_deref()).await?;
    let values: Vec<Value> = clusters.iter().map(|cluster| cluster.to_value(is_connected(&host, cluster))).collect();
    match args.output {
        Output::Json => println!("{:#}", json!(values)),
        Output::Yaml => print!("{}", config::yaml::to_string(&values)?),
        Output::Table => {
            let rows: Vec<Vec<String>> = clusters
                .iter()
                .map(|cluster| {
                    vec![
                        cluster.name.clone(),
                        cluster.namespace.clone(),
                        cluster.status.clone(),
                        cluster.version.clone(),
                        if is_connected(&host, cluster) { "True".into() } else { String::new() },
                        cluster.created.map_or_else(String::new, |at| human_duration(clusters::now().since(at))),
                    ]
                })
                .collect();
            print!("{}", table::render(&["NAME", "NAMESPACE", "STATUS", "VERSION", "CONNECTED", "AGE"], &rows));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn describe(global: &Global, args: &Describe) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let text = config_text(&host, &cluster).await?;
    if args.config_only {
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let description = description(&host, &cluster).await?;
    match args.output {
        Output::Json => println!("{description:#}"),
        Output::Yaml => print!("{}", config::yaml::to_string(&description)?),
        Output::Table => {
            for key in ["Name", "Namespace", "Version", "Placement", "Backing Store", "Created", "Status", "Images"] {
                println!("{:<15} {}", format!("{key}:"), shown(&description[key]));
            }
            println!("\n------------------- vcluster.yaml -------------------");
            print!("{text}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A value in a line of text.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) if !all.is_empty() => all.iter().map(shown).collect::<Vec<_>>().join(", "),
        _ => "-".to_string(),
    }
}

/// The text of the cluster's `vcluster.yaml`.
async fn config_text(host: &Host, cluster: &Cluster) -> anyhow::Result<String> {
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let secret_name = deploy::names::config_secret(&cluster.name);
    let secret = secrets.get_opt(&secret_name).await.map_err(|error| host::unreachable(&host.context, error))?;
    let secret = secret.ok_or_else(|| {
        Failure::not_found(format!("Secret {secret_name} does not exist in namespace {}", cluster.namespace))
    })?;
    let bytes =
        secret.data.as_ref().and_then(|data| data.get("config.yaml")).map(|bytes| bytes.0.clone()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let values: Value = config::yaml::from_str(&text).unwrap_or(Value::Null);
    // Kept as one canonical text, shown as people write it.
    Ok(if values.is_object() { config::yaml::to_string(&values)? } else { text })
}

/// Images of the control plane's pods; none in a hub.
async fn images(host: &Host, cluster: &Cluster) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(host.client.clone(), &cluster.namespace);
    let params = ListParams::default().labels(&format!("app=vcluster,release={}", cluster.name));
    let list = pods.list(&params).await.map(|list| list.items).unwrap_or_default();
    let mut images: Vec<String> =
        list.into_iter().filter_map(|pod| pod.spec).flat_map(|spec| spec.containers).filter_map(|c| c.image).collect();
    images.sort();
    images.dedup();
    images
}

/// All that is known about a cluster.
pub async fn description(host: &Host, cluster: &Cluster) -> anyhow::Result<Value> {
    let text = config_text(host, cluster).await?;
    let config = config::Config::from_yaml(&deploy::names::config_secret(&cluster.name), &text);
    let store = config.map(|config| config.store_type().as_str()).unwrap_or("unknown");
    let values: Value = config::yaml::from_str(&text).unwrap_or(Value::Null);
    Ok(json!({
        "Name": cluster.name,
        "Namespace": cluster.namespace,
        "Version": cluster.version,
        "Placement": cluster.placement,
        "Backing Store": store,
        "Created": cluster.created.map(Timestamp::to_rfc3339),
        "Status": cluster.status,
        "Images": images(host, cluster).await,
        "vcluster.yaml": values,
    }))
}
