//! Version ranges, `semver:` in a configuration: `>=1.20`, `^1.2 || ~2.3`, `>=1.20, <2`, `1.x`.
//!
//! Comparators separated by spaces or commas must all match; `||` separates alternatives. A version with fewer than
//! three numbers covers all below it: `=1.25` and `1.25.x` match 1.25.3, `<=1.25` does too, and `>1.25` starts at 1.26.
//! `^1.2` is `>=1.2 <2` (`^0.2` is `>=0.2 <0.3`), `~1.2.3` is `>=1.2.3 <1.3`.
//!
//! Pre-releases follow the order of versions (1.21-rc1 is `>=1.20`, 1.20-rc1 is not), with one exception that users
//! expect: `<2` does not match 2.0-rc1. Variants and revisions are ignored: 1.25-alpine is `>=1.20`.
//!
//! A range of versions matches no dates, and one of dates (`>=2024-01-15`, `20240115`, `<2024-02`) no versions.

use std::fmt;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::str::FromStr;

use super::version::{ReleaseStage, Version, VersionCore, VersionKind, VersionParts};
use crate::canonical::Canonical;

/// A set of versions, parsed by [`FromStr`].
#[derive(Clone, Debug)]
pub struct VersionRange {
    text: String,
    intervals: Vec<VersionInterval>,
}

/// Error of parsing a [`VersionRange`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionRangeError {
    /// An empty range, or nothing between two `||`.
    #[error("a version range must not be empty")]
    Empty,
    /// Not a version.
    #[error("`{0}` is not a version to compare with, such as 1.20, v1.2.3, 1.x or 2024-01-15")]
    NotAVersion(String),
    /// A version with SemVer's build metadata.
    #[error(
        "tags cannot contain `+`: Helm writes {} for `{version}`, and builds of one version are not told apart by a range",
        .version.replace('+', "_")
    )]
    Plus {
        /// Version as written.
        version: String,
    },
    /// A range with a date and a version, as in `>=2024-01-15 <2`.
    #[error("`{0}` compares with a date and with a version: use one of the two")]
    Mixed(String),
    /// A range that no version satisfies, as in `>2 <1`.
    #[error("no version can be `{0}`")]
    Contradiction(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct VersionInterval {
    kind: VersionKind,
    lower: Bound<VersionCore>,
    upper: Bound<VersionCore>,
}

impl VersionRange {
    /// Whether the range contains the version.
    pub fn contains(&self, version: &Version) -> bool {
        self.intervals.iter().any(|interval| interval.contains(version.core()))
    }

    /// Returns the meaning of the range, independent of its text: the set of its alternatives.
    pub fn canonical(&self) -> Vec<Canonical> {
        self.intervals.iter().map(VersionInterval::canonical).collect()
    }

    /// Returns the range as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for VersionRange {
    fn eq(&self, other: &Self) -> bool {
        self.intervals == other.intervals
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for VersionRange {
    type Err = VersionRangeError;

    fn from_str(text: &str) -> Result<Self, VersionRangeError> {
        let text = text.trim();
        let intervals = text.split("||").map(parse_conjunction).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), intervals })
    }
}

impl VersionInterval {
    fn canonical(&self) -> Canonical {
        let bound = |canonical: Canonical, number: u8, bound: &Bound<VersionCore>| match bound {
            Unbounded => canonical,
            Included(core) => canonical.field(number, core.canonical()),
            Excluded(core) => canonical.field(number + 1, core.canonical()),
        };
        let kind = Canonical::default().flag(1, self.kind == VersionKind::Date);
        bound(bound(kind, 2, &self.lower), 4, &self.upper)
    }

    fn contains(&self, core: &VersionCore) -> bool {
        if core.kind != self.kind {
            return false;
        }
        let above = match &self.lower {
            Included(bound) => core >= bound,
            Excluded(bound) => core > bound,
            Unbounded => true,
        };
        above
            && match &self.upper {
                Included(bound) => core <= bound,
                Excluded(bound) => core < bound,
                Unbounded => true,
            }
    }

    fn intersect(self, other: Self) -> Self {
        let (lower, upper) =
            (tighter_bound(self.lower, other.lower, true), tighter_bound(self.upper, other.upper, false));
        Self { kind: self.kind, lower, upper }
    }

    fn is_empty(&self) -> bool {
        match (&self.lower, &self.upper) {
            (Included(low), Included(high)) => low > high,
            (Included(low) | Excluded(low), Included(high) | Excluded(high)) => low >= high,
            _ => false,
        }
    }
}

