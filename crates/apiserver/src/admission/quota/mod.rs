//! ResourceQuota: a namespace uses no more than its quotas allow.
//!
//! What is limited is `status.hard`; a quota without it limits nothing yet. What is used is raised before an object is
//! written, so two writers never share the same rest; the quota controller lowers it again. Runs last.
//!
//! Follows: `k8s.io/apiserver/pkg/admission/plugin/resourcequota`.

pub mod usage;

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::{GroupVersionKind, GroupVersionResource};
use apimachinery::meta::ObjectMeta;
use apimachinery::status::{Status, StatusResult};
use async_trait::async_trait;

use super::pod_resources::ResourceList;
use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::cache::Entry;
use crate::managed_fields;
use crate::storage::WriteFailure;

/// Attempts against other writers of the same quota.
const ATTEMPTS: usize = 50;

pub struct ResourceQuota;

/// A quota that has something to do with a request.
struct Charged {
    entry: Arc<Entry>,
    /// The quota with the new `status.used`.
    changed: Value,
}

impl ResourceQuota {
    async fn quotas(request: &AdmissionRequest<'_>) -> StatusResult<Vec<Arc<Entry>>> {
        let Some(resource) = request.storage.registry.get("", "v1", "resourcequotas") else { return Ok(Vec::new()) };
        request.storage.known(&resource, &request.namespace).await
    }

    /// What has to be charged, or the refusal.
    fn check(request: &AdmissionRequest<'_>, quotas: &[Arc<Entry>]) -> StatusResult<Vec<Charged>> {
        let (group, resource) = (request.gvr.group.as_str(), request.gvr.resource.as_str());
        let Some(object) = &request.object else { return Ok(Vec::new()) };
        let old = request.old_object.as_ref().filter(|_| request.operation == Operation::Update);
        let mut interesting = Vec::new();
        for entry in quotas {
            let quota = entry.to_value();
            let hard = ResourceList::read(&quota["status"]["hard"]);
            let names: Vec<String> = hard.0.keys().cloned().collect();
            let limited = usage::matching(group, resource, &names);
            if limited.is_empty() || !usage::in_scope(&quota, group, resource, object) {
                continue;
            }
            if resource == "pods"
                && group.is_empty()
                && let Some(missing) = usage::unspecified(object, &limited)
            {
                return Err(request.forbidden(format!("failed quota: {}: must specify {missing}", quota.name())));
            }
            let used = ResourceList::read(&quota["status"]["used"]);
            if limited.iter().any(|n| used.get(n).is_none()) {
                let text = format!("status unknown for quota: {}, resources: {}", quota.name(), limited.join(","));
                return Err(request.forbidden(text));
            }
            interesting.push((entry, quota, hard, used));
        }
        if interesting.is_empty() {
            return Ok(Vec::new());
        }
        let all = usage::usage(group, resource, object);
        let negative: Vec<&str> = all.0.iter().filter(|(_, q)| q.sign() < 0).map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            let text = format!("quota usage is negative for resource(s): {}", negative.join(","));
            return Err(request.forbidden(text));
        }
        let mut charged = Vec::new();
        for (entry, mut quota, hard, used) in interesting {
            let mut delta = all.clone();
            if let Some(old) = old.filter(|o| usage::in_scope(&quota, group, resource, o)) {
                delta.sub(&usage::usage(group, resource, old));
            }
            // What becomes less is given back by the controller.
            delta.0.retain(|name, q| q.sign() > 0 && hard.get(name).is_some());
            if delta.is_empty() {
                continue;
            }
            let mut total = used.clone();
            total.add(&delta);
            let exceeded: Vec<String> = delta.0.keys().filter(|n| total.get(n) > hard.get(n)).cloned().collect();
            if !exceeded.is_empty() {
                return Err(request.forbidden(format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    quota.name(),
                    shown(&delta.mask(&exceeded)),
                    shown(&used.mask(&exceeded)),
                    shown(&hard.mask(&exceeded))
                )));
            }
            let before = quota.clone();
            quota.set_at(&["status", "used"], total.to_value());
            let kind = GroupVersionKind::new("", "v1", "ResourceQuota");
            managed_fields::track_system_update(&kind, "ResourceQuota", "status", &before, &mut quota);
            charged.push(Charged { entry: entry.clone(), changed: quota });
        }
        Ok(charged)
    }
}

/// `requests.cpu=2,requests.memory=2Gi`.
fn shown(list: &ResourceList) -> String {
    list.0.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect::<Vec<_>>().join(",")
}

#[async_trait]
impl AdmissionPlugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        match operation {
            Operation::Create => subresource.is_empty(),
            Operation::Update => {
                gvr.group.is_empty()
                    && match gvr.resource.as_str() {
                        "pods" => matches!(subresource, "" | "resize"),
                        "services" | "persistentvolumeclaims" => subresource.is_empty(),
                        _ => false,
                    }
            }
            Operation::Delete | Operation::Connect => false,
        }
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.namespace.is_empty() || (request.gvr.group.is_empty() && request.gvr.resource == "namespaces") {
            return Ok(());
        }
        if request.operation == Operation::Update && request.is("", "pods") {
            let ends = |pod: &Option<Value>| pod.as_ref().is_some_and(usage::is_terminating);
            if ends(&request.object) == ends(&request.old_object) {
                return Ok(());
            }
        }
        let Some(resource) = request.storage.registry.get("", "v1", "resourcequotas") else { return Ok(()) };
        let mut done = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let mut quotas = Self::quotas(request).await?;
            quotas.retain(|q| !done.contains(q.name()));
            let charged = Self::check(request, &quotas)?;
            if request.dry_run || charged.is_empty() {
                return Ok(());
            }
            let mut lost = false;
            for charge in charged {
                let (namespace, name) = (charge.entry.namespace().to_owned(), charge.entry.name().to_owned());
                let revision = charge.entry.revision;
                match request.storage.replace(&resource, &namespace, &name, &charge.changed, revision).await {
                    Ok(_) => {
                        done.insert(name);
                    }
                    Err(WriteFailure::Conflict(_)) => {
                        lost = true;
                        break;
                    }
                    Err(WriteFailure::Status(status)) => return Err(status),
                }
            }
            if !lost {
                return Ok(());
            }
        }
        let text = "unable to update quota usage because of too many other writers, please try again";
        Err(Box::new(Status::conflict(&request.gvr.group_resource(), &request.name, text)))
    }
}
