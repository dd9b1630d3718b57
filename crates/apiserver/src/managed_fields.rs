//! Which manager set which fields, on every write.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields`, `k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager`.

use apimachinery::Value;
use apimachinery::apply::{BuiltinVersions, FieldManager};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::time::Timestamp;

use crate::handlers::Cx;

/// Owner references that are given twice count once, with a warning.
pub fn dedup_owner_references(cx: &Cx, object: &mut Value) {
    let references = object.metadata().array_at(&["ownerReferences"]);
    let mut unique: Vec<Value> = Vec::with_capacity(references.len());
    for reference in references {
        if !unique.contains(reference) {
            unique.push(reference.clone());
        }
    }
    if unique.len() < references.len() {
        object.metadata_mut().insert("ownerReferences", Value::Array(unique));
        cx.warn(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests",
        );
    }
}

/// Runs `f` with the tracker of this request's object.
pub fn with_manager<T>(cx: &Cx, f: impl FnOnce(&FieldManager<'_>) -> T) -> T {
    let strategy = &cx.resource.strategy;
    let filters = strategy.reset_fields(&cx.info.subresource);
    f(&FieldManager {
        kind: &cx.resource.gvk,
        subresource: &cx.info.subresource,
        versions: strategy.versions(),
        filters: &filters,
        now: Timestamp::from(std::time::SystemTime::now()),
    })
}

/// Records a create.
pub fn track_create(cx: &Cx, object: &mut Value, manager: &str) {
    with_conversion_traces(cx, object, |object| {
        *object = with_manager(cx, |m| m.update(None, object.take(), manager));
    });
}

/// Records a create of an object of a built-in kind that is not the resource's, as some subresources take.
pub fn track_create_of(cx: &Cx, kind: &GroupVersionKind, name: &'static str, object: &mut Value, manager: &str) {
    let same = |object: &Value, _: &str| Ok(object.clone());
    let tracker = FieldManager {
        kind,
        subresource: &cx.info.subresource,
        versions: &BuiltinVersions { kind: name, convert: &same },
        filters: &Default::default(),
        now: Timestamp::from(std::time::SystemTime::now()),
    };
    *object = tracker.update(None, object.take(), manager);
}

/// Records a create by the server itself.
pub fn track_system(kind: &GroupVersionKind, name: &'static str, object: &mut Value) {
    track_system_as(kind, name, object, "kube-apiserver");
}

/// Records a create by a part of the server that has a name of its own.
pub fn track_system_as(kind: &GroupVersionKind, name: &'static str, object: &mut Value, manager: &str) {
    let same = |object: &Value, _: &str| Ok(object.clone());
    let tracker = FieldManager {
        kind,
        subresource: "",
        versions: &BuiltinVersions { kind: name, convert: &same },
        filters: &Default::default(),
        now: Timestamp::from(std::time::SystemTime::now()),
    };
    *object = tracker.update(None, object.take(), manager);
}

/// Records an update of a subresource by the server itself.
pub fn track_system_update(
    kind: &GroupVersionKind,
    name: &'static str,
    subresource: &str,
    current: &Value,
    new: &mut Value,
) {
    track_system_update_as(kind, name, subresource, current, new, "kube-apiserver");
}

/// Records an update by a part of the server that has a name of its own.
pub fn track_system_update_as(
    kind: &GroupVersionKind,
    name: &'static str,
    subresource: &str,
    current: &Value,
    new: &mut Value,
    manager: &str,
) {
    let same = |object: &Value, _: &str| Ok(object.clone());
    let tracker = FieldManager {
        kind,
        subresource,
        versions: &BuiltinVersions { kind: name, convert: &same },
        filters: &Default::default(),
        now: Timestamp::from(std::time::SystemTime::now()),
    };
    *new = tracker.update(Some(current), new.take(), manager);
}

/// Records an update.
pub fn track_update(cx: &Cx, current: &Value, new: &mut Value, manager: &str) {
    with_conversion_traces(cx, new, |new| {
        *new = with_manager(cx, |m| m.update(Some(current), new.take(), manager));
    });
}

/// Upstream tracks what comes back from its internal version, where a DaemonSet's template generation is a field of its
/// own: the annotation that carries it is there for the tracking even when nobody sent it.
fn with_conversion_traces(cx: &Cx, object: &mut Value, track: impl FnOnce(&mut Value)) {
    const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
    let absent =
        cx.resource.builtin && cx.resource.gvk.kind == "DaemonSet" && object.annotation(TEMPLATE_GENERATION).is_none();
    if absent {
        object.set_annotation(TEMPLATE_GENERATION, "0");
    }
    track(object);
    if absent {
        object.remove_annotation(TEMPLATE_GENERATION);
    }
}
