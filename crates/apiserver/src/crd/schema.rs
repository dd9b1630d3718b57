//! The schema of a custom resource's version, compiled for use: what objects may look like.
//!
//! Made once when a definition is accepted. Holds structure (properties, items, extensions) and value validations; `allOf`,
//! `anyOf`, `oneOf` and `not` hold value validations only, which may again have properties and items. Titles, descriptions
//! and examples are left out.
//!
//! Follows: `apiextensions-apiserver/pkg/apiserver/schema` (structural schemas).

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::json::Str;
use regex::Regex;

/// `type` of a node; `IntOrString` is `x-kubernetes-int-or-string`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

impl NodeType {
    fn parse(text: &str) -> Option<NodeType> {
        Some(match text {
            "object" => NodeType::Object,
            "array" => NodeType::Array,
            "string" => NodeType::String,
            "integer" => NodeType::Integer,
            "number" => NodeType::Number,
            "boolean" => NodeType::Boolean,
            _ => return None,
        })
    }

    /// The types as messages list them.
    pub fn text(self) -> &'static str {
        match self {
            NodeType::Object => "object",
            NodeType::Array => "array",
            NodeType::String => "string",
            NodeType::Integer => "integer",
            NodeType::Number => "number",
            NodeType::Boolean => "boolean",
            NodeType::IntOrString => "integer,string",
        }
    }
}

/// Members that `properties` does not name.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Not said: pruned, unless unknown fields are preserved.
    #[default]
    Unspecified,
    /// `additionalProperties: true`.
    Any,
    Schema(Box<Node>),
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// One rule of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub rule: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    pub field_path: String,
    pub optional_old_self: Option<bool>,
}

/// Validations of the value itself.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    pub format: String,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub max_length: Option<i64>,
    pub min_length: Option<i64>,
    pub pattern: Option<Regex>,
    pub max_items: Option<i64>,
    pub min_items: Option<i64>,
    pub unique_items: bool,
    pub multiple_of: Option<f64>,
    pub allowed: Option<Vec<Value>>,
    pub max_properties: Option<i64>,
    pub min_properties: Option<i64>,
    pub required: Vec<Str>,
    pub all_of: Vec<Node>,
    pub any_of: Vec<Node>,
    pub one_of: Vec<Node>,
    pub not: Option<Box<Node>>,
}

/// One place of a schema.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub ty: Option<NodeType>,
    pub nullable: bool,
    pub preserve_unknown_fields: bool,
    pub embedded_resource: bool,
    pub properties: BTreeMap<Str, Node>,
    pub additional: Additional,
    pub items: Option<Box<Node>>,
    pub default: Option<Value>,
    pub list_type: ListType,
    pub list_map_keys: Vec<Str>,
    pub rules: Vec<Rule>,
    /// `None` when there is nothing to check beyond the type: the common case, and smaller.
    pub checks: Option<Box<Checks>>,
}

/// A pattern that is not a regular expression we can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern {pattern:?} is not a valid regular expression: {reason}")]
pub struct BadPattern {
    pub pattern: String,
    pub reason: String,
}

