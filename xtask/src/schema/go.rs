//! Reads the type and constant declarations of one Go package.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};

/// A Go package, as far as the table needs it.
#[derive(Debug, Default)]
pub struct Package {
    pub path: String,
    /// API group (`const GroupName`).
    pub group: String,
    pub types: BTreeMap<String, GoType>,
    /// Typed string constants: type name, value, constant name, comment.
    pub constants: Vec<Constant>,
    /// Types registered as kinds in `register.go`.
    pub registered: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Constant {
    pub name: String,
    pub ty: String,
    pub value: String,
    pub comment: Vec<String>,
}

#[derive(Debug, Default)]
pub struct GoType {
    pub comment: Vec<String>,
    pub markers: Vec<String>,
    pub body: Body,
}

#[derive(Debug, Default)]
pub enum Body {
    #[default]
    Opaque,
    Struct(Vec<GoField>),
    /// `type A B` or `type A = B`.
    Other(TypeExpr),
}

#[derive(Debug)]
pub struct GoField {
    /// Empty when embedded.
    pub name: String,
    pub ty: TypeExpr,
    pub tags: BTreeMap<String, String>,
    pub comment: Vec<String>,
    pub markers: Vec<String>,
}

/// A Go type expression with package names resolved to import paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeExpr {
    Pointer(Box<TypeExpr>),
    Slice(Box<TypeExpr>),
    Map(Box<TypeExpr>, Box<TypeExpr>),
    Interface,
    /// Import path (empty for predeclared types) and name.
    Named(String, String),
}

const PREDECLARED: &[&str] = &[
    "string", "bool", "int", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "byte", "float64", "any",
];

