//! Reads, writes and transactions.

use bytes::Bytes;
use etcd::Code;
use etcd::proto as pb;
use etcd::proto::compare::TargetUnion;
use etcd::proto::request_op::Request;
use etcd::proto::response_op::Response;

use crate::{Place, op, revision, text};

pub async fn a_put_counts_revisions_and_versions(place: &Place) {
    let first = place.put("a", "1").await;
    assert_eq!(place.put("b", "1").await, first + 1);
    let request = pb::PutRequest { prev_kv: true, ..place.put_request("a", "2") };
    let answer = place.client.put(request).await.expect("a put");
    let prev = answer.prev_kv.expect("asked for");
    assert_eq!((prev.mod_revision, prev.version, text(&prev.value)), (first, 1, "1".to_string()));
    let answer = place.range(|request| request.range_end.clear_key(place.key("a"), &mut request.key)).await;
    let kv = &answer.expect("a read").kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, first + 2, 2));
    let request = pb::PutRequest { ignore_value: true, lease: 0, ..place.put_request("a", "") };
    place.client.put(request).await.expect("a put that keeps the value");
    let answer = place.range(|_| {}).await.expect("a read");
    assert_eq!((text(&answer.kvs[0].value), answer.kvs[0].version), ("2".to_string(), 3));
    assert_eq!(place.delete("a").await, first + 4);
    assert_eq!(place.put("a", "3").await, first + 5);
    let kv = &place.range(|_| {}).await.expect("a read").kvs[0];
    assert_eq!((kv.create_revision, kv.version), (first + 5, 1), "a new life");
    let request = pb::DeleteRangeRequest { key: place.key("absent"), ..pb::DeleteRangeRequest::default() };
    let answer = place.client.delete_range(request).await.expect("nothing to do");
    assert_eq!((answer.deleted, revision(&answer.header)), (0, first + 5), "a delete of nothing is no revision");
}

/// Makes a range of one key.
trait OneKey {
    fn clear_key(&mut self, own: Bytes, key: &mut Bytes);
}

impl OneKey for Bytes {
    fn clear_key(&mut self, own: Bytes, key: &mut Bytes) {
        *key = own;
        self.clear();
    }
}

pub async fn a_range_has_limits_orders_and_filters(place: &Place) {
    let first = place.put("a", "3").await;
    for (name, value) in [("c", "1"), ("b", "2"), ("a", "4"), ("d", "0")] {
        place.put(name, value).await;
    }
    use pb::SortOrder::{Ascend, Descend, None as Unsorted};
    use pb::SortTarget::{Create, Key, Mod, Value, Version};
    let table = [
        (Unsorted, Key, 0, vec!["a", "b", "c", "d"], false),
        (Unsorted, Key, 2, vec!["a", "b"], true),
        (Unsorted, Key, 4, vec!["a", "b", "c", "d"], false),
        (Descend, Key, 3, vec!["d", "c", "b"], true),
        (Ascend, Mod, 0, vec!["c", "b", "a", "d"], false),
        (Descend, Mod, 1, vec!["d"], true),
        (Ascend, Create, 0, vec!["a", "c", "b", "d"], false),
        (Descend, Value, 2, vec!["a", "b"], true),
        (Descend, Version, 1, vec!["a"], true),
        (Unsorted, Value, 2, vec!["c", "b"], true),
    ];
    for (order, target, limit, names, more) in table {
        let answer = place
            .range(|request| {
                request.sort_order = order as i32;
                request.sort_target = target as i32;
                request.limit = limit;
            })
            .await
            .expect("a read");
        let shown = format!("{order:?} {target:?} {limit}");
        assert_eq!((place.names(&answer.kvs), answer.more, answer.count), (strings(&names), more, 4), "{shown}");
    }
    let filters: [(fn(&mut pb::RangeRequest, i64), &[&str]); 4] = [
        (|request, first| request.min_mod_revision = first + 3, &["a", "d"]),
        (|request, first| request.max_mod_revision = first + 2, &["b", "c"]),
        (|request, first| request.min_create_revision = first + 2, &["b", "d"]),
        (|request, first| request.max_create_revision = first + 1, &["a", "c"]),
    ];
    for (change, names) in filters {
        let answer = place.range(|request| change(request, first)).await.expect("a read");
        assert_eq!(place.names(&answer.kvs), strings(names));
    }
    let answer = place.range(|request| request.count_only = true).await.expect("a read");
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 4, false));
    let answer = place.range(|request| request.keys_only = true).await.expect("a read");
    assert!(answer.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0) && answer.kvs.len() == 4);
    let answer = place.range(|request| request.serializable = true).await.expect("a read");
    assert_eq!((answer.count, revision(&answer.header)), (4, first + 4));
    let answer = place.range(|request| (request.key, request.range_end) = (place.key("c"), place.key("d"))).await;
    assert_eq!(place.names(&answer.expect("a read").kvs), ["c"], "the end does not belong to the range");
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

