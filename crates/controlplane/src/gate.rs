//! Whether a control plane answers its users. It does not while its data is being moved: neither where the data comes from,
//! so that nothing is written after the copy, nor where it goes to, so that nobody takes the empty cluster for their own.
//!
//! Operators, probes and metrics are answered all the while. A hold ends by itself: whoever asked for it may be gone.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing is written until then.
    Held(Instant),
    /// The data with this name has not arrived yet.
    Awaits(String),
}

#[derive(Debug)]
pub(crate) struct Gate(Mutex<State>);

impl Default for Gate {
    fn default() -> Gate {
        Gate(Mutex::new(State::Open))
    }
}

/// Asked by the host and by Prometheus, not by users.
const PROBES: [&str; 4] = ["/healthz", "/livez", "/readyz", "/metrics"];

impl Gate {
    /// Is a request turned away now?
    pub fn is_closed_for(&self, path: &str) -> bool {
        let closed = match &*self.0.lock() {
            State::Open => false,
            State::Held(until) => Instant::now() < *until,
            // The way to the port must be open for the data to come; see `is_ready_probe`.
            State::Awaits(_) => return !PROBES.contains(&path) || path == "/readyz",
        };
        let probe = PROBES
            .iter()
            .any(|probe| path.strip_prefix(probe).is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'/'))));
        closed && !probe
    }

    pub fn hold(&self, time: Duration) {
        let mut state = self.0.lock();
        if !matches!(*state, State::Awaits(_)) {
            *state = State::Held(Instant::now() + time);
        }
    }

    pub fn release(&self) {
        let mut state = self.0.lock();
        if matches!(*state, State::Held(_)) {
            *state = State::Open;
        }
    }

    pub fn is_held(&self) -> bool {
        matches!(&*self.0.lock(), State::Held(until) if Instant::now() < *until)
    }

    pub fn await_data(&self, id: &str) {
        *self.0.lock() = State::Awaits(id.to_string());
    }

    /// The name of the data that is awaited.
    pub fn awaited(&self) -> Option<String> {
        match &*self.0.lock() {
            State::Awaits(id) => Some(id.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_turned_away_while_data_moves_and_probes_are_not() {
        let table = [
            ("/api/v1/pods", true, true),
            ("/apis", true, true),
            ("/healthzz", true, true),
            ("/healthz", false, false),
            ("/livez", false, false),
            ("/livez/ping", false, true),
            ("/metrics", false, false),
            // Answered in another way while data is awaited.
            ("/readyz", false, true),
        ];
        let gate = Gate::default();
        for (path, held, awaiting) in table {
            assert!(!gate.is_closed_for(path), "{path}");
            gate.hold(Duration::from_secs(60));
            assert_eq!(gate.is_closed_for(path), held, "{path}");
            gate.release();
            let other = Gate::default();
            other.await_data("id");
            other.hold(Duration::from_secs(60));
            other.release();
            assert_eq!(other.is_closed_for(path), awaiting, "{path}");
        }
        gate.hold(Duration::ZERO);
        assert!(!gate.is_closed_for("/api") && !gate.is_held(), "a hold ends by itself");
    }
}
