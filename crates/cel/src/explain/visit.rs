//! What is wrong with a text beyond its tokens: reserved names, numbers that are too large, macros with the wrong
//! arguments. Looks at whatever was matched, with holes where it was not.
//!
//! Follows: the visitor in cel-go's `parser/parser.go`.

use std::sync::Arc;

use super::grammar::*;
use super::{Leaf, Tree};
use crate::ast::{Entry, Expr, ExprKind, Literal, Position, op};
use crate::parser::{Parser, RESERVED};
use crate::{CompileIssue, lexer, macros};

/// The mistakes in what was matched. `wrong` says that there are others already.
pub(super) fn visit(source: &str, chars: &[char], tree: &Tree, has_bindings: bool, wrong: bool) -> Vec<CompileIssue> {
    let mut visitor = Visitor { chars, make: Parser::of_nothing(source, has_bindings), issues: Vec::new(), wrong };
    visitor.tree(tree.trees.first().map(AsRef::as_ref));
    visitor.issues
}

struct Visitor<'a> {
    chars: &'a [char],
    make: Parser<'a>,
    issues: Vec<CompileIssue>,
    wrong: bool,
}

impl Tree {
    fn leaf(&self, ty: u8) -> Option<&Leaf> {
        self.leaves.iter().find(|leaf| leaf.ty == ty)
    }

    fn leaves_of(&self, ty: u8) -> impl Iterator<Item = &Leaf> {
        self.leaves.iter().filter(move |leaf| leaf.ty == ty)
    }

    fn of(&self, rule: Rule) -> impl Iterator<Item = &Tree> {
        self.trees.iter().map(AsRef::as_ref).filter(move |tree| tree.rule == rule)
    }

    fn first(&self, rule: Rule) -> Option<&Tree> {
        self.of(rule).next()
    }
}

