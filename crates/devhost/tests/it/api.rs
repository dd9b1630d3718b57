//! Requests as a conformance test makes them, on a development host of their own.

use std::time::{Duration, Instant};

use apimachinery::{Value, json};
use devhost::{DevHost, DevHostConfig};
use futures::{AsyncBufReadExt, StreamExt};

const PATIENCE: Duration = Duration::from_secs(60);
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A refusal: code, reason and message.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
}

pub struct Api {
    host: DevHost,
    client: kube::Client,
}

impl Api {
    pub async fn start() -> Api {
        let host = DevHost::start(DevHostConfig::default()).await.expect("the host starts");
        let client = host.client();
        Api { host, client }
    }

    pub async fn stop(self) {
        self.host.stop().await;
    }

    /// The text that answers a request.
    pub async fn text(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<String, Refusal> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.as_bytes().to_vec()).expect("a request");
        match self.client.request_text(request).await {
            Ok(text) => Ok(text),
            Err(kube::Error::Api(status)) => {
                Err(Refusal { code: status.code, reason: status.reason.clone(), message: status.message.clone() })
            }
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }

    async fn ask(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let text = self.text(method, path, &[("content-type", kind)], &body).await?;
        Ok(Value::from_slice(text.as_bytes()).unwrap_or_else(|e| panic!("{method} {path} answers {text}: {e}")))
    }

    pub async fn try_get(&self, path: &str) -> Result<Value, Refusal> {
        self.ask("GET", path, "application/json", None).await
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move { self.try_get(path).await.unwrap_or_else(|r| panic!("{caller}: GET {path}: {r:?}")) }
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("POST", path, "application/json", Some(body)).await
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move { self.try_post(path, &body).await.unwrap_or_else(|r| panic!("{caller}: POST {path} {body}: {r:?}")) }
    }

    pub async fn try_put(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("PUT", path, "application/json", Some(body)).await
    }

    pub async fn try_patch(&self, path: &str, kind: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("PATCH", path, kind, Some(body)).await
    }

    #[track_caller]
    pub fn merge(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.try_patch(path, MERGE, &body).await;
            answer.unwrap_or_else(|r| panic!("{caller}: PATCH {path} {body}: {r:?}"))
        }
    }

    /// Reads an object, changes it and writes it back, as often as somebody else writes first.
    pub async fn update(&self, path: &str, change: impl Fn(&mut Value)) -> Value {
        loop {
            let mut object = self.get(path).await;
            change(&mut object);
            match self.try_put(path, &object).await {
                Ok(written) => return written,
                Err(refusal) if refusal.code == 409 => {}
                Err(refusal) => panic!("PUT {path} {object}: {refusal:?}"),
            }
        }
    }

    pub async fn try_delete(&self, path: &str, options: Option<&Value>) -> Result<Value, Refusal> {
        self.ask("DELETE", path, "application/json", options).await
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            self.try_delete(path, None).await.unwrap_or_else(|r| panic!("{caller}: DELETE {path}: {r:?}"));
        }
    }

    pub async fn delete_with(&self, path: &str, options: Value) {
        self.try_delete(path, Some(&options)).await.unwrap_or_else(|r| panic!("DELETE {path}: {r:?}"));
    }

    /// Reads until the answer is as it should be.
    #[track_caller]
    pub fn until(&self, what: &str, path: &str, holds: impl Fn(&Value) -> bool) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let begin = Instant::now();
            loop {
                let answer = self.try_get(path).await;
                match answer {
                    Ok(object) if holds(&object) => return object,
                    last if begin.elapsed() > PATIENCE => {
                        let last = last.map(|object| object.to_string());
                        panic!("{caller}: never: {what} ({path}), last {last:?}\n{}", self.story().await)
                    }
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        }
    }

    #[track_caller]
    pub fn until_gone(&self, path: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let begin = Instant::now();
            while let Ok(object) = self.try_get(path).await {
                assert!(begin.elapsed() < PATIENCE, "{caller}: {path} is still there: {object}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Reads a list until as many items as given satisfy nothing less than all of them.
    #[track_caller]
    pub fn until_count(&self, what: &str, path: &str, count: usize) -> impl Future<Output = Value> {
        self.until(what, path, move |list| list.array_at(&["items"]).len() == count)
    }

    /// What the events of the cluster tell, for failures.
    async fn story(&self) -> String {
        let events = self.try_get("/api/v1/events").await.unwrap_or_default();
        let line = |e: &Value| {
            let about = e.str_at(&["involvedObject", "name"]);
            format!("{about}: {}: {}\n", e.str_at(&["reason"]), e.str_at(&["message"]))
        };
        events.array_at(&["items"]).iter().map(line).collect()
    }

    /// A namespace of its own for a part of a test.
    pub async fn namespace(&self, name: &str) -> String {
        self.post("/api/v1/namespaces", json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}))
            .await;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.until("a service account", &account, |o| !o.is_null()).await;
        name.to_owned()
    }

    /// Watches a collection; `query` starts with `&` or is empty.
    pub async fn watch(&self, path: &str, version: &str, query: &str) -> Events {
        let uri = format!("{path}?watch=true&resourceVersion={version}{query}");
        let request = http::Request::get(&uri).body(Vec::new()).expect("a request");
        let stream = self.client.request_stream(request).await.unwrap_or_else(|e| panic!("{uri}: {e}"));
        Events { lines: Box::pin(stream.lines()) }
    }
}