pub async fn the_past_can_be_read_until_it_is_compacted(place: &Place) {
    let first = place.put("a", "1").await;
    place.put("a", "2").await;
    place.put("b", "1").await;
    let last = place.delete("a").await;
    let past = |revision: i64| place.range(move |request| request.revision = revision);
    let answer = past(first).await.expect("the past");
    assert_eq!((text(&answer.kvs[0].value), answer.count, revision(&answer.header)), ("1".to_string(), 1, last));
    assert_eq!(past(first + 2).await.expect("the past").count, 2);
    let refused = past(last + 10).await.expect_err("the future");
    assert_eq!((refused.code(), refused.message()), future());
    let compact = |revision: i64| place.client.compact(pb::CompactionRequest { revision, physical: true });
    let answer = compact(first + 1).await.expect("compacted");
    assert_eq!(revision(&answer.header), last);
    let refused = past(first).await.expect_err("compacted");
    assert_eq!((refused.code(), refused.message()), compacted());
    assert_eq!(text(&past(first + 1).await.expect("still there").kvs[0].value), "2");
    for again in [first, first + 1] {
        let refused = compact(again).await.expect_err("compacted already");
        assert_eq!((refused.code(), refused.message()), compacted());
    }
    let refused = compact(last + 10).await.expect_err("the future");
    assert_eq!((refused.code(), refused.message()), future());
}

