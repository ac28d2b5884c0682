//! The configuration: one TOML file, flags and variables over it, checked once into [`Settings`].
//!
//! In: a file, and [`Overrides`]. Out: [`Settings`], or a [`ConfigError`] that names every mistake by key path,
//! value, range and example. Invariant: what [`print`](print::print) writes reads back as the same settings.
//!
//! | step | module |
//! |---|---|
//! | what is written, unknown keys refused | [`raw`], [`read`] |
//! | what is meant, every value checked | [`check`], the control law's constants in [`law`] |
//! | what the roles are composed from | [`settings`] |
//! | and back to a file | [`mod@print`] |

pub(crate) mod check;
mod law;
pub(crate) mod print;
pub(crate) mod problem;
pub(crate) mod raw;
mod read;
pub(crate) mod settings;
pub(crate) mod unit;

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Value;

use problem::{Problem, Problems};
use raw::RawFile;
pub(crate) use settings::Settings;

/// Scalars of `[admin]`, `[gateway]` and `[log]` given as flag or variable: key path, text, and where from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides(pub(crate) Vec<Override>);

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Override {
    /// Table and key, for example `("admin", "listen")`.
    pub(crate) key: (&'static str, &'static str),
    /// As given.
    pub(crate) value: String,
    /// Flag or variable.
    pub(crate) set_by: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("could not take {name} as configuration: {why}")]
    Parse {
        /// The file's name.
        name: String,
        /// Line, column and what is wrong.
        why: String,
    },
    /// Values are wrong.
    #[error("could not take {name} as configuration: {}", Listed(problems))]
    Wrong {
        /// The file's name.
        name: String,
        /// All of them.
        problems: Vec<Problem>,
    },
}

struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} mistakes", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Reads a file and lays the overrides over it.
pub(crate) fn load(path: &Path, overrides: &Overrides) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    from_text(&text, &path.display().to_string(), base, overrides)
}

/// Reads a text as if it stood in a file of that name under `base`.
pub(crate) fn from_text(
    text: &str,
    name: &str,
    base: &Path,
    overrides: &Overrides,
) -> Result<Settings, ConfigError> {
    let mut unknown = Problems::default();
    let raw = read::read(text, &mut unknown).map_err(|error| ConfigError::Parse {
        name: name.to_owned(),
        why: error.to_string().trim_end().to_owned(),
    })?;
    checked(raw, name, base, overrides, unknown)
}

/// Checks a file that was put together in memory.
pub(crate) fn from_raw(
    raw: RawFile,
    name: &str,
    base: &Path,
    overrides: &Overrides,
) -> Result<Settings, ConfigError> {
    checked(raw, name, base, overrides, Problems::default())
}

/// Checks a file in which some problems were found already.
fn checked(
    mut raw: RawFile,
    name: &str,
    base: &Path,
    overrides: &Overrides,
    found: Problems,
) -> Result<Settings, ConfigError> {
    overrides.0.iter().for_each(|one| lay_over(&mut raw, one));
    let Problems(mut problems) = found;
    match raw.check(base) {
        Ok(settings) if problems.is_empty() => return Ok(settings),
        Ok(_) => {}
        Err(Problems(more)) => problems.extend(more),
    }
    for problem in &mut problems {
        let by = overrides.0.iter().find(|one| problem.key == format!("{}.{}", one.key.0, one.key.1));
        problem.set_by = by.map(|one| one.set_by.clone());
    }
    Err(ConfigError::Wrong { name: name.to_owned(), problems })
}

