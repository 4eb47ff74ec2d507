//! Versions as people write them in tags, and their order.
//!
//! A tag is a version if it reads as
//!
//! ```text
//! [v | release- | release-v] NUMBERS [pre-release] [-revision] [-variant]
//! ```
//!
//! - **Numbers**: one or more, by dots: `1`, `1.25`, `1.25.3`, `1.2.3.4`. A date is numbers too: `20240115`,
//!   `2024-01-15` and `2024.01.15` are all 2024, 1, 15, and `20240115093000` has the time as a fourth number.
//! - **Pre-release**: `-rc1`, `-rc.1`, `-rc-1`, `-beta.2`, `-alpha`, `-M3`, `-SNAPSHOT`, or glued on as in `1.2rc1`,
//!   `1.2b3`.
//! - **Revision**: a number after a dash, `1.2.3-4`, or a closing `-r5`: the same version packed again, so newer.
//! - **Variant**: everything else, `-alpine3.19`, `-debian-11`: another flavour of the same version. Numbers in it are
//!   the flavour's age (alpine3.20 is newer than alpine3.19, and still alpine), except in the names of architectures
//!   and runtimes: arm64 is not a newer arm, and who wants jdk17 has no use for jdk21. Commits (`-g1a2b3c4`) make no
//!   variant.
//!
//! `latest`, `stable`, `alpine3.19` and `sha-0a1b2c3` are no versions.
//!
//! **Order**: numbers (missing ones are 0), then pre-releases (development < alpha < beta < milestone and preview <
//! release candidate < none), then revision, then the variant's name, then the variant's own numbers, then the text. No
//! two different tags are equal.

use std::cmp::Ordering;
use std::fmt;

/// A tag that reads as a version.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    core: Core,
    revision: Vec<u64>,
    family: String,
    flavour: Vec<u64>,
}

/// What version ranges look at: numbers without closing zeros, and the pre-release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Core {
    pub(super) numbers: Vec<u64>,
    pub(super) stage: Stage,
}

impl Core {
    pub(super) fn new(mut numbers: Vec<u64>, stage: Stage) -> Self {
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Self { numbers, stage }
    }
}

/// How finished a version is; the order of the variants is the order of versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Below any pre-release: only bounds of ranges are here.
    Lowest,
    Pre(u8, Vec<u64>),
    Release,
}

impl Version {
    /// Reads a tag as a version; `None` if it is not one.
    pub fn parse(tag: &str) -> Option<Self> {
        Parts::parse(tag).map(|parts| {
            let (family, flavour) = family(&parts.variant);
            Self {
                text: tag.to_owned(),
                core: Core::new(parts.numbers, parts.stage),
                revision: parts.revision,
                family,
                flavour,
            }
        })
    }

    /// The tag as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The variant without its own numbers: `alpine` for `1.25-alpine3.19`, empty for `1.25`.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// Whether this is a release candidate, a beta or the like.
    pub fn is_pre_release(&self) -> bool {
        self.core.stage != Stage::Release
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.core
            .cmp(&other.core)
            .then_with(|| self.revision.cmp(&other.revision))
            .then_with(|| self.family.cmp(&other.family))
            .then_with(|| self.flavour.cmp(&other.flavour))
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

/// A tag taken apart. `written` is how many numbers stood there, which ranges need to know (`1.25` is short for
/// `1.25.x`).
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) numbers: Vec<u64>,
    pub(super) written: usize,
    pub(super) stage: Stage,
    revision: Vec<u64>,
    variant: String,
}

impl Parts {
    pub(super) fn parse(tag: &str) -> Option<Self> {
        let body = tag.strip_prefix("release-").unwrap_or(tag);
        let body = body.strip_prefix(['v', 'V']).unwrap_or(body);
        let (numbers, rest) = date(body).or_else(|| numbers(body))?;
        let written = numbers.len();
        let mut parts = Self { numbers, written, stage: Stage::Release, revision: Vec::new(), variant: String::new() };
        parts.suffix(rest)?;
        Some(parts)
    }

