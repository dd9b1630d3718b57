//! One program that is kept running.
//!
//! Invariants:
//! - It is started again whenever it ends, after a pause that grows while it keeps ending.
//! - When it is no longer wanted it is asked to end, and killed when it does not.
//! - One that an earlier process of the same cluster has left behind is killed before a new one is started.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use informer::Backoff;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use super::lines;

/// The pause before a program is started again; it is forgotten when the program has run for long enough.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const RAN_LONG: Duration = Duration::from_secs(60);
/// In the environment of the programs: whose they are.
const OWNER: &str = "ALCOVE_PROGRAM_OF";

/// What is known of a program.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// 0: it does not run.
    pid: AtomicU64,
    starts: AtomicU64,
    /// How it ended last, and the last thing it said.
    last: Mutex<String>,
}

impl Health {
    pub fn is_running(&self) -> bool {
        self.pid.load(Ordering::Acquire) != 0
    }

    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Acquire)
    }

    /// How the last run ended; empty when none has.
    pub fn last_end(&self) -> String {
        self.last.lock().clone()
    }
}

/// A program to be kept running.
pub(crate) struct Program {
    pub name: &'static str,
    /// The program and its arguments.
    pub line: Vec<String>,
    /// The directory of the cluster's data: where the program runs, and whose it is.
    pub folder: PathBuf,
    /// How long it may take to end.
    pub grace: Duration,
    pub health: Arc<Health>,
}

impl Program {
    /// Runs until `cancel`, and returns when the program has ended.
    pub async fn keep_running(self, cancel: CancellationToken) {
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX, RAN_LONG);
        self.end_left_behind();
        while !cancel.is_cancelled() {
            let ended = match self.spawn() {
                Ok(child) => self.attend(child, &cancel).await,
                Err(error) => Some(format!("cannot be started: {error}")),
            };
            // Nothing: it was ended because it is not wanted any more.
            let Some(ended) = ended else { break };
            tracing::error!(program = self.name, "{} {ended}", self.name);
            *self.health.last.lock() = ended;
            tokio::select! {
                // Cancel-safe: both only wait.
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
        let _ = std::fs::remove_file(self.pid_file());
    }

    fn spawn(&self) -> io::Result<Child> {
        let (program, arguments) = self.line.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let child = Command::new(program)
            .args(arguments)
            .env(OWNER, &self.folder)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's interrupt is ours to pass on, in our order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().unwrap_or_default();
        if let Err(error) = std::fs::write(self.pid_file(), pid.to_string()) {
            tracing::warn!(%error, program = self.name, "the process id cannot be kept");
        }
        self.health.pid.store(pid.into(), Ordering::Release);
        self.health.starts.fetch_add(1, Ordering::AcqRel);
        tracing::info!(program = self.name, pid, "started");
        Ok(child)
    }

    /// Waits for the end of the program and tells how it ended; nothing when `cancel` has ended it.
    async fn attend(&self, mut child: Child, cancel: &CancellationToken) -> Option<String> {
        let said = Arc::new(Mutex::new(String::new()));
        let out = child.stdout.take().map(|out| self.follow(out, &said));
        let err = child.stderr.take().map(|err| self.follow(err, &said));
        let status = tokio::select! {
            status = child.wait() => Some(status),
            () = cancel.cancelled() => None,
        };
        let ended = match status {
            Some(status) => {
                // What it said last explains its end; a child of its own may hold the pipes open.
                let rest = futures::future::join_all(out.into_iter().chain(err));
                let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
                Some(describe(status, &said.lock()))
            }
            None => {
                self.end(&mut child).await;
                None
            }
        };
        self.health.pid.store(0, Ordering::Release);
        ended
    }

    fn follow(
        &self,
        pipe: impl AsyncRead + Unpin + Send + 'static,
        said: &Arc<Mutex<String>>,
    ) -> tokio::task::JoinHandle<()> {
        let (name, said) = (self.name, Arc::clone(said));
        tokio::spawn(async move {
            let mut reader = BufReader::new(pipe);
            let (mut bytes, mut level) = (Vec::new(), Level::INFO);
            while reader.read_until(b'\n', &mut bytes).await.is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&bytes);
                let text = text.trim_end();
                if !text.is_empty() {
                    lines::log(name, text, &mut level);
                    let mut said = said.lock();
                    said.clear();
                    said.extend(text.chars().take(500));
                }
                bytes.clear();
            }
        })
    }

    async fn end(&self, child: &mut Child) {
        if let Some(pid) = child.id() {
            terminate(pid);
        }
        if tokio::time::timeout(self.grace, child.wait()).await.is_err() {
            tracing::warn!(program = self.name, "did not end in time and is killed");
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, program = self.name, "cannot be killed");
            }
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join(format!("{}.pid", self.name))
    }

    /// A process that was killed could not end its programs.
    fn end_left_behind(&self) {
        let Ok(text) = std::fs::read_to_string(self.pid_file()) else { return };
        let Ok(pid) = text.trim().parse::<u32>() else { return };
        // Another program may have the number by now.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mark = format!("{OWNER}={}", self.folder.display());
        if environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) {
            tracing::warn!(program = self.name, pid, "left behind by an earlier process; killed");
            send(pid, libc::SIGKILL);
        }
    }
}

