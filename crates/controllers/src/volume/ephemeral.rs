//! ephemeral-volume: makes the claims of pods' generic ephemeral volumes.
//!
//! Follows: `pkg/controller/volume/ephemeral`; KEP-1698.

use apimachinery::{Value, json};
use informer::events::ObjectReference;
use informer::{Informer, ObjectKey, Outcome};

use super::ephemeral_claim_name;
use crate::context::{Context, ReconcileError, ReconcileResult, key_queue};
use crate::pod;
use crate::resources::PERSISTENT_VOLUME_CLAIMS;
use crate::types::{PersistentVolumeClaim, Pod, controller_reference, raw_value, to_value};

/// The claims that a pod's ephemeral volumes need.
fn claims(pod: &Pod) -> Vec<Value> {
    let volumes = pod.spec.volumes.iter().filter_map(|v| Some((v, v.ephemeral.as_ref()?)));
    volumes
        .map(|(volume, source)| {
            let template = raw_value(&source.volume_claim_template);
            let mut claim = json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": {
                "name": ephemeral_claim_name(pod, &volume.name), "namespace": pod.metadata.namespace.as_str()}});
            for field in ["labels", "annotations"] {
                if let Some(value) = template.at(&["metadata", field]).filter(|v| !v.is_null()) {
                    claim["metadata"][field] = value.clone();
                }
            }
            let owner = controller_reference("v1", "Pod", &pod.metadata);
            claim["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
            claim["spec"] = template["spec"].clone();
            claim
        })
        .collect()
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("ephemeral-volume-controller", "ephemeral_volume");
    let queue = key_queue();
    let existing: Informer<PersistentVolumeClaim> = context.factory.informer(PERSISTENT_VOLUME_CLAIMS);
    let pods = context.pods();
    let adds = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if !change.is_deleted() && pod::is_active(pod) && pod.spec.volumes.iter().any(|v| v.ephemeral.is_some()) {
            adds.add(pod.metadata.key());
        }
    });
    let adds = queue.clone();
    existing.on_change(move |change| {
        let claim = &change.object().metadata;
        if change.is_deleted()
            && let Some(owner) = claim.controller().filter(|o| o.kind == "Pod")
        {
            adds.add(ObjectKey::new(claim.namespace.clone(), owner.name.clone()));
        }
    });
    let synced = vec![pods.synced(), existing.synced()];
    context.clone().run("ephemeral-volume", 2, &queue, synced, move |key| {
        reconcile(context.clone(), pods.clone(), existing.clone(), key)
    });
}

async fn reconcile(
    context: Context,
    pods: Informer<Pod>,
    existing: Informer<PersistentVolumeClaim>,
    key: ObjectKey,
) -> ReconcileResult {
    let Some(pod) = pods.get(&key).filter(|p| pod::is_active(p)) else { return Ok(Outcome::Done) };
    for claim in claims(&pod) {
        let name = claim.str_at(&["metadata", "name"]).to_owned();
        if let Some(known) = existing.get(&ObjectKey::new(key.namespace.clone(), name.as_str())) {
            if known.metadata.is_controlled_by(&pod.metadata.uid) {
                continue;
            }
            let message = format!("PVC {}/{name} was not created for pod {key} (pod is not owner)", key.namespace);
            return Err(ReconcileError::Other(message));
        }
        match context.rest.create(&PERSISTENT_VOLUME_CLAIMS, &key.namespace, &claim).await {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => return Ok(Outcome::Retry),
            Err(error) if error.is_namespace_terminating() => return Ok(Outcome::Done),
            Err(error) => {
                let reference = ObjectReference::new("v1", "Pod", &pod.metadata);
                context.recorder.warning(&reference, "FailedBinding", format!("ephemeral volume {name}: {error}"));
                return Err(error.into());
            }
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_after_pod_and_volume_and_owned_by_the_pod() {
        let pod: Pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"volumes": [
            {"name": "a", "emptyDir": {}},
            {"name": "b", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"x": "y"}}, "spec": {"z": 1}}}}]}})
        .to()
        .unwrap();
        let claims = claims(&pod);
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].str_at(&["metadata", "name"]), "p-b");
        assert_eq!(claims[0]["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(claims[0]["spec"]["z"], 1);
    }
}
