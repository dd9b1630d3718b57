//! Which encoding and which form an answer has, and which encoding a request body has.
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.

use apimachinery::Value;

/// Encodings of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The content type of a watch. JSON and YAML streams have the plain type.
    pub fn stream_media_type(self) -> &'static str {
        match self {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            other => other.media_type(),
        }
    }
}

const ALL: [Encoding; 3] = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];

/// A form that a client asks for in place of the object: `as=Table;g=meta.k8s.io;v=v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Convert {
    pub kind: String,
    pub group: String,
    pub version: String,
}

/// What was negotiated for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub encoding: Encoding,
    pub convert: Option<Convert>,
    pub pretty: bool,
}

impl Accepted {
    pub fn json() -> Accepted {
        Accepted { encoding: Encoding::Json, convert: None, pretty: false }
    }

    pub fn wants(&self, kind: &str) -> bool {
        self.convert.as_ref().is_some_and(|c| c.kind == kind)
    }
}

/// What an endpoint can answer.
#[derive(Clone, Copy, Debug)]
pub struct Restrictions {
    /// Objects have a protobuf form (custom resources have none).
    pub protobuf: bool,
    /// Table and PartialObjectMetadata are offered.
    pub transforms: bool,
    /// Table is offered too; what is not stored has none.
    pub tables: bool,
}

impl Restrictions {
    pub const BUILTIN: Restrictions = Restrictions { protobuf: true, transforms: true, tables: true };
    pub const CUSTOM: Restrictions = Restrictions { protobuf: false, transforms: true, tables: true };
    /// Kinds that are answered and not stored, such as reviews.
    pub const UNSTORED: Restrictions = Restrictions { protobuf: true, transforms: true, tables: false };
    /// Errors, discovery and the like.
    pub const PLAIN: Restrictions = Restrictions { protobuf: true, transforms: false, tables: false };

    fn allows(self, encoding: Encoding, convert: Option<&Convert>) -> bool {
        let Some(convert) = convert else { return self.protobuf || encoding != Encoding::Protobuf };
        if !self.transforms || convert.group != "meta.k8s.io" || !matches!(convert.version.as_str(), "v1" | "v1beta1") {
            return false;
        }
        match convert.kind.as_str() {
            "Table" => self.tables && encoding != Encoding::Protobuf,
            "PartialObjectMetadata" | "PartialObjectMetadataList" => true,
            _ => false,
        }
    }
}

struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    quality: f32,
    params: Vec<(&'a str, &'a str)>,
}

fn parse_accept(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|part| {
            let mut fields = part.split(';').map(str::trim);
            let (main, sub) = match fields.next()? {
                "*" => ("*", "*"),
                media_type => media_type.split_once('/')?,
            };
            let mut clause = Clause { main: main.trim(), sub: sub.trim(), quality: 1.0, params: Vec::new() };
            for field in fields {
                let (key, value) = field.split_once('=').unwrap_or((field, ""));
                match key {
                    "" => {}
                    "q" => clause.quality = value.parse().unwrap_or(1.0),
                    _ => clause.params.push((key, value.trim_matches('"'))),
                }
            }
            Some(clause)
        })
        .collect();
    clauses.sort_by(|a, b| {
        let wild = |c: &Clause<'_>| (c.main == "*", c.sub == "*");
        b.quality.total_cmp(&a.quality).then_with(|| wild(a).cmp(&wild(b)))
    });
    clauses
}

/// Whether upstream's router passes a request with this `Accept` header on: it looks at media types without parameters.
pub fn routed(accept: &str) -> bool {
    let known = |clause: &str| {
        let media_type = clause.split(';').next().unwrap_or("").trim();
        media_type == "*/*" || ALL.iter().any(|e| e.media_type() == media_type)
    };
    accept.is_empty() || accept.split(',').any(known)
}

