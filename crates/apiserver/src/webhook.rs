//! One call of a webhook, for admission and for conversion: HTTPS with the webhook's own authorities, bounded in time
//! and size.
//!
//! Connections are kept for the next call, a bounded number of them for a bounded time. A kept connection that turns out to
//! be closed is replaced once: the review has not been answered, and asking again does no harm.
//!
//! Follows: `k8s.io/apiserver/pkg/util/webhook/client.go`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::Value;
use apimachinery::meta::ObjectMeta;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use crate::aggregator::TrustError;
use crate::aggregator::trust::{self, Trust};
use crate::storage::Storage;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// How many connections are kept for one webhook, how many in all, and for how long.
const IDLE_PER_TARGET_MAX: usize = 4;
const IDLE_MAX: usize = 64;
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

type Sender = SendRequest<Full<bytes::Bytes>>;

/// Whom a connection leads to, and whom it trusted when it was made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    host: String,
    port: u16,
    addresses: Vec<SocketAddr>,
    ca_bundle: String,
}

/// Connections that wait for the next call, the newest last.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<HashMap<PoolKey, Vec<(Sender, Instant)>>>,
}

impl Pool {
    /// A connection that is open as far as is known.
    fn take(&self, key: &PoolKey) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let waiting = idle.get_mut(key)?;
        while let Some((sender, since)) = waiting.pop() {
            if !sender.is_closed() && since.elapsed() < IDLE_TIME_MAX {
                return Some(sender);
            }
        }
        idle.remove(key);
        None
    }

    fn give_back(&self, key: PoolKey, sender: Sender) {
        let mut idle = self.idle.lock();
        for waiting in idle.values_mut() {
            waiting.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE_TIME_MAX);
        }
        idle.retain(|_, waiting| !waiting.is_empty());
        let total: usize = idle.values().map(Vec::len).sum();
        let waiting = idle.entry(key).or_default();
        if total < IDLE_MAX && waiting.len() < IDLE_PER_TARGET_MAX {
            waiting.push((sender, Instant::now()));
        }
    }
}

/// Where a webhook is and whom it trusts.
pub struct Target {
    /// As in messages.
    pub url: String,
    host: String,
    port: u16,
    path: String,
    /// Connect here instead of to `host`.
    addresses: Vec<SocketAddr>,
    ca_bundle: String,
    pool: Arc<Pool>,
}

fn split_url(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, path) = match rest.find('/') {
        Some(i) => (&rest[..i], &rest[i..]),
        None => (rest, "/"),
    };
    let uri: http::uri::Authority = authority.parse().ok()?;
    let host = uri.host().trim_matches(['[', ']']).to_owned();
    Some((host, uri.port_u16().unwrap_or(443), path.to_owned()))
}

