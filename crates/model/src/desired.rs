//! What the controller wants a server to look like. Level-triggered: repeating it is harmless.

use core::fmt;
use core::time::Duration;

use crate::id::{Epoch, Generation};
use crate::number::{Connections, PerSecond};

/// Orders an order: a higher epoch wins, within one epoch a higher generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// The controller's term.
    pub epoch: Epoch,
    /// The change within it.
    pub generation: Generation,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// Life of a server as the controller sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Ordered or booting: no report or passed check yet.
    #[default]
    Starting,
    /// Takes connections.
    Active,
    /// Takes no new connections and keeps those it has.
    Cordoned,
    /// Takes no new connections and empties.
    Draining,
    /// Empty after a drain.
    Drained,
    /// Ended by us, or to be ended.
    Stopped,
}

impl State {
    /// The word on the wire, in logs and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Starting, Self::Active, Self::Cordoned, Self::Draining, Self::Drained, Self::Stopped]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which connections leave first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Select {
    /// Longest without a message: the client notices least.
    #[default]
    Idle,
    /// Youngest.
    Newest,
    /// Oldest.
    Oldest,
    /// Any.
    Random,
    /// Most bytes.
    Heaviest,
}

impl Select {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Newest => "newest",
            Self::Oldest => "oldest",
            Self::Random => "random",
            Self::Heaviest => "heaviest",
        }
    }

    /// The selection of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Idle, Self::Newest, Self::Oldest, Self::Random, Self::Heaviest]
            .into_iter()
            .find(|select| select.as_str() == text)
    }
}

/// What one server should look like, from the controller to whoever executes it: the server's agent, or for a
/// server without one the gateways that hold its tunnels.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Refused where a higher one was seen.
    pub fence: Fence,
    /// Right to move and close, counted from receipt and renewed with each report. After it `moves_per_s` and
    /// `deadline` count as unset; `state` stays.
    pub lease: Duration,
    /// `active`, `cordoned`, `draining` or `stopped`.
    pub state: State,
    /// The count at which shedding stops.
    pub target: Connections,
    /// Pace of moves and closes of this server; zero: none.
    pub moves_per_s: PerSecond,
    /// From receipt: after it even moves under way are closed. `None`: no deadline.
    pub deadline: Option<Duration>,
    /// Which connections leave first.
    pub select: Select,
}

impl Desired {
    /// Default lease: 5 s, five report intervals. Longer lets a dead controller's last move order run on.
    pub const LEASE: Duration = Duration::from_secs(5);

    /// An active server that is left alone.
    #[must_use]
    pub fn active(fence: Fence) -> Self {
        Self {
            fence,
            lease: Self::LEASE,
            state: State::Active,
            target: Connections::MAX,
            moves_per_s: PerSecond::ZERO,
            deadline: None,
            select: Select::Idle,
        }
    }
}
