//! Reads, and writes of one kind: a put and a delete are transactions with one operation.

use bytes::Bytes;
use etcd::proto as pb;
use etcd::proto::request_op::Request;
use etcd::proto::response_op::Response;
use store::{KeyRange, KeyValue, RangeRequest};
use tonic::Status;

use crate::{Face, errors, message, number};

impl Face {
    pub(crate) async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        check_range(&request)?;
        if !request.serializable {
            self.store.synchronize().await.map_err(errors::read)?;
        }
        let mut response = self.read(&request).await?;
        response.header = self.header_now();
        Ok(response)
    }

    /// Reads without a header.
    pub(crate) async fn read(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let whole = needs_whole(request);
        let answer = self
            .store
            .range(RangeRequest {
                start: request.key.clone(),
                end: request.range_end.clone(),
                limit: if whole { 0 } else { usize::try_from(request.limit).unwrap_or(0) },
                // A negative revision is as good as none, as in etcd.
                revision: u64::try_from(request.revision).unwrap_or(0),
                keys_only: request.keys_only && !whole,
                count_only: request.count_only,
            })
            .await
            .map_err(errors::read)?;
        if whole {
            return Ok(shape(request, answer.kvs));
        }
        Ok(pb::RangeResponse {
            header: None,
            kvs: answer.kvs.into_iter().map(message).collect(),
            more: answer.more,
            count: number(answer.count),
        })
    }

    pub(crate) async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        let (header, mut responses) = self.one(Request::RequestPut(request)).await?;
        match responses.pop() {
            Some(Response::ResponsePut(response)) => Ok(pb::PutResponse { header, ..response }),
            _ => Err(Status::internal("a put had no answer")),
        }
    }

    pub(crate) async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        let (header, mut responses) = self.one(Request::RequestDeleteRange(request)).await?;
        match responses.pop() {
            Some(Response::ResponseDeleteRange(response)) => Ok(pb::DeleteRangeResponse { header, ..response }),
            _ => Err(Status::internal("a delete had no answer")),
        }
    }

    async fn one(&self, request: Request) -> Result<(Option<pb::ResponseHeader>, Vec<Response>), Status> {
        let txn =
            pb::TxnRequest { success: vec![pb::RequestOp { request: Some(request) }], ..pb::TxnRequest::default() };
        let answer = self.txn(txn).await?;
        Ok((answer.header, answer.responses.into_iter().filter_map(|op| op.response).collect()))
    }

    pub(crate) async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Status> {
        self.store.synchronize().await.map_err(errors::read)?;
        self.store.compact(u64::try_from(request.revision).unwrap_or(0)).await.map_err(errors::compact)?;
        Ok(pb::CompactionResponse { header: self.header_now() })
    }
}

pub(crate) fn check_range(request: &pb::RangeRequest) -> Result<(), Status> {
    if request.key.is_empty() {
        return Err(errors::empty_key());
    }
    if pb::SortOrder::try_from(request.sort_order).is_err() || pb::SortTarget::try_from(request.sort_target).is_err() {
        return Err(errors::sort_option());
    }
    Ok(())
}

/// Whether all keys have to be looked at, because the first ones of the range are not the first ones of the answer.
pub(crate) fn needs_whole(request: &pb::RangeRequest) -> bool {
    let (order, target) = order(request);
    let filtered =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    !request.count_only
        && (filtered.iter().any(|bound| *bound != 0)
            || order == pb::SortOrder::Descend
            || order == pb::SortOrder::Ascend && target != pb::SortTarget::Key)
}

fn order(request: &pb::RangeRequest) -> (pb::SortOrder, pb::SortTarget) {
    let order = pb::SortOrder::try_from(request.sort_order).unwrap_or(pb::SortOrder::None);
    let target = pb::SortTarget::try_from(request.sort_target).unwrap_or(pb::SortTarget::Key);
    match (order, target) {
        (pb::SortOrder::None, target) if target != pb::SortTarget::Key => (pb::SortOrder::Ascend, target),
        other => other,
    }
}

/// Filters, sorts and cuts the keys of a range.
pub(crate) fn shape(request: &pb::RangeRequest, mut kvs: Vec<KeyValue>) -> pb::RangeResponse {
    let count = number(kvs.len() as u64);
    if request.count_only {
        return pb::RangeResponse { count, ..pb::RangeResponse::default() };
    }
    let within =
        |value: u64, min: i64, max: i64| (min == 0 || number(value) >= min) && (max == 0 || number(value) <= max);
    kvs.retain(|kv| {
        within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
            && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
    });
    let (order, target) = order(request);
    let filtered =
        request.min_mod_revision | request.max_mod_revision | request.min_create_revision | request.max_create_revision;
    if request.sort_order() == pb::SortOrder::None && filtered == 0 && request.limit > 0 {
        // Without an order etcd cuts first and sorts what is left, with the key that shows that there is more.
        kvs.truncate(usize::try_from(request.limit).unwrap_or(usize::MAX).saturating_add(1));
    }
    if order != pb::SortOrder::None {
        kvs.sort_by(|one, other| match target {
            pb::SortTarget::Key => one.key.cmp(&other.key),
            pb::SortTarget::Version => one.version.cmp(&other.version),
            pb::SortTarget::Create => one.create_revision.cmp(&other.create_revision),
            pb::SortTarget::Mod => one.mod_revision.cmp(&other.mod_revision),
            pb::SortTarget::Value => one.value.cmp(&other.value),
        });
        if order == pb::SortOrder::Descend {
            kvs.reverse();
        }
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    pb::RangeResponse { header: None, kvs: kvs.into_iter().map(message).collect(), more, count }
}

/// The keys of an etcd range.
pub(crate) fn keys(key: &Bytes, range_end: &Bytes) -> KeyRange {
    KeyRange::new(key.clone(), range_end.clone())
}
