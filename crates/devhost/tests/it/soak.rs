//! A short soak; `bench soak` runs the long one.

use std::time::Duration;

use devhost::soak::{Options, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_end_exactly_though_controllers_restart() {
    let options = Options {
        seed: 20261121,
        workloads: 9,
        pods: 45,
        duration: Duration::from_secs(3),
        pause: Duration::from_millis(20),
        changes_per_restart: 25,
        patience: Duration::from_secs(120),
    };
    let outcome =
        run(options.clone()).await.unwrap_or_else(|e| panic!("{options:?}: {e}: {:?}", std::error::Error::source(&e)));
    assert_eq!(outcome.pods, 45);
    assert!(outcome.restarts >= 1 && outcome.changes > 0, "{outcome:?}");
}
