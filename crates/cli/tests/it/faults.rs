//! Faults under write load, on each kind of store: short runs of what `bench faults` does at length.

#![allow(clippy::print_stdout, reason = "skipped servers, shown when a test fails")]

use std::path::PathBuf;

use bench::faults::{Options, StoreKind, Victim, run};
use store::servers::StartError;

fn options(store: StoreKind) -> Options {
    Options {
        binary: PathBuf::from(env!("CARGO_BIN_EXE_alcove")),
        store,
        kills: 3,
        victim: Victim::ControlPlane,
        outage: 0,
        frozen: false,
        writers: 4,
        seed: None,
    }
}

/// Fails with the seed unless everything that was acknowledged is there.
async fn holds(options: Options) {
    if let Err(error) = run(options).await {
        match error.downcast_ref::<StartError>() {
            Some(StartError::NotInstalled(what)) => println!("skipped: {what} is not installed"),
            _ => panic!("{error:?}"),
        }
    }
}

/// The control plane, killed with SIGKILL.
async fn kills(store: StoreKind) {
    holds(options(store)).await;
}

/// The server of the store: killed with SIGKILL, then away for a moment.
async fn server_kills(store: StoreKind) {
    holds(Options { victim: Victim::Store, outage: 2, ..options(store) }).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_on_sqlite() {
    kills(StoreKind::Sqlite).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_on_postgres() {
    kills(StoreKind::Postgres).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_on_mariadb() {
    kills(StoreKind::Mysql).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_on_etcd() {
    kills(StoreKind::Etcd).await;
}

#[tokio::test]
async fn a_postgres_that_is_killed_and_away_is_survived() {
    server_kills(StoreKind::Postgres).await;
}

#[tokio::test]
async fn a_mariadb_that_is_killed_and_away_is_survived() {
    server_kills(StoreKind::Mysql).await;
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_away_is_survived() {
    server_kills(StoreKind::Etcd).await;
}
