//! How extension servers tell who asks: ConfigMap `extension-apiserver-authentication`, which they read with the Role
//! `extension-apiserver-authentication-reader`.
//!
//! What other replicas have put there stays: authorities that are still valid, names and headers.
//!
//! Follows: `pkg/controlplane/controller/clusterauthenticationtrust`.

use std::sync::Arc;

use apimachinery::{Value, json};
use base64::Engine;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::authn::RequestHeaderOptions;
use crate::storage::{Storage, WriteFailure};

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const NAME: &str = "extension-apiserver-authentication";
const CONFLICTS_MAX: usize = 5;

/// What extension servers are told.
#[derive(Clone, Debug, Default)]
pub struct ClientTrust {
    /// Authorities of clients' certificates, PEM.
    pub client_ca: String,
    /// How this server names users to them. Names of headers as they are to be shown.
    pub request_headers: Option<RequestHeaderOptions>,
}

impl ClientTrust {
    /// With the headers that are usual, for a proxy named `front-proxy-client`.
    pub fn with_front_proxy(client_ca: String, front_proxy_ca: String) -> ClientTrust {
        let names = |name: &str| vec![name.to_owned()];
        let request_headers = RequestHeaderOptions {
            client_ca: front_proxy_ca,
            allowed_names: names("front-proxy-client"),
            users: names("X-Remote-User"),
            groups: names("X-Remote-Group"),
            uids: Vec::new(),
            extra_prefixes: names("X-Remote-Extra-"),
        };
        ClientTrust { client_ca, request_headers: Some(request_headers) }
    }
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect()
}

fn is_over(certificate: &CertificateDer<'_>, now: i64) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .map_or(true, |(_, certificate)| certificate.validity().not_after.timestamp() < now)
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            out.push_str(&String::from_utf8_lossy(line));
            out.push('\n');
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// Both lists of authorities, each once, without those whose time is over.
fn joined_authorities(known: &str, own: &str, now: i64) -> String {
    let mut all: Vec<CertificateDer<'static>> = Vec::new();
    for certificate in certificates(known).into_iter().chain(certificates(own)) {
        if !is_over(&certificate, now) && !all.contains(&certificate) {
            all.push(certificate);
        }
    }
    pem(&all)
}

fn joined_names(known: &str, own: &[String]) -> Vec<String> {
    let mut all: Vec<String> = serde_json::from_str(known).unwrap_or_default();
    for name in own {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    all
}

/// The data of the ConfigMap from what is there and what this server adds.
fn data(known: &Value, own: &ClientTrust, now: i64) -> Value {
    let known = |key: &str| known.str_at(&[key]).to_owned();
    let mut out = Value::object();
    let client_ca = joined_authorities(&known("client-ca-file"), &own.client_ca, now);
    if !client_ca.is_empty() {
        out["client-ca-file"] = client_ca.into();
    }
    let none = RequestHeaderOptions::default();
    let headers = own.request_headers.as_ref().unwrap_or(&none);
    let proxies = joined_authorities(&known("requestheader-client-ca-file"), &headers.client_ca, now);
    if proxies.is_empty() {
        return out;
    }
    for (key, names, always) in [
        ("requestheader-username-headers", &headers.users, true),
        ("requestheader-uid-headers", &headers.uids, false),
        ("requestheader-group-headers", &headers.groups, true),
        ("requestheader-extra-headers-prefix", &headers.extra_prefixes, true),
        ("requestheader-allowed-names", &headers.allowed_names, true),
    ] {
        let names = joined_names(&known(key), names);
        if always || !names.is_empty() {
            out[key] = json!(names).to_string().into();
        }
    }
    out["requestheader-client-ca-file"] = proxies.into();
    out
}

/// Brings the ConfigMap up to date.
pub(crate) async fn sync(storage: &Arc<Storage>, own: &ClientTrust) -> Result<(), String> {
    let Some(resource) = storage.registry.get("", "v1", "configmaps") else { return Ok(()) };
    for _ in 0..CONFLICTS_MAX {
        let entry = storage.get(&resource, NAMESPACE, NAME).await.map_err(|status| status.message)?;
        let now = jiff::Timestamp::now().as_second();
        let (written, current) = match &entry {
            None => {
                let object = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE},
                    "data": (data(&Value::Null, own, now)),
                });
                let made = crate::bootstrap::ensure(storage, "", "v1", "configmaps", object).await;
                return made.map_err(|status| status.message);
            }
            Some(entry) => {
                let mut object = entry.to_value();
                let wanted = data(&object["data"], own, now);
                if object["data"] == wanted {
                    return Ok(());
                }
                object["data"] = wanted;
                (storage.replace(&resource, NAMESPACE, NAME, &object, entry.revision).await, entry)
            }
        };
        match written {
            Ok(_) => return Ok(()),
            Err(WriteFailure::Conflict(_)) => tracing::debug!(revision = current.revision, "somebody was faster"),
            Err(WriteFailure::Status(status)) => return Err(status.message),
        }
    }
    Err("the ConfigMap changes all the time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str, until: i32) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn what_others_have_put_there_stays_while_it_is_good() {
        let (own, other, old) = (authority("own", 2400), authority("other", 2400), authority("old", 2000));
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let trust = ClientTrust {
            client_ca: own.clone(),
            request_headers: Some(RequestHeaderOptions {
                client_ca: own.clone(),
                allowed_names: names(&["front-proxy-client"]),
                users: names(&["X-Remote-User"]),
                groups: names(&["X-Remote-Group"]),
                uids: Vec::new(),
                extra_prefixes: names(&["X-Remote-Extra-"]),
            }),
        };
        let now = jiff::Timestamp::now().as_second();
        let fresh = data(&Value::Null, &trust, now);
        assert_eq!(certificates(fresh.str_at(&["client-ca-file"])), certificates(&own));
        assert_eq!(fresh.str_at(&["requestheader-allowed-names"]), r#"["front-proxy-client"]"#);
        assert_eq!(fresh.str_at(&["requestheader-username-headers"]), r#"["X-Remote-User"]"#);
        assert_eq!(fresh.str_at(&["requestheader-extra-headers-prefix"]), r#"["X-Remote-Extra-"]"#);
        assert!(fresh.get("requestheader-uid-headers").is_none());
        assert_eq!(data(&fresh, &trust, now), fresh, "nothing to do the second time");

        let mut known = fresh;
        known["client-ca-file"] = format!("{old}{other}").into();
        known["requestheader-allowed-names"] = r#"["somebody"]"#.into();
        known["extra"] = "gone".into();
        let joined = data(&known, &trust, now);
        let want: Vec<_> = [&other, &own].into_iter().flat_map(|pem| certificates(pem)).collect();
        assert_eq!(certificates(joined.str_at(&["client-ca-file"])), want);
        assert_eq!(joined.str_at(&["requestheader-allowed-names"]), r#"["somebody","front-proxy-client"]"#);
        assert!(joined.get("extra").is_none());

        let bare = ClientTrust { client_ca: own, request_headers: None };
        let bare = data(&Value::Null, &bare, now);
        assert_eq!(bare.as_object().unwrap().keys().collect::<Vec<_>>(), ["client-ca-file"]);
    }
}
