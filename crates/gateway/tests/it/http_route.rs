//! Routes of kind `http`: plain requests, and every one of an Engine.IO session at the server that has it. The servers
//! speak the engine's wire protocol as far as a gateway sees it; real ones are in
//! `clients/typescript/packages/server/test/gateway.socketio.test.ts`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel_fleet::snapshot::{Executor, GatewaySays, ServerView};
use evenkeel_gateway::{Route, RouteKind};
use evenkeel_model::{Connections, Epoch, Fence, Generation, PerSecond, State};
use evenkeel_protocol::origin::Origins;

use crate::kit::{
    Gate, Link, Server, Setup, WS, fleet, nobody, read_end, read_exact, read_head, server, wait_until,
};

/// A server with sessions: opens one for who has none, answers polls when there is something, takes posts.
struct Engine {
    server: Server,
    /// What the next poll is answered; without it polls wait.
    say: Arc<Mutex<Option<String>>>,
    /// Polls that wait now.
    waiting: Arc<AtomicUsize>,
    /// Bodies of posts, in order. A close packet ends its session's poll.
    posts: Arc<Mutex<Vec<String>>>,
}

/// How the engines of a test open sessions.
#[derive(Clone, Copy)]
struct Pings {
    interval_ms: u64,
    timeout_ms: u64,
}

const PINGS: Pings = Pings { interval_ms: 25_000, timeout_ms: 20_000 };

impl Engine {
    fn new(id: &'static str) -> Self {
        Self::with(id, PINGS)
    }

