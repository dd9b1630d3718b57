//! Leases.

use std::time::Instant;

use etcd::Code;
use etcd::proto as pb;

use crate::{DEADLINE, Place, revision};

pub async fn a_lease_takes_its_keys_with_it(place: &Place) {
    let grant = |id: i64, ttl: i64| place.client.lease_grant(pb::LeaseGrantRequest { ttl, id });
    let granted = grant(0, 600).await.expect("granted");
    assert!(granted.id != 0 && granted.ttl == 600 && granted.error.is_empty());
    let chosen = grant(31_337, 600).await.expect("granted").id;
    assert_eq!(chosen, 31_337);
    let refused = grant(chosen, 600).await.expect_err("there already");
    assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, "etcdserver: lease already exists"));
    let refused = grant(0, 9_000_000_001).await.expect_err("too long");
    assert_eq!((refused.code(), refused.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    for name in ["a", "b"] {
        let request = pb::PutRequest { lease: granted.id, ..place.put_request(name, "v") };
        place.client.put(request).await.expect("a put");
    }
    let before = place.put("c", "v").await;
    let ask = |id: i64| place.client.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: true });
    let told = ask(granted.id).await.expect("told");
    assert_eq!((told.id, told.granted_ttl), (granted.id, 600));
    assert!(told.ttl > 590 && told.ttl <= 600);
    let mut keys = told.keys;
    keys.sort();
    assert_eq!(keys, [place.key("a"), place.key("b")]);
    let leases = place.client.lease_leases(pb::LeaseLeasesRequest {}).await.expect("a list").leases;
    for id in [granted.id, chosen] {
        assert!(leases.contains(&pb::LeaseStatus { id }), "{leases:?}");
    }
    // A put without the lease takes the key from it, unless it says not to.
    place.client.put(pb::PutRequest { ignore_lease: true, ..place.put_request("b", "w") }).await.expect("a put");
    assert_eq!(place.range(|_| {}).await.expect("a read").kvs[1].lease, granted.id);
    place.put("b", "v").await;
    let revoke = |id: i64| place.client.lease_revoke(pb::LeaseRevokeRequest { id });
    let revoked = revoke(granted.id).await.expect("revoked");
    assert_eq!(revision(&revoked.header), before + 3);
    let kvs = place.range(|_| {}).await.expect("a read").kvs;
    assert_eq!(place.names(&kvs), ["b", "c"]);
    let refused = revoke(granted.id).await.expect_err("gone");
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let told = ask(granted.id).await.expect("told");
    assert_eq!((told.ttl, told.keys.len()), (-1, 0));
    revoke(chosen).await.expect("revoked");
}

pub async fn a_lease_is_kept_alive_and_runs_out(place: &Place) {
    let id = place.client.lease_grant(pb::LeaseGrantRequest { ttl: 2, id: 0 }).await.expect("granted").id;
    let granted = Instant::now();
    place.client.put(pb::PutRequest { lease: id, ..place.put_request("a", "v") }).await.expect("a put");
    let requests: Vec<_> = [id, 4711].map(|id| pb::LeaseKeepAliveRequest { id }).into();
    let mut answers = place.client.lease_keep_alive(tokio_stream::iter(requests)).await.expect("a stream");
    let mut next = async || answers.message().await.expect("an answer").expect("an answer");
    let kept = next().await;
    assert_eq!((kept.id, kept.ttl), (id, 2));
    let unknown = next().await;
    assert_eq!((unknown.id, unknown.ttl), (4711, 0), "there is no such lease");
    let mut interval = tokio::time::interval(std::time::Duration::from_millis(50));
    while place.range(|_| {}).await.expect("a read").count > 0 {
        assert!(granted.elapsed() < DEADLINE, "the lease does not run out");
        interval.tick().await;
    }
    assert!(granted.elapsed().as_millis() >= 1900, "it ran out after {:?} only", granted.elapsed());
}
