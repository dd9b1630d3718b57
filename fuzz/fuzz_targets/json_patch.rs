//! A JSON patch, arbitrary bytes, never panics and never leaves the limits.
#![no_main]

use apimachinery::patch::json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let object = apimachinery::json!({"a": {"b": [1, "x", null, {"c": true}]}, "d": "e"});
    let _ = json::apply(&object, data);
});
