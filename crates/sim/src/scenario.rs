//! What to simulate: a fleet, its clients, its network, and what happens to it.
//!
//! In: a TOML text. Out: a [`Scenario`] with validated numbers, or a [`ScenarioError`] that names key, value, range.
//! Elsewhere: running it (`world`), random ones (`chaos`).

use std::time::Duration;

use evenkeel_fleet::config::{FleetConfig, PickRule, ScaleConfig};
use evenkeel_model::{Connections, FleetId, PerSecond};
use serde::Deserialize;

/// One run's conditions. Everything has a default; `testdata/scenarios` has examples.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// One sentence: what it shows.
    pub about: String,
    /// Simulated time after warm-up. Default 5 min.
    #[serde(with = "span")]
    pub duration: Duration,
    /// Seed when none is given. Default 1.
    pub seed: u64,
    /// Makes a small random fleet with faults from the seed and ignores all other keys but `duration`, which is
    /// when faults stop. Default false.
    pub chaos: bool,
    /// The fleet and its gateways.
    pub fleet: Fleet,
    /// Who connects.
    pub clients: Clients,
    /// What is between.
    pub network: Network,
    /// What connections cost.
    pub cpu: Cpu,
    /// Servers that come and go with load; absent: only by events.
    pub scale: Option<Scale>,
    /// What happens when.
    #[serde(rename = "event")]
    pub events: Vec<Event>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            duration: Duration::from_secs(300),
            seed: 1,
            chaos: false,
            fleet: Fleet::default(),
            clients: Clients::default(),
            network: Network::default(),
            cpu: Cpu::default(),
            scale: None,
            events: Vec::new(),
        }
    }
}

/// The fleet and its gateways.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// Servers at the start, named `s1`, `s2` … Default 10.
    pub servers: u32,
    /// Connections that each declares it can hold. Default 10,000.
    pub capacity: u32,
    /// Capacities of single servers, in order, where they differ.
    pub capacities: Vec<u32>,
    /// Gateways. Default 1.
    pub gateways: u32,
    /// Placement rule by its name in the configuration. Default `auto`.
    pub pick: String,
    /// Moves and closes per second; 0: none. Default 20.
    pub pace: f64,
    /// Placements that one server admits per second. Default 200.
    pub admit_per_s: f64,
    /// Divides the times of the control law. Default 1.
    pub speed: f64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            servers: 10,
            capacity: 10_000,
            capacities: Vec::new(),
            gateways: 1,
            pick: "auto".into(),
            pace: 20.0,
            admit_per_s: 200.0,
            speed: 1.0,
        }
    }
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clients {
    /// Connections held at the start, spread in proportion to capacity. Default 10,000.
    pub connections: u32,
    /// Mean life of a connection, exponential. Default 1 h.
    #[serde(with = "span")]
    pub life: Duration,
    /// New clients per second; absent: as many as leave (`connections` / `life`).
    pub arrivals_per_s: Option<f64>,
    /// Clients whose connection was closed dial again within this, evenly spread. Default 200 ms: most libraries
    /// dial at once.
    #[serde(with = "span")]
    pub redial: Duration,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            connections: 10_000,
            life: Duration::from_secs(3_600),
            arrivals_per_s: None,
            redial: Duration::from_millis(200),
        }
    }
}

/// What is between servers, controller and gateways. Orders and hellos go over links that keep order and lose
/// nothing; reports may suffer everything.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// A handshake there and back. Default 4 ms.
    #[serde(with = "span")]
    pub handshake: Duration,
    /// A message one way. Default 5 ms.
    #[serde(with = "span")]
    pub delay: Duration,
    /// More delay of a report, evenly spread: reports overtake each other. Default 0.
    #[serde(with = "span")]
    pub jitter: Duration,
    /// Share of reports that are lost. Default 0.
    pub loss: f64,
    /// Share of reports that arrive twice. Default 0.
    pub duplicate: f64,
    /// How often servers report. Default 1 s.
    #[serde(with = "span")]
    pub report_each: Duration,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            handshake: Duration::from_millis(4),
            delay: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            report_each: Duration::from_secs(1),
        }
    }
}

