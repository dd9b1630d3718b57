//! Values that are an integer or a string: ports by number or name, counts by number or percentage.
//!
//! Follows: `k8s.io/apimachinery/pkg/util/intstr`.

use std::fmt;

use crate::json::Value;
use crate::text::quote;

/// An integer or a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

/// Why a value is neither a count nor a percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    #[error("invalid value for IntOrString: invalid type: string is not a percentage")]
    NotAPercentage,
    #[error("invalid value for IntOrString: invalid value {}: strconv.Atoi: parsing {}: {problem}", quote(.value), quote(.digits))]
    Number { value: String, digits: String, problem: &'static str },
}

impl IntOrString {
    /// What a tree holds; `None` for anything but an integer or a string.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(s) => Some(IntOrString::String(s.to_string())),
            other => other.as_i64().map(|i| IntOrString::Int(i32::try_from(i).unwrap_or(i32::MAX))),
        }
    }

    /// A text as a number when it is one.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| IntOrString::String(text.to_owned()), IntOrString::Int)
    }

    /// The number, also of a string that holds one; 0 otherwise.
    pub fn int_value(&self) -> i64 {
        match self {
            IntOrString::Int(i) => i64::from(*i),
            IntOrString::String(s) => s.parse().unwrap_or(0),
        }
    }

    /// The count: a percentage is taken of `total`, rounded up or down.
    pub fn scaled_value(&self, total: i64, round_up: bool) -> Result<i64, ScaleError> {
        let text = match self {
            IntOrString::Int(i) => return Ok(i64::from(*i)),
            IntOrString::String(s) => s,
        };
        let digits = text.strip_suffix('%').ok_or(ScaleError::NotAPercentage)?;
        let percent: i64 = digits.parse().map_err(|e: std::num::ParseIntError| ScaleError::Number {
            value: text.clone(),
            digits: digits.to_owned(),
            problem: match e.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            },
        })?;
        let scaled = percent as f64 * total as f64 / 100.0;
        Ok(if round_up { scaled.ceil() } else { scaled.floor() } as i64)
    }

    pub fn to_value(&self) -> Value {
        match self {
            IntOrString::Int(i) => (*i).into(),
            IntOrString::String(s) => s.as_str().into(),
        }
    }
}

impl fmt::Display for IntOrString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IntOrString::Int(i) => i.fmt(f),
            IntOrString::String(s) => f.write_str(s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_scale_and_round() {
        for (text, total, up, want) in [
            ("25%", 10, true, Ok(3)),
            ("25%", 10, false, Ok(2)),
            ("3", 10, true, Ok(3)),
            ("100%", 0, true, Ok(0)),
            ("x", 1, true, Err("invalid value for IntOrString: invalid type: string is not a percentage")),
            (
                "x%",
                1,
                true,
                Err(r#"invalid value for IntOrString: invalid value "x%": strconv.Atoi: parsing "x": invalid syntax"#),
            ),
        ] {
            let got = IntOrString::parse(text).scaled_value(total, up).map_err(|e| e.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{text} of {total}");
        }
    }
}
