//! One pass over JSON text, guided by a type when there is one.

use crate::json::{Map, Number, Str, Value};
use crate::quantity::Quantity;
use crate::schema::{self, Scalar, Shape, TypeRef};
use crate::time::Timestamp;

use super::normalize::{finish, zero};
use super::{DecodeError, MAX_DEPTH, MAX_STRICT_ERRORS};

const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// A step from the root of the document.
enum Step {
    /// A member of a struct.
    Field(Str),
    /// A member of a map; Go does not name these in type errors.
    Key(Str),
    Index(usize),
    /// A struct that Go embeds in another: only its type errors name it.
    Embedded(&'static str),
}

/// The struct of upstream's that holds this member and is embedded in the one that the schema shows.
fn embedded(outer: &str, member: &str) -> Option<&'static str> {
    match (outer, member) {
        ("Volume", member) if member != "name" => Some("VolumeSource"),
        ("Probe", "exec" | "httpGet" | "tcpSocket" | "grpc") => Some("ProbeHandler"),
        ("EphemeralContainer", member) if member != "targetContainerName" => Some("EphemeralContainerCommon"),
        (
            "PersistentVolumeSpec",
            "accessModes"
            | "capacity"
            | "claimRef"
            | "mountOptions"
            | "nodeAffinity"
            | "persistentVolumeReclaimPolicy"
            | "storageClassName"
            | "volumeAttributesClassName"
            | "volumeMode",
        ) => None,
        ("PersistentVolumeSpec", _) => Some("PersistentVolumeSource"),
        (
            "ConfigMapKeySelector"
            | "SecretKeySelector"
            | "ConfigMapEnvSource"
            | "SecretEnvSource"
            | "ConfigMapVolumeSource"
            | "ConfigMapProjection"
            | "SecretProjection",
            "name",
        ) => Some("LocalObjectReference"),
        ("RuleWithOperations", "apiGroups" | "apiVersions" | "resources" | "scope") => Some("Rule"),
        _ => None,
    }
}

struct Parser<'b, 't> {
    input: &'b [u8],
    pos: usize,
    depth: usize,
    path: Vec<Step>,
    strict: Vec<String>,
    /// Inside values that upstream keeps as raw bytes nothing is collected.
    quiet: u32,
    /// The first value of a wrong type; decoding goes on, as in Go.
    type_error: Option<String>,
    /// Name of the innermost struct.
    inside: &'t str,
}

type Result<T> = std::result::Result<T, DecodeError>;

/// Parses a whole document; gives the value and the unknown and duplicate members.
pub fn parse(input: &[u8], ty: Option<TypeRef<'_>>) -> Result<(Value, Vec<String>)> {
    let mut parser = Parser {
        input,
        pos: 0,
        depth: 0,
        path: Vec::new(),
        strict: Vec::new(),
        quiet: 0,
        type_error: None,
        inside: "",
    };
    let value = match ty {
        Some(ty) => parser.typed(ty)?,
        None => parser.untyped()?,
    };
    if let Some(c) = parser.peek() {
        return Err(parser.unexpected(c, "after top-level value"));
    }
    match parser.type_error {
        Some(e) => Err(DecodeError::Type(e)),
        None => Ok((value, parser.strict)),
    }
}

