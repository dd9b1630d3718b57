//! Turns parsed packages into the two files that `apimachinery::schema::builtin` and `apimachinery::openapi` read.
//!
//! `types.txt`: one type per line, numbered from 0; fields follow their struct. Columns are separated by tabs:
//!
//! ```text
//! s <scalar>
//! e <value|value>
//! l <element> <a|s|m|-><w if wrapped> <key,key>
//! m <value> <a|g|->
//! o <name> <a if atomic> <group|version|kind> <discriminator=json:Go,json:Go;...>
//! v <struct> <a if atomic>
//! f <name> <type> <flags> <number[/inline[/inline]]> <merge key> <default as JSON> <place in the Go struct>
//! ```
//!
//! Flags of a field: `r` required, `p` pointer, `e` omitempty, `z` omitzero, `M` merge, `K` retainKeys, `R` replace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use anyhow::{Context, bail};

use super::go::{Body, GoField, GoType, Package, TypeExpr};

const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";
const EXTENSIONS: &str = "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1";

/// Types with their own encodings, by import path and name.
const SPECIAL: &[(&str, &str, &str)] = &[
    (META, "Time", "Time"),
    (META, "MicroTime", "MicroTime"),
    (META, "Duration", "Duration"),
    (META, "FieldsV1", "FieldsV1"),
    ("k8s.io/apimachinery/pkg/api/resource", "Quantity", "Quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr", "IntOrString", "IntOrString"),
    ("k8s.io/apimachinery/pkg/runtime", "RawExtension", "RawExtension"),
    (EXTENSIONS, "JSON", "Json"),
    (EXTENSIONS, "JSONSchemaPropsOrBool", "SchemaOrBool"),
    (EXTENSIONS, "JSONSchemaPropsOrArray", "SchemaOrArray"),
    (EXTENSIONS, "JSONSchemaPropsOrStringArray", "SchemaOrStringArray"),
];

/// Kinds of the meta package that belong to a group of their own; the others go with every group.
const META_KINDS: &[(&str, &str)] = &[
    ("Status", "|v1"),
    ("APIVersions", "|v1"),
    ("APIGroup", "|v1"),
    ("APIGroupList", "|v1"),
    ("APIResourceList", "|v1"),
    ("Table", "meta.k8s.io|v1"),
    ("TableOptions", "meta.k8s.io|v1"),
    ("PartialObjectMetadata", "meta.k8s.io|v1"),
    ("PartialObjectMetadataList", "meta.k8s.io|v1"),
];

#[derive(Debug)]
enum Entry {
    Line(String),
    Struct { header: String, fields: Vec<String> },
}

pub struct Table<'a> {
    packages: &'a BTreeMap<String, Package>,
    entries: Vec<Entry>,
    interned: HashMap<String, usize>,
    structs: BTreeMap<String, usize>,
    docs: BTreeMap<String, String>,
}

/// A field after inlined structs are flattened.
struct Flat<'a> {
    package: &'a Package,
    field: &'a GoField,
    name: String,
    inline: Vec<u32>,
    on_wire: bool,
}

impl<'a> Table<'a> {
    pub fn build(packages: &'a BTreeMap<String, Package>) -> anyhow::Result<Table<'a>> {
        let mut table = Table {
            packages,
            entries: Vec::new(),
            interned: HashMap::new(),
            structs: BTreeMap::new(),
            docs: BTreeMap::new(),
        };
        for (path, package) in packages {
            for (name, ty) in &package.types {
                if is_kind(package, name, ty) {
                    table.named(path, name, &[]).with_context(|| format!("{path}.{name}"))?;
                }
            }
        }
        // The answer of /version: no kind, but OpenAPI describes it.
        table.named("k8s.io/apimachinery/pkg/version", "Info", &[])?;
        for (path, name, _) in SPECIAL {
            table.describe(path, name)?;
        }
        Ok(table)
    }

    pub fn types(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            match entry {
                Entry::Line(line) => {
                    let _ = writeln!(out, "{line}");
                }
                Entry::Struct { header, fields } => {
                    let _ = writeln!(out, "{header}");
                    for field in fields {
                        let _ = writeln!(out, "{field}");
                    }
                }
            }
        }
        out
    }

    pub fn docs(&self) -> String {
        self.docs.values().map(String::as_str).collect()
    }

    fn intern(&mut self, line: String) -> usize {
        if let Some(&id) = self.interned.get(&line) {
            return id;
        }
        let id = self.entries.len();
        self.entries.push(Entry::Line(line.clone()));
        self.interned.insert(line, id);
        id
    }

