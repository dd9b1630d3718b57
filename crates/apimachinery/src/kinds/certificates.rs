//! Certificate signing requests, and the names of signers and trust bundles.

use super::check::{Errors, Report};
use crate::field::{FieldError, FieldPath};
use crate::names;

/// The name of a signer: `domain/path`.
pub(crate) fn signer_name(name: &str, path: &FieldPath, errors: &mut Errors) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let segments: Vec<&str> = name.splitn(2, '/').collect();
    let [domain, signer] = segments.as_slice() else {
        return errors.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    };
    for message in names::is_dns1123_subdomain(domain) {
        errors.invalid(path, *domain, format!("validating label {domain:?}: {message}"));
    }
    if domain.split('.').count() < 2 {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    for segment in signer.split('.') {
        for message in names::is_dns1123_subdomain(segment) {
            errors.invalid(path, *signer, format!("validating label {segment:?}: {message}"));
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
