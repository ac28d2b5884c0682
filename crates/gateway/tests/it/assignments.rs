//! Assignments of proxied handshakes: made for servers that check them, passed on where the client brings one.

use std::io::Write;
use std::net::TcpStream;

use evenkeel_fleet::snapshot::Executor;
use evenkeel_model::{FleetId, Incarnation, Instant, ServerId, State};
use evenkeel_protocol::keys::{MasterKey, TokenKey, live_kids, signing_kid, signing_move_key};
use evenkeel_protocol::ticket::{self, Ticket};
use evenkeel_protocol::token::{self, Audience, Cause, Claims, Refusal, Verifier, mint};
use evenkeel_runtime::Clock;

use crate::kit::{Gate, MASTER, Server, WS, fleet, nobody, read_end, read_head, server, wait_until};

/// Sends a handshake and gives the connection with its answer's head.
fn dial(gate: &Gate, target: &str, fields: &str) -> (TcpStream, String) {
    let mut client = gate.client();
    client
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: ws.example.com\r\n{WS}{fields}\r\n").as_bytes())
        .unwrap();
    let head = read_head(&mut client);
    (client, head)
}

/// A refusal's status and body.
fn refusal(gate: &Gate, target: &str, fields: &str) -> (String, String) {
    let (mut client, head) = dial(gate, target, fields);
    assert!(!head.contains(" 101 "), "{target}: {head}");
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, String::from_utf8(read_end(&mut client)).unwrap())
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn now() -> Instant {
    Clock::start().now()
}

fn audience(id: &str) -> Audience {
    Audience { server: ServerId::new(id).unwrap(), inc: Incarnation(1) }
}

/// The server's own check.
fn verify(token: &str, id: &str, path: &str, origin: Option<&str>) -> Result<Claims, Refusal> {
    let mut verifier = Verifier::new(audience(id));
    let keys = live_kids(now()).map(|kid| TokenKey::derive(&MASTER, &audience(id), kid));
    verifier.set_keys(keys.into());
    verifier.verify(token.as_bytes(), path, origin, now())
}

fn claims(id: &str) -> Claims {
    let iat = now().as_millis() / 1_000;
    Claims {
        aud: audience(id),
        iat,
        exp: iat + 30,
        jti: "j1".into(),
        rid: "r1".into(),
        sid: "s1".into(),
        path: "/chat".into(),
        org: None,
        cause: Cause::Start,
        caps: Vec::new(),
    }
}

fn signed(master: &MasterKey, claims: &Claims) -> String {
    mint(&TokenKey::derive(master, &claims.aud, signing_kid(now())), claims).unwrap()
}

fn ticket(master: &MasterKey, of: &FleetId, source: &str, exp_s: u64) -> String {
    let key = signing_move_key(master, of, now()).ticket_key();
    let exp = now().as_millis() / 1_000 + exp_s;
    ticket::mint(&key, &Ticket { sid: "s9".into(), source: ServerId::new(source).unwrap(), exp })
}

#[test]
fn a_server_with_an_agent_gets_an_assignment_for_every_handshake() {
    let target = Server::echo();
    let mut view = server("a", target.addr);
    view.url = format!("ws://{}/app", target.addr).into();
    let gate = Gate::new(vec![view]);
    let origin = "Origin: https://ws.example.com\r\nEvenkeel-Assignment: forged\r\n";
    let (_client, answer) = dial(&gate, "/chat?room=7&_ekm=c1&_eks=mine&_ekr=1", origin);
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let head = target.seen();
    assert!(head.starts_with("GET /app/chat?room=7&_ekm=c1&_eks=mine HTTP/1.1\r\n"), "{head}");
    assert_eq!(field(&head, "Evenkeel-Conn"), field(&answer, "Evenkeel-Conn"), "one name at both ends");
    let token = field(&head, "Evenkeel-Assignment").unwrap();
    let claims = verify(token, "a", "/app/chat", Some("https://ws.example.com")).unwrap();
    assert_eq!(
        (claims.sid.as_str(), claims.cause, &claims.caps[..]),
        ("mine", Cause::Start, &["move".into()][..])
    );
    assert_eq!(claims.exp - claims.iat, 30);
    assert!(!head.contains("forged"), "{head}");

    let (_client, _) = dial(&gate, "/chat", "");
    let head = target.seen().split_off(head.len());
    let other = verify(field(&head, "Evenkeel-Assignment").unwrap(), "a", "/app/chat", None).unwrap();
    assert!(other.jti != claims.jti && other.rid != claims.rid && other.sid != claims.sid, "{other:?}");
    assert!(!other.sid.is_empty() && other.caps.is_empty());
}

