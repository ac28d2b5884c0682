//! x
#![allow(missing_docs)]
pub mod config;
pub mod events;
pub mod publish;
pub mod registration;
pub mod store;
pub mod token;
#[cfg(test)]
mod testing;
pub struct Running;
