//! Throttles repeated log messages: one of each kind a minute, with the number of those suppressed.
//!
//! Messages that others can cause without limit (a refused message, an unreachable server) are written through here, so
//! that the log does not grow with their number.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use imgsync_oci::generational::GenerationalCache;

/// Minimum interval between two messages of a kind.
pub const MIN_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of kinds remembered. A forgotten kind is written once more.
const MAX_KINDS: usize = 1000;

static LOG_THROTTLE: LazyLock<LogThrottle> = LazyLock::new(|| LogThrottle::new(MIN_INTERVAL));

/// Writes a message to its destination.
type LineWriter = Arc<dyn Fn(&str) + Send + Sync>;

/// Throttling state of one kind of message.
struct ThrottledKind {
    write: LineWriter,
    written_at: Instant,
    suppressed: u64,
    last_line: String,
    last_at: Instant,
}

/// Writes a warning, unless one of its kind was written less than a minute ago; then it is counted, and a message with
/// the number follows. `kind` is the key that messages of one cause share.
pub fn warn(kind: &str, line: &str) {
    write(kind, line, |line| tracing::warn!("{line}"));
}

/// Writes an informational message as [`warn`] does.
pub fn info(kind: &str, line: &str) {
    write(kind, line, |line| tracing::info!("{line}"));
}

/// Writes a message elsewhere than to the log, as [`warn`] does.
pub fn write(kind: &str, line: &str, write: impl Fn(&str) + Send + Sync + 'static) {
    LOG_THROTTLE.write(kind, &(Arc::new(write) as LineWriter), line);
}

/// Writes the counts of all suppressed messages. Call it before the process ends.
pub fn flush() {
    LOG_THROTTLE.flush();
}

struct LogThrottle {
    interval: Duration,
    kinds: Mutex<GenerationalCache<String, ThrottledKind>>,
}

impl LogThrottle {
    fn new(interval: Duration) -> LogThrottle {
        LogThrottle { interval, kinds: Mutex::new(GenerationalCache::new(MAX_KINDS)) }
    }

    fn kinds(&self) -> MutexGuard<'_, GenerationalCache<String, ThrottledKind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&'static self, kind: &str, write: &LineWriter, line: &str) {
        let (line, is_first_left_out) = self.record(kind, write, line);
        if let Some(line) = line {
            return write(&line);
        }
        if is_first_left_out && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let kind = kind.to_owned();
            runtime.spawn(async move {
                tokio::time::sleep(self.interval).await;
                if let Some((write, line)) = self.take_summary(&kind) {
                    write(&line);
                }
            });
        }
    }

    /// Records a message. Returns the message to write now, if any, and whether it is the first one suppressed.
    fn record(&self, kind: &str, write: &LineWriter, line: &str) -> (Option<String>, bool) {
        let mut kinds = self.kinds();
        let Some(known) = kinds.get(kind) else {
            let known = ThrottledKind {
                write: write.clone(),
                written_at: Instant::now(),
                suppressed: 0,
                last_line: String::new(),
                last_at: Instant::now(),
            };
            kinds.insert(kind.to_owned(), known);
            return (Some(line.to_owned()), false);
        };
        if known.written_at.elapsed() >= self.interval {
            let line = with_suppressed_count(line, known.suppressed);
            *known = ThrottledKind {
                write: write.clone(),
                written_at: Instant::now(),
                suppressed: 0,
                last_line: String::new(),
                last_at: Instant::now(),
            };
            return (Some(line), false);
        }
        known.suppressed += 1;
        line.clone_into(&mut known.last_line);
        known.last_at = Instant::now();
        (None, known.suppressed == 1)
    }

    /// Returns the last message of a kind with its age and the number of suppressed ones, and resets the count.
    fn take_summary(&self, kind: &str) -> Option<(LineWriter, String)> {
        let mut kinds = self.kinds();
        let known = kinds.get(kind).filter(|known| known.suppressed > 0)?;
        let line = match known.last_at.elapsed().as_secs() {
            0 | 1 => std::mem::take(&mut known.last_line),
            // The log has the time at which it is written.
            age => format!("{age} s ago: {}", known.last_line),
        };
        let line = with_suppressed_count(&line, known.suppressed - 1);
        (known.written_at, known.suppressed, known.last_line) = (Instant::now(), 0, String::new());
        Some((known.write.clone(), line))
    }

    fn flush(&self) {
        let kinds: Vec<String> = self.kinds().iter().map(|(kind, _)| kind.clone()).collect();
        for (write, line) in kinds.iter().filter_map(|kind| self.take_summary(kind)) {
            write(&line);
        }
    }
}

fn with_suppressed_count(line: &str, more: u64) -> String {
    match more {
        0 => line.to_owned(),
        _ => format!("{line} ({more} similar messages suppressed)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> LineWriter {
        Arc::new(|_| {})
    }

    #[test]
    fn of_15_000_lines_of_a_kind_one_is_written_and_the_others_are_counted() {
        let lines = LogThrottle::new(MIN_INTERVAL);
        let mut written = Vec::new();
        for n in 0..15_000 {
            written.extend(lines.record("refused", &nowhere(), &format!("refused {n}")).0);
        }
        written.extend(lines.record("another", &nowhere(), "away").0);
        assert_eq!(written, ["refused 0", "away"]);
        let (_, line) = lines.take_summary("refused").unwrap();
        assert_eq!(line, "refused 14999 (14998 similar messages suppressed)");
        assert!(lines.take_summary("refused").is_none() && lines.take_summary("another").is_none());
    }

    #[test]
    fn a_line_after_the_interval_is_written_with_the_number() {
        let lines = LogThrottle::new(Duration::ZERO);
        assert!(lines.record("a", &nowhere(), "one").0.is_some());
        let kept = LogThrottle::new(MIN_INTERVAL);
        kept.record("a", &nowhere(), "one");
        kept.record("a", &nowhere(), "two");
        kept.kinds().get("a").unwrap().written_at -= MIN_INTERVAL;
        assert_eq!(kept.record("a", &nowhere(), "three").0.unwrap(), "three (1 similar messages suppressed)");
    }

    #[test]
    fn kinds_without_end_take_no_memory() {
        let lines = LogThrottle::new(MIN_INTERVAL);
        for n in 0..100_000 {
            lines.record(&format!("kind {n}"), &nowhere(), "line");
        }
        assert!(lines.kinds().len() <= MAX_KINDS);
    }
}