impl Package {
    pub fn read(dir: &Path, path: &str) -> anyhow::Result<Package> {
        let mut package = Package { path: path.to_owned(), ..Package::default() };
        let mut files: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
        files.sort_by_key(|f| f.file_name());
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            let skip = !name.ends_with(".go")
                || name.ends_with("_test.go")
                || name.starts_with("zz_generated")
                || name.contains("generated")
                // One of two implementations, chosen by a build tag.
                || name == "fieldsv1_string.go";
            if skip {
                continue;
            }
            let text = std::fs::read_to_string(file.path())?;
            package.file(&text, name == "register.go").with_context(|| name.clone())?;
        }
        Ok(package)
    }

    fn file(&mut self, text: &str, register: bool) -> anyhow::Result<()> {
        let imports = imports(text);
        let lines: Vec<&str> = text.lines().collect();
        let mut i = 0;
        let mut comment: Vec<String> = Vec::new();
        // Markers may stand in a block of their own above the comment.
        let mut earlier: Vec<String> = Vec::new();
        while i < lines.len() {
            let line = lines[i];
            i += 1;
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text.strip_prefix(' ').unwrap_or(text).to_owned());
                continue;
            }
            if line.trim().is_empty() {
                if !comment.is_empty() {
                    earlier = std::mem::take(&mut comment);
                }
                continue;
            }
            if register {
                for part in line.split('&').skip(1) {
                    if let Some((name, _)) = part.split_once("{}") {
                        self.registered.insert(name.to_owned());
                    }
                }
            }
            if let Some(rest) = line.strip_prefix("const GroupName = ") {
                self.group = rest.trim_matches('"').to_owned();
            } else if line == "const (" {
                i = self.constants(&lines, i)?;
            } else if let Some(rest) = line.strip_prefix("const ") {
                self.constant(rest, &comment);
            } else if let Some(rest) = line.strip_prefix("type ") {
                let Some((name, rest)) = rest.split_once(' ') else { bail!("type without definition: {line}") };
                let mut markers = markers(&earlier);
                markers.extend(self::markers(&comment));
                let body = if rest == "struct {" {
                    let (fields, next) = self.fields(&lines, i, &imports).with_context(|| name.to_owned())?;
                    i = next;
                    fields.map_or(Body::Opaque, Body::Struct)
                } else if rest == "struct{}" {
                    Body::Struct(Vec::new())
                } else if rest.starts_with("interface") || rest.starts_with("func") || name.contains('[') {
                    Body::Opaque
                } else {
                    let rest = rest.trim_start_matches("= ").split("//").next().unwrap_or_default().trim();
                    self.expr(rest, &imports).map_or(Body::Opaque, Body::Other)
                };
                self.types.insert(name.to_owned(), GoType { comment: comment.clone(), markers, body });
            }
            comment.clear();
            earlier.clear();
        }
        Ok(())
    }

    fn constants(&mut self, lines: &[&str], mut i: usize) -> anyhow::Result<usize> {
        let mut comment = Vec::new();
        while i < lines.len() {
            let line = lines[i].trim();
            i += 1;
            if line == ")" {
                return Ok(i);
            }
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text.strip_prefix(' ').unwrap_or(text).to_owned());
                continue;
            }
            if !line.is_empty() {
                if let Some(group) = line.strip_prefix("GroupName").map(str::trim).and_then(|r| r.strip_prefix('=')) {
                    self.group = group.trim().trim_matches('"').to_owned();
                }
                self.constant(line, &comment);
            }
            comment.clear();
        }
        bail!("const block without end")
    }

    fn constant(&mut self, line: &str, comment: &[String]) {
        let Some((left, right)) = line.split_once('=') else { return };
        let right = right.trim();
        let Some(value) = right.strip_prefix('"').and_then(|r| r.split_once('"')).map(|(v, _)| v) else { return };
        let mut words = left.split_whitespace();
        if let (Some(name), Some(ty), None) = (words.next(), words.next(), words.next()) {
            self.constants.push(Constant {
                name: name.to_owned(),
                ty: ty.to_owned(),
                value: value.to_owned(),
                comment: comment.to_vec(),
            });
        }
    }

    /// The fields up to the closing brace; `None` for structs that are not API types (a field without tags).
    fn fields(
        &self,
        lines: &[&str],
        mut i: usize,
        imports: &BTreeMap<String, String>,
    ) -> anyhow::Result<(Option<Vec<GoField>>, usize)> {
        let mut fields = Vec::new();
        let mut opaque = false;
        let mut comment: Vec<String> = Vec::new();
        let mut earlier: Vec<String> = Vec::new();
        while i < lines.len() {
            let raw = lines[i];
            let line = raw.trim();
            i += 1;
            if raw == "}" {
                return Ok(((!opaque).then_some(fields), i));
            }
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text.strip_prefix(' ').unwrap_or(text).to_owned());
                continue;
            }
            if line.starts_with("/*") {
                while i < lines.len() && !lines[i - 1].contains("*/") {
                    i += 1;
                }
                continue;
            }
            if line.is_empty() {
                if !comment.is_empty() {
                    earlier = std::mem::take(&mut comment);
                }
                continue;
            }
            let (declaration, tags) = match line.split_once('`') {
                Some((d, t)) => (d.trim(), tags(t.split('`').next().unwrap_or_default())),
                None => (line.split("//").next().unwrap_or_default().trim(), BTreeMap::new()),
            };
            let (name, expr) =
                declaration.split_once(|c: char| c.is_whitespace()).map_or(("", declaration), |(n, e)| (n, e.trim()));
            match self.expr(expr, imports) {
                Some(ty) if !tags.is_empty() => {
                    let mut markers = markers(&earlier);
                    markers.extend(self::markers(&comment));
                    fields.push(GoField { name: name.to_owned(), ty, tags, comment: comment.clone(), markers });
                }
                _ => opaque = true,
            }
            comment.clear();
            earlier.clear();
        }
        bail!("struct without end")
    }

    fn expr(&self, text: &str, imports: &BTreeMap<String, String>) -> Option<TypeExpr> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix('*') {
            return Some(TypeExpr::Pointer(Box::new(self.expr(rest, imports)?)));
        }
        if let Some(rest) = text.strip_prefix("[]") {
            return Some(TypeExpr::Slice(Box::new(self.expr(rest, imports)?)));
        }
        if let Some(rest) = text.strip_prefix("map[") {
            let (key, value) = rest.split_once(']')?;
            return Some(TypeExpr::Map(Box::new(self.expr(key, imports)?), Box::new(self.expr(value, imports)?)));
        }
        if text == "interface{}" || text == "any" {
            return Some(TypeExpr::Interface);
        }
        if !text.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_') || text.is_empty() {
            return None;
        }
        Some(match text.split_once('.') {
            Some((package, name)) => TypeExpr::Named(imports.get(package)?.clone(), name.to_owned()),
            None if PREDECLARED.contains(&text) => TypeExpr::Named(String::new(), text.to_owned()),
            None => TypeExpr::Named(self.path.clone(), text.to_owned()),
        })
    }
}

/// `+name=value` lines without the plus sign.
fn markers(comment: &[String]) -> Vec<String> {
    comment.iter().filter_map(|l| l.trim().strip_prefix('+')).map(|m| m.trim_end().to_owned()).collect()
}

fn imports(text: &str) -> BTreeMap<String, String> {
    let mut imports = BTreeMap::new();
    let Some(start) = text.find("import (") else {
        for line in text.lines().filter_map(|l| l.strip_prefix("import ")) {
            import(line, &mut imports);
        }
        return imports;
    };
    for line in text[start..].lines().skip(1).take_while(|l| *l != ")") {
        import(line, &mut imports);
    }
    imports
}

fn import(line: &str, imports: &mut BTreeMap<String, String>) {
    let Some((alias, rest)) = line.split_once('"') else { return };
    let path = rest.split('"').next().unwrap_or_default();
    let alias = match alias.trim() {
        "" => path.rsplit('/').next().unwrap_or_default(),
        alias => alias,
    };
    imports.insert(alias.to_owned(), path.to_owned());
}

/// `json:"a,b" protobuf:"c"` as pairs.
fn tags(text: &str) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once(":\"") {
        let Some((value, next)) = after.split_once('"') else { break };
        tags.insert(key.trim().to_owned(), value.to_owned());
        rest = next;
    }
    tags
}
