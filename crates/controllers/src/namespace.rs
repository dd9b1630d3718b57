//! namespace: empties a namespace that is being deleted, then lets it go.
//!
//! Pods go first, since admission and policies that guard them may live in the same namespace (KEP-5080). What remains is
//! told in the namespace's conditions.
//!
//! Follows: `pkg/controller/namespace/deletion`.

use std::collections::BTreeMap;
use std::time::Duration;

use apimachinery::Value;
use informer::{ApiError, Header, Informer, ObjectKey, Outcome, Queue, QueueConfig};
use jiff::Timestamp;
use tracing::debug;

use crate::context::{Context, ReconcileResult, ignore_not_found};
use crate::discovery::{ApiResource, Discovery};
use crate::resources::{NAMESPACES, PODS};
use crate::types::{Condition, Namespace, find_condition, to_value};

const FINALIZER: &str = "kubernetes";

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("namespace-controller", "namespace-controller");
    // Content goes away without an event of the namespace, so it is asked for with growing delays.
    let queue: Queue<ObjectKey> =
        Queue::new(QueueConfig { base_delay: Duration::from_millis(50), max_delay: Duration::from_secs(8) });
    let namespaces: Informer<Namespace> = context.factory.informer(NAMESPACES);
    let adds = queue.clone();
    namespaces.on_change(move |change| {
        if !change.is_deleted() && change.object().metadata.is_deleting() {
            adds.add(change.object().metadata.key());
        }
    });
    let synced = vec![namespaces.synced()];
    context.clone().run("namespace", 5, &queue, synced, move |key| reconcile(context.clone(), namespaces.clone(), key));
}

/// What happened to the content of a namespace.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    discovery_failure: Option<String>,
    errors: Vec<String>,
    /// Resource (`pods.`) and how many objects remain.
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Findings {
    fn is_empty(&self) -> bool {
        *self == Findings::default()
    }

    fn conditions(&self, known: &[Condition], now: Timestamp) -> Vec<Condition> {
        let counted = |counts: &BTreeMap<String, usize>, verb: &str| {
            counts
                .iter()
                .map(|(name, n)| format!("{name} {verb} {n} resource instances"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let mut errors = self.errors.clone();
        errors.sort();
        let rows = [
            (
                "NamespaceDeletionDiscoveryFailure",
                self.discovery_failure.clone().map(|message| ("DiscoveryFailed", message)),
                ("ResourcesDiscovered", "All resources successfully discovered"),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            ),
            (
                "NamespaceDeletionContentFailure",
                (!errors.is_empty()).then(|| {
                    let message = format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        errors.len(),
                        errors.join(", ")
                    );
                    ("ContentDeletionFailed", message)
                }),
                ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            ),
            (
                "NamespaceContentRemaining",
                (!self.remaining.is_empty()).then(|| {
                    (
                        "SomeResourcesRemain",
                        format!("Some resources are remaining: {}", counted(&self.remaining, "has")),
                    )
                }),
                ("ContentRemoved", "All content successfully removed"),
            ),
            (
                "NamespaceFinalizersRemaining",
                (!self.finalizers.is_empty()).then(|| {
                    let all = counted(&self.finalizers, "in");
                    ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {all}"))
                }),
                ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            ),
        ];
        let mut conditions: Vec<Condition> =
            known.iter().filter(|c| !rows.iter().any(|(kind, ..)| c.kind == *kind)).cloned().collect();
        for (kind, failure, (ok_reason, ok_message)) in rows {
            let mut condition = match failure {
                Some((reason, message)) => Condition::new(kind, true, reason, message, now),
                None => Condition::new(kind, false, ok_reason, ok_message, now),
            };
            if let Some(old) = find_condition(known, kind).filter(|old| old.status == condition.status) {
                condition.last_transition_time = old.last_transition_time;
            }
            conditions.push(condition);
        }
        conditions
    }
}

async fn reconcile(context: Context, namespaces: Informer<Namespace>, key: ObjectKey) -> ReconcileResult {
    let Some(cached) = namespaces.get(&key) else { return Ok(Outcome::Done) };
    if !cached.metadata.is_deleting() || !cached.spec.finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Outcome::Done);
    }
    // The cache may lag behind our own writes: deleting is decided on the real thing.
    let namespace: Namespace = match context.rest.get_as(&NAMESPACES, "", &key.name).await {
        Ok(namespace) => namespace,
        Err(error) if error.is_not_found() => return Ok(Outcome::Done),
        Err(error) => return Err(error.into()),
    };
    if namespace.metadata.uid != cached.metadata.uid
        || !namespace.metadata.is_deleting()
        || !namespace.spec.finalizers.iter().any(|f| f == FINALIZER)
    {
        return Ok(Outcome::Done);
    }
    let findings = delete_all(&context, &key.name).await?;
    let conditions = findings.conditions(&namespace.status.conditions, context.now());
    let same = namespace.status.phase == "Terminating"
        && conditions.len() == namespace.status.conditions.len()
        && conditions.iter().all(|c| {
            find_condition(&namespace.status.conditions, &c.kind)
                .is_some_and(|old| old.status == c.status && old.reason == c.reason && old.message == c.message)
        });
    if !same {
        let mut status = Value::object();
        status["phase"] = "Terminating".into();
        status["conditions"] = to_value(&conditions);
        let mut metadata = namespace.metadata.clone();
        metadata.resource_version = Default::default();
        let mut patch = Value::object();
        patch.set_at(&["metadata", "uid"], metadata.uid.as_str().into());
        patch["status"] = status;
        let written =
            context.rest.patch(&NAMESPACES, "status", "", &key.name, informer::PatchType::Merge, &patch).await;
        ignore_not_found(written)?;
    }
    if !findings.is_empty() {
        debug!(namespace = %key.name, ?findings, "namespace still has content");
        return Ok(Outcome::Retry);
    }
    finalize(&context, &key.name).await?;
    Ok(Outcome::Done)
}

