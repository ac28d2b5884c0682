//! The shared vectors of assignments, tickets and sealed states, which were made by another implementation
//! (testdata/vectors/credentials.mjs), and properties of ours.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_model::{Duration, FleetId, Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{
    Kid, LiveKeys, MasterKey, MoveKey, PERIOD, TicketKey, TokenKey, TokenKeys, live_jwks, live_kids,
    live_move_keys, signing_kid, signing_move_key,
};
use evenkeel_protocol::refusal::Refusal;
use evenkeel_protocol::replay::{REPLAYS_MAX, ReplayCache};
use evenkeel_protocol::seal::{self, Handover, Opener, STATE_MAX};
use evenkeel_protocol::ticket::{self, Ticket};
use evenkeel_protocol::token::{Audience, Cause, Claims, TOKEN_MAX, Verifier, mint, names};
use proptest::prelude::*;
use serde_json::{Value, json};

const TOKEN: &str = include_str!("../../../testdata/vectors/token.json");
const TICKET: &str = include_str!("../../../testdata/vectors/ticket.json");
const SEAL: &str = include_str!("../../../testdata/vectors/seal.json");

/// One of the three files.
struct File(Value);

impl File {
    fn read(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap())
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap()
    }

    fn list(&self, name: &str) -> &[Value] {
        let list = self.0[name].as_array().unwrap();
        assert!(!list.is_empty(), "{name}");
        list
    }

    fn master(&self) -> MasterKey {
        MasterKey::parse(self.text("master")).unwrap()
    }

    fn fleet(&self) -> FleetId {
        FleetId::new(self.text("fleet")).unwrap()
    }

    fn audience(&self) -> Audience {
        Audience {
            server: ServerId::new(self.text("server")).unwrap(),
            inc: Incarnation(self.0["inc"].as_u64().unwrap()),
        }
    }

    fn live(&self) -> LiveKeys {
        let key = |key: &Value| evenkeel_protocol::message::Key {
            kid: key["kid"].as_str().unwrap().to_owned(),
            alg: key["alg"].as_str().unwrap().to_owned(),
            k: key["k"].as_str().unwrap().to_owned(),
        };
        LiveKeys::read(&self.list("keys").iter().map(key).collect::<Vec<_>>())
    }

    /// A field of an attempt, of the question all attempts share, or of the file.
    fn of<'a>(&'a self, attempt: &'a Value, name: &str) -> &'a Value {
        let ask = &self.0["ask"];
        attempt.get(name).or_else(|| ask.get(name)).or_else(|| self.0.get(name)).unwrap_or(&Value::Null)
    }

    fn now(&self, attempt: &Value) -> Instant {
        Instant::from_millis(self.of(attempt, "now_ms").as_u64().unwrap())
    }
}

/// A text, also one given as {text, times}.
fn long(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other["text"].as_str().unwrap().repeat(other["times"].as_u64().unwrap() as usize),
    }
}

fn name(vector: &Value) -> &str {
    vector["name"].as_str().unwrap()
}

