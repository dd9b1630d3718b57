//! root-ca-certificate-publisher: keeps the `kube-root-ca.crt` ConfigMap in every namespace.
//!
//! Follows: `pkg/controller/certificates/rootcacertpublisher/publisher.go`.

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::{Cached, Informer, ObjectKey, ObjectMeta, Outcome, PatchType, Source, StrMap, null_default};
use serde::Deserialize;

use crate::context::{Context, ReconcileResult, ignore_not_found, key_queue};
use crate::resources::{CONFIG_MAPS, NAMESPACES};
use crate::types::Namespace;

pub(crate) const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigMap {
    metadata: ObjectMeta,
    #[serde(deserialize_with = "null_default")]
    data: StrMap,
}

impl Cached for ConfigMap {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// What to write for the ConfigMap as it is.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Create,
    Repair,
}

fn plan(config_map: Option<&ConfigMap>, ca: &str) -> Plan {
    match config_map {
        None => Plan::Create,
        Some(c)
            if c.data.len() == 1
                && c.data.get("ca.crt") == Some(ca)
                && c.metadata.annotations.contains_key(DESCRIPTION_KEY) =>
        {
            Plan::Nothing
        }
        Some(_) => Plan::Repair,
    }
}

pub(crate) fn start(context: &Context) {
    let Some(ca) = context.config.root_ca.clone() else { return };
    let context = context.for_controller("root-ca-cert-publisher", "root-ca-cert-publisher");
    let queue = key_queue();
    let namespaces: Informer<Namespace> = context.factory.informer(NAMESPACES);
    // Only this one ConfigMap per namespace is watched: the others can be large and many.
    let source = Source::all(CONFIG_MAPS).fields(Str::from(format!("metadata.name={NAME}")));
    let config_maps: Informer<ConfigMap> = context.factory.informer(source);
    let adds = queue.clone();
    namespaces.on_change(move |change| {
        if !change.is_deleted() {
            adds.add(change.object().metadata.key());
        }
    });
    let repairs = queue.clone();
    config_maps.on_change(move |change| repairs.add(ObjectKey::cluster(change.object().metadata.namespace.clone())));
    let synced = vec![namespaces.synced(), config_maps.synced()];
    context.clone().run("root-ca-certificate-publisher", 2, &queue, synced, move |key| {
        reconcile(context.clone(), namespaces.clone(), config_maps.clone(), ca.clone(), key)
    });
}

async fn reconcile(
    context: Context,
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
    ca: String,
    key: ObjectKey,
) -> ReconcileResult {
    let Some(namespace) = namespaces.get(&key) else { return Ok(Outcome::Done) };
    if namespace.status.phase == "Terminating" || namespace.metadata.is_deleting() {
        return Ok(Outcome::Done);
    }
    let known = config_maps.get(&ObjectKey::new(key.name.clone(), NAME));
    let mut metadata = json!({"name": NAME, "namespace": key.name.as_str()});
    metadata.set_at(&["annotations", DESCRIPTION_KEY], DESCRIPTION.into());
    match plan(known.as_deref(), &ca) {
        Plan::Nothing => Ok(Outcome::Done),
        Plan::Create => {
            let mut object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"ca.crt": ca}});
            object["metadata"] = metadata;
            match context.rest.create(&CONFIG_MAPS, &key.name, &object).await {
                Ok(_) => Ok(Outcome::Done),
                Err(e) if e.is_already_exists() || e.is_not_found() || e.is_namespace_terminating() => {
                    Ok(Outcome::Done)
                }
                Err(error) => Err(error.into()),
            }
        }
        Plan::Repair => {
            let mut patch = Value::object();
            patch.set_at(&["metadata", "annotations", DESCRIPTION_KEY], DESCRIPTION.into());
            for (other, _) in known.iter().flat_map(|c| c.data.iter()) {
                patch.set_at(&["data", other], Value::Null);
            }
            patch.set_at(&["data", "ca.crt"], ca.into());
            let written = context.rest.patch(&CONFIG_MAPS, "", &key.name, NAME, PatchType::Merge, &patch).await;
            ignore_not_found(written)?;
            Ok(Outcome::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_map_is_created_and_repaired() {
        let config_map = |data: Value, annotated: bool| -> ConfigMap {
            let mut object = json!({"metadata": {"name": NAME}});
            object["data"] = data;
            if annotated {
                object.set_at(&["metadata", "annotations", DESCRIPTION_KEY], "x".into());
            }
            object.to().unwrap()
        };
        for (known, want) in [
            (None, Plan::Create),
            (Some(config_map(json!({"ca.crt": "ca"}), true)), Plan::Nothing),
            (Some(config_map(json!({"ca.crt": "ca"}), false)), Plan::Repair),
            (Some(config_map(json!({"ca.crt": "old"}), true)), Plan::Repair),
            (Some(config_map(json!({"ca.crt": "ca", "more": ""}), true)), Plan::Repair),
        ] {
            assert_eq!(plan(known.as_ref(), "ca"), want, "{known:?}");
        }
    }
}
