//! `serve`: the roles until a signal ends them.

use std::net::SocketAddr;
use std::path::Path;

use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, log};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use crate::cli::{Role, ServeArgs, UsageError, exit};
use crate::compose::Product;
use crate::config::Settings;
use crate::say::say;
use crate::source;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<u8> {
    let settings = source::settings(&args.source, &args.scalars)?;
    if !args.roles.contains(&Role::Controller) {
        let why = "a gateway without a controller in its process is not available yet; use --roles gateway,controller";
        return Err(UsageError(why.to_owned()).into());
    }
    log::init(settings.log.format, &settings.log.level)?;
    crate::limits::raise_open_files();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?
        .block_on(serve(args, &settings))
}

async fn serve(args: &ServeArgs, settings: &Settings) -> anyhow::Result<u8> {
    let (trigger, shutdown) = Shutdown::new();
    let tasks = Tasks::new();
    trigger.on_signals(&tasks)?;
    stay_on_hangup(&tasks, &shutdown)?;
    let product = Product::start(settings, &args.roles, Clock::start()).await?;
    say!("{}", greeting(settings, product.admin(), product.gateways(), &args.source.config, &args.source.to));
    let lost = tokio::select! {
        () = shutdown.reached(Phase::Drain) => false,
        () = product.gateway_lost() => true,
    };
    tokio::select! {
        left = product.leave() => left?,
        () = shutdown.reached(Phase::Stop) => anyhow::bail!("ended at once by a second signal"),
    }
    anyhow::ensure!(!lost, "the gateway ended by itself; see the log");
    let provided = settings.fleets.values().any(|fleet| fleet.provider.is_some());
    let stay = if provided {
        "; the servers it started keep running, and the next start takes them over"
    } else {
        ""
    };
    say!("evenkeel has left in order{stay}");
    Ok(exit::OK)
}

/// SIGHUP asks for a reload, which there is not yet. It must not end the process as it would by default.
fn stay_on_hangup(tasks: &Tasks, shutdown: &Shutdown) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let shutdown = shutdown.clone();
    tasks.spawn("hangup", async move {
        loop {
            tokio::select! {
                asked = hangup.recv() => if asked.is_none() { return },
                () = shutdown.reached(Phase::Drain) => return,
            }
            warn!("configuration is read at the start only; restart to take a changed one");
        }
    });
    Ok(())
}

/// What listens where, and what to type next.
fn greeting(
    settings: &Settings,
    admin: SocketAddr,
    gateways: &[SocketAddr],
    file: &Path,
    to: &[String],
) -> String {
    let mut lines = vec![String::from("evenkeel is ready")];
    for addr in gateways {
        lines.push(format!("  gateway   ws://{addr}"));
    }
    lines.push(format!("  admin     http://{admin}  (token in {})", settings.admin.token_file.display()));
    for (id, fleet) in &settings.fleets {
        let provided =
            fleet.provider.as_ref().map(|process| format!("started with `{}`", process.command.join(" ")));
        let listed = || match fleet.servers.len() {
            0 => String::from("none listed; they come by agents"),
            _ => {
                let urls: Vec<_> = fleet.servers.iter().take(4).map(|server| server.url.as_str()).collect();
                let more = fleet.servers.len().saturating_sub(4);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{}{more}", urls.join(", "))
            }
        };
        lines.push(format!("  fleet     {id}: servers {}", provided.unwrap_or_else(listed)));
    }
    let from = if !to.is_empty() || admin != settings.admin.listen {
        format!("--admin http://{admin} --token-file {}", settings.admin.token_file.display())
    } else if file == Path::new(crate::cli::DEFAULT_FILE) {
        String::new()
    } else {
        format!("-c {}", file.display())
    };
    if !to.is_empty() {
        let to: Vec<_> = to.iter().map(|url| format!("--to {url}")).collect();
        lines.push(format!(
            "as a file: evenkeel print-config {} > {}",
            to.join(" "),
            crate::cli::DEFAULT_FILE
        ));
    }
    lines.push(format!("next: evenkeel status {from}").trim_end().to_owned());
    lines.join("\n")
}
