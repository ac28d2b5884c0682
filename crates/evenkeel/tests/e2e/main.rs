//! End-to-end scenarios: the real binary, real servers, real sockets on loopback.
//!
//! One scenario a test, each in a [`kit::World`] of its own: a folder, free ports, processes that are ended by
//! their id. A scenario that fails prints the log of every process it started. One module for each promise: what a
//! tunnel carries, where connections are placed, what a fault does, how a server empties, what a crash leaves, how the fleet
//! grows and shrinks, servers without an agent, what is refused and how it is said.

mod kit;

mod bounds;
mod carry;
mod crash;
mod drain;
mod faults;
mod moves;
mod operate;
mod origins;
mod place;
mod redirect;
mod reference;
mod refuse;
mod scale;
mod sidecar;
mod without_agent;
