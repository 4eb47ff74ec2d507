//! Sizes and times in reports.

use std::time::Duration;

use bytesize::ByteSize;

/// 1536 → 1.5 KiB.
pub(super) fn bytes(number: u64) -> String {
    ByteSize(number).to_string()
}

/// 4000.0 → 1 h 06 min.
pub(super) fn duration(seconds: f64) -> String {
    let span = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let whole = span.as_secs();
    match seconds {
        s if s < 0.95 => format!("{} ms", span.as_millis()),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", whole / 60, whole % 60),
        s if s < 86_400.0 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
    }
}
