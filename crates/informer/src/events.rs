//! Records core/v1 Events: what a component did to an object and why.
//!
//! An event that repeats is counted on the one that exists; many similar ones become one "combined" event; a source that
//! talks too much about one object is cut off. Events are best effort: a full queue drops them and counts.
//!
//! Follows: `k8s.io/client-go/tools/record` (`events_cache.go`: the numbers below are its defaults).

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::json::Str;
use apimachinery::{Value, json};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::debug;

use crate::clock::{Clock, format_seconds};
use crate::factory::Factory;
use crate::meta::ObjectMeta;
use crate::resource::Resource;
use crate::rest::{PatchType, Rest};

const EVENTS: Resource = Resource::new("", "v1", "events");
/// Events that wait to be sent; client-go's broadcaster holds 1000 too.
const QUEUE_MAX: usize = 1000;
/// Entries kept for counting and combining, as client-go.
const REMEMBERED_MAX: usize = 4096;
const SIMILAR_MAX: usize = 10;
const SIMILAR_SECONDS: f64 = 600.0;
const BURST: f64 = 25.0;
const PER_SECOND: f64 = 1.0 / 300.0;

/// The object an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectReference {
    pub api_version: Str,
    pub kind: Str,
    pub namespace: Str,
    pub name: Str,
    pub uid: Str,
    pub resource_version: Str,
    pub field_path: Str,
}

impl ObjectReference {
    pub fn new(api_version: &str, kind: &str, metadata: &ObjectMeta) -> Self {
        ObjectReference {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: Str::const_new(""),
        }
    }

    fn to_value(&self) -> Value {
        let mut value = Value::object();
        for (key, text) in [
            ("kind", &self.kind),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
            ("apiVersion", &self.api_version),
            ("resourceVersion", &self.resource_version),
            ("fieldPath", &self.field_path),
        ] {
            if !text.is_empty() {
                value[key] = text.as_str().into();
            }
        }
        value
    }
}

/// `type` of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug)]
struct Event {
    object: ObjectReference,
    event_type: EventType,
    reason: Str,
    message: String,
    component: Str,
    host: Str,
    at: Timestamp,
}

/// Sends events in the name of one component. Cheap to clone; all clones share one task.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
    clock: Clock,
    component: Str,
    host: Str,
}

impl Recorder {
    /// Starts the task that sends; it ends with the factory.
    pub fn start(factory: &Factory, clock: Clock, component: &str) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Event>(QUEUE_MAX);
        let rest = factory.rest().clone();
        let cancel = factory.cancellation().clone();
        factory.spawn(async move {
            let mut correlator = Correlator::default();
            loop {
                let event = tokio::select! {
                    // Cancel-safe: `recv` loses nothing; what is not sent at shutdown is dropped.
                    () = cancel.cancelled() => return,
                    event = receiver.recv() => event,
                };
                let Some(event) = event else { return };
                let Some(write) = correlator.correlate(event) else { continue };
                send(&rest, &mut correlator, write).await;
            }
        });
        Recorder { sender, dropped: Arc::default(), clock, component: component.into(), host: Str::const_new("") }
    }

    /// The same recorder in the name of another component.
    pub fn for_component(&self, component: &str) -> Self {
        Recorder { component: component.into(), ..self.clone() }
    }

    /// Sets `source.host`, as kubelets do.
    pub fn with_host(&self, host: &str) -> Self {
        Recorder { host: host.into(), ..self.clone() }
    }

    /// Records an event. Never waits.
    pub fn event(&self, object: &ObjectReference, event_type: EventType, reason: &str, message: impl Into<String>) {
        let event = Event {
            object: object.clone(),
            event_type,
            reason: reason.into(),
            message: message.into(),
            component: self.component.clone(),
            host: self.host.clone(),
            at: self.clock.now(),
        };
        if self.sender.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn normal(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Normal, reason, message);
    }

    pub fn warning(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Warning, reason, message);
    }

    /// Events dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

async fn send(rest: &Rest, correlator: &mut Correlator, write: Write) {
    let namespace = write.event.str_at(&["metadata", "namespace"]).to_owned();
    let name = write.event.str_at(&["metadata", "name"]).to_owned();
    if let Some(patch) = &write.patch {
        match rest.patch(&EVENTS, "", &namespace, &name, PatchType::Strategic, patch).await {
            Ok(_) => return,
            // Events expire: count on with a new one.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                debug!(error = &error as &dyn std::error::Error, "could not update an event");
                return;
            }
        }
    }
    if let Err(error) = rest.create(&EVENTS, &namespace, &write.event).await {
        debug!(error = &error as &dyn std::error::Error, "could not create an event");
        correlator.forget(&write.key);
    }
}

/// A hash of what makes two events the same: thousands are remembered, and their texts are long.
type Key = u64;

struct Write {
    key: Key,
    event: Value,
    /// How to count up the event when it exists.
    patch: Option<Value>,
}

struct Counted {
    name: String,
    count: i64,
    first: Timestamp,
    used: u64,
}

struct Similar {
    /// Hashes of them.
    messages: BTreeSet<u64>,
    last: Timestamp,
    used: u64,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
    used: u64,
}

