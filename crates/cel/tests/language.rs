//! Expressions and what they come to.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::json;
use cel::{Budget, CompileError, Decl, Environment, EvalError, Program, Type, Val};

fn environment() -> Environment {
    let string = || Arc::new(Decl::sized(Type::String, 20));
    let item = Decl::object(
        "Item",
        [("name".to_owned(), string()), ("count".to_owned(), Arc::new(Decl::new(Type::Int)))].into(),
    );
    let fields = [
        ("name".to_owned(), string()),
        ("replicas".to_owned(), Arc::new(Decl::new(Type::Int))),
        ("tags".to_owned(), Arc::new(Decl::list(string(), Some(10)))),
        ("labels".to_owned(), Arc::new(Decl::map(string(), string(), Some(10)))),
        ("items".to_owned(), Arc::new(Decl::list(Arc::new(item), Some(5)))),
        ("__namespace__".to_owned(), string()),
        ("a__dash__b".to_owned(), string()),
        ("created".to_owned(), Arc::new(Decl::new(Type::Timestamp))),
        ("unbounded".to_owned(), Arc::new(Decl::list(Arc::new(Decl::new(Type::String)), None))),
    ];
    Environment::new()
        .with("self", Decl::object("Self", fields.into()))
        .with("any", Decl::new(Type::Dyn))
        .with("n.s.v", Decl::new(Type::Int))
        .with_object(Arc::new(Decl::object("JSONPatch", BTreeMap::new())))
}

fn values() -> BTreeMap<&'static str, Val> {
    let object = json!({"name": "web", "replicas": 3, "tags": ["a", "b", "c"], "labels": {"app": "web", "tier": "front"},
        "items": [{"name": "x", "count": 1}, {"name": "y", "count": 2}], "namespace": "default", "a-b": "dash",
        "created": "2026-01-02T03:04:05Z", "unbounded": []});
    let environment = environment();
    let decl = Program::compile("self", &environment).expect("compiles").output().clone();
    [
        ("self", Val::from_json(&object, Some(&Decl::new(decl)))),
        ("any", Val::from_json(&json!({"x": [1, "two"]}), None)),
        ("n.s.v", Val::Int(7)),
    ]
    .into()
}

fn run(source: &str) -> Result<Val, String> {
    let program = Program::compile(source, &environment()).map_err(|e| format!("compile: {}", e.message()))?;
    let mut budget = Budget::new(1_000_000);
    program.evaluate(&values(), &mut budget).map_err(|e| e.to_string())
}

