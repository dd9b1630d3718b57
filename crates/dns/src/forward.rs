//! Questions that other servers answer: whom to ask, in which order, how long, and what is kept.
//!
//! Invariants:
//! - A question that is already under way is not sent again; everybody waits for the one answer.
//! - Questions under way are bounded; what comes on top is refused at once.
//! - Each question ends within [`TOTAL`], whatever servers do.
//! - An answer counts only when it comes from the server that was asked, with the same number and question.
//!
//! Follows: CoreDNS's `forward` (random order, two seconds for an answer, a server that failed is asked last).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::{Answer, Cache, Question};
use crate::metrics::Metrics;
use crate::names::{below, lower};

/// How long one server may take.
const PER_SERVER: Duration = Duration::from_secs(2);
/// How long all of them may take together.
const TOTAL: Duration = Duration::from_secs(5);
/// Questions under way, as CoreDNS's `max_concurrent 1000`.
const UNDER_WAY_MAX: usize = 1000;
/// What we say we can receive over UDP: nothing larger passes every network whole.
const UDP_PAYLOAD: u16 = 1232;
/// How long a server that failed stays behind the others.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// In which order servers are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    Random,
    RoundRobin,
    Sequential,
}

/// A group of servers that know the same.
#[derive(Debug)]
pub(crate) struct Upstream {
    id: u32,
    pub servers: Vec<Server>,
    pub policy: Policy,
    pub force_tcp: bool,
    next: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub address: SocketAddr,
    /// Milliseconds since [`Upstream::start`] until which it stays behind, 0 for a good one.
    failed_until: AtomicU64,
}

impl Upstream {
    pub fn new(servers: impl IntoIterator<Item = SocketAddr>, policy: Policy) -> Upstream {
        // Only tells groups apart in one cache; that another cluster's group has another number does not matter.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let servers = servers.into_iter().map(|address| Server { address, failed_until: AtomicU64::new(0) });
        Upstream {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            servers: servers.collect(),
            policy,
            force_tcp: false,
            next: AtomicUsize::new(0),
        }
    }

    fn order(&self, now: u64) -> Vec<&Server> {
        let mut order: Vec<&Server> = self.servers.iter().collect();
        match self.policy {
            Policy::Random => order.shuffle(&mut rand::rng()),
            Policy::RoundRobin if !order.is_empty() => {
                let first = self.next.fetch_add(1, Ordering::Relaxed) % order.len();
                order.rotate_left(first);
            }
            Policy::RoundRobin | Policy::Sequential => {}
        }
        order.sort_by_key(|server| server.failed_until.load(Ordering::Relaxed) > now);
        order
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no server is configured")]
    NoServer,
    #[error("no server answered in time")]
    NoAnswer,
    #[error("too many questions are under way")]
    Busy,
    #[error("questions come back to this server")]
    Loop,
}

type Outcome = Result<Arc<Answer>, AskError>;

/// Asks other servers on behalf of one DNS server.
pub(crate) struct Forwarder {
    cache: Mutex<Cache>,
    under_way: Mutex<HashMap<Question, watch::Receiver<Option<Outcome>>>>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    metrics: Arc<Metrics>,
    start: Instant,
    /// A question of ours has come back.
    looped: AtomicBool,
}

impl Forwarder {
    pub fn new(metrics: Arc<Metrics>, tasks: TaskTracker, cancel: CancellationToken) -> Forwarder {
        Forwarder {
            cache: Mutex::default(),
            under_way: Mutex::default(),
            places: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            tasks,
            cancel,
            metrics,
            start: Instant::now(),
            looped: AtomicBool::new(false),
        }
    }

    pub fn set_looped(&self, looped: bool) {
        self.looped.store(looped, Ordering::Relaxed);
    }

    pub fn is_looped(&self) -> bool {
        self.looped.load(Ordering::Relaxed)
    }

    pub fn cache_len(&self) -> usize {
        self.cache.lock().len()
    }

    /// The cache key of a question to `upstream`.
    pub fn question(upstream: &Upstream, query: &Query, dnssec: bool, checking_disabled: bool) -> Question {
        Question {
            upstream: upstream.id,
            name: lower(&query.name),
            kind: query.query_type,
            class: query.query_class,
            dnssec,
            checking_disabled,
        }
    }

    /// A kept answer.
    pub fn kept(&self, question: &Question) -> Option<Arc<Answer>> {
        let answer = self.cache.lock().get(question, Instant::now());
        self.metrics.cache(answer.as_deref());
        answer
    }

