//! The words that all parts of Evenkeel share.
//!
//! Pure and `no_std`: identifiers ([`id`]), numbers with units ([`number`]), our own time ([`time`]), what a
//! server says of itself ([`report`]), what the controller wants of it ([`desired`]) and the averages both ends
//! keep ([`average`]). Nothing here decides anything; deciding is `evenkeel_fleet`, talking is
//! `evenkeel_protocol`.

#![no_std]

extern crate alloc;

pub mod average;
pub mod desired;
pub mod id;
pub mod number;
pub mod report;
pub mod rng;
pub mod time;

pub use core::time::Duration;

pub use average::Average;
pub use desired::{Desired, Fence, Select, State};
pub use id::{Epoch, FleetId, GatewayId, Generation, Incarnation, InvalidId, ServerId};
pub use number::{Connections, PerSecond, Ratio, Share};
pub use report::{Measures, Report, ReportError, Totals};
pub use rng::Rng;
pub use time::Instant;
