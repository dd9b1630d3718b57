//! Tables: what `kubectl get` shows of an object.
//!
//! Columns are data ([`columns()`]); a row's cells are computed from the object alone and the time, so that ages can be
//! shown. Tables of custom resources use the columns of their definitions and are made elsewhere.
//!
//! Follows `pkg/printers/internalversion` and `k8s.io/apiserver/pkg/registry/rest/table.go`.

mod columns;
mod pod;
mod rows;

pub use columns::{CREATION_TIMESTAMP_TEXT, NAME_TEXT};

use crate::gvk::GroupVersionKind;
use crate::json;
use crate::json::Value;
use crate::time::Timestamp;

/// One column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the column that identifies the row.
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 only in wide output.
    pub priority: i32,
}

impl Column {
    /// The column as an entry of `columnDefinitions`.
    pub fn to_value(&self) -> Value {
        json!({
            "name": self.name, "type": self.kind, "format": self.format,
            "description": self.description, "priority": self.priority
        })
    }
}

/// The cells of one object, and what a client may want to know to hide the row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub cells: Vec<Value>,
    /// `conditions` of the row, for pods that have ended; mostly empty.
    pub conditions: Vec<Value>,
}

/// The columns of a built-in kind; two default ones for kinds without their own.
pub fn columns(gvk: &GroupVersionKind) -> &'static [Column] {
    columns::of(&gvk.group, &gvk.kind)
}

/// The row of an object of a built-in kind at the time `now`.
pub fn row(gvk: &GroupVersionKind, object: &Value, now: Timestamp) -> Row {
    if (gvk.group.as_str(), gvk.kind.as_str()) == ("", "Pod") {
        return pod::row(object, now);
    }
    Row { cells: rows::cells(gvk, object, now), conditions: Vec::new() }
}

/// How long ago `time` was, as Tables show it; `<unknown>` when it is not a time.
pub fn age(time: &str, now: Timestamp) -> String {
    rows::age(&Value::from(time), now)
}
