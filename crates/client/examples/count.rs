//! A client that says its name and counts, whichever server it is on.
//!
//! ```sh
//! cargo run -p evenkeel-client --example count ws://127.0.0.1:8080/chat
//! ```

use std::env;
use std::error::Error;
use std::time::Duration;

use evenkeel_client::{Client, Config, Event, Message};
use tokio::time::interval;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).unwrap_or_else(|| "ws://127.0.0.1:8080/chat".into());
    let mut client = Client::connect(&Config::new(&url))?;
    client.send(Message::text("Ada")).await?;
    let (mut said, mut each) = (0, interval(Duration::from_millis(100)));
    loop {
        tokio::select! {
            _ = each.tick() => {
                said += 1;
                client.send(Message::text(format!("hello {said}"))).await?;
            }
            event = client.next() => match event {
                Some(Event::Message(Message::Text(text))) => println!("{text}"),
                Some(Event::Moved { .. }) => println!("moved"),
                Some(Event::Gap { why }) => println!("something may be missing: {}", why.reason()),
                Some(Event::Closed { .. }) | None => return Ok(()),
                Some(_) => {}
            }
        }
    }
}
