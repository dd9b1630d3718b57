//! What is wrong with a text that is no expression, in the words of cel-go.
//!
//! [`crate::parser`] reads expressions and stops at the first mistake. cel-go's parser, which ANTLR generates, goes on:
//! it drops a token or makes one up, and tells of each. Here the grammar is a network of states that the text is led
//! through with those rules. Slow, and used for texts that are wrong only.
//!
//! Invariants: every text comes to an end; how much is looked ahead is bounded, and what takes longer is not explained.
//!
//! Follows: ANTLR 4's error strategy and adaptive prediction; `parser/parser.go` of cel-go.

mod grammar;
mod lexer;
mod predict;
mod visit;

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use crate::ast::Position;
use crate::{CompileIssue, NOWHERE};
use grammar::{EOF, EPSILON, Grammar, Kind, Part, RULES, Rule, Set, grammar, set, shown};
use lexer::{Token, escaped};
use predict::{Frame, Outcome, Predictor, Stack};

/// How often cel-go's parser recovers, and how many mistakes it tells.
const RECOVERIES_MAX: usize = 30;
const ISSUES_MAX: usize = 100;
/// How many tokens one recovery may pass over, and how deep a rule may be within itself.
const SKIPPED_MAX: usize = 256;
const DEPTH_MAX: usize = 250;
/// Texts with more tokens are not explained.
const TOKENS_MAX: usize = 1_000;

/// A token of the text, or one that was made up.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    ty: u8,
    /// `None`: made up.
    token: Option<Token>,
    position: Position,
}

/// What a rule matched: the alternative and its parts in order.
#[derive(Debug)]
struct Tree {
    rule: Rule,
    /// From 1; 0 when none was chosen.
    alternative: usize,
    start: Position,
    leaves: Vec<Leaf>,
    trees: Vec<Rc<Tree>>,
}

/// Texts with more tokens are explained on a thread with a stack of their own size: parentheses and chains of operators
/// nest as deep as they are long.
const TOKENS_HERE: usize = 40;
const STACK_BYTES: usize = 64 << 20;

/// The mistakes in `source`, in the order of their places; none when it is an expression after all, or too long.
pub(crate) fn explain(source: &str, has_bindings: bool) -> Vec<CompileIssue> {
    let chars: Vec<char> = source.chars().collect();
    let (tokens, issues, dropped) = lexer::tokens(&chars);
    if tokens.len() > TOKENS_MAX {
        return Vec::new();
    }
    let parse = || explained(source, has_bindings, &chars, &tokens, &dropped, issues);
    if tokens.len() <= TOKENS_HERE {
        return parse();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, parse);
        thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
    })
}

fn explained(
    source: &str,
    has_bindings: bool,
    chars: &[char],
    tokens: &[Token],
    dropped: &[Range<usize>],
    issues: Vec<CompileIssue>,
) -> Vec<CompileIssue> {
    let mut parser = Parser {
        grammar: grammar(),
        chars,
        tokens,
        dropped,
        at: 0,
        state: 0,
        callers: None,
        recovering: false,
        last_error: None,
        recoveries: 0,
        depths: [0; RULES],
        steps: 0,
        issues,
    };
    let tree = parser.rule(Rule::Start, 0);
    let mut issues = parser.issues;
    if let Ok(tree) = tree {
        issues.extend(visit::visit(source, chars, &tree, has_bindings, !issues.is_empty()));
    }
    issues.sort_by_key(CompileIssue::place);
    issues.truncate(ISSUES_MAX);
    issues
}

/// A mistake on its way to the rule that recovers.
enum Mistake {
    Mismatch,
    NoAlternative { from: usize, at: usize },
}

/// The text is not looked at any further.
struct GiveUp;

/// Why a part did not match.
enum Stop {
    Mistake(Mistake),
    GiveUp,
}

impl From<GiveUp> for Stop {
    fn from(_: GiveUp) -> Stop {
        Stop::GiveUp
    }
}

