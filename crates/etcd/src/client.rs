//! A client for etcd's v3 API.
//!
//! One member is asked, over one HTTP/2 connection, as long as it answers; then the next one is. Reads are asked again there at
//! once; writes are not, because nobody knows what has become of them. Unary calls have a time limit, streams have not.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::proto as pb;

/// Longest time for a connection to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest time for an answer of the only member.
const ANSWER: Duration = Duration::from_secs(10);

/// The same for one of several: others may be faster.
const READ_ONE: Duration = Duration::from_secs(2);
const WRITE_ONE: Duration = Duration::from_secs(5);

/// Largest message: etcd's answers to a range are not limited.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// PEM texts for TLS, for members with `https://` addresses.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Authorities of the servers' certificates.
    pub authorities: Option<String>,
    /// Our certificate and its key.
    pub identity: Option<(String, String)>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("there is no address of an etcd member")]
    NoMember,
    #[error("{member} is no address of an etcd member")]
    Address {
        member: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("TLS could not be prepared")]
    Tls(#[source] tonic::transport::Error),
}

/// A client. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    members: Arc<[Channel]>,
    /// The member that is asked.
    current: Arc<watch::Sender<usize>>,
}

/// What may be done about a call without an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// Whether a member said nothing, or that it cannot: another one may.
fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        || status.code() == Code::Unknown && status.message().contains("transport error")
}

macro_rules! calls {
    ($kind:expr; $($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident = $path:literal;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: pb::$request) -> Result<pb::$answer, Status> {
            self.unary($kind, concat!("/etcdserverpb.", $path), request).await
        })*
    };
}

