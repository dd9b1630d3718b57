//! `metadata.managedFields`: who owns which fields, as it is stored and as it is worked with.
//!
//! A manager is known by name, operation, subresource and, for updates, API version: one name can have several entries.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/managedfields/internal/{managedfields,capmanagers,conflict}.go`.

use std::collections::BTreeMap;
use std::fmt;

use super::path::{PathElement, print_path};
use super::set::{DecodeSetError, Set};
use crate::json::{Map, Value};
use crate::status::{Status, StatusCause, cause};
use crate::text::quote;
use crate::time::Timestamp;

/// Beyond this many entries of updates the oldest become one.
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager of merged old updates.
pub const ANCIENT_CHANGES: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What identifies an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    /// Empty for [`Operation::Apply`]: an applier has one entry whatever version it used.
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    pub fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Manager {
            name: name.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

impl fmt::Display for Manager {
    /// The manager as conflicts name it: `"kubectl" with subresource "scale" using apps/v1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quote(&self.name))?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {}", quote(&self.subresource))?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// The fields of one manager, in terms of one API version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedSet {
    pub set: Set,
    pub api_version: String,
}

/// All entries of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    pub fields: BTreeMap<Manager, VersionedSet>,
    /// As stored: RFC 3339. Kept apart, because a manager that loses all fields and gets new ones keeps its time.
    pub times: BTreeMap<Manager, String>,
}

/// Why stored entries cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    #[error("apiVersion must not be empty")]
    ApiVersion,
    #[error("missing fieldsType in managed fields entry {0}")]
    MissingFieldsType(usize),
    #[error("invalid fieldsType {} in managed fields entry {index}", quote(.fields_type))]
    FieldsType { fields_type: String, index: usize },
    #[error("error decoding versioned set: error decoding set: {0}")]
    Set(#[from] DecodeSetError),
}

impl Managed {
    /// Reads the entries of `metadata.managedFields`.
    pub fn decode(entries: &[Value]) -> Result<Managed, DecodeError> {
        let mut managed = Managed::default();
        for (index, entry) in entries.iter().enumerate() {
            let operation = match entry.str_at(&["operation"]) {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err(DecodeError::Operation),
            };
            let api_version = entry.str_at(&["apiVersion"]);
            if api_version.is_empty() {
                return Err(DecodeError::ApiVersion);
            }
            match entry.str_at(&["fieldsType"]) {
                "FieldsV1" => {}
                "" => return Err(DecodeError::MissingFieldsType(index)),
                other => return Err(DecodeError::FieldsType { fields_type: other.to_owned(), index }),
            }
            let set = match &entry["fieldsV1"] {
                Value::Null => Set::new(),
                fields => Set::from_fields_v1(fields)?,
            };
            let manager =
                Manager::new(entry.str_at(&["manager"]), operation, api_version, entry.str_at(&["subresource"]));
            if let Some(time) = entry["time"].as_str() {
                managed.times.insert(manager.clone(), time.to_owned());
            }
            managed.fields.insert(manager, VersionedSet { set, api_version: api_version.to_owned() });
        }
        Ok(managed)
    }

    /// The entries as they are stored: appliers first, then by time, name, version and subresource.
    pub fn encode(&self) -> Vec<Value> {
        let mut entries: Vec<(&Manager, &VersionedSet, i64)> =
            self.fields.iter().map(|(manager, set)| (manager, set, self.seconds(manager))).collect();
        entries.sort_by(|(a, a_set, a_time), (b, b_set, b_time)| {
            a.operation
                .cmp(&b.operation)
                .then_with(|| a_time.cmp(b_time))
                .then_with(|| a.name.cmp(&b.name))
                .then_with(|| a_set.api_version.cmp(&b_set.api_version))
                .then_with(|| a.subresource.cmp(&b.subresource))
        });
        entries
            .into_iter()
            .map(|(manager, set, _)| {
                let mut entry = Map::with_capacity(7);
                if !manager.name.is_empty() {
                    entry.insert("manager", manager.name.as_str().into());
                }
                entry.insert("operation", manager.operation.as_str().into());
                entry.insert("apiVersion", set.api_version.as_str().into());
                if let Some(time) = self.times.get(manager) {
                    entry.insert("time", time.as_str().into());
                }
                entry.insert("fieldsType", "FieldsV1".into());
                entry.insert("fieldsV1", set.set.to_fields_v1());
                if !manager.subresource.is_empty() {
                    entry.insert("subresource", manager.subresource.as_str().into());
                }
                Value::Object(entry)
            })
            .collect()
    }

    fn seconds(&self, manager: &Manager) -> i64 {
        self.times.get(manager).and_then(|t| Timestamp::parse(t)).map_or(0, |t| t.seconds)
    }

