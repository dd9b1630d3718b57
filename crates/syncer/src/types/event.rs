//! Events of host objects, told in the tenant's words on the virtual objects.

use apimachinery::{Map, Value};

use crate::kind::{self, Kind};
use crate::metadata::{FORCE_SYNC_ANNOTATION, annotation, name_of, uid_of};
use crate::names::{Names, NamespacedName};

/// Kinds whose host events a tenant sees.
pub static INVOLVED: [&Kind; 9] = [
    &kind::POD,
    &kind::SERVICE,
    &kind::SECRET,
    &kind::CONFIG_MAP,
    &kind::PERSISTENT_VOLUME_CLAIM,
    &kind::ENDPOINTS,
    &kind::INGRESS,
    &kind::NETWORK_POLICY,
    &kind::POD_DISRUPTION_BUDGET,
];

/// The kind an event is about, when it is one that is told.
pub fn involved_kind(event: &Value) -> Option<&'static Kind> {
    let reference = &event["involvedObject"];
    INVOLVED
        .into_iter()
        .find(|k| k.kind == reference.str_at(&["kind"]) && k.api_version() == reference.str_at(&["apiVersion"]))
}

/// The virtual event for a host event about the host object of `involved`.
pub fn translate(event: &Value, involved: &Value, names: &Names) -> Value {
    let host =
        NamespacedName::new(event.str_at(&["involvedObject", "namespace"]), event.str_at(&["involvedObject", "name"]));
    let virtual_ = name_of(involved);
    let host_event = event.str_at(&["metadata", "name"]);
    let name = match host_event.strip_prefix(&host.name) {
        Some(rest) => format!("{}{rest}", virtual_.name),
        None => host_event.to_owned(),
    };
    let mut out = event.clone();
    out["involvedObject"]["namespace"] = virtual_.namespace.as_str().into();
    out["involvedObject"]["name"] = virtual_.name.as_str().into();
    out["involvedObject"]["uid"] = uid_of(involved).into();
    out["involvedObject"]["resourceVersion"] = involved.str_at(&["metadata", "resourceVersion"]).into();
    for member in ["message", "note"] {
        if let Some(text) = event.get(member).and_then(Value::as_str) {
            let host_uid = event.str_at(&["involvedObject", "uid"]);
            let mut shown = names.to_virtual_text(text, Some((&host, &virtual_)));
            if !host_uid.is_empty() {
                shown = shown.replace(host_uid, uid_of(involved));
            }
            out[member] = shown.into();
        }
    }
    // Objects beside the involved one have host names too.
    out.remove_at(&["related"]);
    out["metadata"] = metadata(&virtual_.namespace, &name);
    out["apiVersion"] = "v1".into();
    out["kind"] = "Event".into();
    out
}

/// The virtual event for a host event that asks to be shown though its object is unknown.
pub fn translate_forced(event: &Value) -> Option<Value> {
    if annotation(event, FORCE_SYNC_ANNOTATION) != "true" {
        return None;
    }
    let mut out = event.clone();
    out.remove_at(&["related"]);
    out["involvedObject"] = apimachinery::json!({"namespace": "default"});
    out["metadata"] = metadata("default", event.str_at(&["metadata", "name"]));
    out["apiVersion"] = "v1".into();
    out["kind"] = "Event".into();
    Some(out)
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut out = Map::new();
    out.insert("namespace", namespace.into());
    out.insert("name", name.into());
    out.into()
}
