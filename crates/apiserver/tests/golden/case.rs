//! A transcript and how it is replayed.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::client::{Auth, Client, HttpRequest, HttpResponse};
use super::compare::{self, Bindings};
use super::server::TestServer;

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub area: String,
    pub title: String,
    #[serde(default)]
    pub serial: bool,
    #[serde(default)]
    setup: Vec<Step>,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default)]
    cleanup: Vec<Step>,
}

#[derive(Clone, Deserialize)]
struct Step {
    #[serde(default)]
    id: String,
    request: Request,
    response: Option<Response>,
    poll: Option<Poll>,
    #[serde(rename = "match", default)]
    matching: Match,
    message: Option<String>,
    watch: Option<Watch>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Match {
    #[default]
    Exact,
    Subset,
    StatusOnly,
}

#[derive(Clone, Deserialize)]
struct Request {
    method: String,
    path: String,
    #[serde(default)]
    query: serde_json::Map<String, Value>,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    /// As it is written: the order of members decides the order of what the server finds wrong.
    body: Option<Box<serde_json::value::RawValue>>,
    raw: Option<String>,
    base: Option<String>,
    auth: Option<Value>,
}

#[derive(Clone, Deserialize)]
struct Response {
    status: u16,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    body: Option<Value>,
    text: Option<String>,
    events: Option<Vec<Value>>,
}

#[derive(Clone, Deserialize)]
struct Poll {
    status: Option<u16>,
    path: Option<String>,
    value: Option<Value>,
}

#[derive(Clone, Deserialize)]
struct Watch {
    #[serde(default)]
    trigger: Vec<Step>,
    #[serde(default)]
    ends: String,
}

/// A case in the middle of its replay.
struct Replay<'a> {
    client: Client<'a>,
    answers: HashMap<String, Value>,
    bindings: Bindings,
    ignore_managed_fields: bool,
    report: String,
}

/// Replays a case; the report is empty when it passed.
pub async fn replay(case: &Case, server: &TestServer, ignore_managed_fields: bool) -> String {
    let mut replay = Replay {
        client: Client::new(server),
        answers: HashMap::new(),
        bindings: Bindings::default(),
        ignore_managed_fields,
        report: String::new(),
    };
    let mut ready = true;
    for step in &case.setup {
        if let Err(why) = replay.set_up(step).await {
            let line = format!("  setup {}: {} {}\n    {why}\n", step.id, step.request.method, step.request.path);
            replay.report.push_str(&line);
            ready = false;
            break;
        }
    }
    if ready {
        for step in &case.steps {
            replay.step(step).await;
        }
    }
    for step in &case.cleanup {
        if let Ok(request) = replay.build(&step.request) {
            let _ = timeout(Duration::from_secs(30), replay.client.send(&request)).await;
        }
    }
    replay.report
}

fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    pointer.split('.').filter(|s| !s.is_empty()).try_fold(value, |v, segment| match v {
        Value::Array(list) => list.get(segment.parse::<usize>().ok()?),
        Value::Object(map) => map.get(segment),
        _ => None,
    })
}

fn parsed(body: &serde_json::value::RawValue) -> Result<Value, String> {
    serde_json::from_str(body.get()).map_err(|e| e.to_string())
}

fn body_value(response: &HttpResponse) -> Value {
    serde_json::from_slice(&response.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&response.body).into_owned()))
}

fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let map = target.as_object_mut().expect("made an object above");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge_patch(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl Replay<'_> {
    fn capture(&self, expression: &str) -> Result<&Value, String> {
        let (id, pointer) = expression.split_once('.').unwrap_or((expression, ""));
        let answer = self.answers.get(id).ok_or_else(|| format!("capture ${{{expression}}}: no answer"))?;
        at(answer, pointer).ok_or_else(|| format!("capture ${{{expression}}} finds nothing"))
    }

    fn fill_text(&self, text: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let end = rest[start..].find('}').ok_or("capture without end")? + start;
            out.push_str(&rest[..start]);
            match self.capture(&rest[start + 2..end])? {
                Value::String(s) => out.push_str(s),
                other => out.push_str(&other.to_string()),
            }
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn fill(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(s) => {
                let whole = s.strip_prefix("${").and_then(|r| r.strip_suffix('}')).filter(|r| !r.contains("${"));
                match whole {
                    Some(expression) => self.capture(expression)?.clone(),
                    None => Value::String(self.fill_text(s)?),
                }
            }
            Value::Array(list) => Value::Array(list.iter().map(|v| self.fill(v)).collect::<Result<_, _>>()?),
            Value::Object(map) => Value::Object(
                map.iter().map(|(k, v)| Ok((self.fill_text(k)?, self.fill(v)?))).collect::<Result<_, String>>()?,
            ),
            other => other.clone(),
        })
    }

    fn build(&self, request: &Request) -> Result<HttpRequest, String> {
        let text = |v: &Value| match v {
            Value::String(s) => self.fill_text(s),
            other => Ok(other.to_string()),
        };
        let mut target = self.fill_text(&request.path)?;
        let mut separator = if target.contains('?') { '&' } else { '?' };
        for (name, value) in &request.query {
            let values = match value {
                Value::Array(list) => list.iter().map(text).collect::<Result<Vec<_>, _>>()?,
                other => vec![text(other)?],
            };
            for value in values {
                let encode = |s: &str| utf8_percent_encode(s, NON_ALPHANUMERIC).to_string();
                target.push(separator);
                target.push_str(&format!("{}={}", encode(&self.fill_text(name)?), encode(&value)));
                separator = '&';
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &request.headers {
            let values = match value {
                Value::Null => None,
                Value::Array(list) => Some(list.iter().map(text).collect::<Result<Vec<_>, _>>()?),
                other => Some(vec![text(other)?]),
            };
            headers.push((name.clone(), values));
        }
        let body = match (&request.base, &request.body, &request.raw) {
            (Some(base), body, _) => {
                let mut value = self.answers.get(base).cloned().ok_or_else(|| format!("base {base}: no answer"))?;
                if let Some(body) = body {
                    merge_patch(&mut value, &self.fill(&parsed(body)?)?);
                }
                Some(value.to_string().into_bytes())
            }
            (None, Some(body), _) if !body.get().contains("${") => Some(body.get().as_bytes().to_vec()),
            (None, Some(body), _) => Some(self.fill(&parsed(body)?)?.to_string().into_bytes()),
            (None, None, Some(raw)) => Some(self.fill_text(raw)?.into_bytes()),
            (None, None, None) => None,
        };
        let auth = match &request.auth {
            Some(Value::String(s)) if s == "none" => Auth::Nobody,
            Some(Value::Object(map)) => Auth::Bearer(text(map.get("bearer").unwrap_or(&Value::Null))?),
            _ => Auth::Admin,
        };
        Ok(HttpRequest { method: request.method.clone(), target, headers, body, auth })
    }

    async fn send(&mut self, step: &Step) -> Result<HttpResponse, String> {
        let request = self.build(&step.request)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let sent = timeout(Duration::from_secs(40), self.client.send(&request));
            let response = sent.await.map_err(|_| "no answer within 40 s".to_owned())??;
            let done = match &step.poll {
                None => true,
                Some(poll) => fulfilled(poll, &response),
            };
            if done || Instant::now() >= deadline {
                return Ok(response);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn set_up(&mut self, step: &Step) -> Result<(), String> {
        let response = self.send(step).await?;
        self.answers.insert(step.id.clone(), body_value(&response));
        let fine = match &step.poll {
            Some(poll) => fulfilled(poll, &response),
            None => (200..300).contains(&response.status),
        };
        if fine {
            return Ok(());
        }
        Err(format!("answered {}: {}", response.status, String::from_utf8_lossy(&response.body)))
    }

    /// Runs and compares a step.
    async fn step(&mut self, step: &Step) {
        let before = self.report.len();
        let mut out = String::new();
        let result = match &step.watch {
            Some(watch) => Box::pin(self.watch(step, watch, &mut out)).await,
            None => self.plain(step, &mut out).await,
        };
        if let Err(why) = result {
            out.push_str(&format!("    {why}\n"));
        }
        if !out.is_empty() {
            let (method, path) = (&step.request.method, &step.request.path);
            self.report.insert_str(before, &format!("  step {}: {method} {path}\n{out}", step.id));
        }
    }

    async fn plain(&mut self, step: &Step, out: &mut String) -> Result<(), String> {
        let response = self.send(step).await?;
        let value = body_value(&response);
        self.answers.insert(step.id.clone(), value.clone());
        let Some(expected) = &step.response else { return Ok(()) };
        if step.request.method == "POST" && expected.status >= 400 && response.status < 300 {
            self.delete_made(&step.request, &value).await;
        }
        self.compare_head(expected, response.status, &response.headers, out);
        if step.matching == Match::StatusOnly {
            return Ok(());
        }
        if let Some(text) = &expected.text {
            let actual = String::from_utf8_lossy(&response.body);
            compare::compare_text(&mut self.bindings, text, &actual, "text", out);
        }
        if let Some(body) = &expected.body {
            let actual = if response.body.is_empty() { None } else { Some(value) };
            self.compare_body(step, body, actual, "body", out);
        }
        Ok(())
    }

    /// Deletes what a create made although it should have been refused.
    async fn delete_made(&mut self, request: &Request, made: &Value) {
        let Some(name) = made["metadata"]["name"].as_str() else { return };
        if let Ok(path) = self.fill_text(&request.path) {
            let delete = HttpRequest {
                method: "DELETE".to_owned(),
                target: format!("{path}/{name}"),
                headers: Vec::new(),
                body: None,
                auth: Auth::Admin,
            };
            let _ = self.client.send(&delete).await;
        }
    }

    fn compare_head(&mut self, expected: &Response, status: u16, headers: &HeaderMap, out: &mut String) {
        if status != expected.status {
            out.push_str(&format!("    status\n      expected {}\n      actual   {status}\n", expected.status));
        }
        for (name, value) in &expected.headers {
            if name.eq_ignore_ascii_case("content-type") {
                let actual = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("(absent)");
                compare::compare_text(&mut self.bindings, value.as_str().unwrap_or(""), actual, "content-type", out);
            }
        }
        let mut wanted: Vec<String> = match expected.headers.iter().find(|(k, _)| k.eq_ignore_ascii_case("warning")) {
            Some((_, Value::Array(list))) => list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            Some((_, Value::String(s))) => vec![s.clone()],
            _ => Vec::new(),
        };
        let values = headers.get_all("warning").iter();
        let mut actual: Vec<String> = values.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        wanted.sort();
        actual.sort();
        for i in 0..wanted.len().max(actual.len()) {
            match (wanted.get(i), actual.get(i)) {
                (Some(w), Some(a)) => compare::compare_text(&mut self.bindings, w, a, "warning", out),
                (w, a) => out.push_str(&format!("    warning\n      expected {w:?}\n      actual   {a:?}\n")),
            }
        }
    }

    fn compare_body(&mut self, step: &Step, expected: &Value, actual: Option<Value>, path: &str, out: &mut String) {
        let mut expected = expected.clone();
        let mut actual = actual;
        if let Some(actual) = &mut actual {
            compare::loosen_failure(&mut expected, actual, step.message.as_deref() == Some("loose"));
            if self.ignore_managed_fields {
                compare::strip_managed_fields(actual);
            }
        }
        if self.ignore_managed_fields {
            compare::strip_managed_fields(&mut expected);
        }
        let subset = step.matching == Match::Subset;
        compare::compare(&mut self.bindings, &expected, actual.as_ref(), subset, path, out);
    }

    async fn watch(&mut self, step: &Step, watch: &Watch, out: &mut String) -> Result<(), String> {
        let request = self.build(&step.request)?;
        let opened = timeout(Duration::from_secs(15), self.client.open(&request));
        let (status, headers, mut body, _connection) =
            opened.await.map_err(|_| "no answer to the watch".to_owned())??;
        let Some(expected) = &step.response else { return Ok(()) };
        self.compare_head(expected, status, &headers, out);
        let Some(wanted) = &expected.events else {
            let bytes = timeout(Duration::from_secs(15), body.collect()).await.map_err(|_| "the watch does not end")?;
            let bytes = bytes.map_err(|e| e.to_string())?.to_bytes();
            let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            if let (Some(body), true) = (&expected.body, step.matching != Match::StatusOnly) {
                self.compare_body(step, body, Some(value), "body", out);
            }
            return Ok(());
        };
        for trigger in &watch.trigger {
            self.step(trigger).await;
        }
        let mut events: Vec<Value> = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        let mut ended = false;
        let ends_client = watch.ends != "server";
        let mut deadline = Instant::now() + Duration::from_secs(15);
        let mut complete = wanted.is_empty();
        if complete && ends_client {
            deadline = Instant::now() + Duration::from_millis(250);
        }
        // Until there are as many as wanted; then a moment longer for one too many, or until the server ends the stream.
        while !ended {
            let Ok(frame) = tokio::time::timeout_at(deadline, body.frame()).await else { break };
            match frame {
                None | Some(Err(_)) => ended = true,
                Some(Ok(frame)) => buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d)),
            }
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).map_err(|e| format!("an event is not JSON: {e}"))?;
                let initial_end = &event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
                if event["type"] == "BOOKMARK" && initial_end.is_null() {
                    continue;
                }
                events.push(event);
            }
            if !complete && events.len() >= wanted.len() {
                complete = true;
                if ends_client {
                    deadline = Instant::now() + Duration::from_millis(250);
                }
            }
        }
        if ends_client && ended {
            out.push_str("    the server ended the watch\n");
        }
        if !ends_client && !ended {
            out.push_str("    the server did not end the watch\n");
        }
        self.answers.insert(step.id.clone(), Value::Array(events.clone()));
        if step.matching != Match::StatusOnly {
            for i in 0..wanted.len().max(events.len()) {
                let path = format!("events[{i}]");
                match (wanted.get(i), events.get(i)) {
                    (Some(w), a) => self.compare_body(step, w, a.cloned(), &path, out),
                    (None, a) => {
                        out.push_str(&format!("    {path}: one event too many: {}\n", a.unwrap_or(&Value::Null)))
                    }
                }
            }
        }
        Ok(())
    }
}

fn fulfilled(poll: &Poll, response: &HttpResponse) -> bool {
    if poll.status.is_some_and(|s| s != response.status) {
        return false;
    }
    match (&poll.path, &poll.value) {
        (Some(path), Some(value)) => at(&body_value(response), path) == Some(value),
        _ => true,
    }
}
