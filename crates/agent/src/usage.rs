//! Measures how busy a process is: CPU as a share of what it may use, memory as a share of what it may hold.
//!
//! In: `/proc`, of this process or of another with all that came of it, and its control groups (v1, v2 or both) under a root that tests replace. Out: [`Measures`].
//! The CPU limit is the lowest quota from the process's own group upwards, without a quota the machine's cores;
//! the memory limit likewise, without one the machine's memory. What cannot be read is unknown, not zero.

use std::path::{Path, PathBuf};

use evenkeel_model::{Duration, Instant};

use crate::process::{kibibytes, memory, read, stat};

/// Limits are read again so often: containers are resized in place, but seldom.
const LIMITS_EACH: Duration = Duration::from_secs(10);

/// Shortest time over which CPU is measured: below it the 10 ms ticks are all there is.
const WINDOW_MIN: Duration = Duration::from_millis(50);

/// Measures one process over time.
#[derive(Debug)]
pub(crate) struct Usage {
    root: PathBuf,
    whose: Whose,
    cores: f64,
    limits: Limits,
    limits_at: Instant,
    cpu: Option<(Instant, f64)>,
    share: Option<f64>,
}

/// Which process.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Own,
    /// Another, and all that came of it.
    #[cfg(feature = "sidecar")]
    Tree(u32),
}

/// What the process may use.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limits {
    /// Cores.
    cpu: f64,
    /// Bytes.
    memory: Option<f64>,
}

impl Usage {
    /// Of this process on this machine.
    pub(crate) fn of_this_process(now: Instant) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        Self::under(PathBuf::from("/"), Whose::Own, cores, now)
    }

    /// Of another process and all that came of it. Memory that they share counts once as far as it is of files.
    #[cfg(feature = "sidecar")]
    pub(crate) fn of_process(id: u32, now: Instant) -> Self {
        let root = PathBuf::from("/");
        // Our own quota says nothing of its cores.
        let cores = read(&root, "proc/stat").map_or(0, |text| text.matches("\ncpu").count());
        Self::under(root, Whose::Tree(id), cores.max(1) as f64, now)
    }

    fn under(root: PathBuf, whose: Whose, cores: f64, now: Instant) -> Self {
        let limits = Limits::read(&root, &whose.id(), cores);
        let cpu = whose.cpu_seconds(&root).map(|used| (now, used));
        Self { root, whose, cores, limits, limits_at: now, cpu, share: None }
    }

    /// CPU since the last call, 0..=1; the last value again if that was a moment ago.
    pub(crate) fn cpu(&mut self, now: Instant) -> Option<f64> {
        if now.since(self.limits_at) >= LIMITS_EACH {
            self.limits = Limits::read(&self.root, &self.whose.id(), self.cores);
            self.limits_at = now;
        }
        let (from, before) = self.cpu?;
        let window = now.since(from);
        if window >= WINDOW_MIN {
            let used = self.whose.cpu_seconds(&self.root)?;
            self.cpu = Some((now, used));
            self.share = Some(((used - before) / window.as_secs_f64() / self.limits.cpu).clamp(0.0, 1.0));
        }
        self.share
    }

    /// Memory in use now, 0..=1.
    pub(crate) fn memory(&self) -> Option<f64> {
        let used = self.whose.memory(&self.root)?;
        Some((used / self.limits.memory?).clamp(0.0, 1.0))
    }
}

impl Whose {
    fn id(self) -> String {
        match self {
            Self::Own => String::from("self"),
            #[cfg(feature = "sidecar")]
            Self::Tree(id) => id.to_string(),
        }
    }

    /// CPU time so far.
    fn cpu_seconds(self, root: &Path) -> Option<f64> {
        let own = stat(root, &self.id())?.cpu_s;
        match self {
            Self::Own => Some(own),
            #[cfg(feature = "sidecar")]
            Self::Tree(id) => {
                // What an ended child used goes over to its parent, so the sum never falls by its end.
                let all = crate::process::tree(root, id).into_iter();
                let each = all.filter_map(|id| stat(root, &id.to_string()));
                Some(each.map(|stat| stat.cpu_s + stat.children_cpu_s).sum())
            }
        }
    }

