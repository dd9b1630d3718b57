//! The generic machinery: apply and patch of large objects, long lists, watches in numbers.
//!
//! Like the other commands it speaks to any server, so that the same rows can be taken from kube-apiserver.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use serde_json::{Value, json};

use crate::api::{client, config_map, cpu, next_line, request, spent};
use crate::measure::{Report, Row, resident_mib};

#[derive(clap::Args)]
pub struct Options {
    /// Kubeconfig of the server under test
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Process id of the server, to count its CPU time and memory (may be repeated: kube-apiserver and etcd)
    #[arg(long)]
    pid: Vec<u32>,
    /// Applies and patches per row
    #[arg(long, default_value_t = 200)]
    writes: usize,
    /// Objects that LIST returns
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// Watches that get one write
    #[arg(long, default_value_t = 1000)]
    watches: usize,
    /// Writes that all watches get
    #[arg(long, default_value_t = 20)]
    fan_outs: usize,
}

/// A request with a body of this media type.
fn typed(method: &str, path: &str, media_type: &str, body: &Value) -> anyhow::Result<Request<Vec<u8>>> {
    Ok(Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .body(serde_json::to_vec(body)?)?)
}

/// A Deployment of about `size_bytes`, as people write them: a few containers with many environment variables.
fn deployment(name: &str, size_bytes: usize, round: usize) -> Value {
    // One variable is about 70 bytes.
    let per_container = size_bytes / 70 / 5;
    let containers: Vec<Value> = (0..5)
        .map(|c| {
            let env: Vec<Value> = (0..per_container)
                .map(|i| json!({"name": format!("VARIABLE_{i}"), "value": format!("value of {i} in round {}", round * usize::from(i == 0))}))
                .collect();
            json!({"name": format!("c{c}"), "image": "registry.example/app:1", "env": env})
        })
        .collect();
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}}}})
}

fn definition(group: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("records.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "records", "kind": "Record"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": {"type": "object", "properties": {"round": {"type": "integer"}, "entries": {"type": "array",
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "maxItems": 5000,
                    "items": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string", "maxLength": 40}, "text": {"type": "string", "maxLength": 100},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}}},
                        "x-kubernetes-validations": [{"rule": "self.text != self.name"}]}}}}}}}}]}})
}

fn record(group: &str, size_bytes: usize, round: usize) -> Value {
    // One entry is about 120 bytes.
    let entries: Vec<Value> = (0..size_bytes / 120)
        .map(|i| json!({"name": format!("entry-{i}"), "text": format!("the text of entry {i}, not too short"), "labels": {"index": i.to_string()}}))
        .collect();
    json!({"apiVersion": format!("{group}/v1"), "kind": "Record", "metadata": {"name": "big"},
        "spec": {"round": round, "entries": entries}})
}

struct Bench {
    client: kube::Client,
    options: Options,
    report: Report,
}

pub async fn run(options: Options) -> anyhow::Result<Report> {
    let client = client(&options.kubeconfig).await?;
    let namespace = format!("bench-{}", std::process::id());
    let group = format!("{namespace}.example.com");
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    client
        .request_text(request("POST", "/api/v1/namespaces", Some(body))?)
        .await
        .context("could not create a namespace")?;
    let mut bench = Bench { client, options, report: Report::default() };
    let result = bench.rows(&namespace, &group).await;
    // Also after a failure: the server may be somebody's.
    for path in [
        format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/records.{group}"),
        format!("/api/v1/namespaces/{namespace}"),
    ] {
        bench.client.request_text(request("DELETE", &path, None)?).await.ok();
    }
    result?;
    Ok(bench.report)
}

impl Bench {
    async fn rows(&mut self, namespace: &str, group: &str) -> anyhow::Result<()> {
        self.deployments(namespace).await?;
        self.records(namespace, group).await?;
        self.lists(namespace).await?;
        self.watches(namespace).await
    }

    /// One row of requests that `make` makes, one after another.
    async fn row(
        &mut self,
        name: &str,
        count: usize,
        make: impl Fn(usize) -> anyhow::Result<Request<Vec<u8>>>,
    ) -> anyhow::Result<()> {
        let before = cpu(&self.options.pid)?;
        let mut samples = Vec::with_capacity(count);
        for i in 0..count {
            // Making the request is the client's work.
            let request = make(i)?;
            let start = Instant::now();
            self.client.request_text(request).await.with_context(|| format!("{name}, request {i}"))?;
            samples.push(start.elapsed());
        }
        self.report.rows.push(Row::latency(name, samples, spent(before, &self.options.pid)?));
        Ok(())
    }

