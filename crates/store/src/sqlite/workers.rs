//! Threads for SQLite's blocking calls: started when there is work, gone after a while without.
//!
//! Its own threads, and not the runtime's blocking pool, because a commit must not wait behind somebody's file reads or name
//! look-ups; on demand, and shared by all stores that are given the same `Workers`, because a process may hold thousands of
//! stores of which few are busy at one time. Commits have their own lane, so that long reads of history never delay them.
//!
//! A store has at most one append, one maintenance step, one compaction, one job for idle times and a few reads under way, so
//! the queues are bounded by the number of stores.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// How long a thread waits for more work before it ends.
const LINGER: Duration = Duration::from_secs(5);

/// Threads for SQLite; clones share them.
#[derive(Clone)]
pub struct Workers {
    pub(super) write: Arc<Lane>,
    pub(super) read: Arc<Lane>,
}

impl Workers {
    /// At most so many threads at a time for commits and for reads of history.
    pub fn new(write_threads_max: usize, read_threads_max: usize) -> Self {
        Workers { write: Lane::new("store-write", write_threads_max), read: Lane::new("store-read", read_threads_max) }
    }

    /// How many threads there are now.
    pub fn threads(&self) -> usize {
        self.write.jobs.lock().threads + self.read.jobs.lock().threads
    }
}

impl Default for Workers {
    /// Enough for one busy store.
    fn default() -> Self {
        Workers::new(1, 2)
    }
}

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Lane {
    name: &'static str,
    threads_max: usize,
    linger: Duration,
    jobs: Mutex<Jobs>,
    work: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    /// What is done when there has been nothing else for a while.
    when_idle: Vec<Job>,
    threads: usize,
    idle: usize,
}

impl Lane {
    fn new(name: &'static str, threads_max: usize) -> Arc<Self> {
        Arc::new(Lane {
            name,
            threads_max: threads_max.max(1),
            linger: LINGER,
            jobs: Mutex::default(),
            work: Condvar::new(),
        })
    }

    /// Runs a blocking function. None when it panicked, or when no thread could be started.
    pub async fn run<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.submit(Box::new(move || drop(done.send(work()))));
        result.await.ok()
    }

    /// Queues a blocking function.
    pub fn submit(self: &Arc<Self>, job: Job) {
        let mut jobs = self.jobs.lock();
        jobs.queue.push_back(job);
        if jobs.idle >= jobs.queue.len() {
            self.work.notify_one();
        } else if jobs.threads < self.threads_max {
            jobs.threads += 1;
            drop(jobs);
            let lane = self.clone();
            let started = std::thread::Builder::new().name(self.name.to_string()).spawn(move || lane.work());
            if let Err(error) = started {
                let mut jobs = self.jobs.lock();
                jobs.threads -= 1;
                if jobs.threads == 0 {
                    // Nobody would ever run them; their callers hear that they were dropped.
                    jobs.queue.clear();
                }
                tracing::error!(error = &error as &dyn std::error::Error, "could not start a thread");
            }
        }
    }

    /// Queues a blocking function for the moment when there has been no work for [`LINGER`]. It is not run when there is
    /// no thread, and none is started for it.
    pub fn when_idle(&self, job: Job) {
        self.jobs.lock().when_idle.push(job);
    }

    fn work(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            while let Some(job) = jobs.queue.pop_front() {
                drop(jobs);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a database job panicked");
                }
                jobs = self.jobs.lock();
            }
            jobs.idle += 1;
            let timed_out = self.work.wait_for(&mut jobs, self.linger).timed_out();
            jobs.idle -= 1;
            if timed_out && jobs.queue.is_empty() {
                let put_off = std::mem::take(&mut jobs.when_idle);
                if !put_off.is_empty() {
                    jobs.queue.extend(put_off);
                    continue;
                }
                jobs.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_off_runs_after_the_work() {
        let lane = Lane {
            name: "test",
            threads_max: 1,
            linger: Duration::from_millis(20),
            jobs: Mutex::default(),
            work: Condvar::new(),
        };
        let lane = Arc::new(lane);
        let (done, told) = std::sync::mpsc::channel();
        let later = done.clone();
        lane.when_idle(Box::new(move || later.send("put off").unwrap()));
        for what in ["first", "second"] {
            let done = done.clone();
            lane.submit(Box::new(move || done.send(what).unwrap()));
        }
        drop(done);
        let told: Vec<_> = told.iter().collect();
        assert_eq!(told, ["first", "second", "put off"]);
    }
}