struct Parser<'a> {
    grammar: &'static Grammar,
    chars: &'a [char],
    tokens: &'a [Token],
    /// Characters that belong to no token.
    dropped: &'a [Range<usize>],
    at: usize,
    state: usize,
    /// Where the rules that are under way go on.
    callers: Stack,
    /// Told of a mistake, and no token has matched since.
    recovering: bool,
    last_error: Option<(usize, BTreeSet<usize>)>,
    recoveries: usize,
    depths: [usize; RULES],
    steps: usize,
    issues: Vec<CompileIssue>,
}

impl Parser<'_> {
    fn token(&self, at: usize) -> Token {
        self.tokens[at.min(self.tokens.len() - 1)]
    }

    fn next_type(&self) -> u8 {
        self.token(self.at).ty
    }

    fn consume(&mut self) {
        if self.next_type() != EOF {
            self.at += 1;
        }
    }

    fn tell(&mut self, at: usize, message: String) {
        let position = self.token(at).start as Position;
        self.issues.push(CompileIssue { position, message: format!("Syntax error: {message}") });
    }

    /// The text of tokens, as a message quotes it.
    fn quoted(&self, from: usize, to: usize) -> String {
        let (first, last) = (self.token(from), self.token(to));
        if first.ty == EOF {
            return "'<EOF>'".to_owned();
        }
        // White space at the end of the text is before the end.
        let end = if last.ty == EOF { self.chars.len() } else { last.end };
        let read = (first.start..end).filter(|i| !self.dropped.iter().any(|range| range.contains(i)));
        let text: String = read.map(|i| self.chars[i]).collect();
        format!("'{}'", escaped(&text))
    }

    /// What may come at `state`, with those who called its rule.
    fn expected(&self, state: usize) -> Set {
        let mut all = self.grammar.next[state];
        let mut callers = &self.callers;
        while all & EPSILON != 0 {
            all &= !EPSILON;
            match callers {
                None => all |= set(EOF),
                Some(frame) => {
                    all |= self.grammar.next[frame.after];
                    callers = &frame.below;
                }
            }
        }
        all
    }

    fn begin_recovery(&mut self) -> bool {
        !std::mem::replace(&mut self.recovering, true)
    }

    fn unwanted(&mut self) {
        if self.begin_recovery() {
            let expected = shown(self.expected(self.state));
            self.tell(self.at, format!("extraneous input {} expecting {expected}", self.quoted(self.at, self.at)));
        }
    }

    /// Drops a token when the one after it is wanted.
    fn delete(&mut self) -> bool {
        let wanted = self.expected(self.state) & set(self.token(self.at + 1).ty) != 0;
        if wanted {
            self.unwanted();
            self.consume();
            self.recovering = false;
        }
        wanted
    }

    fn attempt(&mut self) -> Result<(), GiveUp> {
        if self.recoveries == RECOVERIES_MAX {
            let message = format!("error recovery attempt limit exceeded: {RECOVERIES_MAX}");
            self.tell(self.at, message);
            return Err(GiveUp);
        }
        self.recoveries += 1;
        Ok(())
    }

    /// A limit of the parser is reached, at no place.
    fn exceeded(&mut self, message: String) -> GiveUp {
        self.issues.push(CompileIssue { position: NOWHERE, message });
        GiveUp
    }

    /// Passes over tokens until one is wanted; false when that are too many.
    fn skip_until(&mut self, wanted: Set) -> bool {
        let from = self.at;
        while self.next_type() != EOF && wanted & set(self.next_type()) == 0 {
            if self.at - from == SKIPPED_MAX {
                return false;
            }
            self.consume();
        }
        true
    }

    /// What may come after any of the rules that are under way.
    fn recovery_set(&self) -> Set {
        let mut all = 0;
        let mut callers = &self.callers;
        while let Some(frame) = callers {
            all |= self.grammar.next[frame.after];
            callers = &frame.below;
        }
        all & !EPSILON
    }

    /// Looks whether the next token may come at all before a choice is made.
    fn sync(&mut self, state: usize) -> Result<(), Stop> {
        self.state = state;
        if self.recovering {
            return Ok(());
        }
        let next = self.grammar.next[state];
        if next & EPSILON != 0 || next & set(self.next_type()) != 0 {
            return Ok(());
        }
        match self.grammar.states[state].kind {
            Kind::Block if !self.delete() => Err(Stop::Mistake(Mistake::Mismatch)),
            Kind::LoopBack => {
                self.unwanted();
                let wanted = self.expected(state) | self.recovery_set();
                self.skip_until(wanted);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn matches(&mut self, state: usize, tokens: Set, tree: &mut Tree) -> Result<(), Stop> {
        self.state = state;
        let leaf = |token: Token| Leaf { ty: token.ty, token: Some(token), position: token.start as Position };
        if tokens & set(self.next_type()) != 0 {
            tree.leaves.push(leaf(self.token(self.at)));
            self.recovering = false;
            self.consume();
            return Ok(());
        }
        self.attempt()?;
        if self.delete() {
            tree.leaves.push(leaf(self.token(self.at)));
            self.consume();
            return Ok(());
        }
        // What would come after the token that is missing.
        let after = match self.grammar.states[state].arcs.first() {
            Some(grammar::Arc::Tokens(_, to)) => self.expected(*to),
            _ => 0,
        };
        if after & set(self.next_type()) == 0 {
            return Err(Stop::Mistake(Mistake::Mismatch));
        }
        let expected = self.expected(state);
        if self.begin_recovery() {
            self.tell(self.at, format!("missing {} at {}", shown(expected), self.quoted(self.at, self.at)));
        }
        // At the end of the text the last token stands for the place.
        let at = if self.next_type() == EOF { self.at.saturating_sub(1) } else { self.at };
        let ty = expected.trailing_zeros() as u8;
        tree.leaves.push(Leaf { ty, token: None, position: self.token(at).start as Position });
        Ok(())
    }

    fn predict(&mut self, state: usize, precedence: Option<u8>) -> Result<usize, Stop> {
        let mut predictor =
            Predictor { grammar: self.grammar, tokens: self.tokens, precedence, steps: &mut self.steps };
        match predictor.predict(state, self.at, &self.callers) {
            Outcome::Alternative(alternative) => Ok(alternative),
            Outcome::Nothing(at) => Err(Stop::Mistake(Mistake::NoAlternative { from: self.at, at })),
            Outcome::GaveUp => Err(Stop::GiveUp),
        }
    }

    fn rule(&mut self, rule: Rule, precedence: u8) -> Result<Rc<Tree>, GiveUp> {
        self.depths[rule as usize] += 1;
        if self.depths[rule as usize] > DEPTH_MAX {
            return Err(self.exceeded(format!("expression recursion limit exceeded: {DEPTH_MAX}")));
        }
        let grammar = self.grammar;
        self.state = grammar.starts[rule as usize];
        let start = self.token(self.at).start as Position;
        let mut tree = Tree { rule, alternative: 0, start, leaves: Vec::new(), trees: Vec::new() };
        match self.sequence(&grammar.bodies[rule as usize], precedence, &mut tree) {
            Ok(()) => {}
            Err(Stop::GiveUp) => return Err(GiveUp),
            Err(Stop::Mistake(mistake)) => {
                self.report(&mistake);
                self.recover()?;
            }
        }
        self.depths[rule as usize] -= 1;
        Ok(Rc::new(tree))
    }

    fn report(&mut self, mistake: &Mistake) {
        if !self.begin_recovery() {
            return;
        }
        match *mistake {
            Mistake::Mismatch => {
                let expected = shown(self.expected(self.state));
                let found = self.quoted(self.at, self.at);
                self.tell(self.at, format!("mismatched input {found} expecting {expected}"));
            }
            Mistake::NoAlternative { from, at } => {
                let text = self.quoted(from, at);
                // cel-go says it of words that are no names in this way.
                let word = ["true", "false", "null"].into_iter().find(|word| {
                    text.strip_suffix('\'').is_some_and(|t| t.ends_with(word) && t.chars().count() == word.len() + 2)
                });
                let message = match word {
                    Some(word) => format!("mismatched input '{word}' expecting IDENTIFIER"),
                    None => format!("no viable alternative at input {text}"),
                };
                self.tell(at, message);
            }
        }
    }

    fn recover(&mut self) -> Result<(), GiveUp> {
        self.attempt()?;
        let again = self.last_error.as_ref().is_some_and(|(at, states)| *at == self.at && states.contains(&self.state));
        if again {
            self.consume();
        }
        let mut states = self.last_error.take().map(|(_, states)| states).unwrap_or_default();
        states.insert(self.state);
        self.last_error = Some((self.at, states));
        let wanted = self.recovery_set();
        if self.skip_until(wanted) {
            return Ok(());
        }
        Err(self.exceeded(format!("error recovery token lookahead limit exceeded: {SKIPPED_MAX}")))
    }

    fn sequence(&mut self, parts: &'static [Part], precedence: u8, tree: &mut Tree) -> Result<(), Stop> {
        parts.iter().try_for_each(|part| self.part(part, precedence, tree))
    }

    fn part(&mut self, part: &'static Part, precedence: u8, tree: &mut Tree) -> Result<(), Stop> {
        match part {
            Part::Token { state, tokens } => self.matches(*state, *tokens, tree),
            Part::Rule { state, rule, precedence } => {
                let grammar::Arc::Rule(_, after) = self.grammar.states[*state].arcs[0] else { return Ok(()) };
                let callers = self.callers.clone();
                self.callers = Some(Rc::new(Frame { after, below: callers.clone() }));
                self.state = *state;
                let inner = self.rule(*rule, *precedence);
                self.callers = callers;
                self.state = *state;
                tree.trees.push(inner?);
                Ok(())
            }
            Part::Optional { state, first, body } => {
                self.sync(*state)?;
                if first & set(self.next_type()) != 0 {
                    self.sequence(body, precedence, tree)?;
                }
                Ok(())
            }
            Part::Star { entry, back, first, body } => {
                self.sync(*entry)?;
                while self.goes_on(*entry, *first)? {
                    self.sequence(body, precedence, tree)?;
                    self.sync(*back)?;
                }
                Ok(())
            }
            Part::Plus { start, back, first, body } => {
                self.sync(*start)?;
                loop {
                    self.sequence(body, precedence, tree)?;
                    self.sync(*back)?;
                    if !self.goes_on(*back, *first)? {
                        return Ok(());
                    }
                }
            }
            Part::Choice { state, alternatives, by_token } => {
                self.sync(*state)?;
                let chosen = if *by_token {
                    let ty = set(self.next_type());
                    let fits = |parts: &Vec<Part>| matches!(parts.first(), Some(Part::Token { tokens, .. }) if tokens & ty != 0);
                    let found = alternatives.iter().position(fits).map(|i| i + 1);
                    found.ok_or(Stop::Mistake(Mistake::NoAlternative { from: self.at, at: self.at }))?
                } else {
                    self.predict(*state, None)?
                };
                tree.alternative = chosen;
                self.sequence(&alternatives[chosen - 1], precedence, tree)
            }
            Part::Operators { entry, back, choice, alternatives } => {
                self.sync(*entry)?;
                while self.predict(*entry, Some(precedence))? == 1 {
                    let chosen = match choice {
                        Some(block) => {
                            self.sync(*block)?;
                            self.predict(*block, None)?
                        }
                        None => 1,
                    };
                    let (_, _, body) = &alternatives[chosen - 1];
                    // What was matched so far becomes the left side.
                    let (rule, start) = (tree.rule, tree.start);
                    let empty = Tree { rule, alternative: 0, start, leaves: Vec::new(), trees: Vec::new() };
                    let left = Rc::new(std::mem::replace(tree, empty));
                    tree.trees.push(left);
                    tree.alternative = chosen + 1;
                    self.sequence(body, precedence, tree)?;
                    self.sync(*back)?;
                }
                Ok(())
            }
        }
    }

    fn goes_on(&mut self, state: usize, first: Option<Set>) -> Result<bool, Stop> {
        match first {
            Some(first) => Ok(first & set(self.next_type()) != 0),
            None => Ok(self.predict(state, None)? == 1),
        }
    }
}
