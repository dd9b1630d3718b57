//! A stored field set is refused or survives being written and read again.
#![no_main]

use apimachinery::Value;
use apimachinery::apply::set::Set;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(fields) = Value::from_slice(data) else { return };
    if let Ok(set) = Set::from_fields_v1(&fields) {
        assert_eq!(Set::from_fields_v1(&set.to_fields_v1()), Ok(set));
    }
});