/// The events of a watch.
pub struct Events {
    lines: std::pin::Pin<Box<dyn futures::Stream<Item = std::io::Result<String>> + Send>>,
}

impl Events {
    pub async fn next(&mut self) -> (String, Value) {
        let line = tokio::time::timeout(PATIENCE, self.lines.next()).await.expect("an event in time");
        let line = line.expect("the watch goes on").expect("a line");
        let event = Value::from_slice(line.as_bytes()).expect("JSON");
        (event.str_at(&["type"]).to_owned(), event["object"].clone())
    }

    /// The next event of this type and object that is as it should be.
    pub async fn until(&mut self, kind: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = (String::new(), Value::Null);
        let looking = async {
            loop {
                last = self.next().await;
                let (found, object) = &last;
                if found == kind && object.str_at(&["metadata", "name"]) == name && holds(object) {
                    return object.clone();
                }
            }
        };
        match tokio::time::timeout(PATIENCE - Duration::from_secs(1), looking).await {
            Ok(object) => object,
            Err(_) => panic!("no event {kind} of {name} as it should be, last {} {}", last.0, last.1),
        }
    }
}

pub fn name_of(object: &Value) -> &str {
    object.str_at(&["metadata", "name"])
}

/// The version of an object or list.
pub fn version_of(object: &Value) -> &str {
    object.str_at(&["metadata", "resourceVersion"])
}

pub fn condition<'v>(object: &'v Value, kind: &str) -> &'v str {
    let conditions = object.array_at(&["status", "conditions"]);
    conditions.iter().find(|c| c.str_at(&["type"]) == kind).map_or("", |c| c.str_at(&["status"]))
}

/// An element of a list in an object, to be changed.
pub fn element<'v>(object: &'v mut Value, path: &[&str], index: usize) -> &'v mut Value {
    let list = object.at_mut(path).and_then(Value::as_array_mut).expect("a list");
    &mut list[index]
}

/// A pod template with labels and an image.
pub fn template(labels: &Value, image: &str) -> Value {
    json!({"metadata": {"labels": labels.clone()}, "spec": {"terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": image}]}})
}

pub fn workload(kind: &str, name: &str, replicas: i64, labels: Value, image: &str) -> Value {
    let template = template(&labels, image);
    match kind {
        "ReplicationController" => {
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels.clone()},
            "spec": {"replicas": replicas, "selector": labels, "template": template}})
        }
        _ => json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels.clone()},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}}),
    }
}
