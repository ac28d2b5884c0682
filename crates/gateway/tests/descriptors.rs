//! A gateway that runs out of descriptors. A test program of its own: the limit it lowers is the process's.

#[allow(dead_code)] // The other tests use the rest of it.
#[path = "it/kit.rs"]
mod kit;

const ENGINE: evenkeel_gateway::EngineKind = evenkeel_gateway::EngineKind::Auto;

use std::io::Write;

use kit::{Gate, Server, handshake, read_head, server, wait_until};

/// Lowers the open-file limit of this process, which under nextest is this test alone.
#[test]
fn servers_are_not_blamed_when_there_is_no_descriptor_to_reach_them_with() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let before = files();
    let mut clients: Vec<_> = (0..4).map(|_| gate.client()).collect();
    wait_until("all are accepted", || files() >= before + 8);

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
    let answers: Vec<_> = clients
        .iter_mut()
        .map(|client| {
            client.write_all(&handshake("/")).unwrap();
            read_head(client)
        })
        .collect();
    setrlimit(Resource::Nofile, limit).unwrap();
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    }
    gate.open();
}
