//! Starting and stopping one cluster of a hub.

use std::path::PathBuf;

use config::Config;
use controlplane::{ControlPlane, Host, Options};
use tokio::net::TcpListener;

use crate::secret::ConfigSecret;
use crate::{ClusterInfo, HubConfig, Inner};

/// A cluster that runs.
pub(crate) struct Running {
    pub uid: String,
    pub content_hash: String,
    pub port: u16,
    namespace: String,
    control_plane: ControlPlane,
}

/// Why a cluster cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the Secret has no readable key config.yaml")]
    NoConfig,
    #[error("config.yaml: {0}")]
    Config(#[from] config::ConfigError),
    #[error("no free port on {address}")]
    Port { address: std::net::IpAddr, source: std::io::Error },
    #[error("control plane")]
    Start(#[from] controlplane::StartError),
}

impl Running {
    pub fn info(&self) -> ClusterInfo {
        ClusterInfo { name: self.control_plane.name().to_string(), namespace: self.namespace.clone(), port: self.port }
    }

    pub async fn stop(self) {
        self.control_plane.stop().await;
    }
}

/// The directory of a cluster's data.
pub(crate) fn data_path(config: &HubConfig, uid: &str) -> Option<PathBuf> {
    // A UID is made by the host; anything that could leave the directory is none.
    let safe = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    config.data_dir.as_ref().filter(|_| safe).map(|folder| folder.join(uid))
}

pub(crate) async fn start(hub: &Inner, name: &str, secret: &ConfigSecret) -> Result<Running, RunError> {
    let text = secret.config_text().ok_or(RunError::NoConfig)?;
    let config = Config::from_yaml("config.yaml", &text)?;
    let listener = listen(hub, secret.port()).await?;
    let address = hub.config.bind_address;
    let port = listener.local_addr().map_err(|source| RunError::Port { address, source })?.port();
    let namespace = secret.metadata.namespace.to_string();
    let public = &hub.config.public_address;
    let public_url =
        if public.contains(':') { format!("https://[{public}]:{port}") } else { format!("https://{public}:{port}") };
    let options = Options {
        name: name.to_string(),
        config,
        data_dir: data_path(&hub.config, &secret.metadata.uid),
        listener,
        public_url,
    };
    let host = Host::new(hub.rest.client().clone(), namespace.clone());
    let control_plane = ControlPlane::start(options, Some(host)).await?;
    Ok(Running {
        uid: secret.metadata.uid.to_string(),
        content_hash: secret.content_hash(),
        port,
        namespace,
        control_plane,
    })
}

/// The port the cluster had, else a free one.
async fn listen(hub: &Inner, recorded: Option<u16>) -> Result<TcpListener, RunError> {
    let address = hub.config.bind_address;
    if let Some(port) = recorded {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => tracing::warn!(port, %error, "a cluster's port is taken; it gets another"),
        }
    }
    TcpListener::bind((address, 0)).await.map_err(|source| RunError::Port { address, source })
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
