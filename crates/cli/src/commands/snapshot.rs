//! `alcove snapshot create|get|list|delete` and `alcove restore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use apimachinery::time::{Timestamp, human_duration};
use serde_json::{Value, json};
use snapshot::archive::{self, ArchiveError, Header};
use snapshot::{Found, Target, TargetError};

use crate::args::{Global, Output, Restore, SnapshotCommand, SnapshotCreate, SnapshotShow, Values};
use crate::clusters;
use crate::failure::Failure;
use crate::host;
use crate::operate::{Operator, parse_target};
use crate::table;
use crate::ui::Ui;

/// How long the control plane of a cluster may take to answer at first.
const ANSWER: Duration = Duration::from_secs(60);

pub async fn run(global: &Global, command: &SnapshotCommand, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Create(args) => create(global, args, ui).await,
        SnapshotCommand::Get(args) => show(global, args, true).await,
        SnapshotCommand::List(args) => show(global, args, false).await,
        SnapshotCommand::Delete(args) => delete(global, args, ui).await,
    }
}

/// A local file for a snapshot on its way; gone with the guard.
pub fn temporary(folder: Option<&Path>) -> anyhow::Result<(tempfile::TempDir, PathBuf)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("alcove-snapshot-");
    let made = match folder {
        Some(folder) => builder.tempdir_in(folder),
        None => builder.tempdir(),
    };
    let made = made.context("cannot make a temporary directory")?;
    let file = made.path().join("snapshot.tar.gz");
    Ok((made, file))
}

/// Reads a snapshot to its end, so that one that broke off is noticed; returns what it says and how many keys it has.
pub fn check(file: &Path) -> anyhow::Result<(Header, u64)> {
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut keys = 0;
    let header = archive::read::<ArchiveError>(std::io::BufReader::new(opened), |_, _| {
        keys += 1;
        Ok(())
    });
    let header = header.map_err(|error| Failure::invalid(crate::commands::up::chain(&error)))?;
    Ok((header, keys))
}

/// The error of a target, with an exit code.
pub fn target_failure(error: TargetError) -> anyhow::Error {
    let text = crate::commands::up::chain(&error);
    match error {
        TargetError::NotFound { .. } => Failure::not_found(text).into(),
        _ => Failure::failed(text).into(),
    }
}

async fn create(global: &Global, args: &SnapshotCreate, ui: &Ui) -> anyhow::Result<ExitCode> {
    let target = parse_target(&args.url)?;
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let step = ui.step(&format!("Taking a snapshot of virtual cluster {}...", args.name));
    let operator = Operator::of(&host, &cluster, ANSWER).await?;
    if let Target::Container(path) = &target {
        operator.snapshot_in_container(path).await?;
        step.done(&format!("Successfully created snapshot {}", target.url()));
        return Ok(ExitCode::SUCCESS);
    }
    let (_folder, file) = temporary(args.snapshot_temp_dir.as_deref())?;
    operator.snapshot_to(&file, &target.url()).await?;
    let (header, keys) = check(&file)?;
    step.update(&format!("Writing {}...", target.url()));
    target.put(&file).await.map_err(target_failure)?;
    let revision = header.revision.unwrap_or(0);
    step.done(&format!("Successfully created snapshot {} ({keys} keys at revision {revision})", target.url()));
    Ok(ExitCode::SUCCESS)
}

