//! HTTP/1.1 over TLS, as plain as it gets: one connection per identity, one more per watch.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;

use super::server::TestServer;

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    Admin,
    Nobody,
    Bearer(String),
}

/// A request, captures already filled in.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    pub method: String,
    pub target: String,
    /// `None` removes a default header.
    pub headers: Vec<(String, Option<Vec<String>>)>,
    pub body: Option<Vec<u8>>,
    pub auth: Auth,
}

pub struct HttpResponse {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// The connections of one case.
pub struct Client<'a> {
    server: &'a TestServer,
    admin: Option<SendRequest<Full<Bytes>>>,
    nobody: Option<SendRequest<Full<Bytes>>>,
}

async fn connect(server: &TestServer, admin: bool) -> Result<SendRequest<Full<Bytes>>, String> {
    let config: &Arc<rustls::ClientConfig> = if admin { &server.admin } else { &server.nobody };
    let stream = tokio::net::TcpStream::connect(server.address).await.map_err(|e| e.to_string())?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

fn build(request: &HttpRequest) -> Result<Request<Full<Bytes>>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("golden/1.0"));
    if request.body.is_some() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, values) in &request.headers {
        let name: HeaderName = name.to_ascii_lowercase().parse().map_err(|_| format!("header name {name}"))?;
        headers.remove(&name);
        for value in values.iter().flatten() {
            headers.append(&name, HeaderValue::from_str(value).map_err(|e| e.to_string())?);
        }
    }
    if let Auth::Bearer(token) = &request.auth {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| e.to_string())?;
        headers.insert(header::AUTHORIZATION, value);
    }
    let body = request.body.clone().unwrap_or_default();
    if body.is_empty() && matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let mut out = Request::builder()
        .method(request.method.as_str())
        .uri(&request.target)
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    *out.headers_mut() = headers;
    Ok(out)
}

impl<'a> Client<'a> {
    pub fn new(server: &'a TestServer) -> Client<'a> {
        Client { server, admin: None, nobody: None }
    }

    pub async fn send(&mut self, request: &HttpRequest) -> Result<HttpResponse, String> {
        let admin = request.auth == Auth::Admin;
        let slot = if admin { &mut self.admin } else { &mut self.nobody };
        // The server may have closed the connection after the answer before: then this needs a new one.
        let usable = match slot {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            *slot = Some(connect(self.server, admin).await?);
        }
        let sender = slot.as_mut().expect("connected above");
        let response = sender.send_request(build(request)?).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes().to_vec();
        Ok(HttpResponse { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// Sends a request on a connection of its own; returns when the headers are there.
    pub async fn open(
        &self,
        request: &HttpRequest,
    ) -> Result<(u16, HeaderMap, Incoming, SendRequest<Full<Bytes>>), String> {
        let mut sender = connect(self.server, request.auth == Auth::Admin).await?;
        let response = sender.send_request(build(request)?).await.map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        Ok((parts.status.as_u16(), parts.headers, body, sender))
    }
}
