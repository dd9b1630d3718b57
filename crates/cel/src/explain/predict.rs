//! Which alternative of a choice fits what comes: simulation of the network over as many tokens as it takes.
//!
//! First without knowing who called the rule (every caller is followed), then, when that does not decide, with the
//! callers. Both are needed for the same answers as ANTLR's: they notice mistakes at different tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::grammar::{Arc, EOF, Grammar, Kind, set};
use super::lexer::Token;

/// Where a rule's callers go on, the innermost first.
pub(super) type Stack = Option<Rc<Frame>>;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frame {
    pub after: usize,
    pub below: Stack,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Config {
    state: usize,
    alternative: usize,
    stack: Stack,
    /// Left the rule in which the choice is.
    left: bool,
}

pub(super) enum Outcome {
    Alternative(usize),
    /// No alternative fits; the token at which that shows.
    Nothing(usize),
    /// The input takes too long.
    GaveUp,
}

/// What all choices of a text may cost together.
const STEPS_MAX: usize = 2_000_000;

pub(super) struct Predictor<'a> {
    pub grammar: &'static Grammar,
    pub tokens: &'a [Token],
    /// The precedence of the rule, where the choice depends on it.
    pub precedence: Option<u8>,
    pub steps: &'a mut usize,
}

struct Closure {
    seen: BTreeSet<Config>,
    out: BTreeSet<Config>,
    full: bool,
    at_end: bool,
}

