//! What Evenkeel decides. Pure, `no_std` + `alloc`: state and time in, actions and reasons out.
//!
//! # The control law
//!
//! Every wish about a server is a [`Ceiling`](allot::Ceiling) on its connections with its
//! [`Cause`](allot::Cause). One water-fill, [`allot`](allot::allot), turns the ceilings into a target for each
//! server. Everything else only compares counts with targets:
//!
//! | question | answered in |
//! |---|---|
//! | how busy is a server, and what would it hold at score 1? | [`score`], [`capacity`] |
//! | who is there, fresh or silent? | [`membership`] |
//! | what should each server hold? | [`allot`] |
//! | where does one new connection go? | [`pick`], with [`ledger`], [`credit`], [`probation`] |
//! | what does a client that connects by itself count? | [`gateway::assign`] |
//! | how many leave a server that holds more than its target, and how fast? | [`moves`] |
//! | how does a server empty before it goes? | [`drain`] |
//! | start a server, rescue one, stop one? | [`scale`] |
//! | is the plan sane? | [`lint`] |
//!
//! Two machines remember over time and are driven by shells and by the simulator alike:
//! [`gateway::Gateway`] places connections, [`controller::Controller`] runs the loop.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod allot;
pub mod capacity;
pub mod config;
pub mod controller;
pub mod credit;
pub mod drain;
pub mod gateway;
pub mod ledger;
pub mod lint;
pub mod membership;
pub mod moves;
pub mod pick;
pub mod probation;
pub mod scale;
pub mod score;
pub mod snapshot;