/// What connections cost.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cpu {
    /// CPU share of one connection; 0: servers report no CPU. Default 0.
    pub cost: f64,
    /// CPU share of an empty server. Default 0.
    pub base: f64,
    /// Servers differ in cost by ± this share, evenly spread. Default 0.
    pub spread: f64,
    /// Whether servers declare at most what their cost lets them hold at the default full mark. Default true;
    /// otherwise it has to be learned.
    pub declared: bool,
    /// Standard deviation of the noise as a share of the load. Default 0.
    pub noise: f64,
    /// Correlation time of the noise. Default 5 s.
    #[serde(with = "span")]
    pub correlation: Duration,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            cost: 0.0,
            base: 0.0,
            spread: 0.0,
            declared: true,
            noise: 0.0,
            correlation: Duration::from_secs(5),
        }
    }
}

/// Servers that come and go with load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scale {
    /// Never fewer. Default 1.
    pub min: u32,
    /// Never more. Default 10.
    pub max: u32,
    /// A server reports so long after it was started. Default 10 s.
    #[serde(with = "span")]
    pub boot: Duration,
    /// Time for which a smaller fleet must have sufficed. Default 10 min.
    #[serde(with = "span")]
    pub window: Duration,
}

impl Default for Scale {
    fn default() -> Self {
        Self { min: 1, max: 10, boot: Duration::from_secs(10), window: Duration::from_secs(600) }
    }
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawEvent")]
pub struct Event {
    /// After warm-up.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Servers join, named on from the last.
    Join {
        /// How many. Default 1.
        count: u32,
    },
    /// An operator drains a server.
    Drain {
        /// Which.
        server: String,
    },
    /// An operator ends a drain or a cordon.
    Undrain {
        /// Which.
        server: String,
    },
    /// An operator cordons a server.
    Cordon {
        /// Which.
        server: String,
    },
    /// An operator sheds a server to so many for a while.
    Shed {
        /// Which.
        server: String,
        /// The most it should hold.
        to: u32,
    },
    /// A server's process dies; a new one reports after `down`.
    Crash {
        /// Which.
        server: String,
        /// Until the next life.
        down: Duration,
    },
    /// A server does nothing for a while.
    Freeze {
        /// Which.
        server: String,
        /// How long.
        lasts: Duration,
    },
    /// A server accepts connections and closes them at once.
    Sinkhole {
        /// Which.
        server: String,
        /// Until it is cured.
        lasts: Duration,
    },
    /// Each connection of a server costs so many times as much from now on.
    Cost {
        /// Which.
        server: String,
        /// Factor.
        times: f64,
    },
    /// New clients come, evenly spread.
    Arrive {
        /// How many.
        count: u32,
        /// Within.
        within: Duration,
    },
    /// New clients per second from now on.
    Rate {
        /// Per second.
        arrivals_per_s: f64,
    },
    /// The controller ends without notice; a new one starts after `down` from what was stored.
    RestartController {
        /// Until the next.
        down: Duration,
    },
}

/// An event as written: what it is, and the keys that it needs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    at: Span,
    what: String,
    server: Option<String>,
    count: Option<u32>,
    to: Option<u32>,
    times: Option<f64>,
    arrivals_per_s: Option<f64>,
    down: Option<Span>,
    lasts: Option<Span>,
    within: Option<Span>,
}

impl TryFrom<RawEvent> for Event {
    type Error = String;

