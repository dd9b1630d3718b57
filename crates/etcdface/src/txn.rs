//! Transactions: compare, then or else.
//!
//! A transaction runs inside the store's writer on one state, and everything it writes has one revision. Reads of the past
//! are done before: the past does not change.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use etcd::proto as pb;
use etcd::proto::compare::TargetUnion;
use etcd::proto::request_op::Request;
use etcd::proto::response_op::Response;
use store::{KeyRange, KeyValue, Transaction, WriteError};
use tonic::Status;

use crate::{Face, errors, kv, message, number};

/// Operations and conditions of one transaction, as etcd limits them by default.
const OPERATIONS_MAX: usize = 128;

/// Transactions inside of transactions.
const DEPTH_MAX: usize = 16;

/// How a transaction ended that was refused while it ran.
enum Refused {
    Status(Status),
    Write(WriteError),
}

impl Face {
    pub(crate) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        check(&request, 0)?;
        intervals(&request.success)?;
        intervals(&request.failure)?;
        let mut size_bytes = 0;
        let mut past = VecDeque::new();
        let mut left: Vec<&pb::RequestOp> = request.failure.iter().rev().chain(request.success.iter().rev()).collect();
        while let Some(op) = left.pop() {
            match &op.request {
                Some(Request::RequestRange(range)) if range.revision > 0 => past.push_back(self.read(range).await?),
                Some(Request::RequestPut(put)) => {
                    self.store.check_key(&put.key).map_err(errors::write)?;
                    self.store.check_value(&put.value).map_err(errors::write)?;
                    size_bytes += put.value.len();
                }
                Some(Request::RequestTxn(txn)) => {
                    left.extend(txn.failure.iter().rev().chain(txn.success.iter().rev()));
                }
                _ => {}
            }
        }
        let (request, past) = (Arc::new(request), Arc::new(past));
        let work = move |transaction: &mut Transaction<'_>| {
            let mut run = Run { transaction, past: (*past).clone(), decided: VecDeque::new() };
            run.decide(&request);
            match run.txn(&request) {
                Ok(answer) => Ok(Ok(answer)),
                Err(Refused::Write(error)) => Err(error),
                Err(Refused::Status(status)) => Ok(Err(status)),
            }
        };
        // A refusal may come after writes; it must not commit them.
        let (revision, answer) = self.run(size_bytes, work).await?;
        let mut answer = answer?;
        answer.header = self.header(revision);
        tell_revisions(&mut answer.responses, number(revision));
        Ok(answer)
    }

    async fn run(
        &self,
        size_bytes: usize,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<Result<pb::TxnResponse, Status>, WriteError> + Send + 'static,
    ) -> Result<(u64, Result<pb::TxnResponse, Status>), Status> {
        let refusal: Arc<std::sync::Mutex<Option<Status>>> = Arc::default();
        let told = refusal.clone();
        let outcome = self
            .store
            .transact(size_bytes, move |transaction| {
                let answer = work(transaction)?;
                if let Err(status) = &answer {
                    if let Ok(mut told) = told.lock() {
                        *told = Some(status.clone());
                    }
                    // Any error drops what was written so far.
                    return Err(WriteError::EmptyKey);
                }
                Ok(answer)
            })
            .await;
        match outcome {
            Ok(answer) => Ok(answer),
            Err(WriteError::EmptyKey) => {
                let status = refusal.lock().ok().and_then(|mut refusal| refusal.take());
                Err(status.unwrap_or_else(errors::empty_key))
            }
            Err(error) => Err(errors::write(error)),
        }
    }
}

/// Gives each answer the revision it is of, which kube-apiserver up to 1.30 reads: that of the transaction from the first write on,
/// the one before ahead of it. As in etcd nothing else is in these headers, and those of inner transactions are empty.
fn tell_revisions(responses: &mut [pb::ResponseOp], revision: i64) {
    let before = if responses.iter().any(is_write) { revision - 1 } else { revision };
    tell(responses, before, revision, &mut false);
}

fn is_write(op: &pb::ResponseOp) -> bool {
    match &op.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(deleted)) => deleted.deleted > 0,
        Some(Response::ResponseTxn(inner)) => inner.responses.iter().any(is_write),
        Some(Response::ResponseRange(_)) | None => false,
    }
}

