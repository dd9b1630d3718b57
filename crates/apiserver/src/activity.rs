//! How busy the network side of a server is: requests under way, and when the last one ended.
//!
//! Requests made in process do not count, neither do probes and scrapes: they come whether or not somebody uses the cluster.
//! A watch and a connection into a pod count as long as they last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The counters of one server.
#[derive(Debug)]
pub struct Activity {
    open: AtomicUsize,
    last: Mutex<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Activity { open: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }
}

impl Activity {
    /// A request has come; it is under way until all clones of the answer are dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.open.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::new(Guard(self.clone())))
    }

    /// Requests under way.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// How long nobody has asked for anything; nothing while somebody does.
    pub fn idle_for(&self) -> Option<Duration> {
        let last = *self.last.lock();
        (self.open() == 0).then(|| last.elapsed())
    }
}

/// Does the path belong to a probe or a scrape?
pub(crate) fn is_probe(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz", "/metrics"]
        .iter()
        .any(|probe| path.strip_prefix(probe).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// A request under way. Travels in the extensions of the request, so that what outlives its answer can keep it.
#[derive(Clone, Debug)]
pub struct InFlight(#[allow(dead_code)] Arc<Guard>);

#[derive(Debug)]
struct Guard(Arc<Activity>);

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.last.lock() = Instant::now();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_its_last_clone_is_gone() {
        let activity = Arc::new(Activity::default());
        assert!(activity.idle_for().is_some());
        let first = activity.enter();
        let clone = first.clone();
        drop(first);
        assert_eq!((activity.open(), activity.idle_for()), (1, None));
        drop(clone);
        assert_eq!(activity.open(), 0);
        assert!(activity.idle_for().is_some());
    }

    #[test]
    fn probes_do_not_count() {
        for (path, want) in
            [("/readyz", true), ("/livez/etcd", true), ("/metrics", true), ("/metrics2", false), ("/api", false)]
        {
            assert_eq!(is_probe(path), want, "{path}");
        }
    }
}
