//! Where clients are told to connect: negotiate over HTTP, 307 on the handshake, and who may ask.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel_fleet::snapshot::{Outcome, ServerView, Settlements};
use evenkeel_gateway::{AuthConfig, FleetSettings, Limits, Route, RouteKind, Scheme};
use evenkeel_model::{PerSecond, ServerId, State};
use evenkeel_protocol::keys::{MasterKey, TokenKey, live_kids, live_move_keys, signing_move_key};
use evenkeel_protocol::negotiate::{LocationForm, field};
use evenkeel_protocol::origin::{Origin, Origins};
use evenkeel_protocol::ticket::{self, Ticket};
use evenkeel_protocol::token::{Audience, Cause, Claims, Verifier, names};
use evenkeel_runtime::Clock;
use serde_json::{Value, json};

use crate::kit::{
    Gate, MASTER, Server, Setup, WS, connect, fleet, read_end, read_exact, read_head, server, wait_until,
};

const PATH: &str = "/.well-known/evenkeel/negotiate";

/// One answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_else(|| panic!("no text {key} in {self:?}"))
    }
}

/// Reads one answer; the connection may go on.
fn read_answer(client: &mut TcpStream) -> Answer {
    let head = read_head(client);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let body = read_exact(client, length.map_or(0, |length| length.parse().unwrap()));
    Answer { status, head, body: serde_json::from_slice(&body).unwrap_or_default() }
}

fn send(client: &mut TcpStream, line: &str, fields: &str, body: &str) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client
        .write_all(
            format!("{line} HTTP/1.1\r\nHost: ws.example.com\r\n{length}{fields}\r\n{body}").as_bytes(),
        )
        .unwrap();
    read_answer(client)
}

fn ask(gate: &Gate, question: &Value) -> Answer {
    send(&mut gate.client(), &format!("POST {PATH}"), "", &question.to_string())
}

fn handshake(gate: &Gate, target: &str, fields: &str) -> Answer {
    send(&mut gate.client(), &format!("GET {target}"), &format!("{WS}{fields}"), "")
}

/// A server that clients can reach themselves.
fn public(id: &str, addr: SocketAddr) -> ServerView {
    ServerView { public_url: Some(format!("ws://{addr}").into()), ..server(id, addr) }
}

fn two() -> (Server, Server, Vec<ServerView>) {
    let (a, b) = (Server::echo(), Server::echo());
    let views = vec![public("a", a.addr), public("b", b.addr)];
    (a, b, views)
}

fn now() -> evenkeel_model::Instant {
    Clock::start().now()
}

/// What the server that is named would make of the token in this URL.
fn claims(url: &str, path: &str, origin: Option<&str>) -> Claims {
    let token = field(url, "_ek").unwrap_or_else(|| panic!("no token in {url}"));
    let audience: Audience = names(token.as_bytes()).unwrap();
    let keys = live_kids(now()).map(|kid| TokenKey::derive(&MASTER, &audience, kid));
    let mut verifier = Verifier::new(audience);
    verifier.set_keys(keys.into());
    verifier.verify(token.as_bytes(), path, origin, now()).unwrap()
}

fn ticket(master: &MasterKey, sid: &str, source: &str) -> String {
    let key = signing_move_key(master, &fleet(), now()).ticket_key();
    ticket::mint(&key, &Ticket::new(sid, ServerId::new(source).unwrap(), now()))
}

fn read_ticket(text: &str) -> Ticket {
    let keys: Vec<_> = live_move_keys(&MASTER, &fleet(), now()).iter().map(|key| key.ticket_key()).collect();
    ticket::check(text.as_bytes(), &keys, now()).unwrap()
}

fn with_scheme(scheme: Scheme) -> Setup {
    Setup { settings: FleetSettings { scheme, ..FleetSettings::default() }, ..Setup::default() }
}

fn route(path: &str) -> Route {
    Route {
        host: None,
        path: path.into(),
        fleet: fleet(),
        origins: None,
        kind: RouteKind::WebSocket,
        scheme: None,
        location: LocationForm::Ws,
        auth: None,
    }
}

fn with_routes(routes: Vec<Route>) -> Setup {
    Setup { routes, ..Setup::default() }
}

