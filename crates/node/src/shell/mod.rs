//! What a simulated container answers when somebody runs a program in it.
//!
//! There is no container and no process: a handful of programs are imitated, on files that live in memory. Enough for
//! `kubectl exec`, `attach` and `cp`, for probes and for tests; whatever else is asked for is not found, as in an image
//! without it. Nothing of the machine is read or run.
//!
//! Invariant: output and input are bounded queues; a program that nobody reads waits, and ends when nobody is there any more.

mod files;
mod programs;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub use files::Files;

/// The ends of a running program.
pub struct Io {
    /// Closed is the end of the input.
    pub stdin: mpsc::Receiver<Bytes>,
    pub stdout: mpsc::Sender<Bytes>,
    pub stderr: mpsc::Sender<Bytes>,
    /// Columns and rows of the terminal, when there is one.
    pub size: watch::Receiver<Option<(u16, u16)>>,
    pub tty: bool,
}

/// Why a program did not run to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShellError {
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    #[error("nobody reads the output any more")]
    Abandoned,
}

/// One simulated container.
pub struct Container {
    pub pod: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    env: BTreeMap<String, String>,
    files: Arc<Mutex<Files>>,
}

impl Container {
    /// The container `name` of a pod, with the files it has had before.
    pub fn new(pod: &Value, name: &str, files: Arc<Mutex<Files>>) -> Container {
        let text = |path: &[&str]| pod.str_at(path).to_owned();
        let hostname = match pod.str_at(&["spec", "hostname"]) {
            "" => text(&["metadata", "name"]),
            hostname => hostname.to_owned(),
        };
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
            ("HOSTNAME".to_owned(), hostname.clone()),
            ("HOME".to_owned(), "/root".to_owned()),
        ]);
        let lists = ["containers", "initContainers", "ephemeralContainers"];
        let containers = lists.iter().flat_map(|list| pod.array_at(&["spec", list]));
        for variable in containers.filter(|c| c.str_at(&["name"]) == name).flat_map(|c| c.array_at(&["env"])) {
            if let Some(value) = value_of(pod, variable) {
                env.insert(variable.str_at(&["name"]).to_owned(), value);
            }
        }
        Container {
            pod: text(&["metadata", "name"]),
            namespace: text(&["metadata", "namespace"]),
            name: name.to_owned(),
            hostname,
            env,
            files,
        }
    }

    /// Runs a program; gives its exit code.
    pub async fn run(&self, command: &[String], io: Io) -> Result<i32, ShellError> {
        let mut session = Session::new(self, io);
        let Some(program) = command.first() else { return Err(ShellError::NotFound(String::new())) };
        if !programs::is_known(program) {
            return Err(ShellError::NotFound(program.clone()));
        }
        let done = session.program(command).await;
        match done {
            Ok(code) => Ok(session.ended.unwrap_or(code)),
            Err(error) => Err(error),
        }
    }
}

/// The value of a variable, as far as the pod alone tells it.
fn value_of(pod: &Value, variable: &Value) -> Option<String> {
    if let Some(value) = variable.at(&["value"]) {
        return value.as_str().map(str::to_owned);
    }
    let path = variable.str_at(&["valueFrom", "fieldRef", "fieldPath"]);
    let mapped = |map: &str| {
        let key = path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(pod.at(&["metadata", map.strip_prefix("metadata.")?])?.get(key)?.as_str()?.to_owned())
    };
    match path {
        "" => None,
        "metadata.name"
        | "metadata.namespace"
        | "metadata.uid"
        | "spec.nodeName"
        | "spec.serviceAccountName"
        | "status.podIP"
        | "status.hostIP" => {
            let steps: Vec<&str> = path.split('.').collect();
            Some(pod.str_at(&steps).to_owned())
        }
        _ => mapped("metadata.labels").or_else(|| mapped("metadata.annotations")),
    }
}

/// A program that runs, with what its shell knows.
pub(crate) struct Session {
    hostname: String,
    env: BTreeMap<String, String>,
    files: Arc<Mutex<Files>>,
    folder: String,
    io: Io,
    /// Input that was taken in and not used.
    unread: Vec<u8>,
    input_ended: bool,
    /// `exit` was called.
    ended: Option<i32>,
    last_code: i32,
    depth: usize,
}

impl Session {
    fn new(container: &Container, io: Io) -> Session {
        Session {
            hostname: container.hostname.clone(),
            env: container.env.clone(),
            files: container.files.clone(),
            folder: "/".to_owned(),
            io,
            unread: Vec::new(),
            input_ended: false,
            ended: None,
            last_code: 0,
            depth: 0,
        }
    }

    async fn out(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ShellError> {
        let bytes = self.on_terminal(bytes.into());
        self.io.stdout.send(bytes).await.map_err(|_| ShellError::Abandoned)
    }

    async fn err(&mut self, text: impl Into<String>) -> Result<(), ShellError> {
        let bytes = self.on_terminal(text.into().into_bytes());
        // A terminal has one output.
        let to = if self.io.tty { &self.io.stdout } else { &self.io.stderr };
        to.send(bytes).await.map_err(|_| ShellError::Abandoned)
    }

    /// A terminal returns the carriage at the end of a line.
    fn on_terminal(&self, bytes: Vec<u8>) -> Bytes {
        if !self.io.tty || !bytes.contains(&b'\n') {
            return bytes.into();
        }
        let mut out = Vec::with_capacity(bytes.len() + 8);
        for byte in bytes {
            if byte == b'\n' {
                out.push(b'\r');
            }
            out.push(byte);
        }
        out.into()
    }

    /// The next piece of the input; nothing at its end.
    async fn piece(&mut self) -> Option<Vec<u8>> {
        if !self.unread.is_empty() {
            return Some(std::mem::take(&mut self.unread));
        }
        loop {
            if self.input_ended {
                return None;
            }
            match self.io.stdin.recv().await {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => return Some(bytes.to_vec()),
                None => self.input_ended = true,
            }
        }
    }

    /// The next line without its end, or what is left before the end of the input.
    async fn line(&mut self) -> Result<Option<String>, ShellError> {
        let mut line: Vec<u8> = Vec::new();
        loop {
            let Some(piece) = self.piece().await else {
                return Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()));
            };
            for (at, byte) in piece.iter().enumerate() {
                match byte {
                    b'\n' | b'\r' => {
                        self.unread = piece[at + 1..].to_vec();
                        if self.io.tty {
                            self.out("\n").await?;
                        }
                        return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
                    }
                    // Control-D on an empty line ends the input, Control-C the line.
                    4 if self.io.tty => {
                        if line.is_empty() {
                            self.input_ended = true;
                            return Ok(None);
                        }
                    }
                    3 if self.io.tty => {
                        line.clear();
                        self.out("^C\n").await?;
                        return Ok(Some(String::new()));
                    }
                    8 | 127 if self.io.tty => {
                        if line.pop().is_some() {
                            self.out(b"\x08 \x08".to_vec()).await?;
                        }
                    }
                    byte => {
                        line.push(*byte);
                        if self.io.tty {
                            self.out(vec![*byte]).await?;
                        }
                    }
                }
            }
        }
    }

    /// A path as the session sees it, without dots.
    fn path(&self, path: &str) -> String {
        let full = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.folder) };
        files::normal(&full)
    }
}

#[cfg(test)]
mod tests;
