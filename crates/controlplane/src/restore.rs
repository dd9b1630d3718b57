//! A snapshot that waits in the data directory to be restored when the control plane starts.
//!
//! `restore.tar.gz` is the snapshot, `restore.json` says that it is whole and how it is meant; it is removed when the store
//! holds the snapshot. `restore-result.json` tells the last outcome.

use std::io;
use std::path::{Path, PathBuf};

use apimachinery::{Value, json};
use serde::{Deserialize, Serialize};
use snapshot::restore::{Content, Origin, RestoreError, Restored};

/// How a waiting snapshot is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Staged {
    pub id: String,
    pub new_name: bool,
    /// The cluster itself comes from another place.
    #[serde(default)]
    pub moved: bool,
}

impl Staged {
    pub fn origin(&self) -> Origin {
        match (self.moved, self.new_name) {
            (true, _) => Origin::Moved,
            (false, true) => Origin::OtherName,
            (false, false) => Origin::Past,
        }
    }
}

pub(crate) fn part_path(data_dir: &Path) -> PathBuf {
    data_dir.join("restore.part")
}
fn archive_path(data_dir: &Path) -> PathBuf {
    data_dir.join("restore.tar.gz")
}
fn staged_path(data_dir: &Path) -> PathBuf {
    data_dir.join("restore.json")
}
fn result_path(data_dir: &Path) -> PathBuf {
    data_dir.join("restore-result.json")
}

/// Makes the received snapshot the one that will be restored.
pub(crate) fn stage(data_dir: &Path, staged: &Staged) -> io::Result<()> {
    std::fs::rename(part_path(data_dir), archive_path(data_dir))?;
    let text = serde_json::to_vec(staged).map_err(io::Error::other)?;
    write_whole(data_dir, &staged_path(data_dir), &text)
}

fn write_whole(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = tempfile::Builder::new().prefix(".restore-").tempfile_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The snapshot that waits, with its content.
pub(crate) async fn waiting(data_dir: &Path) -> Option<(Staged, Result<Content, RestoreError>)> {
    let text = tokio::fs::read(staged_path(data_dir)).await.ok()?;
    let staged: Staged = serde_json::from_slice(&text).ok()?;
    let (file, origin) = (archive_path(data_dir), staged.origin());
    let loaded = tokio::task::spawn_blocking(move || snapshot::restore::load(&file, origin)).await;
    let content = loaded.unwrap_or_else(|error| {
        Err(RestoreError::File { path: archive_path(data_dir), source: io::Error::other(error) })
    });
    Some((staged, content))
}

/// Notes the outcome and forgets the snapshot: one that could not be restored is not tried for ever.
pub(crate) fn finish(data_dir: &Path, staged: &Staged, outcome: &Result<Restored, RestoreError>) {
    let result = match outcome {
        Ok(restored) => {
            tracing::info!(keys = restored.keys, revision = restored.revision, "a snapshot was restored");
            json!({"id": (staged.id.as_str()), "keys": (restored.keys), "revision": (restored.revision)})
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            tracing::error!(error = text, "a snapshot was not restored; the data is as it was");
            json!({"id": (staged.id.as_str()), "error": text})
        }
    };
    let noted = write_whole(data_dir, &result_path(data_dir), &result.to_vec());
    let forgotten =
        std::fs::remove_file(staged_path(data_dir)).and_then(|()| std::fs::remove_file(archive_path(data_dir)));
    if let Err(error) = noted.and(forgotten) {
        tracing::warn!(%error, "the files of a restore could not be tidied up");
    }
}

/// Has the data with this name been put in place?
pub(crate) fn has_arrived(data_dir: &Path, id: &str) -> bool {
    last_result(data_dir).is_some_and(|result| result.str_at(&["id"]) == id && result.at(&["error"]).is_none())
}

/// How the last restore ended.
pub(crate) fn last_result(data_dir: &Path) -> Option<Value> {
    Value::from_slice(&std::fs::read(result_path(data_dir)).ok()?).ok()
}
