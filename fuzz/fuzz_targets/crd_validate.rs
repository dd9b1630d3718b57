//! A definition and an object, with a null byte between them: the definition is refused, or its object is refused, or
//! the object is taken and all that is done with objects works. What has no `spec` is the schema of a definition.
//!
//! Seeds: `cargo run --bin crd_seeds -- corpus/crd_validate`. SQLite is linked in and has globals of one name, so run it
//! with `ASAN_OPTIONS=detect_odr_violation=0`.
#![no_main]

use apimachinery::apply::FieldManager;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::time::Timestamp;
use apimachinery::{Value, json, resources};
use apiserver::crd;
use apiserver::negotiate::Encoding;
use apiserver::strategy::{BuiltIn, FieldValidation, Strategy};
use libfuzzer_sys::fuzz_target;

/// A definition around a schema.
fn definition(schema: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector"
                }},
                "additionalPrinterColumns": [{"name": "A", "type": "date", "jsonPath": ".spec.list[0]['a.b']"}]
            }]
        }
    })
}

/// The object as a create would leave it, if it is accepted.
fn create(strategy: &dyn Strategy, kind: &GroupVersionKind, body: &[u8]) -> Option<Value> {
    let mut object = strategy.decode(kind, body, Encoding::Json, FieldValidation::Warn).ok()?.object;
    strategy.prepare_create(&mut object);
    strategy.default_object(&mut object);
    let mut again = object.clone();
    strategy.default_object(&mut again);
    assert_eq!(again, object, "defaults of what has its defaults");
    let _ = strategy.warnings_create(&object);
    let errors = strategy.validate_create(&object);
    for error in &errors {
        let _ = error.to_string();
    }
    errors.is_empty().then_some(object)
}

/// Tracks, changes, prints and selects an accepted object.
fn use_object(strategy: &dyn Strategy, kind: &GroupVersionKind, object: &Value) {
    let now = Timestamp::from_seconds(1);
    for subresource in ["", "status", "scale"] {
        let mut changed = object.clone();
        changed["spec"] = json!({"replicas": 3, "changed": [object.get("spec").cloned()]});
        strategy.prepare_update(subresource, &mut changed, object);
        let _ = strategy.validate_update(subresource, &changed, object, &mut Vec::new());
        let filters = strategy.reset_fields(subresource);
        let manager = FieldManager { kind, subresource, versions: strategy.versions(), filters: &filters, now };
        let tracked = manager.update(Some(object), changed, "m");
        let _ = manager.apply(Some(&tracked), object, "n", false);
        if let Ok(once) = manager.apply(None, object, "n", true) {
            assert!(manager.apply(Some(&once), object, "n", false).is_ok(), "an apply conflicts with itself");
        }
    }
    let _ = strategy.table_row(object, now);
    let _ = strategy.field_value(object, "spec.replicas");
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |b| *b == 0);
    let (first, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(first) = Value::from_slice(first) else { return };
    let first = if first.get("spec").is_some() { first } else { definition(first) };
    let definitions = resources::RESOURCES.iter().find(|r| r.group == crd::GROUP && r.name == crd::RESOURCE);
    let strategy = BuiltIn::new(definitions.expect("definitions are served"));
    let kind = GroupVersionKind::new(crd::GROUP, "v1", "CustomResourceDefinition");
    let Some(definition) = create(&strategy, &kind, &first.to_vec()) else { return };
    let errors = strategy.validate_update("", &definition, &definition, &mut Vec::new());
    assert!(errors.is_empty(), "an accepted definition is accepted as an update of itself: {errors:?}");
    let versions = match crd::strategies(&definition) {
        Ok(versions) => versions,
        Err(error) => panic!("an accepted definition cannot be served: {error}"),
    };
    for (kind, strategy) in versions {
        let mut body = Value::from_slice(body).unwrap_or_default();
        if !body.is_object() {
            body = json!({"spec": body});
        }
        kind.set_on(&mut body);
        body.set_at(&["metadata", "name"], "n".into());
        body.set_at(&["metadata", "namespace"], "ns".into());
        if let Some(object) = create(&*strategy, &kind, &body.to_vec()) {
            use_object(&*strategy, &kind, &object);
        }
    }
});
