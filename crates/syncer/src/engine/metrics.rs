//! What the syncer did, per type, in Prometheus's text format.

use std::fmt::Write;
use std::sync::Arc;
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

    fn counters(&self) -> [(&'static str, &'static str, &AtomicU64); 8] {
        [
            ("reconciles_total", "Objects looked at.", &self.reconciles),
            ("errors_total", "Looks that failed and were tried again.", &self.errors),
            ("name_clashes_total", "Host names that were somebody else's.", &self.clashes),
            ("strays_total", "Host objects found without their virtual one.", &self.strays),
            ("host_creates_total", "Creations sent to the host.", &self.host_creates),
            ("host_patches_total", "Changes sent to the host.", &self.host_patches),
            ("host_deletes_total", "Deletions sent to the host.", &self.host_deletes),
            ("virtual_writes_total", "Writes sent to the virtual cluster.", &self.virtual_writes),
        ]
    }
}

/// What works beside the types, with its queue.
pub struct Measured {
    pub name: &'static str,
    pub metrics: Arc<TypeMetrics>,
    pub depth: Box<dyn Fn() -> usize + Send + Sync>,
}

/// The metrics of all types, each with the depth of its queue.
pub fn render(types: &[(&str, &TypeMetrics, usize)]) -> String {
    let mut out = String::new();
    let get = |v: &AtomicU64| v.load(Ordering::Relaxed);
    for n in 0..TypeMetrics::default().counters().len() {
        for (at, (name, metrics, _)) in types.iter().enumerate() {
            let (metric, help, value) = metrics.counters()[n];
            if at == 0 {
                let _ = writeln!(out, "# HELP alcove_syncer_{metric} {help}\n# TYPE alcove_syncer_{metric} counter");
            }
            let _ = writeln!(out, "alcove_syncer_{metric}{{type=\"{name}\"}} {}", get(value));
        }
    }
    let _ =
        writeln!(out, "# HELP alcove_syncer_queue_depth Objects that wait.\n# TYPE alcove_syncer_queue_depth gauge");
    for (name, _, depth) in types {
        let _ = writeln!(out, "alcove_syncer_queue_depth{{type=\"{name}\"}} {depth}");
    }
    let metric = "alcove_syncer_reconcile_seconds";
    let _ = writeln!(out, "# HELP {metric} How long a look took.\n# TYPE {metric} histogram");
    for (name, metrics, _) in types {
        // Read first: what is counted meanwhile may be in a bucket and not in the sum, but never the other way.
        let (count, sum) = (get(&metrics.reconciles), get(&metrics.micros) as f64 / 1e6);
        for (bound, bucket) in BUCKETS_MS.iter().zip(&metrics.buckets) {
            let le = *bound as f64 / 1000.0;
            let _ = writeln!(out, "{metric}_bucket{{type=\"{name}\",le=\"{le}\"}} {}", get(bucket).min(count));
        }
        let _ = writeln!(out, "{metric}_bucket{{type=\"{name}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{metric}_sum{{type=\"{name}\"}} {sum}\n{metric}_count{{type=\"{name}\"}} {count}");
    }
    out
}
