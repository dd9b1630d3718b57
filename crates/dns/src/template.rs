//! Answers that are made from the question: the `template` directive.
//!
//! Built: `match`, `answer`, `rcode`, `fallthrough`; records of type A, AAAA, CNAME and TXT; `{{ .Name }}`, `{{ .Zone }}`,
//! `{{ .Type }}`, `{{ .Class }}`, `{{ .Group.x }}` and `{{ index .Match n }}`. Anything else is refused by name.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use regex::{Captures, Regex};

use crate::block::{pattern, zones_or_root};
use crate::corefile::{CorefileError, Directive, error};
use crate::forward::within;
use crate::names::{name, normal};
use crate::zone::address;

#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// `None` for any.
    kind: Option<RecordType>,
    zones: Vec<String>,
    patterns: Vec<Regex>,
    answers: Vec<Vec<Part>>,
    code: ResponseCode,
    fallthrough: Vec<String>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Name,
    Zone,
    Type,
    Class,
    Group(String),
    Match(usize),
}

/// What a template makes of a question.
pub(crate) enum Made {
    /// Not this template's name or type.
    NotMine,
    Reply(ResponseCode, Vec<Record>),
}

pub(crate) fn compile(directive: &Directive, zones: &[String]) -> Result<Template, CorefileError> {
    let wrong = |message: String| error(directive.line, format!("template: {message}"));
    let [class, kind, own_zones @ ..] = directive.arguments.as_slice() else {
        return Err(wrong("needs a class and a type".into()));
    };
    if !class.eq_ignore_ascii_case("IN") && !class.eq_ignore_ascii_case("ANY") {
        return Err(wrong(format!("class {class} is not supported")));
    }
    let kind = match kind.to_ascii_uppercase().as_str() {
        "ANY" => None,
        kind => Some(kind.parse::<RecordType>().map_err(|_| wrong(format!("{kind} is not a record type")))?),
    };
    let mut template = Template {
        kind,
        zones: if own_zones.is_empty() { zones.to_vec() } else { zones_or_root(own_zones) },
        patterns: Vec::new(),
        answers: Vec::new(),
        code: ResponseCode::NoError,
        fallthrough: Vec::new(),
    };
    for line in &directive.lines {
        match line.as_slice() {
            [word, texts @ ..] if word == "match" => {
                for text in texts {
                    template.patterns.push(pattern(text).map_err(wrong)?);
                }
            }
            [word, texts @ ..] if word == "answer" => {
                for text in texts {
                    let parts = parts(text).map_err(wrong)?;
                    check_type(text).map_err(wrong)?;
                    template.answers.push(parts);
                }
            }
            [word, code] if word == "rcode" => {
                template.code = match code.to_ascii_uppercase().as_str() {
                    "NOERROR" => ResponseCode::NoError,
                    "NXDOMAIN" => ResponseCode::NXDomain,
                    "SERVFAIL" => ResponseCode::ServFail,
                    "REFUSED" => ResponseCode::Refused,
                    _ => return Err(wrong(format!("rcode {code} is not supported"))),
                };
            }
            [word, zones @ ..] if word == "fallthrough" => template.fallthrough = zones_or_root(zones),
            line => return Err(wrong(format!("{} is not supported", line.join(" ")))),
        }
    }
    Ok(template)
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inside, next)) = after.split_once("}}") else { return Err(format!("{text}: {{{{ is not closed")) };
        parts.push(Part::Text(before.to_string()));
        let words: Vec<&str> = inside.split_whitespace().collect();
        parts.push(match words.as_slice() {
            [".Name"] => Part::Name,
            [".Zone"] => Part::Zone,
            [".Type"] => Part::Type,
            [".Class"] => Part::Class,
            ["index", ".Match", number] => {
                Part::Match(number.parse().map_err(|_| format!("{number} is not a number"))?)
            }
            [group] if group.starts_with(".Group.") => Part::Group(group[".Group.".len()..].to_string()),
            _ => return Err(format!("{{{{{inside}}}}} is not supported")),
        });
        rest = next;
    }
    parts.push(Part::Text(rest.to_string()));
    Ok(parts)
}

/// The type in `NAME [TTL] IN TYPE DATA` has to be one that is built; what a name or group becomes is only known later.
fn check_type(text: &str) -> Result<(), String> {
    let plain = text.split("{{").map(|part| part.split_once("}}").map_or(part, |(_, after)| after));
    let plain = plain.collect::<Vec<_>>().join("x");
    let mut words = plain.split_whitespace().skip(1).skip_while(|word| word.parse::<u32>().is_ok());
    match (words.next(), words.next()) {
        (Some("IN" | "x"), Some("A" | "AAAA" | "CNAME" | "TXT" | "x")) => Ok(()),
        (Some("IN" | "x"), Some(kind)) => Err(format!("records of type {kind} are not supported")),
        _ => Err(format!("{text}: not a record")),
    }
}

