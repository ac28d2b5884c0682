//! How long one assignment takes: to sign it with a key at hand, to sign the first one of a server (its key has to be
//! derived), and to check it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use evenkeel_model::{Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{MasterKey, TokenKey, TokenKeys, signing_kid};
use evenkeel_protocol::token::{Audience, Cause, Claims, Verifier, mint};

const NOW: Instant = Instant::from_millis(1_764_000_000_000);

fn claims(aud: &Audience) -> Claims {
    Claims {
        aud: aud.clone(),
        iat: NOW.as_millis() / 1_000,
        exp: NOW.as_millis() / 1_000 + 30,
        jti: "Zm9vYmFyYmF6cXV4eHl6eg".to_owned(),
        rid: "g1-000000000001".to_owned(),
        sid: "c2Vzc2lvbi1vZi1hLWNsaWVudA".to_owned(),
        path: "/chat/room".to_owned(),
        org: Some("https://app.example.com".to_owned()),
        cause: Cause::Start,
        caps: vec!["move".to_owned()],
    }
}

fn assignments(c: &mut Criterion) {
    let master = MasterKey::from_bytes([7; 32]);
    let aud = Audience { server: ServerId::new("chat-1").unwrap(), inc: Incarnation(1_763_999_000_000) };
    let claims = claims(&aud);
    let mut keys = TokenKeys::new(master.clone());
    c.bench_function("mint", |b| {
        b.iter(|| mint(keys.signing(&aud, NOW), black_box(&claims)).unwrap());
    });
    c.bench_function("derive a key", |b| {
        b.iter(|| TokenKey::derive(&master, black_box(&aud), signing_kid(NOW)));
    });
    let token = mint(keys.signing(&aud, NOW), &claims).unwrap();
    let key = TokenKey::derive(&master, &aud, signing_kid(NOW));
    let verifier = || {
        let mut verifier = Verifier::new(aud.clone());
        verifier.set_keys(vec![key.clone()]);
        verifier
    };
    c.bench_function("verify", |b| {
        b.iter_batched_ref(
            verifier,
            |verifier| {
                let origin = Some("https://app.example.com");
                verifier.verify(black_box(token.as_bytes()), "/chat/room", origin, NOW).unwrap()
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, assignments);
criterion_main!(benches);
