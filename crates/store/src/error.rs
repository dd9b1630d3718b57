//! Errors, one enum per operation. Whatever a backend says ends up as the source of one of these.

use std::error::Error;

use crate::types::{KeyValue, Revision};

/// A backend could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing}")]
pub struct BackendError {
    doing: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BackendError {
    /// `doing` completes "could not ...".
    pub fn new(doing: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        BackendError { doing: doing.into(), source: Some(source.into()) }
    }
}

/// Why a store could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store {path} is in use by another process or another open store")]
    InUse { path: String },
    #[error(
        "store {path} has schema version {found}, this program knows versions up to {known}: use a newer program, the file was not changed"
    )]
    NewerSchema { path: String, found: i64, known: i64 },
    #[error("file {path} is not a store of this program: {why}")]
    NotAStore { path: String, why: String },
    #[error("store {path} is damaged: {why}")]
    Corrupt { path: String, why: String },
    #[error("the store to be filled from a snapshot is not empty, it is at revision {revision}")]
    NotEmpty { revision: Revision },
    #[error("the user of this process may not write to {folder}: change the owner of the folder, or the user")]
    Denied { folder: String },
    #[error("could not open the store")]
    Backend(#[from] BackendError),
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no room. Nothing was written.
    #[error("no space left for the store")]
    Full,
    /// Nothing was written.
    #[error("the batch was not written")]
    NotApplied(#[source] BackendError),
    /// Others have written since: nothing was written, and nobody else writes until the next `append` or `release`.
    #[error("others have written to the store")]
    Behind,
    /// It may have been written, it may not: the store asks `settle` before it goes on.
    #[error("it is not known whether the batch was written")]
    Unknown(#[source] BackendError),
}

/// Why a backend could not read its history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("compacted up to revision {compact_revision}")]
    Compacted { compact_revision: Revision },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Why a read was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("revision {requested} has been compacted, the oldest readable one is {compact_revision}")]
    Compacted { requested: Revision, compact_revision: Revision },
    #[error("revision {requested} is in the future, the newest is {current}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("could not read the history")]
    Unavailable(#[source] BackendError),
}

/// Why a write was refused. Except for `Unavailable` it is certain that nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the key is not as the write expected")]
    Conflict { current: Option<KeyValue> },
    #[error("no space left for the store")]
    Full,
    #[error("{what} has {size_bytes} bytes, the limit is {size_bytes_max}")]
    TooLarge { what: &'static str, size_bytes: usize, size_bytes_max: usize },
    #[error("a key must not be empty")]
    EmptyKey,
    #[error("lease {lease} does not exist")]
    LeaseNotFound { lease: i64 },
    #[error("lease {lease} exists already")]
    LeaseExists { lease: i64 },
    /// The write may or may not be in the history.
    #[error("the store is not available for writes: {why}")]
    Unavailable { why: String },
}

/// Why a watch ended or could not begin. All of them are answered by a new watch, `Compacted` by a new read first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("revision {requested} has been compacted, the oldest readable one is {compact_revision}")]
    Compacted { requested: Revision, compact_revision: Revision },
    /// The history below could not be read; a new watch from `resume_from` misses nothing.
    #[error("could not read the history after revision {resume_from}: {why}")]
    Unavailable { resume_from: Revision, why: String },
    #[error("the store is closed")]
    Closed,
}

/// Why a compaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    #[error("revision {requested} has been compacted already, up to {compact_revision}")]
    Compacted { requested: Revision, compact_revision: Revision },
    #[error("revision {requested} is in the future, the newest is {current}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("could not compact")]
    Backend(#[from] BackendError),
}

/// An error with everything below it, for a message that leaves the chain behind.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
