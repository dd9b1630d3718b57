//! horizontal-pod-autoscaler: sets the size of workloads by what their pods use.
//!
//! Reads `metrics.k8s.io`; a metric that cannot be read (no metrics server, custom and external metrics, which need adapters)
//! is told in the conditions, and nothing is scaled by it.
//!
//! Follows: `pkg/controller/podautoscaler`.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::{Value, json};
use informer::clock::format_seconds;
use informer::events::ObjectReference;
use informer::{ApiError, Informer, ObjectKey, Outcome, Resource};
use jiff::Timestamp;
use parking_lot::Mutex;

use self::plan::{Autoscaler, Goal, Memory, Metric, PodSample, ResourceMetric};
use crate::context::{Context, ReconcileError, ReconcileResult, ignore_not_found, key_queue};
use crate::discovery::Kinds;
use crate::pod;
use crate::resources::{HORIZONTAL_POD_AUTOSCALERS, PODS};
use crate::types::{Condition, Pod, ResourceList, put_condition, to_value};

const POD_METRICS: Resource = Resource::new("metrics.k8s.io", "v1beta1", "pods");
/// `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);

struct Controller {
    context: Context,
    autoscalers: Informer<Autoscaler>,
    memories: Mutex<HashMap<ObjectKey, Memory>>,
    /// The resources of what is scaled.
    kinds: Kinds,
}

