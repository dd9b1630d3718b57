//! Faults under write load: the control plane killed, the server of its store killed, stopped or frozen.
//!
//! A real `alcove apiserver` on a real store, writers that never stop, and one watch over all of it. Fails unless every write
//! that was acknowledged is there, in its place in one history, and the watch has told each of them once.

mod http;
mod load;
mod observe;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::load::{Shared, Writer};
use self::world::World;
use crate::measure::{Report, Row};

/// Where the control plane keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreKind {
    Sqlite,
    Postgres,
    /// MariaDB, or MySQL
    Mysql,
    Etcd,
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    ControlPlane,
    /// The server of the store
    Store,
    /// Now one, now the other
    Either,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The `alcove` binary
    #[arg(long, default_value = "target/release/alcove")]
    pub binary: PathBuf,
    /// Kind of store; the server of one is started by itself
    #[arg(long, value_enum)]
    pub store: StoreKind,
    /// How often something is killed with SIGKILL
    #[arg(long, default_value_t = 50)]
    pub kills: usize,
    /// What is killed
    #[arg(long, value_enum, default_value = "control-plane")]
    pub victim: Victim,
    /// Seconds in which the server of the store is not there, after the kills
    #[arg(long, default_value_t = 0)]
    pub outage: u64,
    /// The server of the store keeps its connections in that time and does not answer
    #[arg(long)]
    pub frozen: bool,
    /// Writers at the same time
    #[arg(long, default_value_t = 4)]
    pub writers: usize,
    /// Decides what is written and when something is killed; printed, so that a run can be repeated
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Longest time in which nothing is acknowledged although everything is there.
const RECOVERY: Duration = Duration::from_secs(60);

/// Longest time of an answer while the store is away.
const ANSWER_MAX: Duration = Duration::from_secs(30);

#[allow(clippy::print_stdout, reason = "the seed is this program's output")]
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut world = World::start(&options.binary, options.store).await?;
    let outcome = faults(&mut world, &options, seed).await;
    outcome.with_context(|| format!("seed {seed}; the control plane's last words:\n{}", world.log()))
}

async fn faults(world: &mut World, options: &Options, seed: u64) -> anyhow::Result<Report> {
    let mut random = StdRng::seed_from_u64(seed);
    let shared = Arc::new(Shared::default());
    let (tell_end, end) = tokio::sync::watch::channel(None);
    let start = observe::newest(&world.clients(), &shared).await?;
    let mut watcher = tokio::spawn(observe::watch(world.clients(), start, end));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..options.writers {
        let writer = Writer { number, seed, clients: world.clients(), shared: shared.clone() };
        writers.spawn(writer.run());
    }
    let began = Instant::now();
    let mut measured = Measured::default();
    let injected = async {
        for kill in 0..options.kills {
            let more = random.random_range(1..60);
            acknowledged_more(&shared, more).await.with_context(|| format!("before kill {kill}"))?;
            tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            let plane = match options.victim {
                Victim::ControlPlane => true,
                Victim::Store => false,
                Victim::Either => random.random_bool(0.5),
            };
            let killed = Instant::now();
            let took = if plane { world.kill_plane().await? } else { world.kill_server().await? };
            measured.starts.push(took);
            acknowledged_more(&shared, 1).await.with_context(|| format!("after kill {kill}"))?;
            measured.recoveries.push(killed.elapsed());
            ensure!(world.plane_runs(), "the control plane has ended after kill {kill}");
        }
        if options.outage > 0 {
            outage(world, options, &shared, &mut measured).await?;
        }
        acknowledged_more(&shared, 20).await
    };
    // A writer that found something wrong ends the run at once.
    let injected = tokio::select! {
        injected = injected => injected,
        Some(ended) = writers.join_next() => match ended? {
            Ok(_) => Err(anyhow::anyhow!("a writer has ended too early")),
            Err(error) => Err(error),
        },
        ended = &mut watcher => Err(ended?.err().unwrap_or_else(|| anyhow::anyhow!("the watch has ended too early"))),
    };
    injected?;
    shared.stop.store(true, Ordering::Release);
    let mut acknowledged = Vec::new();
    while let Some(writer) = writers.join_next().await {
        acknowledged.extend(writer??);
    }
    let took = began.elapsed();
    tell_end.send_replace(Some(observe::newest(&world.clients(), &shared).await?));
    let observed = tokio::time::timeout(RECOVERY, watcher).await.context("the watch does not reach the end")???;
    observed.check(&acknowledged)?;
    Ok(measured.report(options, &shared, acknowledged.len(), observed.restarts, took))
}

