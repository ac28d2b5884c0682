//! The shared dialogues of an agent with its nodes, as every agent must hold them.

use std::ops::Range;

use evenkeel_model::{Connections, Incarnation, Instant, Measures, Rng, ServerId, Totals};
use evenkeel_protocol::agent::{Agent, AgentConfig, Held, Input, LinkId, Output};
use evenkeel_protocol::executor::Admit;
use evenkeel_protocol::message::Profile;
use serde_json::Value;

const DIALOGUES: &str = include_str!("../../../testdata/vectors/agent/dialogues.json");

/// One agent with its clock, and what it did since the last step.
struct Bench {
    agent: Agent,
    now: Instant,
    connections: u32,
    said: Vec<(usize, Value)>,
    reports: Vec<Value>,
    closed: u64,
    ends: Vec<u64>,
    finished: bool,
}

impl Bench {
    fn new(agent: &Value, seed: u64) -> Self {
        let mut profile = Profile::at(agent["url"].as_str().unwrap());
        profile.capacity = agent["capacity"].as_u64().map(|capacity| Connections(capacity as u32));
        let config = AgentConfig {
            id: ServerId::new(agent["id"].as_str().unwrap()).unwrap(),
            inc: Incarnation(agent["inc"].as_u64().unwrap()),
            profile,
            caps: Vec::new(),
        };
        Self {
            agent: Agent::new(config, Rng::new(seed), Instant::ZERO),
            now: Instant::ZERO,
            connections: 0,
            said: Vec::new(),
            reports: Vec::new(),
            closed: 0,
            ends: Vec::new(),
            finished: false,
        }
    }

    fn held(&self) -> Held {
        Held {
            connections: Connections(self.connections),
            closing: Connections::ZERO,
            arriving: Connections::ZERO,
            movable: Connections::ZERO,
            totals: Totals::default(),
        }
    }

    fn pass_to(&mut self, at: Instant) {
        while let Some(next) = self.agent.poll_timeout().filter(|&next| next <= at) {
            self.now = self.now.max(next);
            self.agent.handle_timeout(self.now);
            self.perform();
        }
        self.now = at;
    }

    fn handle(&mut self, input: Input<'_>) {
        self.agent.handle(input, self.now);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Send(LinkId(link), text) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    if message["op"] == "report" {
                        self.reports.push(message);
                    } else {
                        self.said.push((link, message));
                    }
                }
                Output::Close(closes) => {
                    self.closed += u64::from(closes.count.get());
                    self.connections -= closes.count.get();
                    self.agent.handle(Input::Chosen { asked: closes.count, chosen: closes.count }, self.now);
                    self.agent.handle(Input::Held(self.held()), self.now);
                }
                Output::End(LinkId(link), _) => self.ends.push(link as u64),
                Output::Finished => self.finished = true,
                Output::Admit(_) => self.agent.handle(Input::Held(self.held()), self.now),
                Output::Ping(_) | Output::Credential(_) | Output::Keys { .. } | Output::Refused { .. } => {}
            }
        }
    }

    fn step(&mut self, step: &Value) {
        self.pass_to(Instant::from_millis(step["at_ms"].as_u64().unwrap()));
        let Some(action) = step["do"].as_object() else { return };
        let (what, with) = action.iter().next().unwrap();
        match what.as_str() {
            "opened" => self.handle(Input::Opened(LinkId(with.as_u64().unwrap() as usize))),
            "closed" => self.handle(Input::Closed(LinkId(with.as_u64().unwrap() as usize))),
            "text" => {
                let link = LinkId(with["link"].as_u64().unwrap() as usize);
                self.handle(Input::Text(link, &with["message"].to_string()));
            }
            "held" => {
                self.connections = with["connections"].as_u64().unwrap() as u32;
                self.handle(Input::Held(self.held()));
            }
            other => panic!("step does {other:?}"),
        }
    }

    /// Compares what was done with what the step expects, and forgets it.
    fn expect(&mut self, step: &Value, at: &str) {
        if step.as_object().unwrap().keys().all(|key| matches!(key.as_str(), "at_ms" | "do")) {
            return;
        }
        if let Some(says) = step["says"].as_array() {
            assert_eq!(self.said.len(), says.len(), "{at}: said {:?}", self.said);
            for ((link, message), expected) in self.said.iter().zip(says) {
                assert_eq!(Some(*link as u64), expected["link"].as_u64(), "{at}: {message}");
                assert_has(message, &expected["message"], at);
            }
        }
        let inside = |number: u64, name: &str| {
            if let Some([min, max]) = step[name].as_array().map(Vec::as_slice) {
                let range = Range { start: min.as_u64().unwrap(), end: max.as_u64().unwrap() + 1 };
                assert!(range.contains(&number), "{at}: {name} {number}, expected {range:?}");
            }
        };
        inside(self.reports.len() as u64, "reports");
        inside(self.closed, "closed");
        if !step["report"].is_null() {
            assert_has(self.reports.last().expect("a report"), &step["report"], at);
        }
        if let Some(ends) = step["ends"].as_array() {
            assert_eq!(self.ends, ends.iter().filter_map(Value::as_u64).collect::<Vec<_>>(), "{at}: ends");
        }
        if let Some(admit) = step["admit"].as_str() {
            assert_eq!(self.agent.admit().as_str(), admit, "{at}: admit");
        }
        if let Some(finished) = step["finished"].as_bool() {
            assert_eq!(self.finished, finished, "{at}: finished");
        }
        self.said.clear();
        self.reports.clear();
        self.ends.clear();
        self.closed = 0;
    }
}

