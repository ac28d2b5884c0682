//! The shell that all roles share: what touches the clock, the operating system and the log.
//!
//! | need | module |
//! |---|---|
//! | what time is it, wake me then | [`clock`] |
//! | leave in order: run, drain, stop | [`shutdown`] |
//! | a named task, awaited at the end | [`tasks`] |
//! | a listening socket, or an error that names the setting | [`mod@listen`] |
//! | structured logs on stderr | [`log`] |
//! | counters and gauges by one list of names | [`metrics`] |
//! | a file that is either old or new, never half; a folder that stays | [`mod@file`] |
//!
//! Nothing here decides anything about fleets. Knows of the project's crates only `evenkeel_model`.

pub mod clock;
pub mod file;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod shutdown;
pub mod tasks;

pub use clock::Clock;
pub use listen::{ListenError, listen, probe};
pub use shutdown::{Phase, Shutdown, Trigger};
pub use tasks::Tasks;