impl<'t> Parser<'_, 't> {
    // ---- text ----

    fn peek(&mut self) -> Option<u8> {
        while let Some(&c) = self.input.get(self.pos) {
            if !matches!(c, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(c);
            }
            self.pos += 1;
        }
        None
    }

    fn unexpected(&self, c: u8, context: &str) -> DecodeError {
        let shown = match c {
            b'\'' => r"'\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            c => format!("{:?}", char::from(c)),
        };
        DecodeError::Syntax(format!("invalid character {shown} {context}"))
    }

    fn end(&self) -> DecodeError {
        DecodeError::Syntax("unexpected end of JSON input".into())
    }

    fn word(&mut self, word: &'static str, value: Value) -> Result<Value> {
        if self.input[self.pos..].starts_with(word.as_bytes()) {
            self.pos += word.len();
            return Ok(value);
        }
        let common = self.input[self.pos..].iter().zip(word.bytes()).take_while(|(a, b)| *a == b).count();
        match self.input.get(self.pos + common) {
            Some(&c) => {
                let wanted = char::from(word.as_bytes()[common]);
                Err(self.unexpected(c, &format!("in literal {word} (expecting '{wanted}')")))
            }
            None => Err(self.end()),
        }
    }

    /// The text of a number, checked against JSON's grammar.
    fn number_text(&mut self) -> Result<&str> {
        let start = self.pos;
        let at = |p: usize| self.input.get(p).copied();
        let mut p = start;
        if at(p) == Some(b'-') {
            p += 1;
        }
        let digits = |p: &mut usize| {
            let from = *p;
            while at(*p).is_some_and(|c| c.is_ascii_digit()) {
                *p += 1;
            }
            *p > from
        };
        let mut ok = if at(p) == Some(b'0') {
            p += 1;
            true
        } else {
            digits(&mut p)
        };
        if ok && at(p) == Some(b'.') {
            p += 1;
            ok = digits(&mut p);
        }
        if ok && matches!(at(p), Some(b'e' | b'E')) {
            p += 1;
            if matches!(at(p), Some(b'+' | b'-')) {
                p += 1;
            }
            ok = digits(&mut p);
        }
        if !ok {
            return Err(match at(p) {
                Some(c) => self.unexpected(c, "in numeric literal"),
                None => self.end(),
            });
        }
        self.pos = p;
        Ok(std::str::from_utf8(&self.input[start..p]).unwrap_or_default())
    }

    fn number(&mut self) -> Result<Value> {
        let text = self.number_text()?;
        let number = match (text.parse::<i64>(), text.parse::<u64>()) {
            (Ok(i), _) => Number::Int(i),
            (_, Ok(u)) => Number::UInt(u),
            _ => match text.parse::<f64>() {
                Ok(f) if f.is_finite() => Number::Float(f),
                _ => {
                    let error = format!("json: cannot unmarshal number {text} into Go value of type float64");
                    return Err(DecodeError::Type(error));
                }
            },
        };
        Ok(Value::Number(number))
    }

    fn string(&mut self) -> Result<Str> {
        // At the opening quote.
        self.pos += 1;
        let start = self.pos;
        // Fast path: no escapes, no control characters.
        while let Some(&c) = self.input.get(self.pos) {
            match c {
                b'"' => {
                    let bytes = &self.input[start..self.pos];
                    self.pos += 1;
                    return Ok(match std::str::from_utf8(bytes) {
                        Ok(s) => Str::from(s),
                        Err(_) => Str::from(String::from_utf8_lossy(bytes)),
                    });
                }
                b'\\' | 0..0x20 => break,
                _ => self.pos += 1,
            }
        }
        let mut out = self.input[start..self.pos].to_vec();
        loop {
            let Some(&c) = self.input.get(self.pos) else { return Err(self.end()) };
            self.pos += 1;
            match c {
                b'"' => {
                    return Ok(match String::from_utf8(out) {
                        Ok(s) => Str::from(s),
                        Err(e) => Str::from(String::from_utf8_lossy(e.as_bytes())),
                    });
                }
                b'\\' => self.escape(&mut out)?,
                0..0x20 => return Err(self.unexpected(c, "in string literal")),
                _ => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let Some(&c) = self.input.get(self.pos) else { return Err(self.end()) };
        self.pos += 1;
        out.push(match c {
            b'"' | b'\\' | b'/' => c,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let high = self.hex4()?;
                let c = if (0xd800..0xdc00).contains(&high) && self.input[self.pos..].starts_with(b"\\u") {
                    let mark = self.pos;
                    self.pos += 2;
                    let low = self.hex4()?;
                    if (0xdc00..0xe000).contains(&low) {
                        char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
                    } else {
                        self.pos = mark;
                        None
                    }
                } else {
                    char::from_u32(high)
                };
                // Half of a pair: the replacement character, as in Go.
                let c = c.unwrap_or('\u{fffd}');
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.unexpected(c, "in string escape code")),
        });
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32> {
        let mut n = 0;
        for _ in 0..4 {
            let Some(&c) = self.input.get(self.pos) else { return Err(self.end()) };
            let Some(digit) = char::from(c).to_digit(16) else {
                return Err(self.unexpected(c, "in \\u hexadecimal character escape"));
            };
            n = n * 16 + digit;
            self.pos += 1;
        }
        Ok(n)
    }

    // ---- structure ----

    fn enter(&mut self) -> Result<()> {
        self.pos += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(DecodeError::Syntax("exceeded max depth".into()));
        }
        Ok(())
    }

    /// The next key of an object, up to its value; `None` at the end.
    fn key(&mut self, first: bool) -> Result<Option<Str>> {
        match self.peek() {
            Some(b'}') if first => {}
            Some(b'}') => {}
            Some(b',') if !first => {
                self.pos += 1;
                match self.peek() {
                    Some(b'"') => {}
                    Some(c) => return Err(self.unexpected(c, "looking for beginning of object key string")),
                    None => return Err(self.end()),
                }
            }
            Some(b'"') if first => {}
            Some(c) if first => return Err(self.unexpected(c, "looking for beginning of object key string")),
            Some(c) => return Err(self.unexpected(c, "after object key:value pair")),
            None => return Err(self.end()),
        }
        if self.peek() == Some(b'}') {
            self.pos += 1;
            self.depth -= 1;
            return Ok(None);
        }
        let key = self.string()?;
        match self.peek() {
            Some(b':') => self.pos += 1,
            Some(c) => return Err(self.unexpected(c, "after object key")),
            None => return Err(self.end()),
        }
        Ok(Some(key))
    }

    /// Whether another element of an array follows.
    fn element(&mut self, first: bool) -> Result<bool> {
        match self.peek() {
            Some(b']') => {}
            Some(b',') if !first => {
                self.pos += 1;
                return match self.peek() {
                    Some(b']') => Err(self.unexpected(b']', "looking for beginning of value")),
                    _ => Ok(true),
                };
            }
            Some(_) if first => return Ok(true),
            Some(c) => return Err(self.unexpected(c, "after array element")),
            None => return Err(self.end()),
        }
        self.pos += 1;
        self.depth -= 1;
        Ok(false)
    }

    fn untyped(&mut self) -> Result<Value> {
        match self.peek() {
            Some(b'{') => {
                self.enter()?;
                let mut map = Map::new();
                while let Some(key) = self.key(map.is_empty())? {
                    self.path.push(Step::Key(key));
                    let value = self.untyped()?;
                    if let Some(key) = self.leave_key()
                        && map.insert(key.clone(), value).is_some()
                    {
                        self.problem("duplicate", &key);
                    }
                }
                Ok(Value::Object(map))
            }
            Some(b'[') => {
                self.enter()?;
                let mut items = Vec::new();
                while self.element(items.is_empty())? {
                    self.path.push(Step::Index(items.len()));
                    items.push(self.untyped()?);
                    self.path.pop();
                }
                Ok(Value::Array(items))
            }
            _ => self.plain(),
        }
    }

    /// A value that is neither an object nor an array.
    fn plain(&mut self) -> Result<Value> {
        match self.peek() {
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(c) => Err(self.unexpected(c, "looking for beginning of value")),
            None => Err(self.end()),
        }
    }

    fn leave_key(&mut self) -> Option<Str> {
        match self.path.pop() {
            Some(Step::Field(k) | Step::Key(k)) => Some(k),
            _ => None,
        }
    }

    // ---- problems ----

    /// Collects an unknown or duplicate member of the object at the current path.
    fn problem(&mut self, what: &str, key: &str) {
        if self.quiet > 0 || self.strict.len() >= MAX_STRICT_ERRORS {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(k) | Step::Key(k) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(k);
                }
                Step::Index(i) => path.push_str(&format!("[{i}]")),
                Step::Embedded(_) => {}
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        let text = format!("{what} field {}", crate::text::quote(&path));
        if !self.strict.contains(&text) {
            self.strict.push(text);
        }
    }

    /// Notes that a value does not fit and skips it.
    fn mismatch(&mut self, ty: TypeRef<'_>) -> Result<Value> {
        let word = match self.peek() {
            Some(b'{') => "object",
            Some(b'[') => "array",
            Some(b'"') => "string",
            Some(b't' | b'f') => "bool",
            _ => "number",
        };
        self.quiet += 1;
        let skipped = self.untyped();
        self.quiet -= 1;
        skipped?;
        self.wrong(word, &go_type(ty));
        Ok(Value::Null)
    }

    fn wrong(&mut self, what: &str, go_type: &str) {
        if self.type_error.is_some() {
            return;
        }
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|s| match s {
                Step::Field(k) => Some(k.as_str()),
                Step::Embedded(name) => Some(*name),
                _ => None,
            })
            .collect();
        let target = if fields.is_empty() {
            "Go value".to_owned()
        } else {
            format!("Go struct field {}.{}", short_name(self.inside), fields.join("."))
        };
        self.type_error = Some(format!("json: cannot unmarshal {what} into {target} of type {go_type}"));
    }

    fn refuse(&mut self, message: impl Into<String>) -> Value {
        self.type_error.get_or_insert_with(|| message.into());
        Value::Null
    }

    // ---- typed values ----

    /// A value of type `ty`; `Null` for null and for what did not fit.
    fn typed(&mut self, ty: TypeRef<'t>) -> Result<Value> {
        let Some(c) = self.peek() else { return Err(self.end()) };
        if c == b'n' && !matches!(ty.shape(), Shape::Any) {
            return self.word("null", Value::Null);
        }
        match (ty.shape(), c) {
            (Shape::Struct(_), b'{') => self.structure(ty),
            (Shape::List(list), b'[') => {
                let element = ty.other(list.element);
                self.enter()?;
                let mut items = Vec::new();
                while self.element(items.is_empty())? {
                    self.path.push(Step::Index(items.len()));
                    let value = self.typed(element)?;
                    items.push(if value.is_null() { zero(element) } else { value });
                    self.path.pop();
                }
                Ok(Value::Array(items))
            }
            (Shape::Map(m), b'{') => {
                let element = ty.other(m.value);
                self.enter()?;
                let mut map = Map::new();
                while let Some(key) = self.key(map.is_empty())? {
                    self.path.push(Step::Key(key));
                    let mut value = self.typed(element)?;
                    if value.is_null() {
                        value = if element.scalar() == Some(Scalar::Bytes) { "".into() } else { zero(element) };
                    }
                    if let Some(key) = self.leave_key()
                        && map.insert(key.clone(), value).is_some()
                    {
                        self.problem("duplicate", &key);
                    }
                }
                Ok(Value::Object(map))
            }
            (Shape::Enum(_), _) => self.scalar(Scalar::String, ty, c),
            (Shape::Scalar(s), _) => self.scalar(*s, ty, c),
            (Shape::Any, _) => self.untyped(),
            _ => self.mismatch(ty),
        }
    }

    fn structure(&mut self, ty: TypeRef<'t>) -> Result<Value> {
        self.enter()?;
        let outer = std::mem::replace(&mut self.inside, ty.name());
        let mut map = Map::new();
        let mut first = true;
        while let Some(key) = self.key(std::mem::take(&mut first))? {
            let Some(field) = ty.field(&key) else {
                if !ty.get().preserve_unknown_fields {
                    self.problem("unknown", &key);
                    self.quiet += 1;
                    let skipped = self.untyped();
                    self.quiet -= 1;
                    skipped?;
                    continue;
                }
                self.path.push(Step::Key(key.clone()));
                let value = self.untyped()?;
                self.path.pop();
                if map.insert(key.clone(), value).is_some() {
                    self.problem("duplicate", &key);
                }
                continue;
            };
            if map.contains_key(&key) {
                self.problem("duplicate", &key);
            }
            let within = embedded(short_name(ty.name()), &key);
            self.path.extend(within.map(Step::Embedded));
            self.path.push(Step::Field(key));
            let value = self.typed(field.ty())?;
            self.inside = ty.name();
            if let Some(key) = self.leave_key() {
                map.insert(key, value);
            }
            if within.is_some() {
                self.path.pop();
            }
        }
        self.inside = outer;
        finish(&mut map, ty);
        Ok(Value::Object(map))
    }

    fn scalar(&mut self, scalar: Scalar, ty: TypeRef<'t>, c: u8) -> Result<Value> {
        let number = matches!(c, b'-' | b'0'..=b'9');
        match scalar {
            Scalar::String if c == b'"' => self.plain(),
            Scalar::Bool if matches!(c, b't' | b'f') => self.plain(),
            Scalar::Int32 | Scalar::Int64 if number => {
                let text = self.number_text()?.to_owned();
                let fits = |i: &i64| scalar == Scalar::Int64 || i32::try_from(*i).is_ok();
                match text.parse::<i64>().ok().filter(fits) {
                    Some(i) => Ok(i.into()),
                    None => {
                        self.wrong(&format!("number {text}"), &go_type(ty));
                        Ok(Value::Null)
                    }
                }
            }
            Scalar::Integer | Scalar::Number | Scalar::Double if number => self.number(),
            Scalar::Bytes if c == b'"' => {
                let text = self.string()?;
                Ok(match check_base64(text.as_bytes()) {
                    // Go ignores line breaks and writes none.
                    Ok(()) if text.contains(['\n', '\r']) => text.replace(['\n', '\r'], "").into(),
                    Ok(()) => Value::String(text),
                    Err(at) => self.refuse(format!("illegal base64 data at input byte {at}")),
                })
            }
            Scalar::Time | Scalar::MicroTime if c == b'"' => {
                let text = self.string()?;
                let layout = if scalar == Scalar::Time {
                    "2006-01-02T15:04:05Z07:00"
                } else {
                    "2006-01-02T15:04:05.000000Z07:00"
                };
                Ok(match Timestamp::parse(&text) {
                    Some(t) if scalar == Scalar::Time => t.to_rfc3339().into(),
                    Some(t) => t.to_rfc3339_micro().into(),
                    None => self.refuse(time_error(&text, layout)),
                })
            }
            Scalar::Duration if c == b'"' => self.plain(),
            Scalar::Quantity if c == b'"' || number => {
                let text = if number { self.number_text()?.to_owned() } else { self.string()?.to_string() };
                Ok(match Quantity::parse(text.trim()) {
                    Ok(q) => q.to_string().into(),
                    Err(e) => self.refuse(e.to_string()),
                })
            }
            Scalar::IntOrString if c == b'"' => self.plain(),
            Scalar::IntOrString if number => {
                let text = self.number_text()?.to_owned();
                Ok(match text.parse::<i32>() {
                    Ok(i) => i.into(),
                    Err(_) => self.refuse(format!("json: cannot unmarshal number {text} into Go value of type int32")),
                })
            }
            Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => {
                // interface{} values are decoded in place, the raw ones are not looked into.
                let quiet = u32::from(scalar != Scalar::Json);
                self.quiet += quiet;
                let value = self.untyped();
                self.quiet -= quiet;
                value
            }
            Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStringArray => self.schema_or(scalar, ty, c),
            _ => self.mismatch(ty),
        }
    }

    fn schema_or(&mut self, scalar: Scalar, ty: TypeRef<'t>, c: u8) -> Result<Value> {
        let Some(props) = schema::lookup_name(SCHEMA_PROPS) else { return self.untyped() };
        // Upstream decodes these from raw bytes, without strictness.
        self.quiet += 1;
        let value = match (scalar, c) {
            (_, b'{') => self.nested(props),
            (Scalar::SchemaOrBool, b't' | b'f') => self.plain(),
            (Scalar::SchemaOrArray, b'[') => {
                self.enter()?;
                let mut items = Vec::new();
                while self.element(items.is_empty())? {
                    items.push(self.nested(props)?);
                }
                Ok(Value::Array(items))
            }
            (Scalar::SchemaOrStringArray, b'[') => self.untyped(),
            _ => self.mismatch(ty),
        };
        self.quiet -= 1;
        value
    }

    /// A value of a built-in type inside a value of another schema.
    fn nested(&mut self, ty: TypeRef<'static>) -> Result<Value> {
        let mut inner = Parser {
            input: self.input,
            pos: self.pos,
            depth: self.depth,
            path: Vec::new(),
            strict: Vec::new(),
            quiet: self.quiet,
            type_error: None,
            inside: "",
        };
        let value = inner.typed(ty)?;
        self.pos = inner.pos;
        if let Some(e) = inner.type_error {
            self.type_error.get_or_insert(e);
        }
        Ok(value)
    }
}

