//! Go templates, as far as manifests in `vcluster.yaml` use them: actions, pipelines, `if`, `with`, `range`, variables, and
//! the functions of Helm that work on values. `define`, `include` and cluster look-ups are refused by name.
//!
//! Invariants:
//! - A template sees nothing but what [`context`] holds; it cannot read files, clocks or clusters.
//! - Output is bounded ([`MAX_OUTPUT`]) and nesting too, so that a template cannot use up the process.
//!
//! Follows: Go's `text/template` and Helm's functions, as documented.

mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::objects::Release;
use parse::{Node, Operand, Pipeline};

/// Longest text a template may write.
const MAX_OUTPUT: usize = 8 << 20;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("template line {line}: {message}")]
pub struct TemplateError {
    pub line: usize,
    pub message: String,
}

/// What templates see: `.Values`, `.Release`, `.Chart`.
pub fn context(release: &Release<'_>) -> Value {
    values_context(release.name, release.namespace, release.version, release.config.values())
}

/// [`context`] without a release at hand.
pub fn values_context(name: &str, namespace: &str, version: &str, values: &Value) -> Value {
    json!({
        "Values": values,
        "Release": {
            "Name": name,
            "Namespace": namespace,
            "Service": "Helm",
            "IsInstall": true,
            "IsUpgrade": false,
            "Revision": 1,
        },
        "Chart": {"Name": "alcove", "Version": version, "AppVersion": version},
    })
}

/// Renders `text` with `context` as the dot.
pub fn render(text: &str, context: &Value) -> Result<String, TemplateError> {
    if !text.contains("{{") {
        return Ok(text.to_string());
    }
    let nodes = parse::parse(text)?;
    let mut run = Run { root: context, variables: vec![BTreeMap::new()], out: String::new() };
    run.nodes(&nodes, context)?;
    Ok(run.out)
}

struct Run<'a> {
    root: &'a Value,
    /// Innermost scope last.
    variables: Vec<BTreeMap<String, Value>>,
    out: String,
}

fn fail(line: usize, message: impl Into<String>) -> TemplateError {
    TemplateError { line, message: message.into() }
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(line, pipeline) => {
                    let value = self.pipeline(*line, pipeline, dot)?;
                    if pipeline.variable.is_none() {
                        self.out.push_str(&functions::print(&value));
                    }
                }
                Node::If(line, branches, otherwise) => {
                    self.scope(|run| {
                        for (condition, body) in branches {
                            let value = run.pipeline(*line, condition, dot)?;
                            if functions::truth(&value) {
                                return run.nodes(body, dot);
                            }
                        }
                        run.nodes(otherwise, dot)
                    })?;
                }
                Node::With(line, condition, body, otherwise) => {
                    self.scope(|run| {
                        let value = run.pipeline(*line, condition, dot)?;
                        if functions::truth(&value) { run.nodes(body, &value) } else { run.nodes(otherwise, dot) }
                    })?;
                }
                Node::Range(line, names, pipeline, body, otherwise) => {
                    self.range(*line, names, pipeline, body, otherwise, dot)?;
                }
            }
            if self.out.len() > MAX_OUTPUT {
                return Err(fail(0, format!("the output is longer than {MAX_OUTPUT} bytes")));
            }
        }
        Ok(())
    }

    fn scope<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T, TemplateError>) -> Result<T, TemplateError> {
        self.variables.push(BTreeMap::new());
        let result = body(self);
        self.variables.pop();
        result
    }

    fn range(
        &mut self,
        line: usize,
        names: &[String],
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let items: Vec<(Value, Value)> = match self.pipeline(line, pipeline, dot)? {
            Value::Array(items) => items.into_iter().enumerate().map(|(index, item)| (json!(index), item)).collect(),
            Value::Object(map) => {
                let sorted: BTreeMap<String, Value> = map.into_iter().collect();
                sorted.into_iter().map(|(key, value)| (Value::String(key), value)).collect()
            }
            Value::Null => Vec::new(),
            other => return Err(fail(line, format!("range cannot go over {}", functions::kind(&other)))),
        };
        if items.is_empty() {
            return self.scope(|run| run.nodes(otherwise, dot));
        }
        for (key, item) in items {
            self.scope(|run| {
                match names {
                    [value] => run.set(value, item.clone()),
                    [index, value] => {
                        run.set(index, key.clone());
                        run.set(value, item.clone());
                    }
                    _ => {}
                }
                run.nodes(body, &item)
            })?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Some(scope) = self.variables.last_mut() {
            scope.insert(name.to_string(), value);
        }
    }

    fn pipeline(&mut self, line: usize, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(line, command, last.take(), dot)?);
        }
        let value = last.unwrap_or(Value::Null);
        if let Some((name, declare)) = &pipeline.variable {
            if *declare {
                self.set(name, value.clone());
            } else {
                let scope = self.variables.iter_mut().rev().find(|scope| scope.contains_key(name));
                let Some(scope) = scope else { return Err(fail(line, format!("undefined variable {name}"))) };
                scope.insert(name.clone(), value.clone());
            }
        }
        Ok(value)
    }

    fn command(
        &mut self,
        line: usize,
        command: &[Operand],
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.split_first() else { return Err(fail(line, "missing value")) };
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err(fail(line, "a value is not a function and takes no arguments"));
            }
            return self.operand(line, first, dot);
        };
        // These two stop at the first argument that decides.
        if matches!(name.as_str(), "and" | "or") {
            let mut value = Value::Null;
            for operand in rest {
                value = self.operand(line, operand, dot)?;
                if functions::truth(&value) == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(piped.unwrap_or(value));
        }
        let mut arguments =
            rest.iter().map(|operand| self.operand(line, operand, dot)).collect::<Result<Vec<_>, _>>()?;
        arguments.extend(piped);
        functions::call(name, arguments).map_err(|message| fail(line, message))
    }

    fn operand(&mut self, line: usize, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Dot(path) => field(line, dot, path),
            Operand::Variable(name, path) if name == "$" => field(line, self.root, path),
            Operand::Variable(name, path) => {
                let value = self.variables.iter().rev().find_map(|scope| scope.get(name));
                let Some(value) = value else { return Err(fail(line, format!("undefined variable {name}"))) };
                field(line, value, path)
            }
            Operand::Group(pipeline, path) => {
                let value = self.pipeline(line, pipeline, dot)?;
                field(line, &value, path)
            }
            Operand::Function(name) => functions::call(name, Vec::new()).map_err(|message| fail(line, message)),
        }
    }
}

