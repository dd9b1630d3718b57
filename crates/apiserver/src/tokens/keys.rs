//! Keys that sign and verify service account tokens, from PEM, and their public form for relying parties.
//!
//! Follows: `pkg/serviceaccount/{jwt.go,openidmetadata.go}`.

use std::borrow::Cow;

use apimachinery::{Value, json};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use sha2::{Digest, Sha256};

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the signing key is not a PEM-encoded private key (EC P-256 or P-384, or RSA)")]
    SigningKey,
    #[error("verification key {index} is not a PEM-encoded public or private key (EC P-256 or P-384, or RSA)")]
    VerificationKey { index: usize },
}

/// The content of object identifiers: `id-ecPublicKey`, and two curves.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

struct PublicKey {
    id: String,
    algorithm: Algorithm,
    key: DecodingKey,
    jwk: Value,
}

/// One key that signs and all keys that verify.
pub struct ServiceAccountKeys {
    signing: EncodingKey,
    header: Header,
    public: Vec<PublicKey>,
}

impl ServiceAccountKeys {
    /// Reads the keys. The signing key's public half always verifies; `verification` adds others (public or private).
    pub fn from_pem(signing: &str, verification: &[&str]) -> Result<ServiceAccountKeys, KeyError> {
        let (signing, own) = private_key(signing).ok_or(KeyError::SigningKey)?;
        let mut header = Header::new(own.algorithm);
        header.kid = Some(own.id.clone());
        // As upstream: no `typ`.
        header.typ = None;
        let mut public = vec![own];
        for (index, pem) in verification.iter().enumerate() {
            // A file may hold several keys, and other things as well. Source: `keyutil.ParsePublicKeysPEM`.
            let keys: Vec<PublicKey> = blocks(pem).filter_map(|block| verification_key(&block)).collect();
            if keys.is_empty() {
                return Err(KeyError::VerificationKey { index });
            }
            for key in keys {
                if public.iter().all(|k| k.id != key.id) {
                    public.push(key);
                }
            }
        }
        Ok(ServiceAccountKeys { signing, header, public })
    }

    /// A signed token with these claims.
    pub fn sign(&self, claims: &impl serde::Serialize) -> Result<String, String> {
        jsonwebtoken::encode(&self.header, claims, &self.signing).map_err(|e| e.to_string())
    }

    /// The claims of a token that one of the keys signed. Nothing but the signature is checked.
    pub fn verify<T: serde::de::DeserializeOwned>(&self, token: &str) -> Result<T, &'static str> {
        const NO_KEY: &str = "invalid signature, no keys found";
        let header = jsonwebtoken::decode_header(token).map_err(|_| NO_KEY)?;
        for key in &self.public {
            if header.kid.as_ref().is_some_and(|id| *id != key.id) || header.alg != key.algorithm {
                continue;
            }
            let mut validation = jsonwebtoken::Validation::new(key.algorithm);
            validation.validate_exp = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            if let Ok(data) = jsonwebtoken::decode::<T>(token, &key.key, &validation) {
                return Ok(data.claims);
            }
        }
        Err(NO_KEY)
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.public.iter().map(|k| k.jwk.clone()).collect::<Vec<_>>()})
    }

    /// The names of the signing algorithms, sorted.
    pub fn algorithms(&self) -> Vec<String> {
        let mut names: Vec<String> = self.public.iter().map(|k| format!("{:?}", k.algorithm)).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The PKCS#8 form of `EC PRIVATE KEY`, as OpenSSL writes it, also behind its `EC PARAMETERS`; other text stays as it is.
fn as_pkcs8(pem: &str) -> Cow<'_, str> {
    let traditional = blocks(pem).find(|block| block.starts_with("-----BEGIN EC PRIVATE KEY-----"));
    let wrapped = traditional.and_then(|block| {
        let (_, block) = x509_parser::pem::parse_x509_pem(block.as_bytes()).ok()?;
        let named = |oid: &[u8]| {
            let oid = der_item(6, oid);
            block.contents.windows(oid.len()).any(|bytes| bytes == oid).then_some(oid)
        };
        let curve = named(P256).or_else(|| named(P384))?;
        let algorithm = der_item(0x30, &[der_item(6, EC_PUBLIC_KEY), curve].concat());
        let key = [der_item(2, &[0]), algorithm, der_item(4, &block.contents)].concat();
        let text = base64::engine::general_purpose::STANDARD.encode(der_item(0x30, &key));
        Some(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
    });
    wrapped.map_or(Cow::Borrowed(pem), Cow::Owned)
}

fn private_key(pem: &str) -> Option<(EncodingKey, PublicKey)> {
    let pem = as_pkcs8(pem);
    if let Ok(key) = EncodingKey::from_ec_pem(pem.as_bytes()) {
        for algorithm in [Algorithm::ES256, Algorithm::ES384] {
            if let Some(public) = Jwk::from_encoding_key(&key, algorithm).ok().and_then(|jwk| describe(&jwk))
                && public.algorithm == algorithm
            {
                return Some((key, public));
            }
        }
        return None;
    }
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).ok()?;
    let jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).ok()?;
    Some((key, describe(&jwk)?))
}

