//! An applied ConfigMap, arbitrary JSON, is refused or idempotent.
#![no_main]

use apimachinery::Value;
use apimachinery::apply::{BuiltinVersions, FieldManager};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::time::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut config) = Value::from_slice(data) else { return };
    let kind = GroupVersionKind::new("", "v1", "ConfigMap");
    kind.set_on(&mut config);
    let manager = FieldManager {
        kind: &kind,
        subresource: "",
        versions: &BuiltinVersions { kind: "ConfigMap", convert: &|object: &Value, _: &str| Ok(object.clone()) },
        filters: &Default::default(),
        now: Timestamp::from_seconds(1),
    };
    let Ok(once) = manager.apply(None, &config, "m", false) else { return };
    // What was applied does not conflict with itself, and stored objects can be tracked.
    if manager.apply(Some(&once), &config, "m", false).is_ok() {
        manager.update(Some(&once), once.clone(), "n");
    }
});
