//! A strategic merge patch of a Pod, arbitrary JSON with or without directives, never panics.
#![no_main]

use apimachinery::{Value, patch, schema};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pod = apimachinery::json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "y"}}, "spec": {
        "containers": [{"name": "a", "ports": [{"containerPort": 1}]}, {"name": "b"}], "volumes": [{"name": "v"}]}});
    let Some(ty) = schema::lookup("", "v1", "Pod") else { return };
    if let Ok(patch) = Value::from_slice(data) {
        let _ = patch::strategic::apply(&pod, &patch, ty);
    }
});