fn describe(status: io::Result<ExitStatus>, said: &str) -> String {
    let how = match status {
        Ok(status) => format!("ended: {status}"),
        Err(error) => format!("ended: {error}"),
    };
    if said.is_empty() { how } else { format!("{how}; it said last: {said}") }
}

fn terminate(pid: u32) {
    send(pid, libc::SIGTERM);
}

/// Sends a signal; a process that is gone already has nothing to be told.
#[allow(unsafe_code)]
fn send(pid: u32, signal: i32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 0 {
        // SAFETY: `kill` takes two numbers and touches no memory of this process. The number is that of a child which has
        // not been waited for, so no other process can have it, or was checked to be one of ours.
        let _ = unsafe { libc::kill(pid, signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn program(folder: &std::path::Path, script: &str) -> (Program, Arc<Health>) {
        let health = Arc::new(Health::default());
        let line = ["/bin/sh", "-c", script].map(str::to_string).to_vec();
        let program = Program {
            name: "test",
            line,
            folder: folder.to_path_buf(),
            grace: Duration::from_secs(20),
            health: Arc::clone(&health),
        };
        (program, health)
    }

    async fn until(what: &str, mut true_: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !true_() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{what} did not come about");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_ends_is_started_again_and_its_last_words_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (program, health) = program(folder.path(), "echo working; echo 'no such flag' >&2; exit 3");
        let cancel = CancellationToken::new();
        let running = tokio::spawn(program.keep_running(cancel.clone()));
        until("a second start", || health.starts() >= 2).await;
        until("last words", || health.last_end().contains("it said last")).await;
        assert!(health.last_end().starts_with("ended: exit status: 3"), "{}", health.last_end());
        cancel.cancel();
        running.await.unwrap();
        assert!(!health.is_running() && !folder.path().join("test.pid").exists());
    }

    #[tokio::test]
    async fn a_killed_program_runs_again_and_an_unwanted_one_is_asked_to_end() {
        let folder = tempfile::tempdir().unwrap();
        // Says that it was asked: a program that is only killed leaves no file.
        let script = "trap 'touch asked; exit 0' TERM; touch ready.$$; while :; do sleep 0.01; done";
        let (program, health) = program(folder.path(), script);
        let cancel = CancellationToken::new();
        let running = tokio::spawn(program.keep_running(cancel.clone()));
        let ready = || {
            let pid = health.pid.load(Ordering::Acquire);
            (pid != 0 && folder.path().join(format!("ready.{pid}")).exists()).then_some(pid)
        };
        until("the program", || ready().is_some()).await;
        let first = ready().unwrap();
        send(u32::try_from(first).unwrap(), libc::SIGKILL);
        until("another one", || ready().is_some_and(|pid| pid != first)).await;
        assert!(health.last_end().contains("signal: 9"), "{}", health.last_end());
        cancel.cancel();
        running.await.unwrap();
        assert!(folder.path().join("asked").exists(), "it was not asked to end");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (mut program, health) = program(folder.path(), "trap '' TERM; touch ready; while :; do sleep 0.01; done");
        program.grace = Duration::from_millis(50);
        let cancel = CancellationToken::new();
        let running = tokio::spawn(program.keep_running(cancel.clone()));
        until("the program", || folder.path().join("ready").exists()).await;
        cancel.cancel();
        running.await.unwrap();
        assert!(!health.is_running());
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let (mut program, health) = program(folder.path(), "");
        program.line = vec!["/nowhere/kube-apiserver".into()];
        let cancel = CancellationToken::new();
        let running = tokio::spawn(program.keep_running(cancel.clone()));
        until("the reason", || health.last_end().contains("cannot be started")).await;
        cancel.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_is_ended_and_what_is_not_ours_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for ours in [true, false] {
            let mut command = Command::new("/bin/sleep");
            command.arg("600").kill_on_drop(true);
            if ours {
                command.env(OWNER, folder.path());
            }
            let mut child = command.spawn().unwrap();
            std::fs::write(folder.path().join("test.pid"), child.id().unwrap().to_string()).unwrap();
            let (program, _) = program(folder.path(), "");
            program.end_left_behind();
            if ours {
                let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
                assert_eq!(status.to_string(), "signal: 9 (SIGKILL)");
            } else {
                assert!(child.try_wait().unwrap().is_none(), "a foreign process was ended");
            }
        }
    }
}
