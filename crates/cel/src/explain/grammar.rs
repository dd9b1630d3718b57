//! The grammar as a network of states, built as ANTLR builds its own: what may come where follows from it.
//!
//! Follows: the CEL language definition, section "Syntax"; ANTLR 4's construction of networks.

use std::sync::OnceLock;

/// Words and signs by type; the others have names.
pub(super) const LITERALS: [&str; 29] = [
    "", "==", "!=", "in", "<", "<=", ">=", ">", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%", "true", "false", "null",
];
pub(super) const EOF: u8 = 0;
pub(super) const IN: u8 = 3;
pub(super) const OR: u8 = 9;
pub(super) const AND: u8 = 8;
pub(super) const L_BRACKET: u8 = 10;
pub(super) const R_BRACKET: u8 = 11;
pub(super) const L_BRACE: u8 = 12;
pub(super) const R_BRACE: u8 = 13;
pub(super) const L_PAREN: u8 = 14;
pub(super) const R_PAREN: u8 = 15;
pub(super) const DOT: u8 = 16;
pub(super) const COMMA: u8 = 17;
pub(super) const MINUS: u8 = 18;
pub(super) const NOT: u8 = 19;
pub(super) const QUESTION: u8 = 20;
pub(super) const COLON: u8 = 21;
pub(super) const PLUS: u8 = 22;
pub(super) const STAR: u8 = 23;
pub(super) const SLASH: u8 = 24;
pub(super) const PERCENT: u8 = 25;
pub(super) const TRUE: u8 = 26;
pub(super) const FALSE: u8 = 27;
pub(super) const NULL: u8 = 28;
/// White space and comments.
pub(super) const HIDDEN: u8 = 29;
pub(super) const NUM_FLOAT: u8 = 31;
pub(super) const NUM_INT: u8 = 32;
pub(super) const NUM_UINT: u8 = 33;
pub(super) const STRING: u8 = 34;
pub(super) const BYTES: u8 = 35;
pub(super) const IDENTIFIER: u8 = 36;
pub(super) const ESC_IDENTIFIER: u8 = 37;

/// Types of tokens, by bit.
pub(super) type Set = u64;
/// The rule may end here.
pub(super) const EPSILON: Set = 1 << 63;

pub(super) const fn set(ty: u8) -> Set {
    1 << ty
}

