//! Any bytes as a protobuf body of a Pod: an object or an error.
#![no_main]

use apimachinery::gvk::GroupVersionKind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let kind = GroupVersionKind::new("", "v1", "Pod");
    let _ = apimachinery::protobuf::object(body, &kind);
    let framed: Vec<u8> = b"k8s\0".iter().chain(body).copied().collect();
    let _ = apimachinery::protobuf::object(&framed, &kind);
});
