//! The processes of a run: one control plane, and the server of its store where there is one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use store::servers::{Kind, Server};

use super::StoreKind;
use super::http::client;

/// Longest time for a control plane to be ready.
const READY: Duration = Duration::from_secs(60);

/// Processes, which end with this.
pub struct World {
    binary: PathBuf,
    folder: tempfile::TempDir,
    url: Option<String>,
    server: Option<Server>,
    plane: Option<Child>,
    /// The newest client; it changes with each start of the control plane.
    clients: tokio::sync::watch::Sender<kube::Client>,
}

impl World {
    /// Starts the store's server, if it has one, and the control plane.
    pub async fn start(binary: &Path, store: StoreKind) -> anyhow::Result<World> {
        let folder = tempfile::tempdir()?;
        let binary = binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?;
        let kind = match store {
            StoreKind::Sqlite => None,
            StoreKind::Postgres => Some(Kind::Postgres),
            StoreKind::Mysql => Some(Kind::Mysql),
            StoreKind::Etcd => Some(Kind::Etcd),
        };
        let server = match kind {
            None => None,
            Some(kind) => {
                let path = folder.path().to_owned();
                Some(tokio::task::spawn_blocking(move || Server::start(kind, &path)).await??)
            }
        };
        let url = server.as_ref().map(|server| server.url("faults"));
        let (plane, kubeconfig) = spawn(&binary, folder.path(), url.as_deref()).await?;
        let clients = tokio::sync::watch::Sender::new(client(&kubeconfig).await?);
        Ok(World { binary, folder, url, server, plane: Some(plane), clients })
    }

    /// Clients of the control plane, the newest one after each start.
    pub fn clients(&self) -> tokio::sync::watch::Receiver<kube::Client> {
        self.clients.subscribe()
    }

    /// Kills the control plane with SIGKILL and starts it again; returns how long the start took.
    pub async fn kill_plane(&mut self) -> anyhow::Result<Duration> {
        if let Some(mut plane) = self.plane.take() {
            plane.kill()?;
            plane.wait()?;
        }
        let began = Instant::now();
        let (plane, kubeconfig) = spawn(&self.binary, self.folder.path(), self.url.as_deref()).await?;
        self.plane = Some(plane);
        self.clients.send_replace(client(&kubeconfig).await?);
        Ok(began.elapsed())
    }

    /// Kills the store's server with SIGKILL and starts it again; returns how long the start took.
    pub async fn kill_server(&mut self) -> anyhow::Result<Duration> {
        self.kill_server_for(Duration::ZERO).await
    }

    /// The same, with a time in between in which there is no server.
    pub async fn kill_server_for(&mut self, away: Duration) -> anyhow::Result<Duration> {
        let mut server = self.server.take().context("this store has no server")?;
        server.kill();
        tokio::time::sleep(away).await;
        let (server, took) = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            server.restart().map(|()| (server, began.elapsed()))
        })
        .await??;
        self.server = Some(server);
        Ok(took)
    }

    /// Freezes the store's server for a time.
    pub async fn freeze_server(&self, away: Duration) -> anyhow::Result<()> {
        let server = self.server.as_ref().context("this store has no server")?;
        server.freeze();
        tokio::time::sleep(away).await;
        server.thaw();
        Ok(())
    }

    /// Whether the control plane has not ended by itself.
    pub fn plane_runs(&mut self) -> bool {
        self.plane.as_mut().is_some_and(|plane| matches!(plane.try_wait(), Ok(None)))
    }

    /// The control plane's last words.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(plane) = &mut self.plane {
            // Either error means that the process is gone already, which is what is wanted.
            plane.kill().ok();
            plane.wait().ok();
        }
    }
}

async fn spawn(binary: &Path, folder: &Path, url: Option<&str>) -> anyhow::Result<(Child, PathBuf)> {
    let kubeconfig = folder.join("kubeconfig");
    if kubeconfig.exists() {
        std::fs::remove_file(&kubeconfig)?;
    }
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new(binary);
    command
        .args(["apiserver", "--bind-address=127.0.0.1", "--secure-port=0"])
        .arg(format!("--data-dir={}", folder.join("data").display()))
        .arg(format!("--cert-dir={}", folder.join("certs").display()))
        .arg(format!("--kubeconfig-out={}", kubeconfig.display()))
        .args(url.map(|url| format!("--store={url}")))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut child = command.spawn().with_context(|| format!("could not start {}", binary.display()))?;
    let began = Instant::now();
    // The file appears whole, once the server is ready.
    while !kubeconfig.exists() {
        let ended = child.try_wait()?;
        if ended.is_some() || began.elapsed() > READY {
            child.kill().ok();
            child.wait()?;
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            anyhow::bail!("the control plane is not ready after {:?}: {log}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok((child, kubeconfig))
}