    /// Bytes in use now.
    fn memory(self, root: &Path) -> Option<f64> {
        let own = memory(root, &self.id(), "VmRSS:")?;
        match self {
            Self::Own => Some(own),
            #[cfg(feature = "sidecar")]
            Self::Tree(id) => {
                let children = crate::process::tree(root, id).into_iter().skip(1);
                Some(own + children.filter_map(|id| memory(root, &id.to_string(), "RssAnon:")).sum::<f64>())
            }
        }
    }
}

impl Limits {
    fn read(root: &Path, id: &str, cores: f64) -> Self {
        let machine = read(root, "proc/meminfo").and_then(|text| kibibytes(&text, "MemTotal:"));
        let groups = Groups::read(root, id);
        let quota = groups.each("cpu").filter_map(|dir| cpu_quota(&dir)).fold(cores, f64::min);
        let limit = groups.each("memory").filter_map(|dir| memory_limit(&dir)).reduce(f64::min);
        Self {
            // A quota of a hundredth of a core is the least the kernel takes.
            cpu: quota.max(0.01),
            // Without a limit v1 shows a number beyond every machine.
            memory: match (limit, machine) {
                (Some(limit), Some(machine)) => Some(limit.min(machine)),
                (limit, machine) => limit.or(machine),
            },
        }
    }
}

/// The control groups of the process.
struct Groups {
    root: PathBuf,
    /// Lines of its `/proc/ID/cgroup`: controllers (empty for v2) and path.
    memberships: Vec<(String, String)>,
    mounts: Vec<Mount>,
}

struct Mount {
    /// Empty for v2.
    controllers: Vec<String>,
    /// The group that is visible at `point`.
    root: String,
    point: String,
}

impl Groups {
    fn read(root: &Path, id: &str) -> Self {
        let memberships = read(root, &format!("proc/{id}/cgroup")).unwrap_or_default();
        // Folders are read by us, so as we see them.
        let mounts = read(root, "proc/self/mountinfo").unwrap_or_default();
        Self {
            root: root.to_owned(),
            memberships: memberships.lines().filter_map(membership).collect(),
            mounts: mounts.lines().filter_map(mount).collect(),
        }
    }

    /// The folders that bound `controller` for this process, its own first, then upwards.
    fn each(&self, controller: &str) -> impl Iterator<Item = PathBuf> {
        let mut folders = Vec::new();
        for mount in &self.mounts {
            let versions = if mount.controllers.is_empty() {
                self.path("")
            } else if mount.controllers.iter().any(|name| name == controller) {
                self.path(controller)
            } else {
                None
            };
            let Some(path) = versions else { continue };
            // In a container without a group namespace only the part below the mounted group is visible.
            let inside = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or("");
            let point = self.root.join(mount.point.trim_start_matches('/'));
            let own = point.join(inside.trim_start_matches('/'));
            folders.extend(own.ancestors().take_while(|dir| dir.starts_with(&point)).map(Path::to_owned));
        }
        folders.into_iter()
    }

    /// The path of the process's group for a v1 controller, or with an empty name in v2.
    fn path(&self, controller: &str) -> Option<&str> {
        let member = |list: &str| {
            if controller.is_empty() {
                list.is_empty()
            } else {
                list.split(',').any(|name| name == controller)
            }
        };
        self.memberships.iter().find(|(list, _)| member(list)).map(|(_, path)| path.as_str())
    }
}

