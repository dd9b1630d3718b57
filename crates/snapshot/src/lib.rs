//! Snapshots of a virtual cluster: the file, the places where it is kept, and how it becomes a cluster again.
//!
//! Knows keys and values of a store, archives, URLs and the protocols of object stores. Does not know a running control
//! plane: who takes a snapshot or restarts after a restore is not known here, and neither is the environment of the process.
//!
//! Invariants:
//! - A snapshot holds every key of one revision; the file is vCluster's: a gzipped tar with one entry per key ([`archive`]).
//! - A target is written whole or not at all as far as its protocol allows it.
//! - A restored store has a revision that no client of the old one has seen, and nothing of the past can be read from it.
//! - Secrets of a URL appear in no message ([`Target::url`]).
//!
//! Follows: `pkg/snapshot` and `api/pkg/snapshot` of vCluster 0.36.

mod address;
pub mod archive;
mod azure;
mod client;
mod file;
mod oci;
pub mod restore;
mod s3;

use std::path::Path;

use apimachinery::time::Timestamp;

pub use crate::address::{Environment, UrlError};
pub use crate::client::{HttpError, fetch_text};

/// A place for one snapshot.
#[derive(Clone, Debug)]
pub enum Target {
    /// A file on this machine.
    File(file::FileTarget),
    /// A file beside the control plane's data; only the control plane reaches it.
    Container(String),
    S3(Box<s3::S3Target>),
    Oci(oci::OciTarget),
    Azure(azure::AzureTarget),
}

/// A snapshot that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its URL, without secrets.
    pub url: String,
    pub size_bytes: Option<u64>,
    pub saved_at: Option<Timestamp>,
}

/// Why a snapshot could not be put, fetched or found.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("there is no snapshot at {url}")]
    NotFound { url: String },
    #[error("{url}")]
    File { url: String, source: std::io::Error },
    #[error("{url}")]
    Http { url: String, source: HttpError },
    #[error("{url} answered {code}: {message}")]
    Refused { url: String, code: u16, message: String },
    #[error("{url}: {message}")]
    Protocol { url: String, message: String },
    #[error("{0} lies beside the control plane's data and is not reached from here")]
    Elsewhere(String),
}

impl Target {
    /// Reads a snapshot URL with its parameters. Credentials that it lacks come from the environment.
    pub fn parse(url: &str, environment: &Environment<'_>) -> Result<Target, UrlError> {
        address::parse(url, environment)
    }

    /// The URL without parameters and credentials.
    pub fn url(&self) -> String {
        match self {
            Target::File(target) => target.url(),
            Target::Container(path) => format!("container://{path}"),
            Target::S3(target) => target.url(),
            Target::Oci(target) => target.url(),
            Target::Azure(target) => target.url(),
        }
    }

    /// Writes the snapshot that lies in `file`.
    pub async fn put(&self, file: &Path) -> Result<(), TargetError> {
        match self {
            Target::File(target) => target.put(file).await,
            Target::Container(_) => Err(TargetError::Elsewhere(self.url())),
            Target::S3(target) => target.put(file).await,
            Target::Oci(target) => target.put(file).await,
            Target::Azure(target) => target.put(file).await,
        }
    }

    /// Fetches the snapshot into `file`.
    pub async fn get(&self, file: &Path) -> Result<(), TargetError> {
        match self {
            Target::File(target) => target.get(file).await,
            Target::Container(_) => Err(TargetError::Elsewhere(self.url())),
            Target::S3(target) => target.get(file).await,
            Target::Oci(target) => target.get(file).await,
            Target::Azure(target) => target.get(file).await,
        }
    }

    /// The snapshots at this place and, for a folder, a key prefix or a repository, those in it. Newest first.
    pub async fn list(&self) -> Result<Vec<Found>, TargetError> {
        let mut found = match self {
            Target::File(target) => target.list().await?,
            Target::Container(_) => return Err(TargetError::Elsewhere(self.url())),
            Target::S3(target) => target.list().await?,
            Target::Oci(target) => target.list().await?,
            Target::Azure(target) => target.list().await?,
        };
        found.sort_by(|a, b| b.saved_at.cmp(&a.saved_at).then_with(|| a.url.cmp(&b.url)));
        Ok(found)
    }

    /// Removes the snapshot.
    pub async fn delete(&self) -> Result<(), TargetError> {
        match self {
            Target::File(target) => target.delete().await,
            Target::Container(_) => Err(TargetError::Elsewhere(self.url())),
            Target::S3(target) => target.delete().await,
            Target::Oci(target) => target.delete().await,
            Target::Azure(target) => target.delete().await,
        }
    }
}

/// The time of the machine, for signatures and annotations.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_seconds(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
