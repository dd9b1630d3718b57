//! Writers that never stop, and what they were told.
//!
//! Each writer has ConfigMaps that nobody else writes, and writes each value once, always on condition that the object is
//! as it was read (`resourceVersion`). So of every object it is known what may be there: what was acknowledged last, or what
//! one of the later attempts without an answer would have made of it. Anything else is a lost write, or one that came true
//! too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::http::{Answer, Lost, revision, send};

pub const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Objects of one writer.
const OBJECTS: usize = 8;

/// What everybody watches and tells.
#[derive(Default)]
pub struct Shared {
    pub stop: AtomicBool,
    /// Acknowledged writes of all writers.
    pub acknowledged: AtomicU64,
    /// Requests without an answer.
    pub unanswered: AtomicU64,
    /// Of them those that turned out to be written.
    pub written_unanswered: AtomicU64,
    /// Answers that said: not now, try again.
    pub refused: AtomicU64,
    /// The longest time of any answer, in microseconds.
    pub slowest_us: AtomicU64,
}

/// A write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acknowledged {
    pub name: String,
    /// Each value is written once. A deletion is told by the value that it ended.
    pub value: String,
    pub deleted: bool,
    /// Of an object that was written; 0 for a deletion, whose answer does not say.
    pub revision: u64,
}

/// An object as it was read or acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct There {
    revision: u64,
    uid: String,
    value: String,
}

struct Object {
    name: String,
    known: Option<There>,
    /// What attempts without an answer would have left: a value, or nothing.
    maybe: Vec<Option<String>>,
}

/// A writer until `stop`; what it was told.
pub struct Writer {
    pub number: usize,
    pub seed: u64,
    pub clients: watch::Receiver<kube::Client>,
    pub shared: Arc<Shared>,
}

fn body(name: &str, value: &str, there: Option<&There>) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(there) = there {
        metadata["resourceVersion"] = json!(there.revision.to_string());
    }
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
        "data": {"value": value, "padding": "x".repeat(rand::random_range(0..1500))}})
}

fn there(object: &Value) -> anyhow::Result<There> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let (value, uid) = (text("/data/value"), text("/metadata/uid"));
    Ok(There {
        revision: revision(object),
        uid: uid.context("the object has no uid")?,
        value: value.context("the object has no value")?,
    })
}

