//! What a tunnel carries: every message as it is, both ways.

use tokio_tungstenite::tungstenite::Message;

use crate::kit::{Client, World};

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_and_kind_come_back_unchanged() {
    let mut world = World::new("carry");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a"]).await;
    let mut client = Client::connect(evenkeel.gateway).await.expect("a connection");
    // Around every change of the frame header's length, and beyond any buffer on the way.
    for size in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
        let bytes: Vec<u8> = (0..size).map(|i: usize| (i % 251) as u8).collect();
        let binary = Message::binary(bytes);
        assert!(client.exchange(binary.clone()).await == binary, "binary of {size} bytes");
        let text = Message::text("ä".repeat(size / 2));
        assert!(client.exchange(text.clone()).await == text, "text of {size} bytes");
    }
    let pong = client.exchange(Message::Ping("are you there".into())).await;
    assert_eq!(
        pong,
        Message::Pong("are you there".into()),
        "pings reach the server and its pongs the client"
    );
    client.close().await;
}
