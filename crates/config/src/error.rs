//! Problems of a configuration: where, which key, what to do.

use std::fmt;

/// One thing that is wrong, with as much of its position as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the [`crate::Source`].
    pub source: Option<String>,
    /// 1-based; 0 when unknown.
    pub line: u64,
    /// 1-based; 0 when unknown.
    pub column: u64,
    /// `sync.toHost.pods.enabled`, empty for the whole document.
    pub path: String,
    pub message: String,
}

impl Problem {
    pub(crate) fn at_path(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { source: None, line: 0, column: 0, path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}:")?;
            if self.line > 0 {
                write!(f, "{}:{}:", self.line, self.column)?;
            }
            write!(f, " ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Why a configuration was refused: at least one [`Problem`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}
