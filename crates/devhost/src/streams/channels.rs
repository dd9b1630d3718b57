//! WebSocket: each message begins with the number of its channel.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{BoxConnection, ExecRequest, ForwardRequest, forward as ports, programs};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5: the next byte names a channel that is closed.
const CLOSE: u8 = 255;
/// How long a client may take to say goodbye.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(5);
/// The buffer of a tunnel.
const TUNNEL_BYTES: usize = 256 << 10;

type Socket = WebSocketStream<BoxConnection>;

async fn accept(connection: BoxConnection) -> (SplitSink<Socket, Message>, SplitStream<Socket>) {
    WebSocketStream::from_raw_socket(connection, Role::Server, None).await.split()
}

fn message(channel: u8, content: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(content.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(content);
    Message::Binary(bytes.into())
}

/// The end of a connection that has said everything; clients take any other for a mistake.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// The next message with content; nothing when the other side is gone.
async fn receive(socket: &mut SplitStream<Socket>) -> Option<Bytes> {
    loop {
        match socket.next().await? {
            Ok(Message::Binary(bytes)) => return Some(bytes),
            Ok(Message::Text(text)) => return Some(Bytes::copy_from_slice(text.as_bytes())),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Runs a program. `half_close`: the client can end its input alone (v5).
pub(super) async fn exec(connection: BoxConnection, request: ExecRequest, half_close: bool) {
    let (mut to_client, mut from_client) = accept(connection).await;
    let (show_out, show_err) = (request.stdout, request.stderr && !request.tty);
    let (ends, mut program) = programs::start(request);
    let programs::Ends { stdin: mut feed_to, stdout: mut from_out, stderr: mut from_err, size: shown } = ends;
    // Says that the connection stands, before the program says anything.
    let first = if show_out { STDOUT } else { ERROR };
    if to_client.send(message(first, &[])).await.is_err() {
        program.abort();
        return;
    }
    let feed = async {
        while let Some(bytes) = receive(&mut from_client).await {
            match bytes.split_first() {
                Some((&STDIN, content)) => {
                    if let Some(feed) = &feed_to {
                        // A program that has ended reads nothing more.
                        let _ = feed.send(Bytes::copy_from_slice(content)).await;
                    }
                }
                Some((&RESIZE, content)) => {
                    if let Some(size) = programs::size_of(content) {
                        shown.send_replace(Some(size));
                    }
                }
                Some((&CLOSE, [STDIN])) if half_close => feed_to = None,
                _ => {}
            }
        }
    };
    let speak = async {
        let (mut out, mut err) = (true, true);
        while out || err {
            let (channel, piece) = tokio::select! {
                piece = from_out.recv(), if out => (STDOUT, piece),
                piece = from_err.recv(), if err => (STDERR, piece),
            };
            match piece {
                None if channel == STDOUT => out = false,
                None => err = false,
                Some(piece) if (channel == STDOUT && show_out) || (channel == STDERR && show_err) => {
                    to_client.send(message(channel, &piece)).await?;
                }
                Some(_) => {}
            }
        }
        let status = (&mut program).await.unwrap_or_default();
        to_client.send(message(ERROR, &status.to_vec())).await?;
        to_client.send(goodbye()).await
    };
    tokio::pin!(feed);
    let spoken = tokio::select! {
        // The client went away.
        () = &mut feed => None,
        spoken = speak => Some(spoken),
    };
    match spoken {
        None => program.abort(),
        Some(spoken) => {
            log(&spoken);
            // Until the client has answered the goodbye: what it has not read yet would be lost otherwise.
            let _ = tokio::time::timeout(GOODBYE, feed).await;
        }
    }
}

fn log(result: &Result<(), Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection into a simulated pod broke");
    }
}

/// Forwards ports: two channels each, data and error, that both begin with the number of the port.
pub(super) async fn forward(connection: BoxConnection, request: ForwardRequest) {
    let (mut to_client, mut from_client) = accept(connection).await;
    let (outgoing, mut messages) = mpsc::channel::<Message>(32);
    let mut inputs: Vec<Option<mpsc::Sender<Bytes>>> = Vec::new();
    let listed = request.ports.iter().take(usize::from(u8::MAX) / 2).zip((0_u8..).step_by(2));
    for (port, channel) in listed {
        for channel in [channel, channel + 1] {
            if outgoing.send(message(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
            // The queue is shorter than the list may be.
            while let Ok(ready) = messages.try_recv() {
                if to_client.send(ready).await.is_err() {
                    return;
                }
            }
        }
        match ports::refusal(&request.pod, *port) {
            Some(refusal) => {
                let _ = to_client.send(message(channel + 1, refusal.as_bytes())).await;
                inputs.push(None);
            }
            None => {
                let (input, mut output) = ports::connect(&request.pod, *port);
                let outgoing = outgoing.clone();
                tokio::spawn(async move {
                    while let Some(bytes) = output.recv().await {
                        if outgoing.send(message(channel, &bytes)).await.is_err() {
                            return;
                        }
                    }
                });
                inputs.push(Some(input));
            }
        }
    }
    drop(outgoing);
    let read = async {
        while let Some(bytes) = receive(&mut from_client).await {
            let Some((channel, content)) = bytes.split_first() else { continue };
            let input = inputs.get(usize::from(channel / 2)).and_then(Option::as_ref);
            if let Some(input) = input.filter(|_| channel.is_multiple_of(2)) {
                let _ = input.send(Bytes::copy_from_slice(content)).await;
            }
        }
    };
    let write = async {
        while let Some(message) = messages.recv().await {
            to_client.send(message).await?;
        }
        std::future::pending::<Result<(), Error>>().await
    };
    tokio::select! {
        () = read => {}
        result = write => log(&result),
    }
}

/// A stream of bytes over the messages of a WebSocket.
pub(super) async fn tunnel(connection: BoxConnection) -> BoxConnection {
    let (mut to_client, mut from_client) = accept(connection).await;
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_near, mut to_near) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(bytes) = receive(&mut from_client).await {
            if to_near.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_near.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match from_near.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    if to_client.send(Message::Binary(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = to_client.send(goodbye()).await;
    });
    Box::new(near)
}
