//! Versions and dates as they appear in tags, and their order.
//!
//! A tag is a version if it reads as
//!
//! ```text
//! [v | release- | release-v] NUMBERS [pre-release] [-revision] [-variant]
//! ```
//!
//! - **Numbers**: one or more, separated by dots: `1`, `1.25`, `1.25.3`, `1.2.3.4`. A number without a dot has at most
//!   four digits: longer ones are build numbers, Unix times and commits, and no versions.
//! - **Dates** can replace the numbers: `20240115`, `2024-01-15`, `2024-01`, `20240115093000`, `2024-01-15T09-30-00Z`.
//!   They are ordered among themselves and never compared with versions. `2024.01.15`, with dots, is a version.
//! - **Pre-release**: `-rc1`, `-rc.1`, `-rc-1`, `-beta.2`, `-alpha`, `-M3`, `-SNAPSHOT`, or attached as in `1.2rc1`,
//!   `1.2b3`.
//! - **Revision**: a number after a dash, `1.2.3-4`, a trailing `-r5`, Python's `.post2`, Java's `.SP1`, and
//!   substitutes for SemVer's build metadata, `_up0.9.1`, `_build.4`: the same version packaged again, so newer.
//! - **Variant**: everything else, `-alpine3.19`, `-debian-11`: another flavor of the same version. Numbers in it order
//!   the variant (alpine3.20 is newer than alpine3.19, and still alpine; `-eksbuild.12` than `-eksbuild.2`), except in
//!   the names of architectures and runtimes: arm64 is not a newer arm, and jdk21 does not replace jdk17. Commits
//!   (`-g1a2b3c4`) make no variant.
//!
//! `latest`, `stable`, `alpine3.19`, `sha-0a1b2c3` and `30517284` are no versions. In repositories where all tags have
//! a prefix, such as `app-1.2.0`, versions are parsed after it, see [`split_prefix`].
//!
//! **Order**: dates before versions; numbers (missing ones are 0), then pre-releases (development < alpha < beta <
//! milestone and preview < release candidate < none), then revision, then the variant's name, then the variant's
//! numbers, then the text. No two different tags are equal.

mod date;
mod variant;

use std::cmp::Ordering;
use std::fmt;

use crate::canonical::Canonical;

/// Upper limit for the digits of a number without a dot: years, and builds of small projects. A longer one is a commit,
/// a Unix time or a build number.
const MAX_LONE_DIGITS: usize = 4;

/// A tag parsed as a version or a date.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    core: VersionCore,
    revision: Vec<u64>,
    variant_name: String,
    variant_numbers: Vec<u64>,
}

/// Kind of the numbers; the two are never compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum VersionKind {
    Date,
    Version,
}

/// The part that version ranges compare: numbers without trailing zeros, and the pre-release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VersionCore {
    pub(super) kind: VersionKind,
    pub(super) numbers: Vec<u64>,
    pub(super) stage: ReleaseStage,
}

impl VersionCore {
    pub(super) fn new(kind: VersionKind, mut numbers: Vec<u64>, stage: ReleaseStage) -> Self {
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Self { kind, numbers, stage }
    }

    pub(super) fn canonical(&self) -> Canonical {
        let numbers = |canonical: Canonical, field: u8, numbers: &[u64]| {
            canonical.list(field, numbers.iter().map(|number| number.to_be_bytes()))
        };
        let canonical = numbers(Canonical::default(), 1, &self.numbers);
        match &self.stage {
            ReleaseStage::Release => canonical,
            ReleaseStage::Lowest => canonical.flag(2, true),
            ReleaseStage::Pre(stage, its) => numbers(canonical.number(3, *stage), 4, its),
        }
    }
}

/// Release stage of a version, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReleaseStage {
    /// Below any pre-release; only used as a bound of ranges.
    Lowest,
    Pre(u8, Vec<u64>),
    Release,
}

impl Version {
    /// Parses a tag as a version or a date; `None` if it is neither.
    pub fn parse(tag: &str) -> Option<Self> {
        VersionParts::parse(tag).map(|parts| parts.into_version(tag))
    }

    /// Whether it is a date, which is not compared with versions.
    pub fn is_date(&self) -> bool {
        self.core.kind == VersionKind::Date
    }