/// Puts one override in its place. The keys are those of [`crate::cli::Scalars`].
fn lay_over(raw: &mut RawFile, one: &Override) {
    let admin = raw.admin.get_or_insert_default();
    let gateway = raw.gateway.get_or_insert_default();
    let log = raw.log.get_or_insert_default();
    let place = match one.key {
        ("admin", "listen") => &mut admin.listen,
        ("admin", "token_file") => &mut admin.token_file,
        ("gateway", "id") => &mut gateway.id,
        ("gateway", "listen") => &mut gateway.listen,
        ("gateway", "public_url") => &mut gateway.public_url,
        ("gateway", "engine") => &mut gateway.engine,
        ("gateway", "threads") => &mut gateway.threads,
        ("gateway", "connections_max") => &mut gateway.connections_max,
        ("gateway", "client_head_timeout") => &mut gateway.client_head_timeout,
        ("gateway", "connect_timeout") => &mut gateway.connect_timeout,
        ("gateway", "server_head_timeout") => &mut gateway.server_head_timeout,
        ("gateway", "retries") => &mut gateway.retries,
        ("gateway", "close_timeout") => &mut gateway.close_timeout,
        ("gateway", "write_timeout") => &mut gateway.write_timeout,
        ("gateway", "half_open_timeout") => &mut gateway.half_open_timeout,
        ("gateway", "long_poll_timeout") => &mut gateway.long_poll_timeout,
        ("gateway", "idle_timeout") => &mut gateway.idle_timeout,
        ("gateway", "stop_within") => &mut gateway.stop_within,
        ("gateway", "handshakes_per_prefix_max") => &mut gateway.handshakes_per_prefix_max,
        ("log", "level") => &mut log.level,
        ("log", "format") => &mut log.format,
        _ => return,
    };
    *place = Some(scalar(one));
}

/// A flag's text as the scalar it would be in the file; lists are separated by commas.
fn scalar(one: &Override) -> Value {
    if one.key == ("gateway", "listen") {
        return Value::Array(
            one.value.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
        );
    }
    let whole = matches!(one.key.1, "threads" | "connections_max" | "retries" | "handshakes_per_prefix_max");
    match one.value.parse::<i64>() {
        Ok(number) if whole => Value::Integer(number),
        _ => Value::String(one.value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/configs").join(folder);
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn good_files_are_taken_and_read_back_the_same_when_printed() {
        for path in files("good") {
            let settings = load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
            let printed = print::print(&settings).unwrap();
            let base = path.parent().unwrap();
            let again = from_text(&printed, "printed", base, &Overrides::default());
            assert_eq!(
                again.unwrap_or_else(|error| panic!("{error}\n{printed}")),
                settings,
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn bad_files_are_refused_with_key_value_range_and_example() {
        let files = files("bad");
        assert!(files.len() > 40);
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            let error = load(&path, &Overrides::default()).map(drop).expect_err(&path.display().to_string());
            // As the command line prints it, with all its sources.
            let error = format!("{:#}", anyhow::Error::from(error));
            let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
            assert!(!expected.is_empty(), "{} expects nothing", path.display());
            for part in expected {
                assert!(error.contains(part), "{} lacks {part:?}:\n{error}", path.display());
            }
            assert!(error.matches("TOML parse error").count() <= 1, "said twice:\n{error}");
        }
    }

    #[test]
    fn wrong_flag_is_named_with_the_flag() {
        let one = Override {
            key: ("gateway", "retries"),
            value: String::from("many"),
            set_by: String::from("--gateway-retries or EVENKEEL_GATEWAY_RETRIES"),
        };
        let text = "[fleets.chat]\n";
        let error = from_text(text, "test", Path::new("."), &Overrides(vec![one])).unwrap_err().to_string();
        assert!(error.contains("gateway.retries = \"many\" (set by --gateway-retries"), "{error}");
    }

    #[test]
    fn placements_count_for_as_long_as_they_may_be_on_their_way() {
        let text = "[gateway]\nserver_head_timeout = \"20s\"\n[fleets.chat]\n";
        let settings = from_text(text, "test", Path::new("."), &Overrides::default()).unwrap();
        let law = &settings.fleets.values().next().unwrap().law;
        assert_eq!(law.place.pending_ttl, std::time::Duration::from_secs(21));
    }

    #[test]
    fn speed_divides_defaults_and_leaves_written_times() {
        let text = "[fleets.chat]\nspeed = 10\nmove = { soft = \"5s\" }\n";
        let settings = from_text(text, "test", Path::new("."), &Overrides::default()).unwrap();
        let law = &settings.fleets.values().next().unwrap().law;
        assert_eq!(law.moves.soft, std::time::Duration::from_secs(5));
        assert_eq!(law.moves.deadline, std::time::Duration::from_secs(60));
    }
}