/// `DeploymentSpec` of `io.k8s.api.apps.v1.DeploymentSpec`.
fn short_name(model: &str) -> &str {
    model.rsplit('.').next().unwrap_or(model)
}

/// The name Go's decoder gives to a type.
pub(super) fn go_type(ty: TypeRef<'_>) -> String {
    match ty.shape() {
        Shape::Struct(s) => {
            let mut parts = s.name.rsplit('.');
            let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{package}.{name}")
        }
        Shape::List(_) => format!("[]{}", ty.element().map_or_else(String::new, go_type)),
        Shape::Map(_) => format!("map[string]{}", ty.element().map_or_else(String::new, go_type)),
        Shape::Enum(_) => "string".into(),
        Shape::Any => "interface {}".into(),
        Shape::Scalar(s) => match s {
            Scalar::String | Scalar::Time | Scalar::MicroTime | Scalar::Duration => "string",
            Scalar::Bool => "bool",
            Scalar::Int32 | Scalar::IntOrString => "int32",
            Scalar::Int64 | Scalar::Integer => "int64",
            Scalar::Double | Scalar::Number => "float64",
            Scalar::Bytes => "[]uint8",
            Scalar::Quantity => "resource.Quantity",
            Scalar::RawExtension => "runtime.RawExtension",
            Scalar::FieldsV1 => "v1.FieldsV1",
            Scalar::Json => "v1.JSON",
            Scalar::SchemaOrBool | Scalar::SchemaOrArray | Scalar::SchemaOrStringArray => "v1.JSONSchemaProps",
        }
        .into(),
    }
}