/// Returns the more restrictive bound.
fn tighter_bound(a: Bound<VersionCore>, b: Bound<VersionCore>, lower: bool) -> Bound<VersionCore> {
    let (Included(x) | Excluded(x)) = &a else {
        return b;
    };
    let (Included(y) | Excluded(y)) = &b else {
        return a;
    };
    let a_is_tighter = match x.cmp(y) {
        std::cmp::Ordering::Equal => matches!(a, Excluded(_)),
        order => order.is_gt() == lower,
    };
    if a_is_tighter { a } else { b }
}

fn parse_conjunction(text: &str) -> Result<VersionInterval, VersionRangeError> {
    let mut interval: Option<VersionInterval> = None;
    let mut rest = text.trim_matches(is_separator);
    while !rest.is_empty() {
        let operator_end = rest.find(|c| !"<>=^~".contains(c)).unwrap_or(rest.len());
        let (operator, after) = rest.split_at(operator_end);
        let after = after.trim_start();
        let end = after.find(is_separator).unwrap_or(after.len());
        let next = parse_comparator(operator, &after[..end])?;
        interval = Some(match interval {
            Some(interval) if interval.kind != next.kind => {
                return Err(VersionRangeError::Mixed(text.trim().to_owned()));
            }
            Some(interval) => interval.intersect(next),
            None => next,
        });
        rest = after[end..].trim_start_matches(is_separator);
    }
    let interval = interval.ok_or(VersionRangeError::Empty)?;
    if interval.is_empty() {
        return Err(VersionRangeError::Contradiction(text.trim().to_owned()));
    }
    Ok(interval)
}

fn is_separator(c: char) -> bool {
    c == ',' || c.is_whitespace()
}

