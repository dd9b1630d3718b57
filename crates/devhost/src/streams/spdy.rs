//! SPDY/3.1 as far as container tools use it: streams with headers, data, and their ends. No priorities, no flow control.
//!
//! Headers come compressed with a dictionary that both sides know. What is sent back is stored uncompressed inside the same
//! format, which every reader takes.
//!
//! Follows: the SPDY protocol draft 3.1 (`spdy_dictionary.bin` is the dictionary of its section 2.6.10.1).

use std::collections::BTreeMap;

use apimachinery::Value;
use bytes::Bytes;
use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::{BoxConnection, ExecRequest, ForwardRequest, forward as ports, programs};

static DICTIONARY: &[u8] = include_bytes!("spdy_dictionary.bin");

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// A frame larger than this is not one of a container tool.
const FRAME_BYTES_MAX: usize = 4 << 20;
const HEADER_BYTES_MAX: usize = 1 << 20;
/// Streams of one connection.
const STREAMS_MAX: usize = 1024;
/// Pieces of one stream that wait to be taken.
const PIECES: usize = 32;
const FRAMES: usize = 64;
/// How long a client may take to open the streams it wants.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum SpdyError {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("a frame of {0} bytes")]
    TooLarge(usize),
    #[error("headers that cannot be read")]
    Headers,
    #[error("too many streams")]
    Streams,
}

/// One stream as the other side has opened it.
struct Stream {
    headers: BTreeMap<String, String>,
    input: mpsc::Receiver<Bytes>,
    output: Output,
}

/// The way back on a stream.
#[derive(Clone)]
struct Output {
    id: u32,
    frames: mpsc::Sender<Vec<u8>>,
}

