//! The ports of a simulated pod. A port that a container declares answers: HTTP with who it is, anything else with what it
//! was sent. Other ports refuse, as a port on which nothing listens does.

use apimachinery::Value;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Pieces between a port and its connection.
const PIECES: usize = 32;
/// The head of a request that is larger than this is no HTTP.
const HEAD_BYTES_MAX: usize = 64 << 10;
const METHODS: [&str; 7] = ["GET ", "HEAD ", "POST ", "PUT ", "PATCH ", "DELETE ", "OPTIONS "];

/// Why a port does not answer.
pub(crate) fn refusal(pod: &Value, port: u16) -> Option<String> {
    let lists = ["containers", "initContainers"];
    let mut ports = lists.iter().flat_map(|list| pod.array_at(&["spec", list])).flat_map(|c| c.array_at(&["ports"]));
    if ports.any(|declared| declared["containerPort"].as_i64() == Some(i64::from(port))) {
        return None;
    }
    let (name, uid) = (pod.str_at(&["metadata", "name"]), pod.str_at(&["metadata", "uid"]));
    Some(format!(
        "error forwarding port {port} to pod {name}, uid {uid}: failed to connect to localhost:{port} inside namespace of \
         the simulated pod: dial tcp4 127.0.0.1:{port}: connect: connection refused"
    ))
}

/// The text that a declared port answers over HTTP.
pub(crate) fn answer_http(pod: &Value, port: u16, request_line: &str) -> String {
    let (namespace, name) = (pod.str_at(&["metadata", "namespace"]), pod.str_at(&["metadata", "name"]));
    format!("pod {namespace}/{name} port {port}: simulated\n{request_line}\n")
}

/// A connection to a port: what is sent into the first comes back out of the second.
pub(crate) fn connect(pod: &Value, port: u16) -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    let (to_port, mut input) = mpsc::channel::<Bytes>(PIECES);
    let (output, from_port) = mpsc::channel::<Bytes>(PIECES);
    let pod = pod.clone();
    tokio::spawn(async move {
        let mut head = Vec::new();
        while let Some(bytes) = input.recv().await {
            if !may_be_http(&head, &bytes) {
                // Echo, from here on.
                head.extend_from_slice(&bytes);
                if output.send(std::mem::take(&mut head).into()).await.is_err() {
                    return;
                }
                while let Some(bytes) = input.recv().await {
                    if output.send(bytes).await.is_err() {
                        return;
                    }
                }
                return;
            }
            head.extend_from_slice(&bytes);
            while let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                let request = String::from_utf8_lossy(&head[..end]).into_owned();
                let length = content_length(&request);
                if head.len() < end + 4 + length {
                    break;
                }
                head.drain(..end + 4 + length);
                let line = request.lines().next().unwrap_or_default().to_owned();
                let text = answer_http(&pod, port, &line);
                let body = if line.starts_with("HEAD ") { "" } else { &text };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                    text.len()
                );
                if output.send(answer.into()).await.is_err() {
                    return;
                }
            }
        }
    });
    (to_port, from_port)
}

fn may_be_http(head: &[u8], more: &[u8]) -> bool {
    let all: Vec<u8> = head.iter().chain(more).take(8).copied().collect();
    head.len() + more.len() < HEAD_BYTES_MAX
        && METHODS.iter().any(|method| {
            let method = method.as_bytes();
            let common = method.len().min(all.len());
            method[..common] == all[..common]
        })
}

fn content_length(head: &str) -> usize {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).filter(|n| *n < HEAD_BYTES_MAX).unwrap_or(0)
}
