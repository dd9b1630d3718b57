//! Exponential backoff with jitter.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/wait.Backoff` as the reflector uses it (doubles, jittered, forgets after quiet).

use std::time::Duration;

use tokio::time::Instant;

/// The delays between attempts: `base`, doubling up to `max`, each lengthened by up to its own length.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    reset_after: Duration,
    next: Duration,
    last: Option<Instant>,
    jitter: fn() -> f64,
}

impl Backoff {
    /// A backoff that starts over when `reset_after` has passed without a failure.
    pub fn new(base: Duration, max: Duration, reset_after: Duration) -> Self {
        Backoff { base, max, reset_after, next: base, last: None, jitter: rand::random::<f64> }
    }

    /// Replaces the source of jitter (a number in `0.0..1.0`), for tests.
    pub fn with_jitter(mut self, jitter: fn() -> f64) -> Self {
        self.jitter = jitter;
        self
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > self.reset_after) {
            self.next = self.base;
        }
        self.last = Some(now);
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay + delay.mul_f64((self.jitter)())
    }

    /// Starts over: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.base;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_up_to_the_maximum_and_start_over_after_quiet() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::new(s(1), s(5), s(60)).with_jitter(|| 0.5);
        let delays: Vec<f64> = (0..4).map(|_| backoff.next_delay().as_secs_f64()).collect();
        assert_eq!(delays, [1.5, 3.0, 6.0, 7.5]);
        tokio::time::advance(s(61)).await;
        assert_eq!(backoff.next_delay(), Duration::from_millis(1500));
    }
}
