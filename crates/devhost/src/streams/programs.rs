//! Running a program of a simulated container between the streams of a protocol.

use apimachinery::{Value, json};
use bytes::Bytes;
use node::shell::{Io, ShellError};
use tokio::sync::{mpsc, watch};

use super::ExecRequest;

/// Pieces between a program and its connection.
const PIECES: usize = 32;

/// The connection's ends of a program.
pub(crate) struct Ends {
    /// Dropped to end the input.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub stdout: mpsc::Receiver<Bytes>,
    pub stderr: mpsc::Receiver<Bytes>,
    pub size: watch::Sender<Option<(u16, u16)>>,
}

/// Starts a program; the task gives the `Status` that ends the connection.
pub(crate) fn start(request: ExecRequest) -> (Ends, tokio::task::JoinHandle<Value>) {
    let (feed, stdin) = mpsc::channel(PIECES);
    let (stdout, out) = mpsc::channel(PIECES);
    let (stderr, err) = mpsc::channel(PIECES);
    let (size, shown) = watch::channel(None);
    let io = Io { stdin, stdout, stderr, size: shown, tty: request.tty };
    let task = tokio::spawn(async move { status(request.container.run(&request.command, io).await) });
    let feed = request.stdin.then_some(feed);
    (Ends { stdin: feed, stdout: out, stderr: err, size }, task)
}

/// The last word of an exec. Source: `k8s.io/kubelet/pkg/cri/streaming/remotecommand/exec.go`.
fn status(ended: Result<i32, ShellError>) -> Value {
    match ended {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": (format!("command terminated with non-zero exit code: exit status {code}")),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": (code.to_string())}]},
        }),
        Err(error) => {
            let message = format!("Internal error occurred: error executing command in container: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": (format!("error executing command in container: {error}"))}]},
                "code": 500,
            })
        }
    }
}

/// A new size of the terminal: `{"Width":80,"Height":24}`.
pub(crate) fn size_of(bytes: &[u8]) -> Option<(u16, u16)> {
    let value = Value::from_slice(bytes).ok()?;
    let number = |name: &str| u16::try_from(value.get(name)?.as_i64()?).ok();
    Some((number("Width")?, number("Height")?))
}
