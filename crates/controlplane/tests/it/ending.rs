//! A control plane that was stopped is gone.

use std::sync::Arc;

use controlplane::dns::DnsPlace;
use store::Store;

use crate::replicas::{World, admin, eventually, runs};

/// A hub puts clusters to sleep and wakes them all day: something that held the API server of a stopped one would hold all
/// its objects.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_holds_what_a_stopped_cluster_had_in_memory() {
    let world = World::new("").await;
    let store = Store::in_memory(store::Options::default()).await;
    let (cluster, _wire) = world.start_with_dns(&store, "team-a-0", false, Some(DnsPlace::loopback())).await;
    let tenant = admin(&cluster);
    runs(&tenant, "one").await;
    let server = Arc::downgrade(cluster.api_server().inner());
    drop(tenant);
    cluster.stop().await;
    // Connections and in-process clients let go on tasks of their own.
    eventually("the end of the API server", async || (server.strong_count() == 0).then_some(())).await;
}
