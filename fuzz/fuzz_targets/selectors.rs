//! A selector is refused or prints as a selector that is the same.
#![no_main]

use apimachinery::{fields, labels};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(selector) = labels::Selector::parse(text) {
        assert_eq!(labels::Selector::parse(&selector.to_string()), Ok(selector));
    }
    if let Ok(selector) = fields::Selector::parse(text) {
        let _ = fields::Selector::parse(&selector.to_string());
    }
});
