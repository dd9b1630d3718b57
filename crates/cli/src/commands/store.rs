//! `alcove store`: what is in a store, and moving it to another one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args as ClapArgs, Subcommand};
use store::{Endpoint, OpenError, Options, Snapshot, Store, TlsFiles};

use crate::args::Output;
use crate::failure::Failure;
use crate::ui::Ui;

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Copy everything from one store to an empty other one
    ///
    /// Nobody may write to the first one meanwhile: stop the cluster before (`alcove pause`). Keys keep their revisions,
    /// except in etcd, where they get new ones above all old ones; clients with open watches list again.
    #[command(
        after_help = "Addresses:\n  /data/state.db, sqlite:///data/state.db\n  postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full\n  mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE?tls=true\n  http://HOST:2379,http://HOST:2379 or https://...   (etcd)\n\nExample:\n  alcove store migrate --from ./data/state.db --to 'postgres://alcove:secret@db:5432/team_a'"
    )]
    Migrate(Migrate),
    /// Show the newest revision, the number of keys and their size
    #[command(after_help = "Example:\n  alcove store info --at ./data/state.db")]
    Info(Info),
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Migrate {
    /// Address of the store that has the data
    #[arg(long, value_name = "ADDRESS")]
    pub from: String,
    /// Address of the store that gets the data; it has to be empty
    #[arg(long, value_name = "ADDRESS")]
    pub to: String,
    /// Authorities for TLS towards the first store
    #[arg(long, value_name = "FILE")]
    pub from_ca_file: Option<PathBuf>,
    /// Client certificate for the first store
    #[arg(long, value_name = "FILE", requires = "from_key_file")]
    pub from_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "from_cert_file")]
    pub from_key_file: Option<PathBuf>,
    /// Authorities for TLS towards the second store
    #[arg(long, value_name = "FILE")]
    pub to_ca_file: Option<PathBuf>,
    /// Client certificate for the second store
    #[arg(long, value_name = "FILE", requires = "to_key_file")]
    pub to_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "to_cert_file")]
    pub to_key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, ClapArgs)]
pub struct Info {
    /// Address of the store
    #[arg(long, value_name = "ADDRESS")]
    pub at: String,
    /// Authorities for TLS
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Client certificate
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

pub async fn run(command: &StoreCommand, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        StoreCommand::Migrate(command) => migrate(command, ui).await,
        StoreCommand::Info(command) => info(command).await,
    }
}

/// The address on a command line.
pub fn address(flag: &str, text: &str) -> anyhow::Result<Endpoint> {
    Endpoint::parse(text).map_err(|error| Failure::invalid(format!("{flag}: {error}")).into())
}

/// A store for reading: nothing is compacted meanwhile.
async fn open(endpoint: &Endpoint, tls: &TlsFiles) -> anyhow::Result<Store> {
    if let Endpoint::Sqlite(path) = endpoint
        && !path.exists()
    {
        return Err(Failure::not_found(format!("there is no file {}", path.display())).into());
    }
    let options = Options { compaction_interval: None, ..Options::default() };
    endpoint.open(tls, options).await.with_context(|| format!("cannot open {endpoint}"))
}

async fn migrate(command: &Migrate, ui: &Ui) -> anyhow::Result<ExitCode> {
    let (from, to) = (address("--from", &command.from)?, address("--to", &command.to)?);
    for (flag, endpoint) in [("--from", &from), ("--to", &to)] {
        if matches!(endpoint, Endpoint::Memory) {
            return Err(Failure::invalid(format!("{flag}: memory is gone when this command ends")).into());
        }
    }
    if from == to {
        return Err(Failure::invalid("--from and --to are the same store").into());
    }
    let from_tls = TlsFiles {
        ca_file: command.from_ca_file.clone(),
        cert_file: command.from_cert_file.clone(),
        key_file: command.from_key_file.clone(),
    };
    let to_tls = TlsFiles {
        ca_file: command.to_ca_file.clone(),
        cert_file: command.to_cert_file.clone(),
        key_file: command.to_key_file.clone(),
    };
    let source = open(&from, &from_tls).await?;
    let snapshot = source.snapshot();
    if let Endpoint::Sqlite(path) = &to
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let options = Options { compaction_interval: None, ..Options::default() };
    let target = match to.open_from(&snapshot, &to_tls, options).await {
        Ok(target) => target,
        Err(OpenError::NotEmpty { revision }) => {
            return Err(Failure::exists(format!("{to} is not empty, it is at revision {revision}"))
                .hint("give an empty database, or a file that is not there")
                .into());
        }
        Err(error) => return Err(anyhow::Error::from(error).context(format!("cannot fill {to}"))),
    };
    let copied = target.snapshot();
    let (kept, newest) = (copied.revision == snapshot.revision, copied.revision);
    let complete = pairs(&copied).eq(pairs(&snapshot));
    let last = source.synchronize().await.with_context(|| format!("cannot read {from}"))?;
    source.close().await;
    target.close().await;
    if !complete {
        return Err(Failure::failed(format!("{to} does not hold what {from} holds; do not use it")).into());
    }
    if last != snapshot.revision {
        return Err(Failure::failed(format!("somebody wrote to {from} meanwhile; {to} is not complete"))
            .hint("stop the cluster, empty the second store and try again")
            .into());
    }
    let revisions = if kept {
        format!("at revision {newest}, as before")
    } else {
        format!("now at revision {newest}, before at {}: clients list again", snapshot.revision)
    };
    ui.done(&format!("{} keys moved from {from} to {to}, {revisions}", snapshot.kvs.len()));
    Ok(ExitCode::SUCCESS)
}

fn pairs(snapshot: &Snapshot) -> impl Iterator<Item = (&[u8], &[u8], i64)> {
    snapshot.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..], kv.lease))
}

async fn info(command: &Info) -> anyhow::Result<ExitCode> {
    let endpoint = address("--at", &command.at)?;
    let tls = TlsFiles {
        ca_file: command.ca_file.clone(),
        cert_file: command.cert_file.clone(),
        key_file: command.key_file.clone(),
    };
    let store = open(&endpoint, &tls).await?;
    let snapshot = store.snapshot();
    let bytes = store.live_bytes();
    store.close().await;
    let value = serde_json::json!({
        "store": endpoint.to_string(),
        "revision": snapshot.revision,
        "compactRevision": snapshot.compact_revision,
        "keys": snapshot.kvs.len(),
        "bytes": bytes,
        "leases": snapshot.leases.len(),
    });
    match command.output {
        Output::Json => println!("{value:#}"),
        Output::Yaml => print!("{}", ::config::yaml::to_string(&value)?),
        Output::Table => {
            println!("store      {endpoint}");
            println!("revision   {} (readable from {})", snapshot.revision, snapshot.compact_revision);
            println!("keys       {} ({bytes} bytes)", snapshot.kvs.len());
            println!("leases     {}", snapshot.leases.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}