    async fn deployments(&mut self, namespace: &str) -> anyhow::Result<()> {
        const SIZE: usize = 50 * 1024;
        let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/big");
        let apply = format!("{path}?fieldManager=bench&force=true");
        let writes = self.options.writes;
        self.row("APPLY Deployment 50 KiB, first", 1, |_| {
            typed("PATCH", &apply, "application/apply-patch+yaml", &deployment("big", SIZE, 0))
        })
        .await?;
        self.row("APPLY Deployment 50 KiB, one value changed", writes, |i| {
            typed("PATCH", &apply, "application/apply-patch+yaml", &deployment("big", SIZE, i + 1))
        })
        .await?;
        let same = deployment("big", SIZE, writes);
        self.row("APPLY Deployment 50 KiB, nothing changed", writes, |_| {
            typed("PATCH", &apply, "application/apply-patch+yaml", &same)
        })
        .await?;
        let patch = |media_type: &'static str| {
            let path = path.clone();
            move |i: usize| {
                let body = json!({"metadata": {"annotations": {"round": i.to_string()}}});
                typed("PATCH", &path, media_type, &body)
            }
        };
        self.row("MERGE PATCH Deployment 50 KiB", writes, patch("application/merge-patch+json")).await?;
        self.row("STRATEGIC PATCH Deployment 50 KiB", writes, patch("application/strategic-merge-patch+json")).await?;
        self.row("JSON PATCH Deployment 50 KiB", writes, |i| {
            let body = json!([{"op": "add", "path": "/metadata/annotations/json", "value": i.to_string()}]);
            typed("PATCH", &path, "application/json-patch+json", &body)
        })
        .await
    }

    async fn records(&mut self, namespace: &str, group: &str) -> anyhow::Result<()> {
        const SIZE: usize = 200 * 1024;
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        self.client.request_text(request("POST", definitions, Some(definition(group)))?).await?;
        let list = format!("/apis/{group}/v1/namespaces/{namespace}/records");
        let begin = Instant::now();
        while self.client.request_text(request("GET", &list, None)?).await.is_err() {
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(30), "the definition is not served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let path = format!("{list}/big");
        let apply = format!("{path}?fieldManager=bench&force=true");
        let writes = self.options.writes;
        self.row("APPLY custom resource 200 KiB, first", 1, |_| {
            typed("PATCH", &apply, "application/apply-patch+yaml", &record(group, SIZE, 0))
        })
        .await?;
        self.row("APPLY custom resource 200 KiB, one value changed", writes, |i| {
            typed("PATCH", &apply, "application/apply-patch+yaml", &record(group, SIZE, i + 1))
        })
        .await?;
        self.row("MERGE PATCH custom resource 200 KiB", writes, |i| {
            typed("PATCH", &path, "application/merge-patch+json", &json!({"spec": {"round": i}}))
        })
        .await
    }

    async fn lists(&mut self, namespace: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        let objects = self.options.objects;
        // Several at a time: making the objects is not what is measured.
        let bodies = (0..objects).map(|i| request("POST", &path, Some(config_map(&format!("c{i}"), 900))));
        let client = self.client.clone();
        futures::stream::iter(bodies)
            .map(|request| {
                let client = client.clone();
                async move { anyhow::Ok(client.request_text(request?).await?) }
            })
            .buffer_unordered(16)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        self.row(&format!("LIST {objects} ConfigMaps"), 20, |_| request("GET", &path, None)).await?;
        self.row(&format!("LIST 500 of {objects} ConfigMaps"), 100, |_| {
            request("GET", &format!("{path}?limit=500"), None)
        })
        .await?;
        self.row(&format!("LIST {objects} ConfigMaps, one selected by label"), 20, |_| {
            request("GET", &format!("{path}?labelSelector=app%3Dnone"), None)
        })
        .await
    }

    async fn watches(&mut self, namespace: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        let list: Value = self.client.request(request("GET", &path, None)?).await?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let memory = |pids: &[u32]| pids.iter().map(|pid| resident_mib(*pid)).sum::<anyhow::Result<f64>>();
        let before = memory(&self.options.pid)?;
        let mut watches = Vec::with_capacity(self.options.watches);
        for _ in 0..self.options.watches {
            let watch = request("GET", &format!("{path}?watch=true&resourceVersion={version}"), None)?;
            watches.push(self.client.request_stream(watch).await?.lines());
        }
        let count = watches.len();
        if !self.options.pid.is_empty() && count > 0 {
            let used = (memory(&self.options.pid)? - before) * 1024.0 / count as f64;
            self.report.rows.push(Row::value(format!("memory per idle watch ({count})"), used, "KiB"));
        }
        let before = cpu(&self.options.pid)?;
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for i in 0..self.options.fan_outs {
            let name = format!("s{i}");
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"k": "v".repeat(900)}});
            let create = request("POST", &path, Some(secret))?;
            let start = Instant::now();
            let client = self.client.clone();
            let created = async move { anyhow::Ok(client.request_text(create).await.map(drop)?) };
            let received = async {
                let mut pending: FuturesUnordered<_> = watches.iter_mut().map(next_line).collect();
                let mut first = None;
                while let Some(event) = pending.next().await {
                    anyhow::ensure!(event?.contains(&name), "a watch answered another event");
                    first.get_or_insert_with(|| start.elapsed());
                }
                anyhow::Ok((first.unwrap_or_default(), start.elapsed()))
            };
            let ((), (first, last)) = futures::try_join!(created, received)?;
            firsts.push(first);
            lasts.push(last);
        }
        self.report.rows.push(Row::latency(format!("write to the first of {count} watches"), firsts, None));
        self.report.rows.push(Row::latency(
            format!("write to the last of {count} watches"),
            lasts,
            spent(before, &self.options.pid)?,
        ));
        Ok(())
    }
}
