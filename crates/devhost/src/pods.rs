//! What simulated nodes answer when someone wants to see into a pod: programs are imitated ([`node::shell`]), declared ports
//! answer, logs are what the container's command would print when that is known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use std::net::IpAddr;

use apimachinery::Value;
use apimachinery::status::{Status, StatusResult};
use apiserver::body::{Body, RequestBody};
use apiserver::pods::PodBackend;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use node::shell::{Container, Files, Io};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::streams::{self, ExecRequest, ForwardRequest, Purpose};

/// Containers whose files are remembered; the oldest are forgotten.
const CONTAINERS_MAX: usize = 1000;
/// The log of a command that prints for ever ends here.
const LOG_BYTES_MAX: usize = 1 << 20;
/// How long a command may take to print its log.
const LOG_TIME: Duration = Duration::from_millis(200);

/// The insides of all simulated pods.
#[derive(Default)]
pub struct SimulatedPods {
    files: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    /// By UID of the pod and name of the container.
    files: BTreeMap<(String, String), (u64, Arc<Mutex<Files>>)>,
    used: u64,
}

fn bad(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::bad_request(message))
}

fn words(container: &Value) -> Vec<String> {
    let lists = ["command", "args"].iter().flat_map(|key| container.array_at(&[key]));
    lists.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let mut all = lists.iter().flat_map(|list| pod.array_at(&["spec", list]));
    all.find(|container| container.str_at(&["name"]) == name)
}

/// Is the container running, as its node has reported it?
fn is_running(pod: &Value, name: &str) -> bool {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod.array_at(&["status", list]));
    all.any(|status| status.str_at(&["name"]) == name && status.at(&["state", "running"]).is_some())
}

impl SimulatedPods {
    fn container(&self, pod: &Value, name: &str) -> Container {
        let key = (pod.str_at(&["metadata", "uid"]).to_owned(), name.to_owned());
        let mut remembered = self.files.lock();
        remembered.used += 1;
        let now = remembered.used;
        let entry = remembered.files.entry(key).or_default();
        entry.0 = now;
        let files = entry.1.clone();
        if remembered.files.len() > CONTAINERS_MAX {
            let oldest = remembered.files.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.map(|key| remembered.files.remove(&key));
        }
        Container::new(pod, name, files)
    }

    fn exec(
        &self,
        pod: &Value,
        subresource: &str,
        name: &str,
        query: &[(String, String)],
    ) -> StatusResult<ExecRequest> {
        let flag = |key: &str| query.iter().any(|(name, value)| name == key && matches!(value.as_str(), "true" | "1"));
        let ended = matches!(pod.str_at(&["status", "phase"]), "Succeeded" | "Failed");
        if ended {
            let phase = pod.str_at(&["status", "phase"]);
            return Err(bad(format!("cannot exec into a container in a completed pod; current phase is {phase}")));
        }
        if !is_running(pod, name) {
            return Err(bad(format!("container not found (\"{name}\")")));
        }
        let container = find(pod, name).ok_or_else(|| bad(format!("container not found (\"{name}\")")))?;
        let command = if subresource == "attach" {
            // What a server prints is unknown; a shell that waits for input is a shell.
            match words(container) {
                command if container["stdin"] == true && !command.is_empty() => command,
                _ if container["stdin"] == true => vec!["sh".to_owned()],
                _ => vec!["sleep".to_owned(), "infinity".to_owned()],
            }
        } else {
            query.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect()
        };
        if command.is_empty() {
            return Err(bad("you must specify at least 1 command for the container"));
        }
        let request = ExecRequest {
            container: self.container(pod, name),
            command,
            stdin: flag("stdin"),
            stdout: flag("stdout"),
            stderr: flag("stderr"),
            tty: flag("tty"),
        };
        if !(request.stdin || request.stdout || request.stderr) {
            return Err(bad("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(request)
    }

    /// What the command prints when nobody says anything to it.
    async fn printed(&self, pod: &Value, name: &str, command: &[String]) -> Vec<u8> {
        let (_feed, stdin) = mpsc::channel(1);
        let (stdout, mut out) = mpsc::channel::<Bytes>(64);
        let (_size, size) = watch::channel(None);
        let io = Io { stdin, stdout: stdout.clone(), stderr: stdout, size, tty: false };
        // Its files are its own: reading a log changes nothing.
        let container = Container::new(pod, name, Arc::default());
        let mut all = Vec::new();
        let run = container.run(command, io);
        let collect = async {
            while let Some(piece) = out.recv().await {
                if all.len() + piece.len() > LOG_BYTES_MAX {
                    return;
                }
                all.extend_from_slice(&piece);
            }
        };
        let both = async { tokio::join!(run, collect) };
        let _ = tokio::time::timeout(LOG_TIME, both).await;
        all
    }
}

fn query(request: &Request<RequestBody>) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn text(content: Vec<u8>) -> StatusResult<Response<Body>> {
    let response = Response::builder().header(CONTENT_TYPE, "text/plain").body(Body::from(content));
    response.map_err(|e| Box::new(Status::internal_error(e.to_string())))
}

/// The last lines, and the first bytes of those.
fn cut(mut log: Vec<u8>, query: &[(String, String)]) -> Vec<u8> {
    let number =
        |key: &str| query.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.parse::<usize>().ok());
    if let Some(lines) = number("tailLines") {
        let all: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
        log = all[all.len().saturating_sub(lines)..].concat();
    }
    if let Some(limit) = number("limitBytes") {
        log.truncate(limit);
    }
    log
}

#[async_trait]
impl PodBackend for SimulatedPods {
    async fn log(&self, pod: &Value, container: &str, request: Request<RequestBody>) -> StatusResult<Response<Body>> {
        let node = pod.str_at(&["spec", "nodeName"]);
        let query = query(&request);
        let command = find(pod, container).map(words).unwrap_or_default();
        let mut log = match command.is_empty() {
            true => Vec::new(),
            false => self.printed(pod, container, &command).await,
        };
        if log.is_empty() {
            log = format!("container {container} has no output: node {node} is simulated and runs nothing\n")
                .into_bytes();
        }
        text(cut(log, &query))
    }

    async fn connect(
        &self,
        pod: &Value,
        subresource: &str,
        container: &str,
        request: Request<RequestBody>,
    ) -> StatusResult<Response<Body>> {
        let query = query(&request);
        let purpose = match subresource {
            "exec" | "attach" => Purpose::Exec(self.exec(pod, subresource, container, &query)?),
            "portforward" => {
                let ports = query.iter().filter(|(name, _)| name == "ports").flat_map(|(_, value)| value.split(','));
                let ports = ports.map(|port| port.parse::<u16>().map_err(|_| bad(format!("{port:?} is no port"))));
                let ports = ports.collect::<Result<Vec<u16>, _>>()?;
                Purpose::Forward(ForwardRequest { pod: pod.clone(), ports })
            }
            other => return Err(bad(format!("{other} is not possible in a simulated pod"))),
        };
        let (parts, _) = request.into_parts();
        let mut extensions = parts.extensions;
        streams::upgrade(&parts.headers, &mut extensions, purpose)
    }

    async fn address(&self, pod: &Value) -> StatusResult<IpAddr> {
        let node = pod.str_at(&["spec", "nodeName"]);
        Err(Box::new(Status::service_unavailable(format!(
            "error trying to reach service: node {node} is simulated and runs nothing"
        ))))
    }
}
