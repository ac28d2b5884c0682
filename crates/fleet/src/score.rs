//! Says how busy a server is: its terms, each a share of its full mark, and the score over them.
//!
//! In: averaged measures, a count, a capacity, one [`ScoreConfig`]. Out: a [`Score`] with its breakdown.

use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Measures, Ratio};

use crate::allot::TermKind;
use crate::config::ScoreConfig;

/// One measure of busyness as a share of its full mark: 0 idle, 1 full.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Which.
    pub kind: TermKind,
    /// `connections`, `cpu`, `memory`, `lag` or the custom name.
    pub name: String,
    /// Share of the full mark.
    pub value: Ratio,
    /// Whether it falls as connections leave. Memory never does for us.
    pub elastic: bool,
}

/// How busy a server is, with its breakdown. Lower is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// 0 idle, 1 full; above 1 overloaded.
    pub value: Ratio,
    /// What it is made of, in the order connections, cpu, memory, lag, custom by name.
    pub terms: Vec<Term>,
}

/// Scores one server. Unknown measures count for nothing.
#[must_use]
pub fn score(_averaged: &Measures, _live: Connections, _capacity: Connections, _config: &ScoreConfig) -> Score {
    todo!()
}