/// One line `NAME [TTL] IN TYPE DATA`.
fn record(line: &str) -> Option<Record> {
    let mut words = line.split_whitespace();
    let owner = name(words.next()?)?;
    let mut word = words.next()?;
    let mut ttl = 0;
    if let Ok(seconds) = word.parse() {
        ttl = seconds;
        word = words.next()?;
    }
    if word != "IN" {
        return None;
    }
    let kind = words.next()?;
    let data = words.collect::<Vec<_>>().join(" ");
    let data = match kind {
        "A" | "AAAA" => {
            let ip: std::net::IpAddr = data.parse().ok()?;
            if ip.is_ipv4() != (kind == "A") {
                return None;
            }
            address(ip)
        }
        "CNAME" => RData::CNAME(CNAME(name(&data)?)),
        "TXT" => RData::TXT(TXT::new(vec![data.trim_matches('"').to_string()])),
        _ => return None,
    };
    Some(Record::from_rdata(owner, ttl, data))
}

impl Template {
    /// `text` is the name in lower case.
    pub fn make(&self, text: &str, kind: RecordType) -> Made {
        if self.kind.is_some_and(|wanted| wanted != kind) || !within(text, &self.zones) {
            return Made::NotMine;
        }
        let full = format!("{text}.");
        let captures = if self.patterns.is_empty() {
            None
        } else {
            match self.patterns.iter().find_map(|pattern| pattern.captures(&full)) {
                Some(captures) => Some(captures),
                None if within(text, &self.fallthrough) => return Made::NotMine,
                None => return Made::Reply(ResponseCode::NXDomain, Vec::new()),
            }
        };
        let mut answers = Vec::new();
        for parts in &self.answers {
            let line: String = parts.iter().map(|part| self.render(part, &full, kind, captures.as_ref())).collect();
            match record(&line) {
                Some(record) => answers.push(record),
                None => {
                    tracing::debug!(line, "a template made no record");
                    return Made::Reply(ResponseCode::ServFail, Vec::new());
                }
            }
        }
        Made::Reply(self.code, answers)
    }

    fn render(&self, part: &Part, full: &str, kind: RecordType, captures: Option<&Captures<'_>>) -> String {
        let group = |found: Option<regex::Match<'_>>| found.map_or(String::new(), |found| found.as_str().to_string());
        match part {
            Part::Text(text) => text.clone(),
            Part::Name => full.to_string(),
            Part::Zone => {
                let zone = self.zones.iter().filter(|zone| within(normal(full).as_str(), std::slice::from_ref(zone)));
                format!("{}.", zone.max_by_key(|zone| zone.len()).map_or("", String::as_str))
            }
            Part::Type => kind.to_string(),
            Part::Class => "IN".to_string(),
            Part::Group(name) => group(captures.and_then(|captures| captures.name(name))),
            Part::Match(number) => group(captures.and_then(|captures| captures.get(*number))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Context, compile as compile_text};
    use crate::resolv_conf::ResolvConf;

    fn template(inside: &str) -> Result<Template, CorefileError> {
        let text = format!("ip.example {{\n template {inside}\n}}");
        let context = Context { cluster_zones: &[], resolv_conf: &ResolvConf::default(), root: false };
        compile_text(&text, &context).map(|mut blocks| blocks[0].templates.remove(0))
    }

    #[test]
    fn an_answer_is_made_from_the_name() {
        let template = template(
            "IN A {\n match \"^ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)[.]\"\n answer \"{{ .Name }} 60 IN A 10.0.{{ .Group.a }}.{{ index .Match 2 }}\"\n fallthrough\n}",
        )
        .unwrap();
        let Made::Reply(code, answers) = template.make("ip-7-8.ip.example", RecordType::A) else { panic!("not mine") };
        assert_eq!((code, answers.len(), answers[0].ttl), (ResponseCode::NoError, 1, 60));
        assert_eq!(answers[0].data, address("10.0.7.8".parse().unwrap()));
        assert!(matches!(template.make("other.ip.example", RecordType::A), Made::NotMine));
        assert!(matches!(template.make("ip-7-8.ip.example", RecordType::AAAA), Made::NotMine));
        let Made::Reply(code, _) = template.make("ip-7-999.ip.example", RecordType::A) else { panic!("not mine") };
        assert_eq!(code, ResponseCode::ServFail);
    }

    #[test]
    fn what_a_template_cannot_do_is_refused_by_name() {
        for (inside, want) in [
            ("IN MX {\n answer \"{{ .Name }} 60 IN MX 10 a.example.\"\n}", "records of type MX are not supported"),
            ("IN A {\n answer \"{{ .Remote }} 60 IN A 1.2.3.4\"\n}", "{{ .Remote }} is not supported"),
            ("CH A {\n}", "class CH is not supported"),
            ("IN NOTHING {\n}", "NOTHING is not a record type"),
            ("IN A {\n upstream\n}", "upstream is not supported"),
        ] {
            let error = template(inside).unwrap_err().to_string();
            assert_eq!(error, format!("line 2: template: {want}"));
        }
    }
}
