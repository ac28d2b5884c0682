//! The machine behind every agent.
