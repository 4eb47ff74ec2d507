//! Dates in tags: `20250301`, `2025-03-01`, `20250301103000`, `2025-03-01T10-30-00Z`.

use super::parse_numbers;

/// Plausible years of a date tag.
const PLAUSIBLE_YEARS: std::ops::RangeInclusive<u64> = 1970..=2199;

/// Parses the date that a text begins with into numbers (year, month, day, and more precise ones), and returns the
/// rest. Dots do not make a date: `2024.01.15` and `2025.0` are versions.
pub(super) fn parse_date(body: &str) -> Option<(Vec<u64>, &str)> {
    let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (digits, rest) = body.split_at(end);
    let number = |text: &str| text.parse::<u64>().ok();
    let (mut date, rest) = match digits.len() {
        8 | 10 | 12 | 14 => {
            let (year, month, day) = (number(&digits[..4])?, number(&digits[4..6])?, number(&digits[6..8])?);
            let mut date = check_date(year, month, Some(day))?;
            match digits.len() {
                // `2025030102`, like serial numbers of DNS zones.
                10 => date.extend(number(&digits[8..])),
                12 => date.extend(check_time(&[&digits[8..10], &digits[10..]])?),
                14 => date.extend(check_time(&[&digits[8..10], &digits[10..12], &digits[12..]])?),
                _ => {}
            }
            (date, rest)
        }
        4 => {
            let (month, rest) = parse_two_digits(rest.strip_prefix('-')?)?;
            let year = number(digits)?;
            match rest.strip_prefix('-').and_then(parse_two_digits) {
                Some((day, after)) if check_date(year, month, Some(day)).is_some() => {
                    (check_date(year, month, Some(day))?, after)
                }
                _ => (check_date(year, month, None)?, rest),
            }
        }
        _ => return None,
    };
    let rest = match parse_time(rest) {
        Some((time, rest)) => {
            date.extend(time);
            rest
        }
        None => rest,
    };
    // `20240115.2` is the second build of that day.
    match rest.strip_prefix('.').and_then(parse_numbers) {
        Some((more, rest)) => {
            date.extend(more);
            Some((date, rest))
        }
        None => Some((date, rest)),
    }
}

fn check_date(year: u64, month: u64, day: Option<u64>) -> Option<Vec<u64>> {
    let date = jiff::civil::Date::new(
        i16::try_from(year).ok()?,
        i8::try_from(month).ok()?,
        i8::try_from(day.unwrap_or(1)).ok()?,
    );
    (date.is_ok() && PLAUSIBLE_YEARS.contains(&year))
        .then(|| [Some(year), Some(month), day].into_iter().flatten().collect())
}

/// Parses hours, minutes and seconds.
fn check_time(parts: &[&str]) -> Option<Vec<u64>> {
    let numbers: Vec<u64> = parts.iter().map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.iter().zip([24, 60, 61]).all(|(number, limit)| *number < limit).then_some(numbers)
}

/// `T10-30-00Z`, `T103000Z`, `T1030`.
fn parse_time(text: &str) -> Option<(Vec<u64>, &str)> {
    let mut rest = text.strip_prefix(['T', 't'])?;
    let mut parts = Vec::new();
    while parts.len() < 3 {
        let bare = if parts.is_empty() { rest } else { rest.strip_prefix(['-', '.']).unwrap_or(rest) };
        let Some(part) = bare.get(..2).filter(|part| part.bytes().all(|b| b.is_ascii_digit())) else { break };
        parts.push(part);
        rest = &bare[2..];
    }
    let numbers = check_time(&parts).filter(|numbers| !numbers.is_empty())?;
    Some((numbers, rest.strip_prefix(['Z', 'z']).unwrap_or(rest)))
}

fn parse_two_digits(text: &str) -> Option<(u64, &str)> {
    let digits = text.get(..2).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    let rest = &text[2..];
    (!rest.starts_with(|c: char| c.is_ascii_digit())).then_some((digits.parse().ok()?, rest))
}
