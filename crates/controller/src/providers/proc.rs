//! Processes by pid, safely: a pid is only believed together with its start time or with our mark in its
//! environment, and is held by a pidfd from then on, so that a reused pid is never watched or signalled.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, getpgid, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Environment variable that marks our servers: `<fleet>/<server>/<nonce>`.
pub(super) const MARK: &str = "EVENKEEL_SERVER";

/// A process that we hold on to.
#[derive(Debug)]
pub(super) struct Held {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    began: Option<u64>,
}

impl Held {
    /// Takes hold of a process. Needs a runtime with I/O.
    // Deprecated because a type could change its descriptor while it is registered. An `OwnedFd` cannot, and the
    // successor is an unsafe function, which this project denies.
    #[allow(deprecated)]
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid: number, pidfd, began: start_time(pid)? })
    }

    /// Takes hold of a process only if it is the one that began then, in this boot of the machine. `None`: that one
    /// is gone.
    ///
    /// # Errors
    /// When it cannot be told, for example without a free descriptor. It may well be there.
    pub(super) fn if_began(pid: u32, began: u64, boot: &str) -> io::Result<Option<Self>> {
        // Looked at after taking hold: from here on the pid cannot be another process's.
        let held = gone_is_none(Self::of(pid))?;
        Ok(if boot_id()? == boot { held.filter(|held| held.began == Some(began)) } else { None })
    }

    /// Takes hold of a process only if it carries `mark`. `None`: it does not, or is gone.
    ///
    /// # Errors
    /// When it cannot be told.
    pub(super) fn if_marked(pid: u32, mark: &str) -> io::Result<Option<Self>> {
        let held = gone_is_none(Self::of(pid))?;
        Ok(if is_marked(pid, mark)? { held } else { None })
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Its start time.
    pub(super) const fn began(&self) -> Option<u64> {
        self.began
    }

    /// Waits until it has ended.
    ///
    /// # Cancel safety
    /// Yes.
    pub(super) async fn ended(&self) {
        // A pidfd stays readable once its process has ended; an error would mean that the runtime ends.
        let _ = self.pidfd.readable().await;
    }

    /// Signals it once and, where it leads one, its process group.
    pub(super) fn signal(&self, signal: Signal) {
        // A group is named by a pid, and the system reaps an adopted process without us: whether the pid is still
        // its own is looked at right before.
        let leads = self.began.is_some()
            && start_time(self.pid()).is_ok_and(|began| began == self.began)
            && getpgid(Some(self.pid)).is_ok_and(|group| group == self.pid);
        if leads && kill_process_group(self.pid, signal).is_ok() {
            return;
        }
        // "No such process" is what we wanted.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }
}

/// Field 22 of `/proc/PID/stat`: ticks from boot to the start of the process. `None`: there is no such process.
///
/// # Errors
/// When it cannot be told.
pub(super) fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = gone_is_none(fs::read_to_string(format!("/proc/{pid}/stat")))?;
    // The second field is the name in parentheses and may hold spaces and parentheses.
    let field = stat.as_deref().and_then(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(22 - 3));
    Ok(field.and_then(|field| field.parse().ok()))
}

/// Names this boot of the machine.
///
/// # Errors
/// When it cannot be told.
pub(super) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}

fn is_marked(pid: u32, mark: &str) -> io::Result<bool> {
    let wanted = format!("{MARK}={mark}");
    let environ = match gone_is_none(fs::read(format!("/proc/{pid}/environ"))) {
        // Another user's process is none of ours.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        read => read?,
    };
    Ok(environ
        .is_some_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())))
}

/// Every process that carries `mark`, the leaders of process groups first. Reads all of `/proc`: call it from
/// `spawn_blocking`.
///
/// # Errors
/// When it cannot be told.
pub(super) fn marked(mark: &str) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && is_marked(pid, mark)?
        {
            found.push(pid);
        }
    }
    found.sort_by_key(|pid| (!leads_group(*pid), *pid));
    Ok(found)
}

/// A process that is not there is an answer, not an error.
fn gone_is_none<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn leads_group(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| getpgid(Some(pid)).is_ok_and(|group| group == pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_time_reads_and_stays() {
        let own = std::process::id();
        let began = start_time(own).unwrap();
        assert!(began.unwrap() > 0);
        assert_eq!(start_time(own).unwrap(), began);
        assert_eq!(start_time(u32::MAX).unwrap(), None);
    }

    /// A second SIGTERM means "at once" to many servers, our own among them.
    #[tokio::test]
    async fn a_signal_reaches_the_leader_of_its_group_once() {
        use std::os::unix::process::CommandExt;
        let path = crate::testing::directory("proc").join("log");
        let script = "trap 'echo term' TERM; echo up; while :; do :; done";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdout(fs::File::create(&path).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let held = Held::of(child.id()).unwrap();
        let lines = async |at_least: usize| {
            let clock = evenkeel_runtime::Clock::start();
            let deadline = clock.now() + evenkeel_model::Duration::from_secs(20);
            loop {
                let lines = fs::read_to_string(&path).unwrap().lines().count();
                if lines >= at_least || clock.now() > deadline {
                    return lines;
                }
                tokio::task::yield_now().await;
            }
        };
        let mut seen = lines(1).await;
        for _ in 0..500 {
            held.signal(Signal::TERM);
            seen = lines(seen + 1).await;
        }
        held.signal(Signal::KILL);
        held.ended().await;
        child.wait().unwrap();
        assert_eq!(lines(0).await, 501);
    }

    #[tokio::test]
    async fn process_is_only_believed_with_its_start_time_or_mark() {
        let own = std::process::id();
        let (began, boot) = (start_time(own).unwrap().unwrap(), boot_id().unwrap());
        assert!(Held::if_began(own, began, &boot).unwrap().is_some());
        assert!(Held::if_began(own, began + 1, &boot).unwrap().is_none());
        assert!(Held::if_began(own, began, "another boot").unwrap().is_none());
        assert!(Held::if_marked(own, "f/s/nonce").unwrap().is_none());
        assert_eq!(marked("f/s/nonce").unwrap(), [0; 0]);
    }
}
