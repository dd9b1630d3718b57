//! Requests to identity providers: one connection each, bounded in time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::aggregator::resolver::Stream;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A client with one idea of whom to trust.
#[derive(Clone)]
pub(crate) struct Client {
    tls: Arc<rustls::ClientConfig>,
    /// Verified in place of the host of the URL.
    server_name: Option<String>,
    timeout: Duration,
}

/// An answer: the code, the headers, the content.
pub(crate) type Answer = (u16, HeaderMap, Bytes);

impl Client {
    pub fn new(tls: Arc<rustls::ClientConfig>, server_name: Option<String>, timeout: Duration) -> Client {
        Client { tls, server_name, timeout }
    }

    /// Sends a request and reads the answer, whatever it says.
    pub async fn exchange(&self, method: Method, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, String> {
        let shown = method.as_str().to_owned();
        let work = self.try_exchange(method, url, headers, body);
        match tokio::time::timeout(self.timeout, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("{shown} {url:?}: {error}")),
            Err(_) => Err(format!("{shown} {url:?}: no answer in time")),
        }
    }

    async fn try_exchange(
        &self,
        method: Method,
        url: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, String> {
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("the URL must begin with https:// or http://".to_owned()),
        };
        let authority = uri.authority().ok_or("the URL has no host")?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
        // Only a matter of speed.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = if https {
            let name = self.server_name.clone().unwrap_or(host);
            let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            let stream = connector.connect(name, stream).await;
            Box::new(stream.map_err(|error| crate::aggregator::trust::handshake_text(&error))?)
        } else {
            Box::new(stream)
        };
        let text = |error: hyper::Error| error.to_string();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(text)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an identity provider ended early");
            }
        });
        let host = header::HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
        headers.insert(header::HOST, host);
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::builder().method(method).uri(target).body(Full::new(body));
        let request = request.as_mut().map_err(|error| error.to_string())?;
        *request.headers_mut() = headers;
        let response = sender.send_request(std::mem::take(request)).await.map_err(text)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        Ok((parts.status.as_u16(), parts.headers, body.to_bytes()))
    }
}
