//! The one directory that holds everything of `alcove up`, and the socket on which it listens for `status` and `down`.
//!
//! `host/` data of the development host, `clusters/` data of virtual clusters, `host.kubeconfig` administrator of the host,
//! `control.sock` control socket, `alcove.log` output of the detached process.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::failure::Failure;

#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// `--data-dir`, else `$ALCOVE_HOME`, else `~/.alcove`.
    pub fn new(given: Option<&Path>) -> anyhow::Result<Home> {
        let root = match given {
            Some(path) => path.to_path_buf(),
            None => match std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
                Some(home) => home.join(".alcove"),
                None => {
                    return Err(Failure::invalid("there is no home directory")
                        .hint("say where to keep data with --data-dir or ALCOVE_HOME")
                        .into());
                }
            },
        };
        Ok(Home { root: std::path::absolute(&root).unwrap_or(root) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn host_data(&self) -> PathBuf {
        self.root.join("host")
    }
    pub fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }
    pub fn host_kubeconfig(&self) -> PathBuf {
        self.root.join("host.kubeconfig")
    }
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }
    pub fn log(&self) -> PathBuf {
        self.root.join("alcove.log")
    }

    /// Makes the directory, readable by its owner only.
    pub fn create(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .with_context(|| format!("cannot make the data directory {}", self.root.display()))?;
        std::fs::set_permissions(&self.root, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot protect the data directory {}", self.root.display()))
    }
}
