//! The test kit: starts the product, servers and clients, waits for conditions, cleans up.

pub(crate) mod admin;
pub(crate) mod client;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod sockets;
pub(crate) mod time;
pub(crate) mod world;

pub(crate) use client::{Client, Crowd, Refused};
pub(crate) use probe::Probe;
pub(crate) use time::{Stopwatch, pause, until};
pub(crate) use world::{EchoOptions, Evenkeel, World};
