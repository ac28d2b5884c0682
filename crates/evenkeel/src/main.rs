//! The one binary. The command line is in [`cli`], the configuration in [`config`]; each command is carried out
//! in a module of its own. What runs is composed in [`compose`] from the roles' crates.

mod admin;
mod agent;
mod ask;
mod cli;
mod compose;
mod config;
mod demo;
mod echo;
mod limits;
mod numbered;
mod order;
mod recall;
mod say;
mod serve;
mod sim;
mod source;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use admin::AdminError;
use cli::{Cli, Command, UsageError, exit};
use config::ConfigError;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("evenkeel: {error:#}");
            if let Some(hint) = error.downcast_ref().and_then(source::hint) {
                eprintln!("  {hint}");
            }
            ExitCode::from(code_of(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => source::check(&args.source, &args.scalars),
        Command::PrintConfig(args) => source::print_config(&args),
        Command::Status(args) => on_one_thread(ask::status(&args.admin)),
        Command::Servers(args) => on_one_thread(ask::servers(&args.admin)),
        Command::Explain(args) => on_one_thread(ask::explain(&args.admin)),
        Command::Events(args) => on_one_thread(ask::events(&args)),
        Command::Drain(args) => on_one_thread(order::drain(&args)),
        Command::Undrain(args) => on_one_thread(order::undrain(&args)),
        Command::Cordon(args) => on_one_thread(order::cordon(&args)),
        Command::Shed(args) => on_one_thread(order::shed(&args)),
        Command::Scale(args) => on_one_thread(order::scale(&args)),
        Command::Agent(args) => on_one_thread(async { agent::run(args).await.map(|()| exit::OK) }),
        Command::Echo(args) => on_one_thread(async { echo::run(args).await.map(|()| exit::OK) }),
        Command::Sim(args) => sim::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
            say::write(&String::from_utf8_lossy(&script));
            Ok(exit::OK)
        }
    }
}

fn on_one_thread(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<AdminError>() {
        return error.exit();
    }
    let usage =
        error.is::<UsageError>() || error.is::<ConfigError>() || error.is::<evenkeel_sim::ScenarioError>();
    if usage { exit::USAGE } else { exit::FAILED }
}
