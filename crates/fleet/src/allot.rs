//! Decides what each server should hold: one water-fill of the demand over the servers, each up to its lowest
//! ceiling.
//!
//! In: servers with capacity, counts and [`Ceiling`]s; a demand; a level. Out: [`Allotments`], parallel to the
//! servers. Invariants: Σ target + unplaced = demand, exactly, in fixed point; no target above its ceiling;
//! proportional to capacity where nothing binds; total and deterministic.
//! Elsewhere: what the ceilings are (`membership`, `capacity`, `drain`), who goes where (`pick`), who leaves
//! (`moves`), how many servers there should be (`scale`).

use alloc::vec::Vec;

use evenkeel_model::{Connections, PerSecond, Ratio, ServerId, Share};

/// A term of the score by kind, for causes and explanations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TermKind {
    /// Connections over declared capacity.
    Connections,
    /// CPU share.
    Cpu,
    /// Memory share.
    Memory,
    /// Event-loop lag.
    Lag,
    /// One of the user's own.
    Custom,
}

/// Why a server may hold no more than so many connections, or takes none for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its capacity at the allowed level.
    Declared,
    /// Busy above full for long enough.
    Overload(TermKind),
    /// `shed --to N`.
    Operator,
    /// No report or passed check yet.
    Starting,
    /// Too many placements closed at once.
    Probation,
    /// Silent for a while.
    Suspect,
    /// A term that does not fall as connections leave.
    Inelastic(TermKind),
    /// Cordoned by an operator.
    Cordon,
    /// Emptying.
    Drain,
    /// Gone.
    Dead,
}

impl Cause {
    /// Whether the cause pins the server to what it holds now: it takes none and loses none.
    #[must_use]
    pub const fn pins(self) -> bool {
        matches!(self, Self::Cordon | Self::Suspect | Self::Probation | Self::Inelastic(_))
    }

    /// Whether new connections may come under this cause while there is room below the ceiling.
    #[must_use]
    pub const fn permits(self) -> bool {
        matches!(self, Self::Declared | Self::Overload(_) | Self::Operator)
    }

    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Overload(_) => "overload",
            Self::Operator => "operator",
            Self::Starting => "starting",
            Self::Probation => "probation",
            Self::Suspect => "suspect",
            Self::Inelastic(_) => "inelastic",
            Self::Cordon => "cordon",
            Self::Drain => "drain",
            Self::Dead => "dead",
        }
    }
}

/// The most connections a server may hold, and why. For a cause that [pins](Cause::pins), `at_most` is ignored
/// and the server's live count stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Connections.
    pub at_most: Connections,
    /// Why.
    pub cause: Cause,
}

/// One server as the water-fill sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Connections it would hold at score 1.
    pub capacity: Connections,
    /// Connections it holds.
    pub live: Connections,
    /// Placements on their way to it.
    pub pending: Connections,
    /// Placements per second it admits.
    pub admit: PerSecond,
    /// All wishes about it.
    pub ceilings: Vec<Ceiling>,
}

/// What one server should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    /// Connections it should hold.
    pub target: Share,
    /// Its lowest ceiling, its capacity at the allowed level included.
    pub at_most: Connections,
    /// Whether it may take a new connection now.
    pub open: bool,
    /// Why it gets no more; `None` where nothing binds.
    pub bound_by: Option<Cause>,
}

/// What all servers of a fleet should hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Allotments {
    /// Parallel to the servers given.
    pub each: Vec<Allotment>,
    /// Utilisation of every server without a binding ceiling; 0 with nothing open.
    pub level: Ratio,
    /// Demand that fits nowhere.
    pub unplaced: Share,
}

/// Fills `demand` over `servers` in proportion to capacity, each up to its lowest ceiling and
/// `capacity · level_max`.
#[must_use]
pub fn allot(_servers: &[Server], _demand: Connections, _level_max: Ratio) -> Allotments {
    todo!()
}