impl Output {
    /// `false` when the connection is gone.
    async fn send(&self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(FRAME_BYTES_MAX / 2) {
            if self.frames.send(data_frame(self.id, 0, piece)).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn finish(&self) -> bool {
        self.frames.send(data_frame(self.id, FIN, &[])).await.is_ok()
    }
}

fn data_frame(id: u32, flags: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + content.len());
    frame.extend_from_slice(&(id & 0x7fff_ffff).to_be_bytes());
    frame.extend_from_slice(&((u32::from(flags) << 24) | content.len() as u32).to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

fn control_frame(kind: u16, flags: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + content.len());
    frame.extend_from_slice(&0x8003_u16.to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&((u32::from(flags) << 24) | content.len() as u32).to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Reads header blocks: one compressed stream over all of a connection.
struct HeaderReader {
    inflate: Decompress,
    started: bool,
}

impl HeaderReader {
    fn new() -> HeaderReader {
        HeaderReader { inflate: Decompress::new(false), started: false }
    }

    fn read(&mut self, block: &[u8]) -> Result<BTreeMap<String, String>, SpdyError> {
        let mut block = block;
        if !self.started {
            self.started = true;
            let (head, rest) = block.split_first_chunk::<2>().ok_or(SpdyError::Headers)?;
            block = rest;
            // The third bit from the right of the second byte's upper half: a dictionary is used, and its checksum follows.
            if head[1] & 0x20 != 0 {
                block = block.get(4..).ok_or(SpdyError::Headers)?;
                self.prime()?;
            }
        }
        parse_headers(&self.inflate(block)?).ok_or(SpdyError::Headers)
    }

    /// What the dictionary is for a compressor, earlier output is for a raw stream: so it is put before it, uncompressed.
    fn prime(&mut self) -> Result<(), SpdyError> {
        let length = u16::try_from(DICTIONARY.len()).map_err(|_| SpdyError::Headers)?;
        let mut stored = vec![0];
        stored.extend_from_slice(&length.to_le_bytes());
        stored.extend_from_slice(&(!length).to_le_bytes());
        stored.extend_from_slice(DICTIONARY);
        let primed = self.inflate(&stored)?;
        if primed == DICTIONARY { Ok(()) } else { Err(SpdyError::Headers) }
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut out: Vec<u8> = Vec::with_capacity(4096);
        loop {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let decompressed = self.inflate.decompress_vec(input, &mut out, FlushDecompress::Sync);
            decompressed.map_err(|_| SpdyError::Headers)?;
            let used = usize::try_from(self.inflate.total_in() - read).unwrap_or(0);
            input = &input[used..];
            if out.len() > HEADER_BYTES_MAX {
                return Err(SpdyError::Headers);
            }
            let nothing = used == 0 && self.inflate.total_out() == written;
            if out.len() < out.capacity() && (input.is_empty() || nothing) {
                return Ok(out);
            }
            out.reserve(4096);
        }
    }
}

fn parse_headers(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let (count, mut rest) = bytes.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    let mut headers = BTreeMap::new();
    let text = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*head) as usize;
        let value = tail.get(..length)?;
        *rest = &tail[length..];
        Some(String::from_utf8_lossy(value).into_owned())
    };
    for _ in 0..count.min(1000) {
        let name = text(&mut rest)?.to_ascii_lowercase();
        headers.insert(name, text(&mut rest)?);
    }
    Some(headers)
}

/// Writes header blocks without headers, which is all that is answered.
#[derive(Default)]
struct HeaderWriter {
    started: bool,
}

impl HeaderWriter {
    fn no_headers(&mut self) -> Vec<u8> {
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.started, true) {
            // Window of 32 KiB, fastest, no dictionary.
            block.extend_from_slice(&[0x78, 0x01]);
        }
        let content = 0_u32.to_be_bytes();
        block.push(0);
        block.extend_from_slice(&4_u16.to_le_bytes());
        block.extend_from_slice(&(!4_u16).to_le_bytes());
        block.extend_from_slice(&content);
        // An empty piece: readers hand on what they have only when they see one.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

/// Reads frames until the connection ends, answers them, and hands out the streams that are opened.
async fn read(
    mut connection: ReadHalf<BoxConnection>,
    frames: mpsc::Sender<Vec<u8>>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), SpdyError> {
    let (mut reader, mut writer) = (HeaderReader::new(), HeaderWriter::default());
    let mut inputs: BTreeMap<u32, mpsc::Sender<Bytes>> = BTreeMap::new();
    loop {
        let mut head = [0; 8];
        connection.read_exact(&mut head).await?;
        let [a, b, c, d, flags, x, y, z] = head;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(SpdyError::TooLarge(length));
        }
        let mut content = vec![0; length];
        connection.read_exact(&mut content).await?;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            if let Some(input) = inputs.get(&id).filter(|_| !content.is_empty()) {
                // Whoever does not read any more has ended the stream on this side.
                let _ = input.send(content.into()).await;
            }
            if flags & FIN != 0 {
                inputs.remove(&id);
            }
            continue;
        }
        match u16::from_be_bytes([c, d]) {
            SYN_STREAM => {
                let (id, block) = content.split_first_chunk::<4>().ok_or(SpdyError::Headers)?;
                let id = u32::from_be_bytes(*id) & 0x7fff_ffff;
                let headers = reader.read(block.get(6..).ok_or(SpdyError::Headers)?)?;
                if inputs.len() >= STREAMS_MAX {
                    return Err(SpdyError::Streams);
                }
                let (input, taken) = mpsc::channel(PIECES);
                if flags & FIN == 0 {
                    inputs.insert(id, input);
                }
                let mut reply = id.to_be_bytes().to_vec();
                reply.extend(writer.no_headers());
                let sent = frames.send(control_frame(SYN_REPLY, 0, &reply)).await;
                let stream = Stream { headers, input: taken, output: Output { id, frames: frames.clone() } };
                if sent.is_err() || opened.send(stream).await.is_err() {
                    return Ok(());
                }
            }
            RST_STREAM => {
                if let Some(id) = content.first_chunk::<4>() {
                    inputs.remove(&(u32::from_be_bytes(*id) & 0x7fff_ffff));
                }
            }
            PING => {
                if frames.send(control_frame(PING, 0, &content)).await.is_err() {
                    return Ok(());
                }
            }
            GOAWAY => return Ok(()),
            // Settings and windows: nothing depends on them here.
            _ => {}
        }
    }
}

async fn write(mut connection: WriteHalf<BoxConnection>, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if connection.write_all(&frame).await.is_err() || connection.flush().await.is_err() {
            return;
        }
    }
    let _ = connection.shutdown().await;
}