/// The PEM blocks of a text, each as a text.
fn blocks(pem: &str) -> impl Iterator<Item = String> + '_ {
    pem.split_inclusive('\n')
        .scan(None::<String>, |open, line| {
            if line.starts_with("-----BEGIN ") {
                *open = Some(String::new());
            }
            if let Some(text) = open.as_mut() {
                text.push_str(line);
            }
            Some(if line.starts_with("-----END ") { open.take() } else { None })
        })
        .flatten()
}

/// A public key, the public half of a private one, or the key of a certificate.
fn verification_key(pem: &str) -> Option<PublicKey> {
    if pem.starts_with("-----BEGIN CERTIFICATE") {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
        let certificate = block.parse_x509().ok()?;
        let key = base64::engine::general_purpose::STANDARD.encode(certificate.public_key().raw);
        return public_key(&format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n"));
    }
    match private_key(pem) {
        Some((_, key)) => Some(key),
        None => public_key(pem),
    }
}

fn public_key(pem: &str) -> Option<PublicKey> {
    let key = DecodingKey::from_ec_pem(pem.as_bytes()).or_else(|_| DecodingKey::from_rsa_pem(pem.as_bytes())).ok()?;
    describe(&Jwk::from_decoding_key(&key, None).ok()?)
}

/// The public key as clients see it; its id is the hash of its DER form.
fn describe(jwk: &Jwk) -> Option<PublicKey> {
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let (algorithm, der, members) = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(ec) => {
            let (algorithm, curve, oid): (_, _, &[u8]) = match ec.curve {
                EllipticCurve::P256 => (Algorithm::ES256, "P-256", P256),
                EllipticCurve::P384 => (Algorithm::ES384, "P-384", P384),
                _ => return None,
            };
            let point = [&[4][..], &bytes(&ec.x)?, &bytes(&ec.y)?].concat();
            let algorithm_id = [der_item(6, EC_PUBLIC_KEY), der_item(6, oid)].concat();
            let members = vec![("crv", curve), ("x", ec.x.as_str()), ("y", ec.y.as_str()), ("kty", "EC")];
            (algorithm, spki(&algorithm_id, &point), members)
        }
        AlgorithmParameters::RSA(rsa) => {
            // rsaEncryption
            let oid = der_item(6, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]);
            let algorithm_id = [oid, der_item(5, &[])].concat();
            let numbers = [der_integer(&bytes(&rsa.n)?), der_integer(&bytes(&rsa.e)?)].concat();
            let members = vec![("n", rsa.n.as_str()), ("e", rsa.e.as_str()), ("kty", "RSA")];
            (Algorithm::RS256, spki(&algorithm_id, &der_item(0x30, &numbers)), members)
        }
        _ => return None,
    };
    let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
    let mut value = json!({"use": "sig", "kid": id.clone(), "alg": format!("{algorithm:?}")});
    for (key, text) in members {
        value[key] = text.into();
    }
    Some(PublicKey { id, algorithm, key: DecodingKey::from_jwk(jwk).ok()?, jwk: value })
}

fn spki(algorithm_id: &[u8], key: &[u8]) -> Vec<u8> {
    let key = [&[0][..], key].concat();
    der_item(0x30, &[der_item(0x30, algorithm_id), der_item(3, &key)].concat())
}

