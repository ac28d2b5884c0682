//! The one binary. The command line is in [`cli`], the configuration in [`config`]; each command is carried out
//! in a module of its own. What runs is composed in [`compose`] from the roles' crates.

mod admin;
mod ask;
mod cli;
mod compose;
mod config;
mod demo;
mod echo;
mod limits;
mod order;
mod serve;
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
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => source::check(&args.source, &args.scalars),
        Command::PrintConfig(args) => source::print_config(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut std::io::stdout());
            Ok(exit::OK)
        }
        other => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(talk(other)),
    }
}

/// Commands that run on one thread: those that talk to a running controller, and `echo`.
async fn talk(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Status(args) => ask::status(&args.admin).await,
        Command::Servers(args) => ask::servers(&args.admin).await,
        Command::Explain(args) => ask::explain(&args.admin).await,
        Command::Events(args) => ask::events(&args).await,
        Command::Drain(args) => order::drain(&args).await,
        Command::Undrain(args) => order::undrain(&args).await,
        Command::Cordon(args) => order::cordon(&args).await,
        Command::Shed(args) => order::shed(&args).await,
        Command::Scale(args) => order::scale(&args).await,
        Command::Echo(args) => echo::run(args).await.map(|()| exit::OK),
        Command::Demo(_)
        | Command::Serve(_)
        | Command::CheckConfig(_)
        | Command::PrintConfig(_)
        | Command::Completions { .. } => unreachable!("run carries these out itself"),
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<AdminError>() {
        return error.exit();
    }
    if error.is::<ConfigError>() { exit::USAGE } else { exit::FAILED }
}