/// A missing key is nothing; a key of nothing is a mistake.
fn field(line: usize, value: &Value, path: &[String]) -> Result<Value, TemplateError> {
    let mut value = value;
    for (index, name) in path.iter().enumerate() {
        match value {
            Value::Object(map) => value = map.get(name).unwrap_or(&Value::Null),
            Value::Null if index > 0 => {
                return Err(fail(line, format!("nil pointer evaluating .{}", path[..=index].join("."))));
            }
            other => {
                return Err(fail(line, format!("cannot take the field {name} of {}", functions::kind(other))));
            }
        }
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_render_as_in_helm() {
        let values = json!({"a": {"b": "x", "n": 3, "list": [1, "two"], "map": {"k": "v", "j": true}, "empty": ""}});
        let context = values_context("team-a", "ns", "0.1.0", &values);
        for (text, want) in [
            ("plain", "plain"),
            ("name: {{ .Release.Name }}", "name: team-a"),
            ("{{ .Release.Name | quote }}", "\"team-a\""),
            ("{{ $.Release.Namespace }}/{{ .Chart.Name }}", "ns/alcove"),
            ("a {{- /* comment */ -}} b", "ab"),
            ("{{ .Values.a.missing }}", ""),
            ("{{ .Values.a.missing | default \"d\" }}", "d"),
            ("{{ if .Values.a.b }}yes{{ else }}no{{ end }}", "yes"),
            ("{{ if eq .Values.a.b \"y\" }}1{{ else if gt .Values.a.n 2 }}2{{ else }}3{{ end }}", "2"),
            ("{{ if and .Values.a.b (not .Values.a.empty) }}ok{{ end }}", "ok"),
            ("{{ range .Values.a.list }}[{{ . }}]{{ end }}", "[1][two]"),
            ("{{ range $i, $v := .Values.a.list }}{{ $i }}={{ $v }};{{ end }}", "0=1;1=two;"),
            ("{{ range $k, $v := .Values.a.map }}{{ $k }}={{ $v }} {{ end }}", "j=true k=v "),
            ("{{ range .Values.none }}x{{ else }}none{{ end }}", "none"),
            ("{{ with .Values.a }}{{ .b }}{{ end }}", "x"),
            ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
            ("a:\n{{ toYaml .Values.a.map | indent 2 }}", "a:\n  j: true\n  k: v"),
            ("a:{{ toYaml .Values.a.map | nindent 2 }}", "a:\n  j: true\n  k: v"),
            ("{{ toJson .Values.a.list }}", "[1,\"two\"]"),
            ("{{ printf \"%s-%d-%v\" .Release.Name 5 true }}", "team-a-5-true"),
            ("{{ index .Values.a.list 1 }}{{ index .Values.a \"b\" }}", "twox"),
            ("{{ .Release.Name | upper | trunc 4 }}", "TEAM"),
            ("{{ (dict \"k\" \"v\").k }}", "v"),
            ("{{ `raw {{` }}", "raw {{"),
            ("{{ len .Values.a.list }}{{ add 1 2 }}{{ ternary \"a\" \"b\" true }}", "23a"),
            ("{{ \"YQ==\" | b64dec }}{{ b64enc \"a\" }}", "aYQ=="),
            ("{{ join \",\" .Values.a.list }}", "1,two"),
            ("x\n{{- if true }}\ny\n{{- end }}\nz", "x\ny\nz"),
        ] {
            assert_eq!(render(text, &context).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let context = values_context("a", "b", "1", &json!({}));
        for (text, want) in [
            ("\n{{ nope 1 }}", "template line 2: function \"nope\" is not known"),
            ("{{ include \"x\" . }}", "\"include\""),
            ("{{ define \"x\" }}{{ end }}", "\"define\""),
            ("{{ if true }}", "unclosed"),
            ("{{ end }}", "unexpected"),
            ("{{ .Values.a", "unclosed"),
            ("{{ .Values.a.b.c }}", "nil pointer"),
            ("{{ $x }}", "undefined variable $x"),
            ("{{ fail \"no\" }}", "no"),
            ("{{ required \"need a\" .Values.a }}", "need a"),
            ("{{ \"open }}", "unterminated"),
        ] {
            let error = render(text, &context).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
