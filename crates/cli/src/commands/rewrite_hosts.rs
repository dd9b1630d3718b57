//! `alcove rewrite-hosts`: what the init container `vcluster-rewrite-hosts` of a host pod runs.
//!
//! The kubelet writes the pod's address and host name into `/etc/hosts`. A pod of a virtual cluster that has a subdomain
//! has a full name too, `HOST.SUBDOMAIN.NAMESPACE.svc.DOMAIN`, which only the virtual cluster knows.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::failure::Failure;

#[derive(Clone, Debug, Args)]
pub struct RewriteHosts {
    /// Host name of the pod
    #[arg(long, value_name = "NAME")]
    pub hostname: String,
    /// Full name of the pod
    #[arg(long, value_name = "NAME")]
    pub fqdn: String,
    /// File to read
    #[arg(long, default_value = "/etc/hosts", value_name = "FILE")]
    pub input: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

pub fn run(args: &RewriteHosts) -> anyhow::Result<ExitCode> {
    let failed = |doing: &str, path: &PathBuf, error: std::io::Error| {
        Failure::failed(format!("cannot {doing} {}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(&args.input).map_err(|error| failed("read", &args.input, error))?;
    let text = rewritten(&text, &args.hostname, &args.fqdn);
    std::fs::write(&args.output, text).map_err(|error| failed("write", &args.output, error))?;
    Ok(ExitCode::SUCCESS)
}

/// Lines with an address and the host name alone get the full name in front of it; all others stay.
fn rewritten(text: &str, hostname: &str, fqdn: &str) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [address, name] if name == hostname && address.parse::<IpAddr>().is_ok() => {
                format!("{address}\t{fqdn} {hostname}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_the_host_name_get_the_full_name() {
        let text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\n10.1.2.3\tweb-0\nfd00::3  web-0\n10.1.2.4 web-0 other\nweb-0 web-0\n10.1.2.5 web-01\n";
        let want = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\n10.1.2.3\tweb-0.db.shop.svc.cluster.local web-0\nfd00::3\tweb-0.db.shop.svc.cluster.local web-0\n10.1.2.4 web-0 other\nweb-0 web-0\n10.1.2.5 web-01\n";
        assert_eq!(rewritten(text, "web-0", "web-0.db.shop.svc.cluster.local"), want);
    }
}