/// The best answer to an `Accept` header, `None` when there is none (406).
pub fn negotiate_output(accept: &str, restrictions: Restrictions) -> Option<Accepted> {
    if accept.is_empty() {
        return Some(Accepted::json());
    }
    for clause in parse_accept(accept) {
        for encoding in ALL {
            let (main, sub) = encoding.media_type().split_once('/').expect("media types have a slash");
            // `application/*` matches nothing; `*/*` does.
            if !((clause.main == main && clause.sub == sub) || (clause.main == "*" && clause.sub == "*")) {
                continue;
            }
            let mut accepted = Accepted { encoding, convert: None, pretty: false };
            let mut refused = false;
            for (key, value) in &clause.params {
                match *key {
                    "as" => accepted.convert.get_or_insert_default().kind = (*value).to_owned(),
                    "g" => accepted.convert.get_or_insert_default().group = (*value).to_owned(),
                    "v" => accepted.convert.get_or_insert_default().version = (*value).to_owned(),
                    "stream" => refused |= !value.is_empty() && *value != "watch",
                    "sv" => refused |= !value.is_empty() && *value != "v1",
                    "pretty" => accepted.pretty = *value == "1",
                    _ => {}
                }
            }
            if !refused && restrictions.allows(encoding, accepted.convert.as_ref()) {
                return Some(accepted);
            }
        }
    }
    None
}

/// The encoding of a request body, `None` when it is not supported (415).
pub fn negotiate_input(content_type: &str) -> Option<Encoding> {
    if content_type.is_empty() {
        return Some(Encoding::Json);
    }
    let media_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    ALL.into_iter().find(|e| e.media_type() == media_type)
}

/// The list in the messages of 406 and 415.
pub fn supported(streaming: bool) -> String {
    let suffix = if streaming { ";stream=watch" } else { "" };
    let mut names: Vec<String> = ALL.iter().map(|e| format!("{}{suffix}", e.media_type())).collect();
    if streaming {
        // YAML has no framing.
        names.remove(1);
    }
    names.join(", ")
}

/// Whether the client is a person: `?pretty=true`, or a browser, curl or wget.
pub fn is_pretty(pretty: Option<&str>, user_agent: &str) -> bool {
    if let Some(value) = pretty.filter(|v| !v.is_empty()) {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| user_agent.starts_with(p))
}

/// JSON with two spaces of indentation and a final newline, as Go writes it.
pub fn to_pretty_json(compact: &[u8]) -> Vec<u8> {
    let Ok(value) = Value::from_slice(compact) else { return compact.to_vec() };
    let mut out = serde_json::to_vec_pretty(&value).unwrap_or_else(|_| compact.to_vec());
    out.push(b'\n');
    out
}

/// YAML of a JSON document.
pub fn to_yaml(json: &[u8]) -> Vec<u8> {
    match Value::from_slice(json).ok().and_then(|v| serde_saphyr::to_string(&v).ok()) {
        Some(text) => text.into_bytes(),
        None => json.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers_choose_encoding_and_form() {
        use Encoding::*;
        // Source: golden list-watch/accept-*.
        for (accept, custom, want) in [
            ("", false, Some((Json, ""))),
            ("*/*", false, Some((Json, ""))),
            ("application/*", false, None),
            ("text/html", false, None),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false, Some((Json, ""))),
            ("application/json;foo=bar", false, Some((Json, ""))),
            ("application/json;stream=watch", false, Some((Json, ""))),
            ("application/json;stream=other", false, None),
            ("application/yaml", false, Some((Yaml, ""))),
            ("application/vnd.kubernetes.protobuf,application/json", false, Some((Protobuf, ""))),
            ("application/vnd.kubernetes.protobuf,application/json", true, Some((Json, ""))),
            ("application/vnd.kubernetes.protobuf", true, None),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", false, Some((Json, "Table"))),
            ("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", false, Some((Json, ""))),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", false, None),
            ("application/json;q=0.2,application/yaml;q=0.8", false, Some((Yaml, ""))),
        ] {
            let restrictions = if custom { Restrictions::CUSTOM } else { Restrictions::BUILTIN };
            let got = negotiate_output(accept, restrictions);
            let got = got.map(|a| (a.encoding, a.convert.map(|c| c.kind).unwrap_or_default()));
            assert_eq!(got, want.map(|(e, c)| (e, c.to_owned())), "{accept}");
        }
    }
}
