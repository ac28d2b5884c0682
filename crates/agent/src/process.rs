//! Reads what the kernel says of a process under `/proc` (proc(5)), under a root that tests replace.

use std::fs;
use std::path::Path;

/// Ticks a second in `/proc`: fixed by the kernel's interface to user space on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// Of `/proc/ID/stat`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stat {
    /// CPU time of its threads so far.
    pub(crate) cpu_s: f64,
    /// The same of its ended children, once it waited for them.
    #[cfg(feature = "sidecar")]
    pub(crate) children_cpu_s: f64,
    /// The process that started it.
    #[cfg(feature = "sidecar")]
    pub(crate) parent: u32,
    /// It is over, and only its parent has not asked how.
    #[cfg(feature = "sidecar")]
    pub(crate) ended: bool,
    /// When it started, since the machine did.
    #[cfg(feature = "sidecar")]
    pub(crate) started_s: f64,
}

/// `None`: there is no such process, or it cannot be read.
pub(crate) fn stat(root: &Path, id: &str) -> Option<Stat> {
    let text = read(root, &format!("proc/{id}/stat"))?;
    // The name in parentheses may hold spaces and parentheses; the fields after it do not. The third of all is the
    // first of these.
    let fields: Vec<_> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let seconds = |nth: usize| Some(fields.get(nth - 3)?.parse::<f64>().ok()? / TICKS_PER_S);
    Some(Stat {
        cpu_s: seconds(14)? + seconds(15)?,
        #[cfg(feature = "sidecar")]
        children_cpu_s: seconds(16)? + seconds(17)?,
        #[cfg(feature = "sidecar")]
        parent: fields.get(4 - 3)?.parse().ok()?,
        #[cfg(feature = "sidecar")]
        ended: matches!(*fields.first()?, "Z" | "X"),
        #[cfg(feature = "sidecar")]
        started_s: seconds(22)?,
    })
}

/// Bytes of a `Name:  123 kB` line of its status.
pub(crate) fn memory(root: &Path, id: &str, name: &str) -> Option<f64> {
    kibibytes(&read(root, &format!("proc/{id}/status"))?, name)
}

/// The number of a `Name:  123 kB` line, in bytes.
pub(crate) fn kibibytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: f64 = line.trim().trim_end_matches("kB").trim_end().parse().ok()?;
    Some(number * 1_024.0)
}

pub(crate) fn read(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

/// The process and all that came of it, itself first.
#[cfg(feature = "sidecar")]
pub(crate) fn tree(root: &Path, id: u32) -> Vec<u32> {
    let mut all = vec![id];
    let mut next = 0;
    while let Some(&id) = all.get(next) {
        next += 1;
        let threads = fs::read_dir(root.join(format!("proc/{id}/task"))).into_iter().flatten().flatten();
        for thread in threads {
            // One that just ended has none.
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            // A parent names each child once, so this ends; ids are used again, so one may seem to come twice.
            let fresh = |id: &u32| !all.contains(id);
            let children: Vec<u32> =
                children.split_whitespace().filter_map(|id| id.parse().ok()).filter(fresh).collect();
            all.extend(children);
        }
    }
    all
}

/// Whose socket one of these is: of several processes that share it the one that began them all, or the oldest.
/// `None`: nobody's whom we may look at.
#[cfg(feature = "sidecar")]
pub(crate) fn owner(root: &Path, inodes: &[u32]) -> Option<u32> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let holds = |id: &u32| {
        let files = fs::read_dir(root.join(format!("proc/{id}/fd"))).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|to| to.to_str().is_some_and(|to| links.iter().any(|link| link == to)))
    };
    let all = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let owners: Vec<(u32, Stat)> =
        ids.filter(holds).filter_map(|id| Some((id, stat(root, &id.to_string())?))).collect();
    let began = |(_, stat): &&(u32, Stat)| owners.iter().all(|(other, _)| *other != stat.parent);
    owners
        .iter()
        .filter(began)
        .min_by(|a, b| a.1.started_s.total_cmp(&b.1.started_s).then(a.0.cmp(&b.0)))
        .map(|(id, _)| *id)
}

/// When the machine started, in seconds of Unix time.
#[cfg(feature = "sidecar")]
pub(crate) fn booted_s(root: &Path) -> Option<f64> {
    let text = read(root, "proc/stat")?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
