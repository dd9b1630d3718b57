//! What is done with the names of a zone: a chain of rewriting, templates, hosts, the cluster's zone, and other servers.
//!
//! The order of the chain is fixed, as in CoreDNS; the order of directives in a text does not matter.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::corefile::{self, CorefileError, Directive, ServerBlock, error};
use crate::forward::{Policy, Upstream, within};
use crate::names::{below, normal};
use crate::resolv_conf::ResolvConf;
use crate::rewrite::{After, From, Rewrite, To};
use crate::template::Template;

/// Where `hosts` finds the lines of the nodes.
const NODE_HOSTS_FILE: &str = "/etc/coredns/NodeHosts";
/// The ports a zone may name: the one of the Service and the one it leads to.
const PORTS: [&str; 2] = ["53", "1053"];
/// Directives of which nothing has to be done: it is done always, or there is nothing to do.
const ALWAYS: [&str; 11] =
    ["errors", "log", "debug", "health", "ready", "prometheus", "reload", "loop", "loadbalance", "cache", "bufsize"];

/// What is done with names of `zones`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    /// In lower case; an empty one is the root.
    pub zones: Vec<String>,
    pub rewrites: Vec<Rewrite>,
    pub templates: Vec<Template>,
    pub hosts: Vec<Hosts>,
    pub cluster: Option<Cluster>,
    pub forwards: Vec<Forward>,
}

/// The cluster's own names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    /// Zones in which a name that the cluster does not have is looked for further down the chain.
    pub fallthrough: Vec<String>,
}

/// Lines of a hosts file.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    pub entries: Vec<(IpAddr, String)>,
    /// Also the nodes of the cluster.
    pub nodes: bool,
    pub zones: Vec<String>,
    pub ttl: u32,
    pub reverse: bool,
    pub fallthrough: Option<Vec<String>>,
}

/// Servers for the names of one zone.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    pub from: String,
    pub except: Vec<String>,
    pub upstream: Arc<Upstream>,
}

impl Forward {
    pub fn takes(&self, name: &str) -> bool {
        below(name, &self.from).is_some() && !within(name, &self.except)
    }
}

/// What a text is compiled with.
pub(crate) struct Context<'a> {
    /// The cluster's zones, reverse ones included.
    pub cluster_zones: &'a [String],
    pub resolv_conf: &'a ResolvConf,
    /// Whether the root zone may be given.
    pub root: bool,
}

/// Compiles the server blocks of one text.
pub(crate) fn compile(text: &str, context: &Context<'_>) -> Result<Vec<Block>, CorefileError> {
    corefile::parse(text)?.iter().map(|block| compile_block(block, context)).collect()
}

fn compile_block(source: &ServerBlock, context: &Context<'_>) -> Result<Block, CorefileError> {
    let mut block = Block::default();
    if source.keys[0].starts_with('(') {
        return Err(error(source.line, "snippets are not supported"));
    }
    for key in &source.keys {
        block.zones.push(zone_of_key(key, context.root).map_err(|message| error(source.line, message))?);
    }
    for directive in &source.directives {
        match directive.name.as_str() {
            "rewrite" => block.rewrites.push(rewrite(directive)?),
            "template" => block.templates.push(crate::template::compile(directive, &block.zones)?),
            "hosts" => block.hosts.push(hosts(directive, &block.zones)?),
            "kubernetes" => block.cluster = Some(cluster(directive, context)?),
            "forward" => block.forwards.push(forward(directive, context)?),
            // The rules of `networking.resolveDNS` are there anyway.
            "vcluster" if context.root => {}
            name if ALWAYS.contains(&name) => {}
            name => {
                return Err(error(
                    directive.line,
                    format!("{name} is not supported; known here: rewrite, template, hosts, kubernetes, forward"),
                ));
            }
        }
    }
    // The more special zone first.
    block.forwards.sort_by_key(|forward| std::cmp::Reverse(forward.from.len()));
    Ok(block)
}

