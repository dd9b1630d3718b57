//! Keys and certificates in a directory that only its owner can read.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::PkiError;

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_path_buf();
    move |source| PkiError::File { path, source }
}

/// All files of the directory by name; none when it does not exist.
pub fn read(folder: &Path) -> Result<BTreeMap<String, String>, PkiError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(folder)(error)),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed(folder))?.path();
        if path.is_file()
            && let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'))
        {
            files.insert(name.to_string(), std::fs::read_to_string(&path).map_err(failed(&path))?);
        }
    }
    Ok(files)
}

/// Writes the files, each beside and renamed: a crash leaves the old one or the new one.
pub fn write(folder: &Path, files: &BTreeMap<String, String>) -> Result<(), PkiError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    for (name, text) in files {
        let path = folder.join(name);
        let beside = folder.join(format!(".{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        };
        write().map_err(failed(&path))?;
    }
    Ok(())
}
