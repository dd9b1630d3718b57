//! The table of known keys, read once from `data/keys.txt`.
//!
//! One line per key, indented by depth: `name kind [= default as JSON]`. Kinds: `str bool int num any obj image switch`
//! (`switch` is a bool or one of `auto true false`), `[x]` list of x, `<x>` map of x, `{}` object with the keys below it,
//! `[]` list of such objects, `<>` map of such objects.

use std::sync::OnceLock;

use serde_json::{Map, Value};

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Bool,
    Int,
    Number,
    Any,
    /// An object whose keys are free.
    FreeObject,
    /// `registry/repository:tag` as a string, or an object of the three.
    Image,
    /// A bool, or `auto`.
    Switch,
    List(&'static str),
    MapOf(&'static str),
    /// An object with known keys.
    Object,
    ListOfObjects,
    MapOfObjects,
}

/// One known key with the keys below it.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Option<Value>,
    pub children: Vec<Key>,
}

impl Key {
    pub fn child(&self, name: &str) -> Option<&Key> {
        self.children.iter().find(|key| key.name == name)
    }
}

/// The root of the table; its children are the top-level keys.
pub fn known_keys() -> &'static Key {
    static TABLE: OnceLock<Key> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("../data/keys.txt")))
}

/// Defaults of all keys below `key` that have one.
pub(crate) fn defaults_of(key: &Key) -> Value {
    let mut map = Map::new();
    for child in &key.children {
        if child.kind == Kind::Object {
            let value = defaults_of(child);
            if value.as_object().is_some_and(|object| !object.is_empty()) {
                map.insert(child.name.to_string(), value);
            }
        } else if let Some(default) = &child.default {
            map.insert(child.name.to_string(), default.clone());
        }
    }
    Value::Object(map)
}

fn parse(text: &'static str) -> Key {
    let mut stack: Vec<Key> = vec![Key { name: "", kind: Kind::Object, default: None, children: Vec::new() }];
    for line in text.lines() {
        let body = line.trim_start_matches(' ');
        let depth = line.len() - body.len();
        fold(&mut stack, depth + 1);
        let (head, default) = match body.split_once(" = ") {
            Some((head, json)) => (head, Some(serde_json::from_str(json).expect("defaults are JSON"))),
            None => (body, None),
        };
        let (name, kind) = head.split_once(' ').expect("a key has a kind");
        stack.push(Key { name, kind: kind_of(kind), default, children: Vec::new() });
    }
    fold(&mut stack, 1);
    stack.pop().expect("the root stays")
}

fn fold(stack: &mut Vec<Key>, len: usize) {
    while stack.len() > len {
        let key = stack.pop().expect("longer than len");
        stack.last_mut().expect("len is at least 1").children.push(key);
    }
}

fn kind_of(word: &'static str) -> Kind {
    match word {
        "str" => Kind::String,
        "bool" => Kind::Bool,
        "int" => Kind::Int,
        "num" => Kind::Number,
        "any" => Kind::Any,
        "obj" => Kind::FreeObject,
        "image" => Kind::Image,
        "switch" => Kind::Switch,
        "{}" => Kind::Object,
        "[]" => Kind::ListOfObjects,
        "<>" => Kind::MapOfObjects,
        _ if word.starts_with('[') => Kind::List(word.trim_matches(['[', ']'])),
        _ if word.starts_with('<') => Kind::MapOf(word.trim_matches(['<', '>'])),
        _ => panic!("data/keys.txt: unknown kind {word}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_every_key_of_the_chart() {
        fn leaves(key: &Key) -> usize {
            if key.children.is_empty() { 1 } else { key.children.iter().map(leaves).sum() }
        }
        let root = known_keys();
        assert!(leaves(root) > 1200, "{}", leaves(root));
        let pods = root.child("sync").and_then(|k| k.child("toHost")).and_then(|k| k.child("pods")).unwrap();
        assert_eq!(pods.child("enabled").unwrap().default, Some(Value::Bool(true)));
        assert_eq!(pods.child("translateImage").unwrap().kind, Kind::MapOf("str"));
        assert_eq!(pods.child("patches").unwrap().kind, Kind::ListOfObjects);
    }
}