fn zone_of_key(key: &str, root: bool) -> Result<String, String> {
    let rest = match key.split_once("://") {
        Some(("dns", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{key}: {scheme}:// is not supported")),
        None => key,
    };
    let zone = match rest.rsplit_once(':') {
        Some((zone, port)) if PORTS.contains(&port) => zone,
        Some((_, port)) => {
            return Err(format!("{key}: port {port} is not served; leave it out, or write 53 or 1053"));
        }
        None => rest,
    };
    if zone == "." && root {
        return Ok(String::new());
    }
    if zone == "." {
        return Err(format!("{key}: the root zone is already served"));
    }
    let zone = normal(zone);
    if zone.is_empty() || crate::names::name(&zone).is_none() {
        return Err(format!("{key}: not a zone"));
    }
    Ok(zone)
}

/// The zones of `fallthrough`, all when none is named.
pub(crate) fn zones_or_root(words: &[String]) -> Vec<String> {
    if words.is_empty() { vec![String::new()] } else { words.iter().map(|zone| normal(zone)).collect() }
}

fn rewrite(directive: &Directive) -> Result<Rewrite, CorefileError> {
    let wrong = |message: &str| error(directive.line, format!("rewrite: {message}"));
    let mut words: Vec<&str> = directive.arguments.iter().map(String::as_str).collect();
    let mut after = After::Stop;
    match words.first() {
        Some(&"continue") => {
            after = After::Continue;
            words.remove(0);
        }
        Some(&"stop") => {
            words.remove(0);
        }
        _ => {}
    }
    // The long form: the rule and its answers as lines of a block.
    for line in &directive.lines {
        words.extend(line.iter().map(String::as_str));
    }
    let words = match words.as_slice() {
        ["name", rest @ ..] => rest,
        [field, ..] => return Err(wrong(&format!("{field} is not supported; only name is"))),
        [] => return Err(wrong("needs a field")),
    };
    let (kind, rest) = match words {
        [kind @ ("exact" | "prefix" | "suffix" | "substring" | "regex"), rest @ ..] => (*kind, rest),
        rest => ("exact", rest),
    };
    let [from, to, options @ ..] = rest else { return Err(wrong("name needs what to replace and by what")) };
    let mut options = options;
    loop {
        // Answers always carry the name that was asked for.
        options = match options {
            [] => break,
            ["answer", "auto", rest @ ..] => rest,
            ["answer", "name", _, _, rest @ ..] => rest,
            [option, ..] => return Err(wrong(&format!("{option} {} is not supported", options[1..].join(" ")))),
        };
    }
    let from = match kind {
        "exact" => From::Exact(normal(from)),
        "prefix" => From::Prefix(from.to_ascii_lowercase()),
        "suffix" => From::Suffix(format!("{}.", normal(from))),
        "substring" => From::Substring(from.to_ascii_lowercase()),
        _ => From::Regex(pattern(from).map_err(|message| wrong(&message))?),
    };
    let to = if kind == "suffix" { format!("{}.", normal(to)) } else { to.to_ascii_lowercase() };
    Ok(Rewrite { from, to: To::Text(to), after })
}

/// A regular expression of bounded size.
pub(crate) fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).size_limit(1 << 20).build().map_err(|error| {
        // The crate draws a picture over several lines; its last line says it.
        error.to_string().lines().last().unwrap_or_default().to_string()
    })
}

fn hosts(directive: &Directive, zones: &[String]) -> Result<Hosts, CorefileError> {
    let mut hosts =
        Hosts { entries: Vec::new(), nodes: false, zones: zones.to_vec(), ttl: 3600, reverse: true, fallthrough: None };
    let wrong = |message: String| error(directive.line, format!("hosts: {message}"));
    if let [file, zones @ ..] = directive.arguments.as_slice() {
        if file != NODE_HOSTS_FILE {
            return Err(wrong(format!("the file {file} is not supported; write the lines into the block")));
        }
        hosts.nodes = true;
        if !zones.is_empty() {
            hosts.zones = zones.iter().map(|zone| normal(zone)).collect();
        }
    }
    for line in &directive.lines {
        match line.as_slice() {
            [word, zones @ ..] if word == "fallthrough" => hosts.fallthrough = Some(zones_or_root(zones)),
            [word, ttl] if word == "ttl" => {
                hosts.ttl = ttl
                    .parse()
                    .ok()
                    .filter(|ttl| (1..=65535).contains(ttl))
                    .ok_or_else(|| wrong(format!("ttl {ttl} is not a number of seconds from 1 to 65535")))?;
            }
            [word] if word == "no_reverse" => hosts.reverse = false,
            // What is written here is read as soon as it changes.
            [word, ..] if word == "reload" => {}
            [address, names @ ..] if !names.is_empty() => {
                let address: IpAddr =
                    address.parse().map_err(|_| wrong(format!("{address} is neither an address nor an option")))?;
                hosts.entries.extend(names.iter().map(|name| (address, normal(name))));
            }
            line => return Err(wrong(format!("{} is not supported", line.join(" ")))),
        }
    }
    Ok(hosts)
}

fn cluster(directive: &Directive, context: &Context<'_>) -> Result<Cluster, CorefileError> {
    let wrong = |message: String| error(directive.line, format!("kubernetes: {message}"));
    for zone in &directive.arguments {
        if !context.cluster_zones.contains(&normal(zone)) {
            return Err(wrong(format!("{zone} is not a zone of this cluster")));
        }
    }
    let mut cluster = Cluster::default();
    for line in &directive.lines {
        match line.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["pods", "insecure"] | ["kubeconfig", _] | ["ttl", "5"] => {}
            ["fallthrough", ..] => cluster.fallthrough = zones_or_root(&line[1..]),
            line => return Err(wrong(format!("{} is not supported", line.join(" ")))),
        }
    }
    Ok(cluster)
}

