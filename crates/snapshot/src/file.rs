//! Snapshots in files of this machine: `file:///path/name.tar.gz`. A folder lists the snapshots in it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use apimachinery::time::Timestamp;

use crate::{Found, TargetError};

/// A file, or a folder to be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTarget {
    pub path: PathBuf,
}

impl FileTarget {
    pub fn url(&self) -> String {
        format!("file://{}", self.path.display())
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> TargetError {
        let url = self.url();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => TargetError::NotFound { url },
            _ => TargetError::File { url, source },
        }
    }

    /// Written beside, synced and renamed: a reader finds a whole snapshot or none. It holds Secrets, so only the owner
    /// reads it.
    pub(crate) async fn put(&self, file: &Path) -> Result<(), TargetError> {
        let (from, to) = (file.to_owned(), self.path.clone());
        let copy = move || -> io::Result<()> {
            let folder = to.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            let mut target = tempfile::Builder::new().prefix(".snapshot-").tempfile_in(folder)?;
            io::copy(&mut std::fs::File::open(&from)?, target.as_file_mut())?;
            target.as_file().sync_all()?;
            target.persist(&to).map_err(|error| error.error)?;
            Ok(())
        };
        let url = self.url();
        tokio::task::spawn_blocking(copy)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| TargetError::File { url, source })
    }

    pub(crate) async fn get(&self, file: &Path) -> Result<(), TargetError> {
        tokio::fs::copy(&self.path, file).await.map(drop).map_err(self.failed())
    }

    pub(crate) async fn list(&self) -> Result<Vec<Found>, TargetError> {
        let metadata = tokio::fs::metadata(&self.path).await.map_err(self.failed())?;
        if !metadata.is_dir() {
            return Ok(vec![found(&self.path, &metadata)]);
        }
        let mut all = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.path).await.map_err(self.failed())?;
        while let Some(entry) = entries.next_entry().await.map_err(self.failed())? {
            let path = entry.path();
            let Ok(metadata) = entry.metadata().await else { continue };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if metadata.is_file() && !name.starts_with('.') && (name.ends_with(".tar.gz") || name.ends_with(".tgz")) {
                all.push(found(&path, &metadata));
            }
        }
        Ok(all)
    }

    pub(crate) async fn delete(&self) -> Result<(), TargetError> {
        tokio::fs::remove_file(&self.path).await.map_err(self.failed())
    }
}

fn found(path: &Path, metadata: &std::fs::Metadata) -> Found {
    let seconds = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Found {
        url: format!("file://{}", path.display()),
        size_bytes: Some(metadata.len()),
        saved_at: seconds.map(|since| Timestamp::from_seconds(since.as_secs() as i64)),
    }
}
