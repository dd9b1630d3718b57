//! Finding virtual clusters on a host: StatefulSets and Deployments with `app=vcluster`, and config Secrets of a hub.

use std::collections::BTreeMap;

use apimachinery::time::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::host::Host;

/// Status of a cluster whose workload somebody has scaled to nothing.
pub const SCALED_DOWN: &str = "ScaledDown";

/// One virtual cluster as found on the host.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub name: String,
    pub namespace: String,
    pub status: String,
    pub version: String,
    pub placement: &'static str,
    pub created: Option<Timestamp>,
}

impl Cluster {
    pub fn age_seconds(&self) -> u64 {
        self.created.map_or(0, |created| now().since(created).as_secs())
    }

    /// As `list -o json` prints it.
    pub fn to_value(&self, connected: bool) -> Value {
        json!({
            "Name": self.name,
            "Namespace": self.namespace,
            "Created": self.created.map(Timestamp::to_rfc3339),
            "AgeSeconds": self.age_seconds(),
            "Version": self.version,
            "Status": self.status,
            "Connected": connected,
        })
    }
}

/// All virtual clusters of the host, or of one namespace, by namespace and name.
pub async fn list(host: &Host, namespace: Option<&str>) -> anyhow::Result<Vec<Cluster>> {
    let client = || host.client.clone();
    let mut found: BTreeMap<(String, String), Cluster> = BTreeMap::new();
    let params = ListParams::default().labels("app=vcluster");
    let hub_params =
        ListParams::default().labels(&format!("app=vcluster,{}={}", deploy::PLACEMENT_LABEL, deploy::PLACEMENT_HUB));
    let (secrets, sets, deployments): (Api<Secret>, Api<StatefulSet>, Api<Deployment>) = match namespace {
        Some(namespace) => (
            Api::namespaced(client(), namespace),
            Api::namespaced(client(), namespace),
            Api::namespaced(client(), namespace),
        ),
        None => (Api::all(client()), Api::all(client()), Api::all(client())),
    };
    let unreachable = |error| crate::host::unreachable(&host.context, error);
    let (secrets, sets, deployments) =
        tokio::try_join!(secrets.list(&hub_params), sets.list(&params), deployments.list(&params))
            .map_err(unreachable)?;
    for secret in secrets {
        let Some(name) = secret.labels().get("release").cloned() else { continue };
        if secret.name_any() != deploy::names::config_secret(&name) {
            continue;
        }
        let status = if secret.metadata.deletion_timestamp.is_some() {
            "Terminating".to_string()
        } else {
            secret.annotations().get(deploy::STATUS_ANNOTATION).cloned().unwrap_or_else(|| "Pending".into())
        };
        add(&mut found, name, "hub", status, &secret);
    }
    for set in sets {
        let Some(name) = set.labels().get("release").cloned().filter(|name| *name == set.name_any()) else { continue };
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        let status = workload_status(set.annotations(), wanted, ready);
        add(&mut found, name, "dedicated", status, &set);
    }
    for deployment in deployments {
        let Some(name) = deployment.labels().get("release").cloned().filter(|name| *name == deployment.name_any())
        else {
            continue;
        };
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        let status = workload_status(deployment.annotations(), wanted, ready);
        add(&mut found, name, "dedicated", status, &deployment);
    }
    Ok(found.into_values().collect())
}

fn workload_status(annotations: &BTreeMap<String, String>, wanted: i32, ready: i32) -> String {
    match (annotations.get("loft.sh/paused").map(String::as_str), wanted, ready) {
        (Some("true"), _, _) => "Paused",
        (_, 0, _) => SCALED_DOWN,
        (_, _, 0) => "Pending",
        _ => "Running",
    }
    .to_string()
}

fn add<K: ResourceExt>(
    found: &mut BTreeMap<(String, String), Cluster>,
    name: String,
    placement: &'static str,
    status: String,
    object: &K,
) {
    let namespace = object.namespace().unwrap_or_default();
    let chart = object.labels().get("chart").cloned().unwrap_or_default();
    let version = chart.trim_start_matches("alcove-").trim_start_matches("vcluster-").to_string();
    let created = object.creation_timestamp().and_then(|time| Timestamp::parse(&time.0.to_string()));
    found.entry((namespace.clone(), name.clone())).or_insert(Cluster {
        name,
        namespace,
        status,
        version,
        placement,
        created,
    });
}

/// The one cluster of this name, in `namespace` or anywhere.
pub async fn find(host: &Host, name: &str, namespace: Option<&str>) -> anyhow::Result<Cluster> {
    let all = list(host, namespace).await?;
    let mut matching: Vec<&Cluster> = all.iter().filter(|cluster| cluster.name == name).collect();
    match matching.len() {
        1 => Ok(matching.remove(0).clone()),
        0 => {
            let names: Vec<&str> = all.iter().map(|cluster| cluster.name.as_str()).collect();
            let hint = if names.is_empty() {
                format!("create it with `alcove create {name}`")
            } else {
                format!("there are: {}", names.join(", "))
            };
            let place = namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
            Err(Failure::not_found(format!("virtual cluster {name} does not exist{place} (host {})", host.context))
                .hint(hint)
                .into())
        }
        _ => {
            let namespaces: Vec<&str> = matching.iter().map(|cluster| cluster.namespace.as_str()).collect();
            Err(Failure::invalid(format!("there are {} virtual clusters named {name}", matching.len()))
                .hint(format!("say which one with --namespace: {}", namespaces.join(", ")))
                .into())
        }
    }
}

/// The time of the machine.
pub fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_seconds(since_epoch.as_secs() as i64)
}
