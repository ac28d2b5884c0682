//! Which web pages reach a server.

use std::io::Write;

use evenkeel_gateway::FleetSettings;
use evenkeel_protocol::origin::{Origin, Origins};

use crate::kit::{Gate, Server, Setup, WS, read_end, read_head, server, wait_until};

/// The gateway's answer to a handshake with such an `Origin`; "101" or the whole refusal.
fn ask(gate: &Gate, origin: Option<&str>) -> String {
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    let mut client = gate.client();
    client
        .write_all(format!("GET / HTTP/1.1\r\nHost: ws.example.com\r\n{WS}{origin}\r\n").as_bytes())
        .unwrap();
    let head = read_head(&mut client);
    if head.starts_with("HTTP/1.1 101 ") {
        return String::from("101");
    }
    head + &String::from_utf8(read_end(&mut client)).unwrap()
}

fn gate(target: &Server, origins: Origins) -> Gate {
    let settings = FleetSettings { origins, ..FleetSettings::default() };
    Gate::with(vec![server("a", target.addr)], Setup { settings, ..Setup::default() })
}

fn counted(gate: &Gate, outcome: &str) -> f64 {
    gate.metric(&format!("evenkeel_gateway_handshakes_total{{outcome=\"{outcome}\"}}"))
}

#[test]
fn a_foreign_page_gets_403_and_is_counted_and_reaches_no_server() {
    let target = Server::echo();
    let gate = gate(&target, Origins::Own);
    for (origin, outcome) in [
        ("https://evil.example", "origin_foreign"),
        ("null", "origin_null"),
        ("https://ws.example.com/", "origin_malformed"),
    ] {
        let answer = ask(&gate, Some(origin));
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{origin}: {answer}");
        assert!(answer.contains("Origin") && !answer.contains("evil"), "{origin}: {answer}");
        assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{origin}: {answer}");
        wait_until(outcome, || counted(&gate, outcome) >= 1.0);
    }
    assert_eq!(target.accepted(), 0, "{}", target.seen());
    for origin in [None, Some("https://ws.example.com"), Some("http://WS.example.com:80")] {
        assert_eq!(ask(&gate, origin), "101", "{origin:?}");
    }
}

#[test]
fn with_a_list_only_its_origins_and_programs_get_in() {
    let target = Server::echo();
    let listed = Origins::Only(vec![Origin::parse("https://app.example.com").unwrap()]);
    let gate = gate(&target, listed);
    assert_eq!(ask(&gate, Some("https://app.example.com")), "101");
    assert_eq!(ask(&gate, None), "101");
    assert_eq!(target.accepted(), 2);
    for foreign in ["http://app.example.com", "https://ws.example.com", "null", ""] {
        let answer = ask(&gate, Some(foreign));
        assert!(answer.starts_with("HTTP/1.1 403 "), "{foreign}: {answer}");
    }
    assert_eq!(target.accepted(), 2, "{}", target.seen());
}

#[test]
fn where_all_origins_are_allowed_the_server_sees_them_as_sent() {
    let target = Server::echo();
    let gate = gate(&target, Origins::Any);
    for origin in ["https://evil.example", "null"] {
        assert_eq!(ask(&gate, Some(origin)), "101", "{origin}");
        assert!(target.seen().contains(&format!("Origin: {origin}\r\n")), "{}", target.seen());
    }
}
