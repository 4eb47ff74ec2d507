//! Dates in errors of the TLS library, which prints times as seconds since 1970.

use std::borrow::Cow;

use jiff::Timestamp;

/// Marks an error that contains such times.
const MARK: &str = " (UNIX)";
/// Words before each of them.
const BEFORE: [&str; 3] = ["verification time ", "is not valid after ", "is not valid before "];
/// Words before the age in seconds, which the dates make superfluous.
const AGES: [&str; 2] = [" seconds ago)", " seconds in future)"];

/// Rewrites the times in a certificate error as dates: `certificate expired: verification time 2026-11-29 16:00 UTC, but
/// certificate is not valid after 2025-01-01 00:00 UTC`. Works on the text, because clients of brokers, stores and mail
/// servers pass nothing else on.
pub fn with_dates(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut dated = text.replace(MARK, "");
    for words in BEFORE {
        let mut from = 0;
        while let Some(found) = dated[from..].find(words) {
            let start = from + found + words.len();
            let digits = dated[start..].bytes().take_while(u8::is_ascii_digit).count();
            let date =
                dated[start..start + digits].parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            if let Some(date) = date {
                dated.replace_range(start..start + digits, &date.strftime("%Y-%m-%d %H:%M UTC").to_string());
            }
            from = start;
        }
    }
    for words in AGES {
        while let Some(end) = dated.find(words)
            && let Some(start) = dated[..end].rfind(" (")
        {
            dated.replace_range(start..end + words.len(), "");
        }
    }
    Cow::Owned(dated)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::UnixTime;
    use rustls::{CertificateError, Error};

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn certificate_errors_contain_dates_instead_of_seconds() {
        let (early, late) = (at(1_735_689_600), at(1_795_968_000));
        let expired = CertificateError::ExpiredContext { time: late, not_after: early };
        let too_new = CertificateError::NotValidYetContext { time: early, not_before: late };
        let list = CertificateError::ExpiredRevocationListContext { time: late, next_update: early };
        for (error, words) in [
            (
                expired,
                "verification time 2026-11-29 16:00 UTC, but certificate is not valid after 2025-01-01 00:00 UTC",
            ),
            (
                too_new,
                "verification time 2025-01-01 00:00 UTC, but certificate is not valid before 2026-11-29 16:00 UTC",
            ),
            (list, "verification time 2026-11-29 16:00 UTC, but CRL is not valid after 2025-01-01 00:00 UTC"),
        ] {
            let text = format!("connecting: {}; trying again", Error::InvalidCertificate(error));
            let dated = with_dates(&text);
            assert!(dated.ends_with(&format!("{words}; trying again")), "{dated}");
        }
        assert_eq!(with_dates("not valid after 5"), "not valid after 5");
    }
}
