//! What an agent is told of keys and time, and what it tells of assignments.

use std::fmt::Display;

use evenkeel_model::{Connections, Duration, Incarnation, Instant, Rng, ServerId};
use evenkeel_protocol::agent::{Agent, AgentConfig, Held, Input, LinkId, Output};
use evenkeel_protocol::message::{EVENTS_MAX, Event, EventState, Profile};
use proptest::prelude::*;
use serde_json::Value;

const HERE: LinkId = LinkId(0);
const THERE: LinkId = LinkId(1);

struct Bench {
    agent: Agent,
    now: Instant,
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn key(kid: &str) -> String {
    format!(r#"{{"kty":"oct","kid":"{kid}","alg":"HS256","k":"AAAA"}}"#)
}

fn welcome(now_ms: u64, keys: &str) -> String {
    format!(r#"{{"op":"welcome","now_ms":{now_ms},"report_ms":1000,"keys":[{keys}]}}"#)
}

fn event(rid: impl Display) -> Event {
    Event { rid: rid.to_string(), state: EventState::Connected }
}

impl Bench {
    fn new() -> Self {
        let config = AgentConfig {
            id: ServerId::new("a").unwrap(),
            inc: Incarnation(1_000),
            profile: Profile::at("ws://h"),
            caps: Vec::new(),
        };
        Self { agent: Agent::new(config, Rng::new(1), Instant::ZERO), now: Instant::ZERO }
    }

    fn handle(&mut self, input: Input<'_>) -> Vec<Output> {
        self.agent.handle(input, self.now);
        std::iter::from_fn(|| self.agent.poll_output()).collect()
    }

    fn hear(&mut self, link: LinkId, text: &str) -> Vec<Output> {
        self.handle(Input::Text(link, text))
    }

    fn linked() -> Self {
        let mut bench = Self::new();
        bench.handle(Input::Opened(HERE));
        bench.hear(HERE, &welcome(1, ""));
        bench
    }

    fn pass(&mut self, ms: u64) -> Vec<Output> {
        let end = self.now + Duration::from_millis(ms);
        let mut outputs = Vec::new();
        while let Some(due) = self.agent.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.agent.handle_timeout(self.now);
            outputs.extend(std::iter::from_fn(|| self.agent.poll_output()));
        }
        self.now = end;
        outputs
    }
}

/// The lives and names of the lists given out.
fn lists(outputs: &[Output]) -> Vec<(u64, Vec<&str>)> {
    let list = |output| match output {
        &Output::Keys { inc, ref keys } => {
            Some((inc.get(), keys.iter().map(|key| key.kid.as_str()).collect()))
        }
        _ => None,
    };
    outputs.iter().filter_map(list).collect()
}

/// What was said on a link: `events 3` or the name of the message.
fn said(outputs: &[Output], on: LinkId) -> Vec<String> {
    let text = |output: &Output| match output {
        Output::Send(link, text) if *link == on => {
            let message: Value = serde_json::from_str(text).unwrap();
            let events = message["events"].as_array().map(|events| format!(" {}", events.len()));
            Some(format!("{}{}", message["op"].as_str().unwrap(), events.unwrap_or_default()))
        }
        _ => None,
    };
    outputs.iter().filter_map(text).collect()
}

#[test]
fn a_list_of_keys_is_given_out_when_it_is_another_one() {
    let mut bench = Bench::new();
    bench.handle(Input::Opened(HERE));
    bench.handle(Input::Opened(THERE));
    let both = [key("1"), key("2")].join(",");
    assert_eq!(lists(&bench.hear(HERE, &welcome(1, &both))), [(1_000, vec!["1", "2"])]);
    assert_eq!(lists(&bench.hear(THERE, &welcome(1, &both))), [], "the other node has the same");
    let keys = format!(r#"{{"op":"keys","now_ms":2,"keys":[{},{}]}}"#, key("2"), key("3"));
    assert_eq!(lists(&bench.hear(THERE, &keys)), [(1_000, vec!["2", "3"])]);
    assert_eq!(lists(&bench.hear(HERE, &keys)), []);
}

#[test]
fn keys_of_a_life_that_was_not_ours_are_dead_at_once() {
    let mut bench = Bench::new();
    bench.handle(Input::Opened(HERE));
    bench.hear(HERE, &welcome(1, &key("1")));
    bench.handle(Input::Opened(THERE));
    let outputs = bench.hear(THERE, r#"{"op":"stale","now_ms":1,"known":2000}"#);
    assert_eq!(lists(&outputs), [(2_001, vec![])]);
    assert_eq!(lists(&bench.hear(THERE, &welcome(1, &key("1")))), [(2_001, vec!["1"])]);
}

#[test]
fn the_time_of_the_nodes_comes_with_every_message_and_goes_on() {
    let mut bench = Bench::new();
    assert_eq!(bench.agent.node_clock(), None);
    bench.handle(Input::Opened(HERE));
    bench.pass(500);
    bench.hear(HERE, &welcome(1_700_000_000_000, ""));
    let read = |bench: &Bench| bench.agent.node_clock().unwrap().read(bench.now);
    assert_eq!(read(&bench), at(1_700_000_000_000));
    bench.pass(250);
    assert_eq!(read(&bench), at(1_700_000_000_250));
    // The node's clock was set back.
    for down in [
        r#"{"op":"desired","now_ms":1600000000000,"epoch":1,"gen":1,"state":"active"}"#,
        r#"{"op":"keys","now_ms":1600000000000,"keys":[]}"#,
        r#"{"op":"error","now_ms":1600000000000,"why":"x"}"#,
    ] {
        bench.hear(HERE, down);
        assert_eq!(read(&bench), at(1_600_000_000_000));
        bench.pass(10);
    }
    bench.hear(HERE, r#"{"op":"keys","keys":[]}"#);
    assert_eq!(read(&bench), at(1_600_000_000_010), "a message without the time changes nothing");
}

#[test]
fn what_became_of_assignments_is_told_together_and_soon() {
    let mut bench = Bench::linked();
    assert_eq!(said(&bench.handle(Input::Settled(event(1))), HERE), [""; 0]);
    assert_eq!(said(&bench.handle(Input::Settled(event(2))), HERE), [""; 0]);
    assert_eq!(said(&bench.pass(99), HERE), [""; 0]);
    assert_eq!(said(&bench.pass(1), HERE), ["event 2"]);
    let many: Vec<_> = (0..EVENTS_MAX + 1).flat_map(|rid| bench.handle(Input::Settled(event(rid)))).collect();
    assert_eq!(said(&many, HERE), [format!("event {EVENTS_MAX}")], "as soon as a message is full");
    assert_eq!(said(&bench.pass(100), HERE), ["event 1"]);
}

#[test]
fn events_come_before_the_report_that_counts_their_connections() {
    let mut bench = Bench::linked();
    bench.pass(2_000);
    let held = Held { connections: Connections(1), ..Held::default() };
    bench.handle(Input::Settled(event(1)));
    let outputs = bench.handle(Input::Held(held));
    assert_eq!(said(&outputs, HERE), ["event 1", "report"]);
}

#[test]
fn events_wait_for_a_node_and_go_to_every_node() {
    let mut bench = Bench::new();
    for rid in 0..5_000 {
        assert_eq!(bench.handle(Input::Settled(event(rid))), []);
    }
    assert_eq!(bench.pass(1_000), []);
    bench.handle(Input::Opened(HERE));
    let outputs = bench.hear(HERE, &welcome(1, ""));
    let told = said(&outputs, HERE);
    assert_eq!(told.len(), 17, "4,096 of them and a report: {told:?}");
    assert_eq!(told.last().map(String::as_str), Some("report"));
    let first = outputs.iter().find_map(|output| match output {
        Output::Send(_, text) => Some(text.clone()),
        _ => None,
    });
    assert!(first.unwrap().contains(r#""rid":"904""#), "the oldest were dropped");
    bench.handle(Input::Opened(THERE));
    bench.hear(THERE, &welcome(1, ""));
    bench.handle(Input::Settled(event(1)));
    let outputs = bench.pass(100);
    assert_eq!(
        (said(&outputs, HERE), said(&outputs, THERE)),
        (vec!["event 1".into()], vec!["event 1".into()])
    );
}

proptest! {
    /// Whatever a node says, the machine does not panic, and gives out no keys of another life than its own.
    #[test]
    fn no_list_of_keys_is_for_another_life(
        steps in proptest::collection::vec((0_usize..2, 0_u8..6, 0_u64..4_000, "[a-z]{0,3}"), 1..40),
    ) {
        let mut bench = Bench::new();
        for (link, what, number, kid) in steps {
            let link = LinkId(link);
            let outputs = match what {
                0 => bench.handle(Input::Opened(link)),
                1 => bench.hear(link, &welcome(number, &key(&kid))),
                2 => bench.hear(link, &format!(r#"{{"op":"keys","now_ms":{number},"keys":[{}]}}"#, key(&kid))),
                3 => bench.hear(link, &format!(r#"{{"op":"stale","known":{number}}}"#)),
                4 => bench.handle(Input::Settled(event(kid))),
                _ => bench.pass(number),
            };
            let inc = bench.agent.inc().get();
            prop_assert!(lists(&outputs).iter().all(|(life, _)| *life == inc));
        }
    }
}
