//! Talking to a running control plane as an operator of its host: snapshots and restores.
//!
//! Goes to the cluster's own API, wherever it is reached, with the key that only readers of Secret `NAME-certs` can make.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use controlplane::operations::{KEY_HEADER, PREFIX, host_key};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::client::Body;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::clusters::{Cluster, SCALED_DOWN};
use crate::failure::Failure;
use crate::host::{self, Host};
use crate::manifests::poll;
use crate::reach;

/// A control plane, and the right to operate it.
pub struct Operator {
    client: kube::Client,
    key: String,
    /// Ends a forwarded port when the work is done.
    _forward: Option<reach::Forward>,
}

impl Operator {
    /// Of a cluster that runs; a sleeping one wakes.
    pub async fn of(host: &Host, cluster: &Cluster, timeout: Duration) -> anyhow::Result<Operator> {
        if matches!(cluster.status.as_str(), hub::PAUSED | SCALED_DOWN) {
            let hint = match cluster.status.as_str() {
                hub::PAUSED => format!("run `alcove resume {}` first", cluster.name),
                _ => format!("give its workload in namespace {} replicas first", cluster.namespace),
            };
            let (name, status) = (&cluster.name, &cluster.status);
            let message =
                format!("virtual cluster {name} does not answer because it is not running (status: {status})");
            return Err(Failure::failed(message).hint(hint).into());
        }
        let secrets: Api<Secret> = Api::namespaced(host.client.clone(), &cluster.namespace);
        let name = deploy::names::certs_secret(&cluster.name);
        let secret = secrets.get_opt(&name).await.map_err(|error| host::unreachable(&host.context, error))?;
        let missing =
            || Failure::not_found(format!("Secret {name} in namespace {} has no key ca.key", cluster.namespace));
        let authority = secret.and_then(|secret| secret.data?.remove("ca.key")).ok_or_else(missing)?;
        let key = host_key(&String::from_utf8_lossy(&authority.0));
        let (config, forward) = reach::kubeconfig(host, cluster, timeout).await?;
        Ok(Operator { client: host::client(&config, None).await?, key, _forward: forward })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: Body,
    ) -> anyhow::Result<http::Response<Body>> {
        let mut uri = format!("{PREFIX}{path}");
        for (index, (name, value)) in query.iter().enumerate() {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            uri.push_str(&format!("{}{name}={value}", if index == 0 { '?' } else { '&' }));
        }
        let request = http::Request::builder().method(method).uri(uri).header(KEY_HEADER, &self.key).body(body)?;
        let answer = self.client.send(request).await.context("the virtual cluster does not answer")?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text =
            status["message"].as_str().map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), str::to_owned);
        let failure = match code {
            404 => Failure::not_found(text),
            401 => Failure::failed("the virtual cluster does not take the key of its Secret; was it just rotated?"),
            _ => Failure::failed(text),
        };
        Err(failure.into())
    }

    async fn json(&self, method: &str, path: &str, query: &[(&str, &str)], body: Body) -> anyhow::Result<Value> {
        let answer = self.send(method, path, query, body).await?;
        let bytes = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
        serde_json::from_slice(&bytes).context("the answer is not JSON")
    }

    /// Writes a snapshot of the newest revision to a local file.
    pub async fn snapshot_to(&self, file: &Path, url: &str) -> anyhow::Result<()> {
        let answer = self.send("GET", "snapshot", &[("url", url)], Body::empty()).await?;
        let mut out =
            tokio::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(file).await?;
        let mut stream = answer.into_body().into_data_stream();
        while let Some(bytes) = stream.try_next().await.context("the snapshot broke off")? {
            out.write_all(&bytes).await.with_context(|| format!("cannot write {}", file.display()))?;
        }
        out.flush().await?;
        Ok(())
    }

    /// The pairs of virtual and host objects that the syncer keeps in the cluster's store.
    pub async fn mappings(&self) -> anyhow::Result<Vec<Value>> {
        let mut answer = self.json("GET", "mappings", &[], Body::empty()).await?;
        Ok(answer["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Writes a snapshot to a file beside the control plane's data.
    pub async fn snapshot_in_container(&self, path: &str) -> anyhow::Result<Value> {
        self.json("POST", "snapshot", &[("path", path)], Body::empty()).await
    }

    /// The snapshots at a path beside the control plane's data.
    pub async fn snapshots_in_container(&self, path: &str) -> anyhow::Result<Value> {
        self.json("GET", "snapshots", &[("path", path)], Body::empty()).await
    }

    pub async fn delete_in_container(&self, path: &str) -> anyhow::Result<Value> {
        self.json("DELETE", "snapshots", &[("path", path)], Body::empty()).await
    }

    /// Hands in a snapshot file; the control plane starts anew with it. Returns how many keys it holds.
    pub async fn restore_from(&self, file: &Path, timeout: Duration) -> anyhow::Result<u64> {
        // The client takes a body whole.
        let bytes = tokio::fs::read(file).await.with_context(|| format!("cannot read {}", file.display()))?;
        let body = Body::from(bytes);
        let accepted = self.json("PUT", "restore", &[], body).await?;
        self.wait_for_restore(&accepted, timeout).await
    }

    /// Keeps users out for a while, so that nothing is written. Returns when what they asked for before is answered.
    pub async fn hold(&self, time: Duration) -> anyhow::Result<()> {
        self.json("POST", "hold", &[("seconds", &time.as_secs().to_string())], Body::empty()).await.map(drop)
    }

    /// Ends [`Operator::hold`].
    pub async fn release(&self) -> anyhow::Result<()> {
        self.json("DELETE", "hold", &[], Body::empty()).await.map(drop)
    }

    /// The name of the data that the control plane waits for; empty when it does not.
    pub async fn awaited(&self) -> anyhow::Result<String> {
        let answer = self.json("GET", "hold", &[], Body::empty()).await?;
        Ok(answer["awaits"].as_str().unwrap_or_default().to_string())
    }

    /// Hands in the data that the control plane waits for.
    pub async fn move_in(&self, file: &Path, id: &str, timeout: Duration) -> anyhow::Result<u64> {
        let bytes = tokio::fs::read(file).await.with_context(|| format!("cannot read {}", file.display()))?;
        let accepted = self.json("PUT", "restore", &[("moved", id)], Body::from(bytes)).await?;
        self.wait_for_restore(&accepted, timeout).await
    }

    /// The same with a snapshot that lies beside the control plane's data.
    pub async fn restore_in_container(&self, path: &str, timeout: Duration) -> anyhow::Result<u64> {
        let accepted = self.json("PUT", "restore", &[("path", path)], Body::empty()).await?;
        self.wait_for_restore(&accepted, timeout).await
    }

    async fn wait_for_restore(&self, accepted: &Value, timeout: Duration) -> anyhow::Result<u64> {
        let ended = poll(timeout, Duration::from_millis(50), async || {
            // It is away for a moment while it starts anew.
            let asked = self.json("GET", "restore", &[], Body::empty());
            let result = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?.ok()?;
            (result["id"] == accepted["id"]).then_some(result)
        });
        let result = ended.await.ok_or_else(|| {
            Failure::timed_out(format!("the snapshot was not restored in {} seconds", timeout.as_secs()))
        })?;
        match result["error"].as_str() {
            Some(error) => Err(Failure::failed(format!("the snapshot was not restored: {error}")).into()),
            None => Ok(result["keys"].as_u64().unwrap_or(0)),
        }
    }
}

/// The environment of this process, for credentials of snapshot URLs.
pub fn parse_target(url: &str) -> anyhow::Result<snapshot::Target> {
    let variable = |name: &str| std::env::var(name).ok();
    let file = |path: &str| std::fs::read_to_string(path).ok();
    let environment = snapshot::Environment { variable: &variable, file: &file };
    let target = snapshot::Target::parse(url, &environment).map_err(|error| Failure::invalid(error.to_string()))?;
    Ok(match target {
        // A path as the user means it.
        snapshot::Target::File(mut file) if file.path.is_relative() => {
            file.path = std::path::absolute(&file.path)?;
            snapshot::Target::File(file)
        }
        target => target,
    })
}

/// Text of a Secret's key.
pub fn decode(encoded: &str) -> Option<String> {
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
}
