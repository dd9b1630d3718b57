//! Commands and flags that vCluster's command line has and this one has not: each is refused by name with the reason, or
//! dropped when what it asks for is how things are here anyway. So that a script written for the other either works or says
//! why not.

use std::ffi::OsString;

use crate::failure::Failure;

/// What becomes of a command line.
#[derive(Debug)]
pub enum Checked {
    /// It is for this program, perhaps without some flags.
    Go(Vec<OsString>),
    /// There is nothing to do; this is said.
    Said(&'static str),
    Refused(Failure),
}

const PLATFORM: &str = "there is no platform to log in to: nothing here needs one";
const PRIVATE_NODES: &str = "nodes of a virtual cluster are the host's; there are no private nodes to manage";

/// Words of a command, why there is none, and what to do instead.
const COMMANDS: &[(&[&str], &str, &str)] = &[
    (&["platform"], PLATFORM, ""),
    (&["pro"], PLATFORM, ""),
    (&["login"], PLATFORM, ""),
    (&["logout"], PLATFORM, ""),
    (&["ui"], PLATFORM, "`alcove list` and `alcove describe NAME` show what there is"),
    (&["token"], PRIVATE_NODES, ""),
    (&["node"], PRIVATE_NODES, "`kubectl` on the host manages them"),
    (&["registry"], "there is no image registry in the control plane", "push to a registry that the host pulls from"),
    (
        &["upgrade"],
        "this program does not replace itself",
        "install a newer one; `alcove create NAME --upgrade` changes a virtual cluster",
    ),
    (&["info"], "there is nothing more to tell than the version", "use `alcove version -o json`"),
    (&["credits"], "licences are in the image's bill of materials", ""),
    (&["convert"], "vcluster.yaml of vCluster 0.20 and later is read as it is", "use `alcove config validate`"),
    (&["start"], "the process in a pod is started with another command", "use `alcove serve`"),
    (&["port-forward"], "ports are forwarded by connecting", "use `alcove connect NAME --local-port PORT`"),
    (&["telemetry", "enable"], "Alcove sends no usage data", ""),
    (&["debug", "etcd"], "stores are looked into with another command", "use `alcove store info`"),
    (
        &["debug", "mappings", "add"],
        "mappings are made by the syncer alone",
        "use `alcove debug mappings NAME` to see them",
    ),
    (
        &["debug", "mappings", "delete"],
        "mappings are removed by the syncer alone",
        "use `alcove debug mappings NAME` to see them",
    ),
    (
        &["debug", "mappings", "clear"],
        "mappings are removed by the syncer alone",
        "use `alcove debug mappings NAME` to see them",
    ),
];

/// Commands that ask for what is the case anyway.
const SATISFIED: &[(&[&str], &str)] = &[
    (&["use", "driver", "helm"], "virtual clusters are always made on the host cluster of the kubeconfig"),
    (&["telemetry", "disable"], "Alcove sends no usage data"),
];

#[derive(Clone, Copy, Debug)]
enum Becomes {
    /// How it is anyway.
    Nothing,
    /// Refused unless it has this value.
    NothingIf(&'static str),
    Refused(&'static str, &'static str),
}
use Becomes::{Nothing, NothingIf, Refused};

const CHART: &str = "the objects come from this program, as `alcove template` prints them";

/// A flag of some commands (all when none is named), whether it takes a value, and what becomes of it.
const FLAGS: &[(&[&str], &str, bool, Becomes)] = &[
    (&[], "--driver", true, NothingIf("helm")),
    (
        &["create", "connect", "delete", "pause", "resume", "sleep", "wakeup", "rm"],
        "--project",
        true,
        Refused(PLATFORM, ""),
    ),
    (
        &[
            "create",
            "connect",
            "disconnect",
            "list",
            "ls",
            "describe",
            "delete",
            "rm",
            "pause",
            "resume",
            "snapshot",
            "restore",
        ],
        "--config",
        true,
        Refused("this program has no file with settings", "flags and variables of the environment are all"),
    ),
    (&["create", "connect"], "--background-proxy-image", true, Nothing),
    (&["create"], "--expose-local", false, Nothing),
    (&["create"], "--add", false, Nothing),
    (&["create"], "--chart-version", true, Refused(CHART, "use the release of alcove whose version you want")),
    (&["create"], "--chart-name", true, Refused(CHART, "")),
    (&["create"], "--chart-repo", true, Refused(CHART, "")),
    (&["create"], "--local-chart-dir", true, Refused(CHART, "use `helm install NAME DIRECTORY`")),
    (&["create"], "--cluster", true, Refused(PLATFORM, "use --context for another host")),
    (&["create"], "--template", true, Refused(PLATFORM, "use -f with a file")),
    (&["create"], "--template-version", true, Refused(PLATFORM, "")),
    (&["create"], "--params", true, Refused(PLATFORM, "")),
    (&["create"], "--parameters", true, Refused(PLATFORM, "")),
    (&["create"], "--set-param", true, Refused(PLATFORM, "use --set")),
    (&["create"], "--set-parameter", true, Refused(PLATFORM, "use --set")),
    (&["create"], "--link", true, Refused(PLATFORM, "")),
    (&["create"], "--labels", true, Refused(PLATFORM, "")),
    (&["create"], "-l", true, Refused(PLATFORM, "")),
    (&["create"], "--annotations", true, Refused(PLATFORM, "")),
    (&["create"], "--description", true, Refused(PLATFORM, "")),
    (&["create"], "--display-name", true, Refused(PLATFORM, "")),
    (&["create"], "--team", true, Refused(PLATFORM, "")),
    (&["create"], "--user", true, Refused(PLATFORM, "")),
    (&["create"], "--use", false, Refused(PLATFORM, "")),
    (&["create"], "--recreate", false, Refused("nothing is deleted in passing", "use `alcove delete NAME` first")),
    (&["create"], "--skip-wait", false, Refused(PLATFORM, "")),
    (&["connect"], "--kube-config", true, Refused("it is deprecated", "use `alcove connect NAME --print > FILE`")),
    (&["connect"], "--update-current", false, NothingIf("true")),
    (&["connect"], "--pod", true, Refused("the newest pod that is ready is taken", "")),
    (&["snapshot", "restore"], "--standalone", false, Refused("there are no clusters without a host cluster", "")),
    (
        &["snapshot", "restore"],
        "--azure-subscription-id",
        true,
        Refused("Azure is used with a SAS in the URL only", ""),
    ),
    (&["snapshot", "restore"], "--azure-resource-group", true, Refused("Azure is used with a SAS in the URL only", "")),
];

/// Global flags of ours that take a value: what follows them is no command.
const WITH_VALUE: &[&str] = &["--kubeconfig", "--context", "-n", "--namespace", "--data-dir", "--log-output"];

/// Looks through a command line; `arguments[0]` is the program.
pub fn check(arguments: Vec<OsString>) -> Checked {
    let texts: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let end = texts.iter().position(|text| *text == "--").unwrap_or(texts.len());
    let words = words(&texts[1.min(end)..end]);
    let begins = |with: &[&str]| words.len() >= with.len() && words.iter().zip(with).all(|(word, with)| word == with);
    if let Some((_, said)) = SATISFIED.iter().find(|(command, _)| begins(command)) {
        return Checked::Said(said);
    }
    if words.first() == Some(&"use") {
        let text =
            "there are no drivers to choose from: virtual clusters are made on the host cluster of the kubeconfig";
        return Checked::Refused(Failure::invalid(format!("{} is not built: {text}", words.join(" "))));
    }
    if let Some((command, reason, hint)) = COMMANDS.iter().find(|(command, ..)| begins(command)) {
        return Checked::Refused(refused(&command.join(" "), reason, hint));
    }
    let command = words.first().copied().unwrap_or_default();
    let mut kept = Vec::with_capacity(arguments.len());
    let mut index = 0;
    while index < arguments.len() {
        let text = texts[index];
        let (name, given) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let known = FLAGS.iter().find(|(commands, flag, ..)| {
            index > 0 && index < end && *flag == name && (commands.is_empty() || commands.contains(&command))
        });
        let Some((_, flag, takes_value, becomes)) = known else {
            kept.push(arguments[index].clone());
            index += 1;
            continue;
        };
        let value = given.or_else(|| takes_value.then(|| texts.get(index + 1).copied()).flatten());
        index += if given.is_none() && *takes_value { 2 } else { 1 };
        match becomes {
            Nothing => {}
            NothingIf(wanted) if value.unwrap_or("true") == *wanted => {}
            NothingIf(wanted) => {
                let shown = value.unwrap_or("true");
                return Checked::Refused(refused(
                    &format!("{flag} {shown}"),
                    &format!("there is {flag} {wanted} only"),
                    "",
                ));
            }
            Refused(reason, hint) => return Checked::Refused(refused(&format!("{command} {flag}"), reason, hint)),
        }
    }
    Checked::Go(kept)
}

fn refused(what: &str, reason: &str, hint: &str) -> Failure {
    let failure = Failure::invalid(format!("{what} is not built: {reason}"));
    if hint.is_empty() { failure } else { failure.hint(hint) }
}

/// The words of a command line that are neither flags nor their values.
fn words<'a>(texts: &[&'a str]) -> Vec<&'a str> {
    let mut words = Vec::new();
    let mut skip = false;
    for text in texts {
        if std::mem::take(&mut skip) {
            continue;
        }
        if text.starts_with('-') {
            skip = WITH_VALUE.contains(text);
        } else {
            words.push(*text);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(line: &str) -> String {
        let arguments = std::iter::once("alcove").chain(line.split_whitespace()).map(OsString::from).collect();
        match check(arguments) {
            Checked::Go(kept) => {
                let kept: Vec<String> = kept.iter().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
                kept.join(" ")
            }
            Checked::Said(text) => format!("said: {text}"),
            Checked::Refused(failure) => failure.message,
        }
    }

    #[test]
    fn what_vcluster_has_is_taken_refused_by_name_or_how_things_are_anyway() {
        for (line, want) in [
            ("create team-a --connect=false", "create team-a --connect=false"),
            ("create team-a --driver helm --add=false --print", "create team-a --print"),
            ("--driver=helm list", "list"),
            ("create --background-proxy-image x team-a", "create team-a"),
            ("connect team-a -- cmd --pod x --driver platform", "connect team-a -- cmd --pod x --driver platform"),
            ("-n platform list", "-n platform list"),
            ("connect platform", "connect platform"),
            ("connect x --update-current=true", "connect x"),
            ("use driver helm", "said: virtual clusters are always made on the host cluster of the kubeconfig"),
            ("telemetry disable", "said: Alcove sends no usage data"),
        ] {
            assert_eq!(outcome(line), want, "{line}");
        }
        for (line, want) in [
            ("platform start", "platform is not built: there is no platform"),
            ("--context x login host", "login is not built: "),
            ("use driver docker", "use driver docker is not built: "),
            ("create a --driver docker", "--driver docker is not built: there is --driver helm only"),
            ("create a --template t", "create --template is not built: "),
            ("create a --chart-version=0.30", "create --chart-version is not built: "),
            ("connect a --update-current=false", "--update-current false is not built: "),
            ("connect a --pod p", "connect --pod is not built: "),
            ("debug mappings clear a", "debug mappings clear is not built: "),
            ("token create", "token is not built: "),
            ("node delete n", "node is not built: "),
        ] {
            let got = outcome(line);
            assert!(got.starts_with(want), "{line}: {got}");
        }
    }
}