/// As messages write a set.
pub(super) fn shown(tokens: Set) -> String {
    let name = |ty: u8| match ty {
        EOF => "<EOF>".to_owned(),
        NUM_FLOAT => "NUM_FLOAT".to_owned(),
        NUM_INT => "NUM_INT".to_owned(),
        NUM_UINT => "NUM_UINT".to_owned(),
        STRING => "STRING".to_owned(),
        BYTES => "BYTES".to_owned(),
        IDENTIFIER => "IDENTIFIER".to_owned(),
        ESC_IDENTIFIER => "ESC_IDENTIFIER".to_owned(),
        ty => format!("'{}'", LITERALS.get(ty as usize).copied().unwrap_or_default()),
    };
    let names: Vec<String> = (0..=ESC_IDENTIFIER).filter(|ty| tokens & set(*ty) != 0).map(name).collect();
    match names.as_slice() {
        [one] => one.clone(),
        _ => format!("{{{}}}", names.join(", ")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Start,
    Expr,
    Or,
    And,
    Relation,
    Calc,
    Unary,
    Member,
    Primary,
    ExprList,
    ListInit,
    FieldList,
    OptField,
    MapList,
    EscapeIdent,
    OptExpr,
    Literal,
}
pub(super) const RULES: usize = 17;

/// What is known about a state when the parser looks ahead there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Of a block, or the entry of a loop.
    Block,
    /// Where the alternatives of a block meet.
    BlockEnd,
    /// Where a loop starts again.
    LoopBack,
    RuleStop,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Arc {
    Epsilon(usize),
    Tokens(Set, usize),
    /// Into a rule; goes on at the second state.
    Rule(Rule, usize),
    /// Only with at most this precedence.
    Precedence(u8, usize),
}

pub(super) struct State {
    pub kind: Kind,
    pub rule: Rule,
    pub arcs: Vec<Arc>,
}

/// A part of a rule together with its states.
pub(super) enum Part {
    Token {
        state: usize,
        tokens: Set,
    },
    Rule {
        state: usize,
        rule: Rule,
        precedence: u8,
    },
    Optional {
        state: usize,
        first: Set,
        body: Vec<Part>,
    },
    /// With `first` one token decides whether to go on; without it the network is asked.
    Star {
        entry: usize,
        back: usize,
        first: Option<Set>,
        body: Vec<Part>,
    },
    Plus {
        start: usize,
        back: usize,
        first: Option<Set>,
        body: Vec<Part>,
    },
    Choice {
        state: usize,
        alternatives: Vec<Vec<Part>>,
        by_token: bool,
    },
    /// A left-recursive rule's operators, by precedence.
    Operators {
        entry: usize,
        back: usize,
        choice: Option<usize>,
        alternatives: Vec<(usize, u8, Vec<Part>)>,
    },
}

pub(super) struct Grammar {
    pub states: Vec<State>,
    pub starts: [usize; RULES],
    pub bodies: Vec<Vec<Part>>,
    /// Where a rule's callers go on.
    pub follows: [Vec<usize>; RULES],
    /// What may come at a state without leaving its rule.
    pub next: Vec<Set>,
}

/// A rule as it is written down.
enum E {
    T(Set),
    R(Rule, u8),
    Opt(Vec<E>),
    Star(Vec<E>, bool),
    Plus(Vec<E>, bool),
    Alt(Vec<Vec<E>>, bool),
    Ops(Vec<(u8, Vec<E>)>),
}

fn source(rule: Rule) -> Vec<E> {
    use E::{Alt, Ops, Opt, Plus, Star};
    let t = |ty: u8| E::T(set(ty));
    let r = |rule: Rule| E::R(rule, 0);
    let any = |tys: &[u8]| E::T(tys.iter().fold(0, |all, ty| all | set(*ty)));
    let dot_names = || vec![Opt(vec![t(DOT)]), t(IDENTIFIER)];
    match rule {
        Rule::Start => vec![r(Rule::Expr), t(EOF)],
        Rule::Expr => {
            vec![r(Rule::Or), Opt(vec![t(QUESTION), r(Rule::Or), t(COLON), r(Rule::Expr)])]
        }
        Rule::Or => vec![r(Rule::And), Star(vec![t(OR), r(Rule::And)], true)],
        Rule::And => vec![r(Rule::Relation), Star(vec![t(AND), r(Rule::Relation)], true)],
        Rule::Relation => {
            vec![r(Rule::Calc), Ops(vec![(1, vec![any(&[1, 2, IN, 4, 5, 6, 7]), E::R(Rule::Relation, 2)])])]
        }
        Rule::Calc => vec![
            r(Rule::Unary),
            Ops(vec![
                (2, vec![any(&[STAR, SLASH, PERCENT]), E::R(Rule::Calc, 3)]),
                (1, vec![any(&[PLUS, MINUS]), E::R(Rule::Calc, 2)]),
            ]),
        ],
        Rule::Unary => vec![Alt(
            vec![
                vec![r(Rule::Member)],
                vec![Plus(vec![t(NOT)], true), r(Rule::Member)],
                vec![Plus(vec![t(MINUS)], false), r(Rule::Member)],
            ],
            false,
        )],
        Rule::Member => vec![
            r(Rule::Primary),
            Ops(vec![
                (3, vec![t(DOT), Opt(vec![t(QUESTION)]), r(Rule::EscapeIdent)]),
                (2, vec![t(DOT), t(IDENTIFIER), t(L_PAREN), Opt(vec![r(Rule::ExprList)]), t(R_PAREN)]),
                (1, vec![t(L_BRACKET), Opt(vec![t(QUESTION)]), r(Rule::Expr), t(R_BRACKET)]),
            ]),
        ],
        Rule::Primary => {
            let mut call = dot_names();
            call.extend([t(L_PAREN), Opt(vec![r(Rule::ExprList)]), t(R_PAREN)]);
            let mut message = dot_names();
            message.push(Star(vec![t(DOT), t(IDENTIFIER)], true));
            message.extend([t(L_BRACE), Opt(vec![r(Rule::FieldList)]), Opt(vec![t(COMMA)]), t(R_BRACE)]);
            vec![Alt(
                vec![
                    dot_names(),
                    call,
                    vec![t(L_PAREN), r(Rule::Expr), t(R_PAREN)],
                    vec![t(L_BRACKET), Opt(vec![r(Rule::ListInit)]), Opt(vec![t(COMMA)]), t(R_BRACKET)],
                    vec![t(L_BRACE), Opt(vec![r(Rule::MapList)]), Opt(vec![t(COMMA)]), t(R_BRACE)],
                    message,
                    vec![r(Rule::Literal)],
                ],
                false,
            )]
        }
        Rule::ExprList => vec![r(Rule::Expr), Star(vec![t(COMMA), r(Rule::Expr)], true)],
        Rule::ListInit => vec![r(Rule::OptExpr), Star(vec![t(COMMA), r(Rule::OptExpr)], false)],
        Rule::FieldList => {
            let entry = || [r(Rule::OptField), t(COLON), r(Rule::Expr)];
            entry().into_iter().chain([Star([t(COMMA)].into_iter().chain(entry()).collect(), false)]).collect()
        }
        Rule::OptField => vec![Opt(vec![t(QUESTION)]), r(Rule::EscapeIdent)],
        Rule::MapList => {
            let entry = || [r(Rule::OptExpr), t(COLON), r(Rule::Expr)];
            entry().into_iter().chain([Star([t(COMMA)].into_iter().chain(entry()).collect(), false)]).collect()
        }
        Rule::EscapeIdent => vec![Alt(vec![vec![t(IDENTIFIER)], vec![t(ESC_IDENTIFIER)]], true)],
        Rule::OptExpr => vec![Opt(vec![t(QUESTION)]), r(Rule::Expr)],
        Rule::Literal => {
            let signed = |ty: u8| vec![Opt(vec![t(MINUS)]), t(ty)];
            let plain = |ty: u8| vec![t(ty)];
            vec![Alt(
                vec![
                    signed(NUM_INT),
                    plain(NUM_UINT),
                    signed(NUM_FLOAT),
                    plain(STRING),
                    plain(BYTES),
                    plain(TRUE),
                    plain(FALSE),
                    plain(NULL),
                ],
                false,
            )]
        }
    }
}

const ALL: [Rule; RULES] = [
    Rule::Start,
    Rule::Expr,
    Rule::Or,
    Rule::And,
    Rule::Relation,
    Rule::Calc,
    Rule::Unary,
    Rule::Member,
    Rule::Primary,
    Rule::ExprList,
    Rule::ListInit,
    Rule::FieldList,
    Rule::OptField,
    Rule::MapList,
    Rule::EscapeIdent,
    Rule::OptExpr,
    Rule::Literal,
];

pub(super) fn grammar() -> &'static Grammar {
    static BUILT: OnceLock<Grammar> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut builder = Builder { states: Vec::new(), follows: Default::default() };
        let starts = ALL.map(|rule| builder.state(rule, Kind::Plain));
        let stops = ALL.map(|rule| builder.state(rule, Kind::RuleStop));
        let mut bodies = Vec::new();
        for rule in ALL {
            let (parts, first, last) = builder.sequence(rule, source(rule));
            builder.link(starts[rule as usize], Arc::Epsilon(first));
            builder.link(last, Arc::Epsilon(stops[rule as usize]));
            bodies.push(parts);
        }
        builder.shorten();
        let Builder { states, follows } = builder;
        let mut grammar = Grammar { states, starts, bodies, follows, next: Vec::new() };
        grammar.next = (0..grammar.states.len()).map(|state| grammar.look(state)).collect();
        // What one token decides is known once the network is there.
        let firsts = Firsts { next: grammar.next.clone() };
        grammar.bodies.iter_mut().flatten().for_each(|part| firsts.fill(part));
        grammar
    })
}