impl Client {
    /// A client for the members with these addresses (`http://HOST:PORT` or `https://...`). Connects when first used, and
    /// again whenever a connection is lost.
    pub fn new(members: &[String], tls: &Tls) -> Result<Client, ConnectError> {
        let mut channels = Vec::new();
        for member in members {
            let mut endpoint = Endpoint::from_shared(member.clone())
                .map_err(|source| ConnectError::Address { member: member.clone(), source })?
                .connect_timeout(CONNECT)
                .tcp_keepalive(Some(Duration::from_secs(10)))
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(5))
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .tcp_nodelay(true);
            if member.starts_with("https://") {
                let mut config = ClientTlsConfig::new();
                if let Some(authorities) = &tls.authorities {
                    config = config.ca_certificate(Certificate::from_pem(authorities));
                }
                if let Some((certificate, key)) = &tls.identity {
                    config = config.identity(Identity::from_pem(certificate, key));
                }
                endpoint = endpoint.tls_config(config).map_err(ConnectError::Tls)?;
            }
            channels.push(endpoint.connect_lazy());
        }
        if channels.is_empty() {
            return Err(ConnectError::NoMember);
        }
        // Not all clients at the same one.
        let first = (RandomState::new().hash_one(0) % channels.len() as u64) as usize;
        Ok(Client { members: channels.into(), current: Arc::new(watch::Sender::new(first)) })
    }

    /// The member that is asked now: its place in the list.
    pub fn member(&self) -> usize {
        *self.current.borrow()
    }

    /// Waits until another member than this one is asked.
    pub async fn left(&self, member: usize) {
        let mut current = self.current.subscribe();
        if current.wait_for(|current| *current != member).await.is_err() {
            std::future::pending().await
        }
    }

    /// Asks the next member from now on, unless somebody else has moved on already.
    fn leave(&self, member: usize) {
        self.current.send_if_modified(|current| {
            let moves = *current == member && self.members.len() > 1;
            if moves {
                *current = (member + 1) % self.members.len();
            }
            moves
        });
    }

    async fn unary<Q, A>(&self, kind: Kind, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let count = self.members.len();
        let (limit, tries) = match kind {
            _ if count == 1 => (ANSWER, 1),
            Kind::Read => (READ_ONE, count),
            Kind::Write => (WRITE_ONE, 1),
        };
        let mut last = Status::unavailable("no member of etcd was asked");
        for _ in 0..tries {
            let member = self.member();
            let call = async {
                let mut grpc = self.ready(member).await?;
                let codec: ProstCodec<Q, A> = ProstCodec::default();
                let request = Request::new(request.clone());
                Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
            };
            last = match tokio::time::timeout(limit, call).await {
                Ok(Err(status)) if is_lost(&status) => status,
                Ok(answer) => return answer,
                Err(_) => Status::deadline_exceeded("etcd has not answered in time"),
            };
            self.leave(member);
        }
        Err(last)
    }

    async fn ready(&self, member: usize) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.members[member].clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(format!("etcd cannot be reached: {error}")))?;
        Ok(grpc)
    }

    async fn streaming<Q, A>(
        &self,
        path: &'static str,
        requests: Request<impl Stream<Item = Q> + Send + 'static>,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let member = self.member();
        let call = async {
            let mut grpc = self.ready(member).await?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            Ok(grpc.streaming(requests, PathAndQuery::from_static(path), codec).await?.into_inner())
        };
        let limit = if self.members.len() == 1 { ANSWER } else { WRITE_ONE };
        let answer = match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("etcd has not answered in time")),
        };
        if answer.as_ref().err().is_some_and(is_lost) {
            self.leave(member);
        }
        answer
    }

    calls! {
        Kind::Read;
        range(RangeRequest) -> RangeResponse = "KV/Range";
        lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse = "Lease/LeaseTimeToLive";
        lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse = "Lease/LeaseLeases";
        member_list(MemberListRequest) -> MemberListResponse = "Cluster/MemberList";
        status(StatusRequest) -> StatusResponse = "Maintenance/Status";
        hash(HashRequest) -> HashResponse = "Maintenance/Hash";
        hash_kv(HashKvRequest) -> HashKvResponse = "Maintenance/HashKV";
    }

    calls! {
        Kind::Write;
        put(PutRequest) -> PutResponse = "KV/Put";
        delete_range(DeleteRangeRequest) -> DeleteRangeResponse = "KV/DeleteRange";
        txn(TxnRequest) -> TxnResponse = "KV/Txn";
        compact(CompactionRequest) -> CompactionResponse = "KV/Compact";
        lease_grant(LeaseGrantRequest) -> LeaseGrantResponse = "Lease/LeaseGrant";
        lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse = "Lease/LeaseRevoke";
        alarm(AlarmRequest) -> AlarmResponse = "Maintenance/Alarm";
        defragment(DefragmentRequest) -> DefragmentResponse = "Maintenance/Defragment";
    }

    /// Many watches on one stream: requests go in, answers come out. A member that loses its leader ends the stream, so that
    /// nobody waits at one that is cut off from the others.
    pub async fn watch(
        &self,
        requests: impl Stream<Item = pb::WatchRequest> + Send + 'static,
    ) -> Result<Streaming<pb::WatchResponse>, Status> {
        let mut requests = Request::new(requests);
        requests.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        self.streaming("/etcdserverpb.Watch/Watch", requests).await
    }

    /// Keeps leases alive: one answer for each request.
    pub async fn lease_keep_alive(
        &self,
        requests: impl Stream<Item = pb::LeaseKeepAliveRequest> + Send + 'static,
    ) -> Result<Streaming<pb::LeaseKeepAliveResponse>, Status> {
        self.streaming("/etcdserverpb.Lease/LeaseKeepAlive", Request::new(requests)).await
    }

    /// The whole database, in pieces.
    pub async fn snapshot(&self) -> Result<Streaming<pb::SnapshotResponse>, Status> {
        let mut grpc = self.ready(self.member()).await?;
        let codec: ProstCodec<pb::SnapshotRequest, pb::SnapshotResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
        Ok(grpc.server_streaming(Request::new(pb::SnapshotRequest {}), path, codec).await?.into_inner())
    }
}