    fn with(id: &'static str, pings: Pings) -> Self {
        let (say, waiting, posts) =
            (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (opened, closed) = (AtomicUsize::new(0), Mutex::new(Vec::<String>::new()));
        let (its_say, its_waiting, its_posts) = (Arc::clone(&say), Arc::clone(&waiting), Arc::clone(&posts));
        let server = Server::new(move |link| {
            let head = link.request();
            let line = head.lines().next().unwrap_or_default().to_owned();
            if head.contains("Upgrade: websocket") {
                link.switch(&head);
                return link.record();
            }
            let sid = line
                .split("&sid=")
                .nth(1)
                .map(|rest| rest.split([' ', '&']).next().unwrap_or_default().to_owned());
            let length = value(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let body = read_exact(&mut link.stream, length);
            if line.starts_with("POST") {
                let body = String::from_utf8(body).unwrap();
                if body == "1" {
                    closed.lock().unwrap().extend(sid);
                }
                its_posts.lock().unwrap().push(body);
                return answer(link, "200 OK", "ok");
            }
            if !line.contains("sid=") {
                let number = opened.fetch_add(1, Ordering::SeqCst);
                let Pings { interval_ms, timeout_ms } = pings;
                let open = format!(
                    "0{{\"sid\":\"{id}-{number}\",\"upgrades\":[\"websocket\"],\"pingInterval\":{interval_ms},\"pingTimeout\":{timeout_ms}}}"
                );
                return answer(link, "200 OK", &open);
            }
            its_waiting.fetch_add(1, Ordering::SeqCst);
            let sid = sid.unwrap_or_default();
            let over = || closed.lock().unwrap().contains(&sid).then(|| "6".to_owned());
            let said = wait_for(link, || over().or_else(|| its_say.lock().unwrap().clone()));
            its_waiting.fetch_sub(1, Ordering::SeqCst);
            if let Some(said) = said {
                answer(link, "200 OK", &said);
            }
        });
        Self { server, say, waiting, posts }
    }

    fn say(&self, text: &str) {
        *self.say.lock().unwrap() = Some(text.to_owned());
    }

    fn view(&self, id: &str) -> ServerView {
        server(id, self.server.addr)
    }

    fn posts(&self) -> Vec<String> {
        self.posts.lock().unwrap().clone()
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

/// Waits until there is something to say; `None`: the other end went away first.
fn wait_for(link: &mut Link, say: impl Fn() -> Option<String>) -> Option<String> {
    link.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    loop {
        if let Some(said) = say() {
            return Some(said);
        }
        match link.stream.read(&mut [0]) {
            Ok(0) => return None,
            Ok(_) => panic!("one request, one connection"),
            Err(_) => {}
        }
    }
}

fn answer(link: &mut Link, status: &str, body: &str) {
    let length = body.len();
    let _ = link.stream.write_all(
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nEvenkeel-X: y\r\n\r\n{body}")
            .as_bytes(),
    );
}

fn setup() -> Setup {
    let route = Route {
        host: None,
        path: "/".into(),
        fleet: fleet(),
        origins: None,
        kind: RouteKind::Http,
        scheme: None,
        location: evenkeel_protocol::negotiate::LocationForm::Ws,
        auth: None,
    };
    Setup { routes: vec![route], ..Setup::default() }
}

fn gate(servers: Vec<ServerView>) -> Gate {
    Gate::with(servers, setup())
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn send(client: &mut TcpStream, method: &str, target: &str, fields: &str, body: &str) {
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: ws.example.com\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    );
    client.write_all(request.as_bytes()).unwrap();
}

/// Status and body of one answer with a length.
fn receive(client: &mut TcpStream) -> (u16, String) {
    let head = read_head(client);
    let status =
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head:?}"));
    let length = value(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    (status, String::from_utf8(read_exact(client, length)).unwrap())
}

fn ask(gate: &Gate, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut client = gate.client();
    send(&mut client, method, target, "", body);
    receive(&mut client)
}

const ENGINE: &str = "/socket.io/?EIO=4&transport=polling";

/// Opens a session; gives its name as the client is told it.
fn open(gate: &Gate) -> String {
    let (status, body) = ask(gate, "GET", ENGINE, "");
    assert_eq!(status, 200, "{body}");
    let json = body.strip_prefix('0').unwrap_or_else(|| panic!("{body}"));
    json.split("\"sid\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned()
}

fn of(sid: &str) -> String {
    format!("{ENGINE}&sid={sid}")
}

const UNKNOWN: &str = "{\"code\":1,\"message\":\"Session ID unknown\"}";

/// What the gateway counts on a server, as of its next view.
fn counted(gate: &mut Gate, id: &str) -> u32 {
    while gate.says.try_recv().is_ok() {}
    loop {
        if let Some(GatewaySays::Viewed(view)) = gate.says.blocking_recv() {
            let counts = view.servers.iter().find(|counts| counts.server.as_str() == id);
            return counts.map_or(0, |counts| counts.connections.get());
        }
    }
}

fn wait_for_count(gate: &mut Gate, id: &str, wanted: u32) {
    wait_until(&format!("{id} counts {wanted}"), || counted(gate, id) == wanted);
}

#[test]
fn every_request_of_a_session_goes_to_the_server_that_opened_it() {
    let (a, b) = (Engine::new("a"), Engine::new("b"));
    let mut gate = gate(vec![a.view("a"), b.view("b")]);
    let sids: Vec<String> = (0..6).map(|_| open(&gate)).collect();
    assert_eq!(
        sids.iter().filter(|sid| sid.starts_with("a-")).count(),
        3,
        "spread like connections: {sids:?}"
    );
    a.say("4from a");
    b.say("4from b");
    for sid in &sids {
        let from = if sid.starts_with("a-") { "4from a" } else { "4from b" };
        assert_eq!(ask(&gate, "GET", &of(sid), ""), (200, from.into()));
        assert_eq!(ask(&gate, "POST", &of(sid), &format!("4to {sid}")), (200, "ok".into()));
    }
    for (engine, id) in [(&a, "a-"), (&b, "b-")] {
        let posts = engine.posts();
        assert_eq!(posts.len(), 3);
        assert!(posts.iter().all(|post| post.starts_with(&format!("4to {id}"))), "{posts:?}");
        let seen = engine.server.seen();
        // Servers see the names that they gave.
        for line in seen.lines().filter(|line| line.contains("sid=")) {
            let sid = line.split("&sid=").nth(1).and_then(|rest| rest.strip_suffix(" HTTP/1.1")).unwrap();
            assert!(sid.starts_with(id) && !sid.contains('.'), "{line}");
        }
    }
    assert_eq!((counted(&mut gate, "a"), counted(&mut gate, "b")), (3, 3));
}

#[test]
fn another_gateway_and_a_restarted_one_find_the_server_by_the_name_alone() {
    let (a, b) = (Engine::new("a"), Engine::new("b"));
    let first = gate(vec![a.view("a"), b.view("b")]);
    let sids: Vec<String> = (0..4).map(|_| open(&first)).collect();
    a.say("4from a");
    b.say("4from b");
    let mut second = gate(vec![a.view("a"), b.view("b")]);
    drop(first);
    for sid in &sids {
        let from = if sid.starts_with("a-") { "4from a" } else { "4from b" };
        assert_eq!(ask(&second, "GET", &of(sid), ""), (200, from.into()));
        assert_eq!(ask(&second, "GET", &of(sid), ""), (200, from.into()));
    }
    assert_eq!((counted(&mut second, "a"), counted(&mut second, "b")), (2, 2), "each counts once here");
}

#[test]
fn a_session_that_nobody_has_begins_anew_at_once_and_no_server_hears_of_it() {
    let (a, b) = (Engine::new("a"), Engine::new("b"));
    let gate = gate(vec![a.view("a"), b.view("b")]);
    let sid = open(&gate);
    let (own, tag) = sid.split_once('.').expect("a tagged name");
    let other = if own.starts_with("a-") { "b-0" } else { "a-0" };
    let accepted = a.server.accepted() + b.server.accepted();
    for forged in [format!("{other}.{tag}"), format!("x.{tag}"), "x".into(), format!("x.{}", "A".repeat(16))]
    {
        assert_eq!(ask(&gate, "GET", &of(&forged), ""), (400, UNKNOWN.into()), "{forged}");
        assert_eq!(ask(&gate, "POST", &of(&forged), "4x"), (400, UNKNOWN.into()), "{forged}");
        let mut client = gate.client();
        client.write_all(format!("GET {} HTTP/1.1\r\nHost: a\r\n{WS}\r\n", of(&forged)).as_bytes()).unwrap();
        assert_eq!(receive(&mut client), (400, UNKNOWN.into()), "{forged}");
    }
    assert_eq!(a.server.accepted() + b.server.accepted(), accepted);
}

/// Upgrades a session to WebSocket.
fn upgrade(gate: &Gate, sid: &str) -> TcpStream {
    let mut client = gate.client();
    let target = format!("/socket.io/?EIO=4&transport=websocket&sid={sid}");
    client.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{WS}\r\n").as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

#[test]
fn an_upgrade_goes_to_the_session_s_server_even_while_it_drains_and_counts_once() {
    let (a, b) = (Engine::new("a"), Engine::new("b"));
    let mut gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    wait_for_count(&mut gate, "a", 1);
    gate.publish(vec![ServerView { state: State::Draining, ..a.view("a") }, b.view("b")]);
    let tunnel = upgrade(&gate, &sid);
    assert!(a.server.seen().contains("&sid=a-0 HTTP/1.1"), "{}", a.server.seen());
    wait_for_count(&mut gate, "a", 1);
    // The probe is under way: the session still polls.
    a.say("6");
    assert_eq!(ask(&gate, "GET", &of(&sid), ""), (200, "6".into()));
    assert_eq!(counted(&mut gate, "a"), 1);
    assert!(open(&gate).starts_with("b-"), "new ones go elsewhere");
    drop(tunnel);
    wait_for_count(&mut gate, "a", 0);
    // The upgrade failed, so the client goes on polling.
    assert_eq!(ask(&gate, "GET", &of(&sid), ""), (200, "6".into()));
    wait_for_count(&mut gate, "a", 1);
}

#[test]
fn a_session_ends_with_a_close_packet_of_either_end_or_an_answer_that_says_so() {
    let a = Engine::new("a");
    let mut gate = gate(vec![a.view("a")]);
    let sids: Vec<String> = (0..2).map(|_| open(&gate)).collect();
    wait_for_count(&mut gate, "a", 2);
    assert_eq!(ask(&gate, "POST", &of(&sids[0]), "4bye\u{1e}1"), (200, "ok".into()));
    wait_for_count(&mut gate, "a", 1);
    a.say("4bye\u{1e}1");
    assert_eq!(ask(&gate, "GET", &of(&sids[1]), "").1, "4bye\u{1e}1");
    wait_for_count(&mut gate, "a", 0);
}

#[test]
fn a_silent_session_is_forgotten_when_its_server_gives_it_up() {
    let a = Engine::with("a", Pings { interval_ms: 20, timeout_ms: 30 });
    let mut gate = gate(vec![a.view("a")]);
    open(&gate);
    wait_for_count(&mut gate, "a", 0);
    assert!(gate.metric("evenkeel_gateway_placements_total{reason=\"connected\"}") == 1.0);
}

#[test]
fn requests_are_written_anew_and_answers_keep_what_is_the_clients() {
    let target = Server::new(|link| {
        let head = link.request();
        let length = value(&head, "content-length").unwrap().parse().unwrap();
        let body = String::from_utf8(read_exact(&mut link.stream, length)).unwrap();
        assert_eq!(body, "4hello");
        link.write(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: io=1\r\nX-Own: kept\r\nConnection: X-Hop\r\nX-Hop: gone\r\n\
              Keep-Alive: timeout=99\r\nEvenkeel-Conn: forged\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        );
    });
    let gate = gate(vec![server("a", target.addr)]);
    let mut client = gate.client();
    let fields = "Cookie: c=1\r\nX-Forwarded-For: 6.6.6.6\r\nEvenkeel-Assignment: forged\r\nConnection: keep-alive, X-Gone\r\nX-Gone: x\r\n";
    send(&mut client, "POST", "/socket.io/?a=b&_ek=token&x=%20", fields, "4hello");
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!((value(&head, "x-own"), value(&head, "set-cookie")), (Some("kept"), Some("io=1")));
    assert_eq!((value(&head, "x-hop"), value(&head, "evenkeel-conn")), (None, None));
    assert_eq!(value(&head, "keep-alive"), Some("timeout=9"), "{head}");
    assert_eq!(value(&head, "transfer-encoding"), Some("chunked"));
    let body = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(read_exact(&mut client, body.len()), body);
    let seen = target.seen();
    assert!(seen.starts_with("POST /socket.io/?a=b&x=%20 HTTP/1.1\r\n"), "{seen}");
    assert_eq!((value(&seen, "host"), value(&seen, "cookie")), (Some("ws.example.com"), Some("c=1")));
    assert_eq!(
        (value(&seen, "x-forwarded-for"), value(&seen, "x-forwarded-proto")),
        (Some("127.0.0.1"), Some("http"))
    );
    assert!(value(&seen, "evenkeel-assignment").is_some_and(|token| token.split('.').count() == 3), "{seen}");
    assert!(!seen.contains("forged") && !seen.to_lowercase().contains("x-gone"), "{seen}");
}

#[test]
fn a_connection_carries_one_request_after_another() {
    let a = Engine::new("a");
    let gate = gate(vec![a.view("a")]);
    let mut client = gate.client();
    send(&mut client, "GET", ENGINE, "", "");
    let (_, body) = receive(&mut client);
    let sid = body.split('"').nth(3).unwrap().to_owned();
    for at in 0..3 {
        send(&mut client, "POST", &of(&sid), "", &format!("4m{at}"));
        assert_eq!(receive(&mut client), (200, "ok".into()));
    }
    // Two at once: the second waits for its turn.
    send(&mut client, "POST", &of(&sid), "", "4m3");
    send(&mut client, "POST", &of(&sid), "Connection: close\r\n", "4m4");
    assert_eq!(receive(&mut client), (200, "ok".into()));
    assert_eq!(receive(&mut client), (200, "ok".into()));
    assert!(read_end(&mut client).is_empty());
    assert_eq!(a.posts(), ["4m0", "4m1", "4m2", "4m3", "4m4"]);
    // And a WebSocket behind them.
    let mut client = gate.client();
    send(&mut client, "POST", &of(&sid), "", "4m5");
    assert_eq!(receive(&mut client), (200, "ok".into()));
    client.write_all(format!("GET {} HTTP/1.1\r\nHost: a\r\n{WS}\r\n", of(&sid)).as_bytes()).unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
}

#[test]
fn bodies_have_a_length_and_an_end() {
    let a = Engine::new("a");
    let gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    let largest = "4".repeat(1 << 20);
    assert_eq!(ask(&gate, "POST", &of(&sid), &largest), (200, "ok".into()));
    assert_eq!(a.posts(), std::slice::from_ref(&largest));
    let head = |fields: &str| {
        let mut client = gate.client();
        client
            .write_all(format!("POST {} HTTP/1.1\r\nHost: a\r\n{fields}\r\n", of(&sid)).as_bytes())
            .unwrap();
        receive(&mut client).0
    };
    assert_eq!(head("Content-Length: 1048577\r\n"), 413);
    assert_eq!(head("Content-Length: 18446744073709551615\r\n"), 413);
    assert_eq!(head("Transfer-Encoding: chunked\r\n"), 411);
    assert_eq!(head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 411);
    assert_eq!(a.posts().len(), 1);
}

#[test]
fn a_client_that_goes_away_ends_its_poll_at_the_server() {
    let a = Engine::new("a");
    let gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    let mut client = gate.client();
    send(&mut client, "GET", &of(&sid), "", "");
    wait_until("the poll waits", || a.waiting() == 1);
    drop(client);
    wait_until("the poll is over", || a.waiting() == 0);
}

#[test]
fn a_poll_has_a_deadline() {
    let a = Engine::new("a");
    let mut setup = setup();
    setup.limits.long_poll = Duration::from_millis(50);
    let gate = Gate::with(vec![a.view("a")], setup);
    let sid = open(&gate);
    assert_eq!(ask(&gate, "GET", &of(&sid), "").0, 504);
    wait_until("the poll is over", || a.waiting() == 0);
    a.say("4still here");
    assert_eq!(ask(&gate, "GET", &of(&sid), ""), (200, "4still here".into()));
}

#[test]
fn an_answer_that_stops_ends_the_clients_connection_instead_of_looking_whole() {
    let target = Server::new(|link| {
        link.request();
        link.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    });
    let gate = gate(vec![server("a", target.addr)]);
    let mut client = gate.client();
    send(&mut client, "GET", "/x", "", "");
    assert!(read_head(&mut client).contains("content-length: 10"));
    assert_eq!(read_end(&mut client), b"half");
}

#[test]
fn a_session_begins_at_another_server_when_one_refuses_or_drains() {
    let a = Engine::new("a");
    let draining = Server::new(|link| {
        link.request();
        answer_draining(link);
    });
    let gate = gate(vec![a.view("c"), server("a", nobody()), server("b", draining.addr)]);
    for _ in 0..3 {
        assert!(open(&gate).starts_with("a-"));
    }
}

fn answer_draining(link: &mut Link) {
    link.write(b"HTTP/1.1 503 Service Unavailable\r\nEvenkeel-Draining: 1\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn a_post_that_a_server_may_have_seen_is_not_sent_to_another() {
    let closes = || {
        Server::new(|link| {
            link.request();
        })
    };
    let (a, b) = (closes(), closes());
    let gate = gate(vec![server("a", a.addr), server("b", b.addr)]);
    assert_eq!(ask(&gate, "POST", "/x", "once").0, 503);
    assert_eq!(a.accepted() + b.accepted(), 1);
    assert_eq!(ask(&gate, "GET", "/x", "").0, 503);
    assert_eq!(a.accepted() + b.accepted(), 3, "a GET may be asked twice");
}

#[test]
fn a_session_whose_server_died_begins_anew() {
    let a = Engine::new("a");
    let mut gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    wait_for_count(&mut gate, "a", 1);
    gate.publish(vec![server("a", nobody())]);
    assert_eq!(ask(&gate, "GET", &of(&sid), ""), (400, UNKNOWN.into()));
    wait_for_count(&mut gate, "a", 0);
}

fn draining(mut view: ServerView) -> ServerView {
    view.state = State::Draining;
    view.desired.fence = Fence { epoch: Epoch(1), generation: Generation(1) };
    view.desired.target = Connections(0);
    view.desired.moves_per_s = PerSecond::new(1_000.0);
    view.desired.state = State::Draining;
    view
}

#[test]
fn sessions_of_a_server_without_agent_are_told_to_leave_at_the_pace() {
    let (a, b) = (Engine::new("a"), Engine::new("b"));
    let agentless =
        |engine: &Engine, id: &str| ServerView { executor: Executor::Gateways, ..engine.view(id) };
    let mut gate = gate(vec![agentless(&a, "a")]);
    let sids: Vec<String> = (0..3).map(|_| open(&gate)).collect();
    let mut polls: Vec<TcpStream> = Vec::new();
    for sid in &sids[..2] {
        let mut client = gate.client();
        send(&mut client, "GET", &of(sid), "", "");
        polls.push(client);
    }
    wait_until("two poll, one is between two polls", || a.waiting() == 2);
    gate.publish(vec![draining(agentless(&a, "a")), agentless(&b, "b")]);
    // The server is told in the client's name; its last words arrive, and the next poll is told.
    for poll in &mut polls {
        assert_eq!(receive(poll), (200, "6".into()));
    }
    assert_eq!(ask(&gate, "GET", &of(&sids[2]), ""), (200, "6".into()), "the third is so when it polls");
    wait_for_count(&mut gate, "a", 0);
    for sid in &sids[..2] {
        assert_eq!(ask(&gate, "GET", &of(sid), ""), (200, "1".into()));
    }
    assert_eq!(ask(&gate, "POST", &of(&sids[2]), "4late"), (400, UNKNOWN.into()));
    assert_eq!(a.posts(), ["1", "1", "1"]);
    wait_for_count(&mut gate, "a", 0);
    assert!(open(&gate).starts_with("b-"));
}

#[test]
fn a_client_leaves_also_when_its_server_says_nothing_any_more() {
    let silent = Server::new(|link| {
        if link.request().contains("&sid=") {
            return link.record();
        }
        answer(link, "200 OK", "0{\"sid\":\"a-0\"}");
    });
    let agentless = || ServerView { executor: Executor::Gateways, ..server("a", silent.addr) };
    let mut setup = setup();
    setup.limits.heads.server_head = Duration::from_millis(500);
    let mut gate = Gate::with(vec![agentless()], setup);
    let sid = open(&gate);
    let mut client = gate.client();
    send(&mut client, "GET", &of(&sid), "", "");
    wait_until("it polls", || silent.accepted() == 2);
    gate.publish(vec![draining(agentless())]);
    assert_eq!(receive(&mut client), (200, "1".into()));
    wait_for_count(&mut gate, "a", 0);
}

#[test]
fn a_gateway_that_leaves_tells_its_polling_clients() {
    let a = Engine::new("a");
    let gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    let mut client = gate.client();
    send(&mut client, "GET", &of(&sid), "", "");
    wait_until("it polls", || a.waiting() == 1);
    gate.trigger.advance(evenkeel_runtime::Phase::Stop);
    assert_eq!(receive(&mut client), (200, "6".into()));
    assert_eq!(a.posts(), ["1"]);
}

#[test]
fn pages_of_other_origins_and_other_routes_stay_as_they_were() {
    let a = Engine::new("a");
    let mut setup = setup();
    setup.routes[0].path = "/socket.io".into();
    let other = Route { path: "/chat".into(), kind: RouteKind::WebSocket, ..setup.routes[0].clone() };
    setup.routes.push(other);
    let open = Route { path: "/open".into(), origins: Some(Origins::Any), ..setup.routes[0].clone() };
    setup.routes.push(open);
    let gate = Gate::with(vec![a.view("a")], setup);
    assert_eq!(ask(&gate, "GET", "/chat?EIO=4", "").0, 426);
    assert_eq!(ask(&gate, "GET", "/nowhere", "").0, 426);
    let page = |method: &str, target: &str, origin: &str| {
        let mut client = gate.client();
        send(&mut client, method, target, &format!("Origin: {origin}\r\n"), "");
        receive(&mut client).0
    };
    assert_eq!(page("GET", ENGINE, "http://evil.example"), 403);
    assert_eq!(page("OPTIONS", ENGINE, "http://evil.example"), 403);
    assert_eq!(a.server.accepted(), 0);
    assert_eq!(page("GET", ENGINE, "http://ws.example.com"), 200);
    assert_eq!(page("GET", "/open?EIO=4", "http://evil.example"), 200);
    assert_eq!(a.server.accepted(), 2);
}

#[test]
fn sessions_and_their_polls_are_bounded() {
    let a = Engine::new("a");
    let mut setup = setup();
    setup.limits.connections_max = 3;
    let gate = Gate::with(vec![a.view("a")], setup);
    let sids: Vec<String> = (0..3).map(|_| open(&gate)).collect();
    assert_eq!(ask(&gate, "GET", ENGINE, "").0, 503);
    assert_eq!(ask(&gate, "POST", &of(&sids[0]), "1"), (200, "ok".into()));
    open(&gate);
}

#[test]
fn odd_requests_of_the_outside_are_answered_or_dropped_and_nothing_breaks() {
    let a = Engine::new("a");
    a.say("6");
    let gate = gate(vec![a.view("a")]);
    let sid = open(&gate);
    for target in [
        format!("{ENGINE}&sid=%ff%fe"),
        format!("{ENGINE}&sid={}", "a".repeat(4_000)),
        format!("{ENGINE}&sid=&sid={sid}"),
        format!("{ENGINE}&sid={sid}&sid=x"),
        "/`|^{}[]?`".to_owned(),
        "/?".to_owned(),
    ] {
        let (status, _) = ask(&gate, "GET", &target, "");
        assert!([200, 400, 503].contains(&status), "{target}: {status}");
    }
    // The client leaves in the middle of its body.
    let mut client = gate.client();
    client
        .write_all(format!("POST {} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n4", of(&sid)).as_bytes())
        .unwrap();
    drop(client);
    assert_eq!(ask(&gate, "GET", &of(&sid), ""), (200, "6".into()));
}
