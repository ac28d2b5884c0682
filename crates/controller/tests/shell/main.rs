//! The controller on real sockets and real processes: what INTERFACES §2 and §3 promise to operators, agents and
//! whoever posts reports.

mod admin;
mod agent;
mod kill;
mod kit;
mod report;
