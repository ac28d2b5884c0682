//! Which web pages get in, by the configuration.

use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::{EchoOptions, Evenkeel, World};

/// The status of a handshake for a path of a page.
async fn status(evenkeel: &Evenkeel, path: &str, origin: Option<&str>) -> u16 {
    let mut request = format!("ws://{}{path}", evenkeel.gateway).into_client_request().expect("a URL");
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().expect("a field value"));
    }
    let stream = TcpStream::connect(evenkeel.gateway).await.expect("the gateway accepts");
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((_, answer)) => answer.status().as_u16(),
        Err(Error::Http(answer)) => answer.status().as_u16(),
        Err(error) => panic!("{path} {origin:?}: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_get_in_by_the_origins_of_their_route_or_else_of_the_fleet() {
    let mut world = World::new("origins");
    let config = "[log]\nlevel = \"info,evenkeel_gateway=debug\"\n\
                  [fleets.chat]\norigins = [\"https://app.example.com\"]\n\
                  [[routes]]\nfleet = \"chat\"\n\
                  [[routes]]\npath = \"/public\"\nfleet = \"chat\"\norigins = \"*\"\n";
    let evenkeel = world.serve(config).await;
    world.join(&evenkeel, &["s1"]).await;
    let (own, app, evil) =
        (format!("http://{}", evenkeel.gateway), "https://app.example.com", "https://evil.example");
    for (path, origin, expected) in [
        ("/room", None, 101),
        ("/room", Some(app), 101),
        ("/room", Some(own.as_str()), 403),
        ("/room", Some(evil), 403),
        ("/room", Some("null"), 403),
        ("/public/x", Some(evil), 101),
        ("/publicity", Some(evil), 403),
        ("/%70ublic/..%2froom", Some(evil), 400),
    ] {
        assert_eq!(status(&evenkeel, path, origin).await, expected, "{path} {origin:?}");
    }
    let log = evenkeel.process.output();
    let told = log.lines().any(|line| line.contains("origin refused") && line.contains(evil));
    assert!(told, "the log names the page that was refused:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_origins_pages_of_the_gateways_own_host_get_in() {
    let mut world = World::new("own-origin");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.echo("s1", &EchoOptions { join: Some(&evenkeel), public: false, more: &[] }).await;
    evenkeel.wait_active(&["s1"]).await;
    assert_eq!(status(&evenkeel, "/", Some(&format!("http://{}", evenkeel.gateway))).await, 101);
    assert_eq!(status(&evenkeel, "/", Some(&format!("https://{}", evenkeel.gateway))).await, 101);
    assert_eq!(status(&evenkeel, "/", Some("http://127.0.0.1:1")).await, 403);
    assert_eq!(status(&evenkeel, "/", Some("https://evil.example")).await, 403);
}
