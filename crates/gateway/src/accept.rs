//! Accepts clients, and refuses them early when there are too many.
//!
//! Invariants: never spins when descriptors run out; a refusal costs a bounded task and no server.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use evenkeel_model::Duration;
use evenkeel_protocol::handshake::answer_bytes;
use evenkeel_runtime::Phase;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use crate::connect::is_shortage;
use crate::connection::{serve, write_all};
use crate::shell::{Over, Shell};

/// Refusals under way at once; beyond, connections are dropped without an answer.
const REFUSALS_MAX: usize = 64;
/// Longest pause of accepting when descriptors ran out and none of ours is freed: another part of the process
/// may free one.
const NO_FILES_PAUSE: Duration = Duration::from_millis(500);
/// Longest time for a client to take a refusal.
const REFUSAL_WAIT: Duration = Duration::from_millis(500);

/// Accepts until the gateway leaves.
pub(crate) async fn accept(shell: Rc<Shell>, listener: TcpListener) {
    let leaving = shell.shutdown.clone();
    loop {
        let accepted = tokio::select! { biased;
            () = leaving.reached(Phase::Drain) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => take(&shell, client, peer),
            Err(error) => pause(&shell, &error).await,
        }
    }
}

fn take(shell: &Rc<Shell>, client: TcpStream, peer: SocketAddr) {
    match shell.admit(peer.ip()) {
        Ok(admitted) => {
            let shell = Rc::clone(shell);
            let tasks = shell.tasks.clone();
            tasks.spawn_local("handshake", async move {
                serve(shell, client, peer, admitted).await;
            });
        }
        Err(over) => refuse(shell, client, over),
    }
}

fn refuse(shell: &Rc<Shell>, client: TcpStream, over: Over) {
    shell.metrics.handshake(over.reason());
    let under_way = shell.tasks.running().get("refusal").copied().unwrap_or_default();
    if under_way >= REFUSALS_MAX {
        return;
    }
    let fields = format!("Retry-After: {}\r\n", shell.retry_after_s());
    let clock = shell.clock;
    shell.tasks.spawn_local("refusal", async move {
        let answer = async {
            // The request is read once so that closing does not reset the answer on its way.
            if client.readable().await.is_ok() {
                let _ = client.try_read(&mut [0; 4096]);
            }
            let _ = write_all(&client, &answer_bytes(503, &fields, "too many connections")).await;
        };
        tokio::select! { biased;
            () = answer => {}
            () = clock.sleep(REFUSAL_WAIT) => {}
        }
    });
}

/// Accepting failed: wait where trying again at once would only fail again.
async fn pause(shell: &Shell, error: &io::Error) {
    if !is_shortage(error) {
        // The client went away between its SYN and our accept.
        debug!(%error, "client gone before it was accepted");
        return;
    }
    shell.metrics.handshake("no_descriptor");
    warn!(%error, "accepting paused: no free descriptor");
    tokio::select! { biased;
        () = shell.freed.notified() => {}
        () = shell.clock.sleep(NO_FILES_PAUSE) => {}
    }
}
