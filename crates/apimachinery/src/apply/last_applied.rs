//! The annotation of client-side `kubectl apply`, which the server keeps in step for the manager `kubectl`.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields/internal/lastapplied*.go`.

use super::set::Set;
use super::typed::Type;
use super::walk::{compare, field_set};
use crate::json::Value;
use crate::meta::ObjectMeta;

/// The one manager this is for.
pub(super) const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations together.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// Fields that the live object still has as the client last applied them.
pub(super) fn allowed_conflicts(live: &Value, ty: Type<'_>, api_version: &str) -> Set {
    let Some(last) = live.annotation(ANNOTATION).filter(|a| !a.is_empty()) else { return Set::new() };
    let Ok(last) = Value::from_slice(last.as_bytes()) else { return Set::new() };
    if last.str_at(&["apiVersion"]) != api_version || super::validate(ty, &last, false).is_err() {
        return Set::new();
    }
    let comparison = compare(ty, &last, live);
    field_set(ty, &last).difference(&comparison.modified).difference(&comparison.added).difference(&comparison.removed)
}

/// Rewrites the annotation of an object that has it.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if object.annotation(ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.at_mut(&["metadata", "annotations"]).and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    object.set_annotation(ANNOTATION, &format!("{config}\n"));
    let size: usize = object.annotations().iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATIONS_BYTES {
        object.metadata_mut().object_mut("annotations").remove(ANNOTATION);
    }
}