fn compacted() -> (Code, &'static str) {
    (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
}

fn future() -> (Code, &'static str) {
    (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
}

pub async fn wrong_requests_have_etcds_errors(place: &Place) {
    let invalid = |message: &'static str| (Code::InvalidArgument, message);
    let empty = invalid("etcdserver: key is not provided");
    let put = pb::PutRequest { key: Bytes::new(), ..place.put_request("", "v") };
    let refused = place.client.put(put.clone()).await.expect_err("no key");
    assert_eq!((refused.code(), refused.message()), empty);
    let refused = place.range(|request| request.key = Bytes::new()).await.expect_err("no key");
    assert_eq!((refused.code(), refused.message()), empty);
    let refused = place.client.delete_range(pb::DeleteRangeRequest::default()).await.expect_err("no key");
    assert_eq!((refused.code(), refused.message()), empty);
    let refused = transaction(place, vec![], vec![op(Request::RequestPut(put))]).await.expect_err("no key");
    assert_eq!((refused.code(), refused.message()), empty);
    let table = [
        (pb::PutRequest { ignore_value: true, ..place.put_request("a", "v") }, "etcdserver: value is provided"),
        (
            pb::PutRequest { ignore_lease: true, lease: 9, ..place.put_request("a", "v") },
            "etcdserver: lease is provided",
        ),
        (pb::PutRequest { ignore_value: true, ..place.put_request("absent", "") }, "etcdserver: key not found"),
        (pb::PutRequest { ignore_lease: true, ..place.put_request("absent", "v") }, "etcdserver: key not found"),
    ];
    for (request, message) in table {
        let refused = place.client.put(request).await.expect_err(message);
        assert_eq!((refused.code(), refused.message()), invalid(message));
    }
    let request = pb::PutRequest { lease: 4711, ..place.put_request("a", "v") };
    let refused = place.client.put(request).await.expect_err("no such lease");
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let many = (0..129).map(|number| put_op(place, &number.to_string(), "v")).collect();
    let refused = transaction(place, vec![], many).await.expect_err("too many");
    assert_eq!((refused.code(), refused.message()), invalid("etcdserver: too many operations in txn request"));
    assert_eq!(place.range(|_| {}).await.expect("a read").count, 0, "nothing was written");
}

pub async fn a_delete_of_a_range_is_one_revision(place: &Place) {
    for name in ["a", "b", "c"] {
        place.put(name, name).await;
    }
    let before = place.put("d", "d").await;
    let request = pb::DeleteRangeRequest { key: place.key("b"), range_end: place.key("d"), prev_kv: true };
    let answer = place.client.delete_range(request).await.expect("a delete");
    assert_eq!((answer.deleted, revision(&answer.header)), (2, before + 1));
    assert_eq!(place.names(&answer.prev_kvs), ["b", "c"]);
    assert_eq!(place.names(&place.range(|_| {}).await.expect("a read").kvs), ["a", "d"]);
}

fn put_op(place: &Place, name: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(place.put_request(name, value)))
}

fn compare(place: &Place, name: &str, result: pb::CompareResult, target: TargetUnion) -> pb::Compare {
    let kind = match target {
        TargetUnion::Version(_) => pb::CompareTarget::Version,
        TargetUnion::CreateRevision(_) => pb::CompareTarget::Create,
        TargetUnion::ModRevision(_) => pb::CompareTarget::Mod,
        TargetUnion::Value(_) => pb::CompareTarget::Value,
        TargetUnion::Lease(_) => pb::CompareTarget::Lease,
    };
    pb::Compare {
        result: result as i32,
        target: kind as i32,
        key: place.key(name),
        target_union: Some(target),
        range_end: Bytes::new(),
    }
}

async fn transaction(
    place: &Place,
    compare: Vec<pb::Compare>,
    success: Vec<pb::RequestOp>,
) -> Result<pb::TxnResponse, etcd::Status> {
    place.client.txn(pb::TxnRequest { compare, success, failure: Vec::new() }).await
}

pub async fn a_transaction_compares_and_takes_one_branch(place: &Place) {
    use TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
    use pb::CompareResult::{Equal, Greater, Less, NotEqual};
    let created = place.put("a", "m").await;
    let changed = place.put("a", "m").await;
    let value = |text: &'static str| Value(Bytes::from_static(text.as_bytes()));
    let table = [
        ("a", Equal, Version(2), true),
        ("a", Greater, Version(2), false),
        ("a", Less, Version(3), true),
        ("a", NotEqual, Version(2), false),
        ("a", Equal, CreateRevision(created), true),
        ("a", Equal, ModRevision(changed), true),
        ("a", Less, ModRevision(changed), false),
        ("a", Equal, value("m"), true),
        ("a", Greater, value("l"), true),
        ("a", Less, value("l"), false),
        ("a", Equal, Lease(0), true),
        ("absent", Equal, Version(0), true),
        ("absent", Equal, CreateRevision(0), true),
        ("absent", Equal, ModRevision(0), true),
        ("absent", Greater, ModRevision(0), false),
        ("absent", Equal, value(""), false),
        ("absent", NotEqual, value("x"), false),
    ];
    for (name, result, target, expected) in table {
        let shown = format!("{name} {result:?} {target:?}");
        let answer = transaction(place, vec![compare(place, name, result, target)], vec![]).await.expect("a txn");
        assert_eq!((answer.succeeded, revision(&answer.header)), (expected, changed), "{shown}");
    }
    // Every key of a range has to hold.
    place.put("b", "z").await;
    for (least, expected) in [("l", true), ("n", false)] {
        let (key, range_end) = place.all();
        let every = pb::Compare { key, range_end, ..compare(place, "", Greater, value(least)) };
        let answer = transaction(place, vec![every], vec![]).await.expect("a txn");
        assert_eq!(answer.succeeded, expected, "all greater than {least}");
    }
    let wanted = |revision: i64| vec![compare(place, "a", Equal, ModRevision(revision))];
    for (revision_wanted, expected) in [(changed, "then"), (changed, "else")] {
        let request = pb::TxnRequest {
            compare: wanted(revision_wanted),
            success: vec![put_op(place, "a", "then")],
            failure: vec![put_op(place, "c", "else"), op(Request::RequestRange(place.range_request()))],
        };
        let answer = place.client.txn(request).await.expect("a txn");
        assert_eq!(answer.succeeded, expected == "then");
        assert_eq!(answer.responses.len(), if expected == "then" { 1 } else { 2 });
    }
    let kvs = place.range(|_| {}).await.expect("a read").kvs;
    let values: Vec<String> = kvs.iter().map(|kv| text(&kv.value)).collect();
    assert_eq!((place.names(&kvs), values), (strings(&["a", "b", "c"]), strings(&["then", "z", "else"])));
}

fn inner_revisions(answer: &pb::TxnResponse) -> Vec<i64> {
    let of = |op: &pb::ResponseOp| match &op.response {
        Some(Response::ResponseRange(range)) => revision(&range.header),
        Some(Response::ResponsePut(put)) => revision(&put.header),
        Some(Response::ResponseDeleteRange(deleted)) => revision(&deleted.header),
        Some(Response::ResponseTxn(_)) | None => -1,
    };
    answer.responses.iter().map(of).collect()
}

pub async fn a_transaction_is_one_revision_and_sees_itself(place: &Place) {
    let before = place.put("a", "1").await;
    let (key, range_end) = (place.key("x"), place.key("y"));
    let ops = vec![
        put_op(place, "b", "2"),
        op(Request::RequestRange(place.range_request())),
        op(Request::RequestPut(pb::PutRequest { prev_kv: true, ..place.put_request("a", "3") })),
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: true })),
        op(Request::RequestRange(pb::RangeRequest { revision: before, ..place.range_request() })),
        put_op(place, "c", "4"),
    ];
    let answer = transaction(place, vec![], ops).await.expect("a txn");
    assert_eq!((answer.succeeded, revision(&answer.header), answer.responses.len()), (true, before + 1, 6));
    assert_eq!(inner_revisions(&answer), [before + 1; 6], "every answer says of which revision it is");
    let Some(Response::ResponseRange(seen)) = &answer.responses[1].response else { panic!("a range") };
    assert_eq!(place.names(&seen.kvs), ["a", "b"], "its own write is seen");
    let Some(Response::ResponsePut(put)) = &answer.responses[2].response else { panic!("a put") };
    assert_eq!(put.prev_kv.as_ref().map(|kv| kv.mod_revision), Some(before));
    let Some(Response::ResponseDeleteRange(gone)) = &answer.responses[3].response else { panic!("a delete") };
    assert_eq!(gone.deleted, 0);
    let Some(Response::ResponseRange(past)) = &answer.responses[4].response else { panic!("a range") };
    assert_eq!(place.names(&past.kvs), ["a"]);
    let kvs = place.range(|_| {}).await.expect("a read").kvs;
    let revisions: Vec<(i64, i64)> = kvs.iter().map(|kv| (kv.create_revision, kv.mod_revision)).collect();
    assert_eq!(revisions, [(before, before + 1), (before + 1, before + 1), (before + 1, before + 1)]);
    let answer = transaction(place, vec![], vec![op(Request::RequestRange(place.range_request()))]).await;
    let answer = answer.expect("a txn");
    assert_eq!(revision(&answer.header), before + 1, "reading is no revision");
    assert_eq!(inner_revisions(&answer), [before + 1]);
    let read = || op(Request::RequestRange(place.range_request()));
    let answer = transaction(place, vec![], vec![read(), put_op(place, "a", "5"), read()]).await.expect("a txn");
    assert_eq!(inner_revisions(&answer), [before + 1, before + 2, before + 2], "before and after the first write");
}

