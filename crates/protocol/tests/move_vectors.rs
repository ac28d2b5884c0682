//! The shared vectors of the move dialogue: what every client and every server has to do, step by step.
//!
//! `UPDATE_EXPECT=1` writes what the machines do into the files; read the difference before keeping it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::backoff::{Chance, ComeBack};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::moving::client::{Again, Config, Failure, Mover, OnLoss, SocketId};
use evenkeel_protocol::moving::frame::{Dialogue, PREFIX};
use evenkeel_protocol::moving::server::{Arrival, Session, Settled};
use evenkeel_protocol::moving::{BufferMax, Ctl, Notice, Opaque, Payload, client, server};
use serde_json::{Map, Value, json};

/// A message of the application; in the files a text, or `{"binary": base64url}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Message {
    Text(String),
    Binary(Vec<u8>),
}

impl Payload for Message {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

impl Message {
    fn read(value: &Value) -> Self {
        match &value["binary"] {
            Value::String(bytes) => Self::Binary(URL_SAFE_NO_PAD.decode(bytes).unwrap()),
            _ => Self::Text(value.as_str().expect("a message").to_owned()),
        }
    }

    fn write(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Binary(bytes) => json!({"binary": URL_SAFE_NO_PAD.encode(bytes)}),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn ms(value: &Value) -> Duration {
    Duration::from_millis(value.as_u64().expect("milliseconds"))
}

fn code(value: &Value) -> u16 {
    u16::try_from(value.as_u64().expect("a close code")).unwrap()
}

fn buffer(given: &Value) -> BufferMax {
    let mut max = BufferMax::default();
    if let Some(messages) = given["buffer"]["messages"].as_u64() {
        max.messages = messages as usize;
    }
    if let Some(bytes) = given["buffer"]["bytes"].as_u64() {
        max.bytes = bytes as usize;
    }
    max
}

/// The text of a frame given by its fields.
fn frame_text(ctl: &Ctl, fields: &Value) -> String {
    let mut object = fields.as_object().expect("fields").clone();
    object.remove("socket");
    format!("{PREFIX}{} {}", ctl.as_str(), Value::Object(object))
}

/// The fields of a frame given by its text.
fn frame_fields(ctl: &Ctl, text: &str) -> Map<String, Value> {
    let object = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(ctl.as_str())).expect(text);
    serde_json::from_str(object).unwrap()
}

/// What a file's machine does with one step.
trait Bench {
    fn open(given: &Value) -> Self;
    fn poll_timeout(&self) -> Option<Instant>;
    fn fire(&mut self, now: Instant) -> Vec<Value>;
    fn take(&mut self, input: &Value, now: Instant) -> Vec<Value>;
}

struct ClientBench {
    mover: Mover<Message>,
    chance: Chance,
}

/// Sockets of the vectors have their number in their ctl.
fn ctl_of(socket: u64) -> Ctl {
    Ctl::parse(&format!("ctl-of-socket-{socket:08}")).unwrap()
}

impl ClientBench {
    fn outputs(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.mover.poll_output()).map(|output| client_output(&output)).collect()
    }
}

impl Bench for ClientBench {
    fn open(given: &Value) -> Self {
        let on_loss = if given["redial"] == json!(false) { OnLoss::End } else { OnLoss::Redial };
        Self {
            mover: Mover::new(Config { on_loss, buffer: buffer(given) }),
            chance: Chance::new(given["random"].as_f64().unwrap_or(0.5)),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.mover.poll_timeout()
    }

    fn fire(&mut self, now: Instant) -> Vec<Value> {
        self.mover.handle_timeout(now, self.chance);
        self.outputs()
    }

    fn take(&mut self, input: &Value, now: Instant) -> Vec<Value> {
        self.mover.handle(client_input(input), now, self.chance);
        self.outputs()
    }
}

fn client_input(input: &Value) -> client::Input<Message> {
    use client::Input;
    let (what, with) = input.as_object().unwrap().iter().next().expect("an input");
    let socket = || SocketId(with["socket"].as_u64().expect("a socket") as u32);
    match what.as_str() {
        "start" => Input::Start,
        "opened" => Input::Opened {
            socket: socket(),
            ctl: ctl_of(with["socket"].as_u64().unwrap()),
            sid: text(&with["sid"]),
        },
        "failed" => Input::Failed { socket: socket(), failure: failure(with) },
        "frame" => {
            let text = frame_text(&ctl_of(with["socket"].as_u64().unwrap()), with);
            Input::Received { socket: socket(), message: Message::Text(text) }
        }
        "received" => Input::Received { socket: socket(), message: Message::read(&with["message"]) },
        "closed" => {
            Input::Closed { socket: socket(), code: code(&with["code"]), reason: text(&with["reason"]) }
        }
        "send" => Input::Send(Message::read(with)),
        "close" => Input::Close { code: code(&with["code"]), reason: text(&with["reason"]) },
        "offline" => Input::Offline,
        "online" => Input::Online,
        "retry" => Input::Retry { base: ms(&with["base_ms"]), cap: ms(&with["cap_ms"]) },
        other => panic!("input {other:?}"),
    }
}

fn failure(with: &Value) -> Failure {
    match with["how"].as_str() {
        Some("no_answer") => Failure::NoAnswer,
        Some("handshake") => Failure::Handshake,
        Some("no_credit") => {
            Failure::NoCredit(ComeBack { wait: ms(&with["wait_ms"]), window: ms(&with["window_ms"]) })
        }
        other => panic!("failed {other:?}"),
    }
}

fn client_output(output: &client::Output<Message>) -> Value {
    use client::Output;
    match output {
        Output::Dial { socket, cause, ticket, errand } => {
            let park = *errand == client::Errand::Park;
            let mut dial = json!({"socket": socket.0, "cause": cause.as_str(), "park": park});
            if let Some(ticket) = ticket {
                dial["ticket"] = json!(ticket.0);
            }
            json!({ "dial": dial })
        }
        Output::Say { socket, text } => {
            let mut fields = frame_fields(&ctl_of(socket.0.into()), text);
            fields.insert("socket".into(), json!(socket.0));
            json!({ "frame": fields })
        }
        Output::Send { socket, message } => {
            json!({"send": {"socket": socket.0, "message": message.write()}})
        }
        Output::Close { socket, code, reason } => {
            json!({"close": {"socket": socket.0, "code": code, "reason": reason}})
        }
        Output::Open { again } => json!({"open": {"again": *again == Again::Again}}),
        Output::Deliver(message) => json!({"deliver": message.write()}),
        Output::Moving { mid, why } => json!({"moving": {"mid": mid, "why": why}}),
        Output::Moved { mid } => json!({"moved": {"mid": mid}}),
        Output::Stayed { mid, why } => json!({"stayed": {"mid": mid, "why": why.reason()}}),
        Output::Lost { code, reason } => json!({"lost": {"code": code, "reason": reason}}),
        Output::Gap { why } => json!({"gap": {"why": why.reason()}}),
        Output::Unsent { message, why } => {
            json!({"unsent": {"message": message.write(), "why": why.reason()}})
        }
        Output::Closed { code, reason } => json!({"closed": {"code": code, "reason": reason}}),
    }
}

struct ServerBench {
    session: Session<Message>,
}

fn server_ctl() -> Ctl {
    Ctl::parse("ctl-of-connection-0001").unwrap()
}

impl ServerBench {
    fn outputs(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.session.poll_output()).map(|output| server_output(&output)).collect()
    }
}

impl Bench for ServerBench {
    fn open(given: &Value) -> Self {
        let park = &given["park"];
        let errand = if park.is_null() {
            server::Errand::Serve
        } else {
            server::Errand::Park { sid: text(&park["sid"]), at: text(&park["at"]) }
        };
        let ctl = (given["ctl"] != json!(false)).then(server_ctl);
        let arrival = Arrival { ctl, errand, buffer: buffer(given) };
        Self { session: Session::new(arrival, Instant::ZERO) }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.session.poll_timeout()
    }