impl Predictor<'_> {
    /// The alternatives are the arcs of `state`, counted from 1.
    pub fn predict(&mut self, state: usize, at: usize, callers: &Stack) -> Outcome {
        match self.simulate(state, at, None) {
            Some(outcome) => outcome,
            None => self.simulate(state, at, Some(callers)).unwrap_or(Outcome::GaveUp),
        }
    }

    /// `None`: only the callers can decide.
    fn simulate(&mut self, state: usize, at: usize, callers: Option<&Stack>) -> Option<Outcome> {
        let full = callers.is_some();
        let mut configs = self.begin(state, callers);
        let mut at = at;
        loop {
            if *self.steps > STEPS_MAX {
                return Some(Outcome::GaveUp);
            }
            let ty = self.tokens.get(at).map_or(EOF, |t| t.ty);
            let reach = self.reach(&configs, ty, full);
            if reach.is_empty() {
                let finished =
                    |c: &&Config| c.left || (self.grammar.states[c.state].kind == Kind::RuleStop && c.stack.is_none());
                let alternative = configs.iter().filter(finished).map(|c| c.alternative).min();
                return Some(alternative.map_or(Outcome::Nothing(at), Outcome::Alternative));
            }
            let first = reach.first().map_or(0, |c| c.alternative);
            if reach.iter().all(|c| c.alternative == first) {
                return Some(Outcome::Alternative(first));
            }
            let mut by_place: BTreeMap<(usize, &Stack), BTreeSet<usize>> = BTreeMap::new();
            let mut by_state: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for config in &reach {
                by_place.entry((config.state, &config.stack)).or_default().insert(config.alternative);
                by_state.entry(config.state).or_default().insert(config.alternative);
            }
            if full {
                let least: BTreeSet<usize> = by_place.values().filter_map(|all| all.first().copied()).collect();
                if least.len() == 1 {
                    return least.first().copied().map(Outcome::Alternative);
                }
            } else {
                let stopped = reach.iter().all(|c| self.grammar.states[c.state].kind == Kind::RuleStop);
                let conflict = by_place.values().any(|all| all.len() > 1);
                if stopped || (conflict && by_state.values().all(|all| all.len() > 1)) {
                    return None;
                }
            }
            if ty != EOF {
                at += 1;
            }
            configs = reach;
        }
    }

    fn begin(&mut self, state: usize, callers: Option<&Stack>) -> BTreeSet<Config> {
        let grammar = self.grammar;
        let mut closure =
            Closure { seen: BTreeSet::new(), out: BTreeSet::new(), full: callers.is_some(), at_end: false };
        for (i, arc) in grammar.states[state].arcs.iter().enumerate() {
            let Arc::Epsilon(to) = *arc else { continue };
            let config = Config { state: to, alternative: i + 1, stack: callers.cloned().flatten(), left: false };
            self.close(config, 0, self.precedence.is_some(), &mut closure);
        }
        let mut configs = closure.out;
        if self.precedence.is_some() && callers.is_none() {
            // Going on within the rule wins over leaving it for the same place.
            let stays: BTreeSet<(usize, Stack)> =
                configs.iter().filter(|c| c.alternative == 1).map(|c| (c.state, c.stack.clone())).collect();
            configs.retain(|c| c.alternative == 1 || !stays.contains(&(c.state, c.stack.clone())));
        }
        configs
    }

    fn reach(&mut self, configs: &BTreeSet<Config>, ty: u8, full: bool) -> BTreeSet<Config> {
        let grammar = self.grammar;
        let mut closure = Closure { seen: BTreeSet::new(), out: BTreeSet::new(), full, at_end: ty == EOF };
        let mut skipped = Vec::new();
        let mut moved = Vec::new();
        for config in configs {
            let state = &grammar.states[config.state];
            if state.kind == Kind::RuleStop {
                if full || ty == EOF {
                    skipped.push(config.clone());
                }
                continue;
            }
            for arc in &state.arcs {
                if let Arc::Tokens(tokens, to) = *arc
                    && tokens & set(ty) != 0
                {
                    moved.push(Config { state: to, ..config.clone() });
                }
            }
        }
        let first = moved.first().map_or(0, |c| c.alternative);
        if skipped.is_empty() && ty != EOF && moved.iter().all(|c| c.alternative == first) {
            return moved.into_iter().collect();
        }
        for config in moved {
            self.close(config, 0, false, &mut closure);
        }
        let mut out = closure.out;
        if ty == EOF {
            out.retain(|c| grammar.states[c.state].kind == Kind::RuleStop);
        }
        if !full || out.is_empty() {
            out.extend(skipped);
        }
        out
    }

    /// Follows everything that takes no token. `depth` counts the rules entered; predicates of the rule in which the
    /// choice is are judged when `judged`.
    fn close(&mut self, config: Config, depth: i32, judged: bool, closure: &mut Closure) {
        *self.steps += 1;
        if *self.steps > STEPS_MAX || !closure.seen.insert(config.clone()) {
            return;
        }
        let grammar = self.grammar;
        let state = &grammar.states[config.state];
        if state.kind == Kind::RuleStop {
            match &config.stack {
                Some(frame) => {
                    let next = Config { state: frame.after, stack: frame.below.clone(), ..config.clone() };
                    self.close(next, depth - 1, judged, closure);
                }
                None if closure.full => {
                    closure.out.insert(config);
                }
                None => {
                    let follows = &grammar.follows[state.rule as usize];
                    if follows.is_empty() {
                        closure.out.insert(Config { left: true, ..config.clone() });
                    }
                    for after in follows {
                        let next = Config { state: *after, left: true, ..config.clone() };
                        self.close(next, depth - 1, judged, closure);
                    }
                }
            }
            return;
        }
        for arc in &state.arcs {
            match *arc {
                Arc::Epsilon(to) => self.close(Config { state: to, ..config.clone() }, depth, judged, closure),
                Arc::Precedence(least, to) => {
                    let fits = !judged || depth != 0 || self.precedence.is_none_or(|p| least >= p);
                    if fits {
                        self.close(Config { state: to, ..config.clone() }, depth, judged, closure);
                    }
                }
                Arc::Rule(rule, after) => {
                    let stack = Some(Rc::new(Frame { after, below: config.stack.clone() }));
                    let next = Config { state: grammar.starts[rule as usize], stack, ..config.clone() };
                    self.close(next, depth + 1, judged, closure);
                }
                Arc::Tokens(tokens, to) => {
                    if closure.at_end && tokens & set(EOF) != 0 {
                        self.close(Config { state: to, ..config.clone() }, depth, judged, closure);
                    }
                    closure.out.insert(config.clone());
                }
            }
        }
    }
}
