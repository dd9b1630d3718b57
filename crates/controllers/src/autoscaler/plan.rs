//! How many replicas an autoscaler wants: metrics, tolerance, behaviour. Pure.
//!
//! Follows: `pkg/controller/podautoscaler` (`replica_calculator.go`, `horizontal.go`).

use apimachinery::json::Str;
use informer::{ObjectMeta, null_default};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::types::{Condition, cached};

/// Differences smaller than this are not acted upon.
const TOLERANCE: f64 = 0.1;
/// `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWN_STABILIZATION: i64 = 300;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Autoscaler {
    pub metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Status,
}

cached!(Autoscaler);

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    pub scale_target_ref: Target,
    pub min_replicas: Option<i64>,
    pub max_replicas: i64,
    #[serde(deserialize_with = "null_default")]
    pub metrics: Vec<Metric>,
    pub behavior: Option<Behavior>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Target {
    pub api_version: Str,
    pub kind: Str,
    pub name: Str,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metric {
    #[serde(rename = "type")]
    pub kind: Str,
    pub resource: Option<ResourceMetric>,
    pub container_resource: Option<ResourceMetric>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ResourceMetric {
    pub name: Str,
    pub container: Str,
    pub target: MetricTarget,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetricTarget {
    pub average_utilization: Option<i64>,
    pub average_value: Option<Str>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Behavior {
    pub scale_up: Option<Rules>,
    pub scale_down: Option<Rules>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rules {
    pub stabilization_window_seconds: Option<i64>,
    pub select_policy: Option<Str>,
    #[serde(deserialize_with = "null_default")]
    pub policies: Vec<Policy>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Policy {
    #[serde(rename = "type")]
    pub kind: Str,
    pub value: i64,
    pub period_seconds: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    pub observed_generation: Option<i64>,
    pub last_scale_time: Option<Timestamp>,
    pub current_replicas: i64,
    pub desired_replicas: i64,
    #[serde(deserialize_with = "null_default")]
    pub conditions: Vec<Condition>,
}

impl Spec {
    pub fn min(&self) -> i64 {
        self.min_replicas.unwrap_or(1)
    }
}

/// One pod as a metric sees it.
#[derive(Clone, Debug, Default)]
pub struct PodSample {
    pub ready: bool,
    /// Milli-units in use; `None` when the metrics API does not know the pod.
    pub usage: Option<i64>,
    pub request: i64,
}

/// The replicas that one resource metric asks for, and the observed value: (replicas, utilization %, average milli).
pub fn replicas_for(samples: &[PodSample], target: Goal, current: i64) -> Option<(i64, Option<i64>, i64)> {
    let measured: Vec<&PodSample> = samples.iter().filter(|s| s.usage.is_some() && s.ready).collect();
    if measured.is_empty() {
        return None;
    }
    let used: i64 = measured.iter().filter_map(|s| s.usage).sum();
    let average = used / measured.len() as i64;
    let requested: i64 = measured.iter().map(|s| s.request).sum();
    let (ratio, utilization) = match target {
        Goal::Utilization(percent) => {
            if requested == 0 {
                return None;
            }
            let utilization = used * 100 / requested;
            (utilization as f64 / percent.max(1) as f64, Some(utilization))
        }
        Goal::Average(milli) => (average as f64 / milli.max(1) as f64, None),
    };
    let missing = samples.len() - measured.len();
    if (ratio - 1.0).abs() <= TOLERANCE {
        return Some((current, utilization, average));
    }
    if missing == 0 {
        return Some(((ratio * measured.len() as f64).ceil() as i64, utilization, average));
    }
    // Pods without a sample are taken to be what argues against the change: idle when it would grow, at the target when it
    // would shrink.
    let assumed = match (target, ratio < 1.0) {
        (Goal::Utilization(percent), true) => {
            samples.iter().filter(|s| s.usage.is_none() || !s.ready).map(|s| s.request * percent / 100).sum::<i64>()
        }
        (Goal::Average(milli), true) => milli * missing as i64,
        (_, false) => 0,
    };
    let total_requested: i64 = samples.iter().map(|s| s.request).sum();
    let ratio_all = match target {
        Goal::Utilization(percent) => {
            (used + assumed) as f64 * 100.0 / total_requested.max(1) as f64 / percent.max(1) as f64
        }
        Goal::Average(milli) => (used + assumed) as f64 / samples.len() as f64 / milli.max(1) as f64,
    };
    let turned = (ratio < 1.0 && ratio_all > 1.0) || (ratio > 1.0 && ratio_all < 1.0);
    if turned || (ratio_all - 1.0).abs() <= TOLERANCE {
        return Some((current, utilization, average));
    }
    let wanted = (ratio_all * samples.len() as f64).ceil() as i64;
    let against = (ratio_all < 1.0 && wanted > current) || (ratio_all > 1.0 && wanted < current);
    Some((if against { current } else { wanted }, utilization, average))
}

/// What a resource metric aims at, in percent of the request or in milli-units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    Utilization(i64),
    Average(i64),
}

/// What an autoscaler remembers between reconciles.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Recommendations and when they were made.
    pub recommendations: Vec<(Timestamp, i64)>,
    /// Changes of size and when they were made.
    pub changes: Vec<(Timestamp, i64)>,
}

/// The size to set, and what limited it: (replicas, ScaleDownStabilized, limit reason and message).
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    pub replicas: i64,
    pub stabilized: bool,
    pub limit: Option<(&'static str, &'static str)>,
}

fn seconds(s: i64) -> SignedDuration {
    SignedDuration::from_secs(s)
}

fn rules(spec: &Spec, up: bool) -> Rules {
    let given = spec.behavior.as_ref().and_then(|b| if up { b.scale_up.clone() } else { b.scale_down.clone() });
    let mut rules = given.unwrap_or_default();
    let policy = |kind: &str, value: i64| Policy { kind: kind.into(), value, period_seconds: 15 };
    if rules.policies.is_empty() {
        rules.policies =
            if up { vec![policy("Percent", 100), policy("Pods", 4)] } else { vec![policy("Percent", 100)] };
    }
    rules.stabilization_window_seconds.get_or_insert(if up { 0 } else { DOWN_STABILIZATION });
    rules
}

/// Applies stabilization, rate limits and bounds to what the metrics ask for.
pub fn decide(spec: &Spec, memory: &mut Memory, current: i64, proposed: i64, now: Timestamp) -> Decision {
    let (up, down) = (rules(spec, true), rules(spec, false));
    let (up_window, down_window) =
        (up.stabilization_window_seconds.unwrap_or(0), down.stabilization_window_seconds.unwrap_or(DOWN_STABILIZATION));
    let longest = seconds(up_window.max(down_window));
    memory.recommendations.retain(|(at, _)| now.duration_since(*at) <= longest);
    memory.recommendations.push((now, proposed));
    let recent = |window: i64| {
        memory.recommendations.iter().filter(move |(at, _)| now.duration_since(*at) <= seconds(window)).map(|(_, n)| *n)
    };
    // Up only as far as the least recent recommendation, down only as far as the highest.
    let up_to = recent(up_window).min().unwrap_or(proposed);
    let down_to = recent(down_window).max().unwrap_or(proposed);
    let mut wanted = current;
    if wanted < up_to {
        wanted = up_to;
    }
    if wanted > down_to {
        wanted = down_to;
    }
    let stabilized = wanted != proposed;
    memory.changes.retain(|(at, _)| now.duration_since(*at) <= seconds(1800));
    let changed = |period: i64, up: bool| -> i64 {
        let recent = memory.changes.iter().filter(|(at, _)| now.duration_since(*at) < seconds(period));
        recent.map(|(_, n)| if up { (*n).max(0) } else { (-*n).max(0) }).sum()
    };
    if wanted > current {
        let bound = |policy: &Policy| {
            let start = current - changed(policy.period_seconds, true);
            match policy.kind.as_str() {
                "Pods" => start + policy.value,
                _ => (start as f64 * (1.0 + policy.value as f64 / 100.0)).ceil() as i64,
            }
        };
        let bounds = up.policies.iter().map(bound);
        let limit = match up.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => bounds.min().unwrap_or(wanted),
            _ => bounds.max().unwrap_or(wanted),
        }
        .max(current);
        if wanted > limit.min(spec.max_replicas) {
            let reason = if limit < spec.max_replicas {
                ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate")
            } else {
                ("TooManyReplicas", "the desired replica count is more than the maximum replica count")
            };
            return Decision { replicas: limit.min(spec.max_replicas), stabilized, limit: Some(reason) };
        }
    } else if wanted < current {
        let bound = |policy: &Policy| {
            let start = current + changed(policy.period_seconds, false);
            match policy.kind.as_str() {
                "Pods" => start - policy.value,
                _ => (start as f64 * (1.0 - policy.value as f64 / 100.0)).floor() as i64,
            }
        };
        let bounds = down.policies.iter().map(bound);
        let limit = match down.select_policy.as_deref() {
            Some("Disabled") => current,
            Some("Min") => bounds.max().unwrap_or(wanted),
            _ => bounds.min().unwrap_or(wanted),
        }
        .min(current);
        if wanted < limit.max(spec.min()) {
            let reason = if limit > spec.min() {
                ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate")
            } else {
                ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
            };
            return Decision { replicas: limit.max(spec.min()), stabilized, limit: Some(reason) };
        }
    }
    Decision { replicas: wanted, stabilized, limit: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    fn samples(usages: &[Option<i64>]) -> Vec<PodSample> {
        usages.iter().map(|usage| PodSample { ready: true, usage: *usage, request: 1000 }).collect()
    }

    #[test]
    fn metrics_ask_for_replicas() {
        // Source: the examples of replica_calculator_test.go.
        for (usages, goal, want) in [
            (vec![Some(300), Some(500), Some(700)], Goal::Utilization(30), 5),
            (vec![Some(100), Some(100), Some(100)], Goal::Utilization(50), 1),
            (vec![Some(1050), Some(1000), Some(1010)], Goal::Utilization(100), 3),
            (vec![Some(1500), Some(1500)], Goal::Average(1000), 3),
            (vec![Some(300), Some(500), None], Goal::Utilization(30), 3),
        ] {
            let (replicas, ..) = replicas_for(&samples(&usages), goal, usages.len() as i64).unwrap();
            assert_eq!(replicas, want, "{usages:?} {goal:?}");
        }
        assert!(replicas_for(&samples(&[None]), Goal::Utilization(50), 1).is_none());
    }

    #[test]
    fn scaling_is_bounded_stabilized_and_rate_limited() {
        let spec = |behavior: apimachinery::Value| -> Spec {
            let mut spec = json!({"minReplicas": 2, "maxReplicas": 10});
            spec["behavior"] = behavior;
            spec.to().unwrap()
        };
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let plain = spec(json!(null));
        let at = |ago: i64, n: i64| (now - seconds(ago), n);
        let eager = spec(json!({"scaleDown": {"stabilizationWindowSeconds": 0}}));
        let slow = spec(json!({"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}));
        for (spec, memory, current, proposed, want) in [
            (&plain, Memory::default(), 3, 50, (7, Some("ScaleUpLimit"))),
            (&plain, Memory::default(), 6, 50, (10, Some("TooManyReplicas"))),
            (&plain, Memory { recommendations: vec![at(100, 6)], ..Memory::default() }, 6, 3, (6, None)),
            (&plain, Memory { recommendations: vec![at(400, 6)], ..Memory::default() }, 6, 3, (3, None)),
            (&eager, Memory { recommendations: vec![at(100, 6)], ..Memory::default() }, 6, 3, (3, None)),
            (&eager, Memory::default(), 6, 0, (2, Some("TooFewReplicas"))),
            (&slow, Memory::default(), 3, 5, (4, Some("ScaleUpLimit"))),
            (&slow, Memory { changes: vec![at(30, 1)], ..Memory::default() }, 3, 5, (3, Some("ScaleUpLimit"))),
        ] {
            let mut memory = memory;
            let decision = decide(spec, &mut memory, current, proposed, now);
            assert_eq!((decision.replicas, decision.limit.map(|l| l.0)), want, "{current} -> {proposed}");
        }
    }
}