    /// Returns the tag as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the variant without its numbers: `alpine` for `1.25-alpine3.19`, empty for `1.25`.
    pub fn variant_name(&self) -> &str {
        &self.variant_name
    }

    pub(super) fn core(&self) -> &VersionCore {
        &self.core
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.core
            .cmp(&other.core)
            .then_with(|| self.revision.cmp(&other.revision))
            .then_with(|| self.variant_name.cmp(&other.variant_name))
            .then_with(|| self.variant_numbers.cmp(&other.variant_numbers))
            .then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The parts of a tag. `written_numbers` is the count of written numbers, which ranges need (`1.25` is short for `1.25.x`).
#[derive(Debug)]
pub(super) struct VersionParts {
    pub(super) kind: VersionKind,
    pub(super) numbers: Vec<u64>,
    pub(super) written_numbers: usize,
    pub(super) stage: ReleaseStage,
    revision: Vec<u64>,
    variant: String,
}

impl VersionParts {
    pub(super) fn parse(tag: &str) -> Option<Self> {
        let body = tag.strip_prefix("release-").unwrap_or(tag);
        let body = body.strip_prefix(['v', 'V']).unwrap_or(body);
        let (kind, numbers, rest) = match date::parse_date(body) {
            Some((numbers, rest)) => (VersionKind::Date, numbers, rest),
            None => {
                let (numbers, rest) = parse_numbers(body)?;
                (VersionKind::Version, numbers, rest)
            }
        };
        if kind == VersionKind::Version && numbers.len() == 1 && body.len() - rest.len() > MAX_LONE_DIGITS {
            return None;
        }
        let written_numbers = numbers.len();
        let (revision, variant) = Default::default();
        let mut parts = Self { kind, numbers, written_numbers, stage: ReleaseStage::Release, revision, variant };
        parts.parse_suffix(rest)?;
        Some(parts)
    }

    /// Builds the version of the whole tag; the parts may come from its end only.
    fn into_version(self, tag: &str) -> Version {
        let (variant_name, variant_numbers) = variant::split_variant(&self.variant);
        let core = VersionCore::new(self.kind, self.numbers, self.stage);
        Version { text: tag.to_owned(), core, revision: self.revision, variant_name, variant_numbers }
    }

    fn parse_suffix(&mut self, rest: &str) -> Option<()> {
        if rest.is_empty() {
            return Some(());
        }
        let glued = rest.find(['-', '_']).unwrap_or(rest.len());
        let (word, mut rest) = rest.split_at(glued);
        if !word.is_empty() {
            self.parse_attached(word)?;
        }
        let mut segments: Vec<(bool, &str)> = Vec::new();
        while let Some(separator) = rest.chars().next() {
            let after = &rest[separator.len_utf8()..];
            let end = after.find(['-', '_']).unwrap_or(after.len());
            segments.push((separator == '_', &after[..end]));
            rest = &after[end..];
        }
        let mut variant: Vec<&str> = Vec::new();
        let mut i = 0;
        while i < segments.len() {
            let (is_plus, segment) = segments[i];
            i += 1;
            if segment.is_empty() {
                continue;
            }
            if self.stage == ReleaseStage::Release
                && let Some(stage) = parse_pre_release(segment, false)
            {
                self.stage = stage;
                // `-rc-1` is written as often as `-rc1`.
                if let (ReleaseStage::Pre(_, counts), Some((_, next))) = (&mut self.stage, segments.get(i))
                    && counts.is_empty()
                    && let Some(count) = parse_dotted_numbers(next)
                {
                    *counts = count;
                    i += 1;
                }
            } else if variant.is_empty()
                && self.revision.is_empty()
                && let Some(revision) = parse_dotted_numbers(segment).or_else(|| parse_post_release(segment, false))
            {
                self.revision = revision;
            } else if is_plus && let Some(build) = variant::parse_build(segment) {
                self.revision.extend(build);
            } else if i == segments.len()
                && let Some(revision) = segment.strip_prefix('r').and_then(parse_dotted_numbers)
            {
                self.revision.extend(revision);
            } else {
                variant.push(segment);
            }
        }
        self.variant = variant.join("-");
        Some(())
    }

    /// Parses a suffix attached to the numbers without a dash.
    fn parse_attached(&mut self, word: &str) -> Option<()> {
        match word.strip_prefix('.') {
            // Java's suffixes: `4.1.Final`, `2.0.RC1`.
            Some("Final" | "RELEASE" | "GA") => {}
            Some(word) => match parse_post_release(word, false) {
                Some(revision) => self.revision = revision,
                None => self.stage = parse_pre_release(word, false)?,
            },
            // An attached suffix can only be a pre-release or a patch (`1.2rc1`, `9.6p1`), and only after a dot:
            // `1234a5` is a commit.
            None if self.written_numbers < 2 => return None,
            None => match parse_post_release(word, true) {
                Some(revision) => self.revision = revision,
                None => self.stage = parse_pre_release(word, true)?,
            },
        }
        Some(())
    }
}

/// Splits a tag into a prefix and the version at its end: `app-` for `app-1.2.0`, `go` for `go1.22.3`. Returns `None`
/// if the whole tag is a version, or does not end with one.
pub(super) fn split_prefix(tag: &str) -> Option<(&str, Version)> {
    if !tag.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        || variant::is_commit(tag)
        || Version::parse(tag).is_some()
    {
        return None;
    }
    let bytes = tag.as_bytes();
    (1..bytes.len()).find_map(|at| {
        let (before, here, next) = (bytes[at - 1], bytes[at], bytes.get(at + 1));
        let begins =
            here.is_ascii_digit() || (here.eq_ignore_ascii_case(&b'v') && next.is_some_and(u8::is_ascii_digit));
        let separated = b"-_.".contains(&before);
        if !begins || !(separated || (before.is_ascii_alphabetic() && here.is_ascii_digit())) {
            return None;
        }
        // Surrounded by ASCII, so it is a character boundary.
        let parts = tag.get(at..).and_then(VersionParts::parse)?;
        // `arm64` and `jdk17` are words.
        (separated || parts.written_numbers > 1).then(|| (&tag[..at], parts.into_version(tag)))
    })
}

/// Splits off the numbers: `1.25.3` and the rest.
fn parse_numbers(body: &str) -> Option<(Vec<u64>, &str)> {
    let mut numbers = Vec::new();
    let mut rest = body;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        numbers.push(rest[..end].parse().ok()?);
        rest = &rest[end..];
        match rest.strip_prefix('.') {
            Some(after) if after.starts_with(|c: char| c.is_ascii_digit()) => rest = after,
            _ => return Some((numbers, rest)),
        }
    }
}

/// Parses `4` or `4.1`, and nothing else.
fn parse_dotted_numbers(text: &str) -> Option<Vec<u64>> {
    text.split('.').map(|part| Some(part).filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()).collect()
}

/// Parses a post-release, a patched version: `post2`, `.post.2`, `SP1`, and attached `p1`.
fn parse_post_release(segment: &str, glued: bool) -> Option<Vec<u64>> {
    let end = segment.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(segment.len());
    let (word, count) = segment.split_at(end);
    let known = match word.to_ascii_lowercase().as_str() {
        "post" | "sp" => true,
        "p" | "pl" => glued,
        _ => false,
    };
    parse_dotted_numbers(count.strip_prefix('.').unwrap_or(count)).filter(|_| known)
}

fn parse_pre_release(segment: &str, glued: bool) -> Option<ReleaseStage> {
    let end = segment.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(segment.len());
    let (word, count) = segment.split_at(end);
    let count = match count.strip_prefix('.').unwrap_or(count) {
        "" => Vec::new(),
        count => parse_dotted_numbers(count)?,
    };
    let rank = match word.to_ascii_lowercase().as_str() {
        "dev" | "snapshot" | "nightly" | "canary" | "edge" => 0,
        "alpha" => 1,
        "beta" => 2,
        "m" if !count.is_empty() => 3,
        "milestone" | "pre" | "preview" | "ea" => 3,
        "rc" | "cr" => 4,
        "a" if glued && !count.is_empty() => 1,
        "b" if glued && !count.is_empty() => 2,
        "c" if glued && !count.is_empty() => 4,
        _ => return None,
    };
    Some(ReleaseStage::Pre(rank, count))
}

#[cfg(test)]
mod tests;
