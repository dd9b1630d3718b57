//! The ports: questions in, answers out, over UDP and TCP.
//!
//! Invariants:
//! - What is known here is answered in the receiving task; questions that wait for other servers do not hold up others.
//! - Questions that wait and TCP connections are bounded.
//! - A packet that is an answer, or too short for a header, gets nothing back: nobody can make two servers talk for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::resolver::{Reply, Resolver, Walk};

/// Tasks that receive from one UDP socket.
const RECEIVERS: usize = 2;
/// Questions that wait for other servers.
const WAITING_MAX: usize = 2048;
const CONNECTIONS_MAX: usize = 256;
/// How long a TCP client may be silent, or slow to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// No question is longer.
const QUESTION_BYTES_MAX: usize = 2048;
/// The largest answer over UDP, whatever the client says it takes.
const UDP_BYTES_MAX: u16 = 4096;
const UDP_BYTES_PLAIN: u16 = 512;
/// An OPT record without options.
const OPT_BYTES: u16 = 11;

/// Answers packets.
pub(crate) struct Handler {
    pub resolver: Arc<Resolver>,
    pub metrics: Arc<Metrics>,
}

/// What is done with a packet.
pub(crate) enum Handled {
    Nothing,
    Packet(Vec<u8>),
    Wait(Box<Waiting>),
}

/// A question that other servers have to answer.
pub(crate) struct Waiting {
    asked: Asked,
    walk: Walk,
}

/// What of a question shapes the packet of its answer.
struct Asked {
    message: Message,
    tcp: bool,
    since: Instant,
}

impl Handler {
    pub fn handle(&self, packet: &[u8], tcp: bool) -> Handled {
        let since = Instant::now();
        // Twelve bytes are a header; the first bit of the third tells an answer.
        if packet.len() < 12 || packet[2] & 0x80 != 0 {
            return Handled::Nothing;
        }
        let message = match Message::from_vec(packet) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a packet is no DNS question");
                let id = u16::from_be_bytes([packet[0], packet[1]]);
                let message = Message::new(id, MessageType::Query, OpCode::Query);
                return self.packet(&Asked { message, tcp, since }, Reply::code(ResponseCode::FormErr));
            }
        };
        let asked = Asked { message, tcp, since };
        let message = &asked.message;
        if message.metadata.op_code != OpCode::Query {
            return self.packet(&asked, Reply::code(ResponseCode::NotImp));
        }
        let [query] = message.queries.as_slice() else {
            return self.packet(&asked, Reply::code(ResponseCode::FormErr));
        };
        self.metrics.request(tcp, query.query_type);
        if message.version() > 0 {
            return self.packet(&asked, Reply::code(ResponseCode::BADVERS));
        }
        let dnssec = message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let walk = self.resolver.walk(query, dnssec, message.metadata.checking_disabled);
        match self.resolver.ready(walk) {
            Ok(reply) => self.packet(&asked, reply),
            Err(walk) => Handled::Wait(Box::new(Waiting { asked, walk })),
        }
    }

    /// Waits for other servers.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let reply = self.resolver.finish(waiting.walk).await;
        match self.packet(&waiting.asked, reply) {
            Handled::Packet(packet) => packet,
            Handled::Nothing | Handled::Wait(_) => Vec::new(),
        }
    }

    fn packet(&self, asked: &Asked, reply: Reply) -> Handled {
        let code = reply.code;
        match encode(asked, reply, self.resolver.is_recursive()) {
            Ok(packet) => {
                self.metrics.response(code, asked.since.elapsed());
                Handled::Packet(packet)
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS answer could not be written");
                Handled::Nothing
            }
        }
    }
}

fn encode(asked: &Asked, reply: Reply, recursive: bool) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let question = &asked.message;
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    let head = &mut message.metadata;
    head.recursion_desired = question.metadata.recursion_desired;
    head.checking_disabled = question.metadata.checking_disabled;
    head.recursion_available = recursive;
    head.authoritative = reply.authoritative;
    head.authentic_data = reply.authentic;
    head.truncation = reply.truncated;
    head.response_code = reply.code;
    message.queries = question.queries.clone();
    message.answers = reply.answers;
    message.authorities = reply.authorities;
    message.additionals = reply.additionals;
    let limit = if asked.tcp {
        u16::MAX
    } else if question.edns.is_some() {
        question.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX)
    } else {
        UDP_BYTES_PLAIN
    };
    let mut packet = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut packet);
    // The OPT record must be there even when the answer had to be cut, so its place is kept.
    encoder.set_max_size(if question.edns.is_some() { limit - OPT_BYTES } else { limit });
    message.emit(&mut encoder)?;
    // Of a record that did not fit, pieces are left.
    encoder.trim();
    if let Some(edns) = &question.edns {
        let flags = if edns.flags().dnssec_ok { 0x80 } else { 0 };
        let [high, low] = UDP_BYTES_MAX.to_be_bytes();
        packet.extend_from_slice(&[0, 0, 41, high, low, reply.code.high(), 0, flags, 0, 0, 0]);
        let count = u16::from_be_bytes([packet[10], packet[11]]) + 1;
        packet[10..12].copy_from_slice(&count.to_be_bytes());
    }
    Ok(packet)
}

