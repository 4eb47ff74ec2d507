//! Tag selection: a rule's compiled `tags:`, and its evaluation of a list of tags.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};

use super::drop_counts::DropCounts;
use super::version::{VersionKind, split_prefix};
use super::{TagPattern, Version, VersionRange};
use crate::canonical::Canonical;

/// A listed tag, before selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagCandidate {
    /// The tag.
    pub tag: String,
    /// Date of push or build, if the listing has it.
    pub created: Option<Timestamp>,
}

impl TagCandidate {
    /// Creates a candidate without a date.
    pub fn new(tag: impl Into<String>) -> Self {
        Self { tag: tag.into(), created: None }
    }
}

/// Filters for tags; by default all are selected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TagSelection {
    /// Patterns of which one must match; if empty, all tags do.
    pub include: Vec<TagPattern>,
    /// Patterns of which none may match.
    pub exclude: Vec<TagPattern>,
    /// Range that versions must be in. Tags that are no versions are dropped.
    pub range: Option<VersionRange>,
    /// Minimum date.
    pub since: Option<Since>,
    /// Limit to the newest of the remaining tags.
    pub newest: Option<Newest>,
    /// Minimum number of selected tags; fewer are an error, so that a wrong filter does not silently copy nothing.
    pub min: Option<usize>,
}

/// Limit to the newest tags, `newest:`. By version, each variant is counted separately: a count of 3 over `1.27`,
/// `1.27-alpine3.20`, `1.26-alpine3.19` … selects three plain versions and three of alpine, because the newest three of
/// all would often be one version in three variants. Numbers in a variant's name do not make another variant. Date tags
/// (`20250301`) are counted separately from versions. By date, all tags are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Number of tags; at least 1.
    pub count: usize,
    /// Criterion for newer tags.
    pub by: NewestBy,
}

/// Criterion by which a tag is newer than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewestBy {
    /// By version; tags that are no versions are dropped.
    #[default]
    Version,
    /// By creation date; tags without one are dropped.
    Date,
}

/// Age limit, `since:`.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    /// A day (from midnight UTC) or a point in time.
    Moment(Timestamp),
    /// An age, counted back from the evaluation; days, weeks and months by the calendar in UTC.
    Ago(Span),
}

impl Since {
    /// Returns the earliest date allowed, relative to `now`.
    pub fn cutoff(&self, now: Timestamp) -> Timestamp {
        match self {
            Since::Moment(moment) => *moment,
            Since::Ago(span) => {
                now.to_zoned_datetime(TimeZone::UTC).checked_sub(*span).map_or(Timestamp::MIN, |then| then.timestamp())
            }
        }
    }
}

impl Since {
    /// Returns the meaning, independent of units: a timestamp, or months and a duration (in UTC, weeks and days have a
    /// fixed length).
    pub fn canonical(&self) -> Canonical {
        const SECOND: i128 = 1_000_000_000;
        match self {
            Since::Moment(moment) => Canonical::default().number(1, moment.as_nanosecond()),
            Since::Ago(span) => {
                let months = i128::from(span.get_years()) * 12 + i128::from(span.get_months());
                let days = i128::from(span.get_weeks()) * 7 + i128::from(span.get_days());
                let hours = days * 24 + i128::from(span.get_hours());
                let seconds = (hours * 60 + i128::from(span.get_minutes())) * 60 + i128::from(span.get_seconds());
                let millis = seconds * 1_000 + i128::from(span.get_milliseconds());
                let micros = millis * 1_000 + i128::from(span.get_microseconds());
                let nanos = micros * (SECOND / 1_000_000) + i128::from(span.get_nanoseconds());
                Canonical::default().number(2, months).number(3, nanos)
            }
        }
    }
}

impl PartialEq for Since {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl std::str::FromStr for Since {
    type Err = String;