/// Opens a WebSocket at a URL as it is.
fn dial(url: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("ws://").unwrap();
    let (addr, target) = rest.split_at(rest.find('/').unwrap());
    let mut client = connect(addr.parse().unwrap());
    client.write_all(format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\n{WS}\r\n").as_bytes()).unwrap();
    let head = read_head(&mut client);
    (client, head)
}

#[test]
fn a_client_that_asks_is_sent_to_a_server_with_an_assignment_of_its_own() {
    let (a, b, views) = two();
    let gate = Gate::new(views);
    let answer = ask(&gate, &json!({"v": 1, "path": "/chat?room=7&_ek=old", "caps": ["move"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.field("Cache-Control"), Some("no-store"));
    let url = answer.text("url");
    let (first, second) = if url.contains(&a.addr.to_string()) { (&a, &b) } else { (&b, &a) };
    assert!(url.starts_with(&format!("ws://{}/chat?room=7&_ek=", first.addr)), "{url}");
    let token = claims(url, "/chat", None);
    assert_eq!((token.sid.as_str(), token.cause), (answer.text("sid"), Cause::Start));
    assert_eq!((token.caps, token.exp - token.iat), (vec![String::from("move")], 30));
    let alternative = answer.body["alt"][0]["url"].as_str().unwrap();
    assert!(alternative.starts_with(&format!("ws://{}/chat?room=7&_ek=", second.addr)), "{alternative}");
    let other = claims(alternative, "/chat", None);
    assert!(other.sid == token.sid && other.rid != token.rid && other.jti != token.jti);
    let ticket = read_ticket(answer.text("ticket"));
    assert_eq!((ticket.sid, ticket.source), (token.sid, token.aud.server));
    assert_eq!(answer.body["v"], 1);
    assert_eq!(answer.body["connect_ms"], 30_000);
    assert_eq!(answer.body["retry"], json!({"base_ms": 500, "cap_ms": 30_000}));
    let proxy = answer.text("proxy");
    assert_eq!(proxy, format!("ws://ws.example.com/chat?room=7&_eks={}", answer.text("sid")));
    assert_eq!(a.accepted() + b.accepted(), 0, "asking reaches no server");
}

#[test]
fn a_get_on_the_route_that_takes_json_asks_the_same() {
    let (_a, _b, views) = two();
    let gate = Gate::new(views);
    let get = "GET /chat?room=7&_ek_caps=move&_ek_cause=start";
    let answer = send(&mut gate.client(), get, "Accept: text/html, application/json;q=0.9\r\n", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text("url").contains("/chat?room=7&_ek=") && !answer.text("url").contains("caps"));
    assert_eq!(claims(answer.text("url"), "/chat", None).caps, ["move"]);
    let without = send(&mut gate.client(), "GET /chat", "Accept: */*\r\n", "");
    assert_eq!(without.status, 426, "a browser's address line is no question");
    let get = send(&mut gate.client(), &format!("GET {PATH}"), "", "");
    assert_eq!((get.status, get.field("Allow")), (405, Some("POST, OPTIONS")));
}

#[test]
fn questions_follow_each_other_on_one_connection_also_without_waiting() {
    let (_a, _b, views) = two();
    let gate = Gate::new(views);
    let mut client = gate.client();
    let mut sids = Vec::new();
    for _ in 0..3 {
        let answer = send(&mut client, &format!("POST {PATH}"), "", r#"{"v":1,"path":"/chat"}"#);
        sids.push(answer.text("sid").to_owned());
    }
    let one = "GET /chat HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n";
    client.write_all(one.repeat(3).as_bytes()).unwrap();
    for _ in 0..3 {
        sids.push(read_answer(&mut client).text("sid").to_owned());
    }
    let answered = sids.len();
    sids.sort();
    sids.dedup();
    assert_eq!((sids.len(), answered), (6, 6), "six sessions");
    let last = send(&mut client, "GET /chat", "Accept: application/json\r\nConnection: close\r\n", "");
    assert_eq!((last.status, last.field("Connection")), (200, Some("close")));
    assert!(read_end(&mut client).is_empty());
    let mut client = gate.client();
    send(&mut client, "GET /chat", "Accept: application/json\r\n", "");
    client.write_all(&crate::kit::handshake("/chat")).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "), "a handshake may come behind it");
}

#[test]
fn a_client_that_asked_and_is_idle_is_let_go() {
    let (_a, _b, views) = two();
    let mut setup = Setup::default();
    setup.limits.heads.client_head = Duration::from_millis(300);
    let gate = Gate::with(views, setup);
    let mut client = gate.client();
    send(&mut client, "GET /chat", "Accept: application/json\r\n", "");
    assert!(read_end(&mut client).is_empty(), "without another word");
    let outcomes = ["silent", "client_gone"];
    let counted =
        outcomes.map(|it| gate.metric(&format!("evenkeel_gateway_handshakes_total{{outcome=\"{it}\"}}")));
    assert_eq!(counted, [0.0, 0.0], "it was served: no handshake failed");
    assert!(gate.metric("evenkeel_gateway_negotiates_total{outcome=\"assigned\"}") >= 1.0);
}

#[test]
fn a_server_that_clients_cannot_reach_is_offered_through_the_gateway() {
    let (a, b) = (Server::echo(), Server::echo());
    for scheme in [Scheme::Auto, Scheme::Proxy] {
        let mut view = server("a", a.addr);
        if scheme == Scheme::Proxy {
            view.public_url = Some(format!("ws://{}", b.addr).into());
        }
        view.url = format!("ws://{}/app", a.addr).into();
        let gate = Gate::with(vec![view], with_scheme(scheme));
        let question = r#"{"v":1,"path":"/chat"}"#;
        let mut client = gate.client();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{question}",
            gate.addr,
            question.len()
        );
        client.write_all(head.as_bytes()).unwrap();
        let answer = read_answer(&mut client);
        let url = answer.text("url");
        assert!(url.starts_with(&format!("ws://{}/chat?_ek=", gate.addr)), "{url}");
        assert_eq!(answer.body["alt"], json!([]));
        claims(url, "/app/chat", None);
        let (_client, head) = dial(url);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let (_client, head) = dial(answer.text("proxy"));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(a.seen().contains(&format!("GET /app/chat?_eks={} ", answer.text("sid"))), "{}", a.seen());
    }
    assert_eq!((a.accepted(), b.accepted()), (4, 0));
}

#[test]
fn the_gateway_is_named_as_the_operator_says() {
    let (_a, _b, views) = two();
    let setup = Setup { public_url: Some("wss://ws.example.com/edge/".into()), ..Setup::default() };
    let answer = ask(&Gate::with(views, setup), &json!({"v": 1, "path": "/chat"}));
    assert!(answer.text("proxy").starts_with("wss://ws.example.com/edge/chat?_eks="), "{answer:?}");
}

#[test]
fn pages_may_ask_where_they_may_connect_and_others_get_nothing() {
    let (a, _b, views) = two();
    let listed = Origins::Only(vec![Origin::parse("https://app.example.com").unwrap()]);
    let settings = FleetSettings { origins: listed, ..FleetSettings::default() };
    let gate = Gate::with(views, Setup { settings, ..Setup::default() });
    let body = r#"{"v":1,"path":"/chat"}"#;
    let requests = [
        (format!("POST {PATH}"), body, 200),
        (format!("OPTIONS {PATH}"), "", 204),
        (String::from("GET /chat"), "", 200),
        (String::from("OPTIONS /chat"), "", 204),
    ];
    let json = "Accept: application/json\r\n";
    for (line, body, status) in &requests {
        let origin = "https://app.example.com";
        let answer = send(&mut gate.client(), line, &format!("{json}Origin: {origin}\r\n"), body);
        assert_eq!(answer.status, *status, "{line}: {answer:?}");
        assert_eq!(answer.field("Access-Control-Allow-Origin"), Some(origin), "{line}");
        assert_eq!(answer.field("Vary"), Some("Origin"), "{line}");
        assert_eq!(answer.field("Access-Control-Allow-Credentials"), Some("true"), "{line}");
        if *status == 204 {
            assert_eq!(answer.field("Access-Control-Allow-Methods"), Some("GET, POST, OPTIONS"));
            assert!(answer.field("Access-Control-Allow-Headers").unwrap().contains("Content-Type"));
        } else {
            assert_eq!(claims(answer.text("url"), "/chat", Some(origin)).org.as_deref(), Some(origin));
        }
        let program = send(&mut gate.client(), line, json, body);
        assert!(!program.head.contains("Access-Control"), "{line}: {}", program.head);
        for foreign in
            ["https://evil.example", "http://app.example.com", "null", "https://ws.example.com", "x"]
        {
            let answer = send(&mut gate.client(), line, &format!("{json}Origin: {foreign}\r\n"), body);
            assert_eq!(answer.status, 403, "{line} {foreign}: {answer:?}");
            let head = answer.head.to_ascii_lowercase();
            assert!(!head.contains("access-control-"), "{line} {foreign}: {head}");
            assert!(answer.body["url"].is_null(), "{answer:?}");
        }
    }
    assert_eq!(a.accepted(), 0);
    let refused =
        send(&mut gate.client(), &format!("POST {PATH}"), "Origin: https://app.example.com\r\n", "{");
    assert_eq!(refused.status, 400);
    assert!(refused.field("Access-Control-Allow-Origin").is_some(), "a page may read its own mistakes");
}

#[test]
fn a_page_may_ask_only_for_the_routes_that_it_may_use() {
    let (_a, _b, views) = two();
    let origins = |text: &str| Some(Origins::Only(vec![Origin::parse(text).unwrap()]));
    let open = Route { origins: Some(Origins::Any), ..route("/open") };
    let setup = with_routes(vec![
        Route { origins: origins("https://a.example"), ..route("/a") },
        Route { origins: origins("https://b.example"), ..route("/b") },
        open,
    ]);
    let gate = Gate::with(views, setup);
    let status = |origin: &str, path: &str| {
        let body = json!({"v": 1, "path": path}).to_string();
        let answer =
            send(&mut gate.client(), &format!("POST {PATH}"), &format!("Origin: {origin}\r\n"), &body);
        assert_eq!(answer.head.contains("Access-Control"), answer.status != 403, "{answer:?}");
        answer.status
    };
    assert_eq!([status("https://a.example", "/a"), status("https://a.example", "/b")], [200, 403]);
    assert_eq!([status("https://b.example", "/a"), status("https://b.example", "/b")], [403, 200]);
    assert_eq!([status("https://c.example", "/open"), status("https://c.example", "/a")], [200, 403]);
    assert_eq!(status("https://a.example", "/elsewhere"), 404);
    let get = send(
        &mut gate.client(),
        "GET /open",
        "Accept: application/json\r\nOrigin: https://c.example\r\n",
        "",
    );
    assert_eq!(get.status, 200);
    assert!(!get.head.contains("Credentials"), "not to every page: {}", get.head);
}

#[test]
fn what_cannot_be_asked_gets_its_reason_and_large_and_slow_bodies_end() {
    let (_a, _b, views) = two();
    let mut setup = Setup::default();
    setup.limits.heads.client_head = Duration::from_millis(400);
    let gate = Gate::with(views, setup);
    for (body, why) in [
        ("[]", "json"),
        (r#"{"path":"/"}"#, "version"),
        (r#"{"v":1,"path":"/a/../b"}"#, "path"),
        (r#"{"v":1,"path":"http://evil.example/"}"#, "path"),
        (r#"{"v":1,"path":"/","sid":"a b"}"#, "text"),
    ] {
        let answer = send(&mut gate.client(), &format!("POST {PATH}"), "", body);
        assert_eq!((answer.status, answer.text("why")), (400, why), "{answer:?}");
    }
    let long = format!("/{}", "x".repeat(3_000));
    let answer = ask(&gate, &json!({"v": 1, "path": long}));
    assert_eq!(
        (answer.status, answer.text("why")),
        (400, "path"),
        "longer than any server takes: {answer:?}"
    );

    let mut large = gate.client();
    write!(large, "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 16385\r\n\r\n").unwrap();
    let answer = read_answer(&mut large);
    assert_eq!((answer.status, answer.field("Connection")), (413, Some("close")));

    let mut slow = gate.client();
    write!(slow, "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n{{").unwrap();
    let answer = read_answer(&mut slow);
    assert_eq!((answer.status, answer.field("Connection")), (408, Some("close")));

    let mut drips = gate.client();
    write!(drips, "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n").unwrap();
    for byte in br#"{"v":1,"path":"/chat"}"# {
        drips.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_answer(&mut drips).status, 200);
    wait_until("they are counted", || {
        gate.metric("evenkeel_gateway_negotiates_total{outcome=\"late\"}") >= 1.0
            && gate.metric("evenkeel_gateway_negotiates_total{outcome=\"too_long\"}") >= 1.0
    });
}

#[test]
fn a_session_is_known_by_its_ticket_and_by_nothing_else() {
    let (_a, _b, views) = two();
    let gate = Gate::new(views);
    let asked = |cause: &str, ticket: &str| {
        ask(&gate, &json!({"v": 1, "path": "/chat", "cause": cause, "sid": "theirs", "ticket": ticket}))
    };
    let good = ticket(&MASTER, "mine", "a");
    let forged = ticket(&MasterKey::from_bytes([9; 32]), "theirs", "a");
    assert_eq!(asked("lost", &good).text("sid"), "mine");
    for ticket in [forged.as_str(), "", "x.y.z"] {
        let answer = asked("lost", ticket);
        assert!(answer.status == 200 && answer.text("sid") != "theirs", "{answer:?}");
    }
    for (ticket, why) in [(forged.as_str(), "signature"), ("", "missing")] {
        let answer = asked("move", ticket);
        assert_eq!((answer.status, answer.text("why")), (401, why), "nobody moves a session by its name");
    }
}

#[test]
fn a_move_goes_elsewhere_and_only_to_a_server_that_is_less_full() {
    let (a, _b, mut views) = two();
    let mut gate = Gate::new(views.clone());
    let on = |url: &str| if url.contains(&a.addr.to_string()) { "a" } else { "b" };
    let of = |source: &str| json!({"v": 1, "path": "/chat", "cause": "move", "ticket": ticket(&MASTER, "s", source)});
    let stay = ask(&gate, &of("a"));
    assert_eq!(stay.status, 503, "both are empty: {stay:?}");
    assert!(stay.body["retry"]["wait_ms"].as_u64().is_some_and(|wait| wait > 0), "{stay:?}");
    assert!(stay.body["retry"]["window_ms"].as_u64().is_some_and(|window| window > 0), "{stay:?}");
    views[0].state = State::Draining;
    gate.publish(views);
    let answer = ask(&gate, &of("a"));
    assert_eq!((answer.status, on(answer.text("url"))), (200, "b"), "{answer:?}");
    assert_eq!(claims(answer.text("url"), "/chat", None).cause, Cause::Move);
    assert_eq!(read_ticket(answer.text("ticket")).source.as_str(), "b");
    let answer = ask(&gate, &of("b"));
    assert_eq!(answer.status, 503, "there is none but its own: {answer:?}");
}

#[test]
fn servers_that_refused_are_avoided_while_there_are_others() {
    let (a, _b, views) = two();
    let gate = Gate::new(views);
    for _ in 0..6 {
        let answer = ask(&gate, &json!({"v": 1, "path": "/chat", "cause": "refused", "avoid": ["a"]}));
        assert!(!answer.text("url").contains(&a.addr.to_string()), "{answer:?}");
    }
    let answer = ask(&gate, &json!({"v": 1, "path": "/chat", "avoid": ["a", "b", "never-heard-of"]}));
    assert_eq!(answer.status, 200, "they are better than none: {answer:?}");
}

#[test]
fn with_nobody_to_take_them_clients_are_told_when_to_come_back() {
    let gate = Gate::new(Vec::new());
    let answer = ask(&gate, &json!({"v": 1, "path": "/chat"}));
    assert_eq!((answer.status, answer.text("why")), (503, "no_server"), "{answer:?}");
    assert!(answer.field("Retry-After").is_some() && answer.body["retry"]["window_ms"].is_u64());

    let target = Server::echo();
    let slow = ServerView { admit: PerSecond::new(1.0), ..public("a", target.addr) };
    let gate = Gate::new(vec![slow]);
    let answers: Vec<_> = (0..4).map(|_| ask(&gate, &json!({"v": 1, "path": "/chat"}))).collect();
    assert_eq!(answers[0].status, 200, "{answers:?}");
    let refused = answers.iter().find(|answer| answer.status == 503).expect("one is admitted a second");
    assert_eq!(refused.text("why"), "out_of_credit");
}

#[test]
fn what_an_agent_says_of_an_assignment_settles_it() {
    let target = Server::echo();
    let slow = ServerView { admit: PerSecond::new(1.0), ..public("a", target.addr) };
    let mut gate = Gate::new(vec![slow]);
    let rid = claims(ask(&gate, &json!({"v": 1, "path": "/chat"})).text("url"), "/chat", None).rid;
    let pending = |gate: &mut Gate| {
        let mut last = None;
        while let Ok(evenkeel_fleet::snapshot::GatewaySays::Viewed(view)) = gate.says.try_recv() {
            last = view.servers.first().map(|server| server.pending.get());
        }
        last
    };
    wait_until("it is on its way", || pending(&mut gate) == Some(1));
    let outcomes = vec![(rid, Outcome::Connected)];
    let settled = Settlements { fleet: fleet(), server: ServerId::new("a").unwrap(), outcomes };
    gate.settle.try_send(settled).unwrap();
    wait_until("it has arrived", || pending(&mut gate) == Some(0));
}

#[test]
fn a_handshake_that_asks_is_redirected_and_its_connection_stays() {
    let (a, b, views) = two();
    let gate = Gate::new(views);
    let mut client = gate.client();
    for _ in 0..2 {
        let answer = send(&mut client, "GET /chat?_ekr=1&room=7&_ekm=c1", WS, "");
        assert_eq!(answer.status, 307, "{answer:?}");
        let location = answer.field("Location").unwrap();
        let direct = [a.addr, b.addr].map(|addr| format!("ws://{addr}/chat?room=7&_ekm=c1&_ek="));
        assert!(direct.iter().any(|url| location.starts_with(url)), "{location}");
        assert_eq!(claims(location, "/chat", None).caps, ["move"]);
        assert_eq!(answer.field("Cache-Control"), Some("no-store"));
        assert_eq!(answer.field("Connection"), None);
    }
    assert_eq!(a.accepted() + b.accepted(), 0);
    let proxied = handshake(&gate, "/chat?room=7", "");
    assert_eq!(proxied.status, 101, "whoever does not ask is proxied");
    let browser = handshake(&gate, "/chat?_ekr=1", "Origin: http://ws.example.com\r\n");
    assert_eq!(browser.status, 101, "a browser follows none");
    wait_until("both arrived", || a.accepted() + b.accepted() == 2);
    assert!(!format!("{}{}", a.seen(), b.seen()).contains("_ekr"));
    assert!(gate.metric("evenkeel_gateway_handshakes_total{outcome=\"redirected\"}") >= 2.0);
}

#[test]
fn a_route_can_force_it_in_the_form_that_its_clients_follow() {
    let (a, _b, views) = two();
    let forced = |path: &str, location| Route { scheme: Some(Scheme::Redirect), location, ..route(path) };
    let setup = with_routes(vec![
        forced("/ws", LocationForm::Ws),
        forced("/http", LocationForm::Http),
        forced("/relative", LocationForm::Relative),
        Route { scheme: Some(Scheme::Proxy), ..route("/proxy") },
    ]);
    let gate = Gate::with(views[..1].to_vec(), setup);
    for (path, start) in [("/ws", "ws://"), ("/http", "http://"), ("/relative", "//")] {
        let answer = handshake(&gate, path, "");
        let location = answer.field("Location").unwrap();
        assert!(location.starts_with(&format!("{start}{}{path}?_ek=", a.addr)), "{location}");
        let asked = ask(&gate, &json!({"v": 1, "path": path}));
        assert!(asked.text("url").starts_with("ws://"), "{asked:?}");
        assert!(asked.body["proxy"].is_null(), "it would be redirected again: {asked:?}");
        let browser = handshake(&gate, path, "Origin: http://ws.example.com\r\n");
        assert_eq!(browser.status, 101, "{path}");
    }
    assert_eq!(handshake(&gate, "/proxy?_ekr=1", "").status, 101);
}

#[test]
fn nobody_is_sent_round_in_circles() {
    let target = Server::echo();
    let mut gate = Gate::with(Vec::new(), with_scheme(Scheme::Redirect));
    // A public URL that leads to the gateway itself: its operator made a mistake, or has the servers behind it.
    let view =
        ServerView { public_url: Some(format!("ws://{}", gate.addr).into()), ..server("a", target.addr) };
    gate.publish(vec![view]);
    let answer = handshake(&gate, "/chat", "");
    assert_eq!(answer.status, 307);
    let (_client, head) = dial(answer.field("Location").unwrap());
    assert!(head.starts_with("HTTP/1.1 101 "), "the second time it is proxied: {head}");
    assert_eq!(target.accepted(), 1);
}

#[test]
fn without_a_server_that_clients_can_reach_nobody_is_redirected() {
    let (a, b) = (Server::echo(), Server::echo());
    let gate = Gate::with(vec![server("a", a.addr)], with_scheme(Scheme::Redirect));
    assert_eq!(handshake(&gate, "/chat", "").status, 101);
    drop(gate);
    let gate = Gate::with(vec![server("a", a.addr), public("b", b.addr)], with_scheme(Scheme::Redirect));
    let statuses: Vec<u16> = (0..8).map(|_| handshake(&gate, "/chat", "").status).collect();
    assert!(statuses.contains(&101) && statuses.contains(&307), "each in its way: {statuses:?}");
    assert_eq!(b.accepted(), 0);
}

/// A service that answers every question with this status.
fn service(status: u16) -> Server {
    Server::new(move |link| {
        link.request();
        link.write(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes());
        link.finish();
    })
}

#[test]
fn the_operators_service_decides_before_anything_is_signed_or_proxied() {
    let (a, _b, views) = two();
    let nobody = crate::kit::nobody();
    for (status, expected) in [(204, 200), (401, 401), (403, 403), (500, 502), (302, 502), (0, 503)] {
        let asked = service(status);
        let addr = if status == 0 { nobody } else { asked.addr };
        let auth = Some(AuthConfig { url: format!("http://{addr}/check"), timeout: Duration::from_secs(5) });
        let gate = Gate::with(views[..1].to_vec(), with_routes(vec![Route { auth, ..route("/") }]));
        let before = a.accepted();
        let body = r#"{"v":1,"path":"/chat?room=7"}"#;
        let answer = send(&mut gate.client(), &format!("POST {PATH}"), "Cookie: user=1\r\n", body);
        assert_eq!(answer.status, expected, "{status}: {answer:?}");
        assert_eq!(answer.body["url"].is_string(), expected == 200);
        let redirected = handshake(&gate, "/chat?_ekr=1", "").status;
        assert_eq!(redirected, if expected == 200 { 307 } else { expected });
        let proxied = handshake(&gate, "/chat", "").status;
        assert_eq!(proxied, if expected == 200 { 101 } else { expected });
        assert_eq!(a.accepted() - before, usize::from(expected == 200));
        if expected == 200 {
            let question = asked.seen();
            for line in [
                "GET /check HTTP/1.1",
                "X-Forwarded-Uri: /chat?room=7",
                "X-Forwarded-Method: POST",
                "X-Forwarded-Host: ws.example.com",
                "X-Forwarded-For: 127.0.0.1",
                "Cookie: user=1",
            ] {
                assert!(question.contains(&format!("{line}\r\n")), "{line}: {question}");
            }
            let count = asked.accepted();
            assert_eq!(
                handshake(
                    &gate,
                    answer.text("url").split_at(answer.text("url").find("/chat").unwrap()).1,
                    ""
                )
                .status,
                101
            );
            assert_eq!(asked.accepted(), count, "whoever brings an assignment was asked for it");
        }
    }
}

#[test]
fn a_service_that_is_silent_lets_nobody_in() {
    let (a, _b, views) = two();
    let silent = Server::new(|link| link.record());
    let auth =
        Some(AuthConfig { url: format!("http://{}", silent.addr), timeout: Duration::from_millis(200) });
    let gate = Gate::with(views, with_routes(vec![Route { auth, ..route("/") }]));
    assert_eq!(handshake(&gate, "/chat", "").status, 503);
    assert_eq!(ask(&gate, &json!({"v": 1, "path": "/chat"})).status, 503);
    assert_eq!(a.accepted(), 0);
    wait_until("it is counted", || {
        gate.metric("evenkeel_gateway_auth_total{outcome=\"auth_unreachable\"}") >= 2.0
    });
}

#[test]
fn signalr_asks_in_its_own_way() {
    let (a, _b, views) = two();
    let hub = Route { kind: RouteKind::SignalR, ..route("/hub") };
    let gate = Gate::with(views[..1].to_vec(), with_routes(vec![hub]));
    let origin = "Origin: http://ws.example.com\r\nX-Requested-With: XMLHttpRequest\r\n";
    let answer = send(&mut gate.client(), "POST /hub/chat/negotiate?negotiateVersion=1&room=7", origin, "");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text("url"), format!("http://{}/hub/chat?room=7", a.addr));
    let url = format!("ws://x/?_ek={}", answer.text("accessToken"));
    let token = claims(&url, "/hub/chat", Some("http://ws.example.com"));
    assert_eq!(token.aud.server.as_str(), "a");
    assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("http://ws.example.com"));
    let preflight = send(&mut gate.client(), "OPTIONS /hub/chat/negotiate", origin, "");
    assert!(
        preflight.status == 204
            && preflight.field("Access-Control-Allow-Headers").unwrap().contains("X-Requested-With")
    );
    assert_eq!(send(&mut gate.client(), "POST /hub/chat", "", "").status, 405);
    drop(gate);
    let hub = Route { kind: RouteKind::SignalR, ..route("/hub") };
    let gate = Gate::with(vec![server("a", a.addr)], with_routes(vec![hub]));
    let answer = send(&mut gate.client(), "POST /hub/negotiate?negotiateVersion=1", "", "");
    assert_eq!((answer.status, answer.text("why")), (503, "no_public_url"), "it would ask here again");
}

#[test]
fn many_who_only_ask_keep_nobody_out() {
    let (a, b, views) = two();
    let views: Vec<_> =
        views.into_iter().map(|view| ServerView { admit: PerSecond::new(200.0), ..view }).collect();
    let gate = Gate::new(views);
    let clock = Clock::start();
    // The nightly run takes a minute.
    let seconds = std::env::var("EVENKEEL_ASKING_S").map_or(3, |seconds| seconds.parse().unwrap());
    let until = clock.now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            // 500 a second together, each without ever connecting.
            scope.spawn(|| {
                let mut client = gate.client();
                while clock.now() < until {
                    send(&mut client, &format!("POST {PATH}"), "", r#"{"v":1,"path":"/chat"}"#);
                    // sleep: the rate of the load.
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        while clock.now() < until {
            let began = clock.now();
            let answer = ask(&gate, &json!({"v": 1, "path": "/chat"}));
            let (_client, head) = dial(answer.text("url"));
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert_eq!(handshake(&gate, "/chat", "").status, 101);
            let took = clock.now().since(began);
            assert!(took < Duration::from_secs(1), "both got in after {took:?}");
            // sleep: the rate of those who connect.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(a.accepted() > 0 && b.accepted() > 0);
    assert!(gate.metric("evenkeel_gateway_negotiates_total{outcome=\"assigned\"}") > 500.0);
}

/// Keeps every line that is logged.
struct Lines(Arc<Mutex<String>>);

struct Line<'a>(&'a mut String);

impl tracing::field::Visit for Line<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut lines = self.0.lock().unwrap();
        event.record(&mut Line(&mut lines));
        lines.push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn no_token_and_no_query_is_ever_logged() {
    let lines = Arc::new(Mutex::new(String::new()));
    tracing::subscriber::set_global_default(Lines(Arc::clone(&lines))).unwrap();
    let (_a, _b, views) = two();
    let gate = Gate::new(views);
    let answer = ask(&gate, &json!({"v": 1, "path": "/chat?secret=1", "sid": "s", "ticket": "not.a.ticket"}));
    let token = field(answer.text("url"), "_ek").unwrap().to_owned();
    let good = ticket(&MASTER, "s", "a");
    for target in [
        format!("/chat?_ek={token}&secret=1"),
        format!("/chat?_ek={token}x&secret=1"),
        format!("/chat?_ekc=move&_eks=s&_ekt={good}&secret=1"),
        format!("/chat?_ekc=move&_eks=s&_ekt={good}x&secret=1"),
        String::from("/chat?_ekr=1&secret=1"),
    ] {
        handshake(&gate, &target, "");
        handshake(&gate, &target, "Origin: https://evil.example\r\n");
        send(&mut gate.client(), &format!("GET {target}"), "Accept: application/json\r\n", "");
    }
    ask(&gate, &json!({"v": 1, "path": "/chat", "cause": "move", "ticket": good}));
    wait_until("lines are logged", || lines.lock().unwrap().contains("handshake redirected"));
    drop(gate);
    let lines = lines.lock().unwrap();
    for secret in [token.as_str(), good.as_str(), "secret", "_ek", "not.a.ticket"] {
        let signature = secret.rsplit('.').next().unwrap();
        assert!(!lines.contains(signature), "{signature} in {lines}");
    }
    assert!(lines.contains("origin_foreign"), "it was listening: {lines}");
}

#[test]
fn limits_hold_for_those_who_ask() {
    let (_a, _b, views) = two();
    let limits = Limits { connections_max: 2, ..Setup::default().limits };
    let gate = Gate::with(views, Setup { limits, ..Setup::default() });
    let mut idle: Vec<_> = (0..2).map(|_| gate.client()).collect();
    for client in &mut idle {
        assert_eq!(send(client, "GET /chat", "Accept: application/json\r\n", "").status, 200);
    }
    // Those who were answered and are idle make room, after a second of patience.
    wait_until("a third gets in", || {
        let mut third = gate.client();
        third.write_all(b"GET /chat HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n").unwrap();
        read_head(&mut third).starts_with("HTTP/1.1 200 ")
    });
    let ended = idle.iter_mut().filter_map(|client| {
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        client.read(&mut [0; 16]).ok()
    });
    assert!(ended.count() >= 1, "one of them went");
}
