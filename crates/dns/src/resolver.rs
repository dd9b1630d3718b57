//! From a question to an answer: which block the name belongs to, what its chain says, and whom to ask otherwise.
//!
//! Everything that this process knows is answered without waiting ([`Resolver::walk`]); only what other servers know
//! waits ([`Resolver::finish`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use apimachinery::json::Str;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use informer::ObjectKey;
use parking_lot::RwLock;

use crate::block::{Block, Hosts};
use crate::cache::{Answer, Question};
use crate::forward::{AskError, Forwarder, Upstream, within};
use crate::names::{below, lower, name as to_name, reverse_address};
use crate::rewrite::{After, Rewritten};
use crate::snapshot::Snapshot;
use crate::template::Made;
use crate::zone::{Found, TTL, Zone, addresses};

/// Aliases that are followed for one question, as CoreDNS.
const ALIASES_MAX: usize = 10;
pub(crate) const REVERSE_ZONES: [&str; 2] = ["in-addr.arpa", "ip6.arpa"];

/// The sections of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub authentic: bool,
    pub truncated: bool,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

impl Reply {
    pub fn code(code: ResponseCode) -> Reply {
        Reply {
            code,
            authoritative: false,
            authentic: false,
            truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn authoritative(answers: Vec<Record>) -> Reply {
        Reply { authoritative: true, answers, ..Reply::code(ResponseCode::NoError) }
    }
}

/// How far this process came with a question.
pub(crate) struct Walk {
    /// Aliases on the way.
    aliases: Vec<Record>,
    end: End,
}

enum End {
    Reply(Reply),
    /// Another server knows more about `asked`; its answer is given for `owner`.
    Ask {
        upstream: Arc<Upstream>,
        question: Question,
        asked: Name,
        owner: Name,
    },
}

enum Step {
    End(End),
    Alias(Name),
}

/// What a resolver is made with.
pub(crate) struct Setup {
    /// The cluster's domain first; others are answered too.
    pub zones: Vec<Zone>,
    pub own_service: ObjectKey,
    pub default_block: Block,
    /// The host cluster's DNS servers and domain.
    pub host: Arc<Upstream>,
    pub host_domain: String,
    pub forwarder: Arc<Forwarder>,
    /// A name nobody else can know, to see questions come back.
    pub loop_name: Name,
}

pub(crate) struct Resolver {
    setup: Setup,
    loop_text: String,
    snapshot: RwLock<Arc<Snapshot>>,
    custom: RwLock<Arc<Vec<Block>>>,
    serial: AtomicU32,
    synced: AtomicBool,
}

impl Resolver {
    pub fn new(setup: Setup) -> Resolver {
        Resolver {
            loop_text: lower(&setup.loop_name),
            setup,
            snapshot: RwLock::default(),
            custom: RwLock::default(),
            serial: AtomicU32::new(0),
            synced: AtomicBool::new(false),
        }
    }

    pub fn forwarder(&self) -> &Arc<Forwarder> {
        &self.setup.forwarder
    }

    /// The groups of servers that are asked about anything.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        self.setup.default_block.forwards.iter().map(|forward| Arc::clone(&forward.upstream)).collect()
    }

    pub fn loop_name(&self) -> &Name {
        &self.setup.loop_name
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read())
    }

    pub fn publish(&self, snapshot: Snapshot, serial: u32) {
        *self.snapshot.write() = Arc::new(snapshot);
        self.serial.store(serial, Ordering::Relaxed);
    }

