//! Bodies of requests and answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request, from whichever transport.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Boxes the body of a request.
pub fn request_body<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Whole(Some(body.map_err(Into::into).boxed_unsync())).boxed_unsync()
}

/// How much of a body that nobody wants is read all the same, and for how long.
const UNWANTED_BYTES_MAX: u64 = 1024 * 1024;
const UNWANTED_TIME_MAX: Duration = Duration::from_secs(5);

/// A body of which the rest is read when it is dropped: a request that is refused by its head must not cost its client the
/// connection, which in HTTP/1 goes on behind the body.
struct Whole(Option<RequestBody>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let Some(mut rest) = self.0.take() else { return };
        let small = http_body::Body::size_hint(&rest).upper().is_some_and(|bytes| bytes <= UNWANTED_BYTES_MAX);
        if !small || http_body::Body::is_end_stream(&rest) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let read = async { while let Some(Ok(_)) = rest.frame().await {} };
            // What does not come in time costs the connection after all.
            let _ = tokio::time::timeout(UNWANTED_TIME_MAX, read).await;
        });
    }
}

/// The body of an answer.
pub enum Body {
    Full(Option<Bytes>),
    Stream(BoxStream<'static, Bytes>),
}

impl Body {
    pub fn empty() -> Body {
        Body::Full(None)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(Some(bytes).filter(|b| !b.is_empty()))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Body::Stream(stream) => stream.as_mut().poll_next(cx).map(|b| b.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Full(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Body::Full(bytes) => http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream(_) => http_body::SizeHint::default(),
        }
    }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBodyError {
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the body ended early")]
    Interrupted(#[source] BoxError),
}

/// Reads a whole body of at most `limit` bytes.
pub async fn read_body(mut body: RequestBody, limit: usize) -> Result<Bytes, ReadBodyError> {
    let mut first = Bytes::new();
    let mut more = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadBodyError::Interrupted)?.into_data() else { continue };
        if first.len() + more.len() + data.len() > limit {
            return Err(ReadBodyError::TooLarge { limit });
        }
        // Most bodies come in one piece: hand that on without a copy.
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.into() })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Parts that come one by one, and how many have been taken.
    struct Parts(VecDeque<Bytes>, Arc<AtomicUsize>);

    impl http_body::Body for Parts {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let part = self.0.pop_front();
            self.1.fetch_add(usize::from(part.is_some()), Ordering::Relaxed);
            Poll::Ready(part.map(|part| Ok(Frame::data(part))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
        }
    }

    #[tokio::test]
    async fn the_rest_of_a_small_body_that_nobody_wants_is_read() {
        for (size, want) in [(10, 3), (1024 * 1024, 1)] {
            let taken = Arc::new(AtomicUsize::new(0));
            let parts = (0..3).map(|_| Bytes::from(vec![0; size])).collect();
            let mut body = request_body(Parts(parts, taken.clone()));
            assert!(body.frame().await.is_some());
            drop(body);
            // The reader runs when this task waits.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(taken.load(Ordering::Relaxed), want, "parts of {size} bytes");
        }
    }
}
