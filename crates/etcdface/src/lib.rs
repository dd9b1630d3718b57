//! etcd's v3 API over any [`store::Store`]: what kube-apiserver, etcdctl and other clients of etcd ask for.
//!
//! KV with general transactions, Watch, Lease, and of Cluster and Maintenance what clients need of a single member. There are
//! no users and no members to change: those calls are refused.
//!
//! Invariants:
//! - A transaction, a delete of a range and the end of a lease are one revision each, as in etcd.
//! - Answers of one watch stream are in the order of revisions for each watch; a progress answer comes after all events up to
//!   its revision.
//!
//! Follows: etcd's API reference (versions 3.4 to 3.6) and the error texts of its `rpctypes`.

mod authority;
mod bolt;
mod errors;
mod kv;
mod lease;
mod maintenance;
mod serve;
mod snapshot;
mod txn;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use etcd::proto as pb;
use store::{KeyValue, Revision, Store};

pub use serve::Listener;

/// The version whose API this is; clients choose what they ask for by it.
pub const VERSION: &str = "3.6.5";

const CLUSTER: u64 = 0x416c_636f_7665_0001;
const MEMBER: u64 = 0x416c_636f_7665_0002;
const TERM: u64 = 2;

/// How the API is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses that the list of members shows to clients.
    pub client_urls: Vec<String>,
    /// How often a watch that asked for progress hears of it while nothing happens.
    pub progress_interval: Duration,
    /// Size of an answer above which a watch that allows it gets fragments.
    pub fragment_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            client_urls: Vec::new(),
            progress_interval: Duration::from_secs(5),
            // 1.5 MiB for a request and what etcd adds to it.
            fragment_bytes: (1 << 20) + (1 << 19) + (1 << 19),
        }
    }
}

/// The API over one store. Clones serve the same one.
#[derive(Clone)]
pub struct Face {
    store: Store,
    options: Arc<Options>,
}

impl Face {
    pub fn new(store: Store, options: Options) -> Face {
        Face { store, options: Arc::new(options) }
    }

    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { cluster_id: CLUSTER, member_id: MEMBER, revision: number(revision), raft_term: TERM })
    }

    fn header_now(&self) -> Option<pb::ResponseHeader> {
        self.header(self.store.current_revision())
    }
}

fn number(unsigned: u64) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}

fn message(kv: KeyValue) -> pb::KeyValue {
    pb::KeyValue {
        key: kv.key,
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: number(kv.version),
        value: kv.value,
        lease: kv.lease,
    }
}
