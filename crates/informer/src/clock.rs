//! The wall clock, passed in so that tests decide what time it is.

use std::sync::Arc;

use jiff::Timestamp;

/// Tells the time of day. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that starts at `start` and advances with tokio's time, also when that is paused.
    pub fn from_tokio(start: Timestamp) -> Self {
        let began = tokio::time::Instant::now();
        Clock(Arc::new(move || start + began.elapsed()))
    }

    /// A clock that tells whatever `now` says.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// Now as `metav1.Time` writes it: UTC, whole seconds.
    pub fn now_rfc3339(&self) -> String {
        format_seconds(self.now())
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// A time as `metav1.Time` writes it: UTC, whole seconds.
pub fn format_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `metav1.MicroTime` writes it.
pub fn format_micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
