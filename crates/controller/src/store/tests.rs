use super::*;
use crate::testing::directory;

fn fleet() -> FleetId {
    FleetId::new("chat").unwrap()
}

fn drain(server: &str, generation: u64) -> ServerRecord {
    ServerRecord {
        server: ServerId::new(server).unwrap(),
        generation: Generation(generation),
        intent: Some(Intent::Drain { by: By::Operator, ordered_at: Instant(7), drained: false }),
    }
}

#[test]
fn epochs_are_given_out_once_also_over_a_reopening() {
    let path = directory("store").join("controller.redb");
    let store = Store::open(&path).unwrap();
    assert_eq!(store.begin_epoch(&fleet(), Epoch(0)).unwrap().0, Epoch(1));
    assert_eq!(store.begin_epoch(&fleet(), Epoch(0)).unwrap().0, Epoch(2));
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.begin_epoch(&fleet(), Epoch(0)).unwrap().0, Epoch(3));
    assert_eq!(store.begin_epoch(&fleet(), Epoch(9)).unwrap().0, Epoch(10));
    assert_eq!(store.begin_epoch(&FleetId::new("other").unwrap(), Epoch(0)).unwrap().0, Epoch(1));
}

#[test]
fn every_intent_comes_back_as_it_was_stored() {
    let path = directory("store").join("controller.redb");
    let store = Store::open(&path).unwrap();
    let intents = [
        None,
        Some(Intent::Drain { by: By::Scale, ordered_at: Instant(u64::MAX), drained: true }),
        Some(Intent::Cordon),
        Some(Intent::Shed { to: Connections(12), until: Instant(34) }),
        Some(Intent::Stop { ordered_at: Instant(56) }),
    ];
    let mut records: Vec<_> = intents
        .into_iter()
        .zip(1..)
        .map(|(intent, n)| ServerRecord {
            server: ServerId::new(&format!("s{n}")).unwrap(),
            generation: Generation(n),
            intent,
        })
        .collect();
    let changes: Vec<_> =
        records.iter().cloned().map(Change::Server).chain([Change::Fixed(Some(3))]).collect();
    store.commit(&fleet(), &changes).unwrap();
    // A fleet whose id sorts next to it stays apart.
    store.commit(&FleetId::new("chat2").unwrap(), &[Change::Server(drain("x", 1))]).unwrap();
    drop(store);

    let store = Store::open(&path).unwrap();
    let (_, record) = store.begin_epoch(&fleet(), Epoch(0)).unwrap();
    assert_eq!(record, FleetRecord { servers: records.clone(), fixed: Some(3) });

    let gone = records.remove(1).server;
    store.commit(&fleet(), &[Change::Forget(gone), Change::Fixed(None)]).unwrap();
    assert_eq!(
        store.begin_epoch(&fleet(), Epoch(0)).unwrap().1,
        FleetRecord { servers: records, fixed: None }
    );
}

#[test]
fn processes_come_back_and_go() {
    let store = Store::open(&directory("store").join("controller.redb")).unwrap();
    let process = Process {
        server: String::from("s1"),
        nonce: String::from("n"),
        port: 9001,
        pid: Some(17),
        started: Some(99),
        boot: Some(String::from("b")),
        wanted: true,
    };
    store.put_process(&fleet(), &process).unwrap();
    assert_eq!(store.processes(&fleet()).unwrap(), [process]);
    store.remove_process(&fleet(), &ServerId::new("s1").unwrap()).unwrap();
    assert_eq!(store.processes(&fleet()).unwrap(), []);
}

#[test]
fn second_opening_says_that_another_process_has_it() {
    let path = directory("store").join("controller.redb");
    let _first = Store::open(&path).unwrap();
    assert_eq!(Store::open(&path).unwrap_err().reason(), "store_in_use");
}

#[test]
fn damaged_file_is_refused_and_named() {
    let directory = directory("store");
    let text = directory.join("text.redb");
    std::fs::write(&text, "this is not a store, but long enough to look at ".repeat(100)).unwrap();
    let refused = Store::open(&text).unwrap_err();
    assert_eq!(refused.reason(), "store_damaged", "{refused:?}");
    assert!(refused.to_string().contains("text.redb"));

    let cut = directory.join("cut.redb");
    drop(Store::open(&cut).unwrap());
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let refused = Store::open(&cut).unwrap_err();
    assert_eq!(refused.reason(), "store_damaged", "{refused:?}");
}

#[test]
fn record_that_does_not_read_is_named_and_not_guessed() {
    let store = Store::open(&directory("store").join("controller.redb")).unwrap();
    store
        .write(|write| {
            write.open_table(SERVERS)?.insert(("chat", "s1"), b"{}".as_slice())?;
            Ok(())
        })
        .unwrap();
    let refused = store.begin_epoch(&fleet(), Epoch(0)).unwrap_err();
    assert_eq!(refused.reason(), "store_record");
    assert!(refused.to_string().contains("chat/s1"), "{refused}");
}

/// A disk that can be full.
#[derive(Debug)]
pub(crate) struct Disk {
    memory: Arc<redb::backends::InMemoryBackend>,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.memory.write(offset, data)
    }
}

impl Store {
    /// A store on a disk that is full while `full` says so.
    pub(crate) fn on_disk(full: Arc<std::sync::atomic::AtomicBool>) -> Self {
        let memory = Arc::new(redb::backends::InMemoryBackend::new());
        let open = move || {
            let disk = Disk { memory: Arc::clone(&memory), full: Arc::clone(&full) };
            Database::builder().create_with_backend(disk)
        };
        let store = Self::opened_by(open).unwrap();
        store.check_format(Path::new("memory")).unwrap();
        store
    }
}

#[test]
fn failed_write_leaves_nothing_behind_and_the_store_works_again_once_the_disk_does() {
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let store = Store::on_disk(Arc::clone(&full));
    store.commit(&fleet(), &[Change::Server(drain("s1", 1))]).unwrap();
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = store.commit(&fleet(), &[Change::Server(drain("s2", 1))]).unwrap_err();
    assert_eq!(refused.reason(), "store_failed");
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(store.begin_epoch(&fleet(), Epoch(0)).unwrap().1.servers, [drain("s1", 1)]);
    store.commit(&fleet(), &[Change::Server(drain("s2", 1))]).unwrap();
}
