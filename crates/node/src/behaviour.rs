//! What a simulated container does, read from its pod: how long it runs and how it ends.
//!
//! A simulated node runs nothing. It imitates what the pods of tests and examples would do, judged by image and command, and
//! does what the pod's annotations ask for:
//!
//! | annotation | value | effect |
//! |---|---|---|
//! | `sim.alcove.dev/start-delay` | seconds | time from binding to running |
//! | `sim.alcove.dev/ready-delay` | seconds | time from running to ready |
//! | `sim.alcove.dev/run-for` | seconds | containers end after this time |
//! | `sim.alcove.dev/exit-code` | 0-255 | the code with which they end |
//! | `sim.alcove.dev/restarts` | count | containers fail this many times before they stay |
//! | `sim.alcove.dev/never-ready` | `true` | readiness is never reached |
//!
//! Invariant: a pure function of the pod, so a restarted node goes on where it was.

use std::time::Duration;

use apimachinery::Value;

/// Prefix of the annotations that direct a simulation.
pub const PREFIX: &str = "sim.alcove.dev/";

/// How one container behaves.
#[derive(Clone, Debug, PartialEq)]
pub enum Behaviour {
    /// The image cannot be pulled.
    NoImage,
    /// Runs until it is stopped.
    Forever,
    /// Ends by itself after `after` with `exit_code`.
    Ends { after: Duration, exit_code: i64 },
}

/// The wishes that a pod's annotations express.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    pub start_delay: Duration,
    pub ready_delay: Duration,
    pub run_for: Option<Duration>,
    pub exit_code: Option<i64>,
    pub restarts: i64,
    pub never_ready: bool,
}

impl Wishes {
    /// Reads the annotations; a value that does not parse is as if it were absent.
    pub fn of(pod: &Value) -> Wishes {
        let text =
            |name: &str| pod.at(&["metadata", "annotations"]).and_then(|a| a.get(&format!("{PREFIX}{name}")))?.as_str();
        let seconds = |name: &str| {
            let value: f64 = text(name)?.trim_end_matches('s').parse().ok()?;
            (0.0..=86_400.0).contains(&value).then(|| Duration::from_secs_f64(value))
        };
        Wishes {
            start_delay: seconds("start-delay").unwrap_or_default(),
            ready_delay: seconds("ready-delay").unwrap_or_default(),
            run_for: seconds("run-for"),
            exit_code: text("exit-code").and_then(|v| v.parse().ok()).filter(|c| (0..=255).contains(c)),
            restarts: text("restarts").and_then(|v| v.parse().ok()).unwrap_or(0),
            never_ready: text("never-ready") == Some("true"),
        }
    }
}

/// Images that tests use for a pull that must fail.
fn cannot_be_pulled(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    name.starts_with("nonexistent")
        || name.ends_with(":nonexistent")
        || name.ends_with(":non-existent")
        || name.ends_with(":404")
}

/// What `container` of `pod` does; `init` containers and pods that do not restart always end.
pub fn of_container(pod: &Value, container: &Value, init: bool, restart_count: i64) -> Behaviour {
    if cannot_be_pulled(container.str_at(&["image"])) {
        return Behaviour::NoImage;
    }
    let wishes = Wishes::of(pod);
    let sidecar = init && container.str_at(&["restartPolicy"]) == "Always";
    let command: Vec<&str> =
        ["command", "args"].iter().flat_map(|key| container.array_at(&[key])).filter_map(Value::as_str).collect();
    let (after, exit_code) = read_command(&command);
    if init && !sidecar {
        return Behaviour::Ends { after: after.unwrap_or_default(), exit_code };
    }
    if wishes.restarts > restart_count {
        let after = wishes.run_for.unwrap_or_default();
        return Behaviour::Ends { after, exit_code: wishes.exit_code.filter(|c| *c != 0).unwrap_or(1) };
    }
    if wishes.restarts == 0 && (wishes.run_for.is_some() || wishes.exit_code.is_some()) {
        let after = wishes.run_for.unwrap_or_default();
        return Behaviour::Ends { after, exit_code: wishes.exit_code.unwrap_or(0) };
    }
    let restarts_always = matches!(pod.str_at(&["spec", "restartPolicy"]), "" | "Always");
    match after {
        Some(after) if !restarts_always && !sidecar => Behaviour::Ends { after, exit_code },
        _ => Behaviour::Forever,
    }
}

