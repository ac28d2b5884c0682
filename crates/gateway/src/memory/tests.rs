use evenkeel_fleet::allot::{Cause, Ceiling, TermKind};
use evenkeel_fleet::config::{HealthConfig, PlaceConfig};
use evenkeel_fleet::snapshot::{Executor, Health, Reported, ServerView};
use evenkeel_model::{Connections, Desired, Fence, Incarnation, PerSecond, ServerId, State};

use super::*;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("evenkeel-memory-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn server(name: &str) -> ServerView {
    let zero = |cause| Ceiling { at_most: Connections::ZERO, cause };
    ServerView {
        id: ServerId::new(name).unwrap(),
        inc: Incarnation(1_700_000_000_000),
        url: "ws://127.0.0.1:9001/base".into(),
        public_url: Some("wss://a.ws.example.com".into()),
        capacity: Connections(120),
        reported: Some(Reported { connections: Connections(7), seq: 41, at: Instant(9_000) }),
        elsewhere: Connections(3),
        ceilings: vec![
            zero(Cause::Declared),
            zero(Cause::Overload(TermKind::Cpu)),
            zero(Cause::Operator),
            zero(Cause::Starting),
            zero(Cause::Probation),
            zero(Cause::Suspect),
            zero(Cause::Inelastic(TermKind::Memory)),
            Ceiling { at_most: Connections::MAX, cause: Cause::Cordon },
            zero(Cause::Drain),
            zero(Cause::Dead),
        ],
        health: Health::Suspect,
        state: State::Draining,
        admit: PerSecond::new(0.1 + 0.2),
        open_since: Instant(u64::MAX),
        executor: Executor::Agent,
        desired: Desired::active(Fence::default()),
    }
}

fn fleets(servers: Vec<ServerView>) -> BTreeMap<FleetId, Snapshot> {
    let fleet = FleetId::new("chat").unwrap();
    let snapshot = Snapshot {
        fleet: fleet.clone(),
        at: Instant(10_000),
        servers,
        gateways: 2,
        placed_per_s: PerSecond::ZERO,
        health: HealthConfig::default(),
        place: PlaceConfig::default(),
    };
    BTreeMap::from([(fleet, snapshot)])
}

fn writer(path: &Path) -> Writer {
    Writer { path: path.to_owned(), written: None, failed: false }
}

fn written(path: &Path) -> BTreeMap<FleetId, Snapshot> {
    let table = recall(path).unwrap();
    table.fleets.into_iter().map(|(id, snapshot)| (id, Snapshot::clone(&snapshot))).collect()
}

#[test]
fn everything_comes_back_as_it_was_written() {
    let path = folder("whole").join("snapshot");
    let without_agent = ServerView { executor: Executor::Gateways, reported: None, ..server("b") };
    let left = fleets(vec![server("a"), without_agent]);
    writer(&path).write(&left, Instant(10_000));
    assert_eq!(written(&path), left);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn nothing_new_is_not_written_again_before_its_age_matters() {
    let path = folder("rate").join("snapshot");
    let mut writer = writer(&path);
    let with = |at: u64, connections: u32| {
        let mut server = server("a");
        server.reported = Some(Reported { connections: Connections(connections), seq: at, at: Instant(at) });
        let mut fleets = fleets(vec![server]);
        fleets.values_mut().for_each(|snapshot| snapshot.at = Instant(at));
        fleets
    };
    let second = 1_000_000_000;
    writer.write(&with(second, 7), Instant(second));
    writer.write(&with(2 * second, 7), Instant(2 * second));
    assert_eq!(written(&path), with(second, 7), "only older");
    writer.write(&with(3 * second, 8), Instant(3 * second));
    assert_eq!(written(&path), with(3 * second, 8));
    writer.write(&with(13 * second, 8), Instant(13 * second));
    assert_eq!(written(&path), with(13 * second, 8), "ages are kept");
    writer.write(&BTreeMap::new(), Instant(20 * second));
    assert_eq!(written(&path), with(13 * second, 8), "who knows nothing overwrites nothing");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn no_file_is_an_empty_table() {
    assert_eq!(recall(&folder("none").join("snapshot")).unwrap(), Table::default());
}

#[test]
fn what_is_damaged_or_foreign_is_refused_by_reason_wherever_it_breaks() {
    let path = folder("damaged").join("snapshot");
    writer(&path).write(&fleets(vec![server("a"), server("b")]), Instant(10_000));
    let whole = std::fs::read(&path).unwrap();
    let reason = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        recall(&path).err().map(|error| error.reason())
    };
    for length in 0..whole.len() {
        assert_eq!(reason(&whole[..length]), Some("snapshot_damaged"), "cut after {length} bytes");
    }
    let text = String::from_utf8(whole).unwrap();
    for (old, new, expected) in [
        ("\"format\":1", "\"format\":2", Some("snapshot_foreign")),
        ("\"format\":1", "\"format\":0", Some("snapshot_foreign")),
        ("\"format\":1", "\"format\":-1", Some("snapshot_damaged")),
        ("\"id\":\"b\"", "\"id\":\"a\"", Some("snapshot_damaged")),
        ("\"id\":\"b\"", "\"id\":\"b c\"", Some("snapshot_damaged")),
        ("\"chat\"", "\"\"", Some("snapshot_damaged")),
        ("ws://", "file://", Some("snapshot_damaged")),
        ("draining", "flying", Some("snapshot_damaged")),
        ("\"capacity\":120", "\"capacity\":1e30", Some("snapshot_damaged")),
        ("\"capacity\":120", "\"capacity\":120,\"more\":1", Some("snapshot_damaged")),
        ("\"format\":1", "\"format\":1", None),
    ] {
        assert!(text.contains(old), "{old}");
        assert_eq!(reason(text.replacen(old, new, 1).as_bytes()), expected, "{old} -> {new}");
    }
    // Every single byte turned: refused, or still a table that can be placed by.
    for index in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[index] ^= 0x15;
        reason(&bytes);
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(recall(&path).unwrap_err().reason(), "snapshot_unreadable");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
