//! What a request asks for, read from its method, path and query alone.
//!
//! Does not know which resources exist. A path under `/api/` or `/apis/` that is long enough always names a resource here;
//! whether it is served is decided later, after authorization (a client that may not see a resource must not learn whether
//! it exists).
//!
//! Follows: `k8s.io/apiserver/pkg/endpoints/request.RequestInfoFactory`.

use percent_encoding::percent_decode_str;

/// The query of a request, decoded, in the order in which it was sent.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: Option<&str>) -> Query {
        let Some(raw) = raw else { return Query::default() };
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        Query(
            raw.split('&')
                .filter(|part| !part.is_empty())
                .map(|part| match part.split_once('=') {
                    Some((k, v)) => (decode(k), decode(v)),
                    None => (decode(part), String::new()),
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// The first value of a parameter, `""` when absent.
    pub fn str(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    /// All values of a repeated parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// A boolean as Go's conversion from query parameters reads it: present and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct RequestInfo {
    /// False for paths such as `/healthz` or `/apis/apps/v1`; then only `path` and `verb` (the lower-case method) count.
    pub is_resource: bool,
    pub path: String,
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Path segments after resource, name and subresource (for proxies).
    pub rest: Vec<String>,
    /// The path had the deprecated `/watch/` segment.
    pub watch_prefix: bool,
    /// The name came from a field selector, not from the path.
    pub name_from_selector: bool,
    pub query: Query,
}

impl RequestInfo {
    /// `group/version`, or `version` alone for the core group.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Watches and connections to pods go on until somebody ends them.
    ///
    /// Source: `server.DefaultBuildHandlerChain` (`BasicLongRunningRequestCheck`).
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(self.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
    }

    /// Reads a request line. `path` is still percent-encoded.
    pub fn new(method: &http::Method, path: &str, query: Option<&str>) -> RequestInfo {
        let query = Query::parse(query);
        let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let mut info = RequestInfo {
            path: decoded.clone(),
            verb: method.as_str().to_ascii_lowercase(),
            query,
            ..RequestInfo::default()
        };
        let parts: Vec<&str> = match decoded.trim_matches('/') {
            "" => Vec::new(),
            trimmed => trimmed.split('/').collect(),
        };
        let mut parts = match parts.as_slice() {
            ["api", rest @ ..] if rest.len() >= 2 => {
                info.api_prefix = "api".into();
                rest
            }
            ["apis", group, rest @ ..] if rest.len() >= 2 => {
                info.api_prefix = "apis".into();
                info.group = (*group).into();
                rest
            }
            _ => return info,
        };
        info.is_resource = true;
        info.version = parts[0].into();
        parts = &parts[1..];

        info.verb = match *method {
            http::Method::POST => "create",
            http::Method::GET | http::Method::HEAD => "get",
            http::Method::PUT => "update",
            http::Method::PATCH => "patch",
            http::Method::DELETE => "delete",
            _ => "",
        }
        .into();
        if let ["watch", rest @ ..] = parts
            && !rest.is_empty()
        {
            info.watch_prefix = true;
            info.verb = "watch".into();
            parts = rest;
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            info.namespace = (*namespace).into();
            // `namespaces/x` and its own subresources are about the Namespace object itself.
            match rest {
                [] | ["status" | "finalize", ..] => {}
                _ => parts = rest,
            }
        }
        match parts {
            [] => {}
            [resource] => info.resource = (*resource).into(),
            [resource, name] => {
                info.resource = (*resource).into();
                info.name = (*name).into();
            }
            [resource, name, subresource, rest @ ..] => {
                info.resource = (*resource).into();
                info.name = (*name).into();
                info.subresource = (*subresource).into();
                info.rest = rest.iter().map(|s| (*s).to_owned()).collect();
                // A proxied path keeps its trailing slash.
                if !info.rest.is_empty() && decoded.ends_with('/') {
                    info.rest.push(String::new());
                }
            }
        }
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if info.query.flag("watch") { "watch" } else { "list" }.into();
        }
        if info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch" | "delete") {
            // A selector of exactly one name counts as a request for that object when access is decided.
            if let Some(name) = info.query.get("fieldSelector").and_then(exact_name) {
                info.name = name.to_owned();
                info.name_from_selector = true;
            }
            if info.verb == "delete" {
                info.verb = "deletecollection".into();
            }
        }
        info
    }
}

fn exact_name(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        (!value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))).then_some(value)
    })
}

/// How long a request may take by its own `timeout` parameter, or Go's complaint about it.
///
/// Source: `k8s.io/apiserver/pkg/endpoints/filters/request_deadline.go`, `time.ParseDuration`.
pub fn own_timeout(query: &Query) -> Result<Option<std::time::Duration>, String> {
    let text = query.str("timeout");
    if text.is_empty() {
        return Ok(None);
    }
    let refused = |reason: String| format!("invalid timeout specified in the request URL - time: {reason}");
    let invalid = || refused(format!("invalid duration {text:?}"));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Some(std::time::Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "" => return Err(refused(format!("missing unit in duration {text:?}"))),
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => return Err(refused(format!("unknown unit {other:?} in duration {text:?}"))),
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    if negative || seconds <= 0.0 {
        return Ok(Some(std::time::Duration::ZERO));
    }
    std::time::Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_how_long_they_may_take() {
        let prefix = "invalid timeout specified in the request URL - time: ";
        for (text, want) in [
            ("", Ok(None)),
            ("32s", Ok(Some(32_000))),
            ("1m1.5s", Ok(Some(61_500))),
            ("250ms", Ok(Some(250))),
            ("0", Ok(Some(0))),
            ("-1s", Ok(Some(0))),
            ("5", Err("missing unit in duration \"5\"")),
            ("x", Err("invalid duration \"x\"")),
            ("5x", Err("unknown unit \"x\" in duration \"5x\"")),
        ] {
            let query = Query(vec![("timeout".to_owned(), text.to_owned())]);
            let got = own_timeout(&query).map(|t| t.map(|t| t.as_millis() as u64));
            assert_eq!(got, want.map_err(|e| format!("{prefix}{e}")), "{text}");
        }
    }

    #[test]
    fn paths_name_verb_group_resource_name_and_subresource() {
        // (method, target, "verb group version namespace resource name subresource"; `-` for empty)
        for (method, target, want) in [
            ("GET", "/api/v1/pods", "list - v1 - pods - -"),
            ("GET", "/api/v1/pods?watch=true", "watch - v1 - pods - -"),
            ("GET", "/api/v1/pods?watch=0", "list - v1 - pods - -"),
            ("GET", "/api/v1/namespaces/a/pods/b", "get - v1 a pods b -"),
            ("GET", "/api/v1/namespaces/a/pods/b?watch=true", "get - v1 a pods b -"),
            ("GET", "/api/v1/namespaces/a", "get - v1 a namespaces a -"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update - v1 a namespaces a finalize"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch apps v1 a deployments d scale"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection apps v1 a deployments - -"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch - v1 a pods - -"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list - v1 - pods x -"),
        ] {
            let (path, query) = match target.split_once('?') {
                Some((p, q)) => (p, Some(q)),
                None => (target, None),
            };
            let i = RequestInfo::new(&method.parse().unwrap(), path, query);
            let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
            let got = [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.name, &i.subresource]
                .map(|s| dash(s))
                .join(" ");
            assert_eq!(got, want, "{method} {target}");
        }
        for path in ["/healthz", "/api", "/api/v1", "/apis/apps/v1", "/apis/apps"] {
            assert!(!RequestInfo::new(&http::Method::GET, path, None).is_resource, "{path}");
        }
    }
}
