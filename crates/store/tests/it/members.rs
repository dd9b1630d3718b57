//! An etcd of three members that are killed and frozen one after the other. Where etcd is not installed the test says that it is
//! skipped.

use std::time::{Duration, Instant};

use bytes::Bytes;
use store::contract::events_through;
use store::servers::{Server, StartError};
use store::{Endpoint, Expect, Op, Options, Revision, Store, TlsFiles, WriteError, prefix_end};

async fn put(store: &Store, number: usize) -> Result<Revision, WriteError> {
    let op = Op::Put { value: Bytes::from(number.to_string()), lease: 0 };
    let key = Bytes::from(format!("/k/{}", number % 7));
    store.txn(key, Expect::Any, op).await.map(|committed| committed.revision)
}

/// Writes until ten in a row have succeeded, whichever member each of them went to; returns the newest revision.
async fn works_again(store: &Store, what: &str) -> Revision {
    let until = Instant::now() + Duration::from_secs(60);
    let (mut row, mut newest, mut number) = (0, 0, 0);
    while row < 10 {
        number += 1;
        match put(store, number).await {
            Ok(revision) => (row, newest) = (row + 1, revision),
            Err(WriteError::Unavailable { why }) => {
                assert!(Instant::now() < until, "{what}: {why}");
                row = 0;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    newest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_member_of_etcd_may_be_lost_in_turn() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut members = match Server::start_etcd_members(folder.path(), 3) {
        Ok(members) => members,
        Err(StartError::NotInstalled(what)) => return println!("skipped: {what} is not installed"),
        Err(error) => panic!("{error}"),
    };
    let urls: Vec<String> = members.iter().map(|member| member.url("")).collect();
    let endpoint = Endpoint::parse(&urls.join(",")).expect("addresses");
    let options = || Options { compaction_interval: None, answer_max: Duration::from_secs(3), ..Options::default() };
    let tls = TlsFiles::default();
    let one = endpoint.open(&tls, options()).await.expect("the store opens");
    let other = endpoint.open(&tls, options()).await.expect("the store opens");
    let start = works_again(&one, "at the start").await;
    let mut watcher = other.watch(Bytes::from_static(b"/"), prefix_end(b"/"), start, true).await.expect("begins");
    for member in 0..members.len() {
        members[member].kill();
        works_again(&one, &format!("member {member} killed")).await;
        members[member].restart().expect("it starts again");
        works_again(&one, &format!("member {member} there again")).await;
        members[member].freeze();
        works_again(&one, &format!("member {member} frozen")).await;
        members[member].thaw();
        works_again(&one, &format!("member {member} awake")).await;
    }
    let end = works_again(&one, "in the end").await;
    let watching = tokio::time::timeout(Duration::from_secs(60), events_through(&mut watcher, end)).await;
    let events = watching.expect("the other replica has followed");
    let revisions: Vec<Revision> = events.iter().map(|event| event.revision()).collect();
    assert_eq!(revisions, (start + 1..=end).collect::<Vec<_>>(), "no gap and nothing twice");
    // More than half of them away: refused in time, and said.
    members[0].kill();
    members[1].kill();
    let began = Instant::now();
    assert!(matches!(put(&one, 0).await, Err(WriteError::Unavailable { .. })));
    assert!(one.synchronize().await.is_err(), "nobody knows the newest state");
    assert!(began.elapsed() < Duration::from_secs(15), "the refusals took {:?}", began.elapsed());
    assert!(one.get(b"/k/1", 0).await.expect("from memory").is_some());
    one.close().await;
    other.close().await;
}
