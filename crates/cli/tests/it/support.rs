//! Runs the binary with nothing of the user's environment.

use std::path::Path;
use std::process::{Command, Output};

/// `alcove` with its home in `home`.
pub fn alcove(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alcove"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("COLUMNS", "100")
        .current_dir(home);
    command
}

/// Exit code, standard output and standard error as one text, with the home directory's name taken out.
pub fn transcript(home: &Path, output: &Output) -> String {
    let home = home.to_string_lossy();
    let mut text = format!("exit {}\n", output.status.code().unwrap_or(-1));
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let part = String::from_utf8_lossy(bytes).replace(&*home, "HOME");
        if !part.is_empty() {
            text.push_str(&format!("--- {name}\n{part}"));
        }
    }
    text
}
