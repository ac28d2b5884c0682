//! The machine that runs the control loop of one fleet: reports, checks and orders in; snapshots, desired states,
//! intents to store and provider actions out.
//!
//! The shell performs outputs strictly in order. [`Output::Persist`] comes before everything that depends on it;
//! if storing fails the shell answers the order with the error, drops the machine and restores a new one from the
//! store (crash-only), so nothing that is not durable ever takes effect.
//!
//! In this file: what goes in and out. The machine itself is [`Controller`] (`machine`): inputs become facts about a
//! server (`observe`, `member`), orders become intents (`orders`), a round of moves plans and carries out (`round`),
//! a round of scale starts, rescues and drains (`scaling`), and `tell` publishes and explains. Decisions are the
//! pure functions of `allot`, `moves`, `drain`, `scale`; the plan is checked by `lint`.

mod machine;
mod member;
mod observe;
mod orders;
mod recall;
mod round;
mod scaling;
mod tell;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{
    Connections, Desired, Duration, Fence, Generation, Incarnation, Instant, Ratio, Report, ServerId, Share,
    State,
};

pub use machine::Controller;

use crate::allot::Cause;
use crate::score::Score;
use crate::snapshot::{Checked, Executor, GatewayView, Health, Snapshot};

/// What a server says of itself once, or the configuration of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Its id.
    pub id: ServerId,
    /// Its life; 0 for a server that is only configured.
    pub inc: Incarnation,
    /// Where gateways connect.
    pub url: Arc<str>,
    /// Where clients connect directly, if they can.
    pub public_url: Option<Arc<str>>,
    /// Connections it says it can hold.
    pub capacity: Option<Connections>,
    /// Free labels.
    pub labels: Vec<(String, String)>,
    /// Zone, if any.
    pub zone: Option<String>,
    /// Who closes its connections on order: of a server with an agent that only reports, the gateways.
    pub executor: Executor,
    /// Highest order it says it applied.
    pub applied: Option<Fence>,
}

/// A number that ties an answer to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub u64);

/// What an operator may order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Empty a server. Refused when the rest cannot hold its connections, unless forced.
    Drain {
        /// Which.
        server: ServerId,
        /// Even if the rest cannot hold the connections.
        force: bool,
    },
    /// End a drain or cordon.
    Undrain {
        /// Which.
        server: ServerId,
    },
    /// Take no new connections, keep those there.
    Cordon {
        /// Which.
        server: ServerId,
    },
    /// Hold at most so many for [`crate::config::MoveConfig::shed_lasts`].
    Shed {
        /// Which.
        server: ServerId,
        /// The most it should hold.
        to: Connections,
    },
    /// Hold so many servers until told otherwise; 0 ends all, whatever the policy's least number; `None` gives the
    /// number back to the policy.
    Scale {
        /// Servers.
        servers: Option<u32>,
    },
}

/// Why an order was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No such server in this fleet.
    #[error("no server {server} is known")]
    UnknownServer {
        /// The id given.
        server: ServerId,
    },
    /// The rest of the fleet has no room.
    #[error(
        "could not drain {server}: the other servers have no room for {unplaced} of its connections; add a server or use --force"
    )]
    NoRoom {
        /// The server to drain.
        server: ServerId,
        /// Connections left over.
        unplaced: Connections,
    },
    /// The order makes no sense in the server's state.
    #[error("could not {order} {server}: it is {state}")]
    WrongState {
        /// The order's name.
        order: &'static str,
        /// Which server.
        server: ServerId,
        /// Its state.
        state: State,
    },
    /// Nothing here can start or stop servers.
    #[error("could not scale: the fleet has no provider that starts servers")]
    NoProvider,
    /// Outside what the policy allows.
    #[error(
        "could not scale to {servers}: allowed is {min} to {max} (fleets.*.scale.min and max), or 0 to end all servers"
    )]
    OutOfRange {
        /// Asked for.
        servers: u32,
        /// Lowest.
        min: u32,
        /// Highest.
        max: u32,
    },
}

impl OrderError {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownServer { .. } => "unknown_server",
            Self::NoRoom { .. } => "no_room",
            Self::WrongState { .. } => "wrong_state",
            Self::NoProvider => "no_provider",
            Self::OutOfRange { .. } => "out_of_range",
        }
    }
}

/// Who began a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// An operator.
    Operator,
    /// The scale policy.
    Scale,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Clients go by themselves; reversible.
    Soft,
    /// Paced moves.
    Moving,
    /// The deadline is near: paced closes of whatever is left.
    Closing,
}

impl Phase {
    /// The word in logs and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Moving => "moving",
            Self::Closing => "closing",
        }
    }
}

/// A durable wish about one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Empty it.
    Drain {
        /// Who began it.
        by: By,
        /// When.
        ordered_at: Instant,
        /// Whether it is empty already.
        drained: bool,
    },
    /// Take no new ones.
    Cordon,
    /// Hold at most so many until then.
    Shed {
        /// Connections.
        to: Connections,
        /// End of the wish.
        until: Instant,
    },
    /// To be ended by the provider.
    Stop {
        /// When it was decided.
        ordered_at: Instant,
    },
}

