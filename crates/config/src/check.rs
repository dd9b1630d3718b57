//! Is every key known, of the right kind, and built? Works on parsed nodes so that it can say where.

use std::sync::OnceLock;

use serde_json::Value;

use crate::error::Problem;
use crate::table::{Key, Kind, known_keys};
use crate::yaml::{Data, Node};

/// What a known key does in this version of Alcove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Built {
    /// It is in effect everywhere.
    Everywhere,
    /// It shapes the workload of placement `dedicated`; a hub has no such workload.
    Dedicated,
    /// A hub does it; a pod of the cluster's own does not.
    Hub,
    /// It is accepted because there is nothing to do for it; the text says why.
    NothingToDo(&'static str),
    /// It existed in older releases.
    Removed(&'static str),
    No,
}

/// What the key at `path` (`a.b[0].c`) does. The most specific line of `data/built.txt` counts.
pub fn built(path: &str) -> Built {
    static LINES: OnceLock<Vec<(&'static str, Built)>> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        include_str!("../data/built.txt")
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let (path, rest) = line.split_once(' ').unwrap_or((line, ""));
                let (word, note) = rest.split_once(' ').unwrap_or((rest, ""));
                let built = match word {
                    "" => Built::Everywhere,
                    "dedicated" => Built::Dedicated,
                    "hub" => Built::Hub,
                    "nothing" => Built::NothingToDo(note),
                    "removed" => Built::Removed(note),
                    "no" => Built::No,
                    _ => panic!("data/built.txt: unknown word {word}"),
                };
                (path, built)
            })
            .collect()
    });
    lines
        .iter()
        .filter(|(prefix, _)| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
        .max_by_key(|(prefix, _)| prefix.len())
        .map_or(Built::No, |(_, built)| *built)
}

struct Checker<'a> {
    source: Option<&'a str>,
    problems: &'a mut Vec<Problem>,
    /// Inside an entry of a list or map, which is reported as a whole when it is not built.
    in_entry: bool,
}

/// Checks one parsed document.
pub(crate) fn check_document(source: &str, node: &Node, problems: &mut Vec<Problem>) {
    Checker { source: Some(source), problems, in_entry: false }.node("", known_keys(), node);
}

/// Checks values that came without positions (`--set`).
pub(crate) fn check_value(value: &Value, problems: &mut Vec<Problem>) {
    Checker { source: None, problems, in_entry: false }.node("", known_keys(), &node_of(value));
}

fn node_of(value: &Value) -> Node {
    let data = match value {
        Value::Null => Data::Null,
        Value::Bool(b) => Data::Bool(*b),
        Value::Number(n) => Data::Number(n.clone()),
        Value::String(s) => Data::String(s.clone()),
        Value::Array(items) => Data::Seq(items.iter().map(node_of).collect()),
        Value::Object(map) => Data::Map(map.iter().map(|(k, v)| (k.clone(), 0, 0, node_of(v))).collect()),
    };
    Node { line: 0, column: 0, data }
}

