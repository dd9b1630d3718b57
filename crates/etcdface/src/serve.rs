//! Connections, and which call goes where.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use etcd::proto as pb;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::Face;
use crate::authority::Lenient;

/// Largest request: a transaction with many values. The store has limits of its own for each value.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long calls under way may take when serving ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Where clients come in.
pub enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<ServerConfig>),
    Unix(UnixListener),
}

impl Face {
    /// Serves until `stop`.
    pub async fn serve(&self, listener: Listener, stop: CancellationToken) -> io::Result<()> {
        let connections = TaskTracker::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept(&listener, &connections, &stop) => {
                    if let Err(error) = accepted {
                        // Out of file descriptors, or a client that went away at once.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }
        connections.close();
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
        Ok(())
    }

    async fn accept(&self, listener: &Listener, connections: &TaskTracker, stop: &CancellationToken) -> io::Result<()> {
        let (face, stop) = (self.clone(), stop.clone());
        match listener {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                connections.spawn(async move { face.connection(stream, stop).await });
            }
            Listener::Tls(listener, config) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let acceptor = TlsAcceptor::from(config.clone());
                connections.spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => face.connection(stream, stop).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                });
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                connections.spawn(async move { face.connection(stream, stop).await });
            }
        }
        Ok(())
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, stop: CancellationToken) {
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let face = self.clone();
            async move { Ok::<_, Infallible>(face.call(request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Some(Duration::from_secs(20)))
            .max_concurrent_streams(10_000);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(Lenient::new(stream)), service);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // Watches do not end by themselves.
                tokio::time::timeout(DRAIN / 5, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection ended");
        }
    }

    // Boxed: once, not for each kind of connection.
    fn call(self, request: http::Request<Incoming>) -> Pin<Box<dyn Future<Output = http::Response<Body>> + Send>> {
        Box::pin(self.answer(request))
    }

    async fn answer(self, request: http::Request<Incoming>) -> http::Response<Body> {
        if request.method() == http::Method::GET {
            return self.get(request.uri().path());
        }
        macro_rules! unary {
            ($name:ident, $request:ident, $response:ident) => {{
                let codec: ProstCodec<pb::$response, pb::$request> = ProstCodec::default();
                let service = service_fn(move |request: tonic::Request<pb::$request>| {
                    let face = self.clone();
                    async move { face.$name(request.into_inner()).await.map(Response::new) }
                });
                Grpc::new(codec).max_decoding_message_size(REQUEST_BYTES_MAX).unary(service, request).await
            }};
        }
        macro_rules! streaming {
            ($name:ident, $request:ident, $response:ident) => {{
                let codec: ProstCodec<pb::$response, pb::$request> = ProstCodec::default();
                let service = service_fn(move |request: tonic::Request<tonic::Streaming<pb::$request>>| {
                    let face = self.clone();
                    async move { face.$name(request.into_inner()).await.map(Response::new) }
                });
                Grpc::new(codec).streaming(service, request).await
            }};
        }
        let path = request.uri().path().to_string();
        match path.strip_prefix("/etcdserverpb.").unwrap_or_default() {
            "KV/Range" => unary!(range, RangeRequest, RangeResponse),
            "KV/Put" => unary!(put, PutRequest, PutResponse),
            "KV/DeleteRange" => unary!(delete_range, DeleteRangeRequest, DeleteRangeResponse),
            "KV/Txn" => unary!(txn, TxnRequest, TxnResponse),
            "KV/Compact" => unary!(compact, CompactionRequest, CompactionResponse),
            "Watch/Watch" => streaming!(watch, WatchRequest, WatchResponse),
            "Lease/LeaseGrant" => unary!(lease_grant, LeaseGrantRequest, LeaseGrantResponse),
            "Lease/LeaseRevoke" => unary!(lease_revoke, LeaseRevokeRequest, LeaseRevokeResponse),
            "Lease/LeaseKeepAlive" => streaming!(lease_keep_alive, LeaseKeepAliveRequest, LeaseKeepAliveResponse),
            "Lease/LeaseTimeToLive" => unary!(lease_time_to_live, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse),
            "Lease/LeaseLeases" => unary!(lease_leases, LeaseLeasesRequest, LeaseLeasesResponse),
            "Cluster/MemberList" => unary!(member_list, MemberListRequest, MemberListResponse),
            "Maintenance/Alarm" => unary!(alarm, AlarmRequest, AlarmResponse),
            "Maintenance/Status" => unary!(status, StatusRequest, StatusResponse),
            "Maintenance/Defragment" => unary!(defragment, DefragmentRequest, DefragmentResponse),
            "Maintenance/Hash" => unary!(hash, HashRequest, HashResponse),
            "Maintenance/HashKV" => unary!(hash_kv, HashKvRequest, HashKvResponse),
            "Maintenance/Snapshot" => {
                let codec: ProstCodec<pb::SnapshotResponse, pb::SnapshotRequest> = ProstCodec::default();
                let service = service_fn(move |request: tonic::Request<pb::SnapshotRequest>| {
                    let face = self.clone();
                    async move { face.snapshot(request.into_inner()).await.map(Response::new) }
                });
                Grpc::new(codec).server_streaming(service, request).await
            }
            "Auth/UserList" | "Auth/RoleList" => unary!(auth_list, AuthListRequest, AuthListResponse),
            "Auth/AuthStatus" => unary!(auth_status, AuthListRequest, AuthStatusResponse),
            other if other.starts_with("Auth/") => {
                Status::failed_precondition("etcdserver: authentication is not enabled").into_http()
            }
            _ => Status::unimplemented(format!("unknown method {path}")).into_http(),
        }
    }

    fn get(&self, path: &str) -> http::Response<Body> {
        let (code, text) = self.plain(path).unwrap_or((404, "404 page not found\n".to_string()));
        let mut response = http::Response::new(Body::new(Full::new(bytes::Bytes::from(text))));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        response
    }
}