fn der_integer(magnitude: &[u8]) -> Vec<u8> {
    let first = magnitude.iter().position(|b| *b != 0).unwrap_or(magnitude.len());
    let mut bytes = magnitude[first..].to_vec();
    if bytes.first().is_none_or(|b| b & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    der_item(2, &bytes)
}

fn der_item(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n if n < 0x80 => out.push(n as u8),
        n => {
            let length = n.to_be_bytes();
            let first = length.iter().position(|b| *b != 0).unwrap_or(0);
            out.push(0x80 | (length.len() - first) as u8);
            out.extend_from_slice(&length[first..]);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_the_form_of_openssl_sign() {
        let mut known = Vec::new();
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let der = pair.serialize_der();
            // The key is at the end of the PKCS#8 form, without its parameters: they are put in.
            let start = der.windows(4).position(|bytes| bytes == [2, 1, 1, 4]).unwrap();
            let (secret, rest) = der[start..].split_at(5 + usize::from(der[start + 4]));
            let curve = if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 { P256 } else { P384 };
            let sec1 = der_item(0x30, &[secret, &der_item(0xa0, &der_item(6, curve)), rest].concat());
            let text = base64::engine::general_purpose::STANDARD.encode(sec1);
            let pem = format!(
                "-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\n{text}\n-----END EC PRIVATE KEY-----\n"
            );
            let keys = ServiceAccountKeys::from_pem(&pem, &[&pair.public_key_pem()]).unwrap();
            assert_eq!(keys.public.len(), 1, "it is the key of the pair");
            let token = keys.sign(&serde_json::json!({"sub": "a"})).unwrap();
            known.push(keys.verify::<serde_json::Value>(&token).unwrap()["sub"].clone());
        }
        assert_eq!(known, ["a", "a"]);
    }

    #[test]
    fn tokens_are_verified_by_private_and_public_halves_and_refused_by_other_keys() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let keys = ServiceAccountKeys::from_pem(&pair.serialize_pem(), &[&pair.public_key_pem()]).unwrap();
        assert_eq!(keys.public.len(), 1, "both halves have one id");
        let token = keys.sign(&serde_json::json!({"sub": "a"})).unwrap();
        let by_public = ServiceAccountKeys::from_pem(&other.serialize_pem(), &[&pair.public_key_pem()]).unwrap();
        for verifier in [&keys, &by_public] {
            let claims: serde_json::Value = verifier.verify(&token).unwrap();
            assert_eq!(claims["sub"], "a");
        }
        let stranger = ServiceAccountKeys::from_pem(&other.serialize_pem(), &[]).unwrap();
        assert!(stranger.verify::<serde_json::Value>(&token).is_err());
        assert!(ServiceAccountKeys::from_pem("garbage", &[]).is_err());
        let jwk = &keys.jwks()["keys"][0];
        assert_eq!((jwk.str_at(&["kty"]), jwk.str_at(&["alg"])), ("EC", "ES256"));
    }

    #[test]
    fn keys_that_verify_come_from_files_with_certificates_and_several_keys() {
        let (signing, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&signing).unwrap().pem();
        let both = format!("# two\n{}\n{certificate}", other.public_key_pem());
        for (file, count) in [(&certificate, 1), (&both, 2)] {
            let keys = ServiceAccountKeys::from_pem(&signing.serialize_pem(), &[file]).unwrap();
            assert_eq!(keys.public.len(), count, "a certificate's key is the key itself");
        }
        for file in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let got = ServiceAccountKeys::from_pem(&signing.serialize_pem(), &[file]);
            assert!(matches!(got, Err(KeyError::VerificationKey { index: 0 })), "{file}");
        }
    }

    #[test]
    fn the_key_id_is_the_hash_of_the_public_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let keys = ServiceAccountKeys::from_pem(&pair.serialize_pem(), &[]).unwrap();
        let pem: String = pair.public_key_pem().lines().filter(|l| !l.starts_with("---")).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(pem.trim()).unwrap();
        assert_eq!(keys.public[0].id, URL_SAFE_NO_PAD.encode(Sha256::digest(der)));
    }
}
