//! Samples, percentiles and what a process has used.

use std::time::Duration;

use anyhow::Context;

/// One row of the result: what was measured and how long it took.
pub struct Row {
    pub name: String,
    pub samples: Vec<Duration>,
    /// CPU time the server spent per request, where its process is known.
    pub cpu_per_request: Option<Duration>,
    /// A number of another kind, with its unit.
    pub value: Option<(f64, &'static str)>,
}

impl Row {
    pub fn latency(name: impl Into<String>, samples: Vec<Duration>, cpu: Option<Duration>) -> Row {
        let cpu_per_request = cpu.map(|total| total / u32::try_from(samples.len().max(1)).unwrap_or(u32::MAX));
        Row { name: name.into(), samples, cpu_per_request, value: None }
    }

    pub fn value(name: impl Into<String>, value: f64, unit: &'static str) -> Row {
        Row { name: name.into(), samples: Vec::new(), cpu_per_request: None, value: Some((value, unit)) }
    }
}

#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Report {
    #[allow(clippy::print_stdout, reason = "the table is this program's output")]
    pub fn print(&self) {
        println!(
            "{:<44} {:>7} {:>10} {:>10} {:>10} {:>12}",
            "WHAT", "COUNT", "P50 ms", "P99 ms", "MAX ms", "CPU ms/req"
        );
        for row in &self.rows {
            if let Some((value, unit)) = row.value {
                println!("{:<44} {value:>7.2} {unit}", row.name);
                continue;
            }
            let mut sorted = row.samples.clone();
            sorted.sort_unstable();
            let cpu = row.cpu_per_request.map_or("-".to_owned(), |c| format!("{:.3}", milliseconds(c)));
            println!(
                "{:<44} {:>7} {:>10.3} {:>10.3} {:>10.3} {cpu:>12}",
                row.name,
                sorted.len(),
                milliseconds(percentile(&sorted, 50)),
                milliseconds(percentile(&sorted, 99)),
                milliseconds(sorted.last().copied().unwrap_or_default()),
            );
        }
    }

    pub fn to_json(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let mut sorted = row.samples.clone();
                sorted.sort_unstable();
                serde_json::json!({
                    "name": row.name,
                    "count": sorted.len(),
                    "p50Ms": milliseconds(percentile(&sorted, 50)),
                    "p99Ms": milliseconds(percentile(&sorted, 99)),
                    "maxMs": milliseconds(sorted.last().copied().unwrap_or_default()),
                    "cpuMsPerRequest": row.cpu_per_request.map(milliseconds),
                    "value": row.value.map(|(v, unit)| serde_json::json!({"value": v, "unit": unit})),
                })
            })
            .collect();
        serde_json::to_string_pretty(&rows).unwrap_or_default()
    }
}

/// User and system time a process has spent so far, all its threads together.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
    // The command name, in parentheses, may hold spaces; fields are counted after it. utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    // Linux reports clock ticks of 1/100 s to user space on every architecture we build for.
    Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
}

/// Resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    let kib = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS")? / 1024.0)
}
