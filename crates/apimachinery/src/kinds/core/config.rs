//! Secrets, ConfigMaps, ServiceAccounts, Namespaces, PodTemplates and ReplicationControllers.

use super::pod_spec;
use crate::decode;
use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::kinds::access::{Fields, semantic_equal};
use crate::kinds::check::{
    self, Errors, Report, immutable, nonnegative, nonnegative_member, selector_matches, shown, strings,
};
use crate::kinds::object_meta::{self, MetaRules, kube_finalizer};
use crate::names;

const META: MetaRules = MetaRules::namespaced(names::name_is_dns_subdomain);
/// The largest Secret or ConfigMap, by the bytes of its values.
const MAX_BYTES: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

/// The number of bytes that a base64 text stands for.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

fn secret(secret: &Value, errors: &mut Errors) {
    object_meta::validate(secret, META, errors);
    let (data, path) = (secret.members("data"), FieldPath::new("data"));
    let mut size = 0;
    for (key, value) in data.iter() {
        errors.messages(&path.key(key), key, names::is_config_map_key(key));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long(&path, MAX_BYTES as i64));
    }
    let json = |key: &str, errors: &mut Errors| match data.get(key).and_then(Value::as_str) {
        None => errors.required(&path.key(key), ""),
        Some(text) => match decode::untyped(&decode(text), decode::Format::Json).map(|decoded| decoded.object) {
            Ok(Value::Object(_) | Value::Null) => {}
            Ok(_) => errors.invalid(
                &path.key(key),
                "<secret contents redacted>",
                "json: cannot unmarshal into Go value of type map[string]interface {}",
            ),
            Err(e) => errors.invalid(&path.key(key), "<secret contents redacted>", e.to_string()),
        },
    };
    match secret.s("type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if secret.v("metadata").v("annotations").s(NAME).is_empty() {
                errors.required(&FieldPath::new("metadata").child("annotations").key(NAME), "");
            }
        }
        "kubernetes.io/dockercfg" => json(".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json(".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            errors.required(&path.key("username"), "");
            errors.required(&path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if secret.v("data").s("ssh-privatekey").is_empty() => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !data.contains_key(key) {
                    errors.required(&path.key(key), "");
                }
            }
        }
        _ => {}
    }
}

pub(crate) fn create_secret(object: &Value, errors: &mut Errors) {
    secret(object, errors);
}

fn frozen(new: &Value, old: &Value, members: &[&str], errors: &mut Errors) {
    if !old.b("immutable") {
        return;
    }
    if !new.b("immutable") {
        errors.forbidden(&FieldPath::new("immutable"), FROZEN);
    }
    for key in members {
        if !semantic_members_equal(new, old, key) {
            errors.forbidden(&FieldPath::new(key), FROZEN);
        }
    }
}

/// Maps of texts are compared exactly: a key with an empty value counts.
fn semantic_members_equal(new: &Value, old: &Value, key: &str) -> bool {
    new.members(key) == old.members(key)
}

pub(crate) fn update_secret(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    if new.s("type") != old.s("type") {
        errors.invalid(&FieldPath::new("type"), new.s("type"), check::IMMUTABLE);
    }
    frozen(new, old, &["data"], errors);
    secret(new, errors);
}