/// A connection with the streams that are opened on it.
struct Session {
    opened: mpsc::Receiver<Stream>,
    reading: tokio::task::JoinHandle<()>,
    writing: tokio::task::JoinHandle<()>,
}

fn start(connection: BoxConnection) -> Session {
    let (from, to) = tokio::io::split(connection);
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let (open, opened) = mpsc::channel(PIECES);
    let reading = tokio::spawn(async move {
        if let Err(error) = read(from, frames, open).await {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(error, "a SPDY connection into a simulated pod ended");
        }
    });
    Session { opened, reading, writing: tokio::spawn(write(to, outgoing)) }
}

impl Session {
    /// Sends what is left to send and ends the connection. All outputs must have been dropped.
    async fn close(self) {
        self.reading.abort();
        let _ = self.reading.await;
        drop(self.opened);
        let _ = self.writing.await;
    }
}

/// Runs a program between the streams that the client opens.
pub(super) async fn exec(connection: BoxConnection, request: ExecRequest) {
    let mut session = start(connection);
    let wanted = [
        ("error", true),
        ("stdin", request.stdin),
        ("stdout", request.stdout),
        ("stderr", request.stderr && !request.tty),
        ("resize", request.tty),
    ];
    let mut streams: BTreeMap<String, Stream> = BTreeMap::new();
    let all = async {
        while wanted.iter().any(|(kind, wanted)| *wanted && !streams.contains_key(*kind)) {
            let Some(stream) = session.opened.recv().await else { return false };
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            streams.insert(kind, stream);
        }
        true
    };
    if !matches!(tokio::time::timeout(OPEN_TIMEOUT, all).await, Ok(true)) {
        drop(streams);
        session.close().await;
        return;
    }
    let (ends, mut program) = programs::start(request);
    let programs::Ends { stdin: feed, mut stdout, mut stderr, size } = ends;
    let mut feeding = Vec::new();
    if let Some(mut input) = streams.remove("stdin") {
        feeding.push(tokio::spawn(async move {
            while let (Some(feed), Some(bytes)) = (&feed, input.input.recv().await) {
                if feed.send(bytes).await.is_err() {
                    return;
                }
            }
        }));
    }
    if let Some(mut resize) = streams.remove("resize") {
        feeding.push(tokio::spawn(async move {
            // Sizes come as JSON, one after another, each in a frame.
            while let Some(bytes) = resize.input.recv().await {
                if let Some(shown) = programs::size_of(&bytes) {
                    size.send_replace(Some(shown));
                }
            }
        }));
    }
    let output = |kind: &str| streams.get(kind).map(|stream| stream.output.clone());
    let (to_out, to_err, to_error) = (output("stdout"), output("stderr"), output("error"));
    drop(streams);
    let (mut out, mut err) = (true, true);
    let mut connected = true;
    while connected && (out || err) {
        let (piece, to) = tokio::select! {
            piece = stdout.recv(), if out => {
                out = piece.is_some();
                (piece, &to_out)
            }
            piece = stderr.recv(), if err => {
                err = piece.is_some();
                (piece, &to_err)
            }
            // No more streams can come: the client is gone.
            None = session.opened.recv() => {
                connected = false;
                continue;
            }
        };
        if let (Some(piece), Some(to)) = (piece, to) {
            connected = to.send(&piece).await;
        }
    }
    if connected {
        let status = (&mut program).await.unwrap_or_default();
        if let Some(to) = &to_error {
            to.send(&status.to_vec()).await;
        }
        for to in [to_out, to_err, to_error].into_iter().flatten() {
            to.finish().await;
        }
    } else {
        program.abort();
        drop((to_out, to_err, to_error));
    }
    feeding.iter().for_each(tokio::task::JoinHandle::abort);
    for task in feeding {
        let _ = task.await;
    }
    session.close().await;
}