#[test]
fn a_server_without_agent_gets_none() {
    let target = Server::echo();
    let mut view = server("a", target.addr);
    view.executor = Executor::Gateways;
    let gate = Gate::new(vec![view]);
    let (_client, answer) = dial(&gate, "/", "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    wait_until("the handshake", || target.seen().contains("Upgrade: websocket"));
    assert!(!target.seen().contains("Assignment"), "{}", target.seen());
}

#[test]
fn another_master_key_signs_from_the_next_handshake_on() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    gate.master.send_replace(MasterKey::from_bytes([8; 32]));
    let (_client, _) = dial(&gate, "/", "");
    let head = target.seen();
    let token = field(&head, "Evenkeel-Assignment").unwrap();
    assert_eq!(verify(token, "a", "/", None), Err(Refusal::Signature));
}

#[test]
fn a_client_that_brings_an_assignment_gets_the_server_that_it_names_even_one_that_drains() {
    let (busy, empty) = (Server::echo(), Server::echo());
    let mut draining = server("a", busy.addr);
    draining.state = State::Draining;
    let gate = Gate::new(vec![draining, server("b", empty.addr)]);
    let token = signed(&MASTER, &claims("a"));
    let (_client, answer) = dial(&gate, &format!("/chat?_ek={token}&room=7"), "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert_eq!((busy.accepted(), empty.accepted()), (1, 0));
    assert!(busy.seen().starts_with(&format!("GET /chat?_ek={token}&room=7 HTTP/1.1")), "{}", busy.seen());
    assert_eq!(field(&busy.seen(), "Evenkeel-Assignment"), Some(token.as_str()));
}

#[test]
fn where_the_named_server_is_gone_another_one_gets_an_assignment_of_its_own() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", nobody()), server("b", target.addr)]);
    let token = signed(&MASTER, &claims("a"));
    let (_client, answer) = dial(&gate, &format!("/chat?_ek={token}&_eks=s1"), "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let head = target.seen();
    assert!(head.starts_with("GET /chat?_eks=s1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(verify(field(&head, "Evenkeel-Assignment").unwrap(), "b", "/chat", None).unwrap().sid, "s1");
}

#[test]
fn a_bad_assignment_gets_401_with_the_reason_and_reaches_no_server() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let iat = now().as_millis() / 1_000;
    let with = |change: fn(&mut Claims)| {
        let mut claims = claims("a");
        change(&mut claims);
        signed(&MASTER, &claims)
    };
    let good = with(|_| {});
    let (head, signature) = good.rsplit_once('.').unwrap();
    let cases = [
        (signed(&MASTER, &claims("b")), "other_server"),
        (with(|claims| claims.aud.inc = Incarnation(2)), "other_server"),
        (signed(&MasterKey::from_bytes([9; 32]), &claims("a")), "signature"),
        (format!("{head}.{}", signature.chars().rev().collect::<String>()), "signature"),
        (with(|claims| claims.path = "/other".into()), "path"),
        (with(|claims| claims.org = Some("https://ws.example.com".into())), "origin"),
        (signed(&MASTER, &Claims { iat: iat - 60, exp: iat - 40, ..claims("a") }), "expired"),
        (signed(&MASTER, &Claims { iat: iat + 60, exp: iat + 80, ..claims("a") }), "not_yet"),
        (String::from("x"), "malformed"),
        (String::new(), "missing"),
        ("x".repeat(token::TOKEN_MAX + 1), "too_long"),
        (String::from("eyJhbGciOiJub25lIn0.e30."), "algorithm"),
    ];
    for (token, why) in &cases {
        let (status, body) = refusal(&gate, &format!("/chat?_ek={token}"), "");
        // A signature turned round may not be base64url any more.
        let reasons = [format!(r#"{{"why":"{why}"}}"#), r#"{"why":"malformed"}"#.into()];
        assert!(
            status == "401" && reasons[..if *why == "signature" { 2 } else { 1 }].contains(&body),
            "{why}: {status} {body}"
        );
    }
    assert_eq!(target.accepted(), 0, "{}", target.seen());
    let counted =
        |why| gate.metric(&format!("evenkeel_gateway_credentials_refused_total{{reason=\"{why}\"}}"));
    wait_until("they are counted", || counted("path") >= 1.0 && counted("expired") >= 1.0);
    let (_client, answer) = dial(&gate, &format!("/chat?_ek={good}"), "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "none of them used it up: {answer}");
}

#[test]
fn a_session_that_moves_goes_to_another_server_than_its_ticket_names() {
    let (old, new) = (Server::echo(), Server::echo());
    let views = || vec![server("a", old.addr), server("b", new.addr)];
    let mut gate = Gate::new(views());
    let _first = dial(&gate, "/chat", "");
    let _second = dial(&gate, "/chat", "");
    let _third = dial(&gate, "/chat", "");
    wait_until("three are placed", || old.accepted() + new.accepted() == 3);
    let (source, receiver) = if old.accepted() == 2 { ("a", &new) } else { ("b", &old) };
    let good = ticket(&MASTER, &fleet(), source, 600);
    let url = |ticket: &str| format!("/chat?_ekm=c&_ekc=move&_eks=mine&_ekt={ticket}");
    let before = receiver.seen().len();
    let (_client, answer) = dial(&gate, &url(&good), "");
    // Two against one: with it the receiver is as full as the source was.
    assert!(answer.starts_with("HTTP/1.1 503 "), "a move that gains nothing does not happen: {answer}");

    let mut draining = views();
    draining
        .iter_mut()
        .filter(|view| view.id.as_str() == source)
        .for_each(|view| view.state = State::Draining);
    gate.publish(draining);
    let (_client, answer) = dial(&gate, &url(&good), "");
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let head = receiver.seen().split_off(before);
    assert!(head.starts_with(&format!("GET {} HTTP/1.1\r\n", url(&good))), "{head}");
    let token = field(&head, "Evenkeel-Assignment").unwrap();
    let id = if source == "a" { "b" } else { "a" };
    let claims = verify(token, id, "/chat", None).unwrap();
    assert_eq!(
        (claims.sid.as_str(), claims.cause),
        ("s9", Cause::Move),
        "the ticket's session, whatever the URL says"
    );
    assert_eq!(claims.caps, ["move"]);
}

#[test]
fn without_a_good_ticket_nobody_parks() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let other = FleetId::new("other").unwrap();
    for (ticket, why) in [
        (String::new(), "missing"),
        (ticket(&MasterKey::from_bytes([9; 32]), &fleet(), "a", 600), "signature"),
        (ticket(&MASTER, &other, "a", 600), "signature"),
        (ticket(&MASTER, &fleet(), "a", 3_600), "too_long_lived"),
        (signed(&MASTER, &claims("a")), "unknown_key"),
    ] {
        let (status, body) = refusal(&gate, &format!("/chat?_ekc=move&_eks=mine&_ekt={ticket}"), "");
        assert_eq!((status.as_str(), body), ("401", format!(r#"{{"why":"{why}"}}"#)));
    }
    assert_eq!(target.accepted(), 0, "{}", target.seen());
}