impl Visitor<'_> {
    fn text(&self, leaf: &Leaf) -> String {
        match leaf.token {
            Some(token) => self.chars[token.start..token.end].iter().collect(),
            None if (leaf.ty as usize) < LITERALS.len() => format!("<missing '{}'>", LITERALS[leaf.ty as usize]),
            None => "<missing undefined>".to_owned(),
        }
    }

    /// Stands for what is missing or wrong.
    fn hole(&mut self, position: Position) -> Expr {
        self.make.literal(position, Literal::Null)
    }

    fn issue(&mut self, position: Position, message: impl Into<String>) -> Expr {
        self.issues.push(CompileIssue { position, message: message.into() });
        self.hole(position)
    }

    fn tree(&mut self, tree: Option<&Tree>) -> Expr {
        let Some(tree) = tree else { return self.unknown() };
        match (tree.rule, tree.alternative) {
            (Rule::Expr, _) => self.conditional(tree),
            (Rule::Or, _) => self.logic(tree, OR, Rule::And, op::OR, "||"),
            (Rule::And, _) => self.logic(tree, AND, Rule::Relation, op::AND, "&&"),
            (Rule::Relation | Rule::Calc, 0 | 1) => self.tree(tree.trees.first().map(AsRef::as_ref)),
            (Rule::Relation | Rule::Calc, _) => self.operator(tree),
            (Rule::Unary, 1) => self.tree(tree.first(Rule::Member)),
            (Rule::Unary, 2) => self.prefix(tree, NOT, op::NOT),
            (Rule::Unary, 3) => self.prefix(tree, MINUS, op::NEGATE),
            (Rule::Unary, _) => self.make.literal(tree.start, Literal::String("<<error>>".into())),
            (Rule::Member, 0) => self.tree(tree.first(Rule::Primary)),
            (Rule::Member, which) => self.member(tree, which),
            (Rule::Primary, which) => self.primary(tree, which),
            (Rule::Literal, which) => self.literal(tree, which),
            _ => self.unknown(),
        }
    }

    fn unknown(&mut self) -> Expr {
        if !self.wrong && self.issues.is_empty() {
            return self.issue(0, "unknown parse element encountered: <<nil>>");
        }
        self.hole(0)
    }

    fn conditional(&mut self, tree: &Tree) -> Expr {
        let test = self.tree(tree.first(Rule::Or));
        let Some(question) = tree.leaf(QUESTION) else { return test };
        let yes = self.tree(tree.of(Rule::Or).nth(1));
        let no = self.tree(tree.first(Rule::Expr));
        self.make.call(question.position, op::CONDITIONAL, vec![test, yes, no])
    }

    fn logic(&mut self, tree: &Tree, ty: u8, below: Rule, function: &str, text: &str) -> Expr {
        let mut terms = tree.of(below);
        let mut all = self.tree(terms.next());
        for sign in tree.leaves_of(ty) {
            let Some(term) = terms.next() else {
                return self.issue(tree.start, format!("unexpected character, wanted '{text}'"));
            };
            let term = self.tree(Some(term));
            all = self.make.call(sign.position, function, vec![all, term]);
        }
        all
    }

    fn operator(&mut self, tree: &Tree) -> Expr {
        let Some(sign) = tree.leaves.first() else { return self.issue(tree.start, "operator not found") };
        let text = self.text(sign);
        if sign.token.is_none() {
            return self.issue(tree.start, "operator not found");
        }
        let left = self.tree(tree.of(tree.rule).next());
        let right = self.tree(tree.of(tree.rule).nth(1));
        let function = if text == "in" { op::IN.to_owned() } else { format!("_{text}_") };
        self.make.call(sign.position, &function, vec![left, right])
    }

    fn prefix(&mut self, tree: &Tree, ty: u8, function: &str) -> Expr {
        let of = self.tree(tree.first(Rule::Member));
        match tree.leaves_of(ty).next() {
            Some(first) if tree.leaves_of(ty).count() % 2 == 1 => self.make.call(first.position, function, vec![of]),
            _ => of,
        }
    }

    fn member(&mut self, tree: &Tree, which: usize) -> Expr {
        let of = self.tree(tree.first(Rule::Member));
        match which {
            2 => {
                let (Some(dot), Some(name)) = (tree.leaf(DOT), tree.first(Rule::EscapeIdent)) else {
                    return self.hole(tree.start);
                };
                let field: Arc<str> = self.name(name).into();
                if tree.leaf(QUESTION).is_some() {
                    let field = self.make.literal(name.start, Literal::String(field));
                    return self.make.call(dot.position, op::OPT_SELECT, vec![of, field]);
                }
                self.make.make(dot.position, ExprKind::Select { operand: Box::new(of), field, test: false })
            }
            3 => {
                let Some(name) = tree.leaf(IDENTIFIER) else { return self.hole(tree.start) };
                let name = self.text(name);
                let place = tree.leaf(L_PAREN).map_or(0, |leaf| leaf.position);
                let args = self.arguments(tree);
                match macros::expand_member(&mut self.make, place, &of, &name, &args) {
                    Ok(Some(expanded)) => expanded,
                    Ok(None) => {
                        let target = Some(Box::new(of));
                        self.make.make(place, ExprKind::Call { target, function: name.into(), args })
                    }
                    Err(error) => self.failed(error),
                }
            }
            _ => {
                let Some(bracket) = tree.leaf(L_BRACKET) else { return self.hole(tree.start) };
                let index = self.tree(tree.first(Rule::Expr));
                let function = if tree.leaf(QUESTION).is_some() { op::OPT_INDEX } else { op::INDEX };
                self.make.call(bracket.position, function, vec![of, index])
            }
        }
    }

    fn failed(&mut self, error: crate::SyntaxError) -> Expr {
        let position = error.issues.first().map_or(0, |issue| issue.position);
        self.issues.extend(error.issues);
        self.hole(position)
    }

    fn arguments(&mut self, tree: &Tree) -> Vec<Expr> {
        let list = tree.first(Rule::ExprList);
        list.into_iter().flat_map(|list| list.of(Rule::Expr)).map(|arg| self.tree(Some(arg))).collect()
    }

    /// The name of a field.
    fn name(&mut self, tree: &Tree) -> String {
        match (tree.alternative, tree.leaves.first()) {
            (1, Some(leaf)) => self.text(leaf),
            (2, _) => {
                self.issue(tree.start, "unsupported syntax: '`'");
                String::new()
            }
            _ => {
                self.issue(tree.start, "unsupported ident kind");
                String::new()
            }
        }
    }

    fn primary(&mut self, tree: &Tree, which: usize) -> Expr {
        match which {
            1 | 2 => {
                let Some(leaf) = tree.leaf(IDENTIFIER).copied() else { return self.hole(tree.start) };
                let name = self.text(&leaf);
                if RESERVED.contains(&name.as_str()) {
                    return self.issue(tree.start, format!("reserved identifier: {name}"));
                }
                let dotted = if tree.leaf(DOT).is_some() { format!(".{name}") } else { name };
                if which == 1 {
                    return self.make.ident(leaf.position, &dotted);
                }
                let place = tree.leaf(L_PAREN).map_or(0, |leaf| leaf.position);
                let args = self.arguments(tree);
                match macros::expand_global(&mut self.make, place, &dotted, &args) {
                    Ok(Some(expanded)) => expanded,
                    Ok(None) => self.make.call(place, &dotted, args),
                    Err(error) => self.failed(error),
                }
            }
            3 => self.tree(tree.first(Rule::Expr)),
            4 => {
                let place = tree.leaf(L_BRACKET).map_or(0, |leaf| leaf.position);
                let elements = tree.first(Rule::ListInit).into_iter().flat_map(|list| list.of(Rule::OptExpr));
                let elements = elements.map(|element| self.tree(element.first(Rule::Expr))).collect();
                self.make.make(place, ExprKind::List { elements, optional: Vec::new() })
            }
            5 => {
                let place = tree.leaf(L_BRACE).map_or(0, |leaf| leaf.position);
                let list = tree.first(Rule::MapList);
                let (mut keys, mut values) = (
                    list.into_iter().flat_map(|list| list.of(Rule::OptExpr)),
                    list.into_iter().flat_map(|list| list.of(Rule::Expr)),
                );
                let mut entries = Vec::new();
                for colon in list.into_iter().flat_map(|list| list.leaves_of(COLON)) {
                    let (Some(key), Some(value)) = (keys.next(), values.next()) else { break };
                    let key = self.tree(key.first(Rule::Expr));
                    let value = self.tree(Some(value));
                    entries.push(Entry { position: colon.position, key, value, optional: false });
                }
                self.make.make(place, ExprKind::Map { entries })
            }
            6 => {
                let place = tree.leaf(L_BRACE).map_or(0, |leaf| leaf.position);
                if let Some(list) = tree.first(Rule::FieldList) {
                    let mut values = list.of(Rule::Expr);
                    let colons = list.leaves_of(COLON).count();
                    for (i, field) in list.of(Rule::OptField).enumerate() {
                        let Some(value) = values.next().filter(|_| i < colons) else { break };
                        match field.first(Rule::EscapeIdent) {
                            Some(name) if name.alternative == 1 => {
                                self.tree(Some(value));
                            }
                            Some(name) if name.alternative == 2 => {
                                self.issue(list.start, "unsupported syntax: '`'");
                            }
                            _ => {
                                self.issue(list.start, "unsupported ident kind");
                            }
                        }
                    }
                }
                self.make.make(place, ExprKind::Message { name: "".into(), fields: Vec::new() })
            }
            7 => self.tree(tree.first(Rule::Literal)),
            _ => self.unknown(),
        }
    }

    fn literal(&mut self, tree: &Tree, which: usize) -> Expr {
        let Some(leaf) = tree.leaves.iter().rev().find(|leaf| leaf.ty != MINUS).copied() else {
            return self.hole(tree.start);
        };
        let text = self.text(&leaf);
        let kind = match which {
            1 => "int",
            2 => "uint",
            3 => "double",
            _ => "string",
        };
        let signed = if which != 2 && tree.leaf(MINUS).is_some() { format!("-{text}") } else { text.clone() };
        let digits = |text: &str| text.replacen("0x", "", 1);
        let radix = if text.starts_with("0x") { 16 } else { 10 };
        let literal = match which {
            1 => i64::from_str_radix(&digits(&signed), radix).ok().map(Literal::Int),
            2 => {
                let text = digits(text.trim_end_matches(['u', 'U']));
                u64::from_str_radix(&text, radix).ok().map(Literal::Uint)
            }
            3 => signed.parse().ok().filter(|d: &f64| d.is_finite()).map(Literal::Double),
            4 | 5 => match lexer::tokens(&text).map(|tokens| tokens.into_iter().next()) {
                Ok(Some((lexer::Token::Literal(literal), _))) => Some(literal),
                Err(error) if error.to_string().contains("invalid unicode code point") => {
                    return self.issue(tree.start, "invalid unicode code point");
                }
                _ => return self.issue(tree.start, "unable to unescape string"),
            },
            6 => Some(Literal::Bool(true)),
            7 => Some(Literal::Bool(false)),
            _ => Some(Literal::Null),
        };
        match literal {
            Some(literal) => self.make.literal(tree.start, literal),
            None => self.issue(tree.start, format!("invalid {kind} literal")),
        }
    }
}