impl Checker<'_> {
    fn problem(&mut self, line: u64, column: u64, path: &str, message: String) {
        self.problems.push(Problem {
            source: self.source.map(str::to_string),
            line,
            column,
            path: path.to_string(),
            message,
        });
    }

    fn wrong_kind(&mut self, path: &str, node: &Node, want: &str) {
        let hint = match (&node.data, want) {
            (Data::Number(n), "a string") => format!("; write \"{n}\" in quotes"),
            (Data::Bool(b), "a string") => format!("; write \"{b}\" in quotes"),
            (Data::String(s), "true or false") if s == "true" || s == "false" => "; remove the quotes".to_string(),
            (Data::String(s), "a whole number") if s.parse::<i64>().is_ok() => "; remove the quotes".to_string(),
            _ => String::new(),
        };
        let got = describe(&node.data);
        let whole = if path.is_empty() { "the document must be" } else { "must be" };
        self.problem(node.line, node.column, path, format!("{whole} {want}, but is {got}{hint}"));
    }

    fn node(&mut self, path: &str, key: &Key, node: &Node) {
        // `null` removes a default, as in Helm.
        if matches!(node.data, Data::Null) {
            return;
        }
        let errors_before = self.problems.len();
        match key.kind {
            Kind::Object => return self.object(path, key, node),
            Kind::ListOfObjects => match &node.data {
                Data::Seq(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.elements(&format!("{path}[{index}]"), key, item);
                    }
                }
                _ => self.wrong_kind(path, node, "a list"),
            },
            Kind::MapOfObjects => match &node.data {
                Data::Map(entries) => {
                    for (name, _, _, item) in entries {
                        self.elements(&format!("{path}.{name}"), key, item);
                    }
                }
                _ => self.wrong_kind(path, node, "a map"),
            },
            Kind::List(of) => match &node.data {
                Data::Seq(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.scalar(&format!("{path}[{index}]"), of, item);
                    }
                }
                _ => self.wrong_kind(path, node, "a list"),
            },
            Kind::MapOf(of) => match &node.data {
                Data::Map(entries) => {
                    for (name, _, _, item) in entries {
                        self.scalar(&format!("{path}.{name}"), of, item);
                    }
                }
                _ => self.wrong_kind(path, node, "a map"),
            },
            Kind::String => self.scalar(path, "str", node),
            Kind::Bool => self.scalar(path, "bool", node),
            Kind::Int => self.scalar(path, "int", node),
            Kind::Number => self.scalar(path, "num", node),
            Kind::FreeObject => self.scalar(path, "obj", node),
            Kind::Any => {}
            Kind::Switch => match &node.data {
                Data::Bool(_) => {}
                Data::String(word) if matches!(word.as_str(), "auto" | "true" | "false") => {}
                _ => self.wrong_kind(path, node, "one of: auto, true, false"),
            },
            Kind::Image => match &node.data {
                Data::String(_) => {}
                Data::Map(entries) => {
                    for (name, line, column, item) in entries {
                        let path = format!("{path}.{name}");
                        if matches!(name.as_str(), "registry" | "repository" | "tag") {
                            self.scalar(&path, "str", item);
                        } else {
                            let hint = suggest(name, ["registry", "repository", "tag"].into_iter());
                            self.problem(*line, *column, &path, format!("unknown key{hint}"));
                        }
                    }
                }
                _ => self.wrong_kind(path, node, "an image name, or a map of registry, repository and tag"),
            },
        }
        if self.problems.len() == errors_before && !self.in_entry {
            self.built(path, key, node);
        }
    }

    fn elements(&mut self, path: &str, key: &Key, item: &Node) {
        if matches!(item.data, Data::Null) {
            return;
        }
        let outer = std::mem::replace(&mut self.in_entry, true);
        self.object(path, key, item);
        self.in_entry = outer;
    }

    fn object(&mut self, path: &str, key: &Key, node: &Node) {
        let Data::Map(entries) = &node.data else {
            return self.wrong_kind(path, node, "a map");
        };
        for (name, line, column, value) in entries {
            let child_path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match key.child(name) {
                Some(child) => self.node(&child_path, child, value),
                None => {
                    let hint = suggest_path(path, key, name);
                    self.problem(*line, *column, &child_path, format!("unknown key{hint}"));
                }
            }
        }
    }

    fn scalar(&mut self, path: &str, want: &str, node: &Node) {
        let (fits, name) = match want {
            "str" => (matches!(node.data, Data::String(_)), "a string"),
            "bool" => (matches!(node.data, Data::Bool(_)), "true or false"),
            "int" => {
                let whole = matches!(&node.data, Data::Number(n) if n.is_i64() || n.is_u64());
                (whole, "a whole number")
            }
            "num" => (matches!(node.data, Data::Number(_)), "a number"),
            "obj" => (matches!(node.data, Data::Map(_)), "a map"),
            _ => (true, "anything"),
        };
        if !fits && !matches!(node.data, Data::Null) {
            self.wrong_kind(path, node, name);
        }
    }

    /// Refuses what is set, differs from its default and does nothing here.
    fn built(&mut self, path: &str, key: &Key, node: &Node) {
        let value = node.to_value();
        let message = match built(path) {
            Built::No => "not supported yet; remove it or leave it at its default".to_string(),
            Built::Removed(note) => note.to_string(),
            _ => return,
        };
        // Switching off what is not there is what happens anyway.
        let off = matches!(value, Value::Bool(false)) || value == "false";
        if is_default(&value, key.default.as_ref()) || (off && key.name == "enabled") {
            return;
        }
        self.problem(node.line, node.column, path, message);
    }
}

fn is_default(value: &Value, default: Option<&Value>) -> bool {
    match (value, default) {
        (Value::Object(set), Some(Value::Object(default))) => set.iter().all(|(k, v)| is_default(v, default.get(k))),
        (value, Some(default)) => value == default || is_empty(value) && is_empty(default),
        (value, None) => is_empty(value),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

fn describe(data: &Data) -> String {
    match data {
        Data::Null => "null".into(),
        Data::Bool(b) => format!("the boolean {b}"),
        Data::Number(n) => format!("the number {n}"),
        Data::String(s) if s.chars().count() > 40 => "a long string".into(),
        Data::String(s) => format!("the string {s:?}"),
        Data::Seq(_) => "a list".into(),
        Data::Map(_) => "a map".into(),
    }
}

/// A key of the same spelling elsewhere wins over a distant one here: most mistakes are a wrong level or a typo.
fn suggest_path(path: &str, key: &Key, name: &str) -> String {
    let here = nearest(name, key.children.iter().map(|key| key.name));
    if let Some((near, distance)) = here
        && distance <= 2.min(name.chars().count() / 2)
    {
        return format!("; did you mean {:?}?", join(path, near));
    }
    let mut same_name = Vec::new();
    collect(known_keys(), "", name, &mut same_name);
    // Nearest by shared beginning of the path.
    same_name.sort_by_key(|candidate| std::cmp::Reverse(shared(path, candidate)));
    match same_name.first() {
        Some(candidate) => format!("; did you mean {candidate:?}?"),
        None => match here {
            Some((near, distance)) if distance <= name.chars().count().max(3) / 2 => {
                format!("; did you mean {:?}?", join(path, near))
            }
            _ if path.is_empty() => format!("; known here: {}", list(key)),
            _ => format!("; known keys of {path}: {}", list(key)),
        },
    }
}

fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |(near, _)| format!("; did you mean {near:?}?"))
}

fn list(key: &Key) -> String {
    let names: Vec<_> = key.children.iter().map(|key| key.name).collect();
    if names.len() > 20 { format!("{}, ...", names[..20].join(", ")) } else { names.join(", ") }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn collect(key: &Key, path: &str, name: &str, found: &mut Vec<String>) {
    if key.kind != Kind::Object {
        return;
    }
    for child in &key.children {
        let child_path = join(path, child.name);
        if child.name == name {
            found.push(child_path.clone());
        }
        collect(child, &child_path, name, found);
    }
}

fn shared(a: &str, b: &str) -> usize {
    a.split('.').zip(b.split('.')).take_while(|(a, b)| a == b).count()
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    known
        .map(|candidate| {
            // The beginning of a long word is nearer than a short word of other letters.
            let begins = name.len() >= 3 && candidate.starts_with(name);
            (candidate, if begins { 1 } else { distance(name, candidate) })
        })
        .min_by_key(|(_, distance)| *distance)
}

/// Edit distance, letter case apart.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().take(64).collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