impl Node {
    /// Compiles a `JSONSchemaProps` that has passed validation.
    pub fn compile(schema: &Value) -> Result<Node, BadPattern> {
        let nodes = |key: &str| schema.array_at(&[key]).iter().map(Node::compile).collect::<Result<Vec<_>, _>>();
        let flag = |key: &str| schema[key] == true;
        let int = |key: &str| schema[key].as_i64();
        let number = |key: &str| schema[key].as_f64();
        let strings = |key: &str| -> Vec<Str> {
            schema.array_at(&[key]).iter().filter_map(Value::as_str).map(Str::from).collect()
        };
        let boxed = |key: &str| match &schema[key] {
            node if node.is_object() => Node::compile(node).map(|n| Some(Box::new(n))),
            _ => Ok(None),
        };
        let pattern = match schema.str_at(&["pattern"]) {
            "" => None,
            pattern => Some(compile_pattern(pattern)?),
        };
        let checks = Checks {
            format: match schema.str_at(&["format"]) {
                format if super::formats::is_known(schema.str_at(&["type"]), format) => format.to_owned(),
                _ => String::new(),
            },
            maximum: number("maximum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            max_length: int("maxLength"),
            min_length: int("minLength"),
            pattern,
            max_items: int("maxItems"),
            min_items: int("minItems"),
            unique_items: flag("uniqueItems"),
            multiple_of: number("multipleOf"),
            allowed: schema["enum"].as_array().cloned(),
            max_properties: int("maxProperties"),
            min_properties: int("minProperties"),
            required: strings("required"),
            all_of: nodes("allOf")?,
            any_of: nodes("anyOf")?,
            one_of: nodes("oneOf")?,
            not: boxed("not")?,
        };
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flat_map(|m| m.iter()) {
            properties.insert(name.clone(), Node::compile(property)?);
        }
        let additional = match &schema["additionalProperties"] {
            Value::Bool(true) => Additional::Any,
            Value::Object(_) => Additional::Schema(Box::new(Node::compile(&schema["additionalProperties"])?)),
            _ => Additional::Unspecified,
        };
        let rules = schema.array_at(&["x-kubernetes-validations"]).iter().map(|rule| Rule {
            rule: rule.str_at(&["rule"]).to_owned(),
            message: rule.str_at(&["message"]).to_owned(),
            message_expression: rule.str_at(&["messageExpression"]).to_owned(),
            reason: rule.str_at(&["reason"]).to_owned(),
            field_path: rule.str_at(&["fieldPath"]).to_owned(),
            optional_old_self: rule["optionalOldSelf"].as_bool(),
        });
        let ty = match flag("x-kubernetes-int-or-string") {
            true => Some(NodeType::IntOrString),
            false => NodeType::parse(schema.str_at(&["type"])),
        };
        Ok(Node {
            ty,
            nullable: flag("nullable"),
            preserve_unknown_fields: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            properties,
            additional,
            items: boxed("items")?,
            default: schema.get("default").cloned(),
            list_type: match schema.str_at(&["x-kubernetes-list-type"]) {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            list_map_keys: strings("x-kubernetes-list-map-keys"),
            rules: rules.collect(),
            checks: (!checks.is_empty()).then(|| Box::new(checks)),
        })
    }

    /// Whether there is a default anywhere.
    pub fn has_defaults(&self) -> bool {
        self.default.is_some()
            || self.properties.values().any(Node::has_defaults)
            || self.items.as_ref().is_some_and(|i| i.has_defaults())
            || matches!(&self.additional, Additional::Schema(node) if node.has_defaults())
    }

    /// Whether a resource is embedded anywhere.
    pub fn has_embedded(&self) -> bool {
        self.embedded_resource
            || self.properties.values().any(Node::has_embedded)
            || self.items.as_ref().is_some_and(|i| i.has_embedded())
            || matches!(&self.additional, Additional::Schema(node) if node.has_embedded())
    }

    /// The schema of a member, when there is one.
    pub fn member(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or(match &self.additional {
            Additional::Schema(node) => Some(node),
            Additional::Any | Additional::Unspecified => None,
        })
    }
}

/// Go's regular expressions, as far as the `regex` crate differs from them: it understands all of RE2's syntax.
pub fn compile_pattern(pattern: &str) -> Result<Regex, BadPattern> {
    // Bounded, so that no definition takes more than a few MiB.
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 22).build();
    built.map_err(|e| BadPattern { pattern: pattern.to_owned(), reason: cel::regex_error(pattern, &e) })
}

impl Checks {
    fn is_empty(&self) -> bool {
        self.format.is_empty()
            && self.maximum.is_none()
            && self.minimum.is_none()
            && self.max_length.is_none()
            && self.min_length.is_none()
            && self.pattern.is_none()
            && self.max_items.is_none()
            && self.min_items.is_none()
            && !self.unique_items
            && self.multiple_of.is_none()
            && self.allowed.is_none()
            && self.max_properties.is_none()
            && self.min_properties.is_none()
            && self.required.is_empty()
            && self.all_of.is_empty()
            && self.any_of.is_empty()
            && self.one_of.is_empty()
            && self.not.is_none()
    }
}
