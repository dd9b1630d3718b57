//! resourceclaim: makes ResourceClaims from templates for pods, and takes reservations back from pods that have ended.
//!
//! Follows: `pkg/controller/resourceclaim`.

use std::sync::Arc;

use apimachinery::json::Str;
use apimachinery::{Value, json};
use informer::events::ObjectReference;
use informer::{DeleteOptions, Header, Informer, ObjectKey, ObjectMeta, Outcome, PatchType, null_default};
use serde::Deserialize;

use crate::context::{BY_CONTROLLER, Context, ReconcileError, ReconcileResult, ignore_not_found};
use crate::ownership::add_owner_index;
use crate::pod;
use crate::resources::{PODS, RESOURCE_CLAIM_TEMPLATES, RESOURCE_CLAIMS};
use crate::types::{Pod, cached, controller_reference, to_value};

const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ResourceClaim {
    metadata: ObjectMeta,
    status: ClaimStatus,
}

cached!(ResourceClaim);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClaimStatus {
    allocation: Option<Header>,
    #[serde(deserialize_with = "null_default")]
    reserved_for: Vec<Consumer>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Consumer {
    api_group: Str,
    resource: Str,
    name: Str,
    uid: Str,
}

/// A claim made from a template for an entry of a pod.
fn make_claim(pod: &Pod, entry: &str, template: &Value) -> Value {
    let mut claim = json!({"kind": "ResourceClaim", "apiVersion": "resource.k8s.io/v1", "metadata": {
        "generateName": format!("{}-{entry}-", pod.metadata.name), "namespace": pod.metadata.namespace.as_str()}});
    for field in ["labels", "annotations"] {
        if let Some(value) = template.at(&["spec", "metadata", field]).filter(|v| !v.is_null()) {
            claim["metadata"][field] = value.clone();
        }
    }
    claim.set_at(&["metadata", "annotations", POD_CLAIM_NAME], entry.into());
    let owner = controller_reference("v1", "Pod", &pod.metadata);
    claim["metadata"]["ownerReferences"] = Value::Array(vec![to_value(&owner)]);
    claim["spec"] = template["spec"]["spec"].clone();
    claim
}

/// Whether a pod still needs its claims.
fn is_done(pod: &Pod) -> bool {
    pod::is_terminal(pod) || (pod.metadata.is_deleting() && pod.spec.node_name.is_empty())
}

struct Controller {
    context: Context,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Pod(ObjectKey),
    Claim(ObjectKey),
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("resource-claim-controller", "resource_claim");
    let queue: informer::Queue<Item> = informer::Queue::default();
    let claims: Informer<ResourceClaim> = context.factory.informer(RESOURCE_CLAIMS);
    add_owner_index(&claims);
    let pods = context.pods();
    let (adds, all) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        if pod.spec.resource_claims.is_empty() {
            return;
        }
        if change.is_deleted() || is_done(pod) {
            for claim in all.list_namespace(&pod.metadata.namespace) {
                if claim.status.reserved_for.iter().any(|c| c.uid == pod.metadata.uid)
                    || claim.metadata.is_controlled_by(&pod.metadata.uid)
                {
                    adds.add(Item::Claim(claim.metadata.key()));
                }
            }
        } else {
            adds.add(Item::Pod(pod.metadata.key()));
        }
    });
    let adds = queue.clone();
    claims.on_change(move |change| {
        let claim = &change.object().metadata;
        if let Some(owner) = claim.controller().filter(|o| o.kind == "Pod") {
            adds.add(Item::Pod(ObjectKey::new(claim.namespace.clone(), owner.name.clone())));
        }
        if !change.is_deleted() {
            adds.add(Item::Claim(claim.key()));
        }
    });
    let synced = vec![pods.synced(), claims.synced()];
    let controller = Arc::new(Controller { context: context.clone(), pods, claims });
    context.run("resourceclaim", 2, &queue, synced, move |item| {
        let controller = controller.clone();
        async move {
            match item {
                Item::Pod(key) => controller.sync_pod(key).await,
                Item::Claim(key) => controller.sync_claim(key).await,
            }
        }
    });
}

impl Controller {
    async fn sync_pod(&self, key: ObjectKey) -> ReconcileResult {
        let Some(pod) = self.pods.get(&key) else { return Ok(Outcome::Done) };
        if is_done(&pod) || pod.metadata.is_deleting() {
            return Ok(Outcome::Done);
        }
        let owned = self.claims.by_index(BY_CONTROLLER, &pod.metadata.uid);
        let mut statuses = Vec::new();
        for entry in pod.spec.resource_claims.iter().filter(|e| !e.resource_claim_template_name.is_empty()) {
            let told = pod.status.resource_claim_statuses.iter().find(|s| s.name == entry.name);
            if told.is_some() {
                continue;
            }
            let made = owned.iter().find(|c| c.metadata.annotations.get(POD_CLAIM_NAME) == Some(&entry.name));
            let name = match made {
                Some(claim) => claim.metadata.name.to_string(),
                None => self.make(&pod, &entry.name, &entry.resource_claim_template_name).await?,
            };
            statuses.push(json!({"name": entry.name.as_str(), "resourceClaimName": name}));
        }
        if !statuses.is_empty() {
            let mut patch = json!({"metadata": {"uid": pod.metadata.uid.as_str()}});
            patch.set_at(&["status", "resourceClaimStatuses"], Value::Array(statuses));
            let written =
                self.context.rest.patch(&PODS, "status", &key.namespace, &key.name, PatchType::Strategic, &patch).await;
            ignore_not_found(written)?;
        }
        Ok(Outcome::Done)
    }

