//! Commands in the documentation are commands that exist.

use std::path::Path;

use crate::support::{alcove, transcript};

/// Lines of `sh` blocks, without comments.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => {
                let line = line.split(" #").next().unwrap_or_default();
                found.extend(line.split("&&").map(|part| part.trim().to_string()).filter(|part| !part.is_empty()));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_command_in_the_documentation_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let home = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for file in ["docs/install.md"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for command in commands(&text) {
            // What follows a pipe or goes to a file is the shell's.
            let plain = command.split(['|', '>']).next().unwrap_or_default();
            let words: Vec<&str> = plain.split_whitespace().collect();
            match words.as_slice() {
                // Flags are read in order: a wrong one is found before the help is asked for.
                ["alcove", arguments @ ..] => {
                    let output = alcove(home.path()).args(arguments).arg("--help").output().unwrap();
                    assert!(output.status.success(), "{file}: {command}\n{}", transcript(home.path(), &output));
                    checked += 1;
                }
                ["helm", arguments @ ..] => {
                    let charts = arguments.iter().filter(|word| word.starts_with("charts/"));
                    for chart in charts {
                        assert!(root.join(chart).join("Chart.yaml").exists(), "{file}: {command}");
                        checked += 1;
                    }
                }
                ["cargo", "xtask", ..] => assert!(root.join(".cargo/config.toml").exists()),
                ["kubectl" | "skopeo" | "kind" | "ctr", ..] => {}
                _ => panic!("{file}: nobody checks {command:?}"),
            }
        }
    }
    assert!(checked >= 10, "{checked}");
}