    /// Merges the oldest updates into one entry per API version until at most [`MAX_UPDATE_MANAGERS`] are left.
    pub(super) fn cap_updates(&mut self) {
        let mut updates: Vec<Manager> =
            self.fields.keys().filter(|m| m.operation == Operation::Update).cloned().collect();
        let mut left = updates.len();
        if left <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort_by(|a, b| self.seconds(a).cmp(&self.seconds(b)).then_with(|| a.cmp(b)));
        let mut first_of_version: BTreeMap<String, Manager> = BTreeMap::new();
        for manager in updates {
            if left <= MAX_UPDATE_MANAGERS {
                return;
            }
            let Some(version) = self.fields.get(&manager).map(|s| s.api_version.clone()) else { continue };
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, manager);
                continue;
            };
            let bucket = Manager::new(ANCIENT_CHANGES, Operation::Update, &version, "");
            if !self.fields.contains_key(&bucket)
                && let Some(set) = self.fields.remove(first)
            {
                self.fields.insert(bucket.clone(), set);
            }
            if bucket == manager {
                // The bucket is among the oldest itself; it has taken the first one's fields above or before.
                first_of_version.insert(version, manager);
                continue;
            }
            let Some(merged) = self.fields.remove(&manager) else { continue };
            if let Some(set) = self.fields.get_mut(&bucket) {
                set.set = set.set.union(&merged.set);
            }
            left -= 1;
            match self.times.get(&manager).cloned() {
                Some(time) => self.times.insert(bucket, time),
                None => self.times.remove(&bucket),
            };
        }
    }
}

/// A field that an apply would take from another manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: Manager,
    pub path: Vec<PathElement>,
}

/// The 409 for conflicts: one cause per field, and a text that lists them by manager.
pub fn conflict_status(conflicts: &[Conflict]) -> Status {
    let causes = conflicts
        .iter()
        .map(|c| StatusCause {
            reason: cause::FIELD_MANAGER_CONFLICT.to_owned(),
            message: format!("conflict with {}", c.manager),
            field: print_path(&c.path),
        })
        .collect();
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, print_path(&one.path)),
        _ => {
            let mut by_manager: BTreeMap<&Manager, Vec<String>> = BTreeMap::new();
            for c in conflicts {
                by_manager.entry(&c.manager).or_default().push(print_path(&c.path));
            }
            let mut lines = Vec::new();
            for (manager, paths) in by_manager {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(paths.iter().map(|path| format!("- {path}")));
            }
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        }
    };
    Status::apply_conflict(causes, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn entry(manager: &str, operation: &str, time: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": serde_json::Value::from(fields)})
    }

    #[test]
    fn entries_are_sorted_by_operation_time_and_name() {
        let (a, b, c) = (
            entry("a", "Update", "2024-01-01T00:00:01Z", json!({"f:x": {}})),
            entry("b", "Update", "2024-01-01T00:00:00Z", json!({"f:y": {}})),
            entry("c", "Apply", "2024-01-01T00:00:02Z", json!({"f:z": {}})),
        );
        let managed = Managed::decode(&[a.clone(), b.clone(), c.clone()]).expect("valid entries");
        assert_eq!(managed.encode(), [c, b, a]);
    }

    #[test]
    fn malformed_entries_are_refused() {
        let good = entry("a", "Update", "2024-01-01T00:00:00Z", json!({}));
        for (field, value, want) in [
            ("operation", json!("Create"), DecodeError::Operation),
            ("apiVersion", json!(""), DecodeError::ApiVersion),
            ("fieldsType", json!(""), DecodeError::MissingFieldsType(0)),
            ("fieldsType", json!("V2"), DecodeError::FieldsType { fields_type: "V2".into(), index: 0 }),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert_eq!(Managed::decode(&[bad]), Err(want), "{field}");
        }
    }

    #[test]
    fn the_oldest_updates_become_one_entry_per_version() {
        let entries: Vec<Value> = (0..12)
            .map(|i| {
                let mut fields = Value::object();
                fields[format!("f:x{i}").as_str()] = Value::object();
                entry(&format!("m{i:02}"), "Update", &format!("2024-01-01T00:00:{i:02}Z"), fields)
            })
            .collect();
        let mut managed = Managed::decode(&entries).expect("valid entries");
        managed.cap_updates();
        assert_eq!(managed.fields.len(), MAX_UPDATE_MANAGERS);
        let bucket = &managed.encode()[0];
        assert_eq!(bucket["manager"], ANCIENT_CHANGES);
        assert_eq!(bucket["time"], "2024-01-01T00:00:02Z");
        assert_eq!(bucket["fieldsV1"], json!({"f:x0": {}, "f:x1": {}, "f:x2": {}}));
    }

    #[test]
    fn conflicts_are_listed_by_manager() {
        let conflict = |name: &str, field: &str| Conflict {
            manager: Manager::new(name, Operation::Update, "v1", ""),
            path: vec![PathElement::field("data"), PathElement::field(field)],
        };
        assert_eq!(
            conflict_status(&[conflict("b", "x"), conflict("a", "y"), conflict("b", "z")]).message,
            "Apply failed with 3 conflicts: conflicts with \"a\" using v1:\n- .data.y\nconflicts with \"b\" using v1:\n- .data.x\n- .data.z"
        );
        let mut scale = conflict("m", "x");
        scale.manager = Manager::new("m", Operation::Apply, "v1", "scale");
        assert_eq!(
            conflict_status(&[scale]).message,
            "Apply failed with 1 conflict: conflict with \"m\" with subresource \"scale\": .data.x"
        );
    }
}
