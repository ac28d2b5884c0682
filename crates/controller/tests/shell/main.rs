//! The controller on real sockets and real processes: what docs/reference promises to operators, agents and
//! whoever posts reports.

mod admin;
mod agent;
mod kill;
mod kit;
mod report;
