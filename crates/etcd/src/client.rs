//! A client for etcd's v3 API.
//!
//! One HTTP/2 connection for each member; unary calls have a time limit, streams have not.

use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio_stream::Stream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::proto as pb;

/// Longest time for a connection to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest time for an answer.
const ANSWER: Duration = Duration::from_secs(10);

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
    channel: Channel,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident = $path:literal;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: pb::$request) -> Result<pb::$answer, Status> {
            self.unary(concat!("/etcdserverpb.", $path), request).await
        })*
    };
}

impl Client {
    /// A client for the members with these addresses (`http://HOST:PORT` or `https://...`). Connects when first used, and
    /// again whenever a connection is lost.
    pub fn new(members: &[String], tls: &Tls) -> Result<Client, ConnectError> {
        let mut endpoints = Vec::new();
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
            endpoints.push(endpoint);
        }
        let channel = match endpoints.len() {
            0 => return Err(ConnectError::NoMember),
            1 => endpoints.remove(0).connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        Ok(Client { channel })
    }

    async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = self.ready().await?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?;
            Ok(answer.into_inner())
        };
        match tokio::time::timeout(ANSWER, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("etcd has not answered in time")),
        }
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(format!("etcd cannot be reached: {error}")))?;
        Ok(grpc)
    }

    async fn streaming<Q, A>(
        &self,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + Default + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = self.ready().await?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            Ok(grpc.streaming(Request::new(requests), PathAndQuery::from_static(path), codec).await?.into_inner())
        };
        match tokio::time::timeout(ANSWER, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("etcd has not answered in time")),
        }
    }

    calls! {
        range(RangeRequest) -> RangeResponse = "KV/Range";
        put(PutRequest) -> PutResponse = "KV/Put";
        delete_range(DeleteRangeRequest) -> DeleteRangeResponse = "KV/DeleteRange";
        txn(TxnRequest) -> TxnResponse = "KV/Txn";
        compact(CompactionRequest) -> CompactionResponse = "KV/Compact";
        lease_grant(LeaseGrantRequest) -> LeaseGrantResponse = "Lease/LeaseGrant";
        lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse = "Lease/LeaseRevoke";
        lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse = "Lease/LeaseTimeToLive";
        lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse = "Lease/LeaseLeases";
        member_list(MemberListRequest) -> MemberListResponse = "Cluster/MemberList";
        alarm(AlarmRequest) -> AlarmResponse = "Maintenance/Alarm";
        status(StatusRequest) -> StatusResponse = "Maintenance/Status";
        defragment(DefragmentRequest) -> DefragmentResponse = "Maintenance/Defragment";
        hash(HashRequest) -> HashResponse = "Maintenance/Hash";
        hash_kv(HashKvRequest) -> HashKvResponse = "Maintenance/HashKV";
    }

    /// Many watches on one stream: requests go in, answers come out.
    pub async fn watch(
        &self,
        requests: impl Stream<Item = pb::WatchRequest> + Send + 'static,
    ) -> Result<Streaming<pb::WatchResponse>, Status> {
        self.streaming("/etcdserverpb.Watch/Watch", requests).await
    }

    /// Keeps leases alive: one answer for each request.
    pub async fn lease_keep_alive(
        &self,
        requests: impl Stream<Item = pb::LeaseKeepAliveRequest> + Send + 'static,
    ) -> Result<Streaming<pb::LeaseKeepAliveResponse>, Status> {
        self.streaming("/etcdserverpb.Lease/LeaseKeepAlive", requests).await
    }

    /// The whole database, in pieces.
    pub async fn snapshot(&self) -> Result<Streaming<pb::SnapshotResponse>, Status> {
        let mut grpc = self.ready().await?;
        let codec: ProstCodec<pb::SnapshotRequest, pb::SnapshotResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
        Ok(grpc.server_streaming(Request::new(pb::SnapshotRequest {}), path, codec).await?.into_inner())
    }
}