    /// Parses `2025-01-01`, `2025-01-01T12:00:00Z`, `90d`, `6 months`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = text.parse::<Timestamp>() {
            return Ok(Since::Moment(moment));
        }
        if let Some(zoned) = text.parse::<Date>().ok().and_then(|date| date.to_zoned_datetime(TimeZone::UTC).ok()) {
            return Ok(Since::Moment(zoned.timestamp()));
        }
        match text.parse::<Span>() {
            Ok(span) if span.is_positive() => Ok(Since::Ago(span)),
            _ => Err(format!("`{text}` is neither a date such as 2025-01-01 nor a time such as 90d")),
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Since::Moment(moment) => write_timestamp(*moment, f),
            Since::Ago(span) => write!(f, "{span:#}"),
        }
    }
}

fn write_timestamp(moment: Timestamp, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let civil = moment.to_zoned_datetime(TimeZone::UTC).datetime();
    if civil.time() == jiff::civil::Time::midnight() { write!(f, "{}", civil.date()) } else { write!(f, "{moment:.0}") }
}

/// Reason for dropping a tag. Displayed after the tag and a colon: `1.19.3: is not >=1.20`.
#[derive(Clone, Debug, PartialEq)]
pub enum DropReason {
    /// Not a valid tag by the OCI specification.
    NotATag,
    /// A digest tag (signature, attestation, SBOM or referrers index): it is copied with its image.
    DigestTag,
    /// Matched by `exclude`.
    Excluded(String),
    /// Matched by nothing in `include`.
    NotIncluded,
    /// Not a version, with `semver` or `newest` set.
    NotAVersion,
    /// Ends with a version after a prefix, but the tags have different prefixes.
    OtherPrefixes {
        /// Prefix of this tag.
        prefix: String,
        /// Prefix of other tags.
        other: String,
    },
    /// A version outside `semver`.
    OutOfRange {
        /// The tag, for the message.
        version: String,
        /// The range as written.
        range: String,
    },
    /// No known date, with `since` or `newest: {by: date}` set.
    NoDate,
    /// Before `since`.
    TooOld {
        /// Date of the tag.
        created: Timestamp,
        /// Earliest date allowed.
        cutoff: Timestamp,
    },
    /// Read from another repository of the same preset, which has the same tag under the same target name.
    DuplicateInPreset(String),
    /// Older than the newest tags.
    BeyondNewest {
        /// Number of tags kept.
        count: usize,
        /// Variant; empty for plain versions and for `by: date`.
        variant: String,
    },
}

impl DropReason {
    /// Returns the reason without tag-specific parts, for counting: `not >=1.20`.
    pub fn summary(&self) -> String {
        match self {
            DropReason::OutOfRange { range, .. } => format!("not {range}"),
            DropReason::TooOld { cutoff, .. } => format!("older than {}", Since::Moment(*cutoff)),
            DropReason::BeyondNewest { count, .. } => format!("not among the newest {count}"),
            DropReason::OtherPrefixes { .. } => "versions with different prefixes".to_owned(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DropReason::NotATag => f.write_str("not a valid tag"),
            DropReason::DigestTag => f.write_str("a digest tag: copied with its image"),
            DropReason::Excluded(pattern) => write!(f, "excluded by {pattern}"),
            DropReason::NotIncluded => f.write_str("not matched by any include"),
            DropReason::NotAVersion => f.write_str("not a version"),
            DropReason::OtherPrefixes { prefix, other } => {
                write!(
                    f,
                    "a version with the prefix `{prefix}`, while other tags have `{other}`: choose one with include"
                )
            }
            DropReason::OutOfRange { version, range } => write!(f, "{version} is not {range}"),
            DropReason::DuplicateInPreset(first) => write!(f, "read from {first} instead"),
            DropReason::NoDate => f.write_str("no creation date"),
            DropReason::TooOld { created, cutoff } => {
                f.write_str("older than ")?;
                write_timestamp(*cutoff, f)?;
                f.write_str(", from ")?;
                write_timestamp(*created, f)
            }
            DropReason::BeyondNewest { count, variant } if variant.is_empty() => {
                write!(f, "not among the newest {count}")
            }
            DropReason::BeyondNewest { count, variant } => {
                write!(f, "not among the newest {count} of {variant}")
            }
        }
    }
}

/// A tag and the version it parses as.
type ParsedTag = (Option<Version>, TagCandidate);
type DroppedTag = (Option<Version>, TagCandidate, DropReason);

/// Result of evaluating a [`TagSelection`]; both lists in the order of [`compare_tags`] (versions after a prefix in
/// version order), each tag once.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectionResult {
    /// Selected tags.
    pub kept: Vec<TagCandidate>,
    /// Dropped tags with reasons.
    pub dropped: Vec<(TagCandidate, DropReason)>,
    /// The value of `min`, if fewer tags are kept.
    pub below_min: Option<usize>,
}

