//! A quantity is refused or keeps its amount when it is printed and read again.
#![no_main]

use apimachinery::quantity::{Format, Quantity};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(quantity) = Quantity::parse(text) else { return };
    // There is no decimal suffix beyond exa: upstream drops the exponent, and so do we.
    let fits = quantity.value() < i64::MAX && quantity.value() > i64::MIN;
    if quantity.format() == Format::DecimalExponent || fits {
        assert_eq!(Quantity::parse(&quantity.to_string()), Ok(quantity));
    }
});
