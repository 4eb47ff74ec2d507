//! Parses the `Range` of an upload session, and the `Content-Range` of a partial response.

/// Part of a blob that an upload session reports to hold. See [`parse_session_range`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRange {
    /// This many bytes from the start.
    Held(u64),
    /// `0-0`: one byte by the specification, since the end is inclusive, but distribution sends it for an empty
    /// session, too. Either reading would be wrong for some registry.
    NoneOrOne,
}

impl SessionRange {
    /// Returns the offset to continue from after `sent` bytes were sent; `None` if no offset is certain, so that the
    /// upload must be restarted.
    ///
    /// It never exceeds what the session holds: a gap would only be detected once the whole blob is sent. So `0-0`
    /// after bytes were sent is `None` (little is lost), and so is a session that reports more than was sent.
    ///
    /// ```
    /// use imgsync_registry::range::parse_session_range;
    ///
    /// let held = parse_session_range("0-1023").unwrap();
    /// assert_eq!(held.continue_from(4096), Some(1024));
    /// assert_eq!(held.continue_from(1000), None);
    /// ```
    pub fn continue_from(self, sent: u64) -> Option<u64> {
        match self {
            Self::Held(held) if held <= sent => Some(held),
            Self::NoneOrOne if sent == 0 => Some(0),
            Self::Held(_) | Self::NoneOrOne => None,
        }
    }
}

/// Parses the `Range` of an upload session: `0-1023`, `bytes=0-1023`, and `0--1` if the end was computed as the length
/// minus one. `None` for ranges that do not start at 0, and for an empty value.
pub fn parse_session_range(value: &str) -> Option<SessionRange> {
    let range = strip_unit(value.trim());
    let (start, end) = range.split_once('-')?;
    if number(start)? != 0 {
        return None;
    }
    match end.trim() {
        "-1" => Some(SessionRange::Held(0)),
        end => match number(end)? {
            0 => Some(SessionRange::NoneOrOne),
            last => last.checked_add(1).map(SessionRange::Held),
        },
    }
}

/// Parses a `Content-Range`: first byte, last byte (inclusive) and, unless it is `*`, the total length. `None` for
/// impossible numbers, and for `bytes */10`, which accompanies a 416.
pub fn parse_content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = strip_unit(value.trim()).split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, last, total))
}

/// Strips a leading `bytes` and its separator.
fn strip_unit(value: &str) -> &str {
    match value.split_at_checked(5) {
        Some((unit, rest)) if unit.eq_ignore_ascii_case("bytes") => {
            rest.trim_start_matches(|c: char| c == '=' || c == ':' || c.is_whitespace())
        }
        _ => value,
    }
}

/// Accepts digits only: `u64` would accept a `+`, too.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn session_ranges_in_use() {
        use SessionRange::{Held, NoneOrOne};
        for (value, held) in [
            ("0-1023", Some(Held(1024))),
            ("bytes=0-1023", Some(Held(1024))),
            ("Bytes 0-1023", Some(Held(1024))),
            (" 0 - 1 ", Some(Held(2))),
            ("0-0", Some(NoneOrOne)),
            ("bytes=0-0", Some(NoneOrOne)),
            ("0--1", Some(Held(0))),
            ("bytes=0--1", Some(Held(0))),
            ("", None),
            ("bytes=", None),
            ("1023", None),
            ("0-", None),
            ("-5", None),
            ("5-9", None),
            ("0-+9", None),
            ("0--2", None),
            ("0-9,20-29", None),
            ("0-18446744073709551615", None),
            ("0-99999999999999999999999", None),
        ] {
            assert_eq!(parse_session_range(value), held, "{value:?}");
        }
    }

    #[test]
    fn an_offset_is_never_more_than_is_certain() {
        assert_eq!(SessionRange::NoneOrOne.continue_from(0), Some(0));
        assert_eq!(SessionRange::NoneOrOne.continue_from(1), None);
        assert_eq!(SessionRange::NoneOrOne.continue_from(500), None);
        assert_eq!(SessionRange::Held(500).continue_from(500), Some(500));
        assert_eq!(SessionRange::Held(501).continue_from(500), None);
    }

    #[test]
    fn content_ranges() {
        for (value, range) in [
            ("bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-9/*", Some((5, 9, None))),
            ("BYTES=0-0/1", Some((0, 0, Some(1)))),
            ("5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(value), range, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(value in "(bytes|[0-9]{1,25}|[-=/* ]|\\PC){0,8}") {
            parse_session_range(&value);
            parse_content_range(&value);
        }

        #[test]
        fn never_over_estimates(last in any::<u64>(), sent in any::<u64>()) {
            if let Some(offset) = parse_session_range(&format!("0-{last}")).and_then(|held| held.continue_from(sent)) {
                prop_assert!(offset <= sent);
                prop_assert!(u128::from(offset) <= u128::from(last) + 1);
            }
        }
    }
}
