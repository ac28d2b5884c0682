//! What the demo runs and when: its configuration, the same as a file would say it, and its acts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use toml::Value;

use crate::cli::UsageError;
use crate::config::raw::{
    RawAdmin, RawFile, RawFleet, RawGateway, RawHealth, RawMove, RawProvider, RawScale,
};
use crate::config::unit::show_duration;
use crate::config::{self, ConfigError, Overrides, Settings};
use crate::limits;

/// Name of the demo's fleet.
pub(crate) const FLEET: &str = "demo";
/// Every time of the control law that is not written below runs so much faster than in production.
const SPEED: f64 = 20.0;
/// The demo's time where nothing else is asked for; in less, moves and scale down are faster in proportion.
pub(crate) const USUAL: Duration = Duration::from_secs(90);
/// Less is not enough for servers to start, fill, empty and stop.
const SHORTEST: Duration = Duration::from_secs(30);
/// Four servers are full of the clients: with headroom six run at the peak, enough to lose one and drain one.
const SERVERS_FULL: u32 = 4;
/// Descriptors a connection takes in this process: the client's end and the gateway's two.
const FILES_PER_CLIENT: u64 = 3;
/// Descriptors for everything else: listeners, agents, store, logs, and sockets that are just closing.
const FILES_RESERVED: u64 = 300;

/// Most clients the open-file limit allows.
pub(crate) fn clients_max() -> u64 {
    limits::open_files().saturating_sub(FILES_RESERVED) / FILES_PER_CLIENT
}

/// Refuses what cannot work.
pub(crate) fn check(clients: u32, duration: Duration) -> Result<(), UsageError> {
    let most = clients_max();
    if u64::from(clients) > most {
        return Err(UsageError(format!(
            "could not run {clients} clients: at most {most} fit the open-file limit of {} ({FILES_PER_CLIENT} for each connection); raise it with `ulimit -n`, or take --clients {most}",
            limits::open_files()
        )));
    }
    if duration < SHORTEST {
        return Err(UsageError(format!(
            "could not run the demo in {}: it takes at least {} to start, move, drain and stop servers",
            show_duration(duration),
            show_duration(SHORTEST)
        )));
    }
    Ok(())
}

/// The demo's configuration: short times, free ports, servers that this very program plays.
pub(crate) fn settings(dir: &Path, clients: u32, duration: Duration) -> anyhow::Result<Settings> {
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let program = program.to_str().context("could not use this program's path: it is not UTF-8")?;
    let token = dir.join("admin.token");
    let token = token.to_str().context("could not use the temporary directory: its path is not UTF-8")?;
    Ok(checked(file(program, token, clients, duration, &Ports::free()?), dir)?)
}

/// The same with the usual ports and paths, to be printed and started as a file.
pub(crate) fn printed(clients: u32, duration: Duration) -> anyhow::Result<Settings> {
    Ok(checked(file("evenkeel", "admin.token", clients, duration, &Ports::usual()), Path::new("."))?)
}

fn checked(file: RawFile, dir: &Path) -> Result<Settings, ConfigError> {
    config::from_raw(file, "the demo", dir, &Overrides::default())
}

/// Where the demo listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    /// The admin listener: fixed beforehand, because the servers' command names it.
    admin: SocketAddr,
    /// The gateway.
    gateway: SocketAddr,
}

impl Ports {
    /// Free ports of the loopback address.
    fn free() -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // Held for a moment and given back: the kernel does not hand them out again so soon.
        let held = evenkeel_runtime::listen(any, "demo")?;
        Ok(Self { admin: held.local_addr()?, gateway: any })
    }

    /// Those of a printed configuration.
    fn usual() -> Self {
        Self {
            admin: SocketAddr::from(([127, 0, 0, 1], 9900)),
            gateway: SocketAddr::from(([127, 0, 0, 1], 8080)),
        }
    }
}

