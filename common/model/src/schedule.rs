//! Schedules of rules: a cron expression in a time zone or a fixed interval, with optional jitter. Pure: callers pass
//! the time.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use croner::errors::CronError;
use croner::{CivilDate, CivilDateTime, CivilTime, Cron, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

use crate::canonical::Canonical;

/// Domain of the hash that gives a run's jitter, with its version.
const JITTER_HASH_DOMAIN: &str = "imgsync jitter 1";
/// Upper limit for cron occurrences skipped in search of one after the last run.
const MAX_CRON_STEPS: usize = 1_000;

/// Number of next runs in which the longest interval is searched: three months of workdays.
const MAX_INTERVALS: usize = 64;

/// Schedule of a rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// When the rule runs.
    pub recurrence: Recurrence,
    /// Maximum delay of a run, derived from a hash of the rule's name and the time: rules do not all start at once, and
    /// every process computes the same time.
    pub jitter: Duration,
    /// Time zone of a cron expression.
    pub zone: TimeZone,
}

/// Times of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recurrence {
    /// At the times of a cron expression: minute, hour, day of month, month, day of week.
    Cron(CronPattern),
    /// At this interval; the first run is immediate.
    Every(Duration),
}

/// A cron expression that has an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronPattern(String);

/// Error of parsing a [`CronPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronPatternError(String);

/// A scheduled run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledRun {
    /// The time without jitter.
    pub nominal: Timestamp,
    /// The time with jitter.
    pub at: Timestamp,
}

impl std::str::FromStr for CronPattern {
    type Err = CronPatternError;

    fn from_str(text: &str) -> Result<CronPattern, CronPatternError> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let says = |why: String| CronPatternError(format!("`{text}` is not a cron expression: {why}"));
        let fields = text.split(' ').count();
        if !text.starts_with('@') && fields != 5 {
            let fields = if fields == 1 { "1 field".to_owned() } else { format!("{fields} fields") };
            return Err(says(format!("it has {fields}; expected 5 (minute hour day month weekday)")));
        }
        let cron: Cron = text.parse().map_err(|error: CronError| says(error.to_string()))?;
        // The 30th of February is well formed.
        let from = Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC);
        if cron.find_next_occurrence(&CronTime(from), false).is_err() {
            return Err(CronPatternError(format!("`{text}` never matches")));
        }
        Ok(CronPattern(text))
    }
}

impl fmt::Display for CronPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Schedule {
    /// Creates a schedule in UTC without jitter.
    pub fn new(recurrence: Recurrence) -> Schedule {
        Schedule { recurrence, jitter: Duration::ZERO, zone: TimeZone::UTC }
    }

    /// Returns the next run after `last`, the time at which the named rule was last started or first seen. `None` if
    /// there is none before the end of time.
    pub fn next_after(&self, last: Timestamp, name: &str) -> Option<ScheduledRun> {
        let nominal = match &self.recurrence {
            Recurrence::Every(time) => last.checked_add(*time).ok()?,
            Recurrence::Cron(pattern) => self.next_cron_time(pattern, last)?,
        };
        let at = nominal.checked_add(self.jitter_delay(name, nominal)).ok()?;
        Some(ScheduledRun { nominal, at })
    }

    /// Returns the longest interval between the next runs of the named rule: over a weekend, for a rule that runs on
    /// workdays. `None` if there are not two runs before the end of time.
    pub fn longest_interval(&self, now: Timestamp, name: &str) -> Option<Duration> {
        if let Recurrence::Every(time) = &self.recurrence {
            return Some(time.saturating_add(self.jitter));
        }
        let next = |last: &Timestamp| self.next_after(*last, name).map(|due| due.nominal);
        let times: Vec<Timestamp> = std::iter::successors(next(&now), next).take(MAX_INTERVALS + 1).collect();
        let longest = times.windows(2).map(|pair| pair[1].duration_since(pair[0])).max()?;
        Some(Duration::try_from(longest).ok()?.saturating_add(self.jitter))
    }

