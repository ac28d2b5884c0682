use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Deed {
    Arrive(u32),
    Depart(u32),
    Silence(usize),
    Speak(usize),
    Deafen(usize),
    Restart,
    Drain(usize, bool),
    Undrain(usize),
    Cordon(usize),
    Shed(usize, u32),
    Scale(Option<u32>),
    Kill(usize),
    Heat(usize, f64),
}

fn any_deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (1..300u32).prop_map(Deed::Arrive),
        3 => (1..300u32).prop_map(Deed::Depart),
        1 => (0..8usize).prop_map(Deed::Silence),
        2 => (0..8usize).prop_map(Deed::Speak),
        2 => (0..8usize).prop_map(Deed::Deafen),
        1 => Just(Deed::Restart),
        2 => (0..8usize, any::<bool>()).prop_map(|(i, force)| Deed::Drain(i, force)),
        2 => (0..8usize).prop_map(Deed::Undrain),
        1 => (0..8usize).prop_map(Deed::Cordon),
        1 => (0..8usize, 0..300u32).prop_map(|(i, to)| Deed::Shed(i, to)),
        1 => prop::option::of(0..9u32).prop_map(Deed::Scale),
        1 => (0..8usize).prop_map(Deed::Kill),
        1 => (0..8usize, 0.0..1.0f64).prop_map(|(i, cpu)| Deed::Heat(i, cpu)),
    ]
}

impl World {
    fn pick(&self, i: usize) -> Option<ServerId> {
        let names: Vec<ServerId> = self.hosts.keys().cloned().collect();
        (!names.is_empty()).then(|| names[i % names.len()].clone())
    }

    fn deed(&mut self, deed: &Deed) {
        let named = |world: &Self, i: usize| world.pick(i);
        match deed {
            Deed::Arrive(count) => self.arrive(*count),
            Deed::Depart(count) => self.depart(*count),
            Deed::Restart => {
                self.restart_recalling();
                let running: Vec<ServerId> = self.hosts.keys().cloned().collect();
                for server in running {
                    let url = Arc::from(format!("ws://{server}"));
                    self.handle(Input::Provided(Provided::Running { server: server.clone(), url }));
                    self.introduce(server.as_str());
                }
            }
            Deed::Scale(servers) => drop(self.order(Order::Scale { servers: *servers })),
            Deed::Silence(i) => self.with(named(self, *i), |host| host.answers = false),
            Deed::Speak(i) => self.with(named(self, *i), |host| (host.answers, host.hears) = (true, true)),
            // Its orders get lost, its reports do not.
            Deed::Deafen(i) => self.with(named(self, *i), |host| host.hears = false),
            Deed::Heat(i, cpu) => self.with(named(self, *i), |host| host.cpu = Some(*cpu)),
            Deed::Drain(i, force) => self.tell(*i, |server| Order::Drain { server, force: *force }),
            Deed::Undrain(i) => self.tell(*i, |server| Order::Undrain { server }),
            Deed::Cordon(i) => self.tell(*i, |server| Order::Cordon { server }),
            Deed::Shed(i, to) => self.tell(*i, |server| Order::Shed { server, to: Connections(*to) }),
            Deed::Kill(i) => self.kill(*i),
        }
    }

    fn with(&mut self, server: Option<ServerId>, change: impl FnOnce(&mut Host)) {
        if let Some(host) = server.and_then(|server| self.hosts.get_mut(&server)) {
            change(host);
        }
    }

    fn tell(&mut self, i: usize, order: impl FnOnce(ServerId) -> Order) {
        if let Some(server) = self.pick(i) {
            // Whether it is refused depends on the state; that it is answered is what `order` checks.
            let _ = self.order(order(server));
        }
    }

    /// A process dies and its provider starts it again.
    fn kill(&mut self, i: usize) {
        let Some(server) = self.pick(i) else { return };
        let host = self.hosts.remove(&server).expect("picked");
        let restart_at = self.now + Duration::from_secs(2);
        self.booting.push((restart_at, server.clone()));
        let why = String::from("signal 9");
        self.handle(Input::Provided(Provided::Exited { server, why, restart_at: Some(restart_at) }));
        self.arrive(host.live);
    }

    /// Moves a second that servers are allowed right now.
    fn allowed(&self) -> f64 {
        let in_force = |host: &&Host| host.live > 0 && host.answers;
        let rate = |host: &Host| match &host.desired {
            Some((desired, at)) if self.now.since(*at) <= desired.lease => desired.moves_per_s.get(),
            _ => 0.0,
        };
        self.hosts.values().filter(in_force).map(rate).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: chaos_cases(), ..ProptestConfig::default() })]

    /// Whatever happens: no panic and no broken invariant of the machine, never more moves than the pace, never
    /// fewer serving servers by its own choice than the minimum, never a stop with connections (the world checks
    /// that), never an order that goes back; and once it stops happening, everyone has a place and all is still.
    #[test]
    fn nothing_forbidden_happens_whatever_happens(deeds in prop::collection::vec((any_deed(), 0..12u64), 1..40)) {
        let mut scale = ScaleConfig { min: 2, max: 6, window: Duration::from_secs(40), ..ScaleConfig::default() };
        scale.round = Duration::from_secs(2);
        let mut world = World::new(scaled(scale), &[]);
        world.run(10);
        let pace = world.config.moves.pace.get();
        for (deed, wait) in &deeds {
            world.deed(deed);
            for _ in 0..wait * 4 {
                world.tick();
                prop_assert!(world.allowed() <= pace + 1e-6, "{} after {deed:?}", world.allowed());
                prop_assert!(world.controller.servers(world.now).len() <= 6);
            }
        }
        world.run(15);
        let known: Vec<ServerId> = world.controller.servers(world.now).into_iter().map(|known| known.id).collect();
        for server in known {
            world.with(Some(server.clone()), |host| (host.answers, host.hears, host.cpu) = (true, true, None));
            let _ = world.order(Order::Undrain { server });
        }
        let _ = world.order(Order::Scale { servers: None });
        world.run(1_500);
        let serving = world.controller.servers(world.now);
        prop_assert!(serving.iter().all(|server| server.state == State::Active), "{serving:#?}");
        prop_assert!(serving.len() >= 2);
        let before: Vec<u32> = world.hosts.values().map(|host| host.moved.get()).collect();
        world.run(60);
        let after: Vec<u32> = world.hosts.values().map(|host| host.moved.get()).collect();
        prop_assert_eq!(before, after, "still: {:?}", world.controller.explanation());
    }
}

/// 48 in the fast gate; `PROPTEST_CASES` asks for more.
fn chaos_cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}
