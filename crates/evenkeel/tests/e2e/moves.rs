//! Cooperating clients: they talk in numbered messages, both ways, with a state that goes along, while their server is
//! drained and a new one is filled. Nothing may be missing, twice or out of order.
//!
//! Half of them are on assigned servers, half behind the gateway. The gate runs a small crowd; `EVENKEEL_MOVE_CLIENTS=2000` with a release build the whole one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use evenkeel_client::{BufferMax, Client, Config, Event, Message, Negotiate};
use evenkeel_model::Instant;
use evenkeel_runtime::Clock;
use tokio::sync::{mpsc, watch};

use crate::kit::world::CONFIG;
use crate::kit::{EchoOptions, Evenkeel, Stopwatch, World, pause, until};

/// Messages a second in each direction of each client.
const RATE: u32 = 10;
/// Moves and closes a second.
const PACE: f64 = 100.0;
/// Longest pause of 99 in 100 clients that moved.
const PAUSE: Duration = Duration::from_millis(250);

/// What a client went through.
#[derive(Debug, Default)]
struct Story {
    sent: u64,
    heard: u64,
    /// Of the server's messages, those that were not the expected one.
    wrong: u64,
    /// What the server said last: the number it expects, its worst delay, what was not expected.
    server: (u64, u64, u64),
    worst_us: u64,
    /// When each move was done.
    moved: Vec<Duration>,
    trouble: Vec<String>,
}

/// What clients share with their scenario.
struct Crowd {
    clock: Clock,
    watch: Stopwatch,
    open: AtomicU64,
    moved: AtomicU64,
    /// Clients stop sending when it says so, and end once the server has heard everything.
    stop: watch::Receiver<bool>,
}

impl Crowd {
    /// One client's life.
    async fn live(&self, config: Config, index: u64) -> Story {
        let mut client = Client::connect(&config).expect("a good config");
        let mut story = Story::default();
        let each = Duration::from_secs(1) / RATE;
        // Not all at the same moment.
        let mut due: Option<Instant> = None;
        let mut stop = self.stop.clone();
        let mut stopping = false;
        loop {
            let event = tokio::select! { biased;
                () = async { drop(stop.wait_for(|stop| *stop).await) }, if !stopping => { stopping = true; due = None; continue; }
                event = client.next() => event,
                () = self.clock.sleep_until(due) => {
                    due = due.map(|due| due + each);
                    let text = format!("{} {}", story.sent, self.clock.now().0 / 1_000);
                    story.sent += 1;
                    client.send(Message::text(text)).await.expect("the session lives");
                    continue;
                }
            };
            match event {
                Some(Event::Open { .. }) => {
                    self.open.fetch_add(1, Ordering::Relaxed);
                    let first = each.mul_f64((index % 97) as f64 / 97.0);
                    due = (!stopping).then(|| self.clock.now() + first);
                }
                Some(Event::Message(message)) => {
                    self.hear(&mut story, message.as_text().unwrap_or_default());
                    if stopping && story.server.0 >= story.sent {
                        return story;
                    }
                }
                Some(Event::Moving { .. }) => {}
                Some(Event::Moved { .. }) => {
                    self.moved.fetch_add(1, Ordering::Relaxed);
                    story.moved.push(self.watch.elapsed());
                }
                other => {
                    story.trouble.push(format!("{other:?}"));
                    if other.is_none() {
                        return story;
                    }
                }
            }
        }
    }

    /// `N AT NEXT WORST WRONG`.
    fn hear(&self, story: &mut Story, text: &str) {
        let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [number, at_us, next, worst, wrong] = numbers[..] else {
            story.trouble.push(text.to_owned());
            return;
        };
        story.wrong += u64::from(number != story.heard);
        story.heard = number + 1;
        story.worst_us = story.worst_us.max((self.clock.now().0 / 1_000).saturating_sub(at_us));
        story.server = (next, worst, wrong);
    }
}