struct Builder {
    states: Vec<State>,
    follows: [Vec<usize>; RULES],
}

impl Builder {
    fn state(&mut self, rule: Rule, kind: Kind) -> usize {
        self.states.push(State { kind, rule, arcs: Vec::new() });
        self.states.len() - 1
    }

    fn link(&mut self, from: usize, arc: Arc) {
        self.states[from].arcs.push(arc);
    }

    /// Alternatives that end with the same rule go on at the same state, as ANTLR has it: which of them is meant cannot be
    /// told by what comes then.
    fn shorten(&mut self) {
        for state in 0..self.states.len() {
            let [Arc::Rule(rule, after)] = self.states[state].arcs[..] else { continue };
            let [Arc::Epsilon(end)] = self.states[after].arcs[..] else { continue };
            let plain = self.states[after].kind == Kind::Plain;
            if plain && matches!(self.states[end].kind, Kind::BlockEnd | Kind::LoopBack) {
                self.states[state].arcs = vec![Arc::Rule(rule, end)];
                let follows = &mut self.follows[rule as usize];
                follows.retain(|follow| *follow != after && *follow != end);
                follows.push(end);
            }
        }
    }

    /// Parts one after the other, with the first and the last state.
    fn sequence(&mut self, rule: Rule, elements: Vec<E>) -> (Vec<Part>, usize, usize) {
        let mut parts = Vec::new();
        let mut ends: Option<(usize, usize)> = None;
        for element in elements {
            let (part, first, last) = self.part(rule, element);
            parts.push(part);
            ends = match ends {
                None => Some((first, last)),
                Some((start, before)) => {
                    self.link(before, Arc::Epsilon(first));
                    Some((start, last))
                }
            };
        }
        let (first, last) = ends.unwrap_or_else(|| {
            let only = self.state(rule, Kind::Plain);
            (only, only)
        });
        (parts, first, last)
    }