impl SelectionResult {
    /// Counts the dropped tags by reason, in filter order.
    pub fn count_drops(&self) -> DropCounts {
        self.dropped.iter().map(|(_, reason)| reason).collect()
    }
}

/// A contradiction that makes a selection empty for any list of tags.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionContradiction {
    /// An include pattern is always excluded.
    #[error("`{include}` is always excluded by `{exclude}`")]
    IncludeExcluded {
        /// Index of the include pattern.
        index: usize,
        /// The include pattern.
        include: String,
        /// The exclude pattern.
        exclude: String,
    },
    /// All tags are excluded.
    #[error("`{0}` excludes all tags")]
    AllExcluded(String),
    /// `newest: 0`.
    #[error("the newest 0 are none")]
    NewestZero,
    /// `min` exceeds the count of `newest` by date.
    #[error("`min` is {min}, but only the newest {newest} by date are kept")]
    MinAboveNewest {
        /// Value of `min`.
        min: usize,
        /// Value of `newest`.
        newest: usize,
    },
}

impl TagSelection {
    /// Whether dates are needed: they must be requested if the listing has none.
    pub fn needs_created(&self) -> bool {
        self.since.is_some() || matches!(self.newest, Some(Newest { by: NewestBy::Date, .. }))
    }

    /// Returns all contradictions of the selection.
    pub fn contradictions(&self) -> Vec<SelectionContradiction> {
        let mut found = Vec::new();
        for (index, include) in self.include.iter().enumerate() {
            if let Some(exclude) = self.exclude.iter().find(|exclude| exclude.covers(include)) {
                found.push(SelectionContradiction::IncludeExcluded {
                    index,
                    include: include.to_string(),
                    exclude: exclude.to_string(),
                });
            }
        }
        if let Some(exclude) = self.exclude.iter().find(|pattern| pattern.matches_all())
            && self.include.is_empty()
        {
            found.push(SelectionContradiction::AllExcluded(exclude.to_string()));
        }
        match (self.newest, self.min) {
            (Some(Newest { count: 0, .. }), _) => found.push(SelectionContradiction::NewestZero),
            (Some(Newest { count, by: NewestBy::Date }), Some(min)) if min > count => {
                found.push(SelectionContradiction::MinAboveNewest { min, newest: count });
            }
            _ => {}
        }
        found
    }

    /// Whether two selections certainly share tags if they select any: their filters are equal, or one names a tag that
    /// the other selects.
    pub fn certainly_overlaps(&self, other: &Self) -> bool {
        let same =
            |a: &[TagPattern], b: &[TagPattern]| a.len() == b.len() && a.iter().all(|pattern| b.contains(pattern));
        let takes = |selection: &Self, tag: &str| {
            selection.check_patterns(tag).is_ok()
                && selection.check_version_and_date(&TagCandidate::new(tag), None, Version::parse(tag).as_ref()).is_ok()
        };
        let timeless = |selection: &Self| selection.newest.is_none() && selection.since.is_none();
        (same(&self.include, &other.include) && same(&self.exclude, &other.exclude) && self.range == other.range)
            || (timeless(self)
                && timeless(other)
                && self
                    .include
                    .iter()
                    .chain(&other.include)
                    .filter_map(TagPattern::literal)
                    .any(|tag| takes(self, tag) && takes(other, tag)))
    }

