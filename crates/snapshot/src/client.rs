//! A small HTTP client for object stores: files go out and come in as streams, every step has a time limit.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

/// Until the head of the answer is there, beside the time the body takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two pieces of a body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);
/// Slower than this and a connection counts as broken.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// How often a server may point elsewhere.
const REDIRECTS_MAX: usize = 5;
/// Answers that are read as text.
const TEXT_BYTES_MAX: usize = 16 << 20;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a request had no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("could not be reached")]
    Connect(#[source] hyper_util::client::legacy::Error),
    #[error("did not answer in time")]
    Timeout,
    #[error("{0}")]
    Refused(String),
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    #[error("the answer is larger than expected")]
    TooLarge,
    #[error("the request is not valid")]
    Request(#[from] http::Error),
    #[error("TLS")]
    Tls(#[source] std::io::Error),
    #[error("a local file")]
    File(#[from] std::io::Error),
}

/// How servers prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    /// More authorities, PEM.
    pub ca: Option<String>,
    /// Take any certificate.
    pub insecure: bool,
}

pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

impl Http {
    pub fn new(tls: &TlsOptions) -> Result<Http, HttpError> {
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let connector = if tls.insecure {
            let config = store::unchecked_client_config();
            let config = config.map_err(|error| HttpError::Tls(std::io::Error::other(error)))?;
            builder.with_tls_config(config).https_or_http().enable_http1().build()
        } else if let Some(pem) = &tls.ca {
            builder.with_tls_config(own_authority(pem)?).https_or_http().enable_http1().build()
        } else {
            builder.with_native_roots().map_err(HttpError::Tls)?.https_or_http().enable_http1().build()
        };
        Ok(Http { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Sends a request; `body_bytes` lets a large body take its time.
    pub async fn send(&self, request: Request<Body>, body_bytes: u64) -> Result<Response<Incoming>, HttpError> {
        let limit = ANSWER_TIMEOUT + Duration::from_secs(body_bytes / BYTES_PER_SECOND_MIN);
        let answer = tokio::time::timeout(limit, self.client.request(request)).await;
        answer.map_err(|_| HttpError::Timeout)?.map_err(HttpError::Connect)
    }
}

pub(crate) fn empty() -> Body {
    bytes_body(Bytes::new())
}

pub(crate) fn bytes_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A file as a body, with its length.
pub(crate) async fn file_body(path: &Path) -> Result<(Body, u64), HttpError> {
    let file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    let frames = ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data);
    Ok((BodyExt::boxed_unsync(StreamBody::new(frames)), length))
}

/// Writes the body of an answer to a file.
pub(crate) async fn save(mut body: Incoming, path: &Path) -> Result<(), HttpError> {
    let mut file = tokio::fs::File::create(path).await?;
    while let Some(bytes) = piece(&mut body).await? {
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    Ok(())
}

/// The body of an answer as text.
pub(crate) async fn text(mut body: Incoming) -> Result<String, HttpError> {
    let mut all = Vec::new();
    while let Some(bytes) = piece(&mut body).await? {
        if all.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(HttpError::TooLarge);
        }
        all.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

async fn piece(body: &mut Incoming) -> Result<Option<Bytes>, HttpError> {
    loop {
        let next = tokio::time::timeout(PIECE_TIMEOUT, body.frame()).await.map_err(|_| HttpError::Timeout)?;
        match next {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.map_err(HttpError::Broken)?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The text at a URL, such as a values file; redirects are followed.
pub async fn fetch_text(url: &str) -> Result<String, HttpError> {
    let http = Http::new(&TlsOptions::default())?;
    let wrong = |error: &dyn std::fmt::Display| HttpError::Refused(error.to_string());
    let mut url: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error))?;
    for _ in 0..REDIRECTS_MAX {
        let request = Request::get(url.clone()).header("accept", "*/*").header("user-agent", "alcove");
        let request = request.body(empty()).map_err(|error| wrong(&error))?;
        let answer = http.send(request, 0).await?;
        if answer.status().is_success() {
            return text(answer.into_body()).await;
        }
        let next = answer.headers().get(http::header::LOCATION).and_then(|next| next.to_str().ok());
        match next {
            Some(next) if answer.status().is_redirection() => {
                let mut parts: http::uri::Parts =
                    next.parse::<http::Uri>().map_err(|error| wrong(&error))?.into_parts();
                parts.scheme = parts.scheme.or_else(|| url.scheme().cloned());
                parts.authority = parts.authority.or_else(|| url.authority().cloned());
                url = http::Uri::from_parts(parts).map_err(|error| wrong(&error))?;
            }
            _ => return Err(wrong(&format!("the server answers {}", answer.status()))),
        }
    }
    Err(wrong(&"there are too many redirects"))
}

/// The SHA-256 of a file.
pub(crate) async fn sha256_of(path: &Path) -> Result<[u8; 32], HttpError> {
    use sha2::Digest;
    let path = path.to_owned();
    let hash = move || -> std::io::Result<[u8; 32]> {
        let mut digest = sha2::Sha256::new();
        std::io::copy(&mut std::fs::File::open(path)?, &mut digest)?;
        Ok(digest.finalize().into())
    };
    Ok(tokio::task::spawn_blocking(hash).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))?)
}

fn own_authority(pem: &str) -> Result<rustls::ClientConfig, HttpError> {
    let bad = |message: String| HttpError::Tls(std::io::Error::other(message));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| bad(format!("the authority is not readable: {error}")))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("the authority holds no certificate".to_owned()));
    }
    Ok(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
