//! The one binary. The command line is in [`cli`], the configuration in [`config`]; each command is carried out
//! in a module of its own. What runs is composed in `serve` from the roles' crates.

mod admin;
mod cli;
mod config;
mod source;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use admin::AdminError;
use cli::{Cli, Command, exit};
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
        Command::CheckConfig(args) => source::check(&args.source, &args.scalars),
        Command::PrintConfig(args) => source::print_config(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut std::io::stdout());
            Ok(exit::OK)
        }
        _ => anyhow::bail!("…"),
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<AdminError>() {
        return error.exit();
    }
    if error.is::<ConfigError>() { exit::USAGE } else { exit::FAILED }
}
