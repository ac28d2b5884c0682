//! All tests of `tests/it` once more, over io_uring where the kernel gives it.

#[path = "../it/executed.rs"]
mod executed;
#[path = "../it/failing.rs"]
mod failing;
#[path = "../it/handshakes.rs"]
mod handshakes;
#[path = "../it/hostile.rs"]
mod hostile;
#[path = "../it/kit.rs"]
mod kit;
#[path = "../it/origins.rs"]
mod origins;
#[path = "../it/placing.rs"]
mod placing;
#[path = "../it/strain.rs"]
mod strain;
#[path = "../it/tunnels.rs"]
mod tunnels;

const ENGINE: evenkeel_gateway::EngineKind = evenkeel_gateway::EngineKind::Auto;

/// Else these tests would prove nothing about io_uring and nobody would know.
#[test]
fn auto_is_io_uring_where_the_kernel_gives_it() {
    let given = evenkeel_ring::Ring::new(&evenkeel_ring::Sizes::default());
    let expected = if given.is_ok() { "io_uring" } else { "portable" };
    assert_eq!(kit::Gate::new(Vec::new()).engine(), expected, "{given:?}");
}
