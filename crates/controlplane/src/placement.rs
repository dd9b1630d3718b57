//! What must hold on the host before a cluster is started there.

use apimachinery::Value;
use config::{Config, StoreType};
use deploy::names;
use informer::PatchType;

use crate::host::{Host, HostError, SECRETS, SERVICES, failed};

/// Why a cluster must not be started.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "there is another virtual cluster in namespace {namespace}: {other}; there can be one virtual cluster per namespace"
    )]
    Taken { namespace: String, other: String },
    #[error("the data of this virtual cluster is in a store of kind {before}; it cannot be changed to {now}")]
    Store { before: String, now: &'static str },
    #[error(
        "the data of this virtual cluster is in a store of kind {before}; it is moved to {now} with one replica only"
    )]
    Several { before: String, now: &'static str },
    #[error("the host cluster")]
    Host(#[from] HostError),
}

/// Is the namespace this cluster's, and may its store be the configured one? Remembers the kind of store.
pub async fn check(host: &Host, name: &str, config: &Config) -> Result<(), PlacementError> {
    let namespace = &host.namespace;
    let services: Vec<Value> = host
        .rest
        .list_as(&SERVICES, namespace, "app=vcluster,vcluster.loft.sh/service=true", "")
        .await
        .map_err(failed("list", format!("Services in {namespace}")))?;
    let others = services.iter().map(|service| service.str_at(&["metadata", "name"])).find(|other| *other != name);
    if let Some(other) = others {
        return Err(PlacementError::Taken { namespace: namespace.clone(), other: other.to_string() });
    }
    let secret = names::config_secret(name);
    let object = format!("Secret {namespace}/{secret}");
    let annotations = match host.rest.get(&SECRETS, namespace, &secret).await {
        // The configuration came another way.
        Err(error) if error.is_not_found() => return Ok(()),
        result => result.map_err(failed("read", object.as_str()))?,
    };
    let before = annotations.str_at(&["metadata", "annotations", deploy::STORE_ANNOTATION]);
    let now = config.store_type();
    if !before.is_empty() && !config.store_may_follow(before) {
        return Err(PlacementError::Store { before: before.to_string(), now: now.as_str() });
    }
    let replicas = config.control_plane.stateful_set.high_availability.replicas;
    if before == StoreType::EmbeddedDatabase.as_str() && now == StoreType::EmbeddedEtcd && replicas > 1 {
        return Err(PlacementError::Several { before: before.to_string(), now: now.as_str() });
    }
    if before != now.as_str() {
        let mut patch = apimachinery::json!({"metadata": {"annotations": {}}});
        patch["metadata"]["annotations"][deploy::STORE_ANNOTATION] = now.as_str().into();
        let written = host.rest.patch(&SECRETS, "", namespace, &secret, PatchType::Merge, &patch).await;
        written.map_err(failed("annotate", object))?;
    }
    Ok(())
}
