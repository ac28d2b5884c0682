//! `demo`: the whole product on this machine with real processes, real sockets and real clients, and a judgement
//! of what the clients saw.
//!
//! It composes the same roles from the same kind of configuration as `serve` does. Exit code 0 means that every
//! invariant held.
//!
//! | what | module |
//! |---|---|
//! | the configuration and the acts | [`plan`] |
//! | the clients | [`clients`], what they saw: [`tally`] |
//! | what the controller says meanwhile | [`observe`] |
//! | what is done to the servers | [`story`] |
//! | what is to be seen | [`board`], [`summary`] |
//! | whether it went well | [`verdict`], beside what `leastconn` would have done: [`compare`] |

mod board;
mod clients;
mod compare;
mod observe;
mod plan;
mod story;
mod summary;
mod tally;
mod verdict;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use evenkeel_runtime::tasks::catch_panic;
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, log};

use crate::admin::Admin;
use crate::cli::{DemoArgs, Role, exit};
use crate::compose::Product;
use crate::config::Settings;
use crate::config::unit::show_duration;
use crate::limits;
use crate::say::say;
use story::{Stage, Story};

pub(crate) use plan::{USUAL, printed};

/// For the first servers to be up.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// Runs the demo and ends with everything it started.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<u8> {
    limits::raise_open_files();
    plan::check(args.clients, args.duration)?;
    if let Ok(level) = std::env::var("EVENKEEL_LOG_LEVEL") {
        log::init(log::Format::Text, &level)?;
    }
    let dir = Dir::make()?;
    let settings = plan::settings(&dir.0, args.clients, args.duration)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?
        .block_on(perform(args, &settings))
}

async fn perform(args: &DemoArgs, settings: &Settings) -> anyhow::Result<u8> {
    let (trigger, shutdown) = Shutdown::new();
    trigger.on_signals(&Tasks::new())?;
    let clock = Clock::start();
    let product = Product::start(settings, &[Role::Gateway, Role::Controller], clock).await?;
    let stage = stage(&product, settings, clock)?;
    // Whatever happens on the stage, the servers must not outlive the demo.
    let played = tokio::select! {
        played = catch_panic(play(args, settings, &stage)) => Some(played),
        () = shutdown.reached(Phase::Drain) => None,
    };
    if args.keep && matches!(played, Some(Ok(Ok(_)))) && !shutdown.is(Phase::Drain) {
        say!("{}", summary::kept(settings, stage.gateway, stage.admin_addr));
        shutdown.reached(Phase::Drain).await;
    }
    let left = tokio::select! {
        left = product.leave_with_servers() => left,
        () = shutdown.reached(Phase::Stop) => Err(anyhow::anyhow!("ended at once by a second signal; servers may be left")),
    };
    match played {
        None => anyhow::bail!("ended by a signal before its time"),
        Some(Err(panic)) => anyhow::bail!("the demo itself failed: {panic}"),
        Some(Ok(code)) => code.and_then(|code| left.map(|()| code)),
    }
}

fn stage(product: &Product, settings: &Settings, clock: Clock) -> anyhow::Result<Stage> {
    let token =
        std::fs::read_to_string(&settings.admin.token_file).context("could not read the admin token")?;
    let gateway = product.gateways().first().copied().context("the gateway listens nowhere")?;
    let admin_addr = product.admin();
    let admin = Admin::at(admin_addr.to_string(), token.trim().to_owned());
    Ok(Stage {
        gateway,
        admin,
        admin_addr,
        clock,
        tasks: Tasks::new(),
        wanted: tokio::sync::watch::Sender::new(0),
    })
}

async fn play(args: &DemoArgs, settings: &Settings, stage: &Stage) -> anyhow::Result<u8> {
    say!("{}", introduction(args, settings, stage.gateway, stage.admin_addr));
    let mut story = Story::new(args, stage);
    story.wait_for_servers(UP_WITHIN).await?;
    story.tell().await;
    let told = story.end().await;
    say!("{}", summary::text(args, &told));
    Ok(if told.broken.is_empty() { exit::OK } else { exit::FAILED })
}

/// What is about to happen, with which times.
fn introduction(args: &DemoArgs, settings: &Settings, gateway: SocketAddr, admin: SocketAddr) -> String {
    let fleet = settings.fleets.values().next();
    let times = fleet.map(|fleet| {
        let (law, scale) = (&fleet.law, fleet.law.scale.clone().unwrap_or_default());
        format!(
            "times of the control law divided by {}: moves every {} at {}, drains wait {}, slow start {},\n  scale looks every {} and down after {}",
            fleet.speed,
            show_duration(law.moves.round),
            law.moves.pace,
            show_duration(law.moves.soft),
            show_duration(law.place.slow_start),
            show_duration(scale.round),
            show_duration(scale.window)
        )
    });
    format!(
        "evenkeel demo: {} clients over {}, servers of {} connections each, everything on this machine\n  gateway ws://{gateway}   admin http://{admin}\n  {}\n  evenkeel print-config --demo prints it all\n",
        args.clients,
        show_duration(args.duration),
        plan::capacity(args.clients),
        times.unwrap_or_default()
    )
}

/// A directory of our own that goes when the demo does.
struct Dir(PathBuf);

impl Dir {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("evenkeel-demo-{}", std::process::id()));
        make_private(&path).with_context(|| format!("could not make the directory {}", path.display()))?;
        Ok(Self(path))
    }
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Best effort: it lies among the system's temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
