//! What the syncer did, per type, in Prometheus's text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, in milliseconds.
const BUCKETS_MS: [u64; 10] = [1, 2, 5, 10, 25, 50, 100, 250, 1000, 5000];

/// Counters of one type.
#[derive(Debug, Default)]
pub struct TypeMetrics {
    pub reconciles: AtomicU64,
    pub errors: AtomicU64,
    /// Host names that were taken by somebody else's object.
    pub clashes: AtomicU64,
    /// Host objects that were found without their virtual one.
    pub strays: AtomicU64,
    pub host_creates: AtomicU64,
    pub host_patches: AtomicU64,
    pub host_deletes: AtomicU64,
    pub virtual_writes: AtomicU64,
    buckets: [AtomicU64; BUCKETS_MS.len()],
    micros: AtomicU64,
}

impl TypeMetrics {
    pub fn observe(&self, took: Duration) {
        self.reconciles.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        let ms = took.as_millis() as u64;
        for (bound, bucket) in BUCKETS_MS.iter().zip(&self.buckets) {
            if ms <= *bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Appends this type's lines.
    pub fn render(&self, name: &str, queue_depth: usize, out: &mut String) {
        let get = |v: &AtomicU64| v.load(Ordering::Relaxed);
        for (metric, value) in [
            ("alcove_syncer_errors_total", get(&self.errors)),
            ("alcove_syncer_name_clashes_total", get(&self.clashes)),
            ("alcove_syncer_strays_total", get(&self.strays)),
            ("alcove_syncer_host_creates_total", get(&self.host_creates)),
            ("alcove_syncer_host_patches_total", get(&self.host_patches)),
            ("alcove_syncer_host_deletes_total", get(&self.host_deletes)),
            ("alcove_syncer_virtual_writes_total", get(&self.virtual_writes)),
            ("alcove_syncer_queue_depth", queue_depth as u64),
        ] {
            let _ = writeln!(out, "{metric}{{type=\"{name}\"}} {value}");
        }
        for (bound, bucket) in BUCKETS_MS.iter().zip(&self.buckets) {
            let le = *bound as f64 / 1000.0;
            let _ =
                writeln!(out, "alcove_syncer_reconcile_seconds_bucket{{type=\"{name}\",le=\"{le}\"}} {}", get(bucket));
        }
        let count = get(&self.reconciles);
        let _ = writeln!(out, "alcove_syncer_reconcile_seconds_bucket{{type=\"{name}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "alcove_syncer_reconcile_seconds_count{{type=\"{name}\"}} {count}");
        let sum = get(&self.micros) as f64 / 1e6;
        let _ = writeln!(out, "alcove_syncer_reconcile_seconds_sum{{type=\"{name}\"}} {sum}");
    }
}
