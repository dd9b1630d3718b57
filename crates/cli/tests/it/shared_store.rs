//! Two processes of one control plane on one database server, as two pods of a StatefulSet are.

#![allow(clippy::print_stdout, reason = "skipped servers, shown when a test fails")]

use informer::Resource;
use store::servers::{Kind, Server, StartError};

use crate::serve::{PODS, World, create_pod, runs};

const LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases");

/// What one acknowledges the other reads at once; controllers and syncer run on one of them; when that one is lost with its node the
/// other goes on, and no pod is made twice.
async fn two_processes_are_one_control_plane(kind: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let database = match Server::start(kind, folder.path()) {
        Ok(database) => database,
        Err(StartError::NotInstalled(what)) => return println!("skipped: {what} is not installed"),
        Err(error) => panic!("{error}"),
    };
    let store = match kind {
        Kind::Etcd => format!("etcd: {{external: {{enabled: true, endpoint: '{}'}}}}", database.url("")),
        _ => format!("database: {{external: {{enabled: true, dataSource: '{}'}}}}", database.url("team_a")),
    };
    let world = World::new(&format!(
        "controlPlane: {{backingStore: {{{store}}}, statefulSet: {{highAvailability: {{replicas: 2}}}}}}"
    ))
    .await;
    let first = world.serve("data-0", "team-a-0").await;
    let one = world.tenant(&first).await;
    create_pod(&one, "one").await;
    let second = world.serve("data-1", "team-a-1").await;
    let two = world.tenant(&second).await;
    two.get(&PODS, "default", "one").await.expect("there, whoever is asked");
    for number in 0..10 {
        let name = format!("both-{number}");
        let (here, there) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        create_pod(here, &name).await;
        there.get(&PODS, "default", &name).await.expect("there, whoever is asked");
    }
    runs(&two, "both-9").await;
    let lease = world.rest.get(&LEASES, "vcluster-team-a", "vcluster-team-a-controller").await.unwrap();
    let holder = lease.str_at(&["spec", "holderIdentity"]).to_string();
    assert!(holder.contains("team-a-0"), "the first one leads: {holder:?}");
    first.kill();
    create_pod(&two, "two").await;
    runs(&two, "two").await;
    assert_eq!(world.host_pods().await.len(), 12, "one pod of the host for each: {:?}", world.host_pods().await);
    drop(second);
    world.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_are_one_control_plane_on_postgres() {
    two_processes_are_one_control_plane(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_are_one_control_plane_on_mariadb() {
    two_processes_are_one_control_plane(Kind::Mysql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_are_one_control_plane_on_etcd() {
    two_processes_are_one_control_plane(Kind::Etcd).await;
}
