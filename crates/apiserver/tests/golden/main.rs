//! Replays the golden transcripts (`tests/golden/cases` at the repository's root) against a server of its own and fails
//! when a case that is listed in `tests/golden/passing.txt` fails.
//!
//! `cargo test -p apiserver --test golden [-- FILTER...]`, where a filter is `area`, `area/case` or a part of a case's
//! name. With a filter the differences are printed. Environment:
//! - `GOLDEN_VERBOSE=1` prints differences, `=0` does not.
//! - `GOLDEN_FIRST=N` prints those of the first N failing cases only.
//! - `GOLDEN_NO_MANAGED_FIELDS=1` leaves managedFields out of the comparison.
//! - `GOLDEN_UPDATE=1` adds the cases that pass now to `passing.txt`.
//!
//! Follows the repository's golden format: setup must succeed, steps are compared, cleanup always runs.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod case;
mod client;
mod compare;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use case::Case;

/// Cases that run at the same time. Most of the time they wait.
const CONCURRENCY: usize = 24;

/// What became of a case.
struct Outcome {
    area: String,
    name: String,
    title: String,
    /// Empty when it passed.
    report: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn load(filters: &[String]) -> Vec<Case> {
    let mut cases = Vec::new();
    let areas = std::fs::read_dir(root().join("cases")).expect("the cases are committed");
    for area in areas.flatten() {
        for file in std::fs::read_dir(area.path()).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(file.path()).expect("a case is a readable file");
            let case: Case = serde_json::from_str(&text)
                .unwrap_or_else(|e| panic!("{} is no transcript: {e}", file.path().display()));
            let id = format!("{}/{}", case.area, case.name);
            let wanted =
                |f: &String| case.area == *f || id == *f || case.name.contains(f.as_str()) || id.contains(f.as_str());
            if filters.is_empty() || filters.iter().any(wanted) {
                cases.push(case);
            }
        }
    }
    cases.sort_by(|a, b| (&a.area, &a.name).cmp(&(&b.area, &b.name)));
    cases
}

fn flag(name: &str) -> Option<bool> {
    std::env::var(name).ok().map(|v| v != "0" && !v.is_empty())
}

fn main() -> ExitCode {
    // Arguments of the standard harness may come along when all tests of the workspace run.
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::args().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(run(filters))
}

async fn run(filters: Vec<String>) -> ExitCode {
    let started = Instant::now();
    let cases = load(&filters);
    let server = Arc::new(server::start().await);
    let (serial, parallel): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| c.serial);

    let room = Arc::new(Semaphore::new(CONCURRENCY));
    let mut running = tokio::task::JoinSet::new();
    for case in parallel {
        let (room, server) = (room.clone(), server.clone());
        running.spawn(async move {
            let _permit = room.acquire().await;
            let outcome = replay(&case, &server).await;
            (case, outcome)
        });
    }
    let mut outcomes = Vec::new();
    for (case, mut outcome) in running.join_all().await {
        // A few recorded answers hold an age of `0s`, which a busy machine misses: those get a second chance, alone.
        if !outcome.report.is_empty() && outcome.report.contains("expected \"0s\"") {
            outcome = replay(&case, &server).await;
        }
        outcomes.push(outcome);
    }
    for case in serial {
        outcomes.push(replay(&case, &server).await);
    }
    outcomes.sort_by(|a, b| (&a.area, &a.name).cmp(&(&b.area, &b.name)));
    report(&outcomes, &filters, started)
}

async fn replay(case: &Case, server: &server::TestServer) -> Outcome {
    let ignore_managed_fields = flag("GOLDEN_NO_MANAGED_FIELDS").unwrap_or(false);
    let report = case::replay(case, server, ignore_managed_fields).await;
    Outcome { area: case.area.clone(), name: case.name.clone(), title: case.title.clone(), report }
}

fn report(outcomes: &[Outcome], filters: &[String], started: Instant) -> ExitCode {
    let verbose = flag("GOLDEN_VERBOSE").unwrap_or(!filters.is_empty());
    let first: usize = std::env::var("GOLDEN_FIRST").ok().and_then(|v| v.parse().ok()).unwrap_or(usize::MAX);
    let passing_file = root().join("passing.txt");
    let listed: BTreeSet<String> =
        std::fs::read_to_string(&passing_file).unwrap_or_default().lines().map(str::to_owned).collect();

    let mut scores: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut passing = BTreeSet::new();
    let mut regressions = Vec::new();
    let mut printed = 0;
    for outcome in outcomes {
        let id = format!("{}/{}", outcome.area, outcome.name);
        let score = scores.entry(&outcome.area).or_default();
        score.1 += 1;
        if outcome.report.is_empty() {
            score.0 += 1;
            passing.insert(id);
            continue;
        }
        let regressed = listed.contains(&id);
        if (verbose && printed < first) || regressed {
            printed += 1;
            println!("FAIL {id}: {}\n{}", outcome.title, outcome.report);
        } else if verbose {
            println!("FAIL {id}: {}", outcome.title);
        }
        if regressed {
            regressions.push(id);
        }
    }
    let (mut passed, mut all) = (0, 0);
    for (area, (ok, total)) in &scores {
        println!("{area:<14} {ok:>4} / {total:<4} {:>3} %", ok * 100 / total.max(&1));
        passed += ok;
        all += total;
    }
    println!(
        "{:<14} {passed:>4} / {all:<4} {:>3} %   in {:.1} s",
        "all",
        passed * 100 / all.max(1),
        started.elapsed().as_secs_f64()
    );
    if flag("GOLDEN_UPDATE").unwrap_or(false) {
        let union: BTreeSet<&String> = listed.union(&passing).collect();
        let mut text = union.into_iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        text.push('\n');
        std::fs::write(&passing_file, text).expect("passing.txt can be written");
    }
    if regressions.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("{} cases of passing.txt fail: {}", regressions.len(), regressions.join(" "));
    ExitCode::FAILURE
}