fn parse_comparator(operator: &str, version: &str) -> Result<VersionInterval, VersionRangeError> {
    let unknown = || VersionRangeError::NotAVersion(format!("{operator}{version}"));
    if version.contains('+') {
        return Err(VersionRangeError::Plus { version: version.to_owned() });
    }
    // `1.x`, `1.25.*`: the numbers before the wildcard, matched as a whole.
    let mut stem = version;
    while let Some(shorter) = [".x", ".X", ".*"].iter().find_map(|wildcard| stem.strip_suffix(wildcard)) {
        stem = shorter;
    }
    let wild = stem.len() < version.len();
    if matches!(stem, "x" | "X" | "*") {
        return match operator {
            "" | "=" | "==" | ">=" | "<=" | "^" | "~" => {
                Ok(VersionInterval { kind: VersionKind::Version, lower: Unbounded, upper: Unbounded })
            }
            _ => Err(VersionRangeError::Contradiction(format!("{operator}{version}"))),
        };
    }
    let parts = VersionParts::parse(stem).ok_or_else(unknown)?;
    if wild && parts.stage != ReleaseStage::Release {
        return Err(unknown());
    }
    // A date of three numbers covers its hours.
    let full = if parts.kind == VersionKind::Date { 4 } else { 3 };
    let whole = parts.stage == ReleaseStage::Release && (wild || parts.written_numbers < full);
    let numbers = &parts.numbers;
    let at = |stage: &ReleaseStage| VersionCore::new(parts.kind, numbers.clone(), stage.clone());
    // Returns the first version after all that begin with the first `kept` numbers.
    let after = |kept: usize| {
        let mut next = numbers[..kept].to_vec();
        if let Some(last) = next.last_mut() {
            *last = last.saturating_add(1);
        }
        Excluded(VersionCore::new(parts.kind, next, ReleaseStage::Lowest))
    };
    let from = Included(at(&parts.stage));
    let (lower, upper) = match operator {
        "" | "=" | "==" if whole => (from, after(numbers.len())),
        "" | "=" | "==" => (from.clone(), from),
        ">=" => (from, Unbounded),
        ">" if whole => match after(numbers.len()) {
            Excluded(next) => (Included(next), Unbounded),
            _ => return Err(unknown()),
        },
        ">" => (Excluded(at(&parts.stage)), Unbounded),
        "<" if parts.stage == ReleaseStage::Release => (Unbounded, Excluded(at(&ReleaseStage::Lowest))),
        "<" => (Unbounded, Excluded(at(&parts.stage))),
        "<=" if whole => (Unbounded, after(numbers.len())),
        "<=" => (Unbounded, from),
        "~" => (from, after(numbers.len().min(2))),
        "^" => {
            let first = numbers.iter().position(|&number| number > 0);
            (from, after(first.map_or(numbers.len(), |index| index + 1)))
        }
        _ => return Err(unknown()),
    };
    Ok(VersionInterval { kind: parts.kind, lower, upper })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takes(range: &str, tag: &str) -> bool {
        let range: VersionRange = range.parse().unwrap_or_else(|e| panic!("{range}: {e}"));
        range.contains(&Version::parse(tag).unwrap())
    }

    #[test]
    fn ranges_take_what_people_expect() {
        for (range, yes, no) in [
            (
                ">=1.20",
                "1.20 v1.20.1 1.25-alpine 2 1.21-rc1 2024.01.15 2025.0",
                "1.19.3 1.20-rc1 1.2 2024-01-15 20250301 20250301103000 20250301-g1a2b3c4 2024-01",
            ),
            ("*", "1 0.1", "20250301 2025-03-01"),
            ("<2025", "2024 17.2", "20240301 2024-03-01"),
            (">= 1.20, < 2", "1.20 1.99.9", "2.0 2.0-rc1 1.19"),
            (">=1.20 <2", "1.20 1.99.9", "2.0 2.0.0-beta.1"),
            (">1.25", "1.26 1.26.1 2", "1.25 1.25.9"),
            (">1.25.3", "1.25.4 1.25.3.1", "1.25.3 1.25.3-2"),
            ("<=1.25", "1.25.9 1.24", "1.26"),
            ("=1.25", "1.25 1.25.3 1.25.3-alpine", "1.26 1.24.9"),
            ("1.25.3", "1.25.3 v1.25.3-alpine 1.25.3-4", "1.25.4 1.25.3-rc1"),
            ("1.x", "1.0 1.99", "2.0 0.9"),
            ("1.25.*", "1.25.1", "1.26"),
            ("1.x.x", "1.25.1", "2.26"),
            ("*", "0.1 1.0-rc1", ""),
            ("^1.2.3", "1.2.3 1.9", "2.0 1.2.2"),
            ("^0.2.3", "0.2.3 0.2.9", "0.3 0.2.2"),
            ("^0.0.3", "0.0.3", "0.0.4"),
            ("^0", "0.9", "1.0"),
            ("~1.2.3", "1.2.9", "1.3 1.2.2"),
            ("~1", "1.2 1.9", "2.0"),
            ("~1.2 || ^3", "1.2.5 3.9", "2.0 4"),
            (">=2024-01-15", "20240115 2024-02-01 20240115093000", "2024-01-14 1.2 2024.02.01 2025"),
            ("=20240115", "2024-01-15 20240115093000 2024-01-15T10-30-00Z 20240115.2", "20240116 2024-01"),
            ("<=2024-01", "2024-01 20240131 2023-12-31", "20240201"),
            (">=20240101, <2024-03 || >=2", "20240229 2.1", "20240301 1.9"),
            (">=1.4", "1.4.0_up0.9.1 1.4.0.post2 1.5-gke.900", "1.3.9_up1.4"),
            ("<2.0.0-rc2", "2.0.0-rc1 1.9", "2.0.0-rc2 2.0.0"),
            (">=1.2.3.4", "1.2.3.4 1.2.3.10", "1.2.3.3"),
        ] {
            for tag in yes.split_whitespace() {
                assert!(takes(range, tag), "{range} takes {tag}");
            }
            for tag in no.split_whitespace() {
                assert!(!takes(range, tag), "{range} leaves out {tag}");
            }
        }
    }

    #[test]
    fn what_is_not_a_range_is_refused_with_the_reason() {
        let reason = |text: &str| text.parse::<VersionRange>().unwrap_err().to_string();
        assert_eq!(reason(""), "a version range must not be empty");
        assert_eq!(reason(">=1 ||"), "a version range must not be empty");
        assert_eq!(reason(">2 <1"), "no version can be `>2 <1`");
        assert_eq!(reason("<1.2 >=1.2"), "no version can be `<1.2 >=1.2`");
        assert!(reason(">=latest").starts_with("`>=latest` is not a version"));
        assert!(reason("=>1").starts_with("`=>1` is not a version"));
        assert!(reason("1x").starts_with("`1x` is not a version"));
        assert!(reason(">=30517284").starts_with("`>=30517284` is not a version"));
        assert_eq!(
            reason(">=1.4.0+up1"),
            "tags cannot contain `+`: Helm writes 1.4.0_up1 for `1.4.0+up1`, and builds of one version are not told apart by a range"
        );
        assert_eq!(
            reason(">=2024-01-15 <17"),
            "`>=2024-01-15 <17` compares with a date and with a version: use one of the two"
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[<>=^~ ,|*x0-9.v-]{0,24}|.{0,24}", tag in "[0-9.]{1,8}") {
            if let (Ok(range), Some(version)) = (text.parse::<VersionRange>(), Version::parse(&tag)) {
                let _ = range.contains(&version);
            }
        }

        #[test]
        fn at_least_and_below_share_out_the_releases(a in "[0-9]{1,2}(\\.[0-9]{1,2}){0,3}", b in "[0-9]{1,2}(\\.[0-9]{1,2}){0,3}") {
            prop_assert_ne!(takes(&format!(">={a}"), &b), takes(&format!("<{a}"), &b));
        }
    }
}
