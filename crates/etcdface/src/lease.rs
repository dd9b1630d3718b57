//! Leases.

use etcd::proto as pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{Face, errors};

/// Shortest time of a lease: what etcd grants with its default election timeout.
const TTL_SECONDS_MIN: i64 = 2;
const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Answers that wait for a slow client.
const ANSWERS_MAX: usize = 16;

impl Face {
    pub(crate) async fn lease_grant(&self, request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Status> {
        if request.ttl > TTL_SECONDS_MAX {
            return Err(errors::lease_ttl_too_large());
        }
        let granted =
            self.store.lease_grant(request.id, request.ttl.max(TTL_SECONDS_MIN)).await.map_err(errors::write)?;
        Ok(pb::LeaseGrantResponse {
            header: self.header_now(),
            id: granted.id,
            ttl: granted.ttl_seconds,
            error: String::new(),
        })
    }

    pub(crate) async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        let revision = self.store.lease_revoke(request.id).await.map_err(errors::write)?;
        Ok(pb::LeaseRevokeResponse { header: self.header(revision) })
    }

    pub(crate) async fn lease_keep_alive(
        &self,
        mut requests: Streaming<pb::LeaseKeepAliveRequest>,
    ) -> Result<ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>, Status> {
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let face = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let answer = match face.store.lease_keep_alive(request.id).await {
                    Ok(ttl) => {
                        let (header, id) = (face.header_now(), request.id);
                        // A time of 0 says that there is no such lease.
                        Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl.unwrap_or(0) })
                    }
                    Err(error) => Err(errors::read(error)),
                };
                let failed = answer.is_err();
                if sender.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    pub(crate) async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let found = self.store.lease_time_to_live(request.id).await.map_err(errors::read)?;
        let (header, id) = (self.header_now(), request.id);
        Ok(match found {
            Some((lease, left, keys)) => pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: left,
                granted_ttl: lease.ttl_seconds,
                keys: if request.keys { keys } else { Vec::new() },
            },
            None => pb::LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() },
        })
    }

    pub(crate) async fn lease_leases(&self, _: pb::LeaseLeasesRequest) -> Result<pb::LeaseLeasesResponse, Status> {
        self.store.synchronize().await.map_err(errors::read)?;
        let mut leases: Vec<pb::LeaseStatus> =
            self.store.leases().into_iter().map(|lease| pb::LeaseStatus { id: lease.id }).collect();
        leases.sort_by_key(|lease| lease.id);
        Ok(pb::LeaseLeasesResponse { header: self.header_now(), leases })
    }
}