    fn suffix(&mut self, rest: &str) -> Option<()> {
        if rest.is_empty() {
            return Some(());
        }
        let rest = match rest.strip_prefix(['-', '_']) {
            Some(rest) => rest,
            None => {
                let end = rest.find(['-', '_']).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                self.stage = match word.strip_prefix('.') {
                    // Java's way: `4.1.Final`, `2.0.RC1`.
                    Some("Final" | "RELEASE" | "GA") => Stage::Release,
                    Some(word) => pre_release(word, false)?,
                    // Glued on, only a pre-release makes sense (`1.2rc1`), and only after a dot: `1234a5` is a commit.
                    None => pre_release(word, true).filter(|_| self.written > 1)?,
                };
                after.strip_prefix(['-', '_']).unwrap_or_default()
            }
        };
        let segments: Vec<&str> = rest.split(['-', '_']).collect();
        let mut variant: Vec<&str> = Vec::new();
        let mut i = 0;
        while i < segments.len() {
            let segment = segments[i];
            i += 1;
            if segment.is_empty() {
                continue;
            }
            if self.stage == Stage::Release
                && let Some(stage) = pre_release(segment, false)
            {
                self.stage = stage;
                // `-rc-1` is written as often as `-rc1`.
                if let (Stage::Pre(_, counts), Some(next)) = (&mut self.stage, segments.get(i))
                    && counts.is_empty()
                    && let Some(count) = dotted(next)
                {
                    *counts = count;
                    i += 1;
                }
            } else if variant.is_empty()
                && self.revision.is_empty()
                && let Some(revision) = dotted(segment)
            {
                self.revision = revision;
            } else if i == segments.len()
                && let Some(revision) = segment.strip_prefix('r').and_then(dotted)
            {
                self.revision.extend(revision);
            } else {
                variant.push(segment);
            }
        }
        self.variant = variant.join("-");
        Some(())
    }
}

