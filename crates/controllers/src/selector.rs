//! `metav1.LabelSelector` over slim label maps.
//!
//! Follows: `k8s.io/apimachinery/pkg/apis/meta/v1` (`LabelSelectorAsSelector`).

use apimachinery::json::Str;
use informer::{StrMap, null_default};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(deserialize_with = "null_default", skip_serializing_if = "StrMap::is_empty")]
    pub match_labels: StrMap,
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Requirement {
    pub key: Str,
    pub operator: Str,
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Str>,
}

impl LabelSelector {
    pub fn from_labels(labels: &StrMap) -> Self {
        LabelSelector { match_labels: labels.clone(), match_expressions: Vec::new() }
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// An unknown operator matches nothing.
    pub fn matches(&self, labels: &StrMap) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|r| r.matches(labels))
    }

    /// The selector as a query string.
    pub fn to_query(&self) -> String {
        let mut parts: Vec<String> = self.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        for r in &self.match_expressions {
            let values = r.values.join(",");
            parts.push(match r.operator.as_str() {
                "In" => format!("{} in ({values})", r.key),
                "NotIn" => format!("{} notin ({values})", r.key),
                "DoesNotExist" => format!("!{}", r.key),
                _ => r.key.to_string(),
            });
        }
        parts.join(",")
    }
}

impl Requirement {
    fn matches(&self, labels: &StrMap) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.iter().any(|w| w == v)),
            "NotIn" => value.is_none_or(|v| !self.values.iter().any(|w| w == v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn selectors_match_labels() {
        for (selector, labels, want) in [
            (json!({}), json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), json!({"a": "1", "b": "2"}), true),
            (json!({"matchLabels": {"a": "1"}}), json!({"a": "2"}), false),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}),
                json!({"a": "2"}),
                true,
            ),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}), json!({}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), json!({"a": ""}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), json!({"a": ""}), false),
        ] {
            let parsed: LabelSelector = selector.to().unwrap();
            assert_eq!(parsed.matches(&labels.to().unwrap()), want, "{selector} on {labels}");
        }
    }
}
