//! The command line: what exists, with help that teaches it. Carrying a command out is elsewhere, one module each.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Override, Overrides};

/// Exit codes, as documented in the help.
pub(crate) mod exit {
    /// It did what was asked.
    pub(crate) const OK: u8 = 0;
    /// It could not, or a check of its own failed.
    pub(crate) const FAILED: u8 = 1;
    /// The command line or the configuration is wrong. The command line's part is clap's own number.
    pub(crate) const USAGE: u8 = 2;
    /// The controller refused the order.
    pub(crate) const REFUSED: u8 = 3;
    /// The admin listener cannot be reached.
    pub(crate) const UNREACHABLE: u8 = 4;
}

const AFTER: &str = "\
First steps:
  evenkeel demo
      see everything at work on this machine, in 90 seconds
  evenkeel serve --to ws://127.0.0.1:9001 --to ws://127.0.0.1:9002
      balance two servers, no file needed
  evenkeel print-config --to ws://127.0.0.1:9001 > evenkeel.toml
      the same as a file, to go on from; then: evenkeel serve

Exit codes:
  0 done   1 failed   2 wrong command line or configuration   3 refused by the controller
  4 admin listener not reachable";

/// Keeps a horizontally scaled fleet of WebSocket servers evenly loaded.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, about, after_help = AFTER, max_term_width = 110)]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What was asked for can never work, whatever the state of the world.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole product on this machine with real connections, and check that nothing goes wrong
    Demo(DemoArgs),
    /// Run gateway and controller
    Serve(ServeArgs),
    /// Check a configuration and say everything that is wrong with it
    CheckConfig(ConfigArgs),
    /// Print the effective configuration with every key, as TOML
    PrintConfig(PrintArgs),
    /// Show the fleets at a glance: servers, load, what is going on
    Status(AskArgs),
    /// List servers with state, counts, targets and scores
    #[command(after_help = "\
CAPACITY with ~ is assumed: the server declares none (capacity.assumed). SCORE is 1 when full, with
the measure that made it. BOUND BY is the ceiling that keeps TARGET low.")]
    Servers(AskArgs),
    /// Empty a server: no new connections, those it has are moved at the fleet's pace
    Drain(DrainArgs),
    /// End a drain or a cordon
    Undrain(ServerArgs),
    /// Take no new connections on a server, keep those it has
    Cordon(ServerArgs),
    /// Hold at most N connections on a server for a while
    Shed(ShedArgs),
    /// Hold a number of servers, or give the number back to the policy
    Scale(ScaleArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Say why the last round did what it did, also when it did nothing
    Explain(AskArgs),
    /// Speak for a server without SDK: count its connections, measure its process, close on order
    Agent(crate::agent::Args),
    /// Run a WebSocket server that sends every message back, on every path
    Echo(crate::echo::Args),
    /// Run a scenario through the decision code, without a network
    Sim(crate::sim::Args),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  evenkeel completions bash > /etc/bash_completion.d/evenkeel")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `serve`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  evenkeel serve                           with ./evenkeel.toml
  evenkeel serve -c /etc/evenkeel.toml --log-format json
  evenkeel serve --to ws://127.0.0.1:9001 --to ws://127.0.0.1:9002
  evenkeel serve --to ws://127.0.0.1:9001 --gateway-listen 0.0.0.0:80 --gateway-listen [::]:80

SIGTERM or Ctrl-C ends it in order: no new connections, tunnels closed with 1012, then exit 0.
A second signal ends it at once. Servers started by the process provider keep running and are
taken over by the next start.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Roles to run in this process: gateway, controller
    #[arg(long, value_name = "ROLES", value_delimiter = ',', default_value = "gateway,controller")]
    pub(crate) roles: Vec<Role>,
    #[command(flatten)]
    pub(crate) scalars: Scalars,
}

/// A part of the product that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Accepts, places and tunnels connections.
    Gateway,
    /// Plans and executes; has the admin listener.
    Controller,
}

/// Where a configuration comes from.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(crate) config: PathBuf,
    /// No file: one fleet of these servers, as often as there are servers
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub(crate) to: Vec<String>,
}

/// Looked for in the working directory where no file is named.
pub(crate) const DEFAULT_FILE: &str = "evenkeel.toml";

/// `check-config`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  evenkeel check-config -c evenkeel.toml && systemctl restart evenkeel")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) scalars: Scalars,
}

/// `print-config`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  evenkeel print-config                                      ./evenkeel.toml with all defaults filled in
  evenkeel print-config --to ws://127.0.0.1:9001 > evenkeel.toml
  evenkeel print-config --demo                               what the demo runs, with its short timings")]
pub(crate) struct PrintArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The demo's configuration
    #[arg(long, conflicts_with_all = ["config", "to"])]
    pub(crate) demo: bool,
    #[command(flatten)]
    pub(crate) scalars: Scalars,
}