/// How long a command line runs, `None` for ever, and its exit code.
///
/// A line without a command is a server. `sleep N` counts, so do `exit N`, `true` and `false`; everything else takes no time.
fn read_command(command: &[&str]) -> (Option<Duration>, i64) {
    if command.is_empty() {
        return (None, 0);
    }
    let line = command.join(" ");
    let words: Vec<&str> = line
        .split(|c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '"' | '\'' | '(' | ')'))
        .filter(|w| !w.is_empty())
        .collect();
    let endless =
        ["pause", "netexec", "test-webserver", "serve-hostname", "nginx", "httpd", "tail", "infinity", "server"];
    if words.iter().any(|w| endless.contains(&w.rsplit('/').next().unwrap_or(w)))
        || line.contains("while true")
        || line.contains("while :")
        || line.contains("for (( ; ; ))")
    {
        return (None, 0);
    }
    let number_after = |name: &str| {
        words
            .windows(2)
            .filter(|w| w[0].rsplit('/').next() == Some(name))
            .filter_map(|w| seconds(w[1]))
            .reduce(|a, b| a + b)
    };
    let after = Duration::from_secs_f64(number_after("sleep").unwrap_or(0.0).min(86_400.0 * 365.0));
    let exit_code = match number_after("exit") {
        Some(code) => code as i64,
        None => i64::from(words.last().is_some_and(|w| w.rsplit('/').next() == Some("false"))),
    };
    (Some(after), exit_code)
}

/// The argument of `sleep`: a number with an optional unit.
pub(crate) fn seconds(word: &str) -> Option<f64> {
    let unit = match word.chars().last()? {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86_400.0,
        _ => return word.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0),
    };
    word[..word.len() - 1].parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0).map(|n| n * unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::json;

    #[test]
    fn commands_tell_how_long_a_container_runs() {
        let ends = |secs: f64, exit_code| Behaviour::Ends { after: Duration::from_secs_f64(secs), exit_code };
        // (restartPolicy, command, behaviour)
        for (policy, command, want) in [
            ("Never", vec!["sh", "-c", "echo hello"], ends(0.0, 0)),
            ("Never", vec!["sleep", "2"], ends(2.0, 0)),
            ("Never", vec!["sh", "-c", "sleep 1; exit 3"], ends(1.0, 3)),
            ("OnFailure", vec!["/bin/false"], ends(0.0, 1)),
            ("Never", vec![], Behaviour::Forever),
            ("Never", vec!["sleep", "infinity"], Behaviour::Forever),
            ("Never", vec!["sh", "-c", "while true; do sleep 1; done"], Behaviour::Forever),
            ("Always", vec!["sh", "-c", "echo hello"], Behaviour::Forever),
        ] {
            let container = json!({"name": "c", "image": "busybox", "command": command});
            let pod = json!({"spec": {"restartPolicy": policy}});
            assert_eq!(of_container(&pod, &container, false, 0), want, "{policy} {command:?}");
        }
    }

    #[test]
    fn annotations_and_images_provoke_failures() {
        let pod = |annotations: &[(&str, &str)]| {
            let mut pod = json!({"spec": {"restartPolicy": "Always"}});
            for (name, value) in annotations {
                pod.set_at(&["metadata", "annotations", &format!("{PREFIX}{name}")], (*value).into());
            }
            pod
        };
        let container = json!({"name": "c", "image": "web"});
        let fails = Behaviour::Ends { after: Duration::ZERO, exit_code: 1 };
        let restarting = pod(&[("restarts", "2")]);
        assert_eq!(of_container(&restarting, &container, false, 1), fails);
        assert_eq!(of_container(&restarting, &container, false, 2), Behaviour::Forever);
        let seven = pod(&[("exit-code", "7"), ("run-for", "1.5")]);
        assert_eq!(
            of_container(&seven, &container, false, 0),
            Behaviour::Ends { after: Duration::from_millis(1500), exit_code: 7 }
        );
        for image in ["nonexistent:1", "example.org/nonexistent/../nonexistent", "webserver:404", "foo:non-existent"] {
            let container = json!({"name": "c", "image": image});
            assert_eq!(of_container(&pod(&[]), &container, false, 0), Behaviour::NoImage, "{image}");
        }
    }
}
