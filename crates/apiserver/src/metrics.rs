//! Request counters and durations in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// The upper bounds of the duration histogram, in seconds. Source: `endpoints/metrics.requestLatencies`, thinned out.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

/// Metrics of another part of the program, shown at `/metrics` together with the server's and alone at `/metrics/NAME`.
pub trait MetricsSource: Send + Sync {
    /// Such as `syncer`.
    fn name(&self) -> &str;
    /// Appends lines in Prometheus's text format.
    fn render(&self, out: &mut String);
}

/// The metrics of one server.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
}

impl Metrics {
    pub fn record(&self, verb: &str, info: &crate::request_info::RequestInfo, known: bool, code: u16, took: Duration) {
        // Unknown names come from clients: they must not make new series.
        let text = |s: &str| if known { s.to_owned() } else { String::new() };
        let labels = Labels {
            verb: verb.to_ascii_uppercase(),
            group: text(&info.group),
            version: text(&info.version),
            resource: text(&info.resource),
            subresource: text(&info.subresource),
        };
        let mut requests = self.requests.lock();
        let series = requests.entry(labels).or_default();
        *series.by_code.entry(code).or_default() += 1;
        if verb != "watch" {
            let seconds = took.as_secs_f64();
            series.count += 1;
            series.sum += seconds;
            for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(seconds <= bound);
            }
        }
    }

    pub fn render(&self, objects: impl Iterator<Item = (String, usize)>) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let requests = self.requests.lock();
        out.push_str("# HELP apiserver_request_total [STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.\n# TYPE apiserver_request_total counter\n");
        for (l, series) in requests.iter() {
            for (code, count) in &series.by_code {
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"\",group=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"}} {count}",
                    l.group, l.resource, l.subresource, l.verb, l.version
                );
            }
        }
        out.push_str("# HELP apiserver_request_duration_seconds [STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (l, series) in requests.iter().filter(|(_, s)| s.count > 0) {
            let labels = format!(
                "component=\"apiserver\",dry_run=\"\",group=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
                l.group, l.resource, l.subresource, l.verb, l.version
            );
            for (bucket, bound) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {bucket}");
            }
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {count}\napiserver_request_duration_seconds_sum{{{labels}}} {sum}\napiserver_request_duration_seconds_count{{{labels}}} {count}",
                count = series.count,
                sum = series.sum
            );
        }
        out.push_str("# HELP apiserver_resource_objects [ALPHA] Number of stored objects at the time of last check split by kind.\n# TYPE apiserver_resource_objects gauge\n");
        for (resource, count) in objects {
            let _ = writeln!(out, "apiserver_resource_objects{{resource=\"{resource}\"}} {count}");
        }
        out
    }
}