/// The snapshots at a URL. `one`: the URL is a snapshot's, and it is an error when it is not there.
async fn show(global: &Global, args: &SnapshotShow, one: bool) -> anyhow::Result<ExitCode> {
    let target = parse_target(&args.url)?;
    let found = match &target {
        Target::Container(path) => {
            let host = host::connect(global).await?;
            let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
            let operator = Operator::of(&host, &cluster, ANSWER).await?;
            let answer = operator.snapshots_in_container(path).await?;
            let items = answer["items"].as_array().into_iter().flatten();
            let items = items.map(|item| Found {
                url: item["url"].as_str().unwrap_or_default().to_string(),
                size_bytes: item["bytes"].as_u64(),
                saved_at: item["savedAt"].as_str().and_then(Timestamp::parse),
            });
            items.collect()
        }
        target => match target.list().await {
            Ok(found) => found,
            Err(TargetError::NotFound { .. }) if !one => Vec::new(),
            Err(error) => return Err(target_failure(error)),
        },
    };
    let found: Vec<Found> = if one {
        let found: Vec<Found> = found.into_iter().filter(|found| found.url == target.url()).collect();
        if found.is_empty() {
            return Err(Failure::not_found(format!("there is no snapshot at {}", target.url())).into());
        }
        found
    } else {
        found
    };
    let now = clusters::now();
    match args.output {
        Output::Table => {
            let age = |found: &Found| found.saved_at.map_or_else(String::new, |at| human_duration(now.since(at)));
            let rows = found.iter().map(|found| vec![found.url.clone(), "Yes".into(), "Completed".into(), age(found)]);
            print!("{}", table::render(&["SNAPSHOT", "SAVED", "STATUS", "AGE"], &rows.collect::<Vec<_>>()));
        }
        output => {
            let values: Vec<Value> = found
                .iter()
                .map(|found| {
                    json!({
                        "Snapshot": found.url,
                        "Saved": true,
                        "Status": "Completed",
                        "SizeBytes": found.size_bytes,
                        "Created": found.saved_at.map(Timestamp::to_rfc3339),
                    })
                })
                .collect();
            match output {
                Output::Yaml => print!("{}", config::yaml::to_string(&values)?),
                _ => println!("{:#}", json!(values)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn delete(global: &Global, args: &SnapshotShow, ui: &Ui) -> anyhow::Result<ExitCode> {
    let target = parse_target(&args.url)?;
    match &target {
        Target::Container(path) => {
            let host = host::connect(global).await?;
            let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
            Operator::of(&host, &cluster, ANSWER).await?.delete_in_container(path).await?;
        }
        target => target.delete().await.map_err(target_failure)?,
    }
    ui.done(&format!("Successfully deleted snapshot {}", target.url()));
    Ok(ExitCode::SUCCESS)
}

pub async fn restore(global: &Global, args: &Restore, ui: &Ui) -> anyhow::Result<ExitCode> {
    let target = parse_target(&args.url)?;
    let host = host::connect(global).await?;
    let cluster = clusters::find(&host, &args.name, global.namespace.as_deref()).await?;
    let timeout = Duration::from_secs(args.timeout);
    let step = ui.step(&format!("Restore virtual cluster {} from {}...", args.name, target.url()));
    // What is wrong with the snapshot is found before the cluster is touched.
    let (_folder, file) = temporary(args.snapshot_temp_dir.as_deref())?;
    let in_container = match &target {
        Target::Container(path) => Some(path.clone()),
        target => {
            target.get(&file).await.map_err(target_failure)?;
            check(&file)?;
            None
        }
    };
    let cluster = if crate::commands::pause::is_paused(&host, &cluster).await? {
        crate::commands::pause::start_again(&host, &cluster, timeout).await?;
        clusters::find(&host, &args.name, Some(&cluster.namespace)).await?
    } else {
        cluster
    };
    let operator = Operator::of(&host, &cluster, ANSWER).await?;
    let keys = match in_container {
        Some(path) => operator.restore_in_container(&path, timeout).await?,
        None => operator.restore_from(&file, timeout).await?,
    };
    step.done(&format!("Successfully restored virtual cluster {} ({keys} keys)", args.name));
    Ok(ExitCode::SUCCESS)
}

/// A snapshot for a cluster that is about to be made.
pub struct Fetched {
    url: String,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

/// Fetches the snapshot of `create --restore`. The configuration is the snapshot's unless the user gives one.
pub async fn fetch(url: &str, folder: Option<&Path>, values: &mut Values, ui: &Ui) -> anyhow::Result<Fetched> {
    let target = parse_target(url)?;
    if let Target::Container(_) = target {
        return Err(Failure::invalid("a cluster that does not exist yet has no files of its own")
            .hint("create it first, then use `alcove restore`")
            .into());
    }
    let (folder, file) = temporary(folder)?;
    target.get(&file).await.map_err(target_failure)?;
    let (header, _) = check(&file)?;
    match header.release.as_ref().and_then(archive::Release::config_yaml) {
        Some(_) if !values.files.is_empty() || !values.set.is_empty() => {
            ui.warn("the configuration in the snapshot is not used, because values are given");
        }
        Some(text) => {
            let path = folder.path().join("values.yaml");
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            values.files.push(path);
        }
        None => {}
    }
    Ok(Fetched { url: target.url(), file, _folder: folder })
}

impl Fetched {
    /// Fills the new cluster.
    pub async fn fill(
        self,
        host: &host::Host,
        name: &str,
        namespace: &str,
        timeout: Duration,
        ui: &Ui,
    ) -> anyhow::Result<()> {
        let step = ui.step(&format!("Restore virtual cluster {name} from {}...", self.url));
        let cluster = clusters::find(host, name, Some(namespace)).await?;
        let operator = Operator::of(host, &cluster, ANSWER).await?;
        let keys = operator.restore_from(&self.file, timeout).await?;
        step.done(&format!("Successfully restored virtual cluster {name} ({keys} keys)"));
        Ok(())
    }
}