fn assert_has(message: &Value, fields: &Value, at: &str) {
    for (name, expected) in fields.as_object().unwrap() {
        assert_eq!(&message[name], expected, "{at}: {name} of {message}");
    }
}

#[test]
fn every_dialogue_of_the_vectors_goes_as_they_say_for_any_seed() {
    let file: Value = serde_json::from_str(DIALOGUES).unwrap();
    let dialogues = file["dialogues"].as_array().unwrap();
    assert!(!dialogues.is_empty());
    for seed in 0..20 {
        for dialogue in dialogues {
            let mut bench = Bench::new(&file["agent"], seed);
            for (index, step) in dialogue["steps"].as_array().unwrap().iter().enumerate() {
                let at = format!("{} (seed {seed}, step {index})", dialogue["name"]);
                bench.step(step);
                bench.expect(step, &at);
            }
        }
    }
}

#[test]
fn averages_follow_the_measures_slowly_and_slips_of_the_application_are_bounded() {
    let file: Value = serde_json::from_str(DIALOGUES).unwrap();
    let mut bench = Bench::new(&file["agent"], 1);
    let measured = |cpu, queue| Measures {
        cpu: Some(cpu),
        memory: Some(f64::NAN),
        lag_ms: Some(-3.0),
        custom: [("queue".to_owned(), queue), ("a b".to_owned(), 0.5)].into(),
    };
    bench.handle(Input::Opened(LinkId(0)));
    bench.handle(Input::Measured(measured(0.0, 0.0)));
    bench.pass_to(Instant::from_millis(1_000));
    bench.handle(Input::Measured(measured(1.7, 9.0)));
    bench.handle(Input::Text(LinkId(0), r#"{"op":"welcome","now_ms":1,"report_ms":1000,"keys":[]}"#));
    let report = bench.reports.last().unwrap();
    assert_eq!((report["cpu"].as_f64(), report["custom"]["queue"].as_f64()), (Some(1.0), Some(1.0)));
    // 1 − e^(−1/10) after one second at full.
    let averaged = report["cpu_avg"].as_f64().unwrap();
    assert!((averaged - 0.0952).abs() < 0.001, "{averaged}");
    assert!(report["memory"].is_null() && report["custom"]["a b"].is_null());
    assert_eq!(report["lag_ms"].as_f64(), Some(0.0));
}

#[test]
fn a_handshake_under_way_keeps_a_server_from_being_drained() {
    let file: Value = serde_json::from_str(DIALOGUES).unwrap();
    let mut bench = Bench::new(&file["agent"], 1);
    bench.handle(Input::Opened(LinkId(0)));
    bench.handle(Input::Text(LinkId(0), r#"{"op":"welcome","now_ms":1,"report_ms":1000,"keys":[]}"#));
    let drain = r#"{"op":"desired","epoch":1,"gen":1,"state":"draining","target":0}"#;
    bench.agent.handle(Input::Text(LinkId(0), drain), bench.now);
    // A count from before the door closed says nothing: one may have slipped through since.
    bench.agent.handle(Input::Held(bench.held()), bench.now);
    let outputs: Vec<_> = std::iter::from_fn(|| bench.agent.poll_output()).collect();
    assert!(outputs.contains(&Output::Admit(Admit::Draining)));
    assert!(!format!("{outputs:?}").contains("drained"), "{outputs:?}");
    let arriving = Held { arriving: Connections(1), ..bench.held() };
    bench.handle(Input::Held(arriving));
    assert!(bench.said.iter().all(|(_, message)| message["op"] != "drained"));
    bench.handle(Input::Held(bench.held()));
    assert!(bench.said.iter().any(|(_, message)| message["op"] == "drained"));
}