    fn try_from(raw: RawEvent) -> Result<Self, String> {
        let name = raw.what.clone();
        let needs = |key: &str| format!("the event {name:?} needs {key}");
        let server = || raw.server.clone().ok_or_else(|| needs("server"));
        let span =
            |value: &Option<Span>, key: &str| value.as_ref().map(|span| span.0).ok_or_else(|| needs(key));
        let what = match raw.what.as_str() {
            "join" => What::Join { count: raw.count.unwrap_or(1) },
            "drain" => What::Drain { server: server()? },
            "undrain" => What::Undrain { server: server()? },
            "cordon" => What::Cordon { server: server()? },
            "shed" => What::Shed { server: server()?, to: raw.to.ok_or_else(|| needs("to"))? },
            "crash" => What::Crash { server: server()?, down: span(&raw.down, "down")? },
            "freeze" => What::Freeze { server: server()?, lasts: span(&raw.lasts, "lasts")? },
            "sinkhole" => What::Sinkhole { server: server()?, lasts: span(&raw.lasts, "lasts")? },
            "cost" => What::Cost { server: server()?, times: raw.times.ok_or_else(|| needs("times"))? },
            "arrive" => What::Arrive {
                count: raw.count.ok_or_else(|| needs("count"))?,
                within: span(&raw.within, "within")?,
            },
            "rate" => {
                What::Rate { arrivals_per_s: raw.arrivals_per_s.ok_or_else(|| needs("arrivals_per_s"))? }
            }
            "restart_controller" => What::RestartController { down: span(&raw.down, "down")? },
            _ => {
                return Err(format!(
                    "there is no event {name:?}, only join, drain, undrain, cordon, shed, crash, freeze, sinkhole, \
                     cost, arrive, rate, restart_controller"
                ));
            }
        };
        Ok(Self { at: raw.at.0, what })
    }
}

#[derive(Debug)]
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        span::deserialize(from).map(Self)
    }
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not the TOML it should be.
    #[error("could not read the scenario: {0}")]
    Unreadable(String),
    /// A value outside what makes sense.
    #[error("could not take {key} = {value} in the scenario: allowed is {allowed}")]
    OutOfRange {
        /// Dotted key.
        key: &'static str,
        /// What it held.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl ScenarioError {
    /// Short code for scripts.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::OutOfRange { .. } => "out_of_range",
        }
    }
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`ScenarioError`] naming the first bad key.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError::Unreadable(error.to_string().trim().to_owned()))?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let Self { fleet, clients, network, cpu, .. } = self;
        let share = 0.0..=1.0;
        within("fleet.servers", f64::from(fleet.servers), 1.0..=10_000.0, "1 to 10000")?;
        within("fleet.capacity", f64::from(fleet.capacity), 1.0..=1e8, "1 to 100000000")?;
        within("fleet.gateways", f64::from(fleet.gateways), 1.0..=1_000.0, "1 to 1000")?;
        within("fleet.pace", fleet.pace, 0.0..=1e6, "0 to 1000000 per second")?;
        within("fleet.admit_per_s", fleet.admit_per_s, 0.1..=1e6, "0.1 to 1000000 per second")?;
        within("fleet.speed", fleet.speed, 0.01..=1_000.0, "0.01 to 1000")?;
        within("clients.life", clients.life.as_secs_f64(), 0.1..=1e9, "\"100ms\" or more")?;
        within("clients.arrivals_per_s", self.arrivals_per_s(), 0.0..=1e6, "0 to 1000000 per second")?;
        within(
            "network.report_each",
            network.report_each.as_secs_f64(),
            0.1..=3_600.0,
            "\"100ms\" to \"1h\"",
        )?;
        within("network.loss", network.loss, share.clone(), "0 to 1")?;
        within("network.duplicate", network.duplicate, share.clone(), "0 to 1")?;
        within("cpu.cost", cpu.cost, share.clone(), "0 to 1")?;
        within("cpu.base", cpu.base, share.clone(), "0 to 1")?;
        within("cpu.spread", cpu.spread, share, "0 to 1")?;
        within("cpu.noise", cpu.noise, 0.0..=10.0, "0 to 10")?;
        pick_rule(&fleet.pick).map(|_| ())
    }

    /// New clients per second at the start.
    #[must_use]
    pub fn arrivals_per_s(&self) -> f64 {
        let balanced = f64::from(self.clients.connections) / self.clients.life.as_secs_f64().max(0.1);
        self.clients.arrivals_per_s.unwrap_or(balanced)
    }

    /// What the server of that number (from 0) declares.
    #[must_use]
    pub fn capacity(&self, index: usize) -> u32 {
        self.fleet.capacities.get(index).copied().unwrap_or(self.fleet.capacity)
    }

    /// The same arrivals with the rule that most front doors ship: exact `leastconn` at one gateway that sees
    /// everything, under the same admission, without moves.
    #[must_use]
    pub fn with_leastconn_alone(&self) -> Self {
        let fleet = Fleet { pick: "leastconn".into(), pace: 0.0, gateways: 1, ..self.fleet.clone() };
        Self { fleet, ..self.clone() }
    }

    /// The same without moves.
    #[must_use]
    pub fn without_moves(&self) -> Self {
        Self { fleet: Fleet { pace: 0.0, ..self.fleet.clone() }, ..self.clone() }
    }

    pub(crate) fn policy(&self) -> FleetConfig {
        let id = FleetId::new("sim").unwrap_or_else(|_| unreachable!("the word is a valid id"));
        let mut policy = FleetConfig::new(id);
        policy.place.admit_per_s = PerSecond::new(self.fleet.admit_per_s);
        policy.place.pick = pick_rule(&self.fleet.pick).unwrap_or_default();
        policy.moves.pace = PerSecond::new(self.fleet.pace);
        policy.capacity.assumed = Connections(self.fleet.capacity);
        policy.scale = self.scale.as_ref().map(|scale| ScaleConfig {
            min: scale.min,
            max: scale.max,
            window: scale.window,
            boot_time: scale.boot,
            ..ScaleConfig::default()
        });
        policy.at_speed(self.fleet.speed)
    }
}

