//! Lists of quantities by resource name, and what a whole pod asks for.
//!
//! Follows: `k8s.io/component-helpers/resource`.

use std::collections::BTreeMap;

use apimachinery::Value;
use apimachinery::quantity::{Format, Quantity};

/// Quantities by resource name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceList(pub BTreeMap<String, Quantity>);

impl ResourceList {
    /// Reads an object of quantities; what is none is left out (validation speaks about it).
    pub fn read(value: &Value) -> ResourceList {
        let items = value.as_object().into_iter().flat_map(|m| m.iter());
        ResourceList(items.filter_map(|(k, v)| Some((k.to_string(), Quantity::from_value(v).ok()?))).collect())
    }

    pub fn to_value(&self) -> Value {
        let mut value = Value::object();
        for (name, quantity) in &self.0 {
            value[name.as_str()] = quantity.to_string().into();
        }
        value
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&Quantity> {
        self.0.get(name)
    }

    pub fn add(&mut self, other: &ResourceList) {
        for (name, quantity) in &other.0 {
            match self.0.get_mut(name) {
                Some(sum) => sum.add(quantity),
                None => {
                    self.0.insert(name.clone(), quantity.clone());
                }
            }
        }
    }

    /// Subtracts; a resource that is not here becomes negative.
    pub fn sub(&mut self, other: &ResourceList) {
        for (name, quantity) in &other.0 {
            let mut result = self.0.get(name).cloned().unwrap_or_else(|| Quantity::new(0, Format::DecimalSI));
            result.sub(quantity);
            self.0.insert(name.clone(), result);
        }
    }

    pub fn max(&mut self, other: &ResourceList) {
        for (name, quantity) in &other.0 {
            if self.0.get(name).is_none_or(|mine| quantity > mine) {
                self.0.insert(name.clone(), quantity.clone());
            }
        }
    }

    /// Only the resources in `names`.
    pub fn mask(&self, names: &[String]) -> ResourceList {
        ResourceList(self.0.iter().filter(|(k, _)| names.contains(k)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

/// What a pod's spec asks for (`kind`: `requests` or `limits`): the sum of its containers, or an init container if that
/// is more. Quantities of the pod itself win. Overhead is not counted.
pub fn pod_total(pod: &Value, kind: &str) -> ResourceList {
    let of = |container: &Value| ResourceList::read(container.at(&["resources", kind]).unwrap_or(&Value::Null));
    let mut total = ResourceList::default();
    for container in pod.array_at(&["spec", "containers"]) {
        total.add(&of(container));
    }
    let (mut sidecars, mut init) = (ResourceList::default(), ResourceList::default());
    for container in pod.array_at(&["spec", "initContainers"]) {
        let own = of(container);
        if container.str_at(&["restartPolicy"]) == "Always" {
            total.add(&own);
            sidecars.add(&own);
            init.max(&sidecars);
        } else {
            let mut together = own;
            together.add(&sidecars);
            init.max(&together);
        }
    }
    total.max(&init);
    let whole = ResourceList::read(pod.at(&["spec", "resources", kind]).unwrap_or(&Value::Null));
    total.0.extend(whole.0);
    total
}

#[cfg(test)]
mod tests {
    use apimachinery::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_init_container() {
        let pod = json!({"spec": {
            "containers": [
                {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
                {"resources": {"requests": {"cpu": "200m"}}},
            ],
            "initContainers": [
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"resources": {"requests": {"cpu": "1"}}},
            ],
        }});
        assert_eq!(pod_total(&pod, "requests"), ResourceList::read(&json!({"cpu": "1050m", "memory": "1Gi"})));
        assert!(pod_total(&pod, "limits").is_empty());
    }
}