/// What is stored of one server. Absent intent and generation of a server that is gone are deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRecord {
    /// Which.
    pub server: ServerId,
    /// Generation of the desired state that carries the intent.
    pub generation: Generation,
    /// The wish, if any.
    pub intent: Option<Intent>,
}

/// What is stored of a fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetRecord {
    /// One for each server that has or had an intent.
    pub servers: Vec<ServerRecord>,
    /// Servers that an operator fixed.
    pub fixed: Option<u32>,
}

/// What a provider says.
#[derive(Debug, Clone, PartialEq)]
pub enum Provided {
    /// It runs (started or adopted), and gateways reach it there.
    Running {
        /// Which.
        server: ServerId,
        /// Where.
        url: Arc<str>,
    },
    /// It ended by itself; the provider restarts it with back-off unless it was to end.
    Exited {
        /// Which.
        server: ServerId,
        /// Exit status and the last lines it wrote.
        why: String,
        /// When it is started again, if it is.
        restart_at: Option<Instant>,
    },
    /// It could not be started.
    Failed {
        /// Which.
        server: ServerId,
        /// Why.
        why: String,
    },
    /// It ended as ordered, or is not ours any more.
    Gone {
        /// Which.
        server: ServerId,
    },
}

/// What comes in.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A server introduced itself, or is configured.
    Registered(Registration),
    /// A report, already checked.
    Reported {
        /// Whose.
        server: ServerId,
        /// What.
        report: Report,
    },
    /// The link to a server's agent broke.
    LinkLost {
        /// Whose.
        server: ServerId,
        /// Of which life.
        inc: Incarnation,
    },
    /// A server's agent said something else: it is not silent.
    Spoke {
        /// Which server.
        server: ServerId,
    },
    /// An agent applied an order.
    Applied {
        /// Which server.
        server: ServerId,
        /// Which order.
        fence: Fence,
    },
    /// An agent says that it is empty and drained under that order.
    Drained {
        /// Which server.
        server: ServerId,
        /// Which order.
        fence: Fence,
    },
    /// An active check.
    Checked(Checked),
    /// A gateway's view.
    Viewed(GatewayView),
    /// An operator's order.
    Ordered(OrderId, Order),
    /// A provider's word.
    Provided(Provided),
    /// A server was taken out of the configuration.
    Unlisted(ServerId),
}

/// What goes out, to be performed in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Store before anything that follows.
    Persist(ServerRecord),
    /// Forget a server that is gone: what is stored of it, if anything is, and what the shell remembers.
    Forget(ServerId),
    /// Store the fixed number of servers.
    PersistFixed(Option<u32>),
    /// Publish to gateways.
    Publish(Arc<Snapshot>),
    /// Send to a server's agent.
    Desire(ServerId, Desired),
    /// Start a server of that id.
    Create(ServerId),
    /// End a server; only while it holds no connection.
    Terminate(ServerId),
    /// Answer an order, once gateways obey the last publication.
    Answer(OrderId, Result<Vec<(ServerId, Desired)>, OrderError>),
    /// Tell whoever watches.
    Event(Event),
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// Which server, if one.
    pub server: Option<ServerId>,
    /// Short code, for scripts: `joined active suspect dead draining drained stopped cordoned undrained shed
    /// overload rebalancing balanced scale_up scale_down rescue boot_failed exited probation disobeys
    /// order_refused …`.
    pub kind: &'static str,
    /// One sentence for people.
    pub text: String,
}

/// One server for status pages and the API.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerStatus {
    /// Its id.
    pub id: ServerId,
    /// Its life.
    pub inc: Incarnation,
    /// Where gateways connect.
    pub url: Arc<str>,
    /// Its state.
    pub state: State,
    /// Its health.
    pub health: Health,
    /// Of its drain.
    pub phase: Option<Phase>,
    /// Connections it holds.
    pub connections: Connections,
    /// On their way.
    pub pending: Connections,
    /// What it should hold.
    pub target: Share,
    /// How busy it is.
    pub score: Score,
    /// Connections it would hold at score 1.
    pub capacity: Connections,
    /// Whether nobody declared it.
    pub capacity_assumed: bool,
    /// Why it gets no more.
    pub bound_by: Option<Cause>,
    /// What is desired of it.
    pub desired: Desired,
    /// Silence since its last sign of life.
    pub silent: Option<Duration>,
    /// Last trouble, for example its last output lines after an early death.
    pub trouble: Option<String>,
}

/// What one round decided, in sentences that name numbers and reasons, also when there was nothing to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Explanation {
    /// Round number.
    pub round: u64,
    /// When.
    pub at: Instant,
    /// Utilisation of every unbound server.
    pub level: Ratio,
    /// Connections held and on their way.
    pub demand: Connections,
    /// About moves: one for each server above target (`relieved`, `refused`, `deferred`; `disobeys` where an agent that
    /// is to be relieved closes none) and one for the fleet.
    pub moves: Vec<Said>,
    /// About scale.
    pub scale: Vec<Said>,
    /// About single servers' ceilings.
    pub ceilings: Vec<Said>,
}

/// One reason, for scripts and for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Which server, if one.
    pub server: Option<ServerId>,
    /// Short code.
    pub reason: &'static str,
    /// One sentence.
    pub text: String,
}
