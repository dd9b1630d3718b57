//! `vcluster.yaml`: which keys exist, what they mean to us, and how several files become one configuration.
//!
//! Knows text and values. Does not know files, Kubernetes clients, or who reads the result.
//!
//! Invariants:
//! - Every key of the vCluster 0.36 chart is known with its type and default (`data/keys.txt`). Any other key is an error
//!   that names it, says where it stands and suggests the nearest known one.
//! - A known key that does nothing here yet is refused by name as soon as it is set to something else than its default
//!   (`data/built.txt` lists what is built). Nothing is silently ignored.
//! - Merging follows Helm: maps merge, lists and scalars replace, `null` removes.
//! - A [`Config`] that exists has passed all of it, and [`Config::to_yaml`] loads again to the same values.
//!
//! Follows: the vCluster chart's `values.yaml` and `values.schema.json` (0.36), Helm's `strvals` for `--set`.

mod check;
mod duration;
mod error;
mod merge;
mod model;
mod rules;
mod schema;
mod set;
pub mod stored;
mod table;
mod validate;
pub mod yaml;

pub use check::Built;
pub use duration::duration;
pub use error::{ConfigError, Problem};
pub use merge::merge;
pub use model::*;
pub use schema::json_schema;
pub use set::parse_set;
pub use table::{Key, Kind, known_keys};

use serde_json::Value;

/// One `vcluster.yaml` text and the name it has in messages (a file name, `-`, a Secret's key).
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Source { name: name.into(), text: text.into() }
    }
}

/// Reads `sources` in order, then `sets` (`a.b=c,d[0]=e`), over the defaults, and validates the result.
///
/// All problems that can be found are reported together, those with a position in a file first.
pub fn load(sources: &[Source], sets: &[String]) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let mut overrides = Value::Object(Default::default());
    for source in sources {
        match yaml::parse(&source.text) {
            Ok(None) => {}
            Ok(Some(node)) => {
                check::check_document(&source.name, &node, &mut problems);
                merge(&mut overrides, node.to_value());
            }
            Err(error) => problems.push(Problem {
                source: Some(source.name.clone()),
                line: error.line,
                column: error.column,
                path: String::new(),
                message: error.message,
            }),
        }
    }
    for set in sets {
        match parse_set(set, &mut overrides) {
            Ok(()) => {}
            Err(message) => problems.push(Problem::at_path("", format!("--set {set}: {message}"))),
        }
    }
    if !sets.is_empty() && problems.is_empty() {
        check::check_value(&overrides, &mut problems);
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    Config::from_overrides(overrides)
}

/// The configuration with nothing set.
pub fn defaults() -> Config {
    Config::from_overrides(Value::Object(Default::default())).expect("the table of defaults is valid")
}
