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

/// A home directory with a running development host; `alcove down` at the end.
pub struct World {
    pub home: tempfile::TempDir,
}

impl World {
    /// `alcove up`.
    #[track_caller]
    pub fn up() -> World {
        World::up_with(&[])
    }

    /// `alcove up` with more arguments.
    #[track_caller]
    pub fn up_with(arguments: &[&str]) -> World {
        let world = World { home: tempfile::Builder::new().prefix("alcove-test-").tempdir().unwrap() };
        world.alcove(&[&["up", "--nodes", "2"], arguments].concat());
        world
    }

    /// Runs `alcove` and returns its standard output; fails the test when it fails.
    #[track_caller]
    pub fn alcove(&self, arguments: &[&str]) -> String {
        let output = alcove(self.home.path()).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "alcove {}\n{}{}",
            arguments.join(" "),
            transcript(self.home.path(), &output),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `alcove`, which must end with this code; returns both outputs.
    #[track_caller]
    pub fn alcove_fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = alcove(self.home.path()).args(arguments).output().unwrap();
        let text = transcript(self.home.path(), &output);
        assert_eq!(output.status.code(), Some(code), "alcove {}\n{text}", arguments.join(" "));
        text
    }

    /// Runs `kubectl` with an input; returns exit code and both outputs.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> (i32, String) {
        self.kubectl_with(&[], arguments, input)
    }

    /// The same with variables of the environment.
    pub fn kubectl_with(&self, environment: &[(&str, &str)], arguments: &[&str], input: &str) -> (i32, String) {
        use std::io::Write;
        use std::process::Stdio;
        let mut child = Command::new("kubectl")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .envs(environment.iter().copied())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(self.home.path())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// Starts `kubectl`, which ends with what is returned.
    pub fn kubectl_in_background(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Background {
        let child = Command::new("kubectl")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .envs(environment.iter().copied())
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .current_dir(self.home.path())
            .spawn()
            .unwrap();
        Background { child, output: None }
    }

    /// What the host process has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join(".alcove/alcove.log")).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = alcove(self.home.path()).arg("down").output();
    }
}

/// A process that is killed at the end.
pub struct Background {
    child: std::process::Child,
    /// Kept open: a process whose output nobody reads may end.
    output: Option<std::io::BufReader<std::process::ChildStdout>>,
}

impl Background {
    /// The next line of its output.
    pub fn line(&mut self) -> String {
        use std::io::BufRead;
        if self.output.is_none() {
            self.output = self.child.stdout.take().map(std::io::BufReader::new);
        }
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
