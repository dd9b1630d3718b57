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
        ("semver", [Val::String(s), Val::Bool(normalize)]) => Semver::parse(&normalized(s, *normalize)?).map(opaque),
        ("isSemver", [Val::String(s)]) => Ok(Semver::parse(s).is_ok().into()),
        ("isSemver", [Val::String(s), Val::Bool(normalize)]) => {
            Ok(normalized(s, *normalize).is_ok_and(|s| Semver::parse(&s).is_ok()).into())
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
fn normalized(text: &str, normalize: bool) -> Result<String, String> {
    if !normalize {
        return Ok(text.to_owned());
    }
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| match part.trim_start_matches('0') {
            _ if part.len() < 2 => part.to_owned(),
            rest if rest.starts_with(|c: char| c.is_ascii_digit()) => rest.to_owned(),
            rest => format!("0{rest}"),
        })
        .collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return Err("short version cannot contain PreRelease/Build meta data".to_owned());
    }
    parts.resize(3, "0".to_owned());
    Ok(parts.join("."))
}

/// A part that is a number: `name` is what messages call it.
fn number(part: &str, name: &str) -> Result<u64, String> {
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {} number {part:?}", name.to_lowercase()));
    }
    if part.len() > 1 && part.starts_with('0') {
        return Err(format!("{name} number must not contain leading zeroes {part:?}"));
    }
    plain_number(part)
}

fn plain_number(part: &str) -> Result<u64, String> {
    part.parse().map_err(|_| {
        let why = if part.is_empty() { "invalid syntax" } else { "value out of range" };
        format!("strconv.ParseUint: parsing {part:?}: {why}")
    })
}

fn is_identifier(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn prerelease(part: &str) -> Result<String, String> {
    if part.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if part.bytes().all(|b| b.is_ascii_digit()) {
        if part.len() > 1 && part.starts_with('0') {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {part:?}"));
        }
        plain_number(part)?;
    } else if !is_identifier(part) {
        return Err(format!("Invalid character(s) found in prerelease {part:?}"));
    }
    Ok(part.to_owned())
}

fn build(part: &str) -> Result<String, String> {
    match part {
        "" => Err("Build meta data is empty".to_owned()),
        part if is_identifier(part) => Ok(part.to_owned()),
        part => Err(format!("Invalid character(s) found in build meta data {part:?}")),
    }
}

impl Semver {
    /// Messages as of the library that upstream uses (`blang/semver`).
    fn parse(text: &str) -> Result<Semver, String> {
        if text.is_empty() {
            return Err("Version string empty".to_owned());
        }
        let parts: Vec<&str> = text.splitn(3, '.').collect();
        let [major, minor, rest] = parts[..] else { return Err("No Major.Minor.Patch elements found".to_owned()) };
        let (major, minor) = (number(major, "Major")?, number(minor, "Minor")?);
        let (rest, built) = rest.split_once('+').map_or((rest, None), |(r, b)| (r, Some(b)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(r, p)| (r, Some(p)));
        let patch = number(patch, "Patch")?;
        let all = |part: Option<&str>, read: fn(&str) -> Result<String, String>| {
            part.into_iter().flat_map(|p| p.split('.')).map(read).collect::<Result<Vec<_>, _>>()
        };
        Ok(Semver { numbers: [major, minor, patch], pre: all(pre, prerelease)?, build: all(built, build)? })
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
