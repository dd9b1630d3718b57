//! Priority: the number behind a pod's priority class.
//!
//! Follows: `plugin/pkg/admission/priority`, `pkg/registry/scheduling/rest`.

use std::sync::Arc;

use apimachinery::gvk::GroupVersionResource;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;
use apimachinery::{Value, json};
use async_trait::async_trait;

use super::{AdmissionPlugin, AdmissionRequest, Operation};
use crate::storage::Storage;

const GROUP: &str = "scheduling.k8s.io";
const PREEMPT_LOWER: &str = "PreemptLowerPriority";

/// Creates the classes that every cluster has.
pub async fn ensure_system_classes(storage: &Arc<Storage>) -> StatusResult<()> {
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000_i64,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name, "generation": 1},
            "value": value, "description": description, "preemptionPolicy": PREEMPT_LOWER,
        });
        crate::bootstrap::ensure(storage, GROUP, "v1", "priorityclasses", class).await?;
    }
    Ok(())
}

pub struct Priority;

impl Priority {
    /// The default class: the one of lowest value when there are several.
    async fn default_class(request: &AdmissionRequest<'_>) -> StatusResult<Option<Value>> {
        let classes = request.list(GROUP, "v1", "priorityclasses", "").await?;
        let defaults = classes.into_iter().filter(|c| c["globalDefault"] == true);
        Ok(defaults.min_by_key(|c| c["value"].as_i64().unwrap_or(0)))
    }

    async fn admit_pod(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        let pod = request.object.as_ref().unwrap_or(&Value::Null);
        let name = pod.str_at(&["spec", "priorityClassName"]).to_owned();
        let class = if name.is_empty() {
            Self::default_class(request).await?
        } else {
            let class = request.find(GROUP, "v1", "priorityclasses", "", &name).await?;
            let missing = || request.forbidden(format!("no PriorityClass with name {name} was found"));
            Some(class.ok_or_else(missing)?)
        };
        let (name, priority, policy) = match &class {
            Some(class) => (
                class.name().to_owned(),
                class["value"].as_i64().unwrap_or(0),
                class["preemptionPolicy"].as_str().unwrap_or(PREEMPT_LOWER).to_owned(),
            ),
            None => (String::new(), 0, PREEMPT_LOWER.to_owned()),
        };
        if let Some(given) = pod.at(&["spec", "priority"]).and_then(Value::as_i64)
            && given != priority
        {
            return Err(request.forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            )));
        }
        if let Some(given) = pod.at(&["spec", "preemptionPolicy"]).and_then(Value::as_str)
            && given != policy
        {
            return Err(request.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        if let Some(pod) = request.object.as_mut() {
            if !name.is_empty() {
                pod.set_at(&["spec", "priorityClassName"], name.into());
            }
            pod.set_at(&["spec", "priority"], priority.into());
            pod.set_at(&["spec", "preemptionPolicy"], policy.into());
        }
        Ok(())
    }
}

#[async_trait]
impl AdmissionPlugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation, gvr: &GroupVersionResource, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && subresource.is_empty()
            && matches!((gvr.group.as_str(), gvr.resource.as_str()), ("", "pods") | (GROUP, "priorityclasses"))
    }

    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if !request.is("", "pods") {
            return Ok(());
        }
        if request.operation == Operation::Create {
            return self.admit_pod(request).await;
        }
        // What was computed at creation stays.
        if let (Some(pod), Some(old)) = (request.object.as_mut(), request.old_object.as_ref()) {
            for key in ["priority", "preemptionPolicy"] {
                let path = ["spec", key];
                if pod.at(&path).is_none_or(Value::is_null)
                    && let Some(value) = old.at(&path)
                {
                    pod.set_at(&path, value.clone());
                }
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> StatusResult<()> {
        if request.is("", "pods") {
            return Ok(());
        }
        let Some(class) = request.object.as_ref().filter(|c| c["globalDefault"] == true) else { return Ok(()) };
        if let Some(default) = Self::default_class(request).await?
            && (request.operation == Operation::Create || default.name() != class.name())
        {
            let name = default.name();
            let text = format!("PriorityClass {name} is already marked as default. Only one default can exist");
            return Err(request.forbidden(text));
        }
        Ok(())
    }
}
