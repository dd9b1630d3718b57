//! Conversion between the two served versions of a kind.
//!
//! HorizontalPodAutoscaler: `autoscaling/v1` keeps what it cannot say in annotations. Event: the core and the
//! `events.k8s.io` version have the same content under other names. Both directions lose nothing.
//!
//! Follows `pkg/apis/autoscaling/v1/conversion.go` and `pkg/apis/events/v1/conversion.go`.

use super::access::{Fields, object_at};
use crate::json;
use crate::json::{Map, Value};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let notes = object.at_mut(&["metadata", "annotations"])?.as_object_mut()?;
    let text = notes.remove(key)?;
    if notes.is_empty() {
        object.remove_at(&["metadata", "annotations"]);
    }
    Value::from_slice(text.as_str()?.as_bytes()).ok()
}

fn set_annotation(object: &mut Value, key: &str, value: &Value) {
    object.set_at(&["metadata", "annotations", key], value.to_string().into());
}

fn is_cpu(metric: &Value, part: &str, percent: &str) -> bool {
    let resource = metric.v("resource");
    metric.s("type") == "Resource" && resource.s("name") == "cpu" && resource.v(part).has(percent)
}

/// An `autoscaling/v1` autoscaler as `autoscaling/v2`.
pub fn hpa_to_v2(v1: &Value) -> Value {
    let mut out = v1.clone();
    out.set_at(&["apiVersion"], "autoscaling/v2".into());
    let extra = take_annotation(&mut out, METRICS);
    let current = take_annotation(&mut out, CURRENT);
    let conditions = take_annotation(&mut out, CONDITIONS);
    let behavior = take_annotation(&mut out, BEHAVIOR);
    let spec = object_at(&mut out, "spec").make_object();
    let mut metrics: Vec<Value> =
        extra.as_ref().and_then(Value::as_array).into_iter().flatten().map(|m| metric_from_v1(m, false)).collect();
    if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|p| !p.is_null()) {
        metrics.push(cpu_metric(percent));
    }
    if metrics.is_empty() {
        metrics.push(cpu_metric(80.into()));
    }
    spec.insert("metrics", Value::Array(metrics));
    if let Some(behavior) = behavior {
        spec.insert("behavior", recase(&behavior, false));
    }
    let status = object_at(&mut out, "status").make_object();
    let mut now: Vec<Value> =
        current.as_ref().and_then(Value::as_array).into_iter().flatten().map(|m| metric_from_v1(m, true)).collect();
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage").filter(|p| !p.is_null())
        && now.is_empty()
    {
        now.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}),
        );
    }
    status.insert("currentMetrics", if now.is_empty() { Value::Null } else { Value::Array(now) });
    if let Some(conditions) = conditions {
        status.insert("conditions", conditions);
    }
    status.get_or_insert_with("desiredReplicas", || 0.into());
    if status.get("currentReplicas").and_then(Value::as_i64) == Some(0) {
        status.remove("currentReplicas");
    }
    out
}

/// An `autoscaling/v2` autoscaler as `autoscaling/v1`.
pub fn hpa_to_v1(v2: &Value) -> Value {
    let mut out = v2.clone();
    out.set_at(&["apiVersion"], "autoscaling/v1".into());
    let spec = object_at(&mut out, "spec").make_object();
    let metrics = spec.remove("metrics").unwrap_or_default();
    let behavior = spec.remove("behavior").filter(|b| !b.is_null());
    let mut others = Vec::new();
    let mut cpu = None;
    for metric in metrics.as_array().into_iter().flatten() {
        if is_cpu(metric, "target", "averageUtilization") {
            // Of several, the first one counts.
            cpu.get_or_insert_with(|| metric.v("resource").v("target").v("averageUtilization").clone());
        } else {
            others.push(metric_to_v1(metric, false));
        }
    }
    if let Some(percent) = cpu {
        spec.insert("targetCPUUtilizationPercentage", percent);
    }
    let status = object_at(&mut out, "status").make_object();
    let current = status.remove("currentMetrics").unwrap_or_default();
    let conditions = status.remove("conditions").filter(|c| c.as_array().is_some_and(|a| !a.is_empty()));
    let mut now = Vec::new();
    for metric in current.as_array().into_iter().flatten() {
        if is_cpu(metric, "current", "averageUtilization") {
            status.insert(
                "currentCPUUtilizationPercentage",
                metric.v("resource").v("current").v("averageUtilization").clone(),
            );
        }
        now.push(metric_to_v1(metric, true));
    }
    for key in ["currentReplicas", "desiredReplicas"] {
        status.get_or_insert_with(key, || 0.into());
    }
    if !others.is_empty() {
        set_annotation(&mut out, METRICS, &Value::Array(others));
    }
    if !now.is_empty() {
        set_annotation(&mut out, CURRENT, &Value::Array(now));
    }
    if let Some(conditions) = conditions {
        set_annotation(&mut out, CONDITIONS, &conditions);
    }
    if let Some(behavior) = behavior {
        set_annotation(&mut out, BEHAVIOR, &recase(&behavior, true));
    }
    out
}

fn cpu_metric(percent: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// Scaling behaviour is kept in an annotation under the capitalized names of the server's own type.
fn recase(value: &Value, upper: bool) -> Value {
    match value {
        Value::Object(members) => {
            let renamed = members.iter().filter(|(_, v)| !v.is_null()).map(|(key, value)| {
                let mut chars = key.chars();
                let first = chars.next().map(|c| if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() });
                (first.into_iter().chain(chars).collect::<String>(), recase(value, upper))
            });
            renamed.collect::<Map>().into()
        }
        Value::Array(items) => Value::Array(items.iter().map(|v| recase(v, upper)).collect()),
        other => other.clone(),
    }
}

