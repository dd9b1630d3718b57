//! What cel-go, as Kubernetes v1.36 sets it up, says of some hundred expressions (`data/answers.json`): mistakes with their
//! places, types, values, errors, costs beforehand and afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::{Value, json};
use cel::declarations::AUTHORIZER;
use cel::{Budget, CompileError, Decl, Environment, Key, Program, Type, Val};

/// What is left of a request for one text.
const TEXT_MAX: u64 = 3 * 1024 * 1024 - 2;
const LIMIT: u64 = 1_000_000;

fn environment() -> Environment {
    let of = |ty: Type| Arc::new(Decl::new(ty));
    let short = || Arc::new(Decl::sized(Type::String, 80));
    let long = || Arc::new(Decl::sized(Type::String, TEXT_MAX));
    let item = [("name".to_owned(), short()), ("count".to_owned(), of(Type::Int))];
    let item = Decl::object("Self.items.@idx", item.into());
    let fields = [
        ("name", short()),
        ("replicas", of(Type::Int)),
        ("ratio", of(Type::Double)),
        ("flag", of(Type::Bool)),
        ("tags", Arc::new(Decl::list(short(), Some(10)))),
        ("numbers", Arc::new(Decl::list(of(Type::Int), Some(10)))),
        ("labels", Arc::new(Decl::map(Arc::new(Decl::sized(Type::String, 0)), short(), Some(10)))),
        ("items", Arc::new(Decl::list(Arc::new(item), Some(5)))),
        ("__namespace__", short()),
        ("a__dash__b", short()),
        ("created", Arc::new(Decl::sized(Type::Timestamp, 32))),
        ("lasts", Arc::new(Decl::sized(Type::Duration, 32))),
        ("unbounded", Arc::new(Decl::list(long(), Some(TEXT_MAX / 3)))),
        ("text", long()),
        ("missing", long()),
    ];
    Environment::new()
        .with("self", Decl::object("Self", fields.map(|(name, decl)| (name.to_owned(), decl)).into()))
        .with("any", Decl::new(Type::Dyn))
        .with("authorizer", Decl::new(Type::Opaque(AUTHORIZER)))
        .with("n.s.v", Decl::new(Type::Int))
}

fn values(environment: &Environment) -> BTreeMap<&'static str, Val> {
    let object = json!({
        "name": "web", "replicas": 3, "ratio": 1.5, "flag": true, "tags": ["a", "b", "c"], "numbers": [3, 1, 2],
        "labels": {"app": "web", "tier": "front"}, "items": [{"name": "x", "count": 1}, {"name": "y", "count": 2}],
        "namespace": "default", "a-b": "dash", "created": "2026-01-02T03:04:05Z", "lasts": "90s", "unbounded": [],
        "text": "some text",
    });
    let decl = Program::compile("self", environment).expect("a variable compiles").output().clone();
    [
        ("self", Val::from_json(&object, Some(&Decl::new(decl)))),
        ("any", Val::from_json(&json!({"x": [1, "two", 2.5, null, true], "m": {"a": 1}}), None)),
        ("n.s.v", Val::Int(7)),
    ]
    .into()
}

/// A value as the table writes it.
fn shown(value: &Val) -> String {
    let text = |s: &str| String::from_utf8(Value::from(s).to_vec()).expect("JSON is UTF-8");
    match value {
        Val::Null => "null".to_owned(),
        Val::Bool(b) => b.to_string(),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => format!("{u}u"),
        Val::Double(d) if d.is_finite() => {
            let plain = format!("{d:e}");
            let (mantissa, exponent) = plain.split_once('e').expect("an exponent");
            let exponent: i32 = exponent.parse().expect("a number");
            format!("d{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        Val::Double(d) if d.is_nan() => "dNaN".to_owned(),
        Val::Double(d) => if *d > 0.0 { "d+Inf" } else { "d-Inf" }.to_owned(),
        Val::String(s) => text(s),
        Val::Bytes(b) => format!("b{}", b.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        Val::Duration(d) => format!("duration({})", d.as_nanos()),
        Val::Timestamp(t) => format!("timestamp({t})"),
        Val::Optional(None) => "none".to_owned(),
        Val::Optional(Some(held)) => format!("optional({})", shown(held)),
        Val::Type(ty) => {
            let name = ty.to_string();
            format!("type({})", name.split('(').next().unwrap_or_default())
        }
        Val::List(list) => format!("[{}]", list.iter().map(shown).collect::<Vec<_>>().join(",")),
        Val::Map(map) => {
            let key = |key: &Key| match key {
                Key::Bool(b) => b.to_string(),
                Key::Integer(i) => i.to_string(),
                Key::String(s) => text(s),
            };
            let mut entries: Vec<String> = map.iter().map(|(k, v)| format!("{}:{}", key(k), shown(v))).collect();
            entries.sort();
            format!("{{{}}}", entries.join(","))
        }
        Val::Opaque(opaque) => match opaque.text() {
            Some(text) => format!("{}({text})", opaque.type_name()),
            None => format!("opaque({})", opaque.type_name()),
        },
    }
}

#[test]
fn answers_are_those_of_cel_go() {
    let environment = environment();
    let values = values(&environment);
    let table = Value::from_slice(include_bytes!("data/answers.json")).expect("the table is JSON");
    let mut wrong = Vec::new();
    for row in table.as_array().expect("the table is a list") {
        let source = row.str_at(&["e"]);
        let mut got = json!({"e": source});
        match Program::compile(source, &environment) {
            Err(CompileError::Program(message)) => got["issues"] = format!("PROGRAM: {message}").into(),
            Err(error) => got["issues"] = error.to_string().into(),
            Ok(program) => {
                got["type"] = program.output().to_string().into();
                got["estimate"] = json!([program.cost().min, program.cost().max]);
                let mut budget = Budget::new(LIMIT);
                match program.evaluate(&values, &mut budget) {
                    Ok(value) => got["value"] = shown(&value).into(),
                    Err(error) => got["error"] = error.to_string().into(),
                }
                got["cost"] = (LIMIT - budget.remaining).into();
            }
        }
        if got != *row {
            wrong.push(format!("{source}\n  want {row}\n  got  {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_wrong_with_long_texts_is_told_soon() {
    let begin = std::time::Instant::now();
    for source in [
        "(".repeat(5000),
        "-".repeat(4000),
        format!("a{}{{", ".a".repeat(2400)),
        format!("a{} b", ".a".repeat(2400)),
        "1 + ".repeat(1200),
        "a ? ".repeat(1500),
        "x ".repeat(2400),
        "\\".repeat(4000),
        "'".repeat(4001),
        "a.b.c{".repeat(700),
        "@".repeat(50_000),
    ] {
        assert!(Program::compile(&source, &environment()).is_err());
    }
    assert!(begin.elapsed().as_secs() < 60, "a bug, not a slow machine");
}