/// `1.25.3` and what follows it.
fn numbers(body: &str) -> Option<(Vec<u64>, &str)> {
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

/// `20240115`, `20240115093000`, `2024-01-15`, `2024-01` and what follows; dots (`2024.01.15`) need nothing special.
fn date(body: &str) -> Option<(Vec<u64>, &str)> {
    let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (digits, rest) = body.split_at(end);
    let number = |text: &str| text.parse::<u64>().ok();
    match digits.len() {
        8 | 12 | 14 => {
            let (year, month, day) = (number(&digits[..4])?, number(&digits[4..6])?, number(&digits[6..8])?);
            let mut date = calendar(year, month, Some(day))?;
            date.extend(number(&digits[8..]));
            // `20240115.2` is the second build of that day.
            match rest.strip_prefix('.').and_then(numbers) {
                Some((more, rest)) => {
                    date.extend(more);
                    Some((date, rest))
                }
                None => Some((date, rest)),
            }
        }
        4 => {
            let (month, rest) = two_digits(rest.strip_prefix('-')?)?;
            let year = number(digits)?;
            if let Some((day, rest)) = rest.strip_prefix('-').and_then(two_digits)
                && let Some(date) = calendar(year, month, Some(day))
            {
                return Some((date, rest));
            }
            Some((calendar(year, month, None)?, rest))
        }
        _ => None,
    }
}

fn calendar(year: u64, month: u64, day: Option<u64>) -> Option<Vec<u64>> {
    let date = jiff::civil::Date::new(
        i16::try_from(year).ok()?,
        i8::try_from(month).ok()?,
        i8::try_from(day.unwrap_or(1)).ok()?,
    );
    (date.is_ok() && (1970..=2199).contains(&year))
        .then(|| [Some(year), Some(month), day].into_iter().flatten().collect())
}

fn two_digits(text: &str) -> Option<(u64, &str)> {
    let digits = text.get(..2).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    let rest = &text[2..];
    (!rest.starts_with(|c: char| c.is_ascii_digit())).then_some((digits.parse().ok()?, rest))
}

/// `4` or `4.1`, and nothing else.
fn dotted(text: &str) -> Option<Vec<u64>> {
    text.split('.').map(|part| Some(part).filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()).collect()
}

fn pre_release(segment: &str, glued: bool) -> Option<Stage> {
    let end = segment.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(segment.len());
    let (word, count) = segment.split_at(end);
    let count = match count.strip_prefix('.').unwrap_or(count) {
        "" => Vec::new(),
        count => dotted(count)?,
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
    Some(Stage::Pre(rank, count))
}

/// Names whose numbers say what it is, and not how new it is.
const WHOLE: [&str; 25] = [
    "amd", "arm", "arm32v", "arm64v", "armv", "i", "mips", "ppc", "riscv", "x", "x86_", "s", "cuda", "cudnn", "go",
    "golang", "java", "jdk", "jre", "ltsc", "node", "openjdk", "php", "py", "python",
];

/// Splits `alpine3.19` into `alpine` and 3, 19; `debian-11-slim` into `debian-slim` and 11.
fn family(variant: &str) -> (String, Vec<u64>) {
    let mut names = Vec::new();
    let mut flavour = Vec::new();
    for segment in variant.split('-').filter(|s| !s.is_empty()) {
        let name = segment.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        if is_commit(segment) {
            continue;
        }
        if WHOLE.contains(&name) {
            names.push(segment);
            continue;
        }
        match dotted(&segment[name.len()..]) {
            Some(numbers) => {
                flavour.extend(numbers);
                names.extend((!name.is_empty()).then_some(name));
            }
            None => names.push(segment),
        }
    }
    (names.join("-"), flavour)
}

/// `1a2b3c4`, or `g1a2b3c4` as `git describe` has it.
fn is_commit(segment: &str) -> bool {
    let hash = segment.strip_prefix('g').unwrap_or(segment);
    (7..=40).contains(&hash.len())
        && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        && hash.bytes().any(|b| b.is_ascii_digit())
        && hash.bytes().any(|b| b.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(tag: &str) -> Version {
        Version::parse(tag).unwrap_or_else(|| panic!("{tag} is a version"))
    }

    #[test]
    fn tags_as_people_write_them_are_versions() {
        for tag in [
            "1",
            "v1.25",
            "V2",
            "1.25.3-alpine",
            "1.2.3.4",
            "2024.01.15",
            "20240115",
            "2024-01-15",
            "2024-01",
            "release-1.2",
            "release-v1.2",
            "1.2rc1",
            "4.1.Final",
            "2.0.RC1",
            "4.1.Final",
            "2.0.RC1",
            "1.0-rc.1",
            "1.25.3-debian-11-r5",
            "20240115093000",
            "20240115.2",
            "1.2.3_build5",
            "0",
        ] {
            assert!(Version::parse(tag).is_some(), "{tag}");
        }
    }

    #[test]
    fn words_and_commits_are_no_versions() {
        for tag in [
            "latest",
            "stable",
            "alpine3.19",
            "sha-0a1b2c3",
            "1234abc",
            "",
            "v",
            "release-",
            "1x",
            "-1",
            ".1",
            "1234a5",
            "1.x",
            "1.2.",
        ] {
            assert!(Version::parse(tag).is_none(), "{tag}");
        }
        assert!(Version::parse("99999999999999999999999").is_none(), "too large to be a number");
    }

    #[test]
    fn versions_stand_in_the_order_that_people_expect() {
        let sorted = [
            "1.9",
            "1.10-dev",
            "1.10-alpha",
            "1.10-alpha.2",
            "1.10-beta1",
            "1.10-M1",
            "1.10-rc.1",
            "1.10-rc-2",
            "1.10rc10",
            "1.10",
            "v1.10",
            "1.10.0",
            "1.10-1",
            "1.10-2",
            "1.10.1",
            "1.10.1.1",
            "1.11-alpine3.9",
            "1.11-alpine3.19",
            "2023-12-31",
            "20240114",
            "2024.01.15",
            "20240115093000",
        ];
        // `1.10`, `v1.10` and `1.10.0` are the same version: the text decides.
        let mut shuffled: Vec<Version> = sorted.iter().rev().map(|tag| version(tag)).collect();
        shuffled.sort();
        let mut expected = sorted.to_vec();
        expected[9..12].sort();
        assert_eq!(shuffled.iter().map(Version::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn three_ways_to_write_a_date_are_one_date() {
        assert_eq!(version("20240115").core, version("2024-01-15").core);
        assert_eq!(version("2024.01.15").core, version("2024-01-15").core);
        assert_ne!(version("20241315").core.numbers, [2024, 13, 15], "there is no month 13");
    }

    #[test]
    fn the_variant_is_what_remains() {
        for (tag, family) in [
            ("1.25", ""),
            ("1.25-alpine", "alpine"),
            ("1.25-alpine3.19", "alpine"),
            ("1.25-rc1-alpine3.19", "alpine"),
            ("1.25.3-debian-11-r5", "debian"),
            ("1.25-bookworm-perl", "bookworm-perl"),
            ("1.25-rc1", ""),
            ("1.25-arm64", "arm64"),
            ("3.9.9-jdk17-alpine3.20", "jdk17-alpine"),
            ("1.25-ls42", "ls"),
            ("0.1.0-5-g1a2b3c4", ""),
            ("0.1.0-1a2b3c4-alpine", "alpine"),
            ("1.25-3", ""),
        ] {
            assert_eq!(version(tag).family(), family, "{tag}");
        }
    }

    fn tag() -> impl Strategy<Value = String> {
        prop_oneof![
            "v?[0-9]{1,2}(\\.[0-9]{1,2}){0,3}(-(rc|alpha|beta)\\.?[0-9]?)?(-(alpine|debian)[0-9]?)?(-r?[0-9])?",
            "20[0-9]{6}",
            "[0-9][A-Za-z0-9._-]{0,12}",
        ]
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = Version::parse(&text);
        }

        #[test]
        fn the_order_is_total_antisymmetric_and_transitive(a in tag(), b in tag(), c in tag()) {
            if let (Some(a), Some(b), Some(c)) = (Version::parse(&a), Version::parse(&b), Version::parse(&c)) {
                prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
                prop_assert_eq!(a.cmp(&b) == Ordering::Equal, a == b);
                if a <= b && b <= c {
                    prop_assert!(a <= c);
                }
            }
        }
    }
}
