//! Names that are looked up under another name. The answer carries the name that was asked for.

use std::net::IpAddr;

use regex::Regex;

use crate::names::below;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub from: From,
    pub to: To,
    pub after: After,
}

/// Whether later rules are looked at when this one took the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Continue,
    Stop,
}

/// Which names a rule takes. Patterns see the name with its last dot, as in CoreDNS.
#[derive(Clone, Debug)]
pub(crate) enum From {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Substring(String),
    Regex(Regex),
    /// `*.example.com` as `.example.com`: the `*` stands for what comes before.
    StarBefore(String),
    /// `db.*` as `db.`.
    StarAfter(String),
    /// A name itself, and names below it, which keep their labels.
    Tree(String),
    /// A zone without its apex: names below it keep their labels.
    Children(String),
}

/// What a name becomes.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// The replacement: for a pattern with `{1}`, for a star with `*`, for a tree the new root.
    Text(String),
    Address(IpAddr),
    /// As [`To::Text`], and asked of the host cluster's DNS server.
    Host(String),
}

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rewritten {
    Name(String),
    Host(String),
    Address(IpAddr),
}

impl Rewrite {
    /// The new name when the rule takes `name`, without last dots.
    pub fn apply(&self, name: &str) -> Option<Rewritten> {
        let (text, host) = match &self.to {
            To::Address(address) => return self.captured(name).map(|_| Rewritten::Address(*address)),
            To::Text(text) => (text, false),
            To::Host(text) => (text, true),
        };
        let mut new = self.replaced(name, text)?;
        let length = new.trim_end_matches('.').len();
        new.truncate(length);
        Some(if host { Rewritten::Host(new) } else { Rewritten::Name(new) })
    }

    /// What the star stands for, or the labels below a tree; empty for other rules that take the name.
    fn captured<'a>(&self, name: &'a str) -> Option<&'a str> {
        match &self.from {
            From::Exact(from) => (name == from).then_some(""),
            From::StarBefore(suffix) => name.strip_suffix(suffix.as_str()).filter(|rest| !rest.is_empty()),
            From::StarAfter(prefix) => name.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()),
            From::Tree(root) => below(name, root),
            From::Children(zone) => below(name, zone).filter(|rest| !rest.is_empty()),
            From::Prefix(prefix) => name.starts_with(prefix.as_str()).then_some(""),
            From::Suffix(suffix) => format!("{name}.").ends_with(suffix.as_str()).then_some(""),
            From::Substring(part) => name.contains(part.as_str()).then_some(""),
            From::Regex(regex) => regex.is_match(&format!("{name}.")).then_some(""),
        }
    }

    fn replaced(&self, name: &str, to: &str) -> Option<String> {
        let captured = self.captured(name)?;
        Some(match &self.from {
            From::Exact(_) => to.to_string(),
            From::StarBefore(_) | From::StarAfter(_) => to.replacen('*', captured, 1),
            From::Tree(_) | From::Children(_) if captured.is_empty() => to.to_string(),
            From::Tree(_) | From::Children(_) => format!("{captured}.{to}"),
            From::Prefix(prefix) => format!("{to}{}", &name[prefix.len()..]),
            From::Suffix(suffix) => {
                let full = format!("{name}.");
                format!("{}{to}", &full[..full.len() - suffix.len()])
            }
            From::Substring(part) => name.replace(part.as_str(), to),
            From::Regex(regex) => {
                let full = format!("{name}.");
                let captures = regex.captures(&full)?;
                let mut new = to.to_string();
                for (number, group) in captures.iter().enumerate() {
                    new = new.replace(&format!("{{{number}}}"), group.map_or("", |group| group.as_str()));
                }
                new
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_take_their_names_and_give_the_new_one() {
        let text = |text: &str| To::Text(text.to_string());
        let s = |text: &str| text.to_string();
        for (from, to, name, want) in [
            (From::Exact(s("a.b")), text("c"), "a.b", Some("c")),
            (From::Exact(s("a.b")), text("c"), "x.a.b", None),
            (From::StarBefore(s(".wikipedia.com")), text("*.mirror"), "en.wikipedia.com", Some("en.mirror")),
            (From::StarBefore(s(".wikipedia.com")), text("*.mirror"), ".wikipedia.com", None),
            (From::StarAfter(s("db.")), text("db-x.*"), "db.team.svc", Some("db-x.team.svc")),
            (From::Tree(s("a.b")), text("c.d"), "x.a.b", Some("x.c.d")),
            (From::Tree(s("a.b")), text("c.d"), "a.b", Some("c.d")),
            (From::Tree(s("a.b")), text("c.d"), "za.b", None),
            (From::Children(s("n.svc.z")), text("m.svc.h"), "w.n.svc.z", Some("w.m.svc.h")),
            (From::Children(s("n.svc.z")), text("m.svc.h"), "n.svc.z", None),
            (From::Prefix(s("old-")), text("new-"), "old-x.z", Some("new-x.z")),
            (From::Suffix(s(".old.")), text(".new."), "x.old", Some("x.new")),
            (From::Substring(s("mid")), text("in"), "a.mid.b", Some("a.in.b")),
            (From::Regex(Regex::new(r"(.*)-(us)\.rocks\.$").unwrap()), text("{1}.{2}.z"), "a-us.rocks", Some("a.us.z")),
        ] {
            let rule = Rewrite { from, to, after: After::Stop };
            assert_eq!(rule.apply(name), want.map(|want| Rewritten::Name(s(want))), "{rule:?} {name}");
        }
    }
}
