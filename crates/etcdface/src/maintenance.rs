//! What is left of Cluster and Maintenance for a store that is one member and has its own file format.

use etcd::proto as pb;
use store::{KeyRange, RangeRequest};
use tonic::Status;

use crate::{Face, MEMBER, TERM, VERSION, errors, number};

impl Face {
    pub(crate) async fn member_list(&self, _: pb::MemberListRequest) -> Result<pb::MemberListResponse, Status> {
        let member = pb::Member {
            id: MEMBER,
            name: "alcove".to_string(),
            peer_urls: Vec::new(),
            client_urls: self.options.client_urls.clone(),
            is_learner: false,
        };
        Ok(pb::MemberListResponse { header: self.header_now(), members: vec![member] })
    }

    pub(crate) async fn status(&self, _: pb::StatusRequest) -> Result<pb::StatusResponse, Status> {
        let revision = self.store.synchronize().await.map_err(errors::read)?;
        let size = self.store.live_bytes();
        Ok(pb::StatusResponse {
            header: self.header(revision),
            version: VERSION.to_string(),
            db_size: number(size),
            leader: MEMBER,
            raft_index: revision,
            raft_term: TERM,
            raft_applied_index: revision,
            errors: Vec::new(),
            db_size_in_use: number(size),
            is_learner: false,
            storage_version: "3.6.0".to_string(),
            db_size_quota: 0,
        })
    }

    /// There are no users and no roles.
    pub(crate) async fn auth_list(&self, _: pb::AuthListRequest) -> Result<pb::AuthListResponse, Status> {
        Ok(pb::AuthListResponse { header: self.header_now(), names: Vec::new() })
    }

    pub(crate) async fn auth_status(&self, _: pb::AuthListRequest) -> Result<pb::AuthStatusResponse, Status> {
        Ok(pb::AuthStatusResponse { header: self.header_now(), enabled: false, auth_revision: 1 })
    }

    /// Alarms are not kept: a full disk is told with each write that fails.
    pub(crate) async fn alarm(&self, request: pb::AlarmRequest) -> Result<pb::AlarmResponse, Status> {
        if request.action() == pb::AlarmAction::Activate {
            return Err(Status::unimplemented("alcove: alarms cannot be raised by hand"));
        }
        Ok(pb::AlarmResponse { header: self.header_now(), alarms: Vec::new() })
    }

    /// The store gives space back by itself, after compaction.
    pub(crate) async fn defragment(&self, _: pb::DefragmentRequest) -> Result<pb::DefragmentResponse, Status> {
        Ok(pb::DefragmentResponse { header: self.header_now() })
    }

    pub(crate) async fn hash(&self, _: pb::HashRequest) -> Result<pb::HashResponse, Status> {
        let (hash, revision) = self.hash_at(0).await?;
        Ok(pb::HashResponse { header: self.header(revision), hash })
    }

    pub(crate) async fn hash_kv(&self, request: pb::HashKvRequest) -> Result<pb::HashKvResponse, Status> {
        let (hash, revision) = self.hash_at(u64::try_from(request.revision).unwrap_or(0)).await?;
        Ok(pb::HashKvResponse {
            header: self.header_now(),
            hash,
            compact_revision: number(self.store.compact_revision()),
            hash_revision: number(revision),
        })
    }

    /// A hash of all keys with their values and revisions; replicas of one store agree on it.
    async fn hash_at(&self, revision: u64) -> Result<(u32, u64), Status> {
        self.store.synchronize().await.map_err(errors::read)?;
        let all = KeyRange::new(bytes::Bytes::from_static(&[0]), bytes::Bytes::from_static(&[0]));
        let (start, end) = (all.start().clone(), bytes::Bytes::from_static(&[0]));
        let answer = self
            .store
            .range(RangeRequest { start, end, revision, ..RangeRequest::default() })
            .await
            .map_err(errors::read)?;
        let mut hash: u32 = 0x811c_9dc5;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
            }
        };
        for kv in &answer.kvs {
            add(&(kv.key.len() as u64).to_be_bytes());
            add(&kv.key);
            add(&kv.value);
            for number in [kv.create_revision, kv.mod_revision, kv.version] {
                add(&number.to_be_bytes());
            }
        }
        Ok((hash, answer.revision))
    }

    /// What etcd answers to plain HTTP requests on the same port.
    pub(crate) fn plain(&self, path: &str) -> Option<(u16, String)> {
        match path {
            "/health" => Some((200, r#"{"health":"true","reason":""}"#.to_string())),
            "/livez" | "/readyz" => Some((200, "ok\n".to_string())),
            "/version" => {
                Some((200, format!(r#"{{"etcdserver":"{VERSION}","etcdcluster":"{VERSION}","storage":"3.6.0"}}"#)))
            }
            _ => None,
        }
    }
}
