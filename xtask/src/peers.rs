//! Knows the programs that tests and benchmarks run against, and installs what is missing.
//!
//! On Debian as root a missing program is installed with apt-get, its service held back; elsewhere the command to
//! type is named and the run fails. Python's packages go into a virtual environment below `target/`, whoever runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program that we measure ourselves against or work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    program: &'static str,
    package: &'static str,
}

/// HAProxy, the proxy that benchmarks compare with.
pub(crate) const HAPROXY: Peer = Peer { program: "haproxy", package: "haproxy" };
/// nginx, the other one.
pub(crate) const NGINX: Peer = Peer { program: "nginx", package: "nginx-light" };

/// Node, which runs the TypeScript packages and their tests.
pub(crate) const NODE: Peer = Peer { program: "node", package: "nodejs" };
/// Installs what they need.
pub(crate) const NPM: Peer = Peer { program: "npm", package: "npm" };
/// The browser that clients are tried in.
pub(crate) const CHROMIUM: Peer = Peer { program: "chromium", package: "chromium" };
/// Python, which runs stock clients.
pub(crate) const PYTHON: Peer = Peer { program: "python3", package: "python3-venv" };

/// Stock clients of Python that tests dial with, pinned: what they do with an answer is what the tables in the
/// documentation say.
const PYTHON_PACKAGES: &[&str] = &["websockets==17.4", "websocket-client==1.9.2", "aiohttp==3.14.5"];

/// Everything that `cargo xtask test` needs besides cargo.
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure(&[NODE, NPM, CHROMIUM, PYTHON])?;
    ensure_python()
}

/// A virtual environment with the stock clients, in `target/peers/python`.
fn ensure_python() -> Result<()> {
    let folder = run::root().join("target/peers/python");
    let stamp = folder.join("packages");
    let wanted = PYTHON_PACKAGES.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    println!("installing Python's clients into target/peers/python: {}", PYTHON_PACKAGES.join(" "));
    let mut venv = run::command("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&folder);
    run::run(venv)
        .context("python3 makes no virtual environment; on Debian: apt-get install python3-venv")?;
    let mut pip = run::command(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_PACKAGES);
    run::run(pip)?;
    fs::write(&stamp, wanted).with_context(|| format!("could not write {}", stamp.display()))
}

/// Makes sure that all of them are there.
pub(crate) fn ensure(peers: &[Peer]) -> Result<()> {
    let missing: Vec<Peer> = peers.iter().copied().filter(|peer| !installed(*peer)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|peer| peer.program).collect();
    eprintln!("missing: {}", names.join(", "));
    if !can_install() {
        bail!("install what is missing and run this again: {}", install_line(&missing));
    }
    install(&missing)?;
    match missing.iter().find(|peer| !installed(**peer)) {
        Some(peer) => bail!("{} is still missing after: {}", peer.program, install_line(&missing)),
        None => Ok(()),
    }
}

fn installed(peer: Peer) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps daemons where an ordinary user's PATH does not look.
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.extend(["/usr/sbin", "/usr/local/sbin"].map(Into::into));
    places.iter().any(|place| place.join(peer.program).is_file())
}

fn install_line(peers: &[Peer]) -> String {
    let packages: Vec<_> = peers.iter().map(|peer| peer.package).collect();
    format!("apt-get install -y --no-install-recommends {}", packages.join(" "))
}

fn can_install() -> bool {
    let root = run::output({
        let mut id = run::command("id");
        id.arg("-u");
        id
    });
    Path::new("/etc/debian_version").exists() && root.is_ok_and(|id| id.trim() == "0")
}

fn install(peers: &[Peer]) -> Result<()> {
    let _held = ServicesHeld::hold()?;
    let mut update = run::command("apt-get");
    update.args(["update", "-q"]);
    run::run(update)?;
    let mut install = run::command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-q", "-y", "--no-install-recommends"]);
    install.args(peers.iter().map(|peer| peer.package));
    run::run(install)
}

/// While it lives, Debian starts no service of a package that it installs: a proxy that takes port 80 would
/// outlive the tests.
struct ServicesHeld {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl ServicesHeld {
    fn hold() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("could not write {POLICY}"))?;
        let held = Self { ours: true };
        let mut chmod = run::command("chmod");
        chmod.args(["755", POLICY]);
        run::run(chmod)?;
        Ok(held)
    }
}

impl Drop for ServicesHeld {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY).is_err() {
            eprintln!("could not remove {POLICY}: remove it, or services will not start on installation");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_peer_is_named_with_the_command_that_installs_it() {
        assert_eq!(
            install_line(&[HAPROXY, NGINX]),
            "apt-get install -y --no-install-recommends haproxy nginx-light"
        );
        assert!(!installed(Peer { program: "no-such-program-anywhere", package: "none" }));
        assert!(installed(Peer { program: "sh", package: "dash" }));
    }
}