    fn fire(&mut self, now: Instant) -> Vec<Value> {
        self.session.handle_timeout(now);
        self.outputs()
    }

    fn take(&mut self, input: &Value, now: Instant) -> Vec<Value> {
        self.session.handle(server_input(input), now);
        self.outputs()
    }
}

fn server_input(input: &Value) -> server::Input<Message> {
    use server::Input;
    let (what, with) = input.as_object().unwrap().iter().next().expect("an input");
    match what.as_str() {
        "frame" => Input::Received(Message::Text(frame_text(&server_ctl(), with))),
        "received" => Input::Received(Message::read(&with["message"])),
        "closed" => Input::Closed,
        "send" => Input::Send(Message::read(with)),
        "order" => Input::Order(Notice {
            mid: text(&with["mid"]),
            ticket: Opaque(text(&with["ticket"])),
            by: ms(&with["by_ms"]),
            why: text(&with["why"]),
            dialogue: Dialogue::Park,
        }),
        "detached" => Input::Detached { mid: text(&with["mid"]), state: Opaque(text(&with["state"])) },
        "attached" => Input::Attached,
        "not_attached" => Input::NotAttached,
        "drain" => Input::Drain,
        "close" => {
            let reason = CloseReason::parse(with["reason"].as_str().unwrap()).expect("a close reason");
            Input::Close(reason, CloseCode(code(&with["code"])))
        }
        other => panic!("input {other:?}"),
    }
}

fn server_output(output: &server::Output<Message>) -> Value {
    use server::Output;
    match output {
        Output::Say(text) => json!({"frame": frame_fields(&server_ctl(), text)}),
        Output::Send(message) => json!({"send": message.write()}),
        Output::Close(reason, code) => json!({"close": {"code": code.get(), "reason": reason.as_str()}}),
        Output::Deliver(message) => json!({"deliver": message.write()}),
        Output::Detach { mid, at } => json!({"detach": {"mid": mid, "at": at}}),
        Output::Attach { sid, mid, state } => json!({"attach": {"sid": sid, "mid": mid, "state": state.0}}),
        Output::Gone => json!({"gone": {}}),
        Output::Unsent(message) => json!({"unsent": message.write()}),
        Output::Settled { mid, how } => {
            let mut settled = json!({"mid": mid, "how": how.reason()});
            if let Settled::Refused { why, retry } = how {
                settled["why"] = json!(why);
                if let Some(retry) = retry {
                    settled["retry_ms"] = json!(retry.as_millis());
                }
            }
            json!({ "settled": settled })
        }
    }
}

/// Lets time pass to the step, waking the machine whenever it wants, then gives it the step's input.
fn perform<B: Bench>(bench: &mut B, now: &mut Instant, step: &Value) -> Vec<Value> {
    let at = Instant::from_millis(step["at_ms"].as_u64().expect("at_ms"));
    assert!(at >= *now, "time goes on");
    let mut outputs = Vec::new();
    while let Some(next) = bench.poll_timeout().filter(|&next| next <= at) {
        *now = next.max(*now);
        outputs.extend(bench.fire(*now));
        assert!(bench.poll_timeout() != Some(next), "a machine that was woken asks to be woken again");
    }
    *now = at;
    if !step["in"].is_null() {
        outputs.extend(bench.take(&step["in"], at));
    }
    outputs
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/vectors").join(file)
}

fn check<B: Bench>(file: &str) {
    let mut vectors: Value = serde_json::from_str(&fs::read_to_string(path(file)).unwrap()).unwrap();
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut names = BTreeMap::new();
    for vector in vectors["vectors"].as_array_mut().unwrap() {
        let name = text(&vector["name"]);
        assert_eq!(names.insert(name.clone(), ()), None, "{name} stands there twice");
        let mut bench = B::open(&vector["given"]);
        let mut now = Instant::ZERO;
        for (index, step) in vector["steps"].as_array_mut().unwrap().iter_mut().enumerate() {
            let outputs = Value::Array(perform(&mut bench, &mut now, step));
            if update {
                step["out"] = outputs;
            } else {
                assert_eq!(outputs, step["out"], "{name}, step {index}: {}", step["in"]);
            }
        }
    }
    if update {
        fs::write(path(file), written(&vectors)).unwrap();
    }
}

/// One step a line.
fn written(vectors: &Value) -> String {
    let mut out = format!("{{\n  \"about\": {},\n  \"vectors\": [", vectors["about"]);
    for (index, vector) in vectors["vectors"].as_array().unwrap().iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let (name, given) = (&vector["name"], &vector["given"]);
        out += &format!(
            "{comma}\n    {{\n      \"name\": {name},\n      \"given\": {given},\n      \"steps\": ["
        );
        for (index, step) in vector["steps"].as_array().unwrap().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let input =
                if step["in"].is_null() { String::new() } else { format!("\"in\": {}, ", step["in"]) };
            let outputs: Vec<_> = step["out"].as_array().unwrap().iter().map(Value::to_string).collect();
            out += &format!(
                "{comma}\n        {{\"at_ms\": {}, {input}\"out\": [{}]}}",
                step["at_ms"],
                outputs.join(", ")
            );
        }
        out += "\n      ]\n    }";
    }
    out + "\n  ]\n}\n"
}

#[test]
fn a_client_does_what_the_vectors_say() {
    check::<ClientBench>("move_client.json");
}

#[test]
fn a_server_does_what_the_vectors_say() {
    check::<ServerBench>("move_server.json");
}