    /// Asks, or waits for the answer to the same question.
    pub async fn ask(self: &Arc<Self>, upstream: &Arc<Upstream>, question: Question, name: Name) -> Outcome {
        if upstream.servers.is_empty() {
            return Err(AskError::NoServer);
        }
        if self.is_looped() {
            return Err(AskError::Loop);
        }
        let mut receiver = {
            let mut under_way = self.under_way.lock();
            match under_way.get(&question) {
                Some(receiver) => receiver.clone(),
                None => {
                    let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return Err(AskError::Busy) };
                    let (sender, receiver) = watch::channel(None);
                    under_way.insert(question.clone(), receiver.clone());
                    let (forwarder, upstream) = (Arc::clone(self), Arc::clone(upstream));
                    self.tasks.spawn(async move {
                        let outcome = tokio::select! {
                            outcome = forwarder.ask_all(&upstream, &question, name) => outcome,
                            () = forwarder.cancel.cancelled() => Err(AskError::NoAnswer),
                        };
                        if let Ok(answer) = &outcome {
                            forwarder.cache.lock().insert(question.clone(), Arc::clone(answer));
                        }
                        forwarder.under_way.lock().remove(&question);
                        // Nobody may be left to hear it.
                        let _ = sender.send(Some(outcome));
                        drop(place);
                    });
                    receiver
                }
            }
        };
        match receiver.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(AskError::NoAnswer)),
            Err(_) => Err(AskError::NoAnswer),
        }
    }

    async fn ask_all(&self, upstream: &Upstream, question: &Question, name: Name) -> Outcome {
        let mut last = None;
        let all = async {
            // Twice through the list: a lost packet is no dead server.
            for round in 0..2 {
                let now = self.start.elapsed().as_millis() as u64;
                for server in upstream.order(now) {
                    let started = Instant::now();
                    let asked = tokio::time::timeout(PER_SERVER, exchange(server.address, upstream, question, &name));
                    match asked.await {
                        Ok(Ok(answer)) => {
                            server.failed_until.store(0, Ordering::Relaxed);
                            self.metrics.forwarded(server.address, started.elapsed(), true);
                            use hickory_proto::op::ResponseCode::{Refused, ServFail};
                            // Another server may do better.
                            if matches!(answer.code, ServFail | Refused) && upstream.servers.len() > 1 && round == 0 {
                                last = Some(Arc::new(answer));
                                continue;
                            }
                            return Ok(Arc::new(answer));
                        }
                        failed => {
                            let error = match failed {
                                Ok(Err(error)) => error.to_string(),
                                _ => "no answer".to_string(),
                            };
                            tracing::debug!(server = %server.address, name = question.name, error, "no DNS answer");
                            self.metrics.forwarded(server.address, started.elapsed(), false);
                            let until = (self.start.elapsed() + FAILED_FOR).as_millis() as u64;
                            server.failed_until.store(until, Ordering::Relaxed);
                        }
                    }
                }
                if let Some(last) = &last {
                    return Ok(Arc::clone(last));
                }
            }
            Err(AskError::NoAnswer)
        };
        tokio::time::timeout(TOTAL, all).await.unwrap_or(Err(AskError::NoAnswer))
    }

    /// Sends a question that only this server can know to all servers; the caller sees whether it comes back.
    pub async fn probe(&self, upstream: &Upstream, name: &Name) {
        let mut query = Query::query(name.clone(), RecordType::HINFO);
        query.set_query_class(hickory_proto::rr::DNSClass::IN);
        let question = Forwarder::question(upstream, &query, false, false);
        for server in &upstream.servers {
            let asked = exchange(server.address, upstream, &question, name);
            if let Ok(Err(error)) = tokio::time::timeout(PER_SERVER, asked).await {
                tracing::debug!(server = %server.address, %error, "no answer to the probe for loops");
            }
        }
    }
}

/// Why a server's answer could not be had.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Proto(#[from] hickory_proto::ProtoError),
    #[error("{0}")]
    Decode(#[from] hickory_proto::serialize::binary::DecodeError),
    #[error("the answer is not to the question")]
    Other,
}

async fn exchange(
    server: SocketAddr,
    upstream: &Upstream,
    question: &Question,
    name: &Name,
) -> Result<Answer, ExchangeError> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    let mut query = Query::query(name.clone(), question.kind);
    query.set_query_class(question.class);
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    edns.set_dnssec_ok(question.dnssec);
    message.set_edns(edns);
    let mut packet = Vec::with_capacity(512);
    message.emit(&mut BinEncoder::new(&mut packet))?;
    if !upstream.force_tcp {
        let answer = over_udp(server, &message, &packet).await?;
        if !answer.truncated {
            return Ok(answer);
        }
    }
    over_tcp(server, &message, &packet).await
}

async fn over_udp(server: SocketAddr, message: &Message, packet: &[u8]) -> Result<Answer, ExchangeError> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match read(message, &buffer[..length]) {
            // Somebody guesses; the right one may still come.
            Err(ExchangeError::Other) => {}
            result => return result,
        }
    }
}

async fn over_tcp(server: SocketAddr, message: &Message, packet: &[u8]) -> Result<Answer, ExchangeError> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = Vec::with_capacity(packet.len() + 2);
    framed.extend_from_slice(&(packet.len() as u16).to_be_bytes());
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    read(message, &buffer)
}

fn read(asked: &Message, packet: &[u8]) -> Result<Answer, ExchangeError> {
    if packet.len() < 12 || packet[..2] != asked.metadata.id.to_be_bytes() {
        return Err(ExchangeError::Other);
    }
    let message = match Message::from_vec(packet) {
        Ok(message) => message,
        // A record cut in the middle: the rest comes over TCP.
        Err(_) if packet[2] & 0b10 != 0 => {
            let mut cut = asked.truncate();
            cut.metadata.message_type = MessageType::Response;
            cut
        }
        Err(error) => return Err(error.into()),
    };
    let same_question = message
        .queries
        .iter()
        .zip(&asked.queries)
        .all(|(a, b)| a.name == b.name && a.query_type == b.query_type && a.query_class == b.query_class);
    // Some servers leave the question out of errors.
    if message.metadata.message_type != MessageType::Response || !same_question {
        return Err(ExchangeError::Other);
    }
    Ok(Answer {
        code: message.metadata.response_code,
        authentic: message.metadata.authentic_data,
        truncated: message.metadata.truncation,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
        bytes: packet.len(),
        since: Instant::now(),
    })
}

/// Whether a name lies in one of these zones.
pub(crate) fn within(name: &str, zones: &[String]) -> bool {
    zones.iter().any(|zone| below(name, zone).is_some())
}