fn forward(directive: &Directive, context: &Context<'_>) -> Result<Forward, CorefileError> {
    let wrong = |message: String| error(directive.line, format!("forward: {message}"));
    let [from, to @ ..] = directive.arguments.as_slice() else { return Err(wrong("needs a zone and servers".into())) };
    let mut servers = Vec::new();
    for server in to {
        if server == "/etc/resolv.conf" {
            servers.extend(context.resolv_conf.servers.iter().copied());
        } else {
            servers.push(server_address(server).map_err(wrong)?);
        }
    }
    if servers.is_empty() {
        return Err(wrong("needs a server".into()));
    }
    let (mut policy, mut except, mut force_tcp) = (Policy::Random, Vec::new(), false);
    for line in &directive.lines {
        match line.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["policy", "random"] => policy = Policy::Random,
            ["policy", "round_robin"] => policy = Policy::RoundRobin,
            ["policy", "sequential"] => policy = Policy::Sequential,
            ["except", ..] => except.extend(line[1..].iter().map(|zone| normal(zone))),
            ["force_tcp"] => force_tcp = true,
            // How connections are kept and servers watched is ours.
            [
                "prefer_udp"
                | "expire"
                | "max_fails"
                | "max_idle_conns"
                | "health_check"
                | "max_concurrent"
                | "failfast_all_unhealthy_upstreams",
                ..,
            ] => {}
            line => return Err(wrong(format!("{} is not supported", line.join(" ")))),
        }
    }
    let mut upstream = Upstream::new(servers, policy);
    upstream.force_tcp = force_tcp;
    let from = if from == "." { String::new() } else { normal(from) };
    Ok(Forward { from, except, upstream: Arc::new(upstream) })
}

/// `1.2.3.4`, `1.2.3.4:53`, `[::1]:53`, `::1`, each also after `dns://`.
pub fn server_address(text: &str) -> Result<SocketAddr, String> {
    let rest = match text.split_once("://") {
        Some(("dns", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{text}: {scheme}:// is not supported")),
        None => text,
    };
    if let Ok(address) = rest.parse::<SocketAddr>() {
        return Ok(address);
    }
    let address = rest.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map(|address| SocketAddr::new(address, 53)).map_err(|_| format!("{text} is not the address of a server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> Result<Vec<Block>, CorefileError> {
        let resolv_conf = ResolvConf::parse("nameserver 9.9.9.9");
        let zones = ["cluster.local".to_string()];
        compile(text, &Context { cluster_zones: &zones, resolv_conf: &resolv_conf, root: false })
    }

    #[test]
    fn usual_snippets_are_understood() {
        let blocks = compiled(
            "corp.example:1053 {\n errors\n cache 30\n forward . 10.0.0.53 dns://10.0.0.54:5353 /etc/resolv.conf {\n policy sequential\n except a.corp.example\n }\n}\n\
             static.example {\n hosts {\n 10.1.1.1 a.static.example B.static.example\n ttl 60\n fallthrough\n }\n}",
        )
        .unwrap();
        let forward = &blocks[0].forwards[0];
        let servers: Vec<_> = forward.upstream.servers.iter().map(|s| s.address.to_string()).collect();
        assert_eq!(servers, ["10.0.0.53:53", "10.0.0.54:5353", "9.9.9.9:53"]);
        assert_eq!(forward.upstream.policy, Policy::Sequential);
        assert!(forward.takes("x.corp.example") && !forward.takes("a.corp.example"));
        let hosts = &blocks[1].hosts[0];
        assert_eq!(hosts.entries[1], ("10.1.1.1".parse().unwrap(), "b.static.example".to_string()));
        assert_eq!((hosts.ttl, hosts.fallthrough.as_deref()), (60, Some(&[String::new()][..])));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (text, want) in [
            (
                "a {\n file /x\n}",
                "line 2: file is not supported; known here: rewrite, template, hosts, kubernetes, forward",
            ),
            (". {\n errors\n}", "line 1: .: the root zone is already served"),
            ("a:8053 {\n}", "line 1: a:8053: port 8053 is not served; leave it out, or write 53 or 1053"),
            ("tls://a {\n}", "line 1: tls://a: tls:// is not supported"),
            ("(x) {\n}", "line 1: snippets are not supported"),
            ("a {\n forward . tls://1.1.1.1\n}", "line 2: forward: tls://1.1.1.1: tls:// is not supported"),
            ("a {\n forward . one\n}", "line 2: forward: one is not the address of a server"),
            ("a {\n forward .\n}", "line 2: forward: needs a server"),
            (
                "a {\n hosts /etc/hosts\n}",
                "line 2: hosts: the file /etc/hosts is not supported; write the lines into the block",
            ),
            ("a {\n hosts {\n x y\n}\n}", "line 2: hosts: x is neither an address nor an option"),
            ("a {\n rewrite ttl a 5\n}", "line 2: rewrite: ttl is not supported; only name is"),
            ("a {\n rewrite name regex ( b\n}", "line 2: rewrite: error: unclosed group"),
            ("a {\n kubernetes other.local\n}", "line 2: kubernetes: other.local is not a zone of this cluster"),
        ] {
            assert_eq!(compiled(text).unwrap_err().to_string(), want, "{text}");
        }
    }
}