/// Decides what is written for an event: nothing, a new one, or a higher count.
#[derive(Default)]
struct Correlator {
    counted: HashMap<Key, Counted>,
    similar: HashMap<Key, Similar>,
    buckets: HashMap<Key, Bucket>,
    uses: u64,
    hasher: RandomState,
}

impl Correlator {
    fn forget(&mut self, key: &Key) {
        self.counted.remove(key);
    }

    fn correlate(&mut self, mut event: Event) -> Option<Write> {
        self.uses += 1;
        let used = self.uses;
        evict(&mut self.counted, |c| c.used);
        evict(&mut self.similar, |s| s.used);
        evict(&mut self.buckets, |b| b.used);
        // The version of the object is told, but two versions of it are one object.
        let mut object = event.object.clone();
        object.resource_version = Str::const_new("");
        let hasher = &self.hasher;
        let key =
            |message: &str| hasher.hash_one((&object, event.event_type, &event.reason, &event.component, message));

        let similar =
            self.similar.entry(key("")).or_insert_with(|| Similar { messages: BTreeSet::new(), last: event.at, used });
        similar.used = used;
        if seconds_between(similar.last, event.at) > SIMILAR_SECONDS {
            similar.messages.clear();
        }
        similar.last = event.at;
        similar.messages.insert(hasher.hash_one(&event.message));
        let combined = similar.messages.len() >= SIMILAR_MAX;
        if combined {
            similar.messages.pop_first();
        }
        let key = key(if combined { "" } else { &event.message });
        if combined {
            event.message = format!("(combined from similar events): {}", event.message);
        }

        let source = hasher.hash_one((&object, &event.component));
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: BURST, last: event.at, used });
        bucket.used = used;
        bucket.tokens = (bucket.tokens + seconds_between(bucket.last, event.at) * PER_SECOND).min(BURST);
        bucket.last = event.at;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;

        let known = self.counted.contains_key(&key);
        let counted = self.counted.entry(key).or_insert_with(|| Counted {
            name: format!("{}.{:x}", event.object.name, event.at.as_nanosecond() as u64 ^ used.rotate_right(8)),
            count: 0,
            first: event.at,
            used,
        });
        counted.count += 1;
        counted.used = used;
        let namespace = if event.object.namespace.is_empty() { "default" } else { event.object.namespace.as_str() };
        let mut source = json!({"component": event.component.as_str()});
        if !event.host.is_empty() {
            source["host"] = event.host.as_str().into();
        }
        let mut value = json!({
            "kind": "Event", "apiVersion": "v1",
            "metadata": {"name": counted.name.as_str(), "namespace": namespace},
            "reason": event.reason.as_str(), "message": event.message.as_str(),
            "firstTimestamp": format_seconds(counted.first), "lastTimestamp": format_seconds(event.at),
            "count": counted.count, "type": event.event_type.as_str(),
            "eventTime": Value::Null, "reportingComponent": event.component.as_str(),
            "reportingInstance": event.host.as_str(),
        });
        value["involvedObject"] = event.object.to_value();
        value["source"] = source;
        let patch = known.then(|| {
            json!({"count": counted.count, "lastTimestamp": format_seconds(event.at), "message": event.message.as_str()})
        });
        Some(Write { key, event: value, patch })
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Drops the older half of a map that has grown too large.
fn evict<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, used: impl Fn(&V) -> u64) {
    if map.len() < REMEMBERED_MAX {
        return;
    }
    let mut uses: Vec<u64> = map.values().map(&used).collect();
    uses.sort_unstable();
    let median = uses[uses.len() / 2];
    map.retain(|_, v| used(v) > median);
    map.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, message: &str, second: i64) -> Event {
        Event {
            object: ObjectReference {
                kind: "Pod".into(),
                namespace: "n".into(),
                name: name.into(),
                ..Default::default()
            },
            event_type: EventType::Normal,
            reason: "Created".into(),
            message: message.into(),
            component: "c".into(),
            host: Str::default(),
            at: Timestamp::from_second(1_800_000_000 + second).unwrap(),
        }
    }

    #[test]
    fn a_repeated_event_is_counted_on_the_first() {
        let mut correlator = Correlator::default();
        let first = correlator.correlate(event("a", "m", 0)).unwrap();
        assert!(first.patch.is_none());
        let second = correlator.correlate(event("a", "m", 1)).unwrap();
        assert_eq!(second.patch.unwrap()["count"], 2);
        assert_eq!(second.event.str_at(&["metadata", "name"]), first.event.str_at(&["metadata", "name"]));
        assert_eq!(second.event.str_at(&["firstTimestamp"]), first.event.str_at(&["firstTimestamp"]));
        assert!(correlator.correlate(event("b", "m", 1)).unwrap().patch.is_none());
    }

    #[test]
    fn ten_similar_events_become_one_and_a_flood_is_cut_off() {
        let mut correlator = Correlator::default();
        let writes: Vec<Option<Write>> =
            (0..40).map(|i| correlator.correlate(event("a", &format!("m{i}"), 0))).collect();
        let combined =
            writes.iter().flatten().filter(|w| w.event.str_at(&["message"]).starts_with("(combined")).count();
        assert_eq!(writes.iter().flatten().count(), 25, "the burst");
        assert_eq!(combined, 25 - 9);
        assert!(correlator.correlate(event("a", "later", 301)).is_some(), "one more every five minutes");
    }
}
