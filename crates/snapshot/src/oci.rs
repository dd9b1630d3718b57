//! Snapshots as OCI artifacts: one layer with the file, pushed and pulled with the distribution API.
//!
//! Media types are vCluster's, so that either program finds the other's. Registries of this machine are spoken to without
//! TLS, as container tools do.

use std::path::Path;

use apimachinery::time::Timestamp;
use base64::Engine;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Body, Http, HttpError, TlsOptions, bytes_body, empty, file_body, save, sha256_of, text};
use crate::{Found, TargetError, hex, now};

pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.loft.vcluster";
pub(crate) const LAYER_TYPE: &str = "application/vnd.loft.vcluster.etcd.v1.tar+gzip";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const CREATED: &str = "org.opencontainers.image.created";
/// From a registry to its storage, and perhaps once more.
const REDIRECTS_MAX: usize = 4;

/// One tag of a repository.
#[derive(Clone, Debug)]
pub struct OciTarget {
    /// `host` or `host:port`.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) credentials: Option<(String, String)>,
}

/// A registry during one operation, with the token it has given out.
struct Session<'a> {
    target: &'a OciTarget,
    http: Http,
    authorization: Option<String>,
}

/// Is the registry one of this machine?
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let loopback = host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    host == "localhost" || loopback || host == "[::1]"
}

impl OciTarget {
    pub fn url(&self) -> String {
        format!("oci://{}/{}:{}", self.registry, self.repository, self.tag)
    }

    fn http_failed(&self) -> impl FnOnce(HttpError) -> TargetError + use<> {
        let url = self.url();
        move |source| TargetError::Http { url, source }
    }

    fn protocol(&self, message: impl Into<String>) -> TargetError {
        TargetError::Protocol { url: self.url(), message: message.into() }
    }

    fn base(&self) -> String {
        let scheme = if is_local(&self.registry) { "http" } else { "https" };
        // The name that people know is not the one that answers.
        let registry = if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry };
        format!("{scheme}://{registry}/v2/{}", self.repository)
    }

    fn session(&self) -> Result<Session<'_>, TargetError> {
        let http = Http::new(&TlsOptions::default()).map_err(self.http_failed())?;
        Ok(Session { target: self, http, authorization: None })
    }

    pub(crate) async fn put(&self, file: &Path) -> Result<(), TargetError> {
        let mut session = self.session()?;
        let digest = format!("sha256:{}", hex(sha256_of(file).await.map_err(self.http_failed())?));
        let config = b"{}";
        let config_digest = format!("sha256:{}", hex(Sha256::digest(config)));
        session.push(&config_digest, Content::Bytes(config)).await?;
        session.push(&digest, Content::File(file)).await?;
        let size = tokio::fs::metadata(file).await.map_err(HttpError::from).map_err(self.http_failed())?.len();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": EMPTY_TYPE, "digest": config_digest, "size": config.len(), "data": "e30="},
            "layers": [{"mediaType": LAYER_TYPE, "digest": digest, "size": size,
                "annotations": {"org.opencontainers.image.title": "etcd"}}],
            "annotations": {CREATED: now().to_rfc3339()},
        });
        let url = format!("{}/manifests/{}", self.base(), self.tag);
        let answer = session
            .send(
                Method::PUT,
                &url,
                &[(CONTENT_TYPE.as_str(), MANIFEST_TYPE)],
                Content::Bytes(manifest.to_string().as_bytes()),
            )
            .await?;
        self.check(answer).await.map(drop)
    }

    pub(crate) async fn get(&self, file: &Path) -> Result<(), TargetError> {
        let mut session = self.session()?;
        let manifest = session.manifest(&self.tag).await?;
        let digest = layer_of(&manifest).ok_or_else(|| self.protocol("the artifact holds no snapshot"))?.to_owned();
        let answer = session.send(Method::GET, &format!("{}/blobs/{digest}", self.base()), &[], Content::None).await?;
        save(self.check(answer).await?.into_body(), file).await.map_err(self.http_failed())?;
        let got = format!("sha256:{}", hex(sha256_of(file).await.map_err(self.http_failed())?));
        if got == digest { Ok(()) } else { Err(self.protocol(format!("the registry sent {got} in place of {digest}"))) }
    }

    /// The tags of the repository that are snapshots.
    pub(crate) async fn list(&self) -> Result<Vec<Found>, TargetError> {
        let mut session = self.session()?;
        let answer = session.send(Method::GET, &format!("{}/tags/list", self.base()), &[], Content::None).await?;
        let body = text(self.check(answer).await?.into_body()).await.map_err(self.http_failed())?;
        let tags: Value = serde_json::from_str(&body).map_err(|error| self.protocol(error.to_string()))?;
        let mut found = Vec::new();
        for tag in tags["tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let manifest = match session.manifest(tag).await {
                Err(TargetError::NotFound { .. }) => continue,
                other => other?,
            };
            if layer_of(&manifest).is_none() {
                continue;
            }
            found.push(Found {
                url: OciTarget { tag: tag.to_owned(), ..self.clone() }.url(),
                size_bytes: manifest["layers"][0]["size"].as_u64(),
                saved_at: manifest["annotations"][CREATED].as_str().and_then(Timestamp::parse),
            });
        }
        Ok(found)
    }

    pub(crate) async fn delete(&self) -> Result<(), TargetError> {
        let mut session = self.session()?;
        let url = format!("{}/manifests/{}", self.base(), self.tag);
        let answer = session.send(Method::HEAD, &url, &[(ACCEPT.as_str(), MANIFEST_TYPE)], Content::None).await?;
        let answer = self.check(answer).await?;
        let digest = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let digest = digest.ok_or_else(|| self.protocol("the registry does not tell the digest of the tag"))?;
        let url = format!("{}/manifests/{digest}", self.base());
        let answer = session.send(Method::DELETE, &url, &[], Content::None).await?;
        self.check(answer).await.map(drop)
    }

    async fn check(&self, answer: Response<Incoming>) -> Result<Response<Incoming>, TargetError> {
        let code = answer.status().as_u16();
        match code {
            200..300 => Ok(answer),
            404 => Err(TargetError::NotFound { url: self.url() }),
            _ => {
                let body = text(answer.into_body()).await.unwrap_or_default();
                let said: Value = serde_json::from_str(&body).unwrap_or_default();
                let first = &said["errors"][0];
                let message = match (first["code"].as_str(), first["message"].as_str()) {
                    (Some(code), Some(message)) => format!("{code}: {message}"),
                    _ => body.chars().take(200).collect(),
                };
                Err(TargetError::Refused { url: self.url(), code, message })
            }
        }
    }
}