    fn part(&mut self, rule: Rule, element: E) -> (Part, usize, usize) {
        let plain = Kind::Plain;
        match element {
            E::T(tokens) => {
                let (state, after) = (self.state(rule, plain), self.state(rule, plain));
                self.link(state, Arc::Tokens(tokens, after));
                (Part::Token { state, tokens }, state, after)
            }
            E::R(called, precedence) => {
                let (state, after) = (self.state(rule, plain), self.state(rule, plain));
                self.link(state, Arc::Rule(called, after));
                self.follows[called as usize].push(after);
                (Part::Rule { state, rule: called, precedence }, state, after)
            }
            E::Opt(body) => {
                let (state, end) = (self.state(rule, Kind::Block), self.state(rule, Kind::BlockEnd));
                let (body, first, last) = self.sequence(rule, body);
                self.link(state, Arc::Epsilon(first));
                self.link(state, Arc::Epsilon(end));
                self.link(last, Arc::Epsilon(end));
                (Part::Optional { state, first: first as Set, body }, state, end)
            }
            E::Star(body, by_token) => {
                let (entry, end) = (self.state(rule, Kind::Block), self.state(rule, plain));
                let back = self.state(rule, Kind::LoopBack);
                let (body, first, last) = self.sequence(rule, body);
                self.link(entry, Arc::Epsilon(first));
                self.link(entry, Arc::Epsilon(end));
                self.link(last, Arc::Epsilon(back));
                self.link(back, Arc::Epsilon(entry));
                (Part::Star { entry, back, first: by_token.then_some(first as Set), body }, entry, end)
            }
            E::Plus(body, by_token) => {
                let (start, end) = (self.state(rule, Kind::Block), self.state(rule, plain));
                let back = self.state(rule, Kind::LoopBack);
                let (body, first, last) = self.sequence(rule, body);
                self.link(start, Arc::Epsilon(first));
                self.link(last, Arc::Epsilon(back));
                self.link(back, Arc::Epsilon(start));
                self.link(back, Arc::Epsilon(end));
                (Part::Plus { start, back, first: by_token.then_some(first as Set), body }, start, end)
            }
            E::Alt(alternatives, by_token) => {
                let (state, end) = (self.state(rule, Kind::Block), self.state(rule, Kind::BlockEnd));
                let mut parts = Vec::new();
                for alternative in alternatives {
                    let (body, first, last) = self.sequence(rule, alternative);
                    self.link(state, Arc::Epsilon(first));
                    self.link(last, Arc::Epsilon(end));
                    parts.push(body);
                }
                (Part::Choice { state, alternatives: parts, by_token }, state, end)
            }
            E::Ops(alternatives) => {
                let (entry, end) = (self.state(rule, Kind::Block), self.state(rule, plain));
                let back = self.state(rule, Kind::LoopBack);
                let block = self.state(rule, Kind::Block);
                self.link(entry, Arc::Epsilon(block));
                self.link(entry, Arc::Epsilon(end));
                self.link(back, Arc::Epsilon(entry));
                let choice = (alternatives.len() > 1).then_some(block);
                let mut parts = Vec::new();
                for (precedence, body) in alternatives {
                    let check = self.state(rule, plain);
                    let (body, first, last) = self.sequence(rule, body);
                    self.link(block, Arc::Epsilon(check));
                    self.link(check, Arc::Precedence(precedence, first));
                    self.link(last, Arc::Epsilon(back));
                    parts.push((check, precedence, body));
                }
                (Part::Operators { entry, back, choice, alternatives: parts }, entry, end)
            }
        }
    }
}

