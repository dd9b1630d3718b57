//! How a command ends: exit codes that scripts can use, messages that say what to do next.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the command line or a file is wrong; nothing was changed |
//! | 3 | what was named does not exist |
//! | 4 | what was to be made exists already |
//! | 5 | waited too long |
//!
//! `connect NAME -- COMMAND` ends with the code of the command.

use std::fmt;
use std::process::ExitCode;

use crate::ui::Ui;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Failed = 1,
    Invalid = 2,
    NotFound = 3,
    Exists = 4,
    TimedOut = 5,
}

/// An error with an exit code and, mostly, advice.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure { reason, message: message.into(), hint: None }
    }
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Failed, message)
    }
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Invalid, message)
    }
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Reason::NotFound, message)
    }
    pub fn exists(message: impl Into<String>) -> Failure {
        Failure::new(Reason::Exists, message)
    }
    pub fn timed_out(message: impl Into<String>) -> Failure {
        Failure::new(Reason::TimedOut, message)
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

/// Prints the error with its chain and returns the exit code.
pub fn report(ui: &Ui, error: &anyhow::Error) -> ExitCode {
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let mut text = String::new();
    for (index, cause) in error.chain().enumerate() {
        let cause = cause.to_string();
        // Libraries often repeat their source in their own text.
        if index > 0 && text.contains(&cause) {
            continue;
        }
        if index > 0 {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    ui.error(&text);
    if let Some(hint) = failure.and_then(|failure| failure.hint.as_deref()) {
        ui.hint(hint);
    }
    ExitCode::from(failure.map_or(1, |failure| failure.reason as u8))
}