pub async fn transactions_are_nested_and_never_write_a_key_twice(place: &Place) {
    let before = place.put("a", "1").await;
    let inner = pb::TxnRequest {
        compare: vec![compare(place, "b", pb::CompareResult::Equal, TargetUnion::Value(Bytes::from_static(b"2")))],
        success: vec![put_op(place, "c", "then")],
        failure: vec![put_op(place, "c", "else")],
    };
    let ops = vec![put_op(place, "b", "2"), op(Request::RequestTxn(inner.clone()))];
    let answer = transaction(place, vec![], ops).await.expect("a txn");
    assert_eq!(revision(&answer.header), before + 1);
    let Some(Response::ResponseTxn(nested)) = &answer.responses[1].response else { panic!("a txn") };
    assert!(!nested.succeeded, "conditions are about the state before");
    let kvs = place.range(|_| {}).await.expect("a read").kvs;
    assert_eq!(text(&kvs[2].value), "else");
    let (key, range_end) = place.all();
    let delete = op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false }));
    let twice = [
        vec![put_op(place, "d", "1"), put_op(place, "d", "2")],
        vec![put_op(place, "c", "1"), op(Request::RequestTxn(inner))],
        vec![delete, put_op(place, "d", "1")],
    ];
    for ops in twice {
        let refused = transaction(place, vec![], ops).await.expect_err("a key twice");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
        );
    }
    let answer = place.range(|_| {}).await.expect("a read");
    assert_eq!((answer.count, revision(&answer.header)), (3, before + 1), "nothing of them was written");
}

