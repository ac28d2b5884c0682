//! From the command line to settings: a file, servers named on the command line, or the demo's own.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;

use crate::cli::{DEFAULT_FILE, PrintArgs, Scalars, SourceArgs, exit};
use crate::config::raw::{RawFile, RawFleet, RawServer};
use crate::config::{self, ConfigError, Settings, print};
use crate::say::{say, write};

/// Name of the fleet that `--to` makes.
const FLEET: &str = "servers";

/// What a command runs with.
pub(crate) fn settings(source: &SourceArgs, scalars: &Scalars) -> Result<Settings, ConfigError> {
    let overrides = scalars.overrides();
    if source.to.is_empty() {
        return config::load(&source.config, &overrides);
    }
    config::from_raw(file_to(&source.to), "the command line", Path::new("."), &overrides)
}

/// The file that means the same as `--to URL --to URL`.
fn file_to(urls: &[String]) -> RawFile {
    let server = |(index, url): (usize, &String)| RawServer {
        id: Some(Value::String(format!("s{}", index + 1))),
        url: Some(Value::String(url.clone())),
        ..RawServer::default()
    };
    let fleet = RawFleet {
        servers: Some(urls.iter().enumerate().map(server).collect()),
        // Without a file of ours, what we generate goes where we keep our state.
        key_file: Some(Value::String(format!("evenkeel.state/{FLEET}.key"))),
        ..RawFleet::default()
    };
    RawFile { fleets: Some(BTreeMap::from([(FLEET.to_owned(), fleet)])), ..RawFile::default() }
}

/// `check-config`
pub(crate) fn check(source: &SourceArgs, scalars: &Scalars) -> anyhow::Result<u8> {
    let settings = settings(source, scalars)?;
    let name = if source.to.is_empty() { source.config.display().to_string() } else { String::from("this") };
    let servers: usize = settings.fleets.values().map(|fleet| fleet.servers.len()).sum();
    say!(
        "{name} is a good configuration: {} fleet(s), {servers} listed server(s), {} route(s)",
        settings.fleets.len(),
        settings.routes.len()
    );
    Ok(exit::OK)
}

/// `print-config`
pub(crate) fn print_config(args: &PrintArgs) -> anyhow::Result<u8> {
    let settings = match args.demo {
        true => crate::demo::printed(crate::cli::DEMO_CLIENTS, crate::demo::USUAL)?,
        false => settings(&args.source, &args.scalars)?,
    };
    write(&print::print(&settings)?);
    Ok(exit::OK)
}

/// What to say when there is no file to read.
pub(crate) fn hint(error: &ConfigError) -> Option<String> {
    match error {
        ConfigError::Read { path, source }
            if path == Path::new(DEFAULT_FILE) && source.kind() == std::io::ErrorKind::NotFound =>
        {
            Some(String::from(
                "name a file with -c, or do without one: evenkeel serve --to ws://127.0.0.1:9001 --to ws://127.0.0.1:9002",
            ))
        }
        _ => None,
    }
}