fn tell(responses: &mut [pb::ResponseOp], before: i64, revision: i64, written: &mut bool) {
    for op in responses {
        if let Some(Response::ResponseTxn(inner)) = &mut op.response {
            inner.header = Some(pb::ResponseHeader::default());
            tell(&mut inner.responses, before, revision, written);
            continue;
        }
        *written |= is_write(op);
        let revision = if *written { revision } else { before };
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        match &mut op.response {
            Some(Response::ResponseRange(answer)) => answer.header = header,
            Some(Response::ResponsePut(answer)) => answer.header = header,
            Some(Response::ResponseDeleteRange(answer)) => answer.header = header,
            Some(Response::ResponseTxn(_)) | None => {}
        }
    }
}

/// What can be said against a transaction before it runs.
fn check(request: &pb::TxnRequest, depth: usize) -> Result<(), Status> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > OPERATIONS_MAX || depth > DEPTH_MAX {
        return Err(errors::too_many_operations());
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(errors::empty_key());
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            None => return Err(errors::key_not_found()),
            Some(Request::RequestRange(range)) => kv::check_range(range)?,
            Some(Request::RequestPut(put)) => {
                if put.key.is_empty() {
                    return Err(errors::empty_key());
                }
                if put.ignore_value && !put.value.is_empty() {
                    return Err(errors::value_provided());
                }
                if put.ignore_lease && put.lease != 0 {
                    return Err(errors::lease_provided());
                }
            }
            Some(Request::RequestDeleteRange(delete)) => {
                if delete.key.is_empty() {
                    return Err(errors::empty_key());
                }
            }
            Some(Request::RequestTxn(txn)) => check(txn, depth + 1)?,
        }
    }
    Ok(())
}

