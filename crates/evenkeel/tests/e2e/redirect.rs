//! Which clients of Rust follow a 307 of the gateway, in which form of its `Location`: what the table of
//! docs/guide/redirect.md says. Those of other languages are tried in `clients/typescript/packages/e2e`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::stream::MaybeTlsStream as Blocking;

use crate::kit::{EchoOptions, World};

const FORMS: [&str; 3] = ["ws", "http", "relative"];

/// What the guide says of a client, for each form.
fn documented(client: &str) -> Vec<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/redirect.md");
    let text = fs::read_to_string(guide).expect("the guide is there");
    let start = format!("| {client} | ");
    let row = text.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix(" |"));
    row.unwrap_or_else(|| panic!("the guide has no row for {client}"))
        .split(" | ")
        .map(str::to_owned)
        .collect()
}

/// Whose socket a client got: the server's, or none.
fn word(peer: Option<SocketAddr>, server: SocketAddr) -> &'static str {
    match peer {
        Some(peer) if peer == server => "yes",
        Some(_) => "proxied",
        None => "no",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tungstenite_follows_a_307_in_the_form_that_the_guide_names_and_tokio_tungstenite_follows_none() {
    let mut world = World::new("redirect");
    let forms = FORMS.map(|form| {
        format!(
            "[[routes]]\npath = \"/{form}\"\nfleet = \"chat\"\nscheme = \"redirect\"\nlocation = \"{form}\"\n"
        )
    });
    let rest = "[[routes]]\npath = \"/\"\nfleet = \"chat\"\nscheme = \"proxy\"\n";
    let evenkeel = world.serve(&format!("[fleets.chat]\n{}{rest}", forms.concat())).await;
    let options = EchoOptions { join: Some(&evenkeel), public: true, more: &[] };
    let server = world.echo("a", &options).await;
    evenkeel.wait_active(&["a"]).await;

    let (mut blocking, mut tokio) = (Vec::new(), Vec::new());
    for form in FORMS {
        let url = format!("ws://{}/{form}?room=7", evenkeel.gateway);
        let dialled = url.clone();
        let dial = tokio::task::spawn_blocking(move || tungstenite::connect(dialled));
        let socket = dial.await.expect("no panic").ok().map(|(socket, _)| socket);
        blocking.push(match socket.as_ref().map(tungstenite::WebSocket::get_ref) {
            Some(Blocking::Plain(stream)) => word(stream.peer_addr().ok(), server),
            _ => word(None, server),
        });
        let socket = tokio_tungstenite::connect_async(url).await.ok().map(|(socket, _)| socket);
        tokio.push(match socket.as_ref().map(tokio_tungstenite::WebSocketStream::get_ref) {
            Some(MaybeTlsStream::Plain(stream)) => word(stream.peer_addr().ok(), server),
            _ => word(None, server),
        });
    }
    assert_eq!(blocking, documented("Rust `tungstenite::connect`"));
    assert_eq!(tokio, documented("Rust `tokio_tungstenite::connect_async`"));
}
