//! `alcove hub`: runs the virtual clusters of any host that ask for placement hub.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as ClapArgs;
use hub::{Hub, HubConfig};

use crate::args::Global;
use crate::home::Home;
use crate::host;
use crate::signals;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
pub struct HubArgs {
    /// Address the clusters' ports are bound to
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Name or address of this machine in kubeconfigs [default: the bound address]
    #[arg(long, value_name = "NAME")]
    pub public_address: Option<String>,
    /// Put a cluster to sleep that nobody has used for this long and that runs nothing; 0 keeps all awake
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = sleep_after)]
    pub sleep_after: SleepAfter,
}

/// How long a cluster is unused until it sleeps; never when there is nothing.
#[derive(Clone, Copy, Debug)]
pub struct SleepAfter(pub Option<Duration>);

/// Reads `15m`; `0` is never.
pub fn sleep_after(text: &str) -> Result<SleepAfter, String> {
    match text.trim() {
        "0" | "0s" | "never" => Ok(SleepAfter(None)),
        text => match ::config::duration(text) {
            Some(duration) => Ok(SleepAfter(Some(duration))),
            None => Err("expected a duration such as 15m, or 0".to_string()),
        },
    }
}

pub async fn run(global: &Global, args: &HubArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let host = host::connect(global).await?;
    host.client.apiserver_version().await.map_err(|error| host::unreachable(&host.context, error))?;
    let home = Home::new(global.data_dir.as_deref())?;
    home.create()?;
    let hub = Hub::start(
        host.client.clone(),
        HubConfig {
            data_dir: Some(home.clusters()),
            bind_address: args.bind_address,
            public_address: args.public_address.clone().unwrap_or_else(|| args.bind_address.to_string()),
            sleep_after: args.sleep_after.0,
            dns_servers: Vec::new(),
        },
    );
    ui.done(&format!("running virtual clusters of host {}", host.context));
    signals::wait().await;
    ui.info("stopping");
    hub.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
