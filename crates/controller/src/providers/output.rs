//! Output of server processes: always files, never pipes, so that a server outlives us and never blocks on us.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// A log longer than this is set aside as `<id>.log.1` at the server's next start.
const ROTATE_ABOVE: u64 = 16 * 1024 * 1024;
/// How much of the end is read to find the last lines.
const TAIL: u64 = 4 * 1024;
/// Lines told of an early death.
const LINES: usize = 5;
/// Longest line told, in characters.
const LINE_MAX: usize = 200;

/// Opens a server's log for appending and says where the new process's output begins.
pub(super) fn open(path: &Path) -> io::Result<(File, u64)> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > ROTATE_ABOVE) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let begin = file.seek(SeekFrom::End(0))?;
    Ok((file, begin))
}

/// The last lines written since `begin`, joined by ` | `, without what could change how a terminal shows the rest.
/// Empty if there are none.
pub(super) fn last_lines(path: &Path, begin: u64) -> String {
    tail(path, begin).map(|bytes| lines_of(&bytes)).unwrap_or_default()
}

fn tail(path: &Path, begin: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    let from = begin.max(end.saturating_sub(TAIL));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lines_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .map(|line| line.chars().filter(|c| is_harmless(*c)).take(LINE_MAX).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .take(LINES)
        .collect();
    lines.reverse();
    lines.join(" | ")
}

/// Neither a control character nor one that turns the direction of what follows (UAX 9).
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_those_of_this_process_and_harmless() {
        let path = crate::testing::directory("output").join("s1.log");
        fs::write(&path, "of an earlier process\n").unwrap();
        let (_file, begin) = open(&path).unwrap();
        assert_eq!(last_lines(&path, begin), "");
        let more: String = (0..2_000).map(|n| format!("line {n}\n")).collect();
        fs::write(&path, format!("of an earlier process\n{more}\x1b[31mred\x07 \u{202e}der\n\n")).unwrap();
        assert_eq!(last_lines(&path, begin), "line 1996 | line 1997 | line 1998 | line 1999 | [31mred der");
    }
}
