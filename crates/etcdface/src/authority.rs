//! Requests of old clients of etcd whose `:authority` is a whole address.
//!
//! etcdctl up to 3.4 dials for `endpoint status`, `defrag`, `endpoint hashkv` and its like with `http://HOST:PORT` as the name of
//! the server. That is no authority, and the HTTP/2 library ends the stream before anybody can look at it; etcd's own server
//! never looks. So it is replaced by one of the same length on the way in.
//!
//! Invariants:
//! - Connections of other clients are read through from the first request on.
//! - What is replaced has the same length, so that both ends agree about the size of the header table.
//!
//! Follows: RFC 9113 (frames), RFC 7541 (header fields).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The static table's number of `:authority`.
const AUTHORITY: usize = 1;
/// Largest frame of headers that is looked at: what a client may send unless it is told otherwise.
const FRAME_BYTES_MAX: usize = 16_384;
const READ_BYTES: usize = 4096;

/// A connection whose requests get an authority that is one.
pub(crate) struct Lenient<S> {
    inner: S,
    raw: BytesMut,
    ready: BytesMut,
    state: State,
}

enum State {
    Preface,
    Frame,
    /// Bytes left of a frame that is of no interest.
    Pass(usize),
    /// Nothing is looked at any more.
    Off,
}

impl<S> Lenient<S> {
    pub(crate) fn new(inner: S) -> Lenient<S> {
        Lenient { inner, raw: BytesMut::new(), ready: BytesMut::new(), state: State::Preface }
    }

    /// Moves what can be told apart from `raw` to `ready`.
    fn advance(&mut self) {
        loop {
            match self.state {
                State::Preface => {
                    let length = self.raw.len().min(PREFACE.len());
                    if self.raw[..length] != PREFACE[..length] {
                        self.state = State::Off;
                    } else if length == PREFACE.len() {
                        self.take(length);
                        self.state = State::Frame;
                    } else {
                        return;
                    }
                }
                State::Frame => {
                    let Some(head) = self.raw.get(..FRAME_HEAD_BYTES) else { return };
                    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                    if head[3] != HEADERS || length > FRAME_BYTES_MAX {
                        self.take(FRAME_HEAD_BYTES);
                        self.state = State::Pass(length);
                        continue;
                    }
                    let Some(frame) = self.raw.get(..FRAME_HEAD_BYTES + length) else { return };
                    match read(frame) {
                        Some(Found::Good) => self.state = State::Off,
                        Some(Found::Bad { from, to, value }) => {
                            let frame = replaced(frame, from, to, &value);
                            self.raw.advance(FRAME_HEAD_BYTES + length);
                            self.ready.extend_from_slice(&frame);
                        }
                        None => self.take(FRAME_HEAD_BYTES + length),
                    }
                }
                State::Pass(left) => {
                    let length = left.min(self.raw.len());
                    self.take(length);
                    if length < left {
                        self.state = State::Pass(left - length);
                        return;
                    }
                    self.state = State::Frame;
                }
                State::Off => return self.take(self.raw.len()),
            }
        }
    }

    fn take(&mut self, length: usize) {
        let taken = self.raw.split_to(length);
        self.ready.unsplit(taken);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.ready.is_empty() {
                let length = self.ready.len().min(buffer.remaining());
                buffer.put_slice(&self.ready[..length]);
                self.ready.advance(length);
                return Poll::Ready(Ok(()));
            }
            if matches!(self.state, State::Off) {
                return Pin::new(&mut self.inner).poll_read(context, buffer);
            }
            let mut piece = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The end, perhaps within a frame.
                self.state = State::Off;
            }
            self.raw.extend_from_slice(read.filled());
            self.advance();
            if self.ready.is_empty() && matches!(self.state, State::Off) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// An authority that a frame carries.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Good,
    /// The text, with its length, is at `from..to` of the frame.
    Bad {
        from: usize,
        to: usize,
        value: Vec<u8>,
    },
}