/// No key may be written twice. Returns the keys that are put and the ranges that are deleted.
fn intervals(ops: &[pb::RequestOp]) -> Result<(BTreeSet<Bytes>, Vec<KeyRange>), Status> {
    let mut puts = BTreeSet::new();
    let mut deletes: Vec<KeyRange> = Vec::new();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            deletes.push(kv::keys(&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(txn)) = &op.request else { continue };
        let (then, then_deletes) = intervals(&txn.success)?;
        let (otherwise, else_deletes) = intervals(&txn.failure)?;
        // Only one of the two branches runs: both may put a key.
        for key in then.union(&otherwise) {
            if deletes.iter().any(|range| range.contains(key)) || !puts.insert(key.clone()) {
                return Err(errors::duplicate_key());
            }
        }
        deletes.extend(then_deletes);
        deletes.extend(else_deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (deletes.iter().any(|range| range.contains(&put.key)) || !puts.insert(put.key.clone()))
        {
            return Err(errors::duplicate_key());
        }
    }
    Ok((puts, deletes))
}

struct Run<'a, 't> {
    transaction: &'a mut Transaction<'t>,
    /// Answers to reads of the past, in the order in which the request has them.
    past: VecDeque<pb::RangeResponse>,
    /// Which branch each transaction takes, in the order in which they run.
    decided: VecDeque<bool>,
}

impl Run<'_, '_> {
    fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Refused> {
        let succeeded = self.decided.pop_front().unwrap_or(false);
        let (taken, skipped) =
            if succeeded { (&request.success, &request.failure) } else { (&request.failure, &request.success) };
        if !succeeded {
            self.skip(skipped);
        }
        let mut responses = Vec::with_capacity(taken.len());
        for op in taken {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => Response::ResponseRange(self.range(range)?),
                Some(Request::RequestPut(put)) => Response::ResponsePut(self.put(put)?),
                Some(Request::RequestDeleteRange(delete)) => Response::ResponseDeleteRange(self.delete(delete)?),
                Some(Request::RequestTxn(txn)) => Response::ResponseTxn(self.txn(txn)?),
                None => return Err(Refused::Status(errors::key_not_found())),
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        if succeeded {
            self.skip(skipped);
        }
        Ok(pb::TxnResponse { header: None, succeeded, responses })
    }

    /// Compares everything before anything is written: conditions of inner transactions are about the state before, too.
    fn decide(&mut self, request: &pb::TxnRequest) {
        let succeeded = request.compare.iter().all(|compare| self.compare(compare));
        self.decided.push_back(succeeded);
        for op in if succeeded { &request.success } else { &request.failure } {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                self.decide(txn);
            }
        }
    }

    /// Leaves out the reads of the past of a branch that is not taken.
    fn skip(&mut self, ops: &[pb::RequestOp]) {
        for op in ops {
            match &op.request {
                Some(Request::RequestRange(range)) if range.revision > 0 => drop(self.past.pop_front()),
                Some(Request::RequestTxn(txn)) => {
                    self.skip(&txn.success);
                    self.skip(&txn.failure);
                }
                _ => {}
            }
        }
    }

    fn compare(&mut self, compare: &pb::Compare) -> bool {
        let kvs = if compare.range_end.is_empty() {
            self.transaction.get(&compare.key).into_iter().collect()
        } else {
            self.transaction.range(&kv::keys(&compare.key, &compare.range_end))
        };
        if kvs.is_empty() {
            let absent = KeyValue {
                key: compare.key.clone(),
                value: Bytes::new(),
                create_revision: 0,
                mod_revision: 0,
                version: 0,
                lease: 0,
            };
            // What is not there has no value, not even an empty one.
            return compare.target() != pb::CompareTarget::Value && holds(compare, &absent);
        }
        kvs.iter().all(|kv| holds(compare, kv))
    }

    fn range(&mut self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Refused> {
        if request.revision > 0 {
            return self.past.pop_front().ok_or_else(|| Refused::Status(Status::internal("a read had no answer")));
        }
        let kvs = if request.range_end.is_empty() {
            self.transaction.get(&request.key).into_iter().collect()
        } else {
            self.transaction.range(&kv::keys(&request.key, &request.range_end))
        };
        Ok(kv::shape(request, kvs))
    }

    fn put(&mut self, request: &pb::PutRequest) -> Result<pb::PutResponse, Refused> {
        let (mut value, mut lease) = (request.value.clone(), request.lease);
        if request.ignore_value || request.ignore_lease {
            let Some(current) = self.transaction.get(&request.key) else {
                return Err(Refused::Status(errors::key_not_found()));
            };
            if request.ignore_value {
                value = current.value;
            }
            if request.ignore_lease {
                lease = current.lease;
            }
        }
        // Copies of exactly this size: what comes in is a slice of a larger message, which would stay alive with it.
        let (key, value) = (Bytes::copy_from_slice(&request.key), Bytes::copy_from_slice(&value));
        let prev = self.transaction.put(key, value, lease).map_err(Refused::Write)?;
        Ok(pb::PutResponse { header: None, prev_kv: prev.filter(|_| request.prev_kv).map(message) })
    }

    fn delete(&mut self, request: &pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Refused> {
        let kvs: Vec<KeyValue> = if request.range_end.is_empty() {
            self.transaction.get(&request.key).into_iter().collect()
        } else {
            self.transaction.range(&kv::keys(&request.key, &request.range_end))
        };
        for kv in &kvs {
            self.transaction.delete(&kv.key).map_err(Refused::Write)?;
        }
        let deleted = number(kvs.len() as u64);
        let prev_kvs = if request.prev_kv { kvs.into_iter().map(message).collect() } else { Vec::new() };
        Ok(pb::DeleteRangeResponse { header: None, deleted, prev_kvs })
    }
}

fn holds(compare: &pb::Compare, kv: &KeyValue) -> bool {
    use std::cmp::Ordering;
    // A target without a value is compared with nothing, or zero.
    let ordering = match (compare.target(), &compare.target_union) {
        (pb::CompareTarget::Version, Some(TargetUnion::Version(version))) => number(kv.version).cmp(version),
        (pb::CompareTarget::Create, Some(TargetUnion::CreateRevision(revision))) => {
            number(kv.create_revision).cmp(revision)
        }
        (pb::CompareTarget::Mod, Some(TargetUnion::ModRevision(revision))) => number(kv.mod_revision).cmp(revision),
        (pb::CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.value.cmp(value),
        (pb::CompareTarget::Lease, Some(TargetUnion::Lease(lease))) => kv.lease.cmp(lease),
        (pb::CompareTarget::Version, _) => kv.version.cmp(&0),
        (pb::CompareTarget::Create, _) => kv.create_revision.cmp(&0),
        (pb::CompareTarget::Mod, _) => kv.mod_revision.cmp(&0),
        (pb::CompareTarget::Value, _) => kv.value.cmp(&Bytes::new()),
        (pb::CompareTarget::Lease, _) => kv.lease.cmp(&0),
    };
    match compare.result() {
        pb::CompareResult::Equal => ordering == Ordering::Equal,
        pb::CompareResult::NotEqual => ordering != Ordering::Equal,
        pb::CompareResult::Greater => ordering == Ordering::Greater,
        pb::CompareResult::Less => ordering == Ordering::Less,
    }
}