    fn find(&self, path: &str, name: &str) -> anyhow::Result<(&'a Package, &'a GoType)> {
        let package = self.packages.get(path).with_context(|| format!("package {path} is not in the list"))?;
        let ty = package.types.get(name).with_context(|| format!("no type {path}.{name}"))?;
        Ok((package, ty))
    }

    fn scalar(&mut self, name: &str) -> usize {
        self.intern(format!("s\t{name}"))
    }

    fn expr(&mut self, expr: &TypeExpr, markers: &[String]) -> anyhow::Result<usize> {
        Ok(match expr {
            TypeExpr::Pointer(inner) => self.expr(inner, markers)?,
            TypeExpr::Interface => self.scalar("Json"),
            TypeExpr::Slice(inner) if **inner == TypeExpr::Named(String::new(), "byte".into()) => self.scalar("Bytes"),
            TypeExpr::Slice(inner) => {
                let element = self.expr(inner, &[])?;
                self.list(element, markers, false)?
            }
            TypeExpr::Map(key, value) => {
                self.expr(key, &[])?;
                let value = self.expr(value, &[])?;
                let kind = match marker(markers, "mapType") {
                    Some("atomic") => "a",
                    Some("granular") => "g",
                    None => "-",
                    Some(other) => bail!("mapType {other}"),
                };
                self.intern(format!("m\t{value}\t{kind}"))
            }
            TypeExpr::Named(path, name) if path.is_empty() => match name.as_str() {
                "string" => self.scalar("String"),
                "bool" => self.scalar("Bool"),
                "int32" => self.scalar("Int32"),
                "int64" | "int" => self.scalar("Int64"),
                "float64" => self.scalar("Double"),
                other => bail!("Go type {other}"),
            },
            TypeExpr::Named(path, name) => self.named(path, name, markers)?,
        })
    }

    fn list(&mut self, element: usize, markers: &[String], wrapped: bool) -> anyhow::Result<usize> {
        let kind = match marker(markers, "listType") {
            Some("atomic") => "a",
            Some("set") => "s",
            Some("map") => "m",
            None => "-",
            Some(other) => bail!("listType {other}"),
        };
        let keys: Vec<&str> = markers.iter().filter_map(|m| m.strip_prefix("listMapKey=")).collect();
        let wrapped = if wrapped { "w" } else { "" };
        Ok(self.intern(format!("l\t{element}\t{kind}{wrapped}\t{}", keys.join(","))))
    }

    fn named(&mut self, path: &str, name: &str, markers: &[String]) -> anyhow::Result<usize> {
        if let Some((_, _, scalar)) = SPECIAL.iter().find(|(p, n, _)| *p == path && *n == name) {
            return Ok(self.scalar(scalar));
        }
        let (package, ty) = self.find(path, name)?;
        let fields = match &ty.body {
            Body::Struct(fields) => fields,
            Body::Opaque => bail!("{path}.{name} is not an API type"),
            Body::Other(inner) => {
                if ty.markers.iter().any(|m| m == "enum") {
                    let values: BTreeSet<&str> =
                        package.constants.iter().filter(|c| c.ty == name).map(|c| c.value.as_str()).collect();
                    if !values.is_empty() {
                        let values: Vec<&str> = values.into_iter().collect();
                        return Ok(self.intern(format!("e\t{}", values.join("|"))));
                    }
                }
                let mut all = ty.markers.clone();
                all.extend_from_slice(markers);
                if let (TypeExpr::Slice(element), true) = (inner, all.iter().any(|m| m == "protobuf.nullable=true")) {
                    let element = self.expr(element, &[])?;
                    return self.list(element, &all, true);
                }
                return self.expr(inner, &all);
            }
        };
        let own = if is_atomic(&ty.markers) { "atomic" } else { "granular" };
        if let Some(stated) = marker(markers, "structType").or(marker(markers, "mapType")).filter(|t| *t != own) {
            // The field overrides how its type merges.
            let id = self.named(path, name, &[])?;
            return Ok(self.intern(format!("v\t{id}\t{}", if stated == "atomic" { "a" } else { "" })));
        }
        let model = model_name(path, name);
        if let Some(&id) = self.structs.get(&model) {
            return Ok(id);
        }
        let id = self.entries.len();
        self.entries.push(Entry::Struct { header: String::new(), fields: Vec::new() });
        self.structs.insert(model.clone(), id);

        let mut flat = Vec::new();
        self.flatten(package, fields, &[], true, &mut flat)?;
        let mut lines = Vec::new();
        for (order, f) in flat.iter().enumerate() {
            lines.push(self.field(f, order).with_context(|| format!("{name}.{}", f.name))?);
        }
        lines.sort();
        flat.sort_by(|a, b| a.name.cmp(&b.name));
        let atomic = if is_atomic(&ty.markers) { "a" } else { "" };
        let gvk = if is_kind(package, name, ty) { kind_of(package, name) } else { String::new() };
        let unions = if ty.markers.iter().any(|m| m == "union") { union(&flat) } else { String::new() };
        let header = format!("o\t{model}\t{atomic}\t{gvk}\t{unions}");
        self.entries[id] = Entry::Struct { header, fields: lines };

        let mut docs = String::new();
        let _ = writeln!(docs, "T\t{model}\t{}", escape(&description(&ty.comment)));
        for f in &flat {
            let mut text = description(&f.field.comment);
            if let Some(values) = self.enum_docs(&f.field.ty)? {
                text = format!("{text}\n\n{values}");
            }
            let _ = writeln!(docs, "{}\t{}", f.name, escape(text.trim_start()));
        }
        self.docs.insert(model, docs);
        Ok(id)
    }

