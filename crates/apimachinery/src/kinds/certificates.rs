//! Certificate signing requests, and the names of signers and trust bundles.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::access::Fields;
use super::check::{Errors, Report, shown, strings};
use super::object_meta::{self, MetaRules};
use crate::field::{FieldError, FieldPath};
use crate::json::Value;
use crate::names;

/// The name of a signer: `domain/path`.
pub(crate) fn signer_name(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, signer] = segments.as_slice() else {
        return errors.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    };
    if domain.len() > 253 {
        errors.push(FieldError::too_long(path, 253));
    }
    // One label's problems are enough: those of the others read alike.
    let broken = |label: &&str| !names::is_dns1123_label(label).is_empty();
    if let Some(label) = domain.split('.').find(broken) {
        for message in names::is_dns1123_label(label) {
            errors.invalid(path, *domain, format!("validating label {label:?}: {message}"));
        }
    }
    if domain.split('.').count() < 2 {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    let broken = |label: &&str| !names::is_dns1123_subdomain(label).is_empty();
    if let Some(label) = signer.split('.').find(broken) {
        for message in names::is_dns1123_subdomain(label) {
            errors.invalid(path, *signer, format!("validating label {label:?}: {message}"));
        }
    }
    if name.len() > 571 {
        errors.push(FieldError::too_long(path, 571));
    }
}

/// The name of a trust bundle, which starts with its signer's.
pub(crate) fn trust_bundle_name(signer: &str, name: &str) -> Vec<String> {
    if signer.is_empty() {
        return if name.contains(':') {
            vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()]
        } else {
            names::name_is_dns_subdomain(name, false)
        };
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
        Some(rest) => names::name_is_dns_subdomain(rest, false),
    }
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The bytes that standard base64 stands for.
pub(crate) fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The type and the contents of the first PEM block of a text, and what follows it.
fn pem_block(text: &str) -> Option<(&str, Vec<u8>, bool, &str)> {
    let start = text.find("-----BEGIN ")?;
    let rest = &text[start + "-----BEGIN ".len()..];
    let (kind, rest) = rest.split_once("-----")?;
    let end = format!("-----END {kind}-----");
    let (body, rest) = rest.split_once(end.as_str())?;
    let has_headers = body.contains(':');
    let encoded: String = body.lines().filter(|l| !l.contains(':')).map(str::trim).collect();
    Some((kind, decoded(&encoded)?, has_headers, rest))
}

/// Whether bytes are one ASN.1 sequence, from end to end.
fn is_sequence(der: &[u8]) -> bool {
    header(der).is_some_and(|h| (h.class, h.tag, h.compound) == SEQUENCE && der.len() == h.from + h.length)
}

/// Class, tag and form of a sequence.
const SEQUENCE: (u8, u8, bool) = (0, 16, true);

/// An ASN.1 header: what it announces, and where its contents begin.
struct Header {
    class: u8,
    tag: u8,
    compound: bool,
    length: usize,
    from: usize,
}

fn header(der: &[u8]) -> Option<Header> {
    let (first, second) = (*der.first()?, usize::from(*der.get(1)?));
    let count = if second < 0x80 { 0 } else { second & 0x7f };
    if count > 4 || second == 0x80 {
        return None;
    }
    let length = match count {
        0 => second,
        _ => der.get(2..2 + count)?.iter().fold(0_usize, |n, b| n << 8 | usize::from(*b)),
    };
    Some(Header { class: first >> 6, tag: first & 0x1f, compound: first & 0x20 != 0, length, from: 2 + count })
}

/// The contents of the sequence at the start of `der`, and what follows it. `name` is the member that a message names.
///
/// Messages as of Go's `encoding/asn1`.
fn sequence<'d>(der: &'d [u8], name: &str) -> Result<(&'d [u8], &'d [u8]), String> {
    const PARAMETERS: &str = "optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil> \
                              stringType:0 timeType:0 set:false omitEmpty:false";
    if der.is_empty() {
        return Err("asn1: syntax error: sequence truncated".to_owned());
    }
    let Some(Header { class, tag, compound, length, from }) = header(der) else {
        return Err("asn1: syntax error: truncated tag or length".to_owned());
    };
    if (class, tag, compound) != SEQUENCE {
        return Err(format!(
            "asn1: structure error: tags don't match (16 vs {{class:{class} tag:{tag} length:{length} isCompound:{compound}}}) \
             {{{PARAMETERS}}} {name} @{from}"
        ));
    }
    let rest = &der[from..];
    if length > rest.len() {
        return Err("asn1: syntax error: data truncated".to_owned());
    }
    Ok(rest.split_at(length))
}

/// The PKCS#10 request in `spec.request`, as far as its outer form goes.
///
/// # Errors
/// Why it is no request, in the words of upstream.
pub fn request_der(request: &str) -> Result<Vec<u8>, String> {
    let text = decoded(request).and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(("CERTIFICATE REQUEST", der, _, _)) = text.as_deref().and_then(pem_block) else {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let (contents, after) = sequence(&der, "certificateRequest")?;
    sequence(contents, "tbsCertificateRequest")?;
    match after.is_empty() {
        true => Ok(der),
        false => Err("asn1: syntax error: trailing data".to_owned()),
    }
}

fn certificate_error(certificate: &str) -> Option<String> {
    if certificate.is_empty() {
        return None;
    }
    let text = decoded(certificate).and_then(|b| String::from_utf8(b).ok()).unwrap_or_default();
    let mut rest = text.as_str();
    let mut blocks = 0;
    while let Some((kind, der, headers, after)) = pem_block(rest) {
        if kind != "CERTIFICATE" {
            return Some(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}"));
        }
        if headers {
            return Some("no PEM block headers are permitted".to_owned());
        }
        if !is_sequence(&der) {
            return Some("x509: malformed certificate".to_owned());
        }
        blocks += 1;
        rest = after;
    }
    (blocks == 0).then(|| "must contain at least one CERTIFICATE PEM block".to_owned())
}

fn of_type<'a>(csr: &'a Value, kind: &str) -> Vec<&'a Value> {
    csr.v("status").list("conditions").iter().filter(|c| c.s("type") == kind).collect()
}

