//! `alcove template`: the objects of a virtual cluster as YAML, without a host.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use deploy::Release;

use crate::args::{Global, PlacementArg, Values};
use crate::commands::config;
use crate::failure::Failure;
use crate::release;
use crate::ui::Ui;

#[derive(Clone, Debug, ClapArgs)]
pub struct Template {
    /// Name of the virtual cluster
    pub name: String,
    #[command(flatten)]
    pub values: Values,
    /// Where the control plane runs
    #[arg(long, value_enum, default_value_t = PlacementArg::Dedicated)]
    pub placement: PlacementArg,
    /// Print the Namespace too
    #[arg(long)]
    pub create_namespace: bool,
}

pub fn run(global: &Global, args: &Template, ui: &Ui) -> anyhow::Result<ExitCode> {
    deploy::names::check_name(&args.name).map_err(|error| Failure::invalid(error.to_string()))?;
    let config = config::load(&args.values)?;
    config::warn_without_effect(&config, args.placement, ui);
    let namespace = global.namespace.clone().unwrap_or_else(|| deploy::names::default_namespace(&args.name));
    let objects = release::render(&Release {
        name: &args.name,
        namespace: &namespace,
        placement: args.placement.into(),
        config: &config,
        version: env!("CARGO_PKG_VERSION"),
    })?;
    let first = args.create_namespace.then(|| deploy::namespace(&namespace));
    for object in first.iter().chain(&objects) {
        print!("---\n{}", ::config::yaml::to_string(object)?);
    }
    Ok(ExitCode::SUCCESS)
}
