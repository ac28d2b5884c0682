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
}

impl Held {
    /// Takes hold of a process. Needs a runtime with I/O.
    // Deprecated because a type could change its descriptor while it is registered. An `OwnedFd` cannot, and the
    // successor is an unsafe function, which this project denies.
    #[allow(deprecated)]
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd: AsyncFd::with_interest(pidfd, Interest::READABLE)? })
    }

    /// Takes hold of a process only if it is the one that began then, in this boot of the machine.
    pub(super) fn if_began(pid: u32, began: u64, boot: &str) -> Option<Self> {
        let held = Self::of(pid).ok()?;
        // Looked at after taking hold: from here on the pid cannot be another process's.
        (start_time(pid) == Some(began) && boot_id().as_deref() == Some(boot)).then_some(held)
    }

    /// Takes hold of a process only if it carries `mark`.
    pub(super) fn if_marked(pid: u32, mark: &str) -> Option<Self> {
        let held = Self::of(pid).ok()?;
        is_marked(pid, mark).then_some(held)
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until it has ended.
    ///
    /// # Cancel safety
    /// Yes.
    pub(super) async fn ended(&self) {
        // A pidfd stays readable once its process has ended; an error would mean that the runtime ends.
        let _ = self.pidfd.readable().await;
    }

    /// Signals it and, where it leads one, its process group.
    pub(super) fn signal(&self, signal: Signal) {
        if getpgid(Some(self.pid)).is_ok_and(|group| group == self.pid) {
            // The group cannot be another's while its leader is not reaped.
            let _ = kill_process_group(self.pid, signal);
        }
        // "No such process" is what we wanted.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }
}

/// Field 22 of `/proc/PID/stat`: ticks from boot to the start of the process.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold spaces and parentheses.
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(22 - 3)?.parse().ok()
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

fn is_marked(pid: u32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}

/// Every process that carries `mark`, the leaders of process groups first. Reads all of `/proc`: call it from
/// `spawn_blocking`.
pub(super) fn marked(mark: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_marked(*pid, mark))
        .collect();
    found.sort_by_key(|pid| (!leads_group(*pid), *pid));
    found
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
        assert!(start_time(own).unwrap() > 0);
        assert_eq!(start_time(own), start_time(own));
        assert_eq!(start_time(u32::MAX), None);
    }

    #[tokio::test]
    async fn process_is_only_believed_with_its_start_time_or_mark() {
        let own = std::process::id();
        let (began, boot) = (start_time(own).unwrap(), boot_id().unwrap());
        assert!(Held::if_began(own, began, &boot).is_some());
        assert!(Held::if_began(own, began + 1, &boot).is_none());
        assert!(Held::if_began(own, began, "another boot").is_none());
        assert!(Held::if_marked(own, "f/s/nonce").is_none());
        assert_eq!(marked("f/s/nonce"), [0; 0]);
    }
}