fn config_map(map: &Value, errors: &mut Errors) {
    object_meta::validate(map, META, errors);
    let (data, binary) = (map.members("data"), map.members("binaryData"));
    let mut size = 0;
    for (key, value) in data.iter() {
        let path = FieldPath::new("data").key(key);
        errors.messages(&path, key, names::is_config_map_key(key));
        if binary.contains_key(key) {
            errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in binary.iter() {
        errors.messages(&FieldPath::new("binaryData").key(key), key, names::is_config_map_key(key));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > MAX_BYTES {
        errors.push(FieldError::too_long(&FieldPath::unnamed(), MAX_BYTES as i64));
    }
}

pub(crate) fn create_config_map(map: &Value, errors: &mut Errors) {
    config_map(map, errors);
}

pub(crate) fn update_config_map(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    frozen(new, old, &["data", "binaryData"], errors);
    config_map(new, errors);
}

pub(crate) fn service_account(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    if let Some(old) = old {
        object_meta::validate_update(new, old, true, errors);
    }
    object_meta::validate(new, META, errors);
}

pub(crate) fn create_namespace(namespace: &Value, errors: &mut Errors) {
    object_meta::validate(namespace, MetaRules::cluster(names::name_is_dns_label), errors);
    for finalizer in strings(namespace.v("spec"), "finalizers") {
        let path = FieldPath::new("spec").child("finalizers");
        check::qualified_name(finalizer, &path, errors);
        kube_finalizer(finalizer, &path, errors);
    }
}

pub(crate) fn update_namespace(new: &Value, old: &Value, subresource: &str, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    match subresource {
        "status" => {
            let (phase, path) = (new.v("status").s("phase"), FieldPath::new("status").child("Phase"));
            let deleting = new.v("metadata").has("deletionTimestamp");
            if !deleting && phase != "Active" {
                errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
            } else if deleting && phase != "Terminating" {
                errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        }
        "finalize" => {
            for (i, finalizer) in strings(new.v("spec"), "finalizers").into_iter().enumerate() {
                let path = FieldPath::new("spec").child("finalizers").index(i);
                check::qualified_name(finalizer, &path, errors);
                kube_finalizer(finalizer, &path, errors);
            }
        }
        _ => {}
    }
}

pub(crate) fn pod_template(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        None => object_meta::validate(new, META, errors),
        Some(old) => object_meta::validate_update(new, old, true, errors),
    }
    let options = pod_spec::template_options(old.map(|o| o.v("template")));
    pod_spec::template(new.v("template"), &FieldPath::new("template"), options, errors);
}

pub(crate) fn replication_controller(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    match old {
        None => object_meta::validate(new, MetaRules { skip_generate_name: true, ..META }, errors),
        Some(old) => object_meta::validate_update(new, old, true, errors),
    }
    let (spec, path) = (new.v("spec"), FieldPath::new("spec"));
    nonnegative_member(spec, "minReadySeconds", &path, errors);
    let selector = spec.members("selector");
    if selector.is_empty() {
        errors.required(&path.child("selector"), "");
    }
    match spec.oi("replicas") {
        None => errors.required(&path.child("replicas"), ""),
        Some(replicas) => nonnegative(replicas, &path.child("replicas"), errors),
    }
    let path = path.child("template");
    let Some(template) = spec.o("template") else {
        return errors.required(&path, "");
    };
    let labels = template.v("metadata").members("labels");
    let wanted = crate::json!({"matchLabels": selector.clone()});
    if !selector.is_empty() && !selector_matches(&wanted, labels) {
        errors.invalid(
            &path.children(&["metadata", "labels"]),
            shown(template.v("metadata").v("labels")),
            "`selector` does not match template `labels`",
        );
    }
    let options = pod_spec::template_options(old.map(|o| o.v("spec").v("template")));
    pod_spec::template(template, &path, options, errors);
    always_restarts(template, "ReplicationController", &path, errors);
}

/// The pods of most controllers run for ever.
pub(crate) fn always_restarts(template: &Value, kind: &str, path: &FieldPath, errors: &mut Errors) {
    let spec = template.v("spec");
    if spec.s("restartPolicy") != "Always" {
        errors.not_supported(&path.children(&["spec", "restartPolicy"]), spec.s("restartPolicy"), &["Always"]);
    }
    if spec.has("activeDeadlineSeconds") {
        errors.forbidden(
            &path.children(&["spec", "activeDeadlineSeconds"]),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

pub(crate) fn replica_status(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    let (status, path) = (new.v("status"), FieldPath::new("status"));
    for key in [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
        "terminatingReplicas",
    ] {
        nonnegative_member(status, key, &path, errors);
    }
    not_above(status, "replicas", &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], &path, errors);
    available_not_above_ready(status, "readyReplicas", &path, errors);
}

/// Counts that cannot exceed another count.
pub(crate) fn not_above(status: &Value, limit: &str, keys: &[&str], path: &FieldPath, errors: &mut Errors) {
    for key in keys {
        if status.i(key) > status.i(limit) {
            errors.invalid(&path.child(key), status.i(key), format!("cannot be greater than status.{limit}"));
        }
    }
}

pub(crate) fn available_not_above_ready(status: &Value, shown: &str, path: &FieldPath, errors: &mut Errors) {
    if status.i("availableReplicas") > status.i("readyReplicas") {
        errors.invalid(
            &path.child("availableReplicas"),
            status.i("availableReplicas"),
            format!("cannot be greater than {shown}"),
        );
    }
}

/// Events, in both of their versions; `v1` is the core one, whose rules are the old ones.
pub(crate) fn event(new: &Value, old: Option<&Value>, core: bool, errors: &mut Errors) {
    let (involved, message, controller) = if core {
        ("involvedObject", "message", "reportingComponent")
    } else {
        ("regarding", "note", "reportingController")
    };
    let namespace = new.v("metadata").s("namespace");
    let target = new.v(involved).s("namespace");
    let path = FieldPath::new("involvedObject").child("namespace");
    const MISMATCH: &str = "does not match event.namespace";
    let timed = new.has("eventTime");
    if !timed {
        let fits = if target.is_empty() { matches!(namespace, "" | "default") } else { namespace == target };
        if !fits {
            errors.invalid(&path, target, MISMATCH);
        }
    } else {
        if target.is_empty() && !matches!(namespace, "default" | "kube-system") {
            errors.invalid(&path, target, MISMATCH);
        }
        let at = FieldPath::new(controller);
        let name = new.s(controller);
        if name.is_empty() {
            errors.required(&at, "");
        }
        check::qualified_name(name, &at, errors);
        for (key, shown, max) in [
            ("reportingInstance", "reportingInstance", 128),
            ("action", "action", 128),
            ("reason", "reason", 128),
            (message, "message", 1024),
        ] {
            let at = FieldPath::new(shown);
            if new.s(key).is_empty() && shown != "message" {
                errors.required(&at, "");
            }
            if new.s(key).len() > max {
                errors.invalid(&at, "", format!("can have at most {max} characters"));
            }
        }
    }
    errors.messages(&FieldPath::new("namespace"), namespace, names::is_dns1123_subdomain(namespace));
    if core {
        return;
    }
    match old {
        None => new_event(new, errors),
        Some(old) => changed_event(new, old, errors),
    }
}

fn series(event: &Value, errors: &mut Errors) {
    let Some(series) = event.o("series") else { return };
    if series.i("count") < 2 {
        errors.invalid(&FieldPath::new("series.count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        errors.required(&FieldPath::new("series.lastObservedTime"), "");
    }
}

fn new_event(event: &Value, errors: &mut Errors) {
    object_meta::validate(event, META, errors);
    series(event, errors);
    if !event.has("eventTime") {
        errors.required(&FieldPath::new("eventTime"), "");
    }
    if !matches!(event.s("type"), "Normal" | "Warning") {
        errors.invalid(&FieldPath::new("type"), "", format!("has invalid value: {}", event.s("type")));
    }
    const UNSET: &str = "needs to be unset";
    for (key, shown) in [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp")] {
        if event.has(key) {
            errors.invalid(&FieldPath::new(shown), "", UNSET);
        }
    }
    if event.i("deprecatedCount") != 0 {
        errors.invalid(&FieldPath::new("count"), "", UNSET);
    }
    let source = event.v("deprecatedSource");
    if !source.s("component").is_empty() || !source.s("host").is_empty() {
        errors.invalid(&FieldPath::new("source"), "", UNSET);
    }
}

fn changed_event(new: &Value, old: &Value, errors: &mut Errors) {
    object_meta::validate_update(new, old, true, errors);
    if !semantic_equal(new.v("series"), old.v("series")) {
        series(new, errors);
    }
    for (key, shown) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("reason", "reason"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        immutable(new.v(key), old.v(key), &FieldPath::new(shown), errors);
    }
}
