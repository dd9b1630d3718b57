//! `alcove`: the only place where flags, environment and printing live.
//!
//! Results go to standard output, everything said while working to standard error. Exit codes are in [`failure`].

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod clusters;
mod commands;
mod failure;
mod foreign;
mod home;
mod host;
mod kubeconfig;
mod links;
mod logs;
mod manifests;
mod operate;
mod reach;
mod release;
mod signals;
mod table;
mod ui;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Several TLS providers may be linked; one is chosen here for the whole process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = match links::command_line(std::env::args_os()) {
        links::CommandLine::Parse(arguments) => match foreign::check(arguments) {
            foreign::Checked::Go(arguments) => args::Args::parse_from(arguments),
            foreign::Checked::Said(text) => {
                ui::Ui::new(false, args::LogOutput::Plain).done(text);
                return ExitCode::SUCCESS;
            }
            foreign::Checked::Refused(failure) => {
                return failure::report(&ui::Ui::new(false, args::LogOutput::Plain), &failure.into());
            }
        },
        links::CommandLine::Print(text) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
    };
    // Commands say what went wrong themselves; logs are for those that serve.
    let level = match (args.global.debug, args.serves()) {
        (true, _) => "debug,hyper=info,h2=info,rustls=info",
        (false, true) => "warn",
        (false, false) => "off",
    };
    logs::start(level);
    if args.serves() {
        // A cluster keeps about eight files and sockets open, and the usual soft limit is meant for programs of another time.
        match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(files) => tracing::debug!(files, "limit of open files"),
            Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
        }
    }
    let ui = ui::Ui::new(args.global.silent, args.global.log_output);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&ui, &anyhow::Error::from(error).context("cannot start")),
    };
    match runtime.block_on(commands::run(args, &ui)) {
        Ok(code) => code,
        Err(error) => failure::report(&ui, &error),
    }
}
