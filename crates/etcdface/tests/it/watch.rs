//! Watches.

use bytes::Bytes;
use etcd::Streaming;
use etcd::proto as pb;
use etcd::proto::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{DEADLINE, Place, revision, text};

/// A stream of watches.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    /// etcd begins to answer only when the first request has come.
    opening: Option<tokio::task::JoinHandle<Result<Streaming<pb::WatchResponse>, etcd::Status>>>,
    answers: Option<Streaming<pb::WatchResponse>>,
}

impl Stream {
    async fn open(place: &Place) -> Stream {
        let (requests, receiver) = mpsc::channel(16);
        let client = place.client.clone();
        let opening = tokio::spawn(async move { client.watch(ReceiverStream::new(receiver)).await });
        Stream { requests, opening: Some(opening), answers: None }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.expect("the stream is open");
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> i64 {
        self.send(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created && !created.canceled && created.events.is_empty(), "{created:?}");
        created.watch_id
    }

    async fn next(&mut self) -> pb::WatchResponse {
        if let Some(opening) = self.opening.take() {
            self.answers = Some(opening.await.expect("no panic").expect("a stream"));
        }
        let answers = self.answers.as_mut().expect("open");
        let next = tokio::time::timeout(DEADLINE, answers.message()).await.expect("an answer in time");
        next.expect("the stream goes on").expect("the stream goes on")
    }

    /// The next answer with events, or that something was cancelled.
    async fn news(&mut self) -> pb::WatchResponse {
        loop {
            let next = self.next().await;
            if !next.events.is_empty() || next.canceled {
                return next;
            }
        }
    }

    /// So many events, whatever answers they come in.
    async fn events(&mut self, count: usize) -> Vec<pb::Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.news().await.events);
        }
        assert_eq!(events.len(), count);
        events
    }
}

fn all(place: &Place, start_revision: i64) -> pb::WatchCreateRequest {
    let (key, range_end) = place.all();
    pb::WatchCreateRequest { key, range_end, start_revision, ..pb::WatchCreateRequest::default() }
}

fn shown(place: &Place, events: &[pb::Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| {
            let kv = event.kv.as_ref().expect("a key");
            let prev = event.prev_kv.as_ref().map_or(String::new(), |prev| format!(" was {}", text(&prev.value)));
            let name = place.names(std::slice::from_ref(kv)).remove(0);
            format!("{:?} {name}={}{prev}", event.r#type(), text(&kv.value))
        })
        .collect()
}

pub async fn a_watch_has_every_event_from_its_revision_on(place: &Place) {
    let first = place.put("a", "1").await;
    place.put("a", "2").await;
    place.delete("a").await;
    let mut stream = Stream::open(place).await;
    let id = stream.create(pb::WatchCreateRequest { prev_kv: true, ..all(place, first) }).await;
    assert_eq!(id, 0, "watches are numbered from zero");
    let events = stream.events(3).await;
    assert_eq!(shown(place, &events), ["Put a=1", "Put a=2 was 1", "Delete a= was 2"]);
    let revisions: Vec<i64> = events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision).collect();
    assert_eq!(revisions, [first, first + 1, first + 2]);
    let put = events[0].kv.as_ref().expect("a key");
    assert_eq!((put.create_revision, put.version), (first, 1));
    let gone = events[2].kv.as_ref().expect("a key");
    assert_eq!((gone.create_revision, gone.version, gone.lease), (0, 0, 0));
    // From now on, and one key only.
    let one = pb::WatchCreateRequest { key: place.key("b"), range_end: Bytes::new(), ..all(place, 0) };
    let second = stream.create(one).await;
    place.put("bb", "1").await;
    let last = place.put("b", "1").await;
    let (mut own, mut others) = (Vec::new(), Vec::new());
    while own.is_empty() || others.len() < 2 {
        let news = stream.news().await;
        assert!(
            revision(&news.header)
                >= news.events.iter().map(|e| e.kv.as_ref().expect("a key").mod_revision).max().unwrap_or(0)
        );
        if news.watch_id == second { own.extend(news.events) } else { others.extend(news.events) }
    }
    assert_eq!(shown(place, &own), ["Put b=1"], "what was before and other keys are not told");
    assert_eq!(own[0].kv.as_ref().map(|kv| kv.mod_revision), Some(last));
    // All events of a transaction come at once.
    let (key, range_end) = place.all();
    let delete = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
    let gone = place.client.delete_range(delete).await.expect("a delete");
    loop {
        let news = stream.news().await;
        if news.watch_id == id {
            assert_eq!(shown(place, &news.events), ["Delete b= was 1", "Delete bb= was 1"]);
            assert_eq!(revision(&news.header), revision(&gone.header));
            break;
        }
    }
    // A revision that is not there yet is waited for.
    let mut future = Stream::open(place).await;
    future.create(all(place, revision(&gone.header) + 2)).await;
    place.put("f", "1").await;
    place.put("f", "2").await;
    assert_eq!(shown(place, &future.events(1).await), ["Put f=2"]);
}