/// Replaces the first state of a body by the tokens that may come there.
struct Firsts {
    next: Vec<Set>,
}

impl Firsts {
    fn fill(&self, part: &mut Part) {
        match part {
            Part::Token { .. } | Part::Rule { .. } => {}
            Part::Optional { first, body, .. } => {
                *first = self.next[*first as usize];
                body.iter_mut().for_each(|p| self.fill(p));
            }
            Part::Star { first, body, .. } | Part::Plus { first, body, .. } => {
                *first = first.map(|state| self.next[state as usize]);
                body.iter_mut().for_each(|p| self.fill(p));
            }
            Part::Choice { alternatives, .. } => alternatives.iter_mut().flatten().for_each(|p| self.fill(p)),
            Part::Operators { alternatives, .. } => {
                alternatives.iter_mut().flat_map(|(_, _, body)| body).for_each(|p| self.fill(p));
            }
        }
    }
}

impl Grammar {
    /// What may come at a state; [`EPSILON`] when the rule may end there.
    fn look(&self, state: usize) -> Set {
        self.look_from(state, &mut vec![false; self.states.len()])
    }

    fn look_from(&self, state: usize, seen: &mut [bool]) -> Set {
        if std::mem::replace(&mut seen[state], true) {
            return 0;
        }
        let here = &self.states[state];
        if here.kind == Kind::RuleStop {
            return EPSILON;
        }
        here.arcs.iter().fold(0, |all, arc| {
            all | match *arc {
                Arc::Tokens(tokens, _) => tokens,
                Arc::Epsilon(to) | Arc::Precedence(_, to) => self.look_from(to, seen),
                // No rule of this grammar is empty.
                Arc::Rule(rule, _) => self.look(self.starts[rule as usize]) & !EPSILON,
            }
        })
    }
}