    async fn make(&self, pod: &Pod, entry: &str, template: &str) -> Result<String, ReconcileError> {
        let namespace = &pod.metadata.namespace;
        // Seen neither here nor in the pod's status: the API server decides whether one was made a moment ago.
        let live: Vec<Value> = self.context.rest.list_as(&RESOURCE_CLAIMS, namespace, "", "").await?;
        let ours = live.iter().find(|c| {
            c.str_at(&["metadata", "annotations", POD_CLAIM_NAME]) == entry
                && c.array_at(&["metadata", "ownerReferences"]).iter().any(|o| o.str_at(&["uid"]) == pod.metadata.uid)
        });
        if let Some(claim) = ours {
            return Ok(claim.str_at(&["metadata", "name"]).to_owned());
        }
        let result = async {
            let template = self.context.rest.get(&RESOURCE_CLAIM_TEMPLATES, namespace, template).await?;
            self.context.rest.create(&RESOURCE_CLAIMS, namespace, &make_claim(pod, entry, &template)).await
        };
        match result.await {
            Ok(created) => Ok(created.str_at(&["metadata", "name"]).to_owned()),
            Err(error) => {
                let reference = ObjectReference::new("v1", "Pod", &pod.metadata);
                let message = format!("PodResourceClaim {entry}: {error}");
                self.context.recorder.warning(&reference, "FailedResourceClaimCreation", message);
                Err(error.into())
            }
        }
    }

    /// Removes reservations of pods that have ended or are gone, and with the last one the allocation.
    async fn sync_claim(&self, key: ObjectKey) -> ReconcileResult {
        let Some(claim) = self.claims.get(&key) else { return Ok(Outcome::Done) };
        let mut gone: Vec<Str> = Vec::new();
        for consumer in claim.status.reserved_for.iter().filter(|c| c.api_group.is_empty() && c.resource == "pods") {
            let pod = self.pods.get(&ObjectKey::new(key.namespace.clone(), consumer.name.clone()));
            let ended = match pod {
                Some(pod) if pod.metadata.uid == consumer.uid => is_done(&pod),
                _ => match self.context.rest.get_as::<Header>(&PODS, &key.namespace, &consumer.name).await {
                    Ok(live) => live.metadata.uid != consumer.uid,
                    Err(error) if error.is_not_found() => true,
                    Err(error) => return Err(error.into()),
                },
            };
            if ended {
                gone.push(consumer.uid.clone());
            }
        }
        let mut metadata = claim.metadata.clone();
        let left = claim.status.reserved_for.len() - gone.len();
        let deallocate = claim.status.allocation.is_some() && left == 0 && (!gone.is_empty() || metadata.is_deleting());
        if !gone.is_empty() || deallocate {
            let live = self.context.rest.get(&RESOURCE_CLAIMS, &key.namespace, &key.name).await?;
            let keep: Vec<Value> = live
                .array_at(&["status", "reservedFor"])
                .iter()
                .filter(|c| !gone.iter().any(|uid| uid == c.str_at(&["uid"])))
                .cloned()
                .collect();
            let mut patch = Value::object();
            patch["reservedFor"] = if keep.is_empty() { Value::Null } else { Value::Array(keep) };
            if deallocate {
                patch["allocation"] = Value::Null;
                patch["devices"] = Value::Null;
            }
            let written = self.context.patch_status(&RESOURCE_CLAIMS, &metadata, patch).await?;
            metadata.resource_version = written.str_at(&["metadata", "resourceVersion"]).into();
        }
        if metadata.is_deleting() && left == 0 && metadata.has_finalizer(FINALIZER) {
            let keep = metadata.finalizers.iter().map(|f| f.as_str()).filter(|f| *f != FINALIZER).collect();
            ignore_not_found(self.context.set_finalizers(&RESOURCE_CLAIMS, &metadata, keep).await)?;
            return Ok(Outcome::Done);
        }
        // A claim made for a pod that has ended is of no use to anyone.
        let owner = claim.metadata.controller().filter(|o| o.kind == "Pod");
        if let Some(owner) = owner.filter(|_| !claim.metadata.is_deleting()) {
            let pod = self.pods.get(&ObjectKey::new(key.namespace.clone(), owner.name.clone()));
            if pod.is_some_and(|p| p.metadata.uid == owner.uid && is_done(&p)) {
                self.context.delete(&RESOURCE_CLAIMS, &key, &DeleteOptions::uid(claim.metadata.uid.clone())).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_made_from_templates_and_owned_by_their_pod() {
        let pod: Pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}).to().unwrap();
        let template = json!({"spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}}});
        let claim = make_claim(&pod, "gpu", &template);
        assert_eq!(claim.str_at(&["metadata", "generateName"]), "p-gpu-");
        assert_eq!(claim.str_at(&["metadata", "annotations", POD_CLAIM_NAME]), "gpu");
        assert_eq!(claim["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(claim["spec"], json!({"devices": {}}));
        let done: Pod = json!({"status": {"phase": "Failed"}}).to().unwrap();
        assert!(is_done(&done) && !is_done(&pod));
    }
}