    /// Evaluates the tags in O(n log n). `since: 90d` counts back from `now`.
    pub fn evaluate(&self, candidates: impl IntoIterator<Item = TagCandidate>, now: Timestamp) -> SelectionResult {
        let cutoff = self.since.map(|since| since.cutoff(now));
        let mut dropped: Vec<DroppedTag> = Vec::new();
        let mut matched: Vec<ParsedTag> = Vec::new();
        for (version, candidate) in sort_and_dedup(candidates) {
            match self.check_patterns(&candidate.tag) {
                Ok(()) => matched.push((version, candidate)),
                Err(reason) => dropped.push((version, candidate, reason)),
            }
        }
        if self.needs_versions() && matched.iter().all(|(version, _)| version.is_none()) {
            parse_after_common_prefix(&mut matched, &mut dropped);
        }
        let mut kept: Vec<ParsedTag> = Vec::new();
        for (version, candidate) in matched {
            match self.check_version_and_date(&candidate, cutoff, version.as_ref()) {
                Ok(()) => kept.push((version, candidate)),
                Err(reason) => dropped.push((version, candidate, reason)),
            }
        }
        if let Some(newest) = self.newest {
            let losers = newest.find_excess(&kept);
            let mut losers = losers.into_iter().peekable();
            let all = std::mem::take(&mut kept);
            for (index, (version, candidate)) in all.into_iter().enumerate() {
                match losers.next_if(|loser| loser.0 == index) {
                    Some((_, reason)) => dropped.push((version, candidate, reason)),
                    None => kept.push((version, candidate)),
                }
            }
        }
        dropped.sort_by(|a, b| compare_by_version((&a.0, &a.1.tag), (&b.0, &b.1.tag)));
        SelectionResult {
            below_min: self.min.filter(|&min| kept.len() < min),
            kept: kept.into_iter().map(|(_, candidate)| candidate).collect(),
            dropped: dropped.into_iter().map(|(_, candidate, reason)| (candidate, reason)).collect(),
        }
    }

    /// Whether tags that are no versions are dropped.
    fn needs_versions(&self) -> bool {
        self.range.is_some() || matches!(self.newest, Some(Newest { by: NewestBy::Version, .. }))
    }

    /// Applies the filters on the tag's text.
    fn check_patterns(&self, tag: &str) -> Result<(), DropReason> {
        if !is_valid_tag(tag) {
            return Err(DropReason::NotATag);
        }
        if imgsync_oci::DigestTag::parse_tag(tag).is_some() {
            return Err(DropReason::DigestTag);
        }
        if let Some(pattern) = self.exclude.iter().find(|pattern| pattern.matches(tag)) {
            return Err(DropReason::Excluded(pattern.to_string()));
        }
        if !self.include.is_empty() && !self.include.iter().any(|pattern| pattern.matches(tag)) {
            return Err(DropReason::NotIncluded);
        }
        Ok(())
    }

    /// Applies the filters on version and date; `newest` needs all tags.
    fn check_version_and_date(
        &self,
        candidate: &TagCandidate,
        cutoff: Option<Timestamp>,
        version: Option<&Version>,
    ) -> Result<(), DropReason> {
        let tag = &candidate.tag;
        if let Some(range) = &self.range {
            let version = version.ok_or(DropReason::NotAVersion)?;
            if !range.contains(version) {
                return Err(DropReason::OutOfRange { version: tag.clone(), range: range.to_string() });
            }
        }
        if let Some(cutoff) = cutoff {
            let created = candidate.created.ok_or(DropReason::NoDate)?;
            if created < cutoff {
                return Err(DropReason::TooOld { created, cutoff });
            }
        }
        Ok(())
    }
}

