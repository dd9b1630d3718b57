//! Any text as an expression: it compiles or says why not, and what compiles ends within its budget.
#![no_main]

use std::collections::BTreeMap;

use cel::{Budget, Decl, Environment, Program, Type, Val};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let environment = Environment::new().with("self", Decl::new(Type::Dyn)).with("x", Decl::new(Type::Int));
    if let Ok(program) = Program::compile(text, &environment) {
        let object = apimachinery::json!({"a": [1, "b", null, {"c": 1.5}], "name": "n"});
        let variables = BTreeMap::from([("self", Val::from_json(&object, None)), ("x", Val::Int(3))]);
        let _ = program.evaluate(&variables, &mut Budget::new(10_000));
    }
});
