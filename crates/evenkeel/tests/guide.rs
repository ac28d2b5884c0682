//! docs/guide/move-axum.md, step by step as it stands there but for the ports, with the real binary.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const GUIDE: &str = include_str!("../../../docs/guide/move-axum.md");
const SERVER: &str = include_str!("../../agent/examples/axum.rs");
const CLIENT: &str = include_str!("../../client/examples/count.rs");

const PATIENCE: Duration = Duration::from_secs(60);

/// The guide with other ports, in a folder of its own.
struct Guide {
    text: String,
    folder: PathBuf,
}

impl Guide {
    fn new() -> Self {
        let free: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut text = GUIDE.to_owned();
        for (listener, port) in free.iter().zip(["8080", "9900", "9001", "9002"]) {
            text = text.replace(&format!(":{port}"), &format!(":{}", listener.local_addr().unwrap().port()));
        }
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("guide-axum-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = fenced(&text, "toml name=evenkeel.toml").remove(0);
        std::fs::write(folder.join("evenkeel.toml"), config).unwrap();
        Self { text, folder }
    }

    /// Starts the one command that has this word in it.
    fn run(&self, word: &str) -> Child {
        let commands = fenced(&self.text, "sh");
        let command = commands.iter().find(|command| command.contains(word)).expect(word);
        let mut words = command.split_whitespace().peekable();
        let mut settings = Vec::new();
        while let Some(setting) = words.next_if(|word| word.contains('=')) {
            settings.push(setting.split_once('=').unwrap());
        }
        Command::new(program(words.next().unwrap()))
            .args(words)
            .envs(settings)
            .env("CHAT_NODE", self.admin())
            .current_dir(&self.folder)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn admin(&self) -> String {
        let line = self.text.lines().find(|line| line.starts_with("listen = \"")).unwrap();
        format!("http://{}", line.split('"').nth(1).unwrap())
    }
}

/// The blocks of that kind.
fn fenced(text: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn program(name: &str) -> PathBuf {
    if name == "evenkeel" {
        return env!("CARGO_BIN_EXE_evenkeel").into();
    }
    let path = Path::new(env!("CARGO_BIN_EXE_evenkeel")).with_file_name("examples").join(name);
    assert!(path.exists(), "build it with `cargo build -p evenkeel --examples`: {}", path.display());
    path
}

fn lines(process: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(process.stdout.take().unwrap()).lines()
}

/// The first line with this in it.
async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, part: &str) {
    let found = async { while !lines.next_line().await.unwrap().expect(part).contains(part) {} };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no {part:?} within {PATIENCE:?}"));
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            // sleep: between two looks at the condition
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"));
}

#[test]
fn the_guide_shows_the_examples_as_they_are_compiled() {
    let blocks = fenced(GUIDE, "rust");
    assert_eq!(blocks.len(), 4);
    let plain = |code: &str| code.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    for block in blocks {
        let shown = plain(&block);
        assert!(plain(SERVER).contains(&shown) || plain(CLIENT).contains(&shown), "not compiled:\n{block}");
    }
}

#[tokio::test]
async fn who_follows_the_guide_moves_a_client_without_missing_a_message() {
    let guide = Guide::new();
    let _serve = guide.run("evenkeel serve");
    until("a token", async || guide.folder.join("admin.token").exists()).await;
    let mut first = guide.run("CHAT_ID=chat-1");
    line_with(&mut lines(&mut first), "listening").await;
    let mut client = guide.run("guide_client");
    let mut said = lines(&mut client);
    line_with(&mut said, "Ada #5: hello 5").await;
    let mut second = guide.run("CHAT_ID=chat-2");
    line_with(&mut lines(&mut second), "listening").await;

    let (mut number, mut moved) = (5, false);
    let talk = async {
        while !moved || number < 100 {
            let line = said.next_line().await.unwrap().expect("an answer");
            if line == "moved" {
                moved = true;
                continue;
            }
            number += 1;
            assert_eq!(line, format!("Ada #{number}: hello {number}"));
        }
    };
    // Refused until the second server has told of itself.
    let drained = until("the drain", async || guide.run("evenkeel drain").wait().await.unwrap().success());
    tokio::join!(drained, async { timeout(PATIENCE, talk).await.expect("the client to be moved") });
    first.kill().await.unwrap();
    line_with(&mut said, &format!("Ada #{}", number + 20)).await;
    drop(client);
    std::fs::remove_dir_all(&guide.folder).unwrap();
}