/// Takes our finalizer off through `/finalize`, which lets the API server remove the namespace.
async fn finalize(context: &Context, name: &str) -> Result<(), ApiError> {
    let mut namespace = match context.rest.get(&NAMESPACES, "", name).await {
        Ok(namespace) => namespace,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let finalizers: Vec<Value> =
        namespace.array_at(&["spec", "finalizers"]).iter().filter(|f| f.as_str() != Some(FINALIZER)).cloned().collect();
    namespace.set_at(&["spec", "finalizers"], Value::Array(finalizers));
    ignore_not_found(context.rest.update(&NAMESPACES, "finalize", "", name, &namespace).await)
}

async fn delete_all(context: &Context, namespace: &str) -> Result<Findings, ApiError> {
    let mut findings = Findings::default();
    let discovery = Discovery::read(&context.rest).await?;
    if !discovery.failed.is_empty() {
        let all: Vec<String> = discovery.failed.iter().map(|(gv, why)| format!("{gv}: {why}")).collect();
        findings.discovery_failure = Some(format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            all.len(),
            all.join(", ")
        ));
    }
    let deletable: Vec<ApiResource> =
        discovery.preferred().filter(|r| r.namespaced && r.can(&["delete", "list"])).cloned().collect();
    let (pods, others): (Vec<_>, Vec<_>) = deletable.into_iter().partition(|r| r.resource == PODS);
    for resource in pods {
        delete_resource(context, namespace, &resource, &mut findings).await;
    }
    // Pods that remain, or could not be deleted, keep everything else: their guards must outlive them.
    if !findings.remaining.is_empty() || !findings.errors.is_empty() {
        return Ok(findings);
    }
    for resource in others {
        delete_resource(context, namespace, &resource, &mut findings).await;
    }
    Ok(findings)
}

async fn delete_resource(context: &Context, namespace: &str, resource: &ApiResource, findings: &mut Findings) {
    let target = &resource.resource;
    let list = || context.rest.list_as::<Header>(target, namespace, "", "");
    let result = async {
        // Most resources have nothing in most namespaces: one LIST instead of a write and a LIST.
        let mut items = list().await?;
        if items.is_empty() {
            return Ok(items);
        }
        if resource.can(&["deletecollection"]) {
            context.rest.delete_collection(target, namespace).await?;
        } else {
            for item in &items {
                let options = informer::DeleteOptions::background();
                ignore_not_found(context.rest.delete(target, namespace, &item.metadata.name, &options).await)?;
            }
        }
        items = list().await?;
        Ok::<_, ApiError>(items)
    };
    let items = match result.await {
        Ok(items) => items,
        // 405: listed in discovery, but not deletable after all; nothing is kept by it.
        Err(error) if error.is_not_found() || error.code() == 405 => return,
        Err(error) => {
            findings.errors.push(error.to_string());
            return;
        }
    };
    if items.is_empty() {
        return;
    }
    findings.remaining.insert(format!("{}.{}", target.resource, target.group), items.len());
    for finalizer in items.iter().flat_map(|i| &i.metadata.finalizers) {
        *findings.finalizers.entry(finalizer.to_string()).or_insert(0) += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_remains() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let findings = Findings {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/f".to_owned(), 1)].into(),
            ..Findings::default()
        };
        let first = findings.conditions(&[], now);
        let row = |conditions: &[Condition], kind: &str| {
            let c = find_condition(conditions, kind).unwrap();
            (c.status.to_string(), c.reason.to_string(), c.message.to_string(), c.last_transition_time.unwrap())
        };
        assert_eq!(first.len(), 5);
        assert_eq!(
            row(&first, "NamespaceContentRemaining").2,
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            row(&first, "NamespaceFinalizersRemaining").2,
            "Some content in the namespace has finalizers remaining: example.com/f in 1 resource instances"
        );
        let second = Findings::default().conditions(&first, later);
        assert_eq!(row(&second, "NamespaceContentRemaining").3, later, "the status changed");
        assert_eq!(row(&second, "NamespaceDeletionContentFailure").3, now, "the status is the same");
        assert_eq!(row(&second, "NamespaceContentRemaining").1, "ContentRemoved");
    }
}
