//! Tag patterns: globs, and regular expressions between slashes.

use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

/// A tag pattern: a glob (`1.*`, `*-rc?`, `{stable,latest}`, `[0-9]*`), or between slashes a regular expression that
/// must match the whole tag (`/v\d+\.\d+/`). Both are case-sensitive. A tag contains no `/`, so the two cannot be
/// confused.
#[derive(Clone, Debug)]
pub struct TagPattern {
    text: String,
    matcher: TagMatcher,
}

#[derive(Clone, Debug)]
enum TagMatcher {
    Literal,
    Glob(GlobMatcher),
    Regex(Regex),
}

/// Error of parsing a [`TagPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagPatternError {
    /// Empty text.
    #[error("a pattern must not be empty")]
    Empty,
    /// An invalid glob.
    #[error("`{pattern}` is not a glob: {reason}")]
    Glob {
        /// Pattern as written.
        pattern: String,
        /// Reason given by the glob compiler.
        reason: String,
    },
    /// An invalid regular expression.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    Regex {
        /// Pattern as written.
        pattern: String,
        /// Reason given by the regex compiler, in one line.
        reason: String,
    },
    /// A glob that no tag can match.
    #[error(
        "`{0}` matches no tag: a tag has only letters, digits, `.`, `_` and `-` (regular expressions are written /…/)"
    )]
    MatchesNothing(String),
    /// A glob with `+`, SemVer's separator of build metadata.
    #[error("`{pattern}` matches no tag: tags cannot contain `+`; Helm writes {}", .pattern.replace('+', "_"))]
    Plus {
        /// Pattern as written.
        pattern: String,
    },
}

impl TagPattern {
    /// Whether the whole tag matches.
    pub fn matches(&self, tag: &str) -> bool {
        match &self.matcher {
            TagMatcher::Literal => self.text == tag,
            TagMatcher::Glob(glob) => glob.is_match(tag),
            TagMatcher::Regex(regex) => regex.is_match(tag),
        }
    }

    /// Returns the tag, if the pattern is a literal.
    pub fn literal(&self) -> Option<&str> {
        matches!(self.matcher, TagMatcher::Literal).then_some(&self.text)
    }

    /// Whether the pattern certainly matches all tags.
    pub fn matches_all(&self) -> bool {
        matches!(self.text.as_str(), "*" | "**" | "/.*/" | "/.+/")
    }

    /// Returns the pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern certainly matches every tag that the other one matches.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.matches_all() || self.text == other.text || other.literal().is_some_and(|tag| self.matches(tag))
    }
}

impl FromStr for TagPattern {
    type Err = TagPatternError;

    fn from_str(text: &str) -> Result<Self, TagPatternError> {
        let matcher = if let Some(regex) = text.strip_prefix('/').and_then(|text| text.strip_suffix('/')) {
            let regex = RegexBuilder::new(&format!("^(?:{regex})$"))
                .size_limit(1 << 20)
                .build()
                // The compiler's message points a caret at a text that differs from the one written.
                .map_err(|error| TagPatternError::Regex {
                    pattern: text.to_owned(),
                    reason: last_line(&error.to_string()),
                })?;
            TagMatcher::Regex(regex)
        } else if text.is_empty() {
            return Err(TagPatternError::Empty);
        } else if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            TagMatcher::Literal
        } else if text.contains('+') {
            return Err(TagPatternError::Plus { pattern: text.to_owned() });
        } else if text.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-*?[]{},!^\\".contains(c)) {
            return Err(TagPatternError::MatchesNothing(text.to_owned()));
        } else {
            let glob = GlobBuilder::new(text).build().map_err(|error| TagPatternError::Glob {
                pattern: text.to_owned(),
                reason: error.kind().to_string(),
            })?;
            TagMatcher::Glob(glob.compile_matcher())
        };
        Ok(Self { text: text.to_owned(), matcher })
    }
}

impl PartialEq for TagPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn last_line(message: &str) -> String {
    let line = message.trim_end().lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_and_regular_expressions_match_whole_tags() {
        for (pattern, yes, no) in [
            ("1.*", "1.2 1.25.3-alpine", "v1.2 11.2 1"),
            ("*-rc*", "1.2-rc1", "1.2rc1"),
            ("latest", "latest", "latest2 Latest"),
            ("{stable,latest}", "stable latest", "edge"),
            ("v[0-9]?", "v12", "v1 v123"),
            (r"/v\d+(\.\d+)?/", "v1 v1.2", "xv1 v1.2.3"),
            ("/a|b/", "a b", "ab"),
        ] {
            let pattern: TagPattern = pattern.parse().unwrap();
            assert!(yes.split(' ').all(|tag| pattern.matches(tag)), "{pattern} matches {yes}");
            assert!(!no.split(' ').any(|tag| pattern.matches(tag)), "{pattern} leaves out {no}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        let reason = |text: &str| text.parse::<TagPattern>().unwrap_err().to_string();
        assert_eq!(reason(""), "a pattern must not be empty");
        assert!(reason("[a").starts_with("`[a` is not a glob: unclosed character class"), "{}", reason("[a"));
        assert_eq!(reason("/(/"), "`/(/` is not a regular expression: unclosed group");
        assert!(reason("a b").contains("matches no tag"));
        assert!(reason("nginx:1.*").contains("matches no tag"));
        assert!(reason("^v1.*$").contains("written /…/"));
        assert_eq!(reason("2.1.0+up*"), "`2.1.0+up*` matches no tag: tags cannot contain `+`; Helm writes 2.1.0_up*");
    }
}