/// Serves both sockets until `cancel`.
pub(crate) fn serve(
    handler: Arc<Handler>,
    udp: UdpSocket,
    tcp: TcpListener,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) {
    let udp = Arc::new(udp);
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    for _ in 0..RECEIVERS {
        let (handler, udp, places) = (Arc::clone(&handler), Arc::clone(&udp), Arc::clone(&places));
        let (own_tasks, cancel) = (tasks.clone(), cancel.clone());
        tasks.spawn(async move {
            let mut buffer = [0; QUESTION_BYTES_MAX];
            loop {
                let received = tokio::select! {
                    // Cancel-safe: a packet is received or not.
                    received = udp.recv_from(&mut buffer) => received,
                    () = cancel.cancelled() => return,
                };
                match received {
                    Ok((length, client)) => {
                        answer_udp(&handler, &udp, &places, &own_tasks, &cancel, &buffer[..length], client).await;
                    }
                    // An earlier answer found no receiver.
                    Err(error) => tracing::debug!(%error, "could not receive a DNS question"),
                }
            }
        });
    }
    let (own_tasks, cancel) = (tasks.clone(), cancel.clone());
    tasks.spawn(async move {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = tcp.accept() => accepted,
                () = cancel.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "could not accept a DNS connection");
                    // Out of file descriptors: the next try would fail at once.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
                handler.metrics.dropped();
                continue;
            };
            let (handler, cancel) = (Arc::clone(&handler), cancel.clone());
            own_tasks.spawn(async move {
                tokio::select! {
                    result = connection(&handler, stream) => {
                        if let Err(error) = result {
                            tracing::debug!(%error, "a DNS connection broke off");
                        }
                    }
                    () = cancel.cancelled() => {}
                }
                drop(place);
            });
        }
    });
}

async fn answer_udp(
    handler: &Arc<Handler>,
    udp: &Arc<UdpSocket>,
    places: &Arc<Semaphore>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    packet: &[u8],
    client: SocketAddr,
) {
    let send = move |error: std::io::Error| tracing::debug!(%error, %client, "could not send a DNS answer");
    match handler.handle(packet, false) {
        Handled::Nothing => {}
        Handled::Packet(answer) => {
            let _ = udp.send_to(&answer, client).await.map_err(send);
        }
        Handled::Wait(waiting) => {
            let Ok(place) = Arc::clone(places).try_acquire_owned() else {
                handler.metrics.dropped();
                return;
            };
            let (handler, udp, cancel) = (Arc::clone(handler), Arc::clone(udp), cancel.clone());
            tasks.spawn(async move {
                tokio::select! {
                    answer = handler.finish(*waiting) => {
                        let _ = udp.send_to(&answer, client).await.map_err(send);
                    }
                    () = cancel.cancelled() => {}
                }
                drop(place);
            });
        }
    }
}

async fn connection(handler: &Handler, mut stream: TcpStream) -> std::io::Result<()> {
    let slow = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    loop {
        let mut length = [0; 2];
        match tokio::time::timeout(IDLE, stream.read_exact(&mut length)).await.map_err(slow)? {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut packet = vec![0; u16::from_be_bytes(length).into()];
        tokio::time::timeout(IDLE, stream.read_exact(&mut packet)).await.map_err(slow)??;
        let answer = match handler.handle(&packet, true) {
            Handled::Nothing => return Ok(()),
            Handled::Packet(answer) => answer,
            Handled::Wait(waiting) => handler.finish(*waiting).await,
        };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&answer);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await.map_err(slow)??;
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;
    use crate::DnsConfig;
    use crate::forward::Forwarder;

    fn handler() -> Handler {
        let metrics = Arc::new(Metrics::default());
        let forwarder = Forwarder::new(Arc::clone(&metrics), TaskTracker::new(), CancellationToken::new());
        let setup = crate::setup(DnsConfig { node_names: true, ..DnsConfig::default() }, Arc::new(forwarder)).unwrap();
        Handler { resolver: Arc::new(Resolver::new(setup)), metrics }
    }

    /// Whatever comes: an answer to it that is a message and fits, or nothing.
    fn check(handler: &Handler, packet: &[u8]) -> Result<(), TestCaseError> {
        for tcp in [false, true] {
            match handler.handle(packet, tcp) {
                Handled::Nothing => prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
                Handled::Packet(answer) => {
                    prop_assert_eq!(&answer[..2], &packet[..2]);
                    prop_assert!(tcp || answer.len() <= UDP_BYTES_MAX.into());
                    let message = Message::from_vec(&answer);
                    prop_assert!(message.is_ok_and(|m| m.metadata.message_type == MessageType::Response));
                }
                // Nobody else is configured.
                Handled::Wait(_) => {}
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_dropped(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
            check(&handler(), &packet)?;
        }

        #[test]
        fn a_question_with_some_bytes_changed_is_answered_or_dropped(
            labels in proptest::collection::vec("[a-z0-9_.*-]{1,20}", 0..6),
            zone in prop_oneof![Just("svc.cluster.local"), Just("pod.cluster.local"), Just("in-addr.arpa"), Just("ip6.arpa"), Just("nodes.vcluster.com")],
            kind in any::<u16>(),
            edns in any::<bool>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut message = Message::query();
            let text = labels.iter().map(|label| label.replace('.', "")).filter(|label| !label.is_empty());
            let text = text.chain([zone.to_string()]).collect::<Vec<_>>().join(".");
            // Labels that are none leave the zone alone.
            let name = Name::from_ascii(&text).or_else(|_| Name::from_ascii(zone)).unwrap();
            message.add_query(Query::query(name, RecordType::from(kind)));
            if edns {
                message.set_edns(Default::default());
            }
            let mut packet = message.to_vec().unwrap();
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            check(&handler(), &packet)?;
        }
    }
}
