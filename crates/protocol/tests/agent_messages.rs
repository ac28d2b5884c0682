//! The shared vectors of the agent messages, as every implementation of docs/reference/agent.md must pass them.

use evenkeel_model::{Connections, Instant};
use evenkeel_protocol::message::{
    MESSAGE_MAX, MessageError, encode_down, encode_report, encode_up, parse_down, parse_report, parse_up,
};
use proptest::prelude::*;
use serde_json::Value;

const MESSAGES: &str = include_str!("../../../testdata/vectors/agent/messages.json");
const REFUSALS: &str = include_str!("../../../testdata/vectors/agent/refusals.json");

fn vectors(text: &str, name: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    let list = file[name].as_array().unwrap().clone();
    assert!(!list.is_empty());
    list
}

/// The message read, as the text this implementation would send for it.
fn read_and_write(from: &str, text: &str) -> Result<String, MessageError> {
    match from {
        "agent" => parse_up(text).map(|message| encode_up(&message)),
        "node" => parse_down(text)
            .map(|received| encode_down(&received.message, received.node_now.unwrap_or(Instant::ZERO))),
        "post" => parse_report(text).map(|posted| encode_report(&posted.report)),
        other => panic!("vector from {other:?}"),
    }
}

/// Numbers by value: `2` and `2.0` are the same to JSON.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

#[test]
fn every_message_of_the_vectors_is_taken_and_means_what_they_say() {
    for vector in vectors(MESSAGES, "messages") {
        let (name, from) = (vector["name"].as_str().unwrap(), vector["from"].as_str().unwrap());
        let written = read_and_write(from, vector["text"].as_str().unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let written_value: Value = serde_json::from_str(&written).unwrap();
        assert!(same(&written_value, &vector["means"]), "{name}:\n  {written}\n  {}", vector["means"]);
        assert_eq!(read_and_write(from, &written).as_ref(), Ok(&written), "{name}: not stable");
    }
}

#[test]
fn every_refusal_of_the_vectors_names_its_code_and_field() {
    for vector in vectors(REFUSALS, "refusals") {
        let name = vector["name"].as_str().unwrap();
        let error = read_and_write(vector["as"].as_str().unwrap(), vector["text"].as_str().unwrap())
            .map_or_else(|error| error, |text| panic!("{name}: taken as {text}"));
        assert_eq!(error.reason(), vector["code"].as_str().unwrap(), "{name}: {error}");
        assert_eq!(error.field(), vector["field"].as_str(), "{name}: {error}");
        if let Some(field) = error.field() {
            assert!(error.to_string().contains(field), "{name}: the text does not name the field: {error}");
        }
    }
}

#[test]
fn a_posted_report_registers_the_server_only_with_a_url() {
    let bare = r#"{"inc":1,"seq":2,"connections":5,"cpu":0.5,"fleet":"chat"}"#;
    let posted = parse_report(bare).unwrap();
    assert_eq!(posted.report.connections, Connections(5));
    assert_eq!(posted.profile, None);

    let with_url =
        r#"{"inc":1,"seq":2,"connections":5,"url":"ws://127.0.0.1:9001","fleet":"chat","capacity":50}"#;
    let profile = parse_report(with_url).unwrap().profile.unwrap();
    assert_eq!(profile.url, "ws://127.0.0.1:9001");
    assert_eq!(profile.fleet.unwrap().as_str(), "chat");
    assert_eq!(profile.capacity, Some(Connections(50)));
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let text = format!(r#"{{"op":"applied","epoch":1,"gen":1,"x":"{}"}}"#, "x".repeat(MESSAGE_MAX));
    let error = parse_up(&text).unwrap_err();
    assert_eq!(error.reason(), "too_long");
}

#[test]
fn a_key_never_shows_in_debug_output() {
    let text = r#"{"op":"keys","keys":[{"kty":"oct","kid":"7","alg":"HS256","k":"c2VjcmV0"}]}"#;
    let received = parse_down(text).unwrap();
    assert!(!format!("{received:?}").contains("c2VjcmV0"));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = (parse_up(&text), parse_down(&text), parse_report(&text));
    }

    #[test]
    fn no_damage_to_a_good_message_panics(pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let all = vectors(MESSAGES, "messages");
        let mut bytes = pick.get(&all)["text"].as_str().unwrap().as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = (parse_up(text), parse_down(text), parse_report(text));
        }
    }
}
