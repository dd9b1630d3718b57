//! Informers against a scripted API server.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use informer::{Cached, Change, Factory, Header, Informer, ObjectKey, RawObject, Resource, Rest, Source};
use kube::client::Body;
use parking_lot::Mutex;
use tokio::sync::mpsc;

const PODS: Resource = Resource::new("", "v1", "pods");

/// One answer of the server: a status code and a body that can stay open.
enum Answer {
    Full(u16, String),
    Open(Vec<String>, mpsc::Receiver<String>),
}

/// Gives its answers in order, then hangs; keeps the requests.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn full(&self, code: u16, body: impl Into<String>) -> &Self {
        self.answers.lock().push_back(Answer::Full(code, body.into()));
        self
    }

    fn open(&self, lines: &[String]) -> mpsc::Sender<String> {
        let (sender, receiver) = mpsc::channel(16);
        self.answers.lock().push_back(Answer::Open(lines.to_vec(), receiver));
        sender
    }

    fn client(&self) -> kube::Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                script.requests.lock().push(request.uri().to_string());
                let answer = script.answers.lock().pop_front();
                let (code, lines, receiver) = match answer {
                    Some(Answer::Full(code, body)) => (code, vec![body], None),
                    Some(Answer::Open(lines, receiver)) => (200, lines, Some(receiver)),
                    None => std::future::pending().await,
                };
                let first = futures::stream::iter(lines);
                let rest = futures::stream::unfold(receiver, |receiver| async {
                    let mut receiver = receiver?;
                    Some((receiver.recv().await?, Some(receiver)))
                });
                let frames = futures::StreamExt::map(futures::StreamExt::chain(first, rest), |text| {
                    Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(text)))
                });
                Ok::<_, Infallible>(
                    Response::builder().status(code).body(StreamBody::new(frames).boxed_unsync()).unwrap(),
                )
            }
        });
        kube::Client::new(service, "default")
    }

    fn factory(&self) -> Factory {
        Factory::new(Rest::new(self.client(), "test"))
    }
}

fn pod(name: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"n","uid":"u-{name}","resourceVersion":"{version}","labels":{{"app":"{name}"}}}}}}"#
    )
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn bookmark(version: u64, end: bool) -> String {
    let annotations = if end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    event("BOOKMARK", &format!(r#"{{"kind":"Pod","metadata":{{"resourceVersion":"{version}"{annotations}}}}}"#))
}

fn gone() -> String {
    event("ERROR", r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#)
}

/// Writes down what the handlers are told.
fn log<K: Cached>(informer: &Informer<K>) -> Arc<Mutex<Vec<String>>> {
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let out = log.clone();
    informer.on_change(move |change| {
        let sign = match &change {
            Change::Added(_) => '+',
            Change::Updated { .. } => '~',
            Change::Deleted(_) => '-',
        };
        out.lock().push(format!("{sign}{}", change.object().metadata().name));
    });
    log
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(300), wait).await.is_ok(), "never happened: {what}");
}

#[tokio::test(start_paused = true)]
async fn initial_events_fill_the_cache_and_the_same_watch_goes_on() {
    let script = Script::default();
    let live = script.open(&[event("ADDED", &pod("a", 1)), event("ADDED", &pod("b", 2)), bookmark(2, true)]);
    let factory = script.factory();
    let informer: Informer<RawObject> = factory.informer(PODS);
    informer.add_index("app", |p: &RawObject, out| out.extend(p.metadata.labels.get("app").map(Into::into)));
    let log = log(&informer);
    informer.wait_synced().await;
    assert_eq!(informer.len(), 2);
    // Split across frames, and two lines in one frame.
    let text = event("MODIFIED", &pod("a", 3)) + &event("DELETED", &pod("b", 4));
    let (head, tail) = text.split_at(20);
    live.send(head.to_owned()).await.unwrap();
    live.send(tail.to_owned()).await.unwrap();
    until("three changes", || log.lock().len() == 4).await;
    assert_eq!(*log.lock(), ["+a", "+b", "~a", "-b"]);
    assert_eq!(informer.by_index("app", "a").len(), 1);
    assert!(informer.by_index("app", "b").is_empty());
    assert!(informer.get(&ObjectKey::new("n", "a")).unwrap().json.get().contains("\"Pod\""));
    let requests = script.requests.lock().clone();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].contains("sendInitialEvents=true") && requests[0].contains("resourceVersionMatch=NotOlderThan")
    );
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_listed_and_watched() {
    let refused = r#"{"kind":"Status","code":422,"reason":"Invalid","message":"sendInitialEvents: Forbidden"}"#;
    listed_and_watched(422, refused).await;
    // kube-apiserver over etcd 3.4.
    let in_the_stream = r#"{"type":"ERROR","object":{"kind":"Status","code":500,"reason":"InternalError","message":"a watch
        stream was requested by the client but the required storage feature RequestWatchProgress is disabled"}}"#;
    listed_and_watched(200, &format!("{}\n", in_the_stream.replace('\n', " "))).await;
}

