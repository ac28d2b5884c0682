//! One process that a scenario started: its output goes to a file, it is signalled and ended by its id.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::time::until;

/// A running or ended process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in `folder`, with both outputs appended to `NAME.log` there.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(&log)
                .expect("a log file in the folder of the test")
        };
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|error| panic!("could not start {command:?}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far, earlier lives of the same name included.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Bytes printed so far: a mark for [`Process::line_after`].
    pub(crate) fn printed(log: &Path) -> usize {
        fs::read(log).map_or(0, |bytes| bytes.len())
    }

    /// Waits for a line with `words` after a mark and gives the rest of that line. Panics if the process ends first.
    pub(crate) async fn line_after(&mut self, mark: usize, words: &str) -> String {
        let what = format!("{} prints {words:?}", self.name);
        until(&what, Duration::from_secs(30), || {
            let output = self.output();
            let new = output.get(mark..).unwrap_or_default();
            // Only whole lines: the rest may still be on its way.
            let whole = new.rfind('\n').map_or("", |end| &new[..end]);
            let rest = whole.lines().find_map(|line| Some(line.split_once(words)?.1.trim().to_owned()));
            if rest.is_none()
                && let Some(status) = self.ended()
            {
                panic!("{} ended with {status} before it printed {words:?}:\n{new}", self.name);
            }
            async { rest }
        })
        .await
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be asked for its status")
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        until(&what, deadline, || {
            let ended = self.ended();
            async move { ended }
        })
        .await
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Fails only for one that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Prints the end of its log, for a scenario that failed.
    pub(crate) fn dump(&self) {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LINES_DUMPED)..];
        eprintln!(
            "---- {} (pid {}), last {} lines of {}:",
            self.name,
            self.id(),
            shown.len(),
            self.log.display()
        );
        eprintln!("{}", shown.join("\n"));
    }
}

/// Enough for the story of one scenario.
const LINES_DUMPED: usize = 80;

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process by its id; one that is gone is no error.
pub(crate) fn send(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Ids of all processes that are alive and whose command line holds `word`.
pub(crate) fn with_word(word: &str) -> Vec<u32> {
    let ids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<u32> = ids
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id: &u32| {
            // The command line of one that has ended but was not waited for is empty.
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').any(|argument| argument.contains(word))
        })
        .collect();
    found.sort_unstable();
    found
}