/// The digest of the layer with the snapshot.
fn layer_of(manifest: &Value) -> Option<&str> {
    let mut layers = manifest["layers"].as_array()?.iter();
    layers.find(|layer| layer["mediaType"] == LAYER_TYPE)?["digest"].as_str()
}

#[derive(Clone, Copy)]
enum Content<'a> {
    None,
    Bytes(&'a [u8]),
    File(&'a Path),
}

impl Content<'_> {
    async fn body(self) -> Result<(Body, Option<u64>), HttpError> {
        Ok(match self {
            Content::None => (empty(), None),
            Content::Bytes(bytes) => (bytes_body(bytes.to_vec()), Some(bytes.len() as u64)),
            Content::File(path) => {
                let (body, length) = file_body(path).await?;
                (body, Some(length))
            }
        })
    }
}

impl Session<'_> {
    async fn manifest(&mut self, tag: &str) -> Result<Value, TargetError> {
        let url = format!("{}/manifests/{tag}", self.target.base());
        let accept = [(ACCEPT.as_str(), MANIFEST_TYPE)];
        let answer = self.send(Method::GET, &url, &accept, Content::None).await?;
        let body = text(self.target.check(answer).await?.into_body()).await.map_err(self.target.http_failed())?;
        serde_json::from_str(&body).map_err(|error| self.target.protocol(error.to_string()))
    }

    /// Uploads a blob unless the registry has it.
    async fn push(&mut self, digest: &str, content: Content<'_>) -> Result<(), TargetError> {
        let base = self.target.base();
        let head = self.send(Method::HEAD, &format!("{base}/blobs/{digest}"), &[], Content::None).await?;
        if head.status() == StatusCode::OK {
            return Ok(());
        }
        let started = self.send(Method::POST, &format!("{base}/blobs/uploads/"), &[], Content::Bytes(b"")).await?;
        let started = self.target.check(started).await?;
        let location = started.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.target.protocol("the registry does not say where to upload to"))?;
        let url = ::url::Url::parse(&base).and_then(|base| base.join(location));
        let mut url = url.map_err(|error| self.target.protocol(format!("where to upload to: {error}")))?;
        url.query_pairs_mut().append_pair("digest", digest);
        let octets = [(CONTENT_TYPE.as_str(), "application/octet-stream")];
        let answer = self.send(Method::PUT, url.as_str(), &octets, content).await?;
        self.target.check(answer).await.map(drop)
    }

    /// Sends a request; gets a token when one is asked for, follows the way to the storage of blobs.
    async fn send(
        &mut self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        content: Content<'_>,
    ) -> Result<Response<Incoming>, TargetError> {
        let answer = self.once(&method, url, headers, content, true).await?;
        let mut answer = if answer.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            let challenge = answer.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            let challenge = challenge.unwrap_or_default().to_owned();
            self.authorize(&challenge).await?;
            self.once(&method, url, headers, content, true).await?
        } else {
            answer
        };
        let mut at = ::url::Url::parse(url).map_err(|error| self.target.protocol(error.to_string()))?;
        for _ in 0..REDIRECTS_MAX {
            let to = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let Some(to) = to.filter(|_| answer.status().is_redirection() && method == Method::GET) else { break };
            at = at.join(to).map_err(|error| self.target.protocol(error.to_string()))?;
            // The registry's token is not for others.
            let same = at.host_str() == ::url::Url::parse(url).ok().as_ref().and_then(::url::Url::host_str);
            answer = self.once(&method, at.as_str(), headers, content, same).await?;
        }
        Ok(answer)
    }

    async fn once(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        content: Content<'_>,
        authorized: bool,
    ) -> Result<Response<Incoming>, TargetError> {
        let (body, length) = content.body().await.map_err(self.target.http_failed())?;
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| authorized) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(body).map_err(HttpError::from).map_err(self.target.http_failed())?;
        self.http.send(request, length.unwrap_or(0)).await.map_err(self.target.http_failed())
    }

    /// Answers `WWW-Authenticate`: with the credentials themselves, or with a token that they give.
    async fn authorize(&mut self, challenge: &str) -> Result<(), TargetError> {
        let basic = self.target.credentials.as_ref().map(|(user, password)| {
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            format!("Basic {encoded}")
        });
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            self.authorization = basic;
            return Ok(());
        }
        let parameter = |name: &str| quoted(parameters, name);
        let realm = parameter("realm").ok_or_else(|| self.target.protocol("the registry names no token service"))?;
        let mut url = ::url::Url::parse(&realm).map_err(|error| self.target.protocol(error.to_string()))?;
        // Both directions with one token, whatever the first request was.
        let scope = format!("repository:{}:pull,push", self.target.repository);
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = parameter("service") {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let mut request = Request::builder().uri(url.as_str());
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let request = request.body(empty()).map_err(HttpError::from).map_err(self.target.http_failed())?;
        let answer = self.http.send(request, 0).await.map_err(self.target.http_failed())?;
        let body = text(self.target.check(answer).await?.into_body()).await.map_err(self.target.http_failed())?;
        let token: Value = serde_json::from_str(&body).map_err(|error| self.target.protocol(error.to_string()))?;
        let token = token["token"].as_str().or(token["access_token"].as_str());
        let token = token.ok_or_else(|| self.target.protocol("the token service gave no token"))?;
        self.authorization = Some(format!("Bearer {token}"));
        Ok(())
    }
}

/// `name="value"` in a challenge.
fn quoted(parameters: &str, name: &str) -> Option<String> {
    let start = parameters.find(&format!("{name}=\""))? + name.len() + 2;
    let rest = &parameters[start..];
    Some(rest[..rest.find('"')?].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let text = r#"realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#;
        assert_eq!(quoted(text, "realm").as_deref(), Some("https://auth.example/token"));
        assert_eq!(quoted(text, "service").as_deref(), Some("registry.example"));
        assert_eq!(quoted(text, "error"), None);
    }

    #[test]
    fn only_registries_of_this_machine_are_spoken_to_without_tls() {
        for (registry, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost", true),
            ("ghcr.io", false),
            ("127.example:1", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_local(registry), want, "{registry}");
        }
    }
}