/// Waits until so many more writes have been acknowledged.
async fn acknowledged_more(shared: &Shared, more: u64) -> anyhow::Result<()> {
    let before = shared.acknowledged.load(Ordering::Acquire);
    let began = Instant::now();
    while shared.acknowledged.load(Ordering::Acquire) < before + more {
        ensure!(began.elapsed() < RECOVERY, "nothing is acknowledged any more");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The store is not there for a time: requests are refused and say when to try again, reads of any age go on, and afterwards
/// everything works by itself.
async fn outage(
    world: &mut World,
    options: &Options,
    shared: &Arc<Shared>,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let client = world.clients().borrow().clone();
    let reading = tokio::spawn(observe::read_any_age(client, stop.clone()));
    let refused = shared.refused.load(Ordering::Acquire);
    let unanswered = shared.unanswered.load(Ordering::Acquire);
    shared.slowest_us.store(0, Ordering::Release);
    let away = Duration::from_secs(options.outage);
    if options.frozen {
        world.freeze_server(away).await?;
    } else {
        world.kill_server_for(away).await?;
    }
    let back = Instant::now();
    acknowledged_more(shared, 1).await.context("after the outage")?;
    measured.outage_recovery = back.elapsed();
    stop.store(true, Ordering::Release);
    (measured.outage_reads, measured.outage_slowest_read) = reading.await??;
    measured.outage_refused = shared.refused.load(Ordering::Acquire) - refused;
    measured.outage_slowest = Duration::from_micros(shared.slowest_us.load(Ordering::Acquire));
    ensure!(measured.outage_refused > 0, "nothing was refused while the store was away");
    ensure!(measured.outage_slowest < ANSWER_MAX, "an answer took {:?}", measured.outage_slowest);
    ensure!(shared.unanswered.load(Ordering::Acquire) == unanswered, "connections were broken instead of answered");
    ensure!(world.plane_runs(), "the control plane has ended with the store");
    Ok(())
}

/// What a run was like.
#[derive(Default)]
struct Measured {
    starts: Vec<Duration>,
    recoveries: Vec<Duration>,
    outage_recovery: Duration,
    outage_reads: u64,
    outage_slowest_read: Duration,
    outage_refused: u64,
    outage_slowest: Duration,
}

impl Measured {
    fn report(
        self,
        options: &Options,
        shared: &Shared,
        acknowledged: usize,
        restarts: usize,
        took: Duration,
    ) -> Report {
        let what = format!("{:?}, {:?}", options.store, options.victim);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Acquire) as f64;
        let mut rows = vec![
            Row::value(format!("{what}: acknowledged and found"), acknowledged as f64, "writes"),
            Row::value(format!("{what}: written without an answer"), count(&shared.written_unanswered), "writes"),
            Row::value(format!("{what}: without an answer"), count(&shared.unanswered), "requests"),
            Row::value(format!("{what}: told to try again"), count(&shared.refused), "requests"),
            Row::value(format!("{what}: watch continued"), restarts as f64, "times"),
            Row::value(format!("{what}: whole run"), took.as_secs_f64(), "s"),
        ];
        if !self.starts.is_empty() {
            rows.push(Row::latency(format!("{what}: started again"), self.starts, None));
            rows.push(Row::latency(format!("{what}: killed to first write"), self.recoveries, None));
        }
        if options.outage > 0 {
            let how = if options.frozen { "frozen" } else { "away" };
            let what = format!("{:?} {how} for {} s", options.store, options.outage);
            rows.push(Row::value(format!("{what}: told to try again"), self.outage_refused as f64, "requests"));
            rows.push(Row::value(format!("{what}: slowest answer"), self.outage_slowest.as_secs_f64(), "s"));
            rows.push(Row::value(format!("{what}: reads of any age"), self.outage_reads as f64, "requests"));
            rows.push(Row::value(format!("{what}: slowest of them"), self.outage_slowest_read.as_secs_f64(), "s"));
            rows.push(Row::value(format!("{what}: back to first write"), self.outage_recovery.as_secs_f64(), "s"));
        }
        Report { rows }
    }
}