    fn flatten(
        &self,
        package: &'a Package,
        fields: &'a [GoField],
        inline: &[u32],
        on_wire: bool,
        out: &mut Vec<Flat<'a>>,
    ) -> anyhow::Result<()> {
        for field in fields {
            let json = field.tags.get("json").map_or("", String::as_str);
            let mut parts = json.split(',');
            let name = parts.next().unwrap_or_default();
            if name == "-" {
                continue;
            }
            if parts.any(|p| p == "inline") {
                let TypeExpr::Named(path, ty) = &field.ty else { bail!("inlined {:?}", field.ty) };
                let (inner_package, inner) = self.find(path, ty)?;
                let Body::Struct(inner) = &inner.body else { bail!("inlined {ty} is no struct") };
                let mut nested = inline.to_vec();
                let number = number(field)?;
                nested.extend(number);
                self.flatten(inner_package, inner, &nested, on_wire && number.is_some(), out)?;
                continue;
            }
            if name.is_empty() {
                bail!("field {} has no JSON name", field.name);
            }
            out.push(Flat { package, field, name: name.to_owned(), inline: inline.to_vec(), on_wire });
        }
        Ok(())
    }

    fn field(&mut self, f: &Flat<'a>, order: usize) -> anyhow::Result<String> {
        let field = f.field;
        let ty = self.expr(&field.ty, &field.markers)?;
        let json = &field.tags["json"];
        let omit_empty = json.contains("omitempty");
        let required = if field.markers.iter().any(|m| m == "required") {
            true
        } else if field.markers.iter().any(|m| m == "optional") {
            false
        } else {
            !omit_empty
        };
        let mut flags = String::new();
        let strategy = field.tags.get("patchStrategy").map_or("", String::as_str);
        for (on, flag) in [
            (required, 'r'),
            (matches!(field.ty, TypeExpr::Pointer(_)), 'p'),
            (omit_empty, 'e'),
            (json.contains("omitzero"), 'z'),
            (strategy.split(',').any(|s| s == "merge"), 'M'),
            (strategy.split(',').any(|s| s == "retainKeys"), 'K'),
            (strategy.split(',').any(|s| s == "replace"), 'R'),
        ] {
            if on {
                flags.push(flag);
            }
        }
        let mut number = match number(field)? {
            Some(n) if f.on_wire => n.to_string(),
            _ => "0".to_owned(),
        };
        if number != "0" {
            if f.inline.len() > 2 {
                bail!("inlined more than twice");
            }
            for n in &f.inline {
                let _ = write!(number, "/{n}");
            }
        }
        let merge_key = field.tags.get("patchMergeKey").map_or("", String::as_str);
        let default = match marker(&field.markers, "default") {
            None => String::new(),
            Some(reference) if reference.starts_with("ref(") => {
                let name = reference.trim_start_matches("ref(").trim_end_matches(')');
                let constant =
                    f.package.constants.iter().find(|c| c.name == name).with_context(|| format!("constant {name}"))?;
                serde_json::to_string(&constant.value)?
            }
            Some(value) => serde_json::from_str::<serde_json::Value>(value).context("default")?.to_string(),
        };
        Ok(format!("f\t{}\t{ty}\t{flags}\t{number}\t{merge_key}\t{default}\t{order}", f.name))
    }

