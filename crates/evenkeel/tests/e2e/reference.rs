//! The reference pages say what the binary knows.

use std::fs;
use std::path::Path;

use crate::kit::World;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_key_that_print_config_knows_is_described() {
    let world = World::new("reference-config");
    let run = world.run(&["print-config", "--demo"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let page = page("config.md");
    let keys = run.stdout.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.trim());
    let missing: Vec<_> = keys.filter(|key| !page.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/reference/config.md does not describe {missing:?}");
    let tables = run.stdout.lines().filter(|line| line.starts_with('[')).count();
    assert!(tables > 8, "print-config prints all tables: {}", run.stdout);
}

#[test]
fn every_command_is_described_and_every_described_command_exists() {
    let world = World::new("reference-cli");
    let help = world.run(&["--help"]).stdout;
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut commands: Vec<_> = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    commands.sort_unstable();
    let page = page("cli.md");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split([' ', '`']).next());
    let mut described: Vec<_> = rows.collect();
    described.sort_unstable();
    assert_eq!(described, commands);
}