pub(crate) fn start(context: &Context) {
    let context = context.for_controller("horizontal-pod-autoscaler", "horizontal-pod-autoscaler");
    let queue = key_queue();
    let autoscalers: Informer<Autoscaler> = context.factory.informer(HORIZONTAL_POD_AUTOSCALERS);
    let adds = queue.clone();
    autoscalers.on_change(move |change| match &change {
        // Our own status brings nothing new: the period does.
        informer::Change::Updated { old, new } if old.spec == new.spec => {}
        other => adds.add(other.object().metadata.key()),
    });
    let synced = vec![autoscalers.synced()];
    let controller = Arc::new(Controller {
        context: context.clone(),
        autoscalers,
        memories: Mutex::default(),
        kinds: Kinds::default(),
    });
    context.run("horizontal-pod-autoscaler", 5, &queue, synced, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

/// The status as it is being made.
struct Draft {
    current: i64,
    desired: i64,
    scaled_at: Option<Timestamp>,
    metrics: Vec<Value>,
    conditions: Vec<Condition>,
    now: Timestamp,
}

impl Draft {
    fn set(&mut self, kind: &str, status: bool, reason: &str, message: impl Into<String>) {
        put_condition(&mut self.conditions, Condition::new(kind, status, reason, message.into(), self.now));
    }
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> ReconcileResult {
        let Some(autoscaler) = self.autoscalers.get(&key) else {
            self.memories.lock().remove(&key);
            return Ok(Outcome::Done);
        };
        let now = self.context.now();
        let mut draft = Draft {
            current: autoscaler.status.current_replicas,
            desired: autoscaler.status.desired_replicas,
            scaled_at: autoscaler.status.last_scale_time,
            metrics: Vec::new(),
            conditions: autoscaler.status.conditions.clone(),
            now,
        };
        let result = self.scale(&key, &autoscaler, &mut draft).await;
        self.write_status(&autoscaler, draft).await?;
        if let Err(error) = result {
            tracing::debug!(autoscaler = %key, error = &error as &dyn std::error::Error, "could not scale");
            // Someone else changed the target in the same moment: a whole period is too long to wait for that.
            if matches!(&error, ReconcileError::Api(error) if error.is_conflict()) {
                return Ok(Outcome::Retry);
            }
        }
        Ok(Outcome::After(PERIOD))
    }

    async fn target(&self, api_version: &str, kind: &str) -> Result<Resource, ReconcileError> {
        let found = self.kinds.resource(&self.context.rest, api_version, kind).await?;
        found.ok_or_else(|| {
            ReconcileError::Other(format!("no matches for kind \"{kind}\" in version \"{api_version}\""))
        })
    }

    async fn scale(&self, key: &ObjectKey, autoscaler: &Autoscaler, draft: &mut Draft) -> Result<(), ReconcileError> {
        let context = &self.context;
        let reference = ObjectReference::new("autoscaling/v2", "HorizontalPodAutoscaler", &autoscaler.metadata);
        let target = &autoscaler.spec.scale_target_ref;
        let scale = async {
            let resource = self.target(&target.api_version, &target.kind).await?;
            let path = resource.path(&key.namespace, &target.name, "scale");
            let scale = context.rest.get_path(&path, "application/json").await?;
            Ok::<_, ReconcileError>((resource, scale))
        };
        let (resource, mut scale) = match scale.await {
            Ok(found) => found,
            Err(error) => {
                let text = text(&error);
                context.recorder.warning(&reference, "FailedGetScale", text.as_str());
                let message = format!("the HPA controller was unable to get the target's current scale: {text}");
                draft.set("AbleToScale", false, "FailedGetScale", message);
                return Err(error);
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        draft.set("AbleToScale", true, "SucceededGetScale", message);
        let current = scale.at(&["spec", "replicas"]).and_then(Value::as_i64).unwrap_or(0);
        draft.current = scale.at(&["status", "replicas"]).and_then(Value::as_i64).unwrap_or(current);
        let (min, max) = (autoscaler.spec.min(), autoscaler.spec.max_replicas);
        let (desired, reason) = if current == 0 && min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            draft.set("ScalingActive", false, "ScalingDisabled", message);
            draft.desired = 0;
            return Ok(());
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let Some((proposed, name)) = self.by_metrics(key, autoscaler, &scale, current, draft, &reference).await?
            else {
                return Ok(());
            };
            let decision = {
                let mut memories = self.memories.lock();
                let memory = memories.entry(key.clone()).or_default();
                if memory.recommendations.is_empty() {
                    // After a restart the size that is counts as recommended, or it would fall at once.
                    memory.recommendations.push((draft.now, current));
                }
                plan::decide(&autoscaler.spec, memory, current, proposed, draft.now)
            };
            if decision.stabilized {
                let message =
                    "recent recommendations were higher than current one, applying the highest recent recommendation";
                draft.set("AbleToScale", true, "ScaleDownStabilized", message);
            } else {
                draft.set("AbleToScale", true, "ReadyForNewScale", "recommended size matches current size");
            }
            match decision.limit {
                Some((reason, message)) => draft.set("ScalingLimited", true, reason, message),
                None => {
                    let message = "the desired count is within the acceptable range";
                    draft.set("ScalingLimited", false, "DesiredWithinRange", message);
                }
            }
            let above = decision.replicas > current;
            (decision.replicas, if above { format!("{name} above target") } else { "All metrics below target".into() })
        };
        draft.desired = desired;
        if desired == current {
            return Ok(());
        }
        scale.set_at(&["spec", "replicas"], desired.into());
        match context.rest.update(&resource, "scale", &key.namespace, &target.name, &scale).await {
            Ok(_) => {
                let message = format!("the HPA controller was able to update the target scale to {desired}");
                draft.set("AbleToScale", true, "SucceededRescale", message);
                draft.scaled_at = Some(draft.now);
                let message = format!("New size: {desired}; reason: {reason}");
                context.recorder.normal(&reference, "SuccessfulRescale", message);
                self.memories.lock().entry(key.clone()).or_default().changes.push((draft.now, desired - current));
                Ok(())
            }
            Err(error) => {
                let message = format!("New size: {desired}; reason: {reason}; error: {error}");
                context.recorder.warning(&reference, "FailedRescale", message);
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                draft.set("AbleToScale", false, "FailedUpdateScale", message);
                Err(error.into())
            }
        }
    }

    /// The largest size that a metric asks for, and which; `None` when no metric can be read.
    async fn by_metrics(
        &self,
        key: &ObjectKey,
        autoscaler: &Autoscaler,
        scale: &Value,
        current: i64,
        draft: &mut Draft,
        reference: &ObjectReference,
    ) -> Result<Option<(i64, String)>, ReconcileError> {
        let selector = scale.str_at(&["status", "selector"]).to_owned();
        if selector.is_empty() {
            let message = "the HPA target's scale is missing a selector";
            draft.set("ScalingActive", false, "InvalidSelector", message);
            self.context.recorder.warning(reference, "SelectorRequired", "selector is required");
            return Ok(None);
        }
        let mut best: Option<(i64, String)> = None;
        let mut first_failure: Option<(String, String)> = None;
        for metric in &autoscaler.spec.metrics {
            match self.measure(key, metric, &selector, current).await {
                Ok((replicas, name, status)) => {
                    draft.metrics.push(status);
                    if best.as_ref().is_none_or(|(known, _)| replicas > *known) {
                        best = Some((replicas, name));
                    }
                }
                Err(failure) => drop(first_failure.get_or_insert(failure)),
            }
        }
        if let Some((reason, message)) = first_failure {
            self.context.recorder.warning(reference, &reason, message.as_str());
            // Growing by the metrics that work is safe; shrinking is not, since the others may ask for more.
            if best.as_ref().is_none_or(|(replicas, _)| *replicas < current) {
                let message = format!("the HPA was unable to compute the replica count: {message}");
                draft.set("ScalingActive", false, &reason, message);
                return Ok(None);
            }
        }
        if let Some((_, name)) = &best {
            let message = format!("the HPA was able to successfully calculate a replica count from {name}");
            draft.set("ScalingActive", true, "ValidMetricFound", message);
        }
        Ok(best)
    }

    /// One metric: (replicas, name, status), or why it cannot be used (reason, message).
    async fn measure(
        &self,
        key: &ObjectKey,
        metric: &Metric,
        selector: &str,
        current: i64,
    ) -> Result<(i64, String, Value), (String, String)> {
        let (spec, container, reason): (Option<&ResourceMetric>, Option<&str>, &str) = match metric.kind.as_str() {
            "Resource" => (metric.resource.as_ref(), None, "FailedGetResourceMetric"),
            "ContainerResource" => {
                let spec = metric.container_resource.as_ref();
                (spec, spec.map(|s| s.container.as_str()), "FailedGetContainerResourceMetric")
            }
            other => {
                let api = if other == "External" { "external" } else { "custom" };
                let message = format!("unable to get {} metric: no {api} metrics API registered", other.to_lowercase());
                return Err((format!("FailedGet{other}Metric"), message));
            }
        };
        let Some(spec) = spec else {
            return Err(("InvalidMetricSourceType".to_owned(), "the metric has no source".to_owned()));
        };
        let fail = |error: &ApiError| {
            let message = format!(
                "failed to get {} utilization: unable to get metrics for resource {}: unable to fetch metrics from resource metrics API: {error}",
                spec.name, spec.name
            );
            (reason.to_owned(), message)
        };
        let rest = &self.context.rest;
        let metrics: Vec<Value> =
            rest.list_as(&POD_METRICS, &key.namespace, selector, "").await.map_err(|e| fail(&e))?;
        let pods: Vec<Value> = rest.list_as(&PODS, &key.namespace, selector, "").await.map_err(|e| fail(&e))?;
        let usage: HashMap<&str, &Value> = metrics.iter().map(|m| (m.str_at(&["metadata", "name"]), m)).collect();
        let mut samples = Vec::new();
        for tree in &pods {
            let Ok(pod) = tree.to::<Pod>() else { continue };
            if !pod::is_active(&pod) {
                continue;
            }
            let wanted = |name: &str| container.is_none_or(|c| c == name);
            let of = |list: &ResourceList| list.get(&spec.name).and_then(milli).unwrap_or(0);
            let request =
                pod.spec.containers.iter().filter(|c| wanted(&c.name)).map(|c| of(&c.resources.requests)).sum();
            let used = usage.get(pod.metadata.name.as_str()).map(|m| {
                let containers = m.array_at(&["containers"]).iter().filter(|c| wanted(c.str_at(&["name"])));
                containers.filter_map(|c| milli(c.str_at(&["usage", &spec.name]))).sum()
            });
            samples.push(PodSample { ready: pod::is_ready(&pod), usage: used, request });
        }
        let goal = match (spec.target.average_utilization, spec.target.average_value.as_deref().and_then(milli)) {
            (Some(percent), _) => Goal::Utilization(percent),
            (None, Some(milli)) => Goal::Average(milli),
            (None, None) => return Err((reason.to_owned(), "the metric has no target".to_owned())),
        };
        let Some((replicas, utilization, average)) = plan::replicas_for(&samples, goal, current) else {
            let message = format!(
                "failed to get {} utilization: did not receive metrics for targeted pods (pods might be unready)",
                spec.name
            );
            return Err((reason.to_owned(), message));
        };
        let mut value = json!({"averageValue": format!("{average}m")});
        if let Some(utilization) = utilization {
            value["averageUtilization"] = utilization.into();
        }
        let mut part = json!({"name": spec.name.as_str()});
        part["current"] = value;
        let mut status = json!({"type": metric.kind.as_str()});
        let (field, name) = match container {
            Some(container) => {
                part["container"] = container.into();
                ("containerResource", format!("{} container resource utilization (percentage of request)", spec.name))
            }
            None => ("resource", format!("{} resource utilization (percentage of request)", spec.name)),
        };
        status[field] = part;
        Ok((replicas, name, status))
    }

    async fn write_status(&self, autoscaler: &Autoscaler, draft: Draft) -> Result<(), ReconcileError> {
        let known = &autoscaler.status;
        let same = draft.metrics.is_empty()
            && known.observed_generation == Some(autoscaler.metadata.generation)
            && known.current_replicas == draft.current
            && known.desired_replicas == draft.desired
            && known.last_scale_time == draft.scaled_at
            && known.conditions == draft.conditions;
        if same {
            return Ok(());
        }
        let mut patch = json!({"currentReplicas": draft.current, "desiredReplicas": draft.desired,
            "observedGeneration": autoscaler.metadata.generation});
        patch["lastScaleTime"] = draft.scaled_at.map(format_seconds).into();
        patch["currentMetrics"] = if draft.metrics.is_empty() { Value::Null } else { Value::Array(draft.metrics) };
        patch["conditions"] = to_value(&draft.conditions);
        ignore_not_found(self.context.patch_status(&HORIZONTAL_POD_AUTOSCALERS, &autoscaler.metadata, patch).await)?;
        Ok(())
    }
}

fn milli(text: &str) -> Option<i64> {
    Quantity::parse(text).ok().map(|q| q.milli_value())
}

/// The message of the innermost error.
fn text(error: &ReconcileError) -> String {
    match error {
        ReconcileError::Api(error) => error.to_string(),
        ReconcileError::Other(text) => text.clone(),
    }
}
