//! Messages to text: one JSON object, `op` first, absent fields left out.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::fmt::Write;

use evenkeel_model::{Connections, Desired, Duration, Fence, Instant, Measures, Report, Totals};

use super::{Down, Hello, Key, Up, VERSION};

/// One message of an agent as text.
#[must_use]
pub fn encode_up(message: &Up) -> String {
    match message {
        Up::Hello(hello) => encode_hello(hello),
        Up::Report(report) => encode_report(report),
        Up::Event(events) => Object::op("event")
            .list("events", events.iter(), |event| {
                Object::new().text("rid", &event.rid).text("state", event.state.as_str()).end()
            })
            .end(),
        Up::Moved(moved) => Object::op("moved")
            .text("mid", &moved.mid)
            .text("result", moved.result.as_str())
            .optional_text("why", moved.why.as_deref())
            .end(),
        Up::Applied(fence) => Object::op("applied").fence(*fence).end(),
        Up::Drained(fence) => Object::op("drained").fence(*fence).end(),
    }
}

/// One message of a node as text, with the node's time.
#[must_use]
pub fn encode_down(message: &Down, now: Instant) -> String {
    match message {
        Down::Welcome(welcome) => Object::op("welcome")
            .integer("now_ms", now.as_millis())
            .duration("report_ms", Some(welcome.report))
            .list("keys", welcome.keys.iter(), encode_key)
            .optional_text("credential", welcome.credential.as_deref())
            .end(),
        Down::Desired(desired) => encode_desired(desired, now),
        Down::Keys(keys) => {
            Object::op("keys").integer("now_ms", now.as_millis()).list("keys", keys.iter(), encode_key).end()
        }
        Down::Stale { known } => {
            Object::op("stale").integer("now_ms", now.as_millis()).integer("known", known.get()).end()
        }
        Down::Error { why } => Object::op("error").integer("now_ms", now.as_millis()).text("why", why).end(),
    }
}

/// The bare `desired` object: the message on the link and the answer to a posted report or an order.
#[must_use]
pub fn encode_desired(desired: &Desired, now: Instant) -> String {
    Object::op("desired")
        .integer("now_ms", now.as_millis())
        .fence(desired.fence)
        .duration("lease_ms", Some(desired.lease))
        .text("state", desired.state.as_str())
        // The wire's bound on counts; "no limit" and the bound mean the same.
        .integer("target", u64::from(desired.target.get()).min(evenkeel_model::report::CONNECTIONS_MAX))
        .number("moves_per_s", Some(desired.moves_per_s.get()))
        .duration("deadline_ms", desired.deadline)
        .text("select", desired.select.as_str())
        .end()
}

/// A `report` message; without its `op`, which is ignored there, it is also the body of a posted report.
#[must_use]
pub fn encode_report(report: &Report) -> String {
    let none = Measures::default();
    let averaged = report.averaged.as_ref().unwrap_or(&none);
    Object::op("report")
        .integer("inc", report.inc.get())
        .integer("seq", report.seq)
        .integer("connections", report.connections.get().into())
        .integer("movable", report.movable.get().into())
        .number("cpu", report.raw.cpu)
        .number("memory", report.raw.memory)
        .number("lag_ms", report.raw.lag_ms)
        .numbers("custom", &report.raw.custom)
        .number("cpu_avg", averaged.cpu)
        .number("memory_avg", averaged.memory)
        .number("lag_avg_ms", averaged.lag_ms)
        .numbers("custom_avg", &averaged.custom)
        .totals(report.totals.as_ref())
        .end()
}

fn encode_hello(hello: &Hello) -> String {
    let profile = &hello.profile;
    Object::op("hello")
        .integer("ver", VERSION)
        .text("id", hello.id.as_str())
        .optional_text("fleet", profile.fleet.as_ref().map(|fleet| fleet.as_str()))
        .integer("inc", hello.inc.get())
        .text("url", &profile.url)
        .optional_text("public_url", profile.public_url.as_deref())
        .optional_text("zone", profile.zone.as_deref())
        .texts("labels", &profile.labels)
        .optional_integer("capacity", profile.capacity.map(Connections::get))
        .list("caps", hello.caps.iter(), |cap| string(cap))
        .raw("applied", hello.applied.map(|fence| Object::new().fence(fence).end()))
        .end()
}

fn encode_key(key: &Key) -> String {
    Object::new().text("kty", "oct").text("kid", &key.kid).text("alg", &key.alg).text("k", &key.k).end()
}

fn string(text: &str) -> String {
    // Strings always serialise.
    serde_json::to_string(text).unwrap_or_else(|_| String::from("\"\""))
}

/// An object being written. Numbers that JSON cannot hold are left out: absent means unknown.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self(String::from("{"))
    }

    fn op(name: &str) -> Self {
        Self::new().text("op", name)
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }

    fn raw(mut self, name: &str, value: Option<String>) -> Self {
        if let Some(value) = value {
            if self.0.len() > 1 {
                self.0.push(',');
            }
            self.0.push_str(&string(name));
            self.0.push(':');
            self.0.push_str(&value);
        }
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        self.raw(name, Some(string(text)))
    }

    fn optional_text(self, name: &str, text: Option<&str>) -> Self {
        self.raw(name, text.map(string))
    }

    fn integer(mut self, name: &str, number: u64) -> Self {
        self = self.raw(name, Some(String::new()));
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{number}");
        self
    }

    fn optional_integer(self, name: &str, number: Option<u32>) -> Self {
        match number {
            Some(number) => self.integer(name, number.into()),
            None => self,
        }
    }

    fn duration(self, name: &str, duration: Option<Duration>) -> Self {
        match duration {
            Some(duration) => self.integer(name, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
            None => self,
        }
    }

    fn number(self, name: &str, number: Option<f64>) -> Self {
        self.raw(name, number.filter(|number| number.is_finite()).map(|number| alloc::format!("{number}")))
    }

    fn numbers(self, name: &str, numbers: &BTreeMap<String, f64>) -> Self {
        if numbers.is_empty() {
            return self;
        }
        let inner = numbers.iter().fold(Self::new(), |object, (key, value)| object.number(key, Some(*value)));
        self.raw(name, Some(inner.end()))
    }

    fn texts(self, name: &str, texts: &BTreeMap<String, String>) -> Self {
        if texts.is_empty() {
            return self;
        }
        let inner = texts.iter().fold(Self::new(), |object, (key, value)| object.text(key, value));
        self.raw(name, Some(inner.end()))
    }

    fn list<T>(mut self, name: &str, items: impl Iterator<Item = T>, item: impl Fn(T) -> String) -> Self {
        self = self.raw(name, Some(String::from("[")));
        for (index, value) in items.enumerate() {
            if index > 0 {
                self.0.push(',');
            }
            self.0.push_str(&item(value));
        }
        self.0.push(']');
        self
    }

    fn fence(self, fence: Fence) -> Self {
        self.integer("epoch", fence.epoch.get()).integer("gen", fence.generation.get())
    }

    fn totals(self, totals: Option<&Totals>) -> Self {
        let Some(totals) = totals else { return self };
        self.integer("accepted_total", totals.accepted)
            .integer("closed_total", totals.closed)
            .integer("closed_abnormal_total", totals.closed_abnormal)
            .integer("refused_total", totals.refused)
    }
}
