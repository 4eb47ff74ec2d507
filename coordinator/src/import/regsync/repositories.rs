//! `repos`: regular expressions for whole names of repositories, as patterns with `*` and `**`.

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::humanize::pluralize;
use regex_syntax::hir::{Class, Hir, HirKind, Look};
use serde_json::{Map, Value};

use super::super::draft::ConfigDraft;
use super::super::target_mapping::has_bare_alternatives;
use super::super::{filter_texts, unknown_keys};

/// Most patterns that one expression becomes.
const MAX_PATTERNS: usize = 64;

/// Repositories of a registry: one `from` and its exclusions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RepositoryChoice {
    pub(super) from: String,
    pub(super) exclude: Vec<String>,
}

/// Converts `repos` of an entry into the sources of its rules.
pub(super) fn read_repositories(
    entry: &Map<String, Value>,
    registry: &str,
    location: &str,
    draft: &mut ConfigDraft,
) -> Result<Vec<RepositoryChoice>, String> {
    let nothing = Map::new();
    let repos = match entry.get("repos") {
        None | Some(Value::Null) => &nothing,
        Some(Value::Object(repos)) => repos,
        Some(_) => return Err("`repos` is not a mapping".to_owned()),
    };
    for key in unknown_keys(repos, &["allow", "deny"]) {
        draft.record_omission(format!("{location}: `repos` has no filter `{key}` here"));
    }
    let mut convert = |key: &str| -> Result<Option<Vec<String>>, String> {
        let expressions = filter_texts(repos, key)?;
        let mut found = Vec::new();
        for regex in &expressions {
            match convert_expression(regex) {
                Ok(patterns) => found.extend(patterns),
                Err(why) => draft.record_omission(format!("{location}: `repos: {key}`: {why}")),
            }
        }
        found.dedup();
        Ok((!expressions.is_empty()).then_some(found))
    };
    let allowed = convert("allow")?.unwrap_or_else(|| vec!["**".to_owned()]);
    let denied = convert("deny")?.unwrap_or_default();
    let mut choices = Vec::new();
    for allowed in allowed {
        let from = format!("{registry}/{allowed}");
        let pattern: RepositoryPattern = from.parse().map_err(|error| format!("{error}"))?;
        let denies = |denied: &&String| {
            format!("{registry}/{denied}")
                .parse::<RepositoryPattern>()
                .is_ok_and(|denied| pattern.repository().is_some_and(|repository| denied.matches(repository.as_str())))
        };
        // An excluded repository must be one that `from` selects.
        let exclude: Vec<String> =
            denied.iter().filter(|denied| pattern.parse_exclusion(denied).is_ok()).cloned().collect();
        if denied.iter().find(denies).is_none() && !exclude.contains(&allowed) {
            let exclude = if pattern.repository().is_some() { Vec::new() } else { exclude };
            choices.push(RepositoryChoice { from, exclude });
        }
    }
    Ok(choices)
}

/// Part of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    /// Any text, across levels; true if it is not empty.
    Any(bool),
    /// Any text within a level; true if it is not empty.
    Level(bool),
}

/// Converts an expression for whole names.
fn convert_expression(regex: &str) -> Result<Vec<String>, String> {
    let refuse =
        || format!("`from` cannot express `{regex}`: `*` is any part of one level, `**` at the end all levels below");
    let hir = regex_syntax::parse(regex).map_err(|_| format!("`{regex}` is not a regular expression"))?;
    if has_bare_alternatives(regex) {
        // `^a|b$` in regsync: a at the beginning, or b at the end.
        return Err(refuse());
    }
    let names = expand(&hir).ok_or_else(refuse)?;
    let mut patterns = Vec::new();
    for name in &names {
        patterns.extend(to_patterns(name).ok_or_else(refuse)?);
    }
    match patterns.len() > MAX_PATTERNS {
        true => Err(format!("`{regex}` would be {}", pluralize(patterns.len() as u64, "rule", "rules"))),
        false => Ok(patterns),
    }
}