#[test]
fn expressions_have_values() {
    let mut wrong = Vec::new();
    for source in [
        "1 + 2 * 3 == 7",
        "-(2 - 5) == 3 && !(1 > 2)",
        "7 / 2 == 3 && 7 % 2 == 1 && -7 / 2 == -3",
        "dyn(1) == 1.0 && dyn(1u) == 1 && 2.5 > 2 && 1 < 2u",
        "0x1F == 31 && 1e3 == 1000.0 && .5 < 1.0",
        r#"'a' + "b" == 'ab' && r'\n' != '\n' && '''x''' == "x" && '\u00e9' == 'é'"#,
        "b'abc' == bytes('abc') && size(b'é') == 2 && size('é') == 1",
        "true ? 1 == 1 : 1 / 0 == 0",
        "false && 1 / 0 == 0 ? false : true",
        "1 / 0 == 0 || true",
        "[1, 2, 3][1] == 2 && {'a': 1}['a'] == 1 && {'a': 1}.a == 1",
        "1 in [1, 2] && !(3 in [1, 2]) && 'a' in {'a': 1}",
        "self.replicas == 3 && self.name == 'web' && self.labels['app'] == 'web' && self.labels.tier == 'front'",
        "has(self.name) && !has(self.labels.missing) && has(self.items)",
        "self.tags.all(t, size(t) == 1) && self.tags.exists(t, t == 'b') && self.tags.exists_one(t, t == 'c')",
        "self.items.map(i, i.name) == ['x', 'y'] && self.items.filter(i, i.count > 1).size() == 1",
        "self.items.map(i, i.count > 1, i.name) == ['y']",
        "self.labels.all(k, k.size() > 2) && self.labels.exists(k, v, v == 'front')",
        "self.tags.all(i, t, i < 3 && t != '') && [1, 2].transformList(i, v, i + v) == [1, 3]",
        "{'a': 1}.transformMap(k, v, v + 1) == {'a': 2} && ['x'].transformMapEntry(i, v, {v: i}) == {'x': 0}",
        "[1, 0].exists(x, 10 / x > 5) && ![0, 1].all(x, 10 / x < 5)",
        "self.?name.orValue('none') == 'web' && self.labels[?'nope'].orValue('none') == 'none'",
        "optional.of(1).hasValue() && !optional.none().hasValue() && self.labels.?app.optMap(a, a + '!').value() == 'web!'",
        "[?optional.of(1), ?optional.none(), 2] == [1, 2] && {?'a': optional.none()} == {}",
        "self.__namespace__ == 'default' && self.a__dash__b == 'dash'",
        "any.x[0] == 1 && any.x[1] == 'two' && dyn(1) == 1.0",
        "type(1) == int && type('') == string && type([]) == list && type(type(1)) == type",
        "int('42') == 42 && string(42) == '42' && double('1.5') == 1.5 && uint(3) == 3u && bool('true')",
        "duration('1h30m') == duration('90m') && duration('90s').getSeconds() == 90 && string(duration('1.5s')) == '1.5s'",
        "timestamp('2026-01-02T03:04:05Z') == self.created && self.created.getFullYear() == 2026 && self.created.getMonth() == 0",
        "self.created + duration('1h') > self.created && self.created.getHours('+02:00') == 5",
        "'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo') && 'hello'.matches('^h.*o$')",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'abc'.substring(1, 2) == 'b'",
        "'Hi'.lowerAscii() == 'hi' && ' x '.trim() == 'x' && 'aXa'.replace('a', 'b') == 'bXb' && 'abc'.indexOf('c') == 2",
        "'%s is %d, %.2f and %x'.format(['x', 3, 1.5, 255]) == 'x is 3, 1.50 and ff'",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 2].isSorted() && [1, 2, 3].sum() == 6 && [1, 5, 2].max() == 5",
        "[1, 1, 2].distinct() == [1, 2] && [[1], [2]].flatten() == [1, 2] && [1, 2, 3].slice(1, 3) == [2, 3] && lists.range(3) == [0, 1, 2]",
        "sets.contains([1, 2, 3], [3, 1]) && sets.intersects([1], [1, 2]) && !sets.equivalent([1], [2])",
        "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "url('https://a.example:8080/p?x=1&x=2').getHostname() == 'a.example' && url('https://a.example/').getQuery() == {} && !isURL('::')",
        "url('https://a.example:8080/p?x=1&x=2').getQuery()['x'] == ['1', '2'] && url('https://[::1]:80/').getHost() == '[::1]:80'",
        "quantity('1Gi').isGreaterThan(quantity('1M')) && quantity('1k').add(24).asInteger() == 1024 && isQuantity('2') && !isQuantity('x')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('10.0.0.256') && ip('127.0.0.1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && string(cidr('10.1.2.3/8').masked()) == '10.0.0.0/8'",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0')) && isSemver('v1.2', true)",
        "!format.dns1123Label().validate('my-name').hasValue() && format.named('dns1123Label').value().validate('A').hasValue()",
        "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
    ] {
        match run(source) {
            Ok(Val::Bool(true)) => {}
            other => wrong.push(format!("{source}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_cannot_be_right_does_not_compile() {
    for (source, message) in [
        ("self.nope", "undefined field 'nope'"),
        ("nope", "undeclared reference to 'nope' (in container '')"),
        ("1 + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("self.name.size() > 'a'", "found no matching overload for '_>_' applied to '(int, string)'"),
        ("self.name == 1", "found no matching overload for '_==_' applied to '(string, int)'"),
        ("self.tags.all(t, t)", "expected type 'bool' but found 'string'"),
        ("[1, 'a'].size() == 2", "expected type 'int' but found 'string'"),
        ("'a'.matches('[')", "invalid matches argument"),
        ("duration('x') > duration('1s')", "invalid duration argument"),
        ("1 +", "Syntax error: mismatched input '<EOF>'"),
        ("self.name.all(x, true)", "cannot be range of a comprehension"),
        ("has(1)", "invalid argument to has() macro"),
        ("[1].all(1, true)", "argument must be a simple name"),
        ("9223372036854775808", "invalid int literal"),
        ("self.replicas.foo()", "undeclared reference to 'foo'"),
    ] {
        let error = Program::compile(source, &environment()).expect_err(source);
        assert!(error.message().contains(message), "{source}: {error}");
    }
    assert!(Program::compile("-9223372036854775808 < 0", &environment()).is_ok());
}

#[test]
fn errors_name_place_and_line() {
    let error = Program::compile("self.name == 'a' &&\n  self.nope", &environment()).expect_err("no such field");
    assert!(matches!(error, CompileError::Types { .. }));
    assert_eq!(error.to_string(), "ERROR: <input>:2:7: undefined field 'nope'\n |   self.nope\n | ......^");
}

#[test]
fn what_fails_at_run_time_says_why() {
    for (source, message) in [
        ("1 / 0 == 1", "division by zero"),
        ("self.tags[5] == ''", "index out of bounds: 5"),
        ("self.labels['nope'] == ''", "no such key: nope"),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("any.y == 1", "no such key: y"),
        ("int(string(any.x[1])) == 1", "type conversion error from 'string' to 'int'"),
        // Conversions of literals fail before anything is evaluated.
        ("int('x') == 1", "compile: type conversion error from 'string' to 'int'"),
        ("[0].all(x, 1 / x > 0)", "division by zero"),
    ] {
        assert_eq!(run(source).expect_err(source), message, "{source}");
    }
}

#[test]
fn no_expression_runs_for_long() {
    // Each would take ages: nested loops over lists, and strings that double.
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let mut nested = "true".to_owned();
    for i in 0..9 {
        nested = format!("{ten}.all(x{i}, {nested})");
    }
    let doubling =
        format!("{ten}.map(a, {ten}.map(b, {ten}.map(c, 'xxxxxxxxxx'.split('').join('yyyyyyyyyyyyyy')))).size() == 0");
    for source in [nested.as_str(), "lists.range(1000000).map(x, lists.range(1000000)).size() > 0"] {
        let program = Program::compile(source, &environment()).expect("compiles");
        let mut budget = Budget::new(1_000_000);
        let begin = std::time::Instant::now();
        assert_eq!(program.evaluate(&values(), &mut budget).unwrap_err(), EvalError::OverBudget);
        assert!(begin.elapsed().as_secs() < 10, "a bug, not a slow machine");
        assert!(program.cost().max > 1_000_000, "the estimate says so beforehand");
    }
    assert!(Program::compile(&doubling, &environment()).is_ok());
    let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(Program::compile(&deep, &environment()).is_err());
    let long = "!".repeat(5000) + "true";
    assert!(Program::compile(&long, &environment()).is_ok());
}

#[test]
fn estimates_bound_what_is_spent() {
    for source in [
        "self.tags.all(t, t.size() < 5)",
        "self.items.exists(i, i.name == 'y' && i.count == 2)",
        "self.name.matches('^[a-z]+$')",
        "self.tags.map(t, t + '!').join(',').contains('b!')",
        "self.labels.all(k, self.tags.exists(t, t != k))",
    ] {
        let program = Program::compile(source, &environment()).expect("compiles");
        let mut budget = Budget::new(1_000_000);
        program.evaluate(&values(), &mut budget).expect("evaluates");
        let spent = 1_000_000 - budget.remaining;
        assert!(spent <= program.cost().max, "{source}: spent {spent}, estimated {:?}", program.cost());
    }
    let unbounded =
        Program::compile("self.unbounded.all(x, self.unbounded.all(y, x != y))", &environment()).expect("compiles");
    assert!(unbounded.cost().max > 100_000_000, "{:?}", unbounded.cost());
}

#[test]
fn what_is_said_about_broken_texts_is_bounded() {
    for (text, mistakes) in
        [("#".repeat(900), 100), ("#".repeat(20_000), 100), ("1+".repeat(600), 1), ("(".repeat(900), 1)]
    {
        let error = Program::compile(&text, &environment()).unwrap_err().detail();
        let told = error.matches("ERROR: ").count();
        assert!(told >= 1 && told <= mistakes && error.len() <= 80 << 10, "{told} in {} bytes", error.len());
    }
}
