//! A merge patch holds afterwards: applying it twice is applying it once.
#![no_main]

use apimachinery::patch::merge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let object = apimachinery::json!({"a": {"b": [1, "x"]}, "d": "e"});
    if let Ok(patch) = merge::decode(data) {
        let once = merge::apply(&object, &patch);
        assert_eq!(merge::apply(&once, &patch).to_vec().len(), once.to_vec().len());
    }
});