impl Newest {
    /// Returns the tags beyond the limit, by ascending index.
    fn find_excess(self, tags: &[ParsedTag]) -> Vec<(usize, DropReason)> {
        let mut losers = Vec::new();
        let drop_reason = |variant: &str| DropReason::BeyondNewest { count: self.count, variant: variant.to_owned() };
        match self.by {
            NewestBy::Version => {
                // The tags are sorted, so the newest of each variant come last.
                let mut counts: HashMap<(VersionKind, &str), usize> = HashMap::new();
                for (index, (version, _)) in tags.iter().enumerate().rev() {
                    let Some(version) = version else {
                        losers.push((index, DropReason::NotAVersion));
                        continue;
                    };
                    let count = counts.entry((version.core().kind, version.variant_name())).or_default();
                    *count += 1;
                    if *count > self.count {
                        let variant = match (version.is_date(), version.variant_name()) {
                            (false, family) => family.to_owned(),
                            (true, "") => "dates".to_owned(),
                            (true, family) => format!("dates with {family}"),
                        };
                        losers.push((index, drop_reason(&variant)));
                    }
                }
            }
            NewestBy::Date => {
                let mut dated = Vec::new();
                for (index, (_, candidate)) in tags.iter().enumerate() {
                    match candidate.created {
                        Some(created) => dated.push((Reverse(created), Reverse(index))),
                        None => losers.push((index, DropReason::NoDate)),
                    }
                }
                dated.sort_unstable();
                losers.extend(dated.into_iter().skip(self.count).map(|(_, Reverse(index))| (index, drop_reason(""))));
            }
        }
        losers.sort_unstable_by_key(|(index, _)| *index);
        losers
    }
}

/// Whether the OCI specification allows the tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}` (distribution-spec, "Pulling
/// manifests").
pub fn is_valid_tag(text: &str) -> bool {
    text.parse::<imgsync_oci::Tag>().is_ok()
}

/// Orders tags for lists: non-versions first, by text, then versions, old to new.
pub fn compare_tags(a: &str, b: &str) -> Ordering {
    compare_by_version((&Version::parse(a), a), (&Version::parse(b), b))
}

fn compare_by_version(a: (&Option<Version>, &str), b: (&Option<Version>, &str)) -> Ordering {
    a.0.cmp(b.0).then_with(|| a.1.cmp(b.1))
}

/// Parses the versions after a common prefix, if no tag is a version by itself. With different prefixes it is unknown
/// which tags are wanted, and they are dropped.
fn parse_after_common_prefix(matched: &mut Vec<ParsedTag>, dropped: &mut Vec<DroppedTag>) {
    let prefixes: BTreeSet<&str> =
        matched.iter().filter_map(|(_, candidate)| Some(split_prefix(&candidate.tag)?.0)).collect();
    let two: Vec<String> = prefixes.into_iter().take(2).map(str::to_owned).collect();
    let all = std::mem::take(matched);
    for (_, candidate) in all {
        let found = split_prefix(&candidate.tag).map(|(prefix, version)| (prefix.to_owned(), version));
        match (found, two.as_slice()) {
            (Some((prefix, _)), [first, second]) => {
                let other = if prefix == *first { second.clone() } else { first.clone() };
                dropped.push((None, candidate, DropReason::OtherPrefixes { prefix, other }));
            }
            (found, _) => matched.push((found.map(|(_, version)| version), candidate)),
        }
    }
    matched.sort_by(|a, b| compare_by_version((&a.0, &a.1.tag), (&b.0, &b.1.tag)));
}

/// Sorts the tags and keeps each once; of duplicates the one with the later date.
fn sort_and_dedup(candidates: impl IntoIterator<Item = TagCandidate>) -> Vec<ParsedTag> {
    let mut tags: Vec<ParsedTag> =
        candidates.into_iter().map(|candidate| (Version::parse(&candidate.tag), candidate)).collect();
    tags.sort_by(|a, b| {
        compare_by_version((&a.0, &a.1.tag), (&b.0, &b.1.tag)).then_with(|| b.1.created.cmp(&a.1.created))
    });
    tags.dedup_by(|later, first| later.1.tag == first.1.tag);
    tags
}

#[cfg(test)]
mod tests;