fn file(program: &str, token: &str, clients: u32, duration: Duration, ports: &Ports) -> RawFile {
    let pace = (0.025 * f64::from(clients) * USUAL.as_secs_f64() / duration.as_secs_f64()).max(5.0).round();
    let window = Duration::from_millis(4_000).mul_f64(duration.as_secs_f64() / USUAL.as_secs_f64());
    let window = Duration::from_millis(u64::try_from(window.as_millis()).unwrap_or(u64::MAX));
    let capacity = capacity(clients).to_string();
    let admin = format!("http://{}", ports.admin);
    let command = [
        program,
        "echo",
        "--listen",
        "127.0.0.1:{port}",
        "--id",
        "{id}",
        "--capacity",
        &capacity,
        "--join",
        &admin,
        "--token-file",
        token,
        "--log-level",
        "warn",
    ];
    let fleet = RawFleet {
        speed: Some(Value::Float(SPEED)),
        // Servers let go of connections older than 60 reports: here six seconds.
        health: Some(RawHealth { report_interval: text("100ms"), ..RawHealth::default() }),
        provider: Some(RawProvider {
            kind: text("process"),
            command: Some(Value::Array(command.map(|word| Value::String(word.to_owned())).to_vec())),
            grace: text("5s"),
            ..RawProvider::default()
        }),
        scale: Some(RawScale {
            min: whole(2),
            max: whole(8),
            window: text(&show_duration(window)),
            boot_time: text("4s"),
            round: text("500ms"),
            ..RawScale::default()
        }),
        // A fortieth of all clients a second in the usual time: a server is empty within ten seconds, and moves
        // can be watched.
        r#move: Some(RawMove {
            pace: Some(Value::Float(pace)),
            soft: text("1s"),
            round: text("500ms"),
            ..RawMove::default()
        }),
        ..RawFleet::default()
    };
    RawFile {
        admin: Some(RawAdmin { listen: text(&ports.admin.to_string()), ..RawAdmin::default() }),
        gateway: Some(RawGateway {
            listen: Some(Value::Array(vec![Value::String(ports.gateway.to_string())])),
            ..RawGateway::default()
        }),
        fleets: Some(BTreeMap::from([(FLEET.to_owned(), fleet)])),
        ..RawFile::default()
    }
}

/// Connections that each server of the demo says it can hold.
pub(crate) fn capacity(clients: u32) -> u32 {
    clients.div_ceil(SERVERS_FULL).max(3)
}

fn text(text: &str) -> Option<Value> {
    Some(Value::String(text.to_owned()))
}

fn whole(number: u32) -> Option<Value> {
    Some(Value::Integer(number.into()))
}

/// One act of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// Clients come; servers start as the load grows.
    Grow,
    /// Everybody is there.
    Hold,
    /// One server is killed.
    Kill,
    /// One server is drained on purpose.
    Drain,
    /// Clients go; servers are drained and stopped.
    Fall,
}

impl Act {
    /// All, with the share of the demo's time at which each begins.
    pub(crate) const ALL: [(Self, f64); 5] =
        [(Self::Grow, 0.02), (Self::Hold, 0.34), (Self::Kill, 0.40), (Self::Drain, 0.52), (Self::Fall, 0.66)];

    /// The one at a share of the demo's time.
    pub(crate) fn at(share: f64) -> Self {
        Self::ALL.iter().rev().find(|(_, from)| share >= *from).map_or(Self::Grow, |(act, _)| *act)
    }

    /// One word for tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Grow => "grow",
            Self::Hold => "hold",
            Self::Kill => "kill",
            Self::Drain => "drain",
            Self::Fall => "fall",
        }
    }

    /// One sentence for people.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Grow => "clients come; servers start, connections move onto them",
            Self::Hold => "all clients are there",
            Self::Kill => "a server is killed by SIGKILL; its clients come back elsewhere",
            Self::Drain => "a server is drained; its clients move at a steady pace",
            Self::Fall => "clients go; servers are drained and stopped",
        }
    }
}

/// The clients that should be connected at a share of the demo's time.
pub(crate) fn wanted(clients: u32, share: f64) -> u32 {
    // The last tenth of them stays, so that the smallest fleet still has something to hold.
    let rest = 0.1;
    let part = match share {
        share if share < 0.02 => 0.0,
        share if share < 0.32 => (share - 0.02) / 0.30,
        share if share < 0.66 => 1.0,
        share if share < 0.80 => 1.0 - (1.0 - rest) * (share - 0.66) / 0.14,
        _ => rest,
    };
    (f64::from(clients) * part).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_configuration_is_one_that_a_file_could_hold() {
        let settings = printed(2_000, USUAL).unwrap();
        let printed = config::print::print(&settings).unwrap();
        let again = config::from_text(&printed, "printed", Path::new("."), &Overrides::default()).unwrap();
        assert_eq!(again, settings);
        let scale = settings.fleets.values().next().unwrap().law.scale.clone().unwrap();
        assert!(f64::from(capacity(2_000) * scale.max) * scale.up_level.get() > 2_000.0);
    }

    #[test]
    fn clients_come_stay_and_go() {
        assert_eq!(wanted(2_000, 0.0), 0);
        assert_eq!(wanted(2_000, 0.17), 1_000);
        assert_eq!(wanted(2_000, 0.5), 2_000);
        assert_eq!(wanted(2_000, 0.9), 200);
    }
}
