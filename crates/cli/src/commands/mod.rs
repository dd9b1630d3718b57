//! One module per command; each returns the exit code or an error with advice.

pub mod apiserver;
mod certs;
mod config;
pub mod connect;
mod create;
mod debug;
mod delete;
pub mod demo;
pub mod etcd;
pub mod etcd_placeholder;
pub mod hostpath_mapper;
pub mod hub;
mod list;
mod mappings;
mod moving;
pub mod pause;
pub mod rewrite_hosts;
pub mod serve;
mod shell;
mod snapshot;
pub mod store;
pub mod template;
pub mod up;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Args, Command, Output};
use crate::ui::Ui;

pub async fn run(args: Args, ui: &Ui) -> anyhow::Result<ExitCode> {
    let global = args.global;
    // Each command's future on its own: one for all would be as large as the largest.
    match args.command {
        Command::Create(command) => Box::pin(create::run(&global, &command, ui)).await,
        Command::Template(command) => template::run(&global, &command, ui),
        Command::Connect(command) => Box::pin(connect::run(&global, &command, ui)).await,
        Command::Disconnect => Box::pin(connect::disconnect(&global, ui)).await,
        Command::List(command) => Box::pin(list::run(&global, &command)).await,
        Command::Describe(command) => Box::pin(list::describe(&global, &command)).await,
        Command::Delete(command) => Box::pin(delete::run(&global, &command, ui)).await,
        Command::Pause(command) => Box::pin(pause::pause(&global, &command, ui)).await,
        Command::Resume(command) => Box::pin(pause::resume(&global, &command, ui)).await,
        Command::Snapshot(command) => Box::pin(snapshot::run(&global, &command, ui)).await,
        Command::Restore(command) => Box::pin(snapshot::restore(&global, &command, ui)).await,
        Command::Certs(command) => Box::pin(certs::run(&global, &command, ui)).await,
        Command::Debug(command) => Box::pin(debug::run(&global, &command, ui)).await,
        Command::Forward(command) => Box::pin(crate::reach::serve(&global, &command)).await,
        Command::Demo(command) => Box::pin(demo::run(&command, ui)).await,
        Command::Up(command) => Box::pin(up::up(&global, &command, ui)).await,
        Command::Down => Box::pin(up::down(&global, ui)).await,
        Command::Status(command) => Box::pin(up::status(&global, &command)).await,
        Command::Hub(command) => Box::pin(hub::run(&global, &command, ui)).await,
        Command::Serve(command) => {
            // ALCOVE_HOME is about `alcove up`.
            let home = std::env::var_os("ALCOVE_HOME");
            let data_dir = global.data_dir.clone().filter(|path| home.as_deref() != Some(path.as_os_str()));
            Box::pin(serve::run(&global, data_dir.as_deref(), &command, ui)).await
        }
        Command::HostpathMapper(command) => Box::pin(hostpath_mapper::run(&global, &command, ui)).await,
        Command::Apiserver(command) => {
            // ALCOVE_HOME is about `alcove up`; a stand-alone server is in memory unless it is told otherwise.
            let home = std::env::var_os("ALCOVE_HOME");
            let data_dir = global.data_dir.filter(|path| home.as_deref() != Some(path.as_os_str()));
            Box::pin(apiserver::run(data_dir, &command, ui)).await
        }
        Command::Etcd(command) => {
            let home = std::env::var_os("ALCOVE_HOME");
            let data_dir = global.data_dir.filter(|path| home.as_deref() != Some(path.as_os_str()));
            Box::pin(etcd::run(data_dir, &command, ui)).await
        }
        Command::Store(command) => Box::pin(store::run(&command, ui)).await,
        Command::RewriteHosts(command) => rewrite_hosts::run(&command),
        Command::EtcdPlaceholder(command) => Box::pin(etcd_placeholder::run(&command, ui)).await,
        Command::Config(command) => config::run(command, ui),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "alcove", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version { output } => {
            let version = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "kubernetes": "v1.36.0",
                "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            });
            match output {
                Output::Table => println!("alcove {} (Kubernetes v1.36.0)", env!("CARGO_PKG_VERSION")),
                Output::Json => println!("{version:#}"),
                Output::Yaml => print!("{}", ::config::yaml::to_string(&version)?),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
