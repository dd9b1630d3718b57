//! Names the binary may be called by: a link named `kube-apiserver` is `alcove apiserver`, one named `etcd` is
//! `alcove etcd-placeholder`. Test environments look for exactly these two files.

use std::ffi::OsString;
use std::path::Path;

/// What is to be done with a command line.
#[derive(Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// Parse this.
    Parse(Vec<OsString>),
    /// Print this and end: `--version` as the programme that is stood in for answers it.
    Print(String),
}

/// Rewrites the command line of a link; any other is left as it is.
pub fn command_line(arguments: impl IntoIterator<Item = OsString>) -> CommandLine {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let called = arguments.first().map(|first| Path::new(first).file_name().unwrap_or_default().to_owned());
    let (command, version) = match called.as_ref().and_then(|name| name.to_str()) {
        Some("kube-apiserver") => ("apiserver", "Kubernetes v1.36.0".to_owned()),
        Some("etcd") => {
            ("etcd-placeholder", format!("etcd placeholder of alcove {}: it stores nothing", env!("CARGO_PKG_VERSION")))
        }
        _ => return CommandLine::Parse(arguments),
    };
    let flags = &mut arguments[1..];
    if flags.iter().any(|flag| flag == "--version" || flag == "--version=true") {
        return CommandLine::Print(version);
    }
    for flag in flags {
        // `--secure_port=1` is `--secure-port=1`, and `-secure-port=1` as well: both programmes take flags as Go's
        // libraries do.
        let Some(text) = flag.to_str() else { continue };
        let Some(rest) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else { continue };
        let (name, value) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (rest, None),
        };
        if name.len() < 2 {
            continue;
        }
        let name = name.replace('_', "-");
        *flag = match value {
            Some(value) => format!("--{name}={value}").into(),
            None => format!("--{name}").into(),
        };
    }
    arguments[0] = "alcove".into();
    arguments.insert(1, command.into());
    CommandLine::Parse(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_name_commands() {
        for (line, want) in [
            ("/opt/bin/kube-apiserver --secure-port=1", "alcove apiserver --secure-port=1"),
            (
                "kube-apiserver --secure_port=1 -v=2 --cert-dir a_b",
                "alcove apiserver --secure-port=1 -v=2 --cert-dir a_b",
            ),
            (
                "./etcd -data-dir=/tmp/a_b --unsafe-no-fsync",
                "alcove etcd-placeholder --data-dir=/tmp/a_b --unsafe-no-fsync",
            ),
            ("/usr/bin/alcove apiserver --secure-port=1", "/usr/bin/alcove apiserver --secure-port=1"),
            ("alcove", "alcove"),
        ] {
            let got = command_line(line.split(' ').map(OsString::from));
            assert_eq!(got, CommandLine::Parse(want.split(' ').map(OsString::from).collect()), "{line}");
        }
        let version = |line: &str| match command_line(line.split(' ').map(OsString::from)) {
            CommandLine::Print(text) => text,
            CommandLine::Parse(arguments) => panic!("{arguments:?}"),
        };
        assert_eq!(version("a/kube-apiserver --version"), "Kubernetes v1.36.0");
        assert!(version("etcd --version").starts_with("etcd"));
    }
}
