//! A Job as its controller reads it.

use std::collections::BTreeSet;

use apimachinery::json::Str;
use informer::{ObjectMeta, null_default};
use jiff::Timestamp;
use serde::Deserialize;

use crate::selector::LabelSelector;
use crate::types::{Condition, Raw, cached, condition_is_true};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    pub metadata: ObjectMeta,
    pub spec: JobSpec,
    pub status: JobStatus,
}

cached!(Job);

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JobSpec {
    pub parallelism: Option<i64>,
    pub completions: Option<i64>,
    pub active_deadline_seconds: Option<i64>,
    pub pod_failure_policy: Option<PodFailurePolicy>,
    pub success_policy: Option<SuccessPolicy>,
    pub backoff_limit: Option<i64>,
    pub backoff_limit_per_index: Option<i64>,
    pub max_failed_indexes: Option<i64>,
    pub selector: LabelSelector,
    pub template: Option<Raw>,
    pub ttl_seconds_after_finished: Option<i64>,
    pub completion_mode: Str,
    pub suspend: bool,
    pub pod_replacement_policy: Option<Str>,
    pub managed_by: Option<Str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodFailurePolicy {
    pub rules: Vec<FailureRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FailureRule {
    pub action: Str,
    pub on_exit_codes: Option<OnExitCodes>,
    #[serde(deserialize_with = "null_default")]
    pub on_pod_conditions: Vec<OnPodCondition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OnExitCodes {
    pub container_name: Option<Str>,
    pub operator: Str,
    pub values: Vec<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OnPodCondition {
    #[serde(rename = "type")]
    pub kind: Str,
    pub status: Str,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SuccessPolicy {
    pub rules: Vec<SuccessRule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SuccessRule {
    pub succeeded_indexes: Option<Str>,
    pub succeeded_count: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JobStatus {
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
    pub start_time: Option<Timestamp>,
    pub completion_time: Option<Timestamp>,
    pub active: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub terminating: Option<i64>,
    pub ready: Option<i64>,
    pub completed_indexes: Str,
    pub failed_indexes: Option<Str>,
    #[serde(deserialize_with = "null_default")]
    pub uncounted_terminated_pods: Uncounted,
}

/// Pods that have ended and still carry the tracking finalizer, or did when the status was written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Uncounted {
    #[serde(deserialize_with = "null_default")]
    pub succeeded: BTreeSet<Str>,
    #[serde(deserialize_with = "null_default")]
    pub failed: BTreeSet<Str>,
}

impl Job {
    pub fn is_finished(&self) -> bool {
        let conditions = &self.status.conditions;
        condition_is_true(conditions, "Complete") || condition_is_true(conditions, "Failed")
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode == "Indexed"
    }

    pub fn is_managed_elsewhere(&self) -> bool {
        self.spec.managed_by.as_ref().is_some_and(|m| m != "kubernetes.io/job-controller")
    }

    /// Whether a pod is replaced only once it has failed for good, and not while it terminates.
    pub fn replaces_only_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_ref().is_some_and(|p| p == "Failed")
            || self.spec.pod_failure_policy.is_some()
    }

    pub fn completions(&self) -> i64 {
        self.spec.completions.unwrap_or(1)
    }
}