fn repeats(items: impl Iterator<Item = String>) -> bool {
    let all: Vec<String> = items.collect();
    (1..all.len()).any(|i| all[..i].contains(&all[i]))
}

fn request(csr: &Value, old: Option<&Value>, errors: &mut Errors) {
    let mut rules = MetaRules::cluster(object_meta::any_name);
    rules.kube_finalizers = true;
    object_meta::validate(csr, rules, errors);
    let (spec, path) = (csr.v("spec"), FieldPath::new("spec"));
    if let Err(problem) = request_der(spec.s("request")) {
        errors.invalid(&path.child("request"), shown(spec.v("request")), problem);
    }
    let usages = strings(spec, "usages");
    let at = path.child("usages");
    if usages.is_empty() {
        errors.required(&at, "");
    }
    let before = old.map(|o| strings(o.v("spec"), "usages")).unwrap_or_default();
    if before.iter().all(|usage| USAGES.contains(usage)) {
        for (i, usage) in usages.iter().enumerate() {
            if !USAGES.contains(usage) {
                errors.not_supported(&at.index(i), *usage, USAGES);
            }
        }
    }
    if !repeats(before.iter().map(|u| (*u).to_owned())) {
        for (i, usage) in usages.iter().enumerate() {
            if usages[..i].contains(usage) {
                errors.duplicate(&at.index(i), *usage);
            }
        }
    }
    const LEGACY: &str = "kubernetes.io/legacy-unknown";
    let signer = spec.s("signerName");
    if signer == LEGACY && old.is_none_or(|o| o.v("spec").s("signerName") != LEGACY) {
        errors.invalid(&path.child("signerName"), signer, "the legacy signerName is not allowed via this API version");
    } else {
        signer_name(signer, &path.child("signerName"), errors);
    }
    if let Some(seconds) = spec.oi("expirationSeconds")
        && seconds < 600
    {
        errors.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    request_conditions(csr, old, errors);
    let certificate = csr.v("status").s("certificate");
    let lenient = old.is_some_and(|o| {
        let before = o.v("status").s("certificate");
        before == certificate || certificate_error(before).is_some()
    });
    if let Some(problem) = certificate_error(certificate).filter(|_| !lenient) {
        errors.invalid(&FieldPath::new("status").child("certificate"), "<certificate data>", problem);
    }
}

fn request_conditions(csr: &Value, old: Option<&Value>, errors: &mut Errors) {
    let path = FieldPath::new("status").child("conditions");
    let conditions = csr.v("status").list("conditions");
    let before = old.map(|o| o.v("status").list("conditions")).unwrap_or_default();
    let allow_empty = before.iter().any(|c| c.s("type").is_empty());
    let allow_both = ["Approved", "Denied"].iter().all(|kind| before.iter().any(|c| c.s("type") == *kind));
    let allow_repeats = repeats(before.iter().map(|c| c.s("type").to_owned()));
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.index(i);
        let (kind, status) = (condition.s("type"), condition.s("status"));
        if kind.is_empty() && !allow_empty {
            errors.required(&at.child("type"), "");
        }
        let allowed: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        if status.is_empty() {
            errors.required(&at.child("status"), "");
        } else if !allowed.contains(&status) {
            errors.not_supported(&at.child("status"), status, allowed);
        }
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !allow_both && !other.is_empty() && conditions[..i].iter().any(|c| c.s("type") == other) {
            errors.invalid(&path, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if !allow_repeats && conditions[..i].iter().any(|c| c.s("type") == kind) {
            errors.duplicate(&at.child("type"), kind);
        }
    }
}

/// A request, created or updated through the main resource, `status` or `approval`.
pub(crate) fn signing_request(new: &Value, old: Option<&Value>, subresource: &str, errors: &mut Errors) {
    request(new, old, errors);
    let Some(old) = old else { return };
    let path = FieldPath::new("status").child("conditions");
    for kind in ["Approved", "Denied", "Failed"] {
        if of_type(new, kind).len() < of_type(old, kind).len() {
            errors.forbidden(&path, format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    if subresource != "approval" {
        for kind in ["Approved", "Denied"] {
            let (after, before) = (of_type(new, kind), of_type(old, kind));
            if after.len() > before.len() {
                errors.forbidden(&path, format!("updates may not add a condition of type {kind:?}"));
            } else if after.len() == before.len()
                && after.iter().zip(&before).any(|(a, b)| !super::access::semantic_equal(a, b))
            {
                errors.forbidden(&path, format!("updates may not modify a condition of type {kind:?}"));
            }
        }
    }
    let (after, before) = (new.v("status").s("certificate"), old.v("status").s("certificate"));
    let at = FieldPath::new("status").child("certificate");
    if after != before {
        if subresource != "status" {
            errors.forbidden(&at, "updates may not set certificate content");
        } else if !before.is_empty() {
            errors.forbidden(&at, "updates may not modify existing certificate content");
        }
    }
    object_meta::validate_update(new, old, true, errors);
}