fn before(vector: &Value) -> &[Value] {
    vector["before"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn claims(value: &Value) -> Claims {
    let text = |name: &str| value[name].as_str().unwrap().to_owned();
    Claims {
        aud: Audience::parse(&text("aud")).unwrap(),
        iat: value["iat"].as_u64().unwrap(),
        exp: value["exp"].as_u64().unwrap(),
        jti: text("jti"),
        rid: text("rid"),
        sid: text("sid"),
        path: text("path"),
        org: value["org"].as_str().map(str::to_owned),
        cause: serde_json::from_value(value["cause"].clone()).unwrap(),
        caps: value["caps"].as_array().unwrap().iter().map(|cap| cap.as_str().unwrap().to_owned()).collect(),
    }
}

#[test]
fn one_master_key_gives_the_live_list_of_the_vectors() {
    let file = File::read(TOKEN);
    let list = live_jwks(&file.master(), &file.fleet(), &file.audience(), file.now(&Value::Null));
    let written: Vec<Value> =
        list.iter().map(|key| json!({"kty": "oct", "kid": key.kid, "alg": key.alg, "k": key.k})).collect();
    assert_eq!(written, file.list("keys"));
}

#[test]
fn assignments_are_minted_as_the_vectors_say() {
    let file = File::read(TOKEN);
    let mut keys = TokenKeys::new(file.master());
    for vector in file.list("mint") {
        let key = keys.signing(&file.audience(), file.now(vector));
        assert_eq!(key.kid(), vector["kid"].as_str().unwrap());
        let token = mint(key, &claims(&vector["claims"])).unwrap();
        assert_eq!(token, vector["token"].as_str().unwrap(), "{}", name(vector));
        assert_eq!(names(token.as_bytes()), Ok(file.audience()));
    }
}

fn attempt(file: &File, vector: &Value) -> Result<Claims, Refusal> {
    let room = vector["replays"].as_u64().map_or(REPLAYS_MAX, |room| room as usize);
    let mut verifier = Verifier::with_room(file.audience(), room);
    verifier.set_keys(file.live().tokens);
    let mut verify = |one: &Value| {
        let path = file.of(one, "path").as_str().unwrap();
        let origin = file.of(one, "origin").as_str();
        verifier.verify(long(&one["token"]).as_bytes(), path, origin, file.now(one))
    };
    for one in before(vector) {
        let _ = verify(one);
    }
    verify(vector)
}

#[test]
fn assignments_of_the_vectors_are_taken() {
    let file = File::read(TOKEN);
    for vector in file.list("accept") {
        let claims = attempt(&file, vector).unwrap_or_else(|why| panic!("{}: {why}", name(vector)));
        let written = serde_json::to_value(&claims).unwrap();
        for (field, means) in vector["means"].as_object().into_iter().flatten() {
            assert_eq!(&written[field], means, "{}: {field}", name(vector));
        }
    }
}

#[test]
fn bad_assignments_of_the_vectors_are_refused_for_the_reason_they_say() {
    let file = File::read(TOKEN);
    assert!(file.list("refuse").len() >= 30);
    for vector in file.list("refuse") {
        let why = attempt(&file, vector).map_or_else(|why| why, |_| panic!("{}: taken", name(vector)));
        assert_eq!(why.reason(), vector["why"].as_str().unwrap(), "{}", name(vector));
    }
    let told = |why: &Refusal| file.list("refuse").iter().any(|vector| vector["why"] == why.reason());
    let untold: Vec<_> = Refusal::ALL.iter().filter(|why| !told(why)).collect();
    assert_eq!(untold, [&Refusal::OtherMove], "each reason of an assignment has a vector");
}

fn ticket_keys(file: &File) -> Vec<TicketKey> {
    file.live().moves.iter().map(MoveKey::ticket_key).collect()
}

#[test]
fn tickets_are_minted_and_checked_as_the_vectors_say() {
    let file = File::read(TICKET);
    let keys = ticket_keys(&file);
    for vector in file.list("mint") {
        let now = file.now(vector);
        let key = signing_move_key(&file.master(), &file.fleet(), now).ticket_key();
        assert_eq!(key.kid(), vector["kid"].as_str().unwrap());
        let made = Ticket::new("s-1", ServerId::new("chat-1").unwrap(), now);
        assert_eq!(json!(made.exp), vector["ticket"]["exp"]);
        assert_eq!(ticket::mint(&key, &made), vector["text"].as_str().unwrap());
    }
    for vector in file.list("accept") {
        let taken = ticket::check(long(&vector["text"]).as_bytes(), &keys, file.now(vector))
            .unwrap_or_else(|why| panic!("{}: {why}", name(vector)));
        assert_eq!((taken.sid.as_str(), taken.source.as_str()), ("s-1", "chat-1"), "{}", name(vector));
    }
    for vector in file.list("refuse") {
        let why = ticket::check(long(&vector["text"]).as_bytes(), &keys, file.now(vector))
            .map_or_else(|why| why, |_| panic!("{}: taken", name(vector)));
        assert_eq!(why.reason(), vector["why"].as_str().unwrap(), "{}", name(vector));
    }
}

fn open(file: &File, vector: &Value) -> Result<String, Refusal> {
    let mut opener = Opener::new(file.0["ask"]["at"].as_str().unwrap());
    opener.set_keys(file.live().moves);
    let mut open = |one: &Value| {
        let (sid, mid) = (file.of(one, "sid").as_str().unwrap(), file.of(one, "mid").as_str().unwrap());
        opener.open(long(&one["text"]).as_bytes(), sid, mid, file.now(one))
    };
    for one in before(vector) {
        let _ = open(one);
    }
    open(vector).map(|state| URL_SAFE_NO_PAD.encode(state))
}

#[test]
fn states_are_sealed_and_opened_as_the_vectors_say() {
    let file = File::read(SEAL);
    let bytes = |text: &Value| URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap();
    for vector in file.list("seal") {
        let now = file.now(vector);
        let text = |name: &str| vector[name].as_str().unwrap();
        let key = signing_move_key(&file.master(), &file.fleet(), now);
        let handover = Handover { sid: text("sid"), mid: text("mid"), at: text("at") };
        let nonce = bytes(&vector["nonce"]).try_into().unwrap();
        let sealed = seal::seal(&key, &handover, &bytes(&vector["state"]), nonce, now).unwrap();
        assert_eq!(sealed, text("text"), "{}", name(vector));
    }
    for vector in file.list("accept") {
        let state = open(&file, vector).unwrap_or_else(|why| panic!("{}: {why}", name(vector)));
        assert_eq!(state, vector["state"].as_str().unwrap(), "{}", name(vector));
    }
    for vector in file.list("refuse") {
        let why = open(&file, vector).map_or_else(|why| why, |_| panic!("{}: opened", name(vector)));
        assert_eq!(why.reason(), vector["why"].as_str().unwrap(), "{}", name(vector));
    }
}

const DAY_MS: u64 = 86_400_000;

#[test]
fn a_key_is_live_before_it_signs_and_until_everything_it_signed_has_expired() {
    // Every half minute of two days, and the moments around midnight.
    let midnight = 20_000 * DAY_MS;
    let around = [midnight - 1, midnight, midnight + 1, midnight + 59_999, midnight + 60_000];
    for ms in (midnight..midnight + 2 * DAY_MS).step_by(30_000).chain(around) {
        let now = Instant::from_millis(ms);
        let signs = signing_kid(now);
        assert!(live_kids(now).contains(&signs));
        // An agent that missed the news for a minute still has it; a ticket of ten minutes outlives no key.
        assert!(live_kids(now - Duration::from_secs(59)).contains(&signs), "{ms}");
        assert!(live_kids(now + Duration::from_secs(605)).contains(&signs), "{ms}");
    }
    let [previous, current] = live_kids(Instant::from_millis(midnight));
    assert_eq!((previous.token_text(), current.move_text()), ("19999".to_owned(), "m20000".to_owned()));
    assert_eq!(current.ends(), Instant::from_millis(midnight) + PERIOD);
}

#[test]
fn a_live_list_is_read_without_what_is_not_ours() {
    let file = File::read(TOKEN);
    let now = file.now(&Value::Null);
    let mut list = live_jwks(&file.master(), &file.fleet(), &file.audience(), now);
    list[0].k.pop();
    list[1].alg = "HS512".to_owned();
    let live = LiveKeys::read(&list);
    assert_eq!((live.tokens.len(), live.moves.len()), (0, 2));
    assert_eq!(live.sealing(now).unwrap().kid(), "m20417");
    assert_eq!(live.sealing(now - PERIOD).unwrap().kid(), "m20416");
}

#[test]
fn no_key_shows_itself() {
    let file = File::read(TOKEN);
    let now = file.now(&Value::Null);
    let master = file.master();
    let list = live_jwks(&master, &file.fleet(), &file.audience(), now);
    let mut keys = TokenKeys::new(master.clone());
    let _ = keys.signing(&file.audience(), now);
    let ticket = live_move_keys(&master, &file.fleet(), now)[0].ticket_key();
    let shown = format!("{master:?} {list:?} {:?} {keys:?} {ticket:?}", LiveKeys::read(&list));
    let bytes = format!("{:?}", [0_u8, 1, 2, 3]);
    let secrets =
        list.iter().map(|key| key.k.as_str()).chain([file.text("master"), &bytes[1..bytes.len() - 1]]);
    for secret in secrets {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_key_file_holds_one_line_of_43_characters() {
    let master = MasterKey::from_bytes([9; 32]);
    let text = master.to_text();
    assert_eq!(text.len(), 44);
    assert_eq!(MasterKey::parse(&text), Ok(master.clone()));
    assert_eq!(MasterKey::parse(text.trim_end()), Ok(master));
    for bad in ["", "\n", &text[1..], &format!("{text}\n"), &format!(" {text}"), &text.replace('\n', "=\n")] {
        assert!(MasterKey::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn another_master_key_kills_every_assignment_and_ticket() {
    let file = File::read(TOKEN);
    let now = file.now(&Value::Null);
    let (old, new) = (file.master(), MasterKey::from_bytes([1; 32]));
    let source = file.audience().server;
    let text = ticket::mint(
        &signing_move_key(&old, &file.fleet(), now).ticket_key(),
        &Ticket::new("s", source, now),
    );
    let under = |master: &MasterKey| {
        let live = LiveKeys::read(&live_jwks(master, &file.fleet(), &file.audience(), now));
        let tickets: Vec<_> = live.moves.iter().map(MoveKey::ticket_key).collect();
        let mut verifier = Verifier::new(file.audience());
        verifier.set_keys(live.tokens);
        let vector = &file.list("accept")[0];
        let path = file.of(vector, "path").as_str().unwrap();
        let token = long(&vector["token"]);
        let token = verifier.verify(token.as_bytes(), path, file.of(vector, "origin").as_str(), now);
        (token.is_ok(), ticket::check(text.as_bytes(), &tickets, now).is_ok())
    };
    assert_eq!(under(&old), (true, true));
    assert_eq!(under(&new), (false, false));
}

#[test]
fn a_verifier_of_another_life_has_no_keys() {
    let file = File::read(TOKEN);
    let mut verifier = Verifier::new(file.audience());
    verifier.set_keys(file.live().tokens);
    verifier.set_audience(file.audience());
    assert!(verifier.has_keys());
    verifier.set_audience(Audience { inc: file.audience().inc.next(), ..file.audience() });
    assert!(!verifier.has_keys());
}

#[test]
fn states_and_tokens_beyond_their_bounds_are_not_made() {
    let key = MoveKey::derive(&MasterKey::from_bytes([3; 32]), &FleetId::new("f").unwrap(), Kid::at(NOW));
    let handover = Handover { sid: &"s".repeat(128), mid: &"m".repeat(128), at: &"a".repeat(256) };
    let sealed = seal::seal(&key, &handover, &[0; STATE_MAX], [0; 12], NOW).unwrap();
    assert!(sealed.len() <= seal::SEALED_MAX);
    let error = seal::seal(&key, &handover, &[0; STATE_MAX + 1], [0; 12], NOW).unwrap_err();
    assert_eq!(error.length, STATE_MAX + 1);

    let mut claims = some_claims("j", 30);
    claims.path = "/".repeat(1_400);
    let error = mint(&some_key(), &claims).unwrap_err();
    assert!(error.length > TOKEN_MAX);
}

const NOW: Instant = Instant::from_millis(1_764_000_000_000);

fn some_audience() -> Audience {
    Audience { server: ServerId::new("a").unwrap(), inc: Incarnation(7) }
}

fn some_key() -> TokenKey {
    TokenKey::derive(&MasterKey::from_bytes([3; 32]), &some_audience(), Kid::at(NOW))
}

fn some_claims(jti: &str, life: u64) -> Claims {
    let iat = NOW.as_millis() / 1_000;
    Claims {
        aud: some_audience(),
        iat,
        exp: iat + life,
        jti: jti.to_owned(),
        rid: "r".to_owned(),
        sid: "s".to_owned(),
        path: "/".to_owned(),
        org: None,
        cause: Cause::Start,
        caps: Vec::new(),
    }
}

fn some_verifier() -> Verifier {
    let mut verifier = Verifier::new(some_audience());
    verifier.set_keys(vec![some_key()]);
    verifier
}

/// A good token or state with something done to it.
fn altered(good: String) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    let with = move |(at, byte): (usize, u8)| {
        let mut bytes = good.clone().into_bytes();
        match byte % 3 {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            _ => bytes.truncate(at),
        }
        (bytes, good.clone())
    };
    (0..length, any::<u8>())
        .prop_map(with)
        .prop_filter_map("altered", |(bytes, good)| (bytes != good.as_bytes()).then_some(bytes))
}

fn good_token() -> String {
    mint(&some_key(), &some_claims("j", 30)).unwrap()
}

fn good_state() -> (MoveKey, String) {
    let key = MoveKey::derive(&MasterKey::from_bytes([3; 32]), &FleetId::new("f").unwrap(), Kid::at(NOW));
    let handover = Handover { sid: "s", mid: "m", at: "a#7" };
    let sealed = seal::seal(&key, &handover, b"state", [5; 12], NOW).unwrap();
    (key, sealed)
}

proptest! {
    #[test]
    fn whatever_was_minted_is_taken_once_by_its_server_only(
        jti in "\\PC{1,32}", sid in "[ -~]{1,40}", path in "/[!-~&&[^?]]{0,80}",
        org in proptest::option::of("[ -~]{1,40}"), caps in proptest::collection::vec("[a-z]{1,8}", 0..4),
        life in 0_u64..=30, later_ms in 0_u64..5_000,
    ) {
        let claims = Claims { jti, sid, path: path.clone(), org: org.clone(), caps, ..some_claims("", life) };
        let token = mint(&some_key(), &claims).unwrap();
        let now = NOW + Duration::from_millis(later_ms);
        let mut verifier = some_verifier();
        let wire = format!("{path}?a=b");
        prop_assert_eq!(verifier.verify(token.as_bytes(), &wire, org.as_deref(), now), Ok(claims));
        let again = verifier.verify(token.as_bytes(), &path, org.as_deref(), now);
        prop_assert_eq!(again, Err(Refusal::Replayed));

        let other = Audience { inc: Incarnation(8), ..some_audience() };
        let mut elsewhere = Verifier::new(other);
        elsewhere.set_keys(vec![some_key()]);
        let taken = elsewhere.verify(token.as_bytes(), &path, org.as_deref(), now);
        prop_assert_eq!(taken, Err(Refusal::OtherServer));
    }

    #[test]
    fn an_altered_assignment_is_refused_and_does_not_use_up_the_good_one(bad in altered(good_token())) {
        let mut verifier = some_verifier();
        prop_assert!(verifier.verify(&bad, "/", None, NOW).is_err());
        prop_assert!(verifier.verify(good_token().as_bytes(), "/", None, NOW).is_ok());
    }

    #[test]
    fn no_bytes_panic_or_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(some_verifier().verify(&bytes, "/", None, NOW).is_err());
        prop_assert!(names(&bytes).is_err());
        let (key, _) = good_state();
        prop_assert!(ticket::check(&bytes, &[key.ticket_key()], NOW).is_err());
        let mut opener = Opener::new("a#7");
        opener.set_keys(vec![key]);
        prop_assert!(opener.open(&bytes, "s", "m", NOW).is_err());
    }

    /// Rightly signed, but with anything inside: reaches what random bytes never do.
    #[test]
    fn no_signed_claims_panic(name in 0_usize..10, value in any_json(), now_ms in any::<u64>()) {
        let names = ["aud", "iat", "exp", "jti", "rid", "sid", "path", "org", "cause", "caps"];
        let mut claims = serde_json::to_value(some_claims("j", 30)).unwrap();
        claims[names[name]] = value;
        let token = signed(&claims);
        let _ = some_verifier().verify(token.as_bytes(), "/", None, Instant(now_ms));
    }

    #[test]
    fn an_altered_state_is_not_opened(bad in altered(good_state().1)) {
        let (key, good) = good_state();
        let mut opener = Opener::new("a#7");
        opener.set_keys(vec![key]);
        prop_assert!(opener.open(&bad, "s", "m", NOW).is_err());
        prop_assert_eq!(opener.open(good.as_bytes(), "s", "m", NOW), Ok(b"state".to_vec()));
        prop_assert_eq!(opener.open(good.as_bytes(), "s", "m", NOW), Err(Refusal::Replayed));
    }

    /// Against a plain list that never forgets: the cache lets nothing in twice, at whatever time, and what it
    /// refuses without need it refuses only because it is full or because a clock went back.
    #[test]
    fn a_replay_cache_never_takes_a_name_twice(
        steps in proptest::collection::vec((0_u8..12, 0_u64..40, 0_u64..200), 1..200),
    ) {
        let mut cache = ReplayCache::new(6);
        let mut taken = std::collections::BTreeSet::new();
        let mut latest = 0;
        for (name, life, now) in steps {
            let ends = 200 * u64::from(name) / 12 + life;
            if ends <= now {
                continue;
            }
            let before = cache.len();
            match cache.take(&format!("{name}"), Instant(ends), Instant(now)) {
                Ok(()) => prop_assert!(taken.insert((name, ends))),
                Err(Refusal::Replayed) => prop_assert!(taken.iter().any(|(known, _)| *known == name)),
                Err(Refusal::ReplayFull) => prop_assert!(before <= 6 && cache.len() == 6),
                Err(Refusal::Expired) => prop_assert!(now < latest),
                Err(other) => prop_assert!(false, "{other}"),
            }
            latest = latest.max(now);
            prop_assert!(cache.len() <= 6);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,3}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Signs any claims with the key of [`some_verifier`], as only a broken gateway would.
fn signed(claims: &Value) -> String {
    let key = live_jwks(&MasterKey::from_bytes([3; 32]), &FleetId::new("f").unwrap(), &some_audience(), NOW);
    let kid = Kid::at(NOW).token_text();
    let key = URL_SAFE_NO_PAD.decode(&key.iter().find(|key| key.kid == kid).unwrap().k).unwrap();
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","typ":"JWT","kid":"{kid}"}}"#));
    let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}
