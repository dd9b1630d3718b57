//! Requests whose answers are looked at whole: code, `Retry-After`, body.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A request without an answer for so long is one that hangs.
pub const HANGS: Duration = Duration::from_secs(60);

/// What a server has answered.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub retry_after: Option<u64>,
    pub body: Value,
    pub took: Duration,
}

/// Why there is no answer; what was asked for may have been done.
#[derive(Debug)]
pub enum Lost {
    /// The connection broke, or there was none.
    Connection,
    /// Nothing came.
    Hangs,
}

impl Answer {
    /// Whether the server says that it cannot do it now, and when to try again.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code, 429 | 503) && self.retry_after.is_some_and(|seconds| seconds > 0)
    }

    /// `metadata.resourceVersion` of the object.
    pub fn revision(&self) -> u64 {
        revision(&self.body)
    }
}

/// `metadata.resourceVersion` of an object; 0 when it has none.
pub fn revision(object: &Value) -> u64 {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A client that does not try again by itself.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

pub async fn send(client: &kube::Client, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Lost> {
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(kube::client::Body::from(bytes))
        .map_err(|_| Lost::Connection)?;
    let began = Instant::now();
    let answer = async {
        let response = client.send(request).await.map_err(|_| Lost::Connection)?;
        let code = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        let body = response.into_body().collect_bytes().await.map_err(|_| Lost::Connection)?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Ok(Answer { code, retry_after, body, took: began.elapsed() })
    };
    tokio::time::timeout(HANGS, answer).await.unwrap_or(Err(Lost::Hangs))
}