fn clients() -> u64 {
    std::env::var("EVENKEEL_MOVE_CLIENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

async fn server(world: &mut World, evenkeel: &Evenkeel, id: &str) {
    let rate = RATE.to_string();
    let options = EchoOptions { join: Some(evenkeel), public: true, more: &["--numbered", &rate] };
    world.echo(id, &options).await;
    until(&format!("{id} is active"), Duration::from_secs(30), || async {
        let server = evenkeel.admin.server(id).await?;
        (server.state == "active" && server.health == "ok").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cooperating_clients_move_by_assignment_and_behind_the_gateway_without_losing_a_message() {
    let mut world = World::new("moves");
    let evenkeel = world.serve(&format!("[fleets.chat.move]\npace = {PACE}\nsoft = \"0s\"\n")).await;
    for id in ["a", "b", "c"] {
        server(&mut world, &evenkeel, id).await;
    }
    let count = clients();
    let (stop, stopping) = watch::channel(false);
    let crowd = Arc::new(Crowd {
        clock: Clock::start(),
        watch: Stopwatch::start(),
        open: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        stop: stopping,
    });
    let (stories, mut ended) = mpsc::channel(count as usize);
    for index in 0..count {
        let mut config = Config::new(format!("ws://{}/numbered?client={index}", evenkeel.gateway));
        // Every other one asks for an assignment, the others are tunnelled.
        config.negotiate = if index % 2 == 0 { Negotiate::Auto } else { Negotiate::Never };
        config.buffer = BufferMax::default();
        let (crowd, stories) = (Arc::clone(&crowd), stories.clone());
        crate::kit::time::spawn(async move {
            let story = crowd.live(config, index).await;
            stories.send(story).await.expect("the scenario waits for it");
        });
        if index % 20 == 19 {
            // A crowd that comes at once waits for credit; that is not what this is about.
            pause(Duration::from_millis(60)).await;
        }
    }
    until("all are open", Duration::from_secs(60), || async {
        (crowd.open.load(Ordering::Relaxed) == count).then_some(())
    })
    .await;
    let at =
        |id: &'static str| async { evenkeel.admin.server(id).await.map_or(0, |server| server.connections) };
    let held = until("the controller counts them", Duration::from_secs(10), || async {
        let (a, b, c) = (at("a").await, at("b").await, at("c").await);
        (a + b + c == count).then_some(b)
    })
    .await;
    assert!(held > 0);

    // First: one of three empties.
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    evenkeel.wait_state("b", "drained", Duration::from_secs(60)).await;
    assert_eq!(crowd.moved.load(Ordering::Relaxed), held, "everybody on b moved, and nobody else");

    // Then: a fourth is filled.
    server(&mut world, &evenkeel, "d").await;
    let fair = count / 3;
    until("d has its share", Duration::from_secs(150), || async {
        (at("d").await >= fair * 9 / 10).then_some(())
    })
    .await;
    pause(Duration::from_secs(1)).await;
    stop.send(true).expect("clients listen");
    drop(stories);
    let mut told = Vec::new();
    while told.len() < count as usize {
        let story = tokio::time::timeout(Duration::from_secs(30), ended.recv()).await;
        told.push(story.expect("every client hears the end of it").expect("a story"));
    }
    judge(&told, held);
}

/// Nothing lost, twice or out of order; no pause worth the name; the pace held.
fn judge(told: &[Story], drained: u64) {
    for story in told {
        assert!(story.trouble.is_empty(), "{:?}", story.trouble);
        assert_eq!((story.wrong, story.server.2), (0, 0), "lost, twice or out of order: {story:?}");
        assert_eq!(story.server.0, story.sent, "the server heard all of it: {story:?}");
    }
    // A pause shows as a delay: of what the client held back, or of what the new server said first. Clients that did
    // not move say how long this machine makes everybody wait at its worst.
    let worst = |moved: bool| {
        let those = told.iter().filter(|story| story.moved.is_empty() != moved);
        let mut delays: Vec<u64> = those.map(|story| story.worst_us.max(story.server.1)).collect();
        delays.sort_unstable();
        delays
    };
    let (pauses, waits) = (worst(true), worst(false));
    let machine = Duration::from_micros(waits.get(waits.len() / 2).copied().unwrap_or_default());
    let at = |share: f64| Duration::from_micros(pauses[((pauses.len() - 1) as f64 * share) as usize]);
    let mut times: Vec<f64> = told.iter().flat_map(|story| &story.moved).map(Duration::as_secs_f64).collect();
    times.sort_by(f64::total_cmp);
    let most =
        times.iter().map(|from| times.iter().filter(|at| (*from..from + 2.0).contains(*at)).count()).max();
    println!(
        "{} clients, {} moves ({drained} by the drain), {} messages up, {} down, pause p50 {:?} p99 {:?} worst {:?}, \
         (others at worst {machine:?}), at most {} moves in two seconds",
        told.len(),
        times.len(),
        told.iter().map(|story| story.sent).sum::<u64>(),
        told.iter().map(|story| story.heard).sum::<u64>(),
        at(0.5),
        at(0.99),
        at(1.0),
        most.unwrap_or_default(),
    );
    assert!(at(0.99) <= PAUSE + machine, "{pauses:?}, others {waits:?}");
    assert!(most.unwrap_or_default() as f64 <= (PACE * 2.0 * 1.1).ceil(), "{times:.2?}");
}
