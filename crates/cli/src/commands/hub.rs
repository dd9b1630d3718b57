//! `alcove hub`: runs the virtual clusters of any host that ask for placement hub.

use std::net::IpAddr;
use std::process::ExitCode;

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
        },
    );
    ui.done(&format!("running virtual clusters of host {}", host.context));
    signals::wait().await;
    ui.info("stopping");
    hub.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
