//! Which manager set which fields, on every write.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields`, `k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager`.

use std::collections::HashMap;

use apimachinery::Value;
use apimachinery::apply::{BuiltinVersions, FieldManager, Type, Versions};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::meta::ObjectMeta;
use apimachinery::time::Timestamp;
use parking_lot::Mutex;

use crate::handlers::Cx;

/// Owner references that are given twice count once, with a warning. `after_admission`: admission, or a patch, made them so.
pub fn dedup_owner_references(cx: &Cx, object: &mut Value, after_admission: bool) {
    let references = object.metadata().array_at(&["ownerReferences"]);
    let mut unique: Vec<Value> = Vec::with_capacity(references.len());
    let mut again: Vec<String> = Vec::new();
    for reference in references {
        if unique.contains(reference) {
            again.push(reference.str_at(&["uid"]).to_owned());
        } else {
            unique.push(reference.clone());
        }
    }
    if !again.is_empty() {
        object.metadata_mut().insert("ownerReferences", Value::Array(unique));
        let when = if after_admission { " after mutating admission happens" } else { "" };
        cx.warn(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            again.join(", ")
        ));
    }
}

/// Conversions that a webhook makes for the tracking of one request.
///
/// Tracking is a pure function; a webhook is asked in between: a conversion that is not known yet is noted and fails, the
/// caller asks for what was noted ([`resolve`]) and runs the function again.
#[derive(Default)]
pub struct Conversions(Mutex<ConversionState>);

#[derive(Default)]
struct ConversionState {
    known: HashMap<(String, Vec<u8>), Result<Value, String>>,
    wanted: Vec<(String, Value)>,
}

impl Conversions {
    fn get(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        let mut state = self.0.lock();
        let key = (api_version.to_owned(), object.to_vec());
        if let Some(known) = state.known.get(&key) {
            return known.clone();
        }
        state.wanted.push((api_version.to_owned(), object.clone()));
        Err("the webhook is asked first".to_owned())
    }
}

/// Asks for the conversions that were noted; false: there were none, and what was computed holds.
pub async fn resolve(cx: &Cx) -> bool {
    let wanted = std::mem::take(&mut cx.conversions.0.lock().wanted);
    for (api_version, object) in &wanted {
        let kind = match api_version.rsplit_once('/') {
            Some((group, version)) => GroupVersionKind::new(group, version, cx.resource.gvk.kind.as_str()),
            None => GroupVersionKind::new("", api_version.as_str(), cx.resource.gvk.kind.as_str()),
        };
        let converted = cx.resource.strategy.converted(object.clone(), &kind).await;
        let converted = converted.map_err(|status| status.message.clone());
        cx.conversions.0.lock().known.insert((api_version.clone(), object.to_vec()), converted);
    }
    !wanted.is_empty()
}

/// The versions of a kind whose objects a webhook converts.
struct Asked<'a> {
    versions: &'a dyn Versions,
    conversions: &'a Conversions,
}

impl Versions for Asked<'_> {
    fn schema(&self, api_version: &str) -> Option<Type<'_>> {
        self.versions.schema(api_version)
    }
    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, String> {
        self.conversions.get(object, api_version)
    }
}

/// Runs `f` with the tracker of this request's object.
pub fn with_manager<T>(cx: &Cx, f: impl FnOnce(&FieldManager<'_>) -> T) -> T {
    let strategy = &cx.resource.strategy;
    let filters = strategy.reset_fields(&cx.info.subresource);
    let asked = Asked { versions: strategy.versions(), conversions: &cx.conversions };
    f(&FieldManager {
        kind: &cx.resource.gvk,
        subresource: &cx.info.subresource,
        versions: if strategy.converts_remotely() { &asked } else { strategy.versions() },
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