/// Clients of the demo where nothing else is asked for.
pub(crate) const DEMO_CLIENTS: u32 = 2_000;

/// `demo`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  evenkeel demo
  evenkeel demo --clients 500 --duration 60s
  evenkeel demo --keep                     stays up at the end and prints what to look at

Everything listens on free ports of 127.0.0.1 and ends with the demo. Exit code 0 means that every
invariant held; 1 that one broke, and which.")]
pub(crate) struct DemoArgs {
    /// How long it takes
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub(crate) duration: std::time::Duration,
    /// Most clients connected at a time
    #[arg(long, value_name = "N", default_value_t = DEMO_CLIENTS, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(crate) clients: u32,
    /// Stay up at the end and print the URLs
    #[arg(long)]
    pub(crate) keep: bool,
    /// Seed of the clients' timing, for a run that should resemble another
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

/// How a running controller is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// Configuration file that says where the controller is and where its token is
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Admin listener, instead of a file
    #[arg(long, value_name = "URL", env = "EVENKEEL_ADMIN_LISTEN")]
    pub(crate) admin: Option<String>,
    /// File with the admin token
    #[arg(long, value_name = "FILE", env = "EVENKEEL_ADMIN_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// How to answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For scripts: what the admin API says.
    Json,
}

/// A question.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// An order about one server.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits 0 once the order is durable and this controller's gateways obey it, 3 when it is refused.")]
pub(crate) struct ServerArgs {
    /// Server id, as `evenkeel servers` lists it
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// `drain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  evenkeel drain chat-3
  evenkeel drain chat-3 --wait --wait-timeout 15m && ssh chat-3 reboot

Exits 0 once the order is durable and this controller's gateways obey it, with --wait once the
server is empty; 3 when it is refused, for example because the other servers have no room
(--force drains all the same), 1 when --wait-timeout passes first.")]
pub(crate) struct DrainArgs {
    /// Server id, as `evenkeel servers` lists it
    pub(crate) id: String,
    /// Wait until the server is drained
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration, requires = "wait")]
    pub(crate) wait_timeout: std::time::Duration,
    /// Even if the other servers have no room for its connections
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// `shed`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  evenkeel shed chat-3 --to 500      moves the rest away, and holds it there for 10 minutes"
)]
pub(crate) struct ShedArgs {
    /// Server id, as `evenkeel servers` lists it
    pub(crate) id: String,
    /// Most connections it should hold
    #[arg(long, value_name = "N")]
    pub(crate) to: u32,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// `scale`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  evenkeel scale chat 5
  evenkeel scale chat 0                    end every server once it is empty
  evenkeel scale chat auto                 back to the policy")]
pub(crate) struct ScaleArgs {
    /// Fleet name
    pub(crate) fleet: String,
    /// Number of servers, or `auto`
    #[arg(value_name = "N|auto", value_parser = servers)]
    pub(crate) servers: Servers,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// How many servers a fleet should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Servers {
    /// What the policy says.
    Auto,
    /// So many.
    Fixed(u32),
}

/// `events`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  evenkeel events                          what is still remembered
  evenkeel events --follow --output json   one JSON object a line, as they happen")]
pub(crate) struct EventsArgs {
    /// Go on with new ones until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::unit::parse_duration(text)
        .ok_or_else(|| String::from("a duration is a number with a unit, for example \"90s\" or \"1m30s\""))
}

fn servers(text: &str) -> Result<Servers, String> {
    if text == "auto" {
        return Ok(Servers::Auto);
    }
    text.parse().map(Servers::Fixed).map_err(|_| String::from("give a number of servers or \"auto\""))
}

macro_rules! scalars {
    ($($field:ident $table:literal $key:literal $flag:literal $env:literal $value:literal $help:literal;)*) => {
        /// Scalars of `[admin]`, `[gateway]` and `[log]`, over what the file says.
        #[derive(Debug, Clone, Default, Args)]
        #[command(next_help_heading = "Over the file (same names in [admin], [gateway], [log])")]
        pub(crate) struct Scalars {
            $(#[arg(long = $flag, env = $env, value_name = $value, help = $help, hide_env_values = true)]
            $field: Option<String>,)*
        }

        impl Scalars {
            /// Those that were given.
            pub(crate) fn overrides(&self) -> Overrides {
                let all = [$((($table, $key), &self.$field, concat!("--", $flag, " or ", $env)),)*];
                let given = all.into_iter().filter_map(|(key, value, set_by)| {
                    Some(Override { key, value: value.clone()?, set_by: set_by.to_owned() })
                });
                Overrides(given.collect())
            }
        }
    };
}

scalars! {
    admin_listen "admin" "listen" "admin-listen" "EVENKEEL_ADMIN_LISTEN" "ADDR" "Admin listener [default: 127.0.0.1:9900]";
    admin_token_file "admin" "token_file" "admin-token-file" "EVENKEEL_ADMIN_TOKEN_FILE" "FILE" "Admin token, generated if absent [default: admin.token]";
    gateway_id "gateway" "id" "gateway-id" "EVENKEEL_GATEWAY_ID" "ID" "Name of this gateway [default: gateway]";
    gateway_listen "gateway" "listen" "gateway-listen" "EVENKEEL_GATEWAY_LISTEN" "ADDR,…" "Public listeners [default: 127.0.0.1:8080]";
    gateway_public_url "gateway" "public_url" "gateway-public-url" "EVENKEEL_GATEWAY_PUBLIC_URL" "URL" "How clients name this gateway [default: by the Host of their request]";
    gateway_engine "gateway" "engine" "gateway-engine" "EVENKEEL_GATEWAY_ENGINE" "NAME" "Tunnel engine: auto, portable, io_uring [default: auto]";
    gateway_threads "gateway" "threads" "gateway-threads" "EVENKEEL_GATEWAY_THREADS" "N" "Threads of the gateway: 1";
    gateway_connections_max "gateway" "connections_max" "gateway-connections-max" "EVENKEEL_GATEWAY_CONNECTIONS_MAX" "N" "Most client connections at a time [default: by the open-file limit]";
    gateway_client_head_timeout "gateway" "client_head_timeout" "gateway-client-head-timeout" "EVENKEEL_GATEWAY_CLIENT_HEAD_TIMEOUT" "TIME" "From accept to a whole request [default: 10s]";
    gateway_connect_timeout "gateway" "connect_timeout" "gateway-connect-timeout" "EVENKEEL_GATEWAY_CONNECT_TIMEOUT" "TIME" "To connect to a server [default: 1s]";
    gateway_server_head_timeout "gateway" "server_head_timeout" "gateway-server-head-timeout" "EVENKEEL_GATEWAY_SERVER_HEAD_TIMEOUT" "TIME" "Until a server answers a handshake [default: 1s]";
    gateway_retries "gateway" "retries" "gateway-retries" "EVENKEEL_GATEWAY_RETRIES" "N" "Other servers tried before 101 [default: 2]";
    gateway_close_timeout "gateway" "close_timeout" "gateway-close-timeout" "EVENKEEL_GATEWAY_CLOSE_TIMEOUT" "TIME" "From Close to the end of TCP [default: 5s]";
    gateway_write_timeout "gateway" "write_timeout" "gateway-write-timeout" "EVENKEEL_GATEWAY_WRITE_TIMEOUT" "TIME" "A peer that takes no bytes for so long is gone [default: 10s]";
    gateway_half_open_timeout "gateway" "half_open_timeout" "gateway-half-open-timeout" "EVENKEEL_GATEWAY_HALF_OPEN_TIMEOUT" "TIME" "For the other end once one has sent its last byte [default: 30s]";
    gateway_long_poll_timeout "gateway" "long_poll_timeout" "gateway-long-poll-timeout" "EVENKEEL_GATEWAY_LONG_POLL_TIMEOUT" "TIME" "Silence of a server that answers a plain request [default: 60s]";
    gateway_idle_timeout "gateway" "idle_timeout" "gateway-idle-timeout" "EVENKEEL_GATEWAY_IDLE_TIMEOUT" "TIME" "Silence that ends a tunnel [default: none]";
    gateway_stop_within "gateway" "stop_within" "gateway-stop-within" "EVENKEEL_GATEWAY_STOP_WITHIN" "TIME" "Spread of the closes at shutdown [default: 2s]";
    gateway_handshakes_per_prefix_max "gateway" "handshakes_per_prefix_max" "gateway-handshakes-per-prefix-max" "EVENKEEL_GATEWAY_HANDSHAKES_PER_PREFIX_MAX" "N" "Most handshakes under way of one client network [default: 1000]";
    log_level "log" "level" "log-level" "EVENKEEL_LOG_LEVEL" "LEVEL" "error, warn, info, debug, trace or a filter [default: info]";
    log_format "log" "format" "log-format" "EVENKEEL_LOG_FORMAT" "FORMAT" "text or json [default: text]";
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_lie_over_the_file() {
        let cli = Cli::try_parse_from(["evenkeel", "check-config", "--admin-listen", "127.0.0.1:1"]).unwrap();
        let Command::CheckConfig(args) = cli.command else { panic!("{cli:?}") };
        let overrides = args.scalars.overrides();
        assert_eq!(overrides.0[0].key, ("admin", "listen"));
        assert_eq!(overrides.0[0].value, "127.0.0.1:1");
    }
}
