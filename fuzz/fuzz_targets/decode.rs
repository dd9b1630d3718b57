//! Any bytes as the body of a Pod, JSON and YAML: an object or an error.
#![no_main]

use apimachinery::decode::{self, Format};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let kind = GroupVersionKind::new("", "v1", "Pod");
    let Some(ty) = schema::lookup("", "v1", "Pod") else { return };
    for format in [Format::Json, Format::Yaml] {
        if let Ok(decoded) = decode::object(body, format, &kind, ty) {
            // What was decoded decodes again, to the same.
            let again = decode::object(&decoded.object.to_vec(), Format::Json, &kind, ty);
            assert_eq!(again.expect("our own output").object, decoded.object);
        }
    }
});