pub async fn concurrent_transactions_lose_nothing(place: &Place) {
    place.put("counter", "0").await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = place.client.clone();
        let key = place.key("counter");
        writers.spawn(async move {
            for _ in 0..10 {
                loop {
                    let read = pb::RangeRequest { key: key.clone(), ..pb::RangeRequest::default() };
                    let kv = client.range(read).await.expect("a read").kvs.remove(0);
                    let next: u64 = text(&kv.value).parse().expect("a number");
                    let value = Bytes::from((next + 1).to_string());
                    let unchanged = pb::Compare {
                        result: pb::CompareResult::Equal as i32,
                        target: pb::CompareTarget::Mod as i32,
                        key: key.clone(),
                        target_union: Some(TargetUnion::ModRevision(kv.mod_revision)),
                        range_end: Bytes::new(),
                    };
                    let put = pb::PutRequest { key: key.clone(), value, ..pb::PutRequest::default() };
                    let request = pb::TxnRequest {
                        compare: vec![unchanged],
                        success: vec![op(Request::RequestPut(put))],
                        failure: Vec::new(),
                    };
                    if client.txn(request).await.expect("a txn").succeeded {
                        break;
                    }
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("the writer does not panic");
    }
    assert_eq!(text(&place.range(|_| {}).await.expect("a read").kvs[0].value), "40");
}

pub async fn the_server_tells_about_itself(place: &Place) {
    let newest = place.put("a", "1").await;
    let status = place.client.status(pb::StatusRequest {}).await.expect("a status");
    let header = status.header.expect("a header");
    assert!(status.version.starts_with("3."), "{}", status.version);
    assert!(status.leader != 0 && header.member_id != 0 && header.cluster_id != 0);
    assert_eq!(header.revision, newest);
    assert!(status.db_size > 0);
    let members = place.client.member_list(pb::MemberListRequest::default()).await.expect("members").members;
    assert_eq!((members.len(), members[0].id), (1, header.member_id));
    let alarms = place.client.alarm(pb::AlarmRequest::default()).await.expect("alarms").alarms;
    assert_eq!(alarms, []);
    let hash = |revision: i64| place.client.hash_kv(pb::HashKvRequest { revision });
    let (one, again) = (hash(0).await.expect("a hash").hash, hash(0).await.expect("a hash").hash);
    assert_eq!(one, again);
    place.put("a", "2").await;
    assert_ne!(hash(0).await.expect("a hash").hash, one);
    place.client.defragment(pb::DefragmentRequest {}).await.expect("defragmented");
}
