//! Several API servers on one store that is a server of its own. Where that is not installed the test says that it is skipped.

// Skipped servers, shown when a test fails.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use apiserver::{ApiServer, Config, UserInfo};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use store::servers::{Kind, Server, StartError};
use store::{Endpoint, Options, TlsFiles};

use crate::{config_map, config_maps};

struct Replica {
    server: ApiServer,
    store: store::Store,
    config_maps: Api<DynamicObject>,
}

async fn replica(url: &str) -> Replica {
    replica_with(url, Options::default()).await
}

async fn replica_with(url: &str, options: Options) -> Replica {
    let endpoint = Endpoint::parse(url).expect("an address");
    let store = endpoint.open(&TlsFiles::default(), options).await.expect("the store opens");
    let server = ApiServer::start(Config::default(), store.clone()).await.expect("the server starts");
    let config_maps = config_maps(server.kube_client(UserInfo::admin()));
    Replica { server, store, config_maps }
}

fn server(kind: Kind, folder: &std::path::Path) -> Option<Server> {
    match Server::start(kind, folder) {
        Ok(server) => Some(server),
        Err(StartError::NotInstalled(what)) => {
            println!("skipped: {what} is not installed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What one replica has acknowledged every other one answers with, at once: objects, lists, patches and deletions.
async fn a_write_is_read_on_another_replica(kind: Kind) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(database) = server(kind, folder.path()) else { return };
    let replicas = [replica(&database.url("replicas")).await, replica(&database.url("replicas")).await];
    let name_of = |number: usize| format!("m{number}");
    for number in 0..60 {
        let (one, other) = (&replicas[number % 2].config_maps, &replicas[(number + 1) % 2].config_maps);
        let name = name_of(number);
        let created = one.create(&PostParams::default(), &config_map(&name, "1")).await.expect("created");
        match number % 4 {
            0 => assert_eq!(other.get(&name).await.expect("found at once"), created),
            1 => {
                let list = other.list(&ListParams::default()).await.expect("listed");
                let found = list.items.iter().find(|item| item.metadata.name.as_deref() == Some(name.as_str()));
                assert_eq!(
                    found.map(|found| &found.metadata.uid),
                    Some(&created.metadata.uid),
                    "{name} is in the list"
                );
            }
            2 => {
                let patch = serde_json::json!({"data": {"k": "2"}});
                other.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched at once");
                let seen = one.get(&name).await.expect("there");
                assert_eq!(seen.data["data"]["k"], "2", "the first replica reads what the second has changed");
            }
            _ => {
                other.delete(&name, &DeleteParams::default()).await.expect("deleted at once");
                assert!(one.get_opt(&name).await.expect("an answer").is_none(), "{name} is gone everywhere");
            }
        }
    }
    for replica in replicas {
        replica.server.shutdown().await;
        replica.store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_on_another_replica_on_postgres() {
    a_write_is_read_on_another_replica(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_on_another_replica_on_mariadb() {
    a_write_is_read_on_another_replica(Kind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_on_another_replica_on_etcd() {
    a_write_is_read_on_another_replica(Kind::Etcd).await;
}

/// A store that is frozen: what has to be current is refused within a bounded time, with a word when to try again; what may be
/// old is answered; and everything works again by itself.
async fn a_frozen_store_is_said_and_survived(kind: Kind) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(database) = server(kind, folder.path()) else { return };
    let options = Options { answer_max: Duration::from_secs(2), ..Options::default() };
    let replica = replica_with(&database.url("frozen"), options).await;
    let api = &replica.config_maps;
    api.create(&PostParams::default(), &config_map("a", "1")).await.expect("created");
    let (post, fresh, any_age) = (PostParams::default(), config_map("b", "1"), ListParams::default().match_any());
    database.freeze();
    let health = async |path: &str| {
        let request = http::Request::get(path).body(Vec::new()).expect("a request");
        replica.server.kube_client(UserInfo::admin()).request_text(request).await
    };
    let began = Instant::now();
    let (got, created, old, ready, alive) =
        tokio::join!(api.get("a"), api.create(&post, &fresh), api.list(&any_age), health("/readyz"), health("/livez"));
    assert!(ready.is_err(), "not ready without its store: {ready:?}");
    assert_eq!(alive.expect("alive all the same"), "ok");
    let took = began.elapsed();
    assert_eq!(old.expect("a list of any age needs no store").items.len(), 1);
    for refused in [got.map(drop), created.map(drop)] {
        let Err(kube::Error::Api(status)) = refused else { panic!("this must be refused: {refused:?}") };
        assert_eq!((status.code, status.reason.as_str()), (503, "ServiceUnavailable"), "{status:?}");
        assert!(status.details.is_some_and(|details| details.retry_after_seconds > 0));
    }
    assert!(took < Duration::from_secs(8), "the refusal took {took:?}");
    database.thaw();
    let until = Instant::now() + Duration::from_secs(30);
    while api.create(&PostParams::default(), &config_map("c", "1")).await.is_err() {
        assert!(Instant::now() < until, "the store is there again and nothing can be written");
    }
    assert_eq!(api.get("a").await.expect("readable").data["data"]["k"], "1");
    assert_eq!(health("/readyz").await.expect("ready again"), "ok");
    replica.server.shutdown().await;
    replica.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_store_is_said_and_survived_on_postgres() {
    a_frozen_store_is_said_and_survived(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_store_is_said_and_survived_on_mariadb() {
    a_frozen_store_is_said_and_survived(Kind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_store_is_said_and_survived_on_etcd() {
    a_frozen_store_is_said_and_survived(Kind::Etcd).await;
}
