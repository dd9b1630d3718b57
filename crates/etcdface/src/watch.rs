//! Watch streams: many watches on one stream.
//!
//! Each watch is a task that reads its watcher and puts answers into the stream's queue, which is bounded: a slow client
//! holds up its own stream, and the store's watchers read on from the history. Whoever asks for progress asks the tasks,
//! so that the answer comes behind the events in the queue.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use etcd::proto as pb;
use etcd::proto::watch_request::RequestUnion;
use prost::Message;
use store::{Event, EventKind, RangeRequest, Revision, WatchError, Watcher};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{Face, errors, message, number};

/// Answers that wait for a slow client.
const ANSWERS_MAX: usize = 32;

/// Watches on one stream.
const WATCHES_MAX: usize = 10_000;

/// The number of a watch that there is not, and of an answer that concerns all.
const NO_WATCH: i64 = -1;

type Answer = Result<pb::WatchResponse, Status>;

/// Asks a watch to say when it has sent everything up to a revision.
struct Ask {
    revision: Revision,
    done: oneshot::Sender<()>,
}

struct Running {
    asks: mpsc::Sender<Ask>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Face {
    pub(crate) async fn watch(&self, requests: Streaming<pb::WatchRequest>) -> Result<ReceiverStream<Answer>, Status> {
        let (answers, receiver) = mpsc::channel(ANSWERS_MAX);
        let stream = Stream { face: self.clone(), answers, watches: HashMap::new(), next_id: 0 };
        tokio::spawn(stream.run(requests));
        Ok(ReceiverStream::new(receiver))
    }
}

struct Stream {
    face: Face,
    answers: mpsc::Sender<Answer>,
    watches: HashMap<i64, Running>,
    next_id: i64,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) {
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                () = self.answers.closed() => return,
            };
            // Whatever ended the stream: watches end with it.
            let Ok(Some(request)) = request else { return };
            let going_on = match request.request_union {
                Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
                Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id).await,
                Some(RequestUnion::ProgressRequest(_)) => {
                    self.progress();
                    true
                }
                None => true,
            };
            if !going_on {
                return;
            }
        }
    }

    async fn create(&mut self, request: pb::WatchCreateRequest) -> bool {
        let now = self.face.store.current_revision();
        let refuse = |reason: &str| pb::WatchResponse {
            header: self.face.header(now),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason.to_string(),
            ..pb::WatchResponse::default()
        };
        let taken = request.watch_id != 0 && self.watches.contains_key(&request.watch_id);
        // As etcd has it: no key is the first one there can be.
        let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key.clone() };
        let open_end = request.range_end[..] == [0];
        if taken {
            return self.answers.send(Ok(refuse("mvcc: duplicate watch ID provided on the WatchStream"))).await.is_ok();
        }
        if !request.range_end.is_empty() && !open_end && request.range_end <= key {
            return self.answers.send(Ok(refuse("mvcc: watcher range is empty"))).await.is_ok();
        }
        if self.watches.len() >= WATCHES_MAX {
            return self.answers.send(Ok(refuse("alcove: too many watches on one stream"))).await.is_ok();
        }
        let id = match request.watch_id {
            0 => {
                while self.watches.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        let created = pb::WatchResponse {
            header: self.face.header(now),
            watch_id: id,
            created: true,
            ..pb::WatchResponse::default()
        };
        if self.answers.send(Ok(created)).await.is_err() {
            return false;
        }
        // A watch from a revision has its events too; the store's begins after one.
        let after = match u64::try_from(request.start_revision) {
            Ok(start) if start > 0 => start - 1,
            _ => now,
        };
        let (asks, asked) = mpsc::channel(4);
        let watch = Watch {
            face: self.face.clone(),
            answers: self.answers.clone(),
            id,
            key,
            range_end: request.range_end.clone(),
            prev: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            without_puts: request.filters.contains(&(pb::FilterType::Noput as i32)),
            without_deletes: request.filters.contains(&(pb::FilterType::Nodelete as i32)),
        };
        let task = tokio::spawn(async move {
            // An error means that the client has gone away.
            let _ = watch.run(after, asked).await;
        });
        self.watches.insert(id, Running { asks, task });
        true
    }

    async fn cancel(&mut self, id: i64) -> bool {
        if self.watches.remove(&id).is_none() {
            return true;
        }
        let canceled = pb::WatchResponse {
            header: self.face.header_now(),
            watch_id: id,
            canceled: true,
            ..pb::WatchResponse::default()
        };
        self.answers.send(Ok(canceled)).await.is_ok()
    }

    /// Answers when every watch of this stream has sent what had happened when it was asked for.
    fn progress(&mut self) {
        self.watches.retain(|_, watch| !watch.task.is_finished());
        let (face, answers) = (self.face.clone(), self.answers.clone());
        let asks: Vec<mpsc::Sender<Ask>> = self.watches.values().map(|watch| watch.asks.clone()).collect();
        tokio::spawn(async move {
            let Ok(revision) = face.store.synchronize().await else { return };
            for asked in asks {
                let (done, answered) = oneshot::channel();
                // A watch that is gone has nothing left to send.
                if asked.send(Ask { revision, done }).await.is_ok() {
                    let _ = answered.await;
                }
            }
            let told =
                pb::WatchResponse { header: face.header(revision), watch_id: NO_WATCH, ..pb::WatchResponse::default() };
            let _ = answers.send(Ok(told)).await;
        });
    }
}

/// The client has gone away.
struct Gone;

struct Watch {
    face: Face,
    answers: mpsc::Sender<Answer>,
    id: i64,
    key: Bytes,
    range_end: Bytes,
    prev: bool,
    fragment: bool,
    progress_notify: bool,
    without_puts: bool,
    without_deletes: bool,
}