/// Looks for a literal `:authority` in a frame of headers; none when there is none, or it cannot be read.
fn read(frame: &[u8]) -> Option<Found> {
    let flags = frame[4];
    let mut at = FRAME_HEAD_BYTES;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = frame.get(..end)?;
    while at < block.len() {
        let first = block[at];
        // Which bits of the first byte are a number, and whether texts follow.
        let (bits, literal) = match first {
            0x80.. => (7, false),
            0x40..0x80 => (6, true),
            // The header table gets another size.
            0x20..0x40 => (5, false),
            _ => (4, true),
        };
        let name = integer(block, &mut at, bits)?;
        if !literal {
            continue;
        }
        if name == 0 {
            text(block, &mut at)?;
        }
        let from = at;
        let (huffman, bytes) = text(block, &mut at)?;
        if name == AUTHORITY {
            let value = if huffman { decoded(bytes)? } else { bytes.to_vec() };
            let good = !value.windows(3).any(|part| part == b"://");
            return Some(if good { Found::Good } else { Found::Bad { from, to: at, value } });
        }
    }
    None
}

/// A number whose first part is in so many bits.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut number = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if number < most {
        return Some(number);
    }
    for shift in [0, 7, 14] {
        let byte = *block.get(*at)?;
        *at += 1;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A text as it is, and whether it is in Huffman's code.
fn text<'a>(block: &'a [u8], at: &mut usize) -> Option<(bool, &'a [u8])> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let bytes = block.get(*at..*at + length)?;
    *at += length;
    Some((huffman, bytes))
}

/// The codes of what addresses are written with: character, code, bits.
const CODES: [(u8, u32, u32); 42] = [
    (b'-', 0x16, 6),
    (b'.', 0x17, 6),
    (b'/', 0x18, 6),
    (b'0', 0x0, 5),
    (b'1', 0x1, 5),
    (b'2', 0x2, 5),
    (b'3', 0x19, 6),
    (b'4', 0x1a, 6),
    (b'5', 0x1b, 6),
    (b'6', 0x1c, 6),
    (b'7', 0x1d, 6),
    (b'8', 0x1e, 6),
    (b'9', 0x1f, 6),
    (b':', 0x5c, 7),
    (b'[', 0x1ffb, 13),
    (b']', 0x1ffc, 13),
    (b'a', 0x3, 5),
    (b'b', 0x23, 6),
    (b'c', 0x4, 5),
    (b'd', 0x24, 6),
    (b'e', 0x5, 5),
    (b'f', 0x25, 6),
    (b'g', 0x26, 6),
    (b'h', 0x27, 6),
    (b'i', 0x6, 5),
    (b'j', 0x74, 7),
    (b'k', 0x75, 7),
    (b'l', 0x28, 6),
    (b'm', 0x29, 6),
    (b'n', 0x2a, 6),
    (b'o', 0x7, 5),
    (b'p', 0x2b, 6),
    (b'q', 0x76, 7),
    (b'r', 0x2c, 6),
    (b's', 0x8, 5),
    (b't', 0x9, 5),
    (b'u', 0x2d, 6),
    (b'v', 0x77, 7),
    (b'w', 0x78, 7),
    (b'x', 0x79, 7),
    (b'y', 0x7a, 7),
    (b'z', 0x7b, 7),
];

/// Longest code of those.
const CODE_BITS_MAX: u32 = 13;

/// The text of Huffman's code, if it has nothing but these characters.
fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let (mut code, mut bits) = (0, 0);
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            if let Some((character, _, _)) = CODES.iter().find(|(_, known, length)| (*known, *length) == (code, bits)) {
                text.push(*character);
                (code, bits) = (0, 0);
            } else if bits > CODE_BITS_MAX {
                return None;
            }
        }
    }
    // The rest is filled with ones.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