    /// Returns the time to record as the last run when a due run is started now: missed runs are caught up once, and a
    /// fixed interval stays regular.
    pub fn last_run_to_record(&self, due: ScheduledRun, now: Timestamp) -> Timestamp {
        match &self.recurrence {
            Recurrence::Every(time) if due.nominal.checked_add(*time).is_ok_and(|next| next > now) => due.nominal,
            Recurrence::Every(_) | Recurrence::Cron(_) => now,
        }
    }

    /// Whether the rule runs immediately when first seen.
    pub fn starts_immediately(&self) -> bool {
        matches!(self.recurrence, Recurrence::Every(_))
    }

    fn next_cron_time(&self, pattern: &CronPattern, last: Timestamp) -> Option<Timestamp> {
        let cron: Cron = pattern.0.parse().ok()?;
        let mut from = CronTime(last.to_zoned_datetime(self.zone.clone()));
        for _ in 0..MAX_CRON_STEPS {
            from = cron.find_next_occurrence(&from, false).ok()?;
            if from.0.timestamp() > last {
                return Some(from.0.timestamp());
            }
        }
        None
    }

    fn jitter_delay(&self, name: &str, nominal: Timestamp) -> SignedDuration {
        let hash = Canonical::default().field(1, name).number(2, nominal.as_second()).digest(JITTER_HASH_DOMAIN);
        let part = u32::from_str_radix(&hash.hex()[..8], 16).unwrap_or_default();
        let delay = self.jitter.as_secs_f64() * f64::from(part) / f64::from(u32::MAX);
        SignedDuration::from_secs(delay as i64)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.recurrence {
            Recurrence::Cron(pattern) => write!(f, "{pattern}")?,
            Recurrence::Every(time) => write!(f, "every {:#}", SignedDuration::try_from(*time).unwrap_or_default())?,
        }
        if !self.jitter.is_zero() {
            write!(f, ", up to {:#} later", SignedDuration::try_from(self.jitter).unwrap_or_default())?;
        }
        match self.zone.iana_name() {
            Some(name) if matches!(self.recurrence, Recurrence::Cron(_)) => write!(f, " ({name})"),
            _ => Ok(()),
        }
    }
}

/// Adapts a time to the cron library.
#[derive(Debug, Clone)]
struct CronTime(ZonedDateTime);

fn to_civil_datetime(of: CivilDateTime) -> Result<DateTime, CronError> {
    let small = |value: u32| i8::try_from(value).map_err(|_| CronError::InvalidDate);
    let year = i16::try_from(of.year()).map_err(|_| CronError::InvalidDate)?;
    DateTime::new(
        year,
        small(of.month())?,
        small(of.day())?,
        small(of.hour())?,
        small(of.minute())?,
        small(of.second())?,
        0,
    )
    .map_err(|_| CronError::InvalidDate)
}

