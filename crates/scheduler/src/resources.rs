//! What a pod asks of a node, in whole units: CPU in thousandths, everything else in its own unit.
//!
//! Source: `k8s.io/component-helpers/resource.PodRequests` (KEP-753 sidecars, KEP-2837 pod-level resources).

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;

use crate::types::{Container, Pod};

/// Amounts by resource name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Reads a resource list; an amount that does not parse counts as nothing (the API server does not let one in).
    pub fn parse(list: &BTreeMap<String, String>) -> Amounts {
        let amount = |name: &str, text: &str| {
            let quantity = Quantity::parse(text).ok()?;
            Some(if name == "cpu" { quantity.milli_value() } else { quantity.value() })
        };
        Amounts(list.iter().filter_map(|(name, text)| Some((name.clone(), amount(name, text)?))).collect())
    }

    pub fn add(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub fn subtract(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise_to(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }

    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// What the scheduler must find free for `pod`: the larger of its running phase and of each step of its start.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let of = |c: &Container| Amounts::parse(&c.resources.requests);
    let mut running = Amounts::default();
    for container in &pod.spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Amounts::default();
    let mut starting = Amounts::default();
    for container in &pod.spec.init_containers {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&step);
            running.add(&step);
            step = sidecars.clone();
        } else {
            step.add(&sidecars);
        }
        starting.raise_to(&step);
    }
    running.raise_to(&starting);
    if let Some(pod_level) = &pod.spec.resources {
        running.0.extend(Amounts::parse(&pod_level.requests).0);
    }
    running.add(&Amounts::parse(&pod.spec.overhead));
    running
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: &str, sidecar: bool) -> Container {
        let mut c = Container::default();
        c.resources.requests.insert("cpu".into(), cpu.into());
        c.restart_policy = sidecar.then(|| "Always".into());
        c
    }

    #[test]
    fn a_pod_asks_for_the_larger_of_start_and_run() {
        // (init containers, containers, overhead, milli CPU). Source: KEP-753 "Resources calculation".
        let s = |cpu| (cpu, true);
        let i = |cpu| (cpu, false);
        for (init, main, overhead, want) in [
            (vec![], vec!["100m", "200m"], "0", 300),
            (vec![i("500m")], vec!["100m"], "0", 500),
            (vec![s("200m")], vec!["100m"], "0", 300),
            (vec![s("200m"), i("500m")], vec!["100m"], "0", 700),
            (vec![i("500m"), s("200m")], vec!["100m"], "0", 500),
            (vec![], vec!["1"], "250m", 1250),
        ] {
            let mut pod = Pod::default();
            pod.spec.init_containers = init.iter().map(|(cpu, sidecar)| container(cpu, *sidecar)).collect();
            pod.spec.containers = main.iter().map(|cpu| container(cpu, false)).collect();
            pod.spec.overhead.insert("cpu".into(), overhead.into());
            assert_eq!(pod_requests(&pod).get("cpu"), want, "init {init:?}, containers {main:?}");
        }
    }
}