pub async fn watches_share_a_stream_and_are_cancelled_one_by_one(place: &Place) {
    let mut stream = Stream::open(place).await;
    let first = stream.create(all(place, 0)).await;
    let second = stream.create(all(place, 0)).await;
    let chosen = stream.create(pb::WatchCreateRequest { watch_id: 77, ..all(place, 0) }).await;
    assert_eq!((first, second, chosen), (0, 1, 77));
    stream.send(RequestUnion::CreateRequest(pb::WatchCreateRequest { watch_id: 77, ..all(place, 0) })).await;
    let refused = stream.next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
    let (key, range_end) = (place.key("b"), place.key("a"));
    stream.send(RequestUnion::CreateRequest(pb::WatchCreateRequest { key, range_end, ..all(place, 0) })).await;
    let refused = stream.next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "an empty range: {refused:?}");
    for id in [second, chosen] {
        stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
        let canceled = stream.next().await;
        assert!(canceled.canceled && !canceled.created && canceled.watch_id == id, "{canceled:?}");
    }
    place.put("a", "1").await;
    place.put("a", "2").await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let news = stream.news().await;
        assert_eq!(news.watch_id, first);
        seen.extend(shown(place, &news.events));
    }
    assert_eq!(seen, ["Put a=1", "Put a=2"]);
}

pub async fn events_are_filtered(place: &Place) {
    let mut stream = Stream::open(place).await;
    let without = |filter: pb::FilterType| pb::WatchCreateRequest { filters: vec![filter as i32], ..all(place, 0) };
    let deletes = stream.create(without(pb::FilterType::Noput)).await;
    let puts = stream.create(without(pb::FilterType::Nodelete)).await;
    place.put("a", "1").await;
    place.delete("a").await;
    place.put("b", "1").await;
    place.delete("b").await;
    let (mut gone, mut there) = (Vec::new(), Vec::new());
    while gone.len() < 2 || there.len() < 2 {
        let news = stream.news().await;
        let events = shown(place, &news.events);
        if news.watch_id == deletes {
            gone.extend(events);
        } else {
            assert_eq!(news.watch_id, puts);
            there.extend(events);
        }
    }
    assert_eq!(
        (gone, there),
        (vec!["Delete a=".to_string(), "Delete b=".into()], vec!["Put a=1".to_string(), "Put b=1".into()])
    );
}

pub async fn progress_comes_after_the_events(place: &Place) {
    let mut stream = Stream::open(place).await;
    stream.create(all(place, 0)).await;
    let mut last = 0;
    for number in 0..50 {
        last = place.put("a", &number.to_string()).await;
    }
    let mut asked = 0;
    let mut seen = 0;
    loop {
        if asked == 0 {
            stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
            asked = 1;
        }
        let next = stream.next().await;
        seen += next.events.len();
        if next.watch_id == -1 && next.events.is_empty() {
            let progress = revision(&next.header);
            // Whatever revision it tells, all events up to there were before it.
            assert!(seen as i64 >= 50 - (last - progress).max(0), "{seen} events before progress {progress} of {last}");
            if progress >= last {
                break;
            }
            asked = 0;
        }
    }
    assert_eq!(seen, 50);
}

pub async fn a_compacted_watch_is_cancelled(place: &Place) {
    let first = place.put("a", "1").await;
    place.put("a", "2").await;
    let kept = place.put("a", "3").await;
    place.client.compact(pb::CompactionRequest { revision: kept, physical: true }).await.expect("compacted");
    let mut stream = Stream::open(place).await;
    let id = stream.create(all(place, first)).await;
    let canceled = stream.news().await;
    assert!(canceled.canceled && canceled.watch_id == id && canceled.events.is_empty(), "{canceled:?}");
    assert_eq!(canceled.compact_revision, kept);
    // From the compact revision itself it goes.
    let id = stream.create(all(place, kept)).await;
    place.put("a", "4").await;
    let mut events = Vec::new();
    while events.len() < 2 {
        let news = stream.news().await;
        assert_eq!((news.watch_id, news.canceled), (id, false));
        events.extend(shown(place, &news.events));
    }
    assert_eq!(events, ["Put a=3", "Put a=4"]);
}

pub async fn large_answers_are_cut_into_fragments(place: &Place) {
    // More in sum than a request may have at the largest setting in use, 8 MiB, and what etcd adds to it.
    let value = "v".repeat(1 << 20);
    let expected: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let mut first = 0;
    for name in &expected {
        let revision = place.put(name, &value).await;
        if first == 0 {
            first = revision;
        }
    }
    let mut stream = Stream::open(place).await;
    stream.create(pb::WatchCreateRequest { fragment: true, ..all(place, first) }).await;
    let mut names = Vec::new();
    let mut fragments = 0;
    while names.len() < expected.len() {
        let news = stream.news().await;
        assert!(!news.events.is_empty());
        fragments += usize::from(news.fragment);
        let kvs: Vec<pb::KeyValue> = news.events.into_iter().filter_map(|event| event.kv).collect();
        names.extend(place.names(&kvs));
    }
    assert_eq!(names, expected);
    assert!(fragments > 0, "nothing was cut");
}