/// Returns the names that an expression matches, with alternatives written out.
fn expand(hir: &Hir) -> Option<Vec<Vec<Piece>>> {
    let is_dot = |hir: &Hir| matches!(hir.kind(), HirKind::Class(Class::Unicode(class)) if class == &dot());
    let is_level = |hir: &Hir| match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            let mut others = class.clone();
            others.negate();
            others.iter().all(|range| range.start() == '/' && range.end() == '/') && others.iter().next().is_some()
        }
        _ => false,
    };
    match hir.kind() {
        HirKind::Empty | HirKind::Look(Look::Start | Look::End) => Some(vec![Vec::new()]),
        HirKind::Look(_) => None,
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).ok()?;
            Some(vec![text.chars().map(Piece::Char).collect()])
        }
        HirKind::Class(Class::Unicode(class)) => {
            let size: usize = class.iter().map(regex_syntax::hir::ClassUnicodeRange::len).sum();
            let chars = class.iter().flat_map(|range| range.start()..=range.end());
            (size <= MAX_PATTERNS).then(|| chars.map(|c| vec![Piece::Char(c)]).collect())
        }
        HirKind::Class(Class::Bytes(_)) => None,
        HirKind::Repetition(repetition) => match (repetition.min, repetition.max) {
            (min @ 0..=1, None) if is_dot(&repetition.sub) => Some(vec![vec![Piece::Any(min == 1)]]),
            (min @ 0..=1, None) if is_level(&repetition.sub) => Some(vec![vec![Piece::Level(min == 1)]]),
            (0, Some(1)) => {
                let mut names = expand(&repetition.sub)?;
                names.push(Vec::new());
                Some(names)
            }
            _ => None,
        },
        HirKind::Capture(capture) => expand(&capture.sub),
        HirKind::Concat(parts) => {
            let mut names = vec![Vec::new()];
            for part in parts {
                let tails = expand(part)?;
                if names.len() * tails.len() > MAX_PATTERNS {
                    return None;
                }
                names = names
                    .iter()
                    .flat_map(|name| tails.iter().map(move |tail| [name.as_slice(), tail.as_slice()].concat()))
                    .collect();
            }
            Some(names)
        }
        HirKind::Alternation(parts) => {
            let names: Option<Vec<_>> = parts.iter().map(expand).collect();
            names.map(|names| names.concat())
        }
    }
}

/// The class of `.`: any character but a line feed.
fn dot() -> regex_syntax::hir::ClassUnicode {
    match Hir::dot(regex_syntax::hir::Dot::AnyCharExceptLF).into_kind() {
        HirKind::Class(Class::Unicode(class)) => class,
        _ => regex_syntax::hir::ClassUnicode::empty(),
    }
}

/// Writes a name as patterns: `lib-.*` also matches `lib-a/b`, so it is `lib-*` and `lib-*/**`.
fn to_patterns(name: &[Piece]) -> Option<Vec<String>> {
    let mut text = String::new();
    for (index, piece) in name.iter().enumerate() {
        let is_last = index + 1 == name.len();
        // A component neither begins nor ends with a separator, so nothing empty can stand there.
        let is_never_empty = text.is_empty() || text.ends_with(['/', '-', '_', '.']);
        match piece {
            Piece::Char(c) if c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./".contains(*c) => text.push(*c),
            Piece::Char(_) => return None,
            Piece::Any(_) if !is_last => return None,
            Piece::Any(_) if text.is_empty() || text.ends_with('/') => return Some(vec![format!("{text}**")]),
            Piece::Any(not_empty) if !not_empty || is_never_empty => {
                return Some(vec![format!("{text}*"), format!("{text}*/**")]);
            }
            Piece::Level(not_empty) if !not_empty || is_never_empty => text.push('*'),
            Piece::Any(_) | Piece::Level(_) => return None,
        }
    }
    (!text.is_empty()).then(|| vec![text])
}
