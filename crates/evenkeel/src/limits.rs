//! The open-file limit: each connection takes descriptors.

use evenkeel_gateway::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cli::UsageError;
use crate::config::Settings;
use crate::config::settings::Fleet;

/// Raises the soft limit to the hard one; what the system grants beyond asking is what counts anyway.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Without success the old limit stays, and the roles go by that.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Most files this process may have open.
pub(crate) fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

/// Most client connections the gateway takes: what the file says, if the open-file limit allows it.
///
/// # Errors
/// When more are asked for than fit: the gateway would take what agents and the admin listener need.
pub(crate) fn connections_max(settings: &Settings) -> Result<usize, UsageError> {
    let servers = settings.fleets.values().map(servers_expected).sum();
    most(settings.gateway.connections_max, open_files(), servers)
}

fn most(asked: Option<u32>, open_files: u64, servers: u64) -> Result<usize, UsageError> {
    let fit = Limits::connections_within(open_files, servers);
    match asked.map(|asked| usize::try_from(asked).unwrap_or(usize::MAX)) {
        Some(asked) if asked > fit => Err(UsageError(format!(
            "could not take gateway.connections_max = {asked}: at most {fit} connections fit the open-file limit of \
             {open_files} beside {servers} server(s); raise it with `ulimit -n`, or lower connections_max"
        ))),
        asked => Ok(asked.unwrap_or(fit)),
    }
}

/// Servers by name, and as many as its provider may start.
fn servers_expected(fleet: &Fleet) -> u64 {
    let started = fleet.law.scale.as_ref().map_or(0, |scale| u64::from(scale.max));
    fleet.servers.len() as u64 + started
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_connections_than_fit_are_refused_with_the_number_that_does() {
        assert_eq!(most(None, 1_024, 3).unwrap(), 394);
        assert_eq!(most(Some(394), 1_024, 3).unwrap(), 394);
        let refused = most(Some(395), 1_024, 3).unwrap_err().to_string();
        for part in
            ["gateway.connections_max = 395", "at most 394", "limit of 1024", "3 server(s)", "ulimit -n"]
        {
            assert!(refused.contains(part), "{part}: {refused}");
        }
    }

    #[test]
    fn servers_by_name_and_those_a_provider_may_start_are_expected() {
        let text = "[fleets.a]\nservers = [{ id = \"a\", url = \"ws://127.0.0.1:1\" }]\n\
                    [fleets.b.provider]\nkind = \"process\"\ncommand = [\"x\", \"{port}\"]\n\
                    [fleets.b.scale]\nmax = 40\n[[routes]]\nfleet = \"a\"\n";
        let here = std::path::Path::new(".");
        let settings =
            crate::config::from_text(text, "test", here, &crate::config::Overrides::default()).unwrap();
        assert_eq!(settings.fleets.values().map(servers_expected).sum::<u64>(), 41);
    }
}