    pub fn set_custom(&self, blocks: Vec<Block>) {
        *self.custom.write() = Arc::new(blocks);
    }

    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Relaxed);
    }

    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    /// The zones of the cluster, reverse ones included.
    pub fn zone_names(zones: &[Zone]) -> Vec<String> {
        zones.iter().map(|zone| zone.domain.clone()).chain(REVERSE_ZONES.map(str::to_string)).collect()
    }

    /// Whether names outside the cluster can be had.
    pub fn is_recursive(&self) -> bool {
        self.setup.default_block.forwards.iter().any(|forward| !forward.upstream.servers.is_empty())
    }

    /// Answers a question as far as it can be done now.
    pub fn walk(&self, query: &Query, dnssec: bool, checking_disabled: bool) -> Walk {
        let snapshot = self.snapshot();
        let custom = Arc::clone(&self.custom.read());
        let mut aliases: Vec<Record> = Vec::new();
        let mut owner = query.name.clone();
        let flags = (dnssec, checking_disabled);
        loop {
            let end = match self.step(&snapshot, &custom, &owner, query, flags) {
                Step::End(end) => end,
                Step::Alias(target) => {
                    let seen = target == owner || aliases.iter().any(|alias| alias.name == target);
                    if seen || aliases.len() >= ALIASES_MAX {
                        // A ring of aliases has no data.
                        return Walk { aliases: Vec::new(), end: End::Reply(Reply::code(ResponseCode::ServFail)) };
                    }
                    aliases.push(Record::from_rdata(owner.clone(), TTL, RData::CNAME(CNAME(target.clone()))));
                    if query.query_type == RecordType::CNAME {
                        End::Reply(Reply::authoritative(Vec::new()))
                    } else {
                        owner = target;
                        continue;
                    }
                }
            };
            return Walk { aliases, end };
        }
    }

    /// The answer when no other server has to be asked.
    pub fn ready(&self, walk: Walk) -> Result<Reply, Walk> {
        let Walk { aliases, end } = walk;
        match end {
            End::Reply(reply) => Ok(with_aliases(aliases, reply)),
            End::Ask { upstream, question, asked, owner } => match self.setup.forwarder.kept(&question) {
                Some(answer) => Ok(with_aliases(aliases, from_answer(&answer, &asked, &owner))),
                None => Err(Walk { aliases, end: End::Ask { upstream, question, asked, owner } }),
            },
        }
    }

    /// Asks whom has to be asked.
    pub async fn finish(&self, walk: Walk) -> Reply {
        let Walk { aliases, end } = walk;
        let reply = match end {
            End::Reply(reply) => reply,
            End::Ask { upstream, question, asked, owner } => {
                match self.setup.forwarder.ask(&upstream, question, asked.clone()).await {
                    Ok(answer) => from_answer(&answer, &asked, &owner),
                    // The alias itself is known.
                    Err(AskError::NoServer) if !aliases.is_empty() => Reply::authoritative(Vec::new()),
                    Err(AskError::NoServer | AskError::Busy) => Reply::code(ResponseCode::Refused),
                    Err(AskError::NoAnswer | AskError::Loop) => Reply::code(ResponseCode::ServFail),
                }
            }
        };
        with_aliases(aliases, reply)
    }

    fn step(
        &self,
        snapshot: &Snapshot,
        custom: &[Block],
        owner: &Name,
        query: &Query,
        (dnssec, checking_disabled): (bool, bool),
    ) -> Step {
        let kind = query.query_type;
        let mut text = lower(owner);
        if kind == RecordType::HINFO && text == self.loop_text {
            self.setup.forwarder.set_looped(true);
            return reply(Reply::code(ResponseCode::NXDomain));
        }
        let ask = |upstream: &Arc<Upstream>, text: &str, changed: bool| {
            let asked = if changed { to_name(text) } else { Some(owner.clone()) };
            let Some(asked) = asked else { return reply(Reply::code(ResponseCode::ServFail)) };
            let mut query = query.clone();
            query.set_name(asked.clone());
            Step::End(End::Ask {
                question: Forwarder::question(upstream, &query, dnssec, checking_disabled),
                upstream: Arc::clone(upstream),
                asked,
                owner: owner.clone(),
            })
        };
        let block = self.block(custom, &text);
        let mut changed = false;
        for rule in &block.rewrites {
            match rule.apply(&text) {
                None => continue,
                Some(Rewritten::Address(address)) => {
                    return self.found(addresses(vec![address], kind), owner, &self.setup.zones[0]);
                }
                Some(Rewritten::Host(new)) => return ask(&self.setup.host, &new, true),
                Some(Rewritten::Name(new)) => {
                    text = new;
                    changed = true;
                }
            }
            if rule.after == After::Stop {
                break;
            }
        }
        for template in &block.templates {
            match template.make(&text, kind) {
                Made::NotMine => {}
                Made::Reply(code, answers) => {
                    let reply = Reply { code, ..Reply::authoritative(answers) };
                    return Step::End(End::Reply(reply));
                }
            }
        }
        for hosts in &block.hosts {
            if let Some(step) = self.hosts(hosts, snapshot, &text, owner, kind) {
                return step;
            }
        }
        if let Some(cluster) = &block.cluster
            && let Some((zone, below)) = self.cluster_zone(&text)
        {
            if matches!(kind, RecordType::AXFR | RecordType::IXFR) || query.query_class != DNSClass::IN {
                return reply(Reply::code(ResponseCode::Refused));
            }
            let serial = self.serial.load(Ordering::Relaxed);
            let found = match zone {
                Some(zone) => zone.find(snapshot, below, kind, serial, &self.setup.own_service),
                None => self.reverse(snapshot, &text, kind),
            };
            match found {
                Found::Alias(target) => return Step::Alias(target),
                Found::NoName if within(&text, &cluster.fallthrough) => {
                    // The host cluster knows its names by its own domain.
                    if let Some(zone) = zone
                        && zone.domain != self.setup.host_domain
                        && !below.is_empty()
                    {
                        text = format!("{below}.{}", self.setup.host_domain);
                        changed = true;
                    }
                }
                Found::NoName if !self.is_synced() => return reply(Reply::code(ResponseCode::ServFail)),
                found => return self.found(found, owner, zone.unwrap_or(&self.setup.zones[0])),
            }
        }
        match block.forwards.iter().find(|forward| forward.takes(&text)) {
            Some(forward) => ask(&forward.upstream, &text, changed),
            None => reply(Reply::code(ResponseCode::Refused)),
        }
    }

    /// The block with the longest zone that holds the name.
    fn block<'a>(&'a self, custom: &'a [Block], text: &str) -> &'a Block {
        let longest = |block: &Block| {
            let zones = block.zones.iter().filter(|zone| below(text, zone).is_some());
            zones.map(|zone| zone.len()).max()
        };
        let found = custom.iter().filter_map(|block| Some((longest(block)?, block))).max_by_key(|(length, _)| *length);
        found.map_or(&self.setup.default_block, |(_, block)| block)
    }

    /// The zone of the cluster that holds the name (`None` for a reverse one), and the labels below it.
    fn cluster_zone<'a>(&self, text: &'a str) -> Option<(Option<&Zone>, &'a str)> {
        let zones = self.setup.zones.iter().filter_map(|zone| Some((zone, below(text, &zone.domain)?)));
        if let Some((zone, below)) = zones.max_by_key(|(zone, _)| zone.domain.len()) {
            return Some((Some(zone), below));
        }
        REVERSE_ZONES.iter().find_map(|zone| below(text, zone)).map(|below| (None, below))
    }

    fn reverse(&self, snapshot: &Snapshot, text: &str, kind: RecordType) -> Found {
        let Some(address) = reverse_address(text) else { return Found::NoName };
        let domain = &self.setup.zones[0].domain;
        let names = snapshot.pointers(&address).map(|pointer| {
            let service = &pointer.service;
            let name = format!("{}.{}.svc.{domain}", service.name, service.namespace);
            pointer.hostname.as_ref().map_or(name.clone(), |hostname: &Str| format!("{hostname}.{name}"))
        });
        let data: Vec<RData> = names.filter_map(|name| Some(RData::PTR(PTR(to_name(&name)?)))).collect();
        match (data.is_empty(), kind) {
            (true, _) => Found::NoName,
            (false, RecordType::PTR) => Found::Data { ttl: TTL, answers: data, additionals: Vec::new() },
            (false, _) => Found::NoData,
        }
    }

    fn found(&self, found: Found, owner: &Name, zone: &Zone) -> Step {
        let mut answer = Reply::authoritative(Vec::new());
        match found {
            Found::Alias(target) => return Step::Alias(target),
            Found::Data { ttl, answers, additionals } => {
                let records = answers.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data));
                answer.answers = records.collect();
                answer.additionals = additionals;
                return reply(answer);
            }
            Found::NoData => {}
            Found::NoName => answer.code = ResponseCode::NXDomain,
        }
        let soa = zone.soa(self.serial.load(Ordering::Relaxed));
        answer.authorities = soa.into_iter().map(|soa| Record::from_rdata(zone.apex.clone(), TTL, soa)).collect();
        reply(answer)
    }

    /// What lines of a hosts file say; `None` when the chain goes on.
    fn hosts(&self, hosts: &Hosts, snapshot: &Snapshot, text: &str, owner: &Name, kind: RecordType) -> Option<Step> {
        let nodes = if hosts.nodes { snapshot.hosts() } else { &[] };
        let entries = || {
            let fixed = hosts.entries.iter().map(|(address, name)| (*address, name.as_str()));
            fixed.chain(nodes.iter().map(|(address, name)| (*address, name.as_str())))
        };
        if hosts.reverse
            && let Some(wanted) = reverse_address(text)
        {
            let names = entries().filter(|(address, _)| *address == wanted).filter_map(|(_, name)| to_name(name));
            let data: Vec<RData> = names.map(|name| RData::PTR(PTR(name))).collect();
            if data.is_empty() {
                return None;
            }
            let answers = if kind == RecordType::PTR { data } else { Vec::new() };
            let records = answers.into_iter().map(|data| Record::from_rdata(owner.clone(), hosts.ttl, data));
            return Some(reply(Reply::authoritative(records.collect())));
        }
        if !within(text, &hosts.zones) {
            return None;
        }
        let ips: Vec<_> = entries().filter(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(ip, _)| ip).collect();
        if !ips.is_empty() {
            let answers = match addresses(ips, kind) {
                Found::Data { answers, .. } => answers,
                _ => Vec::new(),
            };
            let records = answers.into_iter().map(|data| Record::from_rdata(owner.clone(), hosts.ttl, data));
            return Some(reply(Reply::authoritative(records.collect())));
        }
        match &hosts.fallthrough {
            Some(zones) if within(text, zones) => None,
            _ => Some(reply(Reply { authoritative: true, ..Reply::code(ResponseCode::NXDomain) })),
        }
    }
}