async fn listed_and_watched(code: u16, refusal: &str) {
    let script = Script::default();
    script.full(code, refusal);
    script.full(
        200,
        format!(
            r#"{{"kind":"PodList","metadata":{{"resourceVersion":"7","continue":"c"}},"items":[{}]}}"#,
            pod("a", 1)
        ),
    );
    script.full(200, format!(r#"{{"kind":"PodList","metadata":{{"resourceVersion":"7"}},"items":[{}]}}"#, pod("b", 2)));
    let _live = script.open(&[]);
    let factory = script.factory();
    let informer: Informer<Header> = factory.informer(Source::namespaced(PODS, "n").labels("a=b"));
    informer.wait_synced().await;
    assert_eq!(informer.len(), 2);
    until("the watch", || script.requests.lock().len() == 4).await;
    let requests = script.requests.lock().clone();
    assert!(requests[2].contains("continue=c"), "{requests:?}");
    assert!(requests[3].contains("resourceVersion=7") && !requests[3].contains("sendInitialEvents"), "{requests:?}");
    assert!(requests.iter().all(|r| r.starts_with("/api/v1/namespaces/n/pods?labelSelector=a%3Db")), "{requests:?}");
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_resumes_from_its_bookmark_and_an_expired_one_tells_the_difference() {
    let script = Script::default();
    drop(script.open(&[
        event("ADDED", &pod("a", 1)),
        event("ADDED", &pod("b", 2)),
        bookmark(2, true),
        bookmark(9, false),
    ]));
    drop(script.open(&[gone()]));
    let _live = script.open(&[event("ADDED", &pod("a", 1)), event("ADDED", &pod("c", 11)), bookmark(12, true)]);
    let factory = script.factory();
    let informer: Informer<Header> = factory.informer(PODS);
    let log = log(&informer);
    until("the second list", || log.lock().len() == 4).await;
    assert_eq!(*log.lock(), ["+a", "+b", "+c", "-b"], "a has not changed");
    let requests = script.requests.lock().clone();
    assert!(requests[1].contains("resourceVersion=9"), "{requests:?}");
    assert!(requests[2].ends_with("resourceVersion="), "{requests:?}");
    assert_eq!(informer.stats().relists, 1);
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_skipped_and_counted() {
    let script = Script::default();
    let bad = r#"{"kind":"Pod","metadata":{"name":"bad","namespace":"n","labels":{"a":3}}}"#;
    let _live =
        script.open(&[event("ADDED", bad), "nonsense\n".to_owned(), event("ADDED", &pod("a", 1)), bookmark(2, true)]);
    let factory = script.factory();
    let informer: Informer<Header> = factory.informer(PODS);
    informer.wait_synced().await;
    assert_eq!(informer.keys(), [ObjectKey::new("n", "a")]);
    assert_eq!(informer.stats().skipped, 2);
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_watch_serves_all_users_of_a_source() {
    let script = Script::default();
    let _live = script.open(&[event("ADDED", &pod("a", 1)), bookmark(2, true)]);
    let factory = script.factory();
    let first: Informer<Header> = factory.informer(PODS);
    let second: Informer<Header> = factory.informer(PODS);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let out = seen.clone();
    factory.headers(PODS, move |change| out.lock().push(change.object.name.to_string()));
    factory.wait_synced().await;
    assert!(first.has_synced() && second.has_synced());
    let late = log(&second);
    assert_eq!(*late.lock(), ["+a"], "a late handler is told what exists");
    assert_eq!(*seen.lock(), ["a"]);
    assert_eq!(script.requests.lock().len(), 1);
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn handlers_go_with_the_factory() {
    let script = Script::default();
    let _live = script.open(&[event("ADDED", &pod("a", 1)), bookmark(2, true)]);
    let factory = script.factory();
    let pods: Informer<Header> = factory.informer(PODS);
    let held = Arc::new(());
    for _ in 0..2 {
        // As controllers do: what hears of changes also reads the cache.
        let (own, cache) = (held.clone(), pods.clone());
        pods.on_change(move |change| assert!(cache.get(&change.object().metadata.key()).is_some(), "{own:?}"));
        factory.wait_synced().await;
    }
    assert_eq!(Arc::strong_count(&held), 3);
    factory.shutdown().await;
    let own = held.clone();
    pods.on_change(move |_| assert_eq!(*own, ()));
    assert_eq!(Arc::strong_count(&held), 1, "a handler of an informer that has ended");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_and_recreated_object_is_two_objects() {
    let script = Script::default();
    drop(script.open(&[event("ADDED", &pod("a", 1)), bookmark(2, true), gone()]));
    let again = pod("a", 5).replace("u-a", "u-other");
    let _live = script.open(&[event("ADDED", &again), bookmark(6, true)]);
    let factory = script.factory();
    let informer: Informer<Header> = factory.informer(PODS);
    let log = log(&informer);
    until("the new object", || log.lock().len() == 3).await;
    assert_eq!(*log.lock(), ["+a", "-a", "+a"]);
    factory.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_server_come_back_as_status() {
    let script = Script::default();
    script.full(409, r#"{"kind":"Status","code":409,"reason":"AlreadyExists","message":"pods \"a\" already exists"}"#);
    script.full(503, "no backend");
    let rest = Rest::new(script.client(), "test");
    let error = rest.create(&PODS, "n", &apimachinery::json!({})).await.unwrap_err();
    assert!(error.is_already_exists() && !error.is_conflict());
    assert_eq!(error.to_string(), "pods \"a\" already exists");
    let error = rest.get(&PODS, "n", "a").await.unwrap_err();
    assert_eq!((error.code(), error.to_string()), (503, "no backend".to_owned()));
    let error = rest.with_timeout(Duration::from_secs(5)).get(&PODS, "n", "a").await.unwrap_err();
    assert_eq!(error.to_string(), "no answer within 5 s");
}
