//! `testdata/hostile/handshakes.toml`: none of the refused reaches a server, each gets its status.

use std::io::Write;
use std::net::Shutdown;

use serde::Deserialize;

use crate::kit::{Gate, Server, WS, handshake, read_end, server, wait_until};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    refused: Vec<Refused>,
    bad_answer: Vec<BadAnswer>,
    passed: Vec<Passed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    name: String,
    #[serde(rename = "note")]
    _note: String,
    status: u16,
    bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BadAnswer {
    name: String,
    #[serde(rename = "note")]
    _note: String,
    bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passed {
    name: String,
    #[serde(rename = "note")]
    _note: String,
    bytes: String,
    present: Vec<String>,
    absent: Vec<String>,
}

fn corpus() -> Corpus {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/hostile/handshakes.toml");
    toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Writes out the corpus's shorthand; braces that are none of it stand for themselves.
fn expand(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.extend_from_slice(&rest.as_bytes()[..open]);
        let inner = &rest[open + 1..];
        let end = inner.find('}').unwrap_or(inner.len());
        match expand_one(&inner[..end]) {
            Some(bytes) => {
                out.extend_from_slice(&bytes);
                rest = &inner[end + 1..];
            }
            None => {
                out.push(b'{');
                rest = inner;
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

fn expand_one(shorthand: &str) -> Option<Vec<u8>> {
    if let Some(hex) = shorthand.strip_prefix("x:") {
        return (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect();
    }
    if let Some((count, text)) = shorthand.strip_prefix("repeat:").and_then(|rest| rest.split_once(':')) {
        return Some(text.repeat(count.parse().ok()?).into_bytes());
    }
    match shorthand {
        "ws" => Some(WS.into()),
        "ws_lf" => Some(WS.replace("\r\n", "\n").into()),
        _ => None,
    }
}

/// Sends the bytes and says what comes back up to the end.
fn exchange(gate: &Gate, bytes: &[u8]) -> String {
    let mut client = gate.client();
    // A client that is refused early may not get rid of all its bytes.
    let _ = client.write_all(bytes);
    let answer = read_end(&mut client);
    String::from_utf8_lossy(&answer).into_owned()
}

fn status_of(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or(answer)
}

#[test]
fn no_hostile_handshake_reaches_a_server_and_each_gets_its_status() {
    let target = Server::websocket(|link| link.record());
    let gate = Gate::new(vec![server("a", target.addr)]);
    let refused = corpus().refused;
    assert!(refused.len() >= 145, "{}", refused.len());
    let mut wrong = Vec::new();
    for case in &refused {
        let answer = exchange(&gate, &expand(&case.bytes));
        if status_of(&answer) != case.status.to_string() {
            wrong.push(format!("{}: {} instead of {}", case.name, status_of(&answer), case.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(target.accepted(), 0, "connections reached the server: {}", target.seen());
    // And the door still opens for a good one.
    gate.open();
}

#[test]
fn what_a_405_426_and_503_must_say_is_said() {
    let gate = Gate::new(Vec::new());
    let text = String::from_utf8(handshake("/")).unwrap();
    let allow = exchange(&gate, text.replace("GET", "POST").as_bytes());
    assert!(allow.contains("\r\nAllow: GET\r\n"), "{allow}");
    let version = exchange(&gate, text.replace("Version: 13", "Version: 7").as_bytes());
    assert!(version.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{version}");
    let busy = exchange(&gate, text.as_bytes());
    assert!(busy.starts_with("HTTP/1.1 503 ") && busy.contains("\r\nRetry-After: "), "{busy}");
}

#[test]
fn no_bad_answer_reaches_a_client() {
    for case in corpus().bad_answer {
        let bytes = expand(&case.bytes);
        let target = Server::new(move |link| {
            link.request();
            link.write(&bytes);
            link.record();
        });
        let gate = Gate::new(vec![server("a", target.addr)]);
        let answer = exchange(&gate, &handshake("/"));
        assert_eq!(status_of(&answer), "502", "{}: {answer}", case.name);
    }
}

#[test]
fn proper_handshakes_reach_the_server_with_what_is_theirs_and_nothing_else() {
    for case in corpus().passed {
        let target = Server::websocket(|link| link.record());
        let gate = Gate::new(vec![server("a", target.addr)]);
        let mut client = gate.client();
        client.write_all(&expand(&case.bytes)).unwrap();
        let head = crate::kit::read_head(&mut client);
        assert!(head.starts_with("HTTP/1.1 101 "), "{}: {head}", case.name);
        client.shutdown(Shutdown::Both).unwrap();
        let seen = target.seen.lock().unwrap().clone();
        for needed in &case.present {
            let needed = expand(needed);
            let has = seen.windows(needed.len()).any(|window| window == needed);
            // Values that are not text are compared in the recorded text, where each such byte became U+FFFD.
            let text = String::from_utf8_lossy(&needed).into_owned();
            assert!(
                has || target.seen().contains(&text),
                "{}: {text} missing in\n{}",
                case.name,
                target.seen()
            );
        }
        for absent in &case.absent {
            assert!(
                !target.seen().contains(absent.as_str()),
                "{}: {absent} in\n{}",
                case.name,
                target.seen()
            );
        }
    }
}

#[test]
fn a_large_head_that_drips_costs_next_to_nothing() {
    let gate = Gate::new(Vec::new());
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = gate.client();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ").unwrap();
        clients.push(client);
    }
    // 15,000 one-byte pieces in all: a parser that begins anew with each would look at 80 million bytes here and at
    // 2.5 GB for whole heads. No assertion on time: the bound is the test's own deadline.
    for _ in 0..750 {
        for client in &mut clients {
            client.write_all(b"a").unwrap();
        }
    }
    for client in &mut clients {
        client.write_all(b"\r\n\r\n").unwrap();
        let answer = read_end(client);
        assert!(answer.starts_with(b"HTTP/1.1 426 "), "{}", String::from_utf8_lossy(&answer));
    }
    wait_until("all handshakes are counted", || {
        gate.metric("evenkeel_gateway_handshakes_total{outcome=\"no_upgrade\"}") >= 20.0
    });
}
