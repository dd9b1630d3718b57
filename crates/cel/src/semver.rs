//! Semantic versions.
//!
//! Follows: `k8s.io/apiserver/pkg/cel/library/semverlib.go`; SemVer 2.0.0 for precedence.

use std::any::Any;
use std::cmp::Ordering;

use crate::k8s::opaque;
use crate::stdlib::{NO_OVERLOAD, Outcome};
use crate::value::{Opaque, Val};

#[derive(Debug, PartialEq, Eq)]
struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: Vec<String>,
}

pub(crate) fn call(name: &str, args: &[Val]) -> Outcome {
    match (name, args) {
        ("semver", [Val::String(s)]) => Semver::parse(s).map(opaque),
        ("semver", [Val::String(s), Val::Bool(normalize)]) => Semver::parse(&normalized(s, *normalize)).map(opaque),
        ("isSemver", [Val::String(s)]) => Ok(Semver::parse(s).is_ok().into()),
        ("isSemver", [Val::String(s), Val::Bool(normalize)]) => {
            Ok(Semver::parse(&normalized(s, *normalize)).is_ok().into())
        }
        (_, [Val::Opaque(o), rest @ ..]) => {
            let Some(version) = o.as_any().downcast_ref::<Semver>() else { return Err(NO_OVERLOAD) };
            let other = match rest {
                [Val::Opaque(o)] => o.as_any().downcast_ref::<Semver>(),
                _ => None,
            };
            Ok(match (name, rest.len(), other) {
                ("major", 0, _) => Val::Int(version.numbers[0] as i64),
                ("minor", 0, _) => Val::Int(version.numbers[1] as i64),
                ("patch", 0, _) => Val::Int(version.numbers[2] as i64),
                ("isGreaterThan", 1, Some(other)) => version.precedence(other).is_gt().into(),
                ("isLessThan", 1, Some(other)) => version.precedence(other).is_lt().into(),
                ("compareTo", 1, Some(other)) => Val::Int(version.precedence(other) as i64),
                _ => return Err(NO_OVERLOAD),
            })
        }
        _ => Err(NO_OVERLOAD),
    }
}

/// Without a leading `v`, leading zeros, and with missing parts added.
fn normalized(text: &str, normalize: bool) -> String {
    if !normalize {
        return text.to_owned();
    }
    let text = text.trim_start_matches('v');
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut parts: Vec<String> = core
        .split('.')
        .map(|p| {
            let digits = p.trim_start_matches('0');
            if digits.is_empty() && !p.is_empty() { "0".into() } else { digits.into() }
        })
        .collect();
    while parts.len() < 3 {
        parts.push("0".into());
    }
    format!("{}{rest}", parts.join("."))
}

impl Semver {
    fn parse(text: &str) -> Result<Semver, String> {
        let bad = |why: &str| format!("invalid semantic version {text:?}: {why}");
        let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else { return Err("No Major.Minor.Patch elements found".to_owned()) };
        let number = |part: &str| {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) || (part.len() > 1 && part.starts_with('0'))
            {
                return Err(bad("invalid number"));
            }
            part.parse::<u64>().map_err(|_| bad("number out of range"))
        };
        let identifiers = |part: Option<&str>, numeric: bool| -> Result<Vec<String>, String> {
            let valid = |id: &str| {
                !id.is_empty()
                    && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !(numeric && id.len() > 1 && id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit()))
            };
            let list: Vec<String> = part.map(|p| p.split('.').map(str::to_owned).collect()).unwrap_or_default();
            if list.iter().all(|id| valid(id)) { Ok(list) } else { Err(bad("invalid identifier")) }
        };
        Ok(Semver {
            numbers: [number(major)?, number(minor)?, number(patch)?],
            pre: identifiers(pre, true)?,
            build: identifiers(build, false)?,
        })
    }

    /// Build metadata does not count; a pre-release comes before its release.
    fn precedence(&self, other: &Semver) -> Ordering {
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.pre.iter().zip(&other.pre).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    (Err(_), Err(_)) => a.cmp(b),
                });
                pairs.fold(Ordering::Equal, Ordering::then).then(self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(pre)
    }
}

impl Opaque for Semver {
    fn type_name(&self) -> &'static str {
        "kubernetes.Semver"
    }
    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Semver>().is_some_and(|v| v.precedence(self).is_eq())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