/// Standard base64 with padding; the position of the first wrong byte otherwise.
fn check_base64(text: &[u8]) -> std::result::Result<(), usize> {
    let mut group = 0;
    let mut padding = 0;
    let mut begins = 0;
    for (i, &c) in text.iter().enumerate() {
        if group == 0 && !matches!(c, b'\n' | b'\r') {
            begins = i;
        }
        match c {
            b'\n' | b'\r' => continue,
            b'=' if group >= 2 && padding < 4 - group => padding += 1,
            b'=' => return Err(i),
            _ if padding > 0 => return Err(i),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => group = (group + 1) % 4,
            _ => return Err(i),
        }
        if padding > 0 && group + padding == 4 {
            group = 4;
        }
    }
    match (group, padding) {
        (0, 0) | (4, _) => Ok(()),
        // Without padding Go names the beginning of the group that is not whole.
        (_, 0) => Err(begins),
        _ => Err(text.len()),
    }
}

fn time_error(text: &str, layout: &str) -> String {
    // Go names the part of the layout at which reading stopped. The position is good enough for the year, which is
    // where texts that are no times at all stop.
    let quoted = crate::text::quote(text);
    let digits = text.bytes().take(4).take_while(u8::is_ascii_digit).count();
    if digits < 4 {
        format!("parsing time {quoted} as {layout:?}: cannot parse {quoted} as \"2006\"")
    } else {
        let rest = crate::text::quote(text.get(4..).unwrap_or_default());
        format!("parsing time {quoted} as {layout:?}: cannot parse {rest} as \"-\"")
    }
}
