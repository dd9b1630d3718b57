//! `alcove config schema | validate`, and reading `vcluster.yaml` for other commands.

use std::io::Read;
use std::process::ExitCode;

use config::{Config, Source};

use crate::args::{ConfigCommand, PlacementArg, Values};
use crate::failure::Failure;
use crate::ui::Ui;

pub fn run(command: ConfigCommand, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Schema => println!("{:#}", config::json_schema()),
        ConfigCommand::Validate { values, placement, print } => {
            let config = load(&values)?;
            warn_without_effect(&config, placement, ui);
            if print {
                print!("{}", config::yaml::to_string(config.values())?);
            } else {
                ui.done("the configuration is valid");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the files and overrides of the command line.
pub fn load(values: &Values) -> anyhow::Result<Config> {
    config::load(&sources(values)?, &values.set).map_err(|error| {
        let failure = Failure::invalid(format!("the configuration is not valid\n{error}"));
        failure.hint("`alcove config schema` prints all keys").into()
    })
}

/// Reads the files of the command line.
pub fn sources(values: &Values) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in &values.files {
        let name = path.display().to_string();
        let text = if name == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Failure::invalid(format!("cannot read standard input: {error}")))?;
            text
        } else if name.starts_with("https://") || name.starts_with("http://") {
            // Reading files blocks as well.
            let fetched =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(snapshot::fetch_text(&name)));
            fetched.map_err(|error| {
                Failure::invalid(format!("cannot read {name}: {}", crate::commands::up::chain(&error)))
            })?
        } else {
            std::fs::read_to_string(path).map_err(|error| Failure::invalid(format!("cannot read {name}: {error}")))?
        };
        sources.push(Source::new(name, text));
    }
    Ok(sources)
}

/// Says which set keys change nothing.
pub fn warn_without_effect(config: &Config, placement: PlacementArg, ui: &Ui) {
    for (path, reason) in config.without_effect(placement == PlacementArg::Hub) {
        ui.warn(&format!("{path} has no effect: {reason}"));
    }
}