    /// The list of an enumeration's values that ends a field's description.
    fn enum_docs(&self, expr: &TypeExpr) -> anyhow::Result<Option<String>> {
        match expr {
            TypeExpr::Pointer(inner) => self.enum_docs(inner),
            TypeExpr::Named(path, name) if !path.is_empty() => {
                if SPECIAL.iter().any(|(p, n, _)| p == path && n == name) {
                    return Ok(None);
                }
                let (package, ty) = self.find(path, name)?;
                if !ty.markers.iter().any(|m| m == "enum") {
                    return match &ty.body {
                        Body::Other(inner @ TypeExpr::Named(..)) => self.enum_docs(inner),
                        _ => Ok(None),
                    };
                }
                let mut values: Vec<_> = package.constants.iter().filter(|c| &c.ty == name).collect();
                values.sort_by(|a, b| a.value.cmp(&b.value));
                let mut text = "Possible enum values:".to_owned();
                for c in values {
                    let comment = description(&c.comment).replace('\n', " ");
                    let comment = comment.strip_prefix(c.name.as_str()).unwrap_or(&comment).trim().to_owned();
                    let _ = write!(text, "\n - `\"{}\"`", c.value);
                    if !comment.is_empty() {
                        let _ = write!(text, " {comment}");
                    }
                }
                Ok(Some(text))
            }
            _ => Ok(None),
        }
    }

    fn describe(&mut self, path: &str, name: &str) -> anyhow::Result<()> {
        let (_, ty) = self.find(path, name)?;
        let model = model_name(path, name);
        let line = format!("T\t{model}\t{}\n", escape(&description(&ty.comment)));
        self.docs.insert(model, line);
        Ok(())
    }
}

fn is_atomic(markers: &[String]) -> bool {
    marker(markers, "structType") == Some("atomic") || marker(markers, "mapType") == Some("atomic")
}

fn is_kind(package: &Package, name: &str, ty: &GoType) -> bool {
    let Body::Struct(fields) = &ty.body else { return false };
    if package.path == META && name == "WatchEvent" {
        return true;
    }
    let object = fields.iter().any(|f| match &f.ty {
        TypeExpr::Named(path, n) => path == META && n == "TypeMeta" && f.tags["json"].contains("inline"),
        _ => false,
    });
    object && (package.path == META || package.registered.contains(name))
}

fn kind_of(package: &Package, name: &str) -> String {
    if package.path == META {
        let own = META_KINDS.iter().find(|(n, _)| *n == name).map(|(_, gv)| *gv);
        return format!("{}|{name}", own.unwrap_or("*|*"));
    }
    let version = package.path.rsplit('/').next().unwrap_or_default();
    format!("{}|{version}|{name}", package.group)
}

fn union(fields: &[Flat<'_>]) -> String {
    let discriminator = fields.iter().find(|f| f.field.markers.iter().any(|m| m == "unionDiscriminator"));
    let members: Vec<String> = fields
        .iter()
        .filter(|f| f.field.markers.iter().any(|m| m == "optional"))
        .filter(|f| discriminator.is_none_or(|d| d.name != f.name))
        .map(|f| format!("{}:{}", f.name, f.field.name))
        .collect();
    format!("{}={}", discriminator.map_or("", |d| d.name.as_str()), members.join(","))
}

/// The protobuf field number.
fn number(field: &GoField) -> anyhow::Result<Option<u32>> {
    let Some(tag) = field.tags.get("protobuf") else { return Ok(None) };
    let number = tag.split(',').nth(1).context("protobuf tag without number")?;
    Ok(Some(number.parse().with_context(|| format!("protobuf number {number}"))?))
}

fn marker<'m>(markers: &'m [String], name: &str) -> Option<&'m str> {
    markers.iter().find_map(|m| m.strip_prefix(name)?.strip_prefix('='))
}

/// `k8s.io/api/core/v1` and `Pod` become `io.k8s.api.core.v1.Pod`.
fn model_name(path: &str, name: &str) -> String {
    let mut parts = path.split('/');
    let host: Vec<&str> = parts.next().unwrap_or_default().split('.').rev().collect();
    let rest: Vec<&str> = parts.collect();
    format!("{}.{}.{name}", host.join("."), rest.join("."))
}

/// A comment as OpenAPI shows it: lines joined, paragraphs and indented lines kept, markers and to-dos dropped.
fn description(comment: &[String]) -> String {
    let mut out = String::new();
    for line in comment {
        let line = line.trim_end();
        let text = line.trim_start();
        if line == "---" {
            break;
        }
        if line.is_empty() {
            if !out.ends_with("\n\n") {
                out.pop();
                out.push_str("\n\n");
            }
        } else if text.starts_with("TODO") || text.starts_with('+') {
            continue;
        } else if line.starts_with([' ', '\t']) {
            out.pop();
            let _ = write!(out, "\n{line}\n");
        } else {
            let _ = write!(out, "{line} ");
        }
    }
    out.trim_matches('\n').trim_matches(' ').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}