/// Forwards ports: each connection is a pair of streams, data and error, of one request id.
pub(super) async fn forward(connection: BoxConnection, request: ForwardRequest) {
    let mut session = start(connection);
    let mut waiting: BTreeMap<String, BTreeMap<String, Stream>> = BTreeMap::new();
    let mut running = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = session.opened.recv() => stream,
            Some(_) = running.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let (id, kind, port) = (header("requestid"), header("streamtype"), header("port"));
        let pair = waiting.entry(id.clone()).or_default();
        pair.insert(kind, stream);
        if pair.contains_key("data") && pair.contains_key("error") {
            let mut pair = waiting.remove(&id).unwrap_or_default();
            if let (Some(data), Some(error)) = (pair.remove("data"), pair.remove("error")) {
                running.spawn(carry(request.pod.clone(), port, data, error));
            }
        }
    }
    running.shutdown().await;
    drop(waiting);
    session.close().await;
}

async fn carry(pod: Value, port: String, data: Stream, error: Stream) {
    let Stream { mut input, output, .. } = data;
    let number = port.parse::<u16>().unwrap_or(0);
    if let Some(refusal) = ports::refusal(&pod, number) {
        error.output.send(refusal.as_bytes()).await;
        error.output.finish().await;
        output.finish().await;
        return;
    }
    let (to_port, mut from_port) = ports::connect(&pod, number);
    let up = async {
        while let Some(bytes) = input.recv().await {
            if to_port.send(bytes).await.is_err() {
                break;
            }
        }
        drop(to_port);
    };
    let down = async {
        while let Some(bytes) = from_port.recv().await {
            if !output.send(&bytes).await {
                break;
            }
        }
    };
    tokio::join!(up, down);
    output.finish().await;
    error.output.finish().await;
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend((text.len() as u32).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn header_blocks_are_one_stream_that_begins_with_the_dictionary() {
        // As a compressor with a dictionary writes it: raw data that refers back to the dictionary.
        let mut deflate = Compress::new(Compression::best(), false);
        let mut out = Vec::with_capacity(16 << 10);
        deflate.compress_vec(DICTIONARY, &mut out, FlushCompress::Sync).unwrap();
        let mut reader = HeaderReader::new();
        for (index, headers) in
            [&[("streamtype", "stdin"), ("port", "80")][..], &[("streamtype", "error"), ("accept-encoding", "gzip")]]
                .into_iter()
                .enumerate()
        {
            let mut compressed = Vec::with_capacity(16 << 10);
            deflate.compress_vec(&block(headers), &mut compressed, FlushCompress::Sync).unwrap();
            let mut sent = Vec::new();
            if index == 0 {
                sent.extend([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
            }
            sent.extend(compressed);
            let got = reader.read(&sent).unwrap();
            for (name, value) in headers {
                assert_eq!(got[*name], *value);
            }
        }
        assert!(HeaderReader::new().read(b"nonsense").is_err());
    }

    #[test]
    fn empty_blocks_are_valid_zlib() {
        let mut writer = HeaderWriter::default();
        let all = [writer.no_headers(), writer.no_headers()].concat();
        let mut inflate = Decompress::new(true);
        let mut out = Vec::with_capacity(64);
        inflate.decompress_vec(&all, &mut out, FlushDecompress::Sync).unwrap();
        assert_eq!(out, [0; 8]);
    }
}