impl Watch {
    async fn send(&self, answer: pb::WatchResponse) -> Result<(), Gone> {
        self.answers.send(Ok(pb::WatchResponse { watch_id: self.id, ..answer })).await.map_err(|_| Gone)
    }

    async fn run(self, mut after: Revision, mut asked: mpsc::Receiver<Ask>) -> Result<(), Gone> {
        let mut waiting: Vec<Ask> = Vec::new();
        loop {
            let watch = self.face.store.watch(self.key.clone(), self.range_end.clone(), after, self.prev).await;
            let error = match watch {
                Ok(mut watcher) => self.forward(&mut watcher, &mut after, &mut asked, &mut waiting).await?,
                Err(error) => error,
            };
            match error {
                WatchError::Compacted { compact_revision, .. } => {
                    if after + 1 == compact_revision {
                        // The first event asked for is of the compact revision itself, which can still be read.
                        self.send_state(compact_revision).await?;
                        after = compact_revision;
                        continue;
                    }
                    let header = self.face.header_now();
                    return self
                        .send(pb::WatchResponse {
                            header,
                            canceled: true,
                            compact_revision: number(compact_revision),
                            ..pb::WatchResponse::default()
                        })
                        .await;
                }
                WatchError::Unavailable { resume_from, why } => {
                    tracing::warn!(why, "a watch cannot read the history and ends");
                    after = resume_from;
                    let status = Status::unavailable(format!("etcdserver: request timed out (after {after})"));
                    return self.answers.send(Err(status)).await.map_err(|_| Gone);
                }
                WatchError::Closed => {
                    let status = Status::unavailable("etcdserver: server stopped");
                    return self.answers.send(Err(status)).await.map_err(|_| Gone);
                }
            }
        }
    }

    async fn forward(
        &self,
        watcher: &mut Watcher,
        after: &mut Revision,
        asked: &mut mpsc::Receiver<Ask>,
        waiting: &mut Vec<Ask>,
    ) -> Result<WatchError, Gone> {
        let mut told = *after;
        let mut tick = tokio::time::interval(self.face.options.progress_interval);
        tick.reset();
        loop {
            let progress = watcher.progress();
            let mut index = 0;
            while index < waiting.len() {
                if waiting[index].revision <= progress {
                    // Nobody may be waiting any more.
                    let _ = waiting.swap_remove(index).done.send(());
                } else {
                    index += 1;
                }
            }
            tokio::select! {
                biased;
                next = watcher.next() => match next {
                    Some(Ok(batch)) => {
                        *after = batch.revision;
                        told = batch.revision;
                        tick.reset();
                        self.send_events(&batch.events, batch.revision).await?;
                    }
                    Some(Err(error)) => return Ok(error),
                    None => return Ok(WatchError::Closed),
                },
                ask = asked.recv() => match ask {
                    Some(ask) => waiting.push(ask),
                    None => return Err(Gone),
                },
                _ = tick.tick(), if self.progress_notify => {
                    let progress = watcher.progress();
                    if progress >= told {
                        told = progress;
                        let header = self.face.header(progress);
                        self.send(pb::WatchResponse { header, ..pb::WatchResponse::default() }).await?;
                    }
                }
            }
        }
    }

    fn event(&self, event: &Event) -> Option<pb::Event> {
        let (kind, unwanted) = match event.kind {
            EventKind::Put => (pb::EventType::Put, self.without_puts),
            EventKind::Delete => (pb::EventType::Delete, self.without_deletes),
        };
        (!unwanted).then(|| pb::Event {
            r#type: kind as i32,
            kv: Some(message(event.kv.clone())),
            prev_kv: event.prev.clone().filter(|_| self.prev).map(message),
        })
    }

    async fn send_events(&self, events: &[Arc<Event>], revision: Revision) -> Result<(), Gone> {
        let events: Vec<pb::Event> = events.iter().filter_map(|event| self.event(event)).collect();
        if events.is_empty() {
            return Ok(());
        }
        let header = self.face.header(revision.max(self.face.store.current_revision()));
        let whole = pb::WatchResponse { header: header.clone(), events, ..pb::WatchResponse::default() };
        let limit = self.face.options.fragment_bytes;
        if !self.fragment || whole.encoded_len() < limit {
            return self.send(whole).await;
        }
        let mut part: Vec<pb::Event> = Vec::new();
        let mut size = 0;
        for event in whole.events {
            let own = event.encoded_len();
            if !part.is_empty() && size + own >= limit {
                let events = std::mem::take(&mut part);
                size = 0;
                let header = header.clone();
                self.send(pb::WatchResponse { header, fragment: true, events, ..pb::WatchResponse::default() }).await?;
            }
            size += own;
            part.push(event);
        }
        self.send(pb::WatchResponse { header, events: part, ..pb::WatchResponse::default() }).await
    }

    /// The puts of one revision that are still there.
    async fn send_state(&self, revision: Revision) -> Result<(), Gone> {
        let (start, end) = (self.key.clone(), self.range_end.clone());
        let range = RangeRequest { start, end, revision, ..RangeRequest::default() };
        let kvs = match self.face.store.range(range).await {
            Ok(answer) => answer.kvs,
            Err(error) => {
                return self.answers.send(Err(errors::read(error))).await.map_err(|_| Gone);
            }
        };
        let puts = kvs.into_iter().filter(|kv| kv.mod_revision == revision);
        let events: Vec<Arc<Event>> = puts.map(|kv| Arc::new(Event { kind: EventKind::Put, kv, prev: None })).collect();
        self.send_events(&events, revision).await
    }
}