fn rename(object: &Value, names: &[(&str, &str)]) -> Value {
    let renamed = object.as_object().into_iter().flat_map(Map::iter).map(|(key, value)| {
        let key = names.iter().find(|(from, _)| from == key).map_or(key.as_str(), |(_, to)| to);
        (key, value.clone())
    });
    renamed.collect::<Map>().into()
}

/// The member of a metric that its type names.
fn metric_member(metric: &Value) -> Option<&'static str> {
    ["resource", "containerResource", "pods", "object", "external"].into_iter().find(|m| metric.has(m))
}

/// A metric of `v1`'s annotations, which spell targets out in flat fields.
fn metric_from_v1(metric: &Value, status: bool) -> Value {
    let Some(member) = metric_member(metric) else { return metric.clone() };
    let flat = metric.v(member);
    let mut source = Map::new();
    let mut value = Map::new();
    let (value_key, plain, average) = if status {
        ("current", "currentValue", "currentAverageValue")
    } else {
        ("target", "targetValue", "targetAverageValue")
    };
    let percent = if status { "currentAverageUtilization" } else { "targetAverageUtilization" };
    if let Some(p) = flat.o(percent) {
        value.insert("averageUtilization", p.clone());
    }
    if let Some(v) = flat.o(if matches!(member, "object" | "external") && flat.has("averageValue") {
        "averageValue"
    } else {
        average
    }) {
        value.insert("averageValue", v.clone());
    }
    if let Some(v) = flat.o(plain) {
        let unset = v.as_str() == Some("0") && value.contains_key("averageValue");
        if !unset {
            value.insert("value", v.clone());
        }
    }
    if !status {
        let kind = if value.contains_key("averageUtilization") {
            "Utilization"
        } else if value.contains_key("averageValue") {
            "AverageValue"
        } else {
            "Value"
        };
        value.insert("type", kind.into());
    }
    for key in ["name", "container"] {
        if let Some(v) = flat.o(key) {
            source.insert(key, v.clone());
        }
    }
    if let Some(name) = flat.o("metricName") {
        let mut identifier = json!({"name": name.clone()});
        if let Some(selector) = flat.o("selector").or_else(|| flat.o("metricSelector")) {
            identifier.make_object().insert("selector", selector.clone());
        }
        source.insert("metric", identifier);
    }
    if member == "object"
        && let Some(target) = flat.o("target")
    {
        source.insert("describedObject", target.clone());
    }
    source.insert(value_key, value.into());
    json!({"type": metric.s("type"), member: source})
}

fn metric_to_v1(metric: &Value, status: bool) -> Value {
    let Some(member) = metric_member(metric) else { return metric.clone() };
    let source = metric.v(member);
    let value = source.v(if status { "current" } else { "target" });
    let (plain, average) =
        if status { ("currentValue", "currentAverageValue") } else { ("targetValue", "targetAverageValue") };
    let percent = if status { "currentAverageUtilization" } else { "targetAverageUtilization" };
    let mut flat = Map::new();
    for key in ["name", "container"] {
        if let Some(v) = source.o(key) {
            flat.insert(key, v.clone());
        }
    }
    if let Some(identifier) = source.o("metric") {
        flat.insert("metricName", identifier.v("name").clone());
        if let Some(selector) = identifier.o("selector") {
            flat.insert(if member == "external" { "metricSelector" } else { "selector" }, selector.clone());
        }
    }
    if let Some(target) = source.o("describedObject") {
        flat.insert("target", target.clone());
    }
    if let Some(p) = value.o("averageUtilization") {
        flat.insert(percent, p.clone());
    }
    if let Some(v) = value.o("averageValue") {
        flat.insert(if member == "object" { "averageValue" } else { average }, v.clone());
    }
    if let Some(v) = value.o("value") {
        flat.insert(plain, v.clone());
    } else if member == "object" {
        flat.insert(plain, "0".into());
    }
    json!({"type": metric.s("type"), member: flat})
}

/// Members of the core Event and their names in `events.k8s.io`.
const EVENT_NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// A core Event as `events.k8s.io/v1`.
pub fn event_to_events_group(core: &Value) -> Value {
    let mut out = rename(core, EVENT_NAMES);
    out.set_at(&["apiVersion"], "events.k8s.io/v1".into());
    let members = out.make_object();
    for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "eventTime"] {
        members.get_or_insert_with(key, || Value::Null);
    }
    members.get_or_insert_with("deprecatedSource", Value::object);
    members.get_or_insert_with("regarding", Value::object);
    // What the core version always writes, this one leaves out when empty.
    for key in ["reportingController", "reportingInstance"] {
        if members.get(key).and_then(Value::as_str) == Some("") {
            members.remove(key);
        }
    }
    out
}

/// An `events.k8s.io/v1` Event as core `v1`.
pub fn event_to_core(event: &Value) -> Value {
    let back: Vec<(&str, &str)> = EVENT_NAMES.iter().map(|(core, other)| (*other, *core)).collect();
    let mut out = rename(event, &back);
    out.set_at(&["apiVersion"], "v1".into());
    let members = out.make_object();
    for key in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        members.get_or_insert_with(key, || Value::Null);
    }
    for key in ["source", "involvedObject"] {
        members.get_or_insert_with(key, Value::object);
    }
    for key in ["reportingComponent", "reportingInstance"] {
        members.get_or_insert_with(key, || "".into());
    }
    out
}