impl CronDateTime for CronTime {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0.datetime();
        let part = |value: i8| u32::from(value.unsigned_abs());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(i32::from(at.year()), part(at.month()), part(at.day())),
            CivilTime::from_parts_unchecked(part(at.hour()), part(at.minute()), part(at.second())),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(u32::from(self.0.weekday().to_sunday_zero_offset().unsigned_abs()))
    }

    fn resolve_civil(&self, at: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let ambiguous = self.0.time_zone().to_ambiguous_zoned_datetime(to_civil_datetime(at)?);
        let of = |zoned: Result<ZonedDateTime, jiff::Error>| zoned.map(CronTime).map_err(|_| CronError::InvalidTime);
        Ok(match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => Resolution::Single(of(ambiguous.unambiguous())?),
            AmbiguousOffset::Fold { .. } => {
                Resolution::Ambiguous(of(ambiguous.clone().earlier())?, of(ambiguous.later())?)
            }
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(CronTime)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(text: &str, zone: &str) -> Schedule {
        let times = Recurrence::Cron(text.parse().unwrap());
        Schedule { zone: TimeZone::get(zone).unwrap(), ..Schedule::new(times) }
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &Schedule, last: &str) -> String {
        schedule.next_after(time(last), "a").unwrap().at.to_string()
    }

    #[test]
    fn a_pattern_is_met_by_the_clocks_of_its_zone() {
        assert_eq!(next(&cron("0 */6 * * *", "UTC"), "2026-11-25T06:00:00Z"), "2026-11-25T12:00:00Z");
        assert_eq!(next(&cron("30 4 * * *", "Asia/Shanghai"), "2026-11-25T06:00:00Z"), "2026-11-25T20:30:00Z");
        assert_eq!(next(&cron("0 0 * * MON", "UTC"), "2026-11-25T06:00:00Z"), "2026-11-30T00:00:00Z");
        assert_eq!(next(&cron("@daily", "UTC"), "2026-11-25T06:00:00Z"), "2026-11-26T00:00:00Z");
    }

    #[test]
    fn each_day_has_one_run_also_when_the_clocks_are_changed() {
        // In Berlin 02:30 was not on 2026-03-29, and twice on 2026-10-25.
        let schedule = cron("30 2 * * *", "Europe/Berlin");
        for (from, days) in [("2026-03-27T12:00:00Z", 4), ("2026-10-23T12:00:00Z", 4)] {
            let mut last = time(from);
            let mut seen = Vec::new();
            for _ in 0..days {
                last = schedule.next_after(last, "a").unwrap().at;
                seen.push(last.to_zoned_datetime(schedule.zone.clone()).date());
            }
            assert!(seen.windows(2).all(|pair| pair[0].tomorrow().unwrap() == pair[1]), "{seen:?}");
        }
    }

    #[test]
    fn times_that_were_missed_are_caught_up_once() {
        let every = Schedule::new(Recurrence::Every(Duration::from_secs(3600)));
        let due = every.next_after(time("2026-11-25T06:00:00Z"), "a").unwrap();
        assert_eq!(
            every.last_run_to_record(due, time("2026-11-25T07:00:05Z")),
            time("2026-11-25T07:00:00Z"),
            "it stays regular"
        );
        let late = time("2026-11-25T20:10:00Z");
        assert_eq!(every.last_run_to_record(due, late), late);
        let daily = cron("0 3 * * *", "UTC");
        let due = daily.next_after(time("2026-11-20T03:00:00Z"), "a").unwrap();
        assert!(due.at < late);
        assert_eq!(next(&daily, &daily.last_run_to_record(due, late).to_string()), "2026-11-26T03:00:00Z");
    }

    #[test]
    fn the_longest_interval_is_over_the_weekend_and_has_the_jitter() {
        let now = time("2026-09-25T06:00:00Z");
        let hours = |schedule: &Schedule| schedule.longest_interval(now, "a").unwrap().as_secs() / 3600;
        assert_eq!(hours(&cron("0 9 * * MON-FRI", "UTC")), 72);
        assert_eq!(hours(&cron("0 */6 * * *", "UTC")), 6);
        assert_eq!(hours(&cron("0 3 * * *", "Europe/Berlin")), 25, "the day on which clocks are set back");
        let jitter = Duration::from_secs(3600);
        assert_eq!(hours(&Schedule { jitter, ..Schedule::new(Recurrence::Every(Duration::from_secs(7200))) }), 3);
    }

    #[test]
    fn jitter_differs_by_name_and_is_the_same_in_every_process() {
        let schedule = Schedule {
            jitter: Duration::from_secs(600),
            ..Schedule::new(Recurrence::Every(Duration::from_secs(3600)))
        };
        let last = time("2026-11-25T06:00:00Z");
        let of = |name: &str| schedule.next_after(last, name).unwrap();
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        let delay = of("a").at.duration_since(of("a").nominal).as_secs();
        assert_eq!(delay, 458, "programs of several versions agree");
        for name in ["a", "b", "c"] {
            let delay = of(name).at.duration_since(of(name).nominal);
            assert!((0..=600).contains(&delay.as_secs()), "{delay}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for (text, wanted) in [
            ("0 * * *", "it has 4 fields"),
            ("* * * * * *", "it has 6 fields"),
            ("61 * * * *", "is not a cron expression"),
            ("0 0 30 2 *", "never matches"),
            ("@hurly", "is not a cron expression"),
            ("", "it has 1 field;"),
        ] {
            let error = text.parse::<CronPattern>().unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        assert_eq!("  0  3 * * * ".parse::<CronPattern>().unwrap().to_string(), "0 3 * * *");
    }
}