fn reply(reply: Reply) -> Step {
    Step::End(End::Reply(reply))
}

fn with_aliases(mut aliases: Vec<Record>, mut reply: Reply) -> Reply {
    if !aliases.is_empty() {
        // The question's name is the cluster's; that its target does not exist does not make it vanish.
        if reply.code == ResponseCode::NXDomain {
            reply.code = ResponseCode::NoError;
        }
        reply.authoritative = true;
        aliases.append(&mut reply.answers);
        reply.answers = aliases;
    }
    reply
}

/// A kept answer as it is given now: aged, and for the name that was asked for.
fn from_answer(answer: &Answer, asked: &Name, owner: &Name) -> Reply {
    let ttl = answer.ttl(std::time::Instant::now());
    let given = |records: &[Record], rename: bool| {
        let records = records.iter().cloned().map(|mut record| {
            if let Some(ttl) = ttl {
                record.ttl = ttl;
            }
            if rename && record.name == *asked {
                record.name = owner.clone();
            }
            record
        });
        records.collect::<Vec<_>>()
    };
    Reply {
        code: answer.code,
        authoritative: false,
        authentic: answer.authentic,
        truncated: answer.truncated,
        answers: given(&answer.answers, true),
        authorities: given(&answer.authorities, false),
        additionals: given(&answer.additionals, false),
    }
}