impl Writer {
    pub async fn run(mut self) -> anyhow::Result<Vec<Acknowledged>> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(self.number as u64));
        let mut objects: Vec<Object> = (0..OBJECTS)
            .map(|n| Object { name: format!("w{}-{n}", self.number), known: None, maybe: Vec::new() })
            .collect();
        let mut acknowledged = Vec::new();
        let mut count = 0;
        while !self.shared.stop.load(Ordering::Acquire) {
            let object = &mut objects[random.random_range(0..OBJECTS)];
            if !object.maybe.is_empty() {
                self.find_out(object).await?;
                continue;
            }
            count += 1;
            let value = format!("{}.{count}", self.number);
            let delete = random.random_bool(0.2);
            if let Some(told) = self.write(object, value, delete).await? {
                acknowledged.push(told);
            }
        }
        // What is there in the end is what was acknowledged last, or a later attempt.
        for object in &mut objects {
            self.find_out(object).await?;
        }
        Ok(acknowledged)
    }

    async fn write(
        &mut self,
        object: &mut Object,
        value: String,
        delete: bool,
    ) -> anyhow::Result<Option<Acknowledged>> {
        let name = object.name.clone();
        let path = format!("{PATH}/{name}");
        let (answer, wanted, after) = match &object.known {
            None => (self.ask("POST", PATH, Some(body(&name, &value, None))).await?, 201, Some(value)),
            Some(known) if delete => {
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions",
                    "preconditions": {"uid": known.uid, "resourceVersion": known.revision.to_string()}});
                (self.ask("DELETE", &path, Some(options)).await?, 200, None)
            }
            Some(known) => (self.ask("PUT", &path, Some(body(&name, &value, Some(known)))).await?, 200, Some(value)),
        };
        let Some(answer) = answer else {
            object.maybe.push(after);
            return Ok(None);
        };
        ensure!(answer.code == wanted, "{name}: {} instead of {wanted}: {}", answer.code, answer.body);
        self.shared.acknowledged.fetch_add(1, Ordering::AcqRel);
        let before = object.known.take();
        let told = match after {
            Some(value) => {
                let now = there(&answer.body)?;
                ensure!(now.value == value, "{name}: acknowledged another value");
                let older = before.map_or(0, |before| before.revision);
                ensure!(now.revision > older, "{name}: revision {} after {older}", now.revision);
                let revision = now.revision;
                object.known = Some(now);
                Acknowledged { name, value, deleted: false, revision }
            }
            None => Acknowledged {
                name,
                value: before.map(|before| before.value).unwrap_or_default(),
                deleted: true,
                revision: 0,
            },
        };
        Ok(Some(told))
    }

    /// Reads an object, which has to be as it was acknowledged, or as an attempt without an answer left it.
    async fn find_out(&mut self, object: &mut Object) -> anyhow::Result<()> {
        let path = format!("{PATH}/{}", object.name);
        let began = Instant::now();
        let answer = loop {
            if let Some(answer) = self.ask("GET", &path, None).await? {
                break answer;
            }
            ensure!(began.elapsed() < Duration::from_secs(300), "{path} cannot be read any more");
        };
        let now = match answer.code {
            200 => Some(there(&answer.body)?),
            404 => None,
            code => bail!("{path}: {code}: {}", answer.body),
        };
        if now == object.known {
            // The attempts may still come true: what they were based on is still there.
            return self.close(object).await;
        }
        let value = now.as_ref().map(|now| now.value.clone());
        ensure!(
            object.maybe.contains(&value),
            "{path} was acknowledged as {:?} and tried as {:?}, and is {now:?}",
            object.known,
            object.maybe
        );
        self.shared.written_unanswered.fetch_add(1, Ordering::AcqRel);
        object.known = now;
        object.maybe.clear();
        Ok(())
    }

    /// After an attempt that was not written when it was looked for: the next write is based on the same state, so that only
    /// one of the two comes true. A write that is refused as a conflict shows the other.
    async fn close(&mut self, object: &mut Object) -> anyhow::Result<()> {
        if object.maybe.is_empty() {
            return Ok(());
        }
        let value = format!("{}.close.{}", self.number, rand::random::<u32>());
        let path = format!("{PATH}/{}", object.name);
        let asked = match &object.known {
            None => self.ask("POST", PATH, Some(body(&object.name, &value, None))).await?,
            Some(known) => self.ask("PUT", &path, Some(body(&object.name, &value, Some(known)))).await?,
        };
        match asked {
            None => object.maybe.push(Some(value)),
            // An attempt has come true in between: the next look finds it.
            Some(answer) if answer.code == 409 || answer.code == 404 => {}
            Some(answer) if answer.code == 200 || answer.code == 201 => {
                object.known = Some(there(&answer.body)?);
                object.maybe.clear();
            }
            Some(answer) => bail!("{path}: {}: {}", answer.code, answer.body),
        }
        Ok(())
    }

    /// An answer that says what has happened; none when that is not known.
    async fn ask(&mut self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<Option<Answer>> {
        let client = self.clients.borrow_and_update().clone();
        match send(&client, method, path, body.as_ref()).await {
            Ok(answer) => {
                let took = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
                self.shared.slowest_us.fetch_max(took, Ordering::AcqRel);
                if answer.is_refusal() {
                    self.shared.refused.fetch_add(1, Ordering::AcqRel);
                    // As a client does, only sooner: the run shall see the first moment in which it works again.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return Ok(None);
                }
                Ok(Some(answer))
            }
            Err(Lost::Hangs) => bail!("{method} {path} was not answered within {:?}", super::http::HANGS),
            Err(Lost::Connection) => {
                self.shared.unanswered.fetch_add(1, Ordering::AcqRel);
                // A new client, or the same one a moment later.
                let _ = tokio::time::timeout(Duration::from_millis(20), self.clients.changed()).await;
                Ok(None)
            }
        }
    }
}