/// `4:memory:/docker/1`, `0::/user.slice`.
fn membership(line: &str) -> Option<(String, String)> {
    let mut parts = line.splitn(3, ':').skip(1);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

/// One line of mountinfo (proc(5)), if it is a control group.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let controllers = match right.next()? {
        "cgroup" => right.nth(1)?.split(',').map(str::to_owned).collect(),
        "cgroup2" => Vec::new(),
        _ => return None,
    };
    Some(Mount { controllers, root: root.to_owned(), point: point.replace("\\040", " ") })
}

/// Cores that the group may use: v2 `cpu.max`, v1 `cpu.cfs_quota_us`.
fn cpu_quota(dir: &Path) -> Option<f64> {
    let (quota, period) = match read(dir, "cpu.max") {
        Some(text) => {
            let mut parts = text.split_whitespace().map(str::parse::<f64>);
            // `max` is no number: no quota.
            (parts.next()?.ok()?, parts.next()?.ok()?)
        }
        None => (number(dir, "cpu.cfs_quota_us")?, number(dir, "cpu.cfs_period_us")?),
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Bytes that the group may hold: v2 `memory.max`, v1 `memory.limit_in_bytes`.
fn memory_limit(dir: &Path) -> Option<f64> {
    number(dir, "memory.max").or_else(|| number(dir, "memory.limit_in_bytes")).filter(|&limit| limit > 0.0)
}

fn number(dir: &Path, file: &str) -> Option<f64> {
    read(dir, file)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = 1_073_741_824.0;

    fn limits(fixture: &str) -> Limits {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/machines").join(fixture);
        assert!(root.is_dir(), "{fixture}");
        Limits::read(&root, "self", 8.0)
    }

    #[test]
    fn limits_of_a_v2_container_are_its_own() {
        assert_eq!(limits("v2-container"), Limits { cpu: 1.5, memory: Some(0.5 * GIB) });
    }

    #[test]
    fn limits_of_a_v2_service_come_from_the_slice_above_where_that_is_tighter() {
        assert_eq!(limits("v2-service"), Limits { cpu: 2.0, memory: Some(2.0 * GIB) });
    }

    #[test]
    fn limits_of_a_v1_container_are_found_below_the_mounted_group() {
        assert_eq!(limits("v1-container"), Limits { cpu: 0.5, memory: Some(0.25 * GIB) });
    }

    #[test]
    fn without_limits_the_machine_is_the_limit() {
        assert_eq!(limits("v1-unlimited"), Limits { cpu: 8.0, memory: Some(16.0 * GIB) });
        assert_eq!(limits("v2-unlimited"), Limits { cpu: 8.0, memory: Some(16.0 * GIB) });
    }

    #[test]
    fn cpu_is_the_share_of_the_quota_used_since_the_last_look() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/machines/v2-container");
        // The fixture stands still at 3.00 s; a quarter second over one second of a 1.5 core quota is a sixth.
        let mut usage = Usage::under(root, Whose::Own, 8.0, Instant::ZERO);
        usage.cpu = Some((Instant::ZERO, 2.75));
        let share = usage.cpu(Instant::from_millis(1_000)).unwrap();
        assert!((share - 0.25 / 1.5).abs() < 1e-9, "{share}");
        assert_eq!(usage.cpu(Instant::from_millis(1_010)), Some(share), "too short to measure");
        assert_eq!(usage.memory(), Some(0.25));
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let mut usage = Usage::under(PathBuf::from("/nowhere"), Whose::Own, 2.0, Instant::ZERO);
        assert_eq!((usage.cpu(Instant::from_millis(1_000)), usage.memory()), (None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_some_memory_and_some_cpu() {
        let mut usage = Usage::of_this_process(Instant::ZERO);
        let before = usage.cpu.unwrap().1;
        let mut sum = 0u64;
        while Whose::Own.cpu_seconds(Path::new("/")).unwrap() < before + 0.05 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(usage.cpu(Instant::from_millis(1_000)).unwrap() > 0.0);
        let memory = usage.memory().unwrap();
        assert!(memory > 0.0 && memory < 1.0, "{memory}");
    }
}
