//! The control loop's shell: observe, plan, persist, execute.
//!
//! | what | module |
//! |---|---|
//! | the task of one fleet: inputs, outputs in order, restart from the store | [`fleet`] |
//! | what outlives the process | [`store`] |
//! | agent links (`GET /v1/agent`) | [`link`] |
//! | what a server may say of itself | [`registration`] |
//! | who starts and stops servers | [`providers`] |
//! | the table that gateways follow | [`publish`] |
//! | admin API, health, metrics | [`admin`], its JSON in [`api`] |
//! | the last events | [`events`] |
//! | the admin token | [`token`] |
//! | the master key of a fleet | [`key_file`] |
//!
//! Nothing here decides about servers; that is `evenkeel_fleet::controller`. Knows no other role: the binary hands
//! in the ends of channels ([`Links`]).

#![allow(rustdoc::private_intra_doc_links)]

mod admin;
pub mod api;
pub mod config;
mod directory;
pub mod events;
mod fleet;
pub mod key_file;
mod link;
mod metrics;
mod providers;
pub mod publish;
pub mod registration;
mod route;
mod start;
pub mod status;
pub mod store;
#[cfg(test)]
mod testing;
pub mod token;

pub use config::{AdminConfig, ControllerConfig, FleetSettings, Links, ProcessConfig, Provider};
pub use directory::SERVERS_MAX;
pub use start::{Running, Shell, StartError, start};