/// The frame with another text at `from..to`.
fn replaced(frame: &[u8], from: usize, to: usize, value: &[u8]) -> Vec<u8> {
    let good: Vec<u8> = {
        let scheme = value.windows(3).position(|part| part == b"://").unwrap_or(0);
        let keep = |index: usize, byte: u8| match byte {
            // Of `http://HOST:PORT` the part before the host becomes a part of its name.
            b':' | b'/' if index < scheme + 3 => b'-',
            // What follows the port, if anything does.
            b'/' => b'0',
            other => other,
        };
        value.iter().enumerate().map(|(index, byte)| keep(index, *byte)).collect()
    };
    let mut text = Vec::with_capacity(good.len() + 2);
    match u8::try_from(good.len()) {
        Ok(length @ 0..=126) => text.push(length),
        _ => {
            text.push(127);
            let mut rest = good.len() - 127;
            while rest >= 128 {
                text.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            text.push(rest as u8);
        }
    }
    text.extend(good);
    let mut new = [&frame[..from], &text, &frame[to..]].concat();
    let length = (new.len() - FRAME_HEAD_BYTES) as u32;
    new[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// Codes a text as Go's library does.
    fn coded(text: &str) -> Vec<u8> {
        let mut bits = String::new();
        for byte in text.bytes() {
            let (_, code, length) = CODES.iter().find(|(character, _, _)| *character == byte).unwrap();
            bits += &format!("{code:0width$b}", width = *length as usize);
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let bytes: Vec<u8> =
            (0..bits.len()).step_by(8).map(|at| u8::from_str_radix(&bits[at..at + 8], 2).unwrap()).collect();
        [&[0x80 | bytes.len() as u8][..], &bytes].concat()
    }

    fn plain(text: &str) -> Vec<u8> {
        [&[text.len() as u8][..], text.as_bytes()].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `POST`, `http`, a path, the authority, and one more field.
    fn headers(authority: &[u8]) -> Vec<u8> {
        [
            &[0x83, 0x86, 0x44][..],
            &plain("/etcdserverpb.KV/Range"),
            &[0x41],
            authority,
            &[0x40],
            &plain("te"),
            &plain("x"),
        ]
        .concat()
    }

    async fn through(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut near, far) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await });
        let mut read = Vec::new();
        Lenient::new(far).read_to_end(&mut read).await.unwrap();
        read
    }

    #[tokio::test]
    async fn an_address_becomes_an_authority_and_everything_else_stays_as_it_is() {
        let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
        let data = frame(0, 1, &[7; 5000]);
        let with = |authority: &[u8], flags: u8, before: &[u8]| {
            let headers = frame(HEADERS, flags, &[before, &headers(authority)].concat());
            [PREFACE, &settings, &headers, &data, &headers, &data].concat()
        };
        let host = "127.0.0.1:2379";
        let url = "http://127.0.0.1:2379";
        let good = "http---127.0.0.1:2379";
        let table = [
            (with(&plain(host), 4, &[]), with(&plain(host), 4, &[])),
            (with(&coded(host), 4, &[]), with(&coded(host), 4, &[])),
            (with(&plain(url), 4, &[]), with(&plain(good), 4, &[])),
            (with(&coded(url), 4, &[]), with(&plain(good), 4, &[])),
            (with(&coded(url), 4 | PRIORITY, &[0; 5]), with(&plain(good), 4 | PRIORITY, &[0; 5])),
            (b"GET /health HTTP/1.1\r\n\r\n".to_vec(), b"GET /health HTTP/1.1\r\n\r\n".to_vec()),
            (PREFACE[..10].to_vec(), PREFACE[..10].to_vec()),
            // Cut off within a frame.
            (with(&plain(url), 4, &[])[..60].to_vec(), with(&plain(url), 4, &[])[..60].to_vec()),
        ];
        for (sent, expected) in table {
            for piece in [1, 7, 100_000] {
                assert_eq!(through(&sent, piece).await, expected, "in pieces of {piece}");
            }
        }
    }
}