impl Target {
    /// Reads `clientConfig`, looking up the Service it may name.
    pub async fn read(storage: &Storage, config: &Value) -> Result<Target, String> {
        let ca_bundle = config.str_at(&["caBundle"]).to_owned();
        let pool = storage.webhooks.clone();
        let url = config.str_at(&["url"]);
        if !url.is_empty() {
            let (host, port, path) = split_url(url).ok_or_else(|| format!("the URL {url:?} cannot be used"))?;
            return Ok(Target { url: url.to_owned(), host, port, path, addresses: Vec::new(), ca_bundle, pool });
        }
        let service = &config["service"];
        let (namespace, name) = (service.str_at(&["namespace"]), service.str_at(&["name"]));
        let port = service["port"].as_i64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let path = match service.str_at(&["path"]) {
            "" => "/".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let host = format!("{name}.{namespace}.svc");
        let addresses = service_addresses(storage, namespace, name, port).await?;
        Ok(Target { url: format!("https://{host}:{port}{path}"), host, port, path, addresses, ca_bundle, pool })
    }

    fn trust(&self) -> Result<Trust, TrustError> {
        Ok(match self.ca_bundle.as_str() {
            "" => Trust::System,
            bundle => Trust::Bundle(trust::bundle(bundle)?),
        })
    }

    /// Sends a review and reads the answer.
    pub async fn call(&self, review: &Value, timeout: Duration) -> Result<Value, String> {
        let seconds = timeout.as_secs().max(1);
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}timeout={seconds}s", self.url);
        let post = |e: String| format!("Post {url:?}: {e}");
        match tokio::time::timeout(timeout, self.exchange(review, seconds, separator)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(post(error)),
            Err(_) => Err(post("context deadline exceeded".to_owned())),
        }
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let refused = |address: &dyn std::fmt::Display, e: &std::io::Error| match e.kind() {
            std::io::ErrorKind::ConnectionRefused => format!("dial tcp {address}: connect: connection refused"),
            _ => format!("dial tcp {address}: {e}"),
        };
        if self.addresses.is_empty() {
            let address = (self.host.as_str(), self.port);
            let shown = if self.host.contains(':') {
                format!("[{}]:{}", self.host, self.port)
            } else {
                format!("{}:{}", self.host, self.port)
            };
            return TcpStream::connect(address).await.map_err(|e| refused(&shown, &e));
        }
        let mut last = String::new();
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = refused(address, &error),
            }
        }
        Err(last)
    }

    /// A new connection. A task of its own drives it until one side closes it.
    async fn open(&self) -> Result<Sender, String> {
        let tls = self.trust().and_then(|trust| trust::client_config(trust, None)).map_err(|e| e.to_string())?;
        let stream = self.connect().await?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
        let connected = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await;
        let stream = connected.map_err(|e| trust::handshake_text(&e))?;
        let (sender, connection) = hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to a webhook ended early");
            }
        });
        Ok(sender)
    }

    /// The outer error is about the connection, the inner one about the answer.
    async fn exchange(&self, review: &Value, seconds: u64, separator: char) -> Result<Result<Value, String>, String> {
        let body = bytes::Bytes::from(review.to_string());
        let request = || {
            http::Request::post(format!("{}{separator}timeout={seconds}s", self.path))
                .header(http::header::HOST, &self.host)
                .header(http::header::CONTENT_TYPE, "application/json")
                .header(http::header::ACCEPT, "application/json, */*")
                .header(http::header::USER_AGENT, "kube-apiserver-admission")
                .body(Full::new(body.clone()))
                .map_err(|e| e.to_string())
        };
        let key = PoolKey {
            host: self.host.clone(),
            port: self.port,
            addresses: self.addresses.clone(),
            ca_bundle: self.ca_bundle.clone(),
        };
        let kept = match self.pool.take(&key) {
            Some(mut sender) => {
                let request = request()?;
                let answer = async {
                    sender.ready().await?;
                    sender.send_request(request).await
                };
                match answer.await {
                    Ok(response) => Some((sender, response)),
                    Err(error) => {
                        tracing::debug!(%error, url = self.url, "a kept connection was closed, opening another");
                        None
                    }
                }
            }
            None => None,
        };
        let (sender, response) = match kept {
            Some(kept) => kept,
            None => {
                let mut sender = self.open().await?;
                let response = sender.send_request(request()?).await.map_err(|e| e.to_string())?;
                (sender, response)
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        self.pool.give_back(key, sender);
        if !status.is_success() {
            return Ok(Err(format!(
                "the server responded with the status code {} but did not return more information",
                status.as_u16()
            )));
        }
        Ok(Value::from_slice(&body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}")))
    }
}

/// Where a Service can be reached: its ready endpoints, else its cluster IP.
async fn service_addresses(
    storage: &Storage,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, String> {
    let text = |s: Box<apimachinery::status::Status>| s.message;
    let service = storage.find("", "v1", "services", namespace, name).await.map_err(text)?;
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    let ports = service.array_at(&["spec", "ports"]);
    let spec = ports.iter().find(|p| p["port"].as_i64() == Some(i64::from(port)));
    let spec = spec.ok_or_else(|| format!("service {name:?} has no port {port}"))?;
    let slices = storage.all("discovery.k8s.io", "v1", "endpointslices", namespace).await.map_err(text)?;
    let mut addresses = Vec::new();
    for slice in slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(name)) {
        let port_name = spec.str_at(&["name"]);
        let target = slice.array_at(&["ports"]).iter().find(|p| p.str_at(&["name"]) == port_name);
        let Some(target) = target.and_then(|p| p["port"].as_i64()).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        for endpoint in slice.array_at(&["endpoints"]) {
            if endpoint.at(&["conditions", "ready"]).is_some_and(|r| *r == false) {
                continue;
            }
            let ips = endpoint.array_at(&["addresses"]).iter().filter_map(Value::as_str);
            addresses.extend(ips.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, target))));
        }
    }
    if addresses.is_empty() {
        addresses.extend(service.str_at(&["spec", "clusterIP"]).parse().ok().map(|ip| SocketAddr::new(ip, port)));
    }
    if addresses.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, want) in [
            ("https://127.0.0.1:1/x", Some(("127.0.0.1", 1, "/x"))),
            ("https://a.example", Some(("a.example", 443, "/"))),
            ("https://[::1]:8443/a/b?c=d", Some(("::1", 8443, "/a/b?c=d"))),
            ("http://a.example/", None),
        ] {
            let got = split_url(url);
            let got = got.as_ref().map(|(h, p, path)| (h.as_str(), *p, path.as_str()));
            assert_eq!(got, want, "{url}");
        }
    }
}
