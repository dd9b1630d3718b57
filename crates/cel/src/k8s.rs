//! Kubernetes's own libraries: regex search, URLs, quantities, named formats, JSON patch keys.
//!
//! Follows: `k8s.io/apiserver/pkg/cel/library/{regex,urls,quantity,format,jsonpatch}.go`.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::names;
use apimachinery::quantity::Quantity;

use crate::stdlib::{NO_OVERLOAD, Outcome};
use crate::strings::{list_of, regex};
use crate::value::{Key, Opaque, Val};

pub(crate) fn call(name: &str, args: &[Val]) -> Outcome {
    match (name, args) {
        ("find", [Val::String(s), Val::String(pattern)]) => {
            Ok(regex(pattern)?.find(s).map_or("", |m| m.as_str()).into())
        }
        ("findAll", [Val::String(s), Val::String(pattern)]) => find_all(s, pattern, usize::MAX),
        ("findAll", [Val::String(s), Val::String(pattern), Val::Int(n)]) => {
            find_all(s, pattern, usize::try_from(*n).unwrap_or(usize::MAX))
        }
        ("url", [Val::String(s)]) => Url::parse(s).map(opaque),
        ("isURL", [Val::String(s)]) => Ok(Url::parse(s).is_ok().into()),
        ("quantity", [Val::String(s)]) => quantity(s).map(|q| opaque(QuantityVal(q))),
        ("isQuantity", [Val::String(s)]) => Ok(Quantity::parse(s).is_ok().into()),
        ("jsonpatch.escapeKey", [Val::String(s)]) => Ok(s.replace('~', "~0").replace('/', "~1").into()),
        ("format.named", [Val::String(s)]) => Ok(Val::Optional(Format::named(s).map(|f| Arc::new(opaque(f))))),
        (_, []) if name.starts_with("format.") => {
            Format::constructor(&name["format.".len()..]).map(opaque).ok_or(NO_OVERLOAD)
        }
        (_, [first, rest @ ..]) => match first {
            Val::Opaque(o) => {
                let any = o.as_any();
                if let Some(url) = any.downcast_ref::<Url>() {
                    url.call(name, rest)
                } else if let Some(QuantityVal(q)) = any.downcast_ref::<QuantityVal>() {
                    quantity_call(q, name, rest)
                } else if let Some(format) = any.downcast_ref::<Format>() {
                    match (name, rest) {
                        ("validate", [Val::String(s)]) => Ok(format.validate(s)),
                        _ => Err(NO_OVERLOAD),
                    }
                } else {
                    Err(NO_OVERLOAD)
                }
            }
            _ => Err(NO_OVERLOAD),
        },
        _ => Err(NO_OVERLOAD),
    }
}

pub(crate) fn opaque(value: impl Opaque) -> Val {
    Val::Opaque(Arc::new(value))
}

fn find_all(s: &str, pattern: &str, limit: usize) -> Outcome {
    Ok(list_of(regex(pattern)?.find_iter(s).take(limit).map(|m| m.as_str())))
}

