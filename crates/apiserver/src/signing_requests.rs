//! The PKCS#10 requests inside CertificateSigningRequests: whole, and signed with the key that they name.
//!
//! Follows: `pkg/apis/certificates/validation` (`validateCSR`); messages as of Go's `crypto/x509`.

use apimachinery::Value;
use apimachinery::field::{FieldError, FieldPath};
use apimachinery::kinds::request_der;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;

/// Adds what is wrong with the request of a new object. Its outer form was judged with the other fields.
pub(crate) fn validate(object: &Value, errors: &mut Vec<FieldError>) {
    let request = object.str_at(&["spec", "request"]);
    let Some(problem) = request_der(request).ok().and_then(|der| problem(&der)) else { return };
    let path = FieldPath::new("spec").child("request");
    // As the first of the specification's.
    let place = errors.iter().position(|e| !e.field.starts_with("metadata")).unwrap_or(errors.len());
    errors.insert(place, FieldError::invalid(&path, request, problem));
}

fn problem(der: &[u8]) -> Option<String> {
    let Ok((_, request)) = X509CertificationRequest::from_der(der) else {
        return Some("asn1: structure error: malformed certificate request".to_owned());
    };
    let key = &request.certification_request_info.subject_pki.algorithm;
    let text = match request.verify_signature() {
        Ok(()) => return None,
        Err(X509Error::SignatureUnsupportedAlgorithm) => "x509: cannot verify signature: algorithm unimplemented",
        Err(_) if key.algorithm == OID_PKCS1_RSAENCRYPTION => "crypto/rsa: verification error",
        Err(_) if key.algorithm == OID_SIG_ED25519 => "x509: Ed25519 verification failure",
        Err(_) => "x509: ECDSA verification failure",
    };
    // A curve or an algorithm that is not built here is no reason to refuse what upstream takes.
    let known = |oid: &x509_parser::der_parser::Oid<'_>| {
        [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].iter().any(|known| known == oid)
    };
    let curve = key.parameters.as_ref().and_then(|p| p.as_oid().ok());
    let foreign = text.contains("ECDSA") && curve.is_some_and(|curve| !known(&curve));
    (!foreign).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    #[test]
    fn requests_are_signed_with_their_own_key() {
        let text = |der: &[u8]| {
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            base64::engine::general_purpose::STANDARD.encode(pem)
        };
        let told = |der: &[u8]| {
            let object = apimachinery::json!({"spec": {"request": text(der)}});
            let mut errors = Vec::new();
            validate(&object, &mut errors);
            let outer = request_der(&text(der)).err();
            outer.or_else(|| errors.first().map(|e| e.detail.clone()))
        };
        let algorithms = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "x509: ECDSA verification failure"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "x509: ECDSA verification failure"),
            (&rcgen::PKCS_ED25519, "x509: Ed25519 verification failure"),
        ];
        for (algorithm, failure) in algorithms {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().serialize_request(&key);
            let der = request.unwrap().der().to_vec();
            assert_eq!(told(&der), None, "{failure}");
            let mut changed = der.clone();
            let at = changed.windows(9).position(|w| w == b"a.example").expect("the name is in it");
            changed[at] = b'b';
            assert_eq!(told(&changed).as_deref(), Some(failure));
            let mut longer = der.clone();
            longer.extend([0, 0]);
            assert_eq!(told(&longer).as_deref(), Some("asn1: syntax error: trailing data"));
            assert_eq!(told(&der[..der.len() - 5]).as_deref(), Some("asn1: syntax error: data truncated"));
        }
        for (der, want) in [
            (&b""[..], "asn1: syntax error: sequence truncated"),
            (b"\x30\x00", "asn1: syntax error: sequence truncated"),
            (
                b"hello world",
                "asn1: structure error: tags don't match (16 vs {class:1 tag:8 length:101 isCompound:true})",
            ),
            (b"\x30\x03\x02\x01\x01", "asn1: structure error: tags don't match (16 vs {class:0 tag:2 length:1"),
            (b"\x30\x02\x30\x00", "asn1: structure error: malformed certificate request"),
        ] {
            let got = told(der).unwrap_or_default();
            assert!(got.starts_with(want), "{der:?}: {got}");
        }
    }
}
