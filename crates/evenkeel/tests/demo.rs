//! `evenkeel demo` as a process of its own: it ends green by itself and leaves nothing behind.

use std::process::{Command, Output};

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).arg("demo").args(args).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The number right before `word` in the line of the summary that begins with `title`.
fn figure(out: &str, title: &str, word: &str) -> u64 {
    let line = out.lines().rfind(|line| line.trim_start().starts_with(title));
    let line = line.unwrap_or_else(|| panic!("no line {title:?} in\n{out}"));
    let before = line.split(word).next().unwrap_or_default();
    let number = before.split_whitespace().last().and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number before {word:?} in {line:?}"))
}

/// Processes and files that carry the demo's marks.
fn left_behind(marks: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(text(&command).replace('\0', " "))
    });
    let files = std::fs::read_dir(std::env::temp_dir())
        .unwrap()
        .flatten()
        .map(|entry| text(entry.path().as_os_str().as_encoded_bytes()));
    processes.chain(files).filter(|name| name.contains(marks)).collect()
}

#[test]
fn demo_ends_by_itself_with_every_invariant_held_and_leaves_nothing_behind() {
    let child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["demo", "--duration", "30s", "--clients", "120"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let directory = format!("evenkeel-demo-{}", child.id());
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("Every invariant held"), "{out}");
    // Every client was placed, those of the killed and of the drained server more than once.
    assert!(figure(&out, "connections", "placed") >= 120 + 2 * 10, "{out}");
    assert!(figure(&out, "connections", "moved") >= 10, "{out}");
    assert_eq!(figure(&out, "connections", "handshake(s) failed"), 0, "{out}");
    assert!(figure(&out, "servers", "at most") > 2, "{out}");
    let (sent, echoed) = (figure(&out, "messages", "sent"), figure(&out, "messages", "echoed"));
    let lost = figure(&out, "messages", "lost");
    assert_eq!(sent, echoed + lost, "{out}");
    for what in [
        "was killed",
        "was drained on purpose",
        "ordered by an operator",
        "scale_up",
        "scale_down",
        "LC over time",
    ] {
        assert!(out.contains(what), "{what:?} is missing in\n{out}");
    }
    assert_eq!(left_behind(&directory), Vec::<String>::new());
}

#[test]
fn demo_with_more_clients_than_open_files_is_refused_with_the_maximum() {
    let output = demo(&["--clients", "1000000"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    let most: u64 =
        err.split("at most ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect(&err);
    assert!(most > 0 && most < 1_000_000, "{err}");
    assert!(err.contains("open-file limit"), "{err}");
}