/// An absolute URL, or an absolute path, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) struct Url {
    scheme: String,
    /// With the port, IPv6 addresses in brackets.
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// Source: `net/url.ParseRequestURI`, as the library uses it.
    fn parse(text: &str) -> Result<Url, String> {
        let bad = |why: &str| format!("URL parse error during conversion from string: parse {text:?}: {why}");
        if text.is_empty() {
            return Err(bad("empty url"));
        }
        if text.chars().any(|c| c.is_control()) {
            return Err(bad("net/url: invalid control character in URL"));
        }
        let scheme_end = text.find(':').filter(|i| {
            let scheme = &text[..*i];
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let (scheme, rest) = match scheme_end {
            Some(i) => (text[..i].to_lowercase(), &text[i + 1..]),
            None => (String::new(), text),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if text == "*" {
            return Ok(Url { scheme, host: String::new(), path: text.to_owned(), query: String::new() });
        }
        let (host, path) = match rest.strip_prefix("//").filter(|rest| !scheme.is_empty() || !rest.starts_with('/')) {
            Some(authority) => {
                let end = authority.find('/').unwrap_or(authority.len());
                let host = authority[..end].rsplit('@').next().unwrap_or("");
                (host.to_owned(), &authority[end..])
            }
            None if rest.starts_with('/') => (String::new(), rest),
            // What follows the scheme has no parts then.
            None if !scheme.is_empty() => {
                return Ok(Url { scheme, host: String::new(), path: String::new(), query: query.to_owned() });
            }
            None => return Err(bad("invalid URI for request")),
        };
        if host.starts_with('[') && !host.contains(']') {
            return Err(bad("missing ']' in host"));
        }
        let port_at = if host.starts_with('[') { host.find(']').map(|i| i + 1) } else { host.find(':') };
        let port = port_at.map_or("", |i| &host[i..]);
        if !port.is_empty() && !(port.starts_with(':') && port[1..].bytes().all(|b| b.is_ascii_digit())) {
            return Err(bad(&format!("invalid port {port:?} after host")));
        }
        if host.contains(' ') {
            return Err(bad("invalid character \" \" in host name"));
        }
        let percent = |s: &str| {
            s.split('%').skip(1).all(|part| part.len() >= 2 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
        };
        if !percent(path) {
            return Err(bad("invalid URL escape"));
        }
        let path = path.replace(' ', "%20");
        Ok(Url { scheme, host, path, query: query.to_owned() })
    }

    fn hostname(&self) -> &str {
        if let Some(rest) = self.host.strip_prefix('[') {
            return rest.split(']').next().unwrap_or("");
        }
        self.host.split(':').next().unwrap_or("")
    }

    fn port(&self) -> &str {
        let after = self.host.rsplit(']').next().unwrap_or("");
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }

    fn call(&self, name: &str, args: &[Val]) -> Outcome {
        if !args.is_empty() {
            return Err(NO_OVERLOAD);
        }
        Ok(match name {
            "getScheme" => self.scheme.as_str().into(),
            "getHost" => self.host.as_str().into(),
            "getHostname" => self.hostname().into(),
            "getPort" => self.port().into(),
            "getEscapedPath" => self.path.as_str().into(),
            "getQuery" => {
                let mut map: BTreeMap<Key, Vec<Val>> = BTreeMap::new();
                for pair in self.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    map.entry(Key::String(unquote(key).into())).or_default().push(unquote(value).into());
                }
                Val::Map(Arc::new(map.into_iter().map(|(k, v)| (k, v.into())).collect()))
            }
            _ => return Err(NO_OVERLOAD),
        })
    }
}

/// Query text without its escapes.
fn unquote(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'+', _) => out.push(b' '),
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Opaque for Url {
    fn type_name(&self) -> &'static str {
        "kubernetes.URL"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Url>() == Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct QuantityVal(Quantity);

impl Opaque for QuantityVal {
    fn type_name(&self) -> &'static str {
        "kubernetes.Quantity"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<QuantityVal>().is_some_and(|q| q.0 == self.0)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn quantity(text: &str) -> Result<Quantity, String> {
    Quantity::parse(text).map_err(|e| e.to_string())
}

fn quantity_call(q: &Quantity, name: &str, args: &[Val]) -> Outcome {
    let other = match args {
        [Val::Opaque(o)] => o.as_any().downcast_ref::<QuantityVal>().map(|q| q.0.clone()),
        [Val::Int(i)] => Some(quantity(&i.to_string())?),
        _ => None,
    };
    Ok(match (name, args.len(), other) {
        ("sign", 0, _) => Val::Int(q.sign().into()),
        ("asApproximateFloat", 0, _) => Val::Double(q.as_f64()),
        ("asInteger", 0, _) => Val::Int(q.as_i64().ok_or("cannot convert value to integer")?),
        ("isInteger", 0, _) => q.as_i64().is_some().into(),
        ("isGreaterThan", 1, Some(other)) => (*q > other).into(),
        ("isLessThan", 1, Some(other)) => (*q < other).into(),
        ("compareTo", 1, Some(other)) => Val::Int(q.cmp(&other) as i64),
        ("add", 1, Some(other)) => {
            let mut sum = q.clone();
            sum.add(&other);
            opaque(QuantityVal(sum))
        }
        ("sub", 1, Some(other)) => {
            let mut difference = q.clone();
            difference.sub(&other);
            opaque(QuantityVal(difference))
        }
        _ => return Err(NO_OVERLOAD),
    })
}

/// A named format: its name, and what is wrong with a text.
#[derive(Debug)]
struct Format {
    name: &'static str,
    check: fn(&str) -> Vec<String>,
}

type Check = fn(&str) -> Vec<String>;

/// By constructor name: the format's name and its check.
const FORMATS: [(&str, Check); 13] = [
    ("dns1123Label", names::is_dns1123_label),
    ("dns1123Subdomain", names::is_dns1123_subdomain),
    ("dns1035Label", names::is_dns1035_label),
    ("qualifiedName", names::is_qualified_name),
    ("dns1123LabelPrefix", |s| names::name_is_dns_label(s, true)),
    ("dns1123SubdomainPrefix", |s| names::name_is_dns_subdomain(s, true)),
    ("dns1035LabelPrefix", |s| names::name_is_dns1035_label(s, true)),
    ("labelValue", names::is_label_value),
    ("uri", |s| match Url::parse(s) {
        Ok(_) => Vec::new(),
        Err(e) => vec![e.replace("URL parse error during conversion from string: ", "")],
    }),
    ("uuid", |s| {
        pattern(
            s,
            "^(?i)[0-9A-F]{8}-?[0-9A-F]{4}-?[0-9A-F]{4}-?[0-9A-F]{4}-?[0-9A-F]{12}$",
            "does not match the UUID format",
        )
    }),
    ("byte", |s| match base64::Engine::decode(&base64::engine::general_purpose::STANDARD, s) {
        Ok(_) => Vec::new(),
        Err(_) => vec!["invalid base64".into()],
    }),
    ("date", |s| match s.parse::<jiff::civil::Date>() {
        Ok(_) if s.len() == 10 => Vec::new(),
        _ => vec!["invalid date".into()],
    }),
    ("datetime", |s| match crate::stdlib::parse_timestamp(s) {
        Ok(_) => Vec::new(),
        Err(_) => vec!["invalid datetime".into()],
    }),
];

/// A name to which a suffix will be added may end with a dash.
fn pattern(s: &str, expression: &str, message: &str) -> Vec<String> {
    match regex(expression) {
        Ok(regex) if regex.is_match(s) => Vec::new(),
        _ => vec![message.into()],
    }
}

impl Format {
    fn constructor(name: &str) -> Option<Format> {
        FORMATS.iter().find(|(n, _)| *n == name).map(|(name, check)| Format { name, check: *check })
    }

    fn named(name: &str) -> Option<Format> {
        Format::constructor(name)
    }

    fn validate(&self, s: &str) -> Val {
        let problems = (self.check)(s);
        Val::Optional((!problems.is_empty()).then(|| Arc::new(list_of(problems))))
    }
}

impl Opaque for Format {
    fn type_name(&self) -> &'static str {
        "kubernetes.NamedFormat"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Format>().is_some_and(|f| f.name == self.name)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