fn within(
    key: &'static str,
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    allowed: &'static str,
) -> Result<(), ScenarioError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ScenarioError::OutOfRange { key, value: value.to_string(), allowed })
}

fn pick_rule(name: &str) -> Result<PickRule, ScenarioError> {
    match name {
        "auto" => Ok(PickRule::Auto),
        "least_utilised" => Ok(PickRule::LeastUtilised),
        "sampled" => Ok(PickRule::Sampled),
        "leastconn" => Ok(PickRule::Leastconn),
        "round_robin" => Ok(PickRule::RoundRobin),
        "random" => Ok(PickRule::Random),
        _ => Err(ScenarioError::OutOfRange {
            key: "fleet.pick",
            value: format!("{name:?}"),
            allowed: "auto, least_utilised, sampled, leastconn, round_robin, random",
        }),
    }
}

/// Durations as in the configuration: `"250ms"`, `"20s"`, `"10m"`, `"24h"`.
mod span {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no duration, which is a number with ms, s, m or h: \"20s\""
            ))
        })
    }

    fn parse(text: &str) -> Option<Duration> {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_scenario_is_all_defaults() {
        assert_eq!(Scenario::parse("").unwrap(), Scenario::default());
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, named) in [
            ("fleet.gateways = 0", "fleet.gateways"),
            ("fleet.pick = \"best\"", "fleet.pick"),
            ("duration = \"5 minutes\"", "5 minutes"),
            ("clients.lives = \"1s\"", "lives"),
            ("network.loss = 2.0", "network.loss"),
            ("[[event]]\nat = \"1s\"\nwhat = \"explode\"", "explode"),
            ("[[event]]\nat = \"1s\"\nwhat = \"drain\"", "server"),
        ] {
            let error = Scenario::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn events_are_read() {
        let scenario =
            Scenario::parse("[[event]]\nat = \"1.5s\"\nwhat = \"drain\"\nserver = \"s1\"").unwrap();
        let drain = Event { at: Duration::from_millis(1_500), what: What::Drain { server: "s1".into() } };
        assert_eq!(scenario.events, [drain]);
    }
}
