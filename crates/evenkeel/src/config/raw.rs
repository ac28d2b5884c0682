//! The file as it is written: every key that exists, every value as it came.
//!
//! Unknown keys are refused here by serde, one by one (`read`). Scalars stay [`toml::Value`]s so that a wrong type is reported by
//! `check` with its key path, range and example like any other wrong value. The same structs print the effective
//! configuration. Keys of features that are not built yet are listed so that they are refused by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Value;

/// Named tables in the order of their names.
pub(crate) type Named<T> = BTreeMap<String, T>;

macro_rules! raw {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $name {
            $(#[serde(skip_serializing_if = "Option::is_none")] pub(crate) $field: Option<$kind>,)*
        }
    };
}

raw!(
    /// The whole file.
    RawFile {
        admin: RawAdmin,
        gateway: RawGateway,
        log: RawLog,
        store: RawStore,
        fleets: Named<RawFleet>,
        routes: Vec<RawRoute>,
        dns: Value,
        drivers: Value,
        cluster: Value,
    }
);
raw!(
    /// `[admin]`
    RawAdmin { listen: Value, token_file: Value, hosts: Value, tls: Value }
);
raw!(
    /// `[log]`
    RawLog { level: Value, format: Value }
);
raw!(
    /// `[store]`
    RawStore { dir: Value }
);
raw!(
    /// `[gateway]`
    RawGateway {
        id: Value,
        listen: Value,
        public_url: Value,
        engine: Value,
        threads: Value,
        connections_max: Value,
        client_head_timeout: Value,
        connect_timeout: Value,
        server_head_timeout: Value,
        retries: Value,
        close_timeout: Value,
        write_timeout: Value,
        half_open_timeout: Value,
        long_poll_timeout: Value,
        idle_timeout: Value,
        stop_within: Value,
        handshakes_per_prefix_max: Value,
        ping_interval: Value,
        tls: Value,
        limits: Value,
        trusted_proxies: Value,
        proxy_protocol: Value,
    }
);
raw!(
    /// `[fleets.NAME]`
    RawFleet {
        scheme: Value,
        pick: Value,
        speed: Value,
        key_file: Value,
        origins: Value,
        servers: Vec<RawServer>,
        score: RawScore,
        capacity: RawCapacity,
        health: RawHealth,
        place: RawPlace,
        check: RawCheck,
        provider: RawProvider,
        scale: RawScale,
        r#move: RawMove,
    }
);
raw!(
    /// One of `servers`.
    RawServer {
        id: Value,
        url: Value,
        public_url: Value,
        capacity: Value,
        zone: Value,
        labels: Named<Value>,
        addresses: Value,
    }
);
raw!(
    /// `[fleets.NAME.score]`
    RawScore {
        combine: Value,
        cpu: Value,
        memory: Value,
        lag: Value,
        tau: Value,
        weights: Named<Value>,
        custom: Named<RawTerm>,
    }
);
raw!(
    /// One of `[fleets.NAME.score.custom]`.
    RawTerm { full: Value, elastic: Value }
);
raw!(
    /// `[fleets.NAME.capacity]`
    RawCapacity {
        assumed: Value,
        cost_window: Value,
        trust_from: Value,
        overload_after: Value,
        overload_factor: Value,
        overload_release_below: Value,
        overload_release_after: Value,
    }
);
raw!(
    /// `[fleets.NAME.health]`
    RawHealth { report_interval: Value, suspect_after: Value, act_after: Value, dead_after: Value }
);
raw!(
    /// `[fleets.NAME.place]`
    RawPlace {
        admit_per_s: Value,
        admit_burst: Value,
        slow_start: Value,
        slow_start_floor: Value,
        pending_ttl: Value,
        admission_wait: Value,
        admission_queue: Value,
    }
);
raw!(
    /// `[fleets.NAME.check]`
    RawCheck { kind: Value, path: Value, interval: Value, timeout: Value, fall: Value, rise: Value }
);
raw!(
    /// `[fleets.NAME.provider]`
    RawProvider { kind: Value, command: Value, env: Named<Value>, grace: Value, log_dir: Value }
);
raw!(
    /// `[fleets.NAME.scale]`
    RawScale {
        min: Value,
        max: Value,
        up_level: Value,
        up_buffer_level: Value,
        down_level: Value,
        down_buffer_level: Value,
        buffer: Value,
        buffer_ratio: Value,
        window: Value,
        step_max: Value,
        boot_time: Value,
        failed_boots_max: Value,
        round: Value,
        dry_run: Value,
    }
);
raw!(
    /// `[fleets.NAME.move]`
    RawMove {
        pace: Value,
        soft: Value,
        deadline: Value,
        deadline_policy: Value,
        close_code: Value,
        select: Value,
        round: Value,
        arrivals_window: Value,
        shed_lasts: Value,
        overload_from: Value,
        start: RawBand,
        stop: RawBand,
    }
);
raw!(
    /// `start` and `stop` of `[fleets.NAME.move]`.
    RawBand { ratio: Value, sqrt: Value, min: Value }
);
raw!(
    /// One of `[[routes]]`.
    RawRoute {
        host: Value,
        path: Value,
        fleet: Value,
        kind: Value,
        scheme: Value,
        origins: Value,
        location: Value,
        auth: RawAuth,
    }
);
raw!(
    /// `auth` of one of `[[routes]]`.
    RawAuth { url: Value, timeout: Value }
);
