//! Patterns for tags: globs, and regular expressions between slashes.

use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

/// Which tags: a glob (`1.*`, `*-rc?`, `{stable,latest}`, `[0-9]*`), or, if it begins and ends with `/`, a regular
/// expression that must match the whole tag (`/v\d+\.\d+/`). Both tell upper from lower case. A tag holds no `/`, so
/// the two cannot be mixed up.
#[derive(Clone, Debug)]
pub struct TagPattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Literal,
    Glob(GlobMatcher),
    Regex(Regex),
}

/// Why a pattern could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing written.
    #[error("a pattern must not be empty")]
    Empty,
    /// A glob that is none.
    #[error("`{pattern}` is not a glob: {reason}")]
    Glob {
        /// As it was written.
        pattern: String,
        /// What the glob compiler says.
        reason: String,
    },
    /// A regular expression that is none.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    Regex {
        /// As it was written.
        pattern: String,
        /// What the regex compiler says, in one line.
        reason: String,
    },
    /// A glob that no tag can match.
    #[error(
        "`{0}` matches no tag: a tag has only letters, digits, `.`, `_` and `-` (regular expressions are written /…/)"
    )]
    Never(String),
    /// A glob with what SemVer writes before build metadata.
    #[error("`{pattern}` matches no tag: tags cannot contain `+`; Helm writes {}", .pattern.replace('+', "_"))]
    Plus {
        /// As it was written.
        pattern: String,
    },
}

impl TagPattern {
    /// Whether the tag matches, as a whole.
    pub fn matches(&self, tag: &str) -> bool {
        match &self.matcher {
            Matcher::Literal => self.text == tag,
            Matcher::Glob(glob) => glob.is_match(tag),
            Matcher::Regex(regex) => regex.is_match(tag),
        }
    }

    /// The tag itself, if the pattern matches just one.
    pub fn literal(&self) -> Option<&str> {
        matches!(self.matcher, Matcher::Literal).then_some(&self.text)
    }

    /// Whether it certainly matches all tags.
    pub fn matches_all(&self) -> bool {
        matches!(self.text.as_str(), "*" | "**" | "/.*/" | "/.+/")
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it certainly matches all that the other one does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.matches_all() || self.text == other.text || other.literal().is_some_and(|tag| self.matches(tag))
    }
}

impl FromStr for TagPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let matcher = if let Some(regex) = text.strip_prefix('/').and_then(|text| text.strip_suffix('/')) {
            let regex = RegexBuilder::new(&format!("^(?:{regex})$"))
                .size_limit(1 << 20)
                .build()
                // The compiler's message draws a caret under a text that is not what was written.
                .map_err(|error| PatternError::Regex {
                    pattern: text.to_owned(),
                    reason: last_line(&error.to_string()),
                })?;
            Matcher::Regex(regex)
        } else if text.is_empty() {
            return Err(PatternError::Empty);
        } else if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            Matcher::Literal
        } else if text.contains('+') {
            return Err(PatternError::Plus { pattern: text.to_owned() });
        } else if text.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-*?[]{},!^\\".contains(c)) {
            return Err(PatternError::Never(text.to_owned()));
        } else {
            let glob = GlobBuilder::new(text)
                .build()
                .map_err(|error| PatternError::Glob { pattern: text.to_owned(), reason: error.kind().to_string() })?;
            Matcher::Glob(glob.compile_matcher())
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
