//! `semverRange`: versions as regsync compares them (regclient, internal/semver).

use super::super::target_mapping::is_date_selected;

/// Tags that are a version here and not in regsync: `1.4.0_up0.9`, `1.0.post2`, `app-1.2`.
const NO_VERSIONS: &str = "/[^0-9v].*|v[^0-9].*|v?[0-9.]+[^0-9.-].*/";
/// Smallest first number that can be a date.
const FIRST_YEAR: u64 = 1900;

/// A range with the same meaning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ConvertedRange {
    /// `semver` of the rule.
    pub(super) semver: String,
    /// Tags at the bounds that regsync leaves out.
    pub(super) exclude: Vec<String>,
    has_upper_bound: bool,
}

impl ConvertedRange {
    /// Whether regsync takes dates, which are no versions here, for versions of the range.
    pub(super) fn takes_dates(&self, include: &[String], exclude: &[String]) -> bool {
        !self.has_upper_bound && is_date_selected(include, exclude)
    }
}

/// Converts a range. regsync fills missing numbers with zeros (`=7` is 7.0.0 only) and compares everything after a `-`
/// as a pre-release: 1.2-alpine is below 1.2.
pub(super) fn convert_range(range: &str) -> Result<ConvertedRange, String> {
    let mut converted =
        ConvertedRange { semver: String::new(), exclude: vec![NO_VERSIONS.to_owned()], has_upper_bound: false };
    for written in range.split_whitespace() {
        let number_start = written.find(|c: char| !"<>=^~".contains(c)).unwrap_or(written.len());
        let (operator, version) = written.split_at(number_start);
        let numbers = parse_numbers(version).ok_or_else(|| {
            format!("`semverRange: {range}` has no equivalent: `{written}` is not an operator and a version of numbers")
        })?;
        match operator {
            "" | "=" => converted.add("=", &numbers),
            ">=" | ">" | "<=" | "<" => converted.add(operator, &numbers),
            "~" => {
                converted.add(">=", &numbers);
                converted.add("<", &[numbers[0], numbers[1] + 1, 0]);
            }
            "^" => {
                converted.add(">=", &numbers);
                converted.add(
                    "<",
                    &match numbers[..3] {
                        [0, 0, patch] => [0, 0, patch + 1],
                        [0, minor, _] => [0, minor + 1, 0],
                        _ => [numbers[0] + 1, 0, 0],
                    },
                );
            }
            _ => return Err(format!("`semverRange: {range}` has no equivalent: unknown operator `{operator}`")),
        }
    }
    match converted.semver.is_empty() {
        true => Err("`semverRange` is empty".to_owned()),
        false => Ok(converted),
    }
}

impl ConvertedRange {
    fn add(&mut self, operator: &str, numbers: &[u64]) {
        let version = numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
        let significant = numbers.iter().rposition(|number| *number > 0).unwrap_or(0);
        let same = numbers[..=significant].iter().map(u64::to_string).collect::<Vec<_>>().join("\\.");
        // Here a suffix makes no difference to a range, and `<` leaves out pre-releases of the bound.
        let (operator, excluded) = match operator {
            "<" => ("<=", Some(format!("/v?{same}(\\.0)*/"))),
            "=" | ">=" => (operator, Some(format!("/v?{same}(\\.0)*-.*/"))),
            _ => (operator, None),
        };
        self.has_upper_bound |= !operator.starts_with('>') && numbers[0] < FIRST_YEAR;
        self.exclude.extend(excluded);
        let space = if self.semver.is_empty() { "" } else { " " };
        self.semver.push_str(&format!("{space}{operator}{version}"));
    }
}

/// Parses a version without a suffix, and fills it up to three numbers.
fn parse_numbers(version: &str) -> Option<Vec<u64>> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let mut numbers: Vec<u64> =
        version.split('.').map(|number| number.parse::<u32>().map(u64::from)).collect::<Result<_, _>>().ok()?;
    numbers.resize(numbers.len().max(3), 0);
    Some(numbers)
}
