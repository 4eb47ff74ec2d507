//! Masks known secrets in external text as `***`.
//!
//! A registry can send back what it received: in an error body, a redirect or a quoted header. So each [`Secret`] is
//! masked while it is alive, and a replaced token for some time longer, in all text that is made printable: verbatim,
//! in another case, percent-encoded, escaped for JSON or HTML (once or twice), inside base64, and truncated. Text that
//! a registry encrypts is not recognised.
//!
//! [`Secret`]: crate::secret::Secret

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Replacement for a secret.
pub(crate) const MASK: &str = "***";
/// Minimum length of a masked secret, in bytes: shorter ones are ordinary words.
pub(crate) const MIN_SECRET_BYTES: usize = 4;
/// Minimum length of a secret that is masked inside a word, in bytes. Shorter ones are masked as whole words only.
pub(crate) const MIN_SUBSTRING_BYTES: usize = 8;
/// Minimum length of a truncated secret that is masked, in bytes.
const MIN_PREFIX_BYTES: usize = 12;
/// Maximum depth of nested encodings that is searched.
const MAX_DECODE_DEPTH: usize = 3;
/// Minimum length of a run of base64 that is searched, in characters.
const MIN_BASE64_CHARS: usize = 6;
/// Maximum number of retired tokens that stay masked, and of their bytes.
pub(crate) const MAX_RETIRED_SECRETS: usize = 1024;
const MAX_RETIRED_BYTES: usize = 4 << 20;
/// Number of latest retired secrets that are checked for duplicates.
const DEDUP_WINDOW: usize = 64;

static KNOWN_SECRETS: Mutex<Option<KnownSecrets>> = Mutex::new(None);

#[derive(Default)]
struct KnownSecrets {
    /// Live secrets, by their first two bytes in lower case.
    live: HashMap<[u8; 2], Vec<Weak<str>>>,
    retired: VecDeque<Arc<str>>,
    retired_bytes: usize,
}

fn known_secrets() -> MutexGuard<'static, Option<KnownSecrets>> {
    KNOWN_SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Masks a secret for as long as it is alive.
pub(crate) fn register(secret: &Arc<str>) {
    let Some(key) = bucket_key(secret.as_bytes()).filter(|_| secret.len() >= MIN_SECRET_BYTES) else { return };
    let mut watched = known_secrets();
    let bucket = watched.get_or_insert_default().live.entry(key).or_default();
    // Drops the secrets that are gone.
    bucket.retain(|other| other.strong_count() > 0);
    bucket.push(Arc::downgrade(secret));
}

/// Keeps masking a secret for some time after its last use: a replaced token may still be valid.
pub(crate) fn retire(secret: &Arc<str>) {
    let mut watched = known_secrets();
    let watched = watched.get_or_insert_default();
    // A secret that is used repeatedly is kept once.
    if watched.retired.iter().rev().take(DEDUP_WINDOW).any(|other| other == secret) {
        return;
    }
    watched.retired_bytes += secret.len();
    watched.retired.push_back(secret.clone());
    while watched.retired.len() > MAX_RETIRED_SECRETS || watched.retired_bytes > MAX_RETIRED_BYTES {
        let Some(oldest) = watched.retired.pop_front() else { break };
        watched.retired_bytes -= oldest.len();
    }
}

fn bucket_key(bytes: &[u8]) -> Option<[u8; 2]> {
    Some([bytes.first()?.to_ascii_lowercase(), bytes.get(1)?.to_ascii_lowercase()])
}

/// Replaces all known secrets in `text` by `***`. Borrows if there are none.
pub fn mask(text: &str) -> Cow<'_, str> {
    let watched = known_secrets();
    let Some(watched) = watched.as_ref().filter(|watched| !watched.live.is_empty()) else { return Cow::Borrowed(text) };
    let mut found = Vec::new();
    let mut units: Vec<SourceByte> =
        text.bytes().enumerate().map(|(at, byte)| SourceByte { byte, start: at, end: at + 1 }).collect();
    for _ in 0..MAX_DECODE_DEPTH {
        watched.find_secrets(&units, &mut found);
        watched.find_in_base64(&units, &mut found);
        match decode_escapes(&units) {
            Some(next) => units = next,
            None => break,
        }
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_by_key(|range| range.start);
    let mut masked = String::with_capacity(text.len());
    let (mut at, mut ended) = (0, None);
    for Range { start, end } in found {
        let start = (0..=start).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let end = (end..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        if end <= at {
            continue;
        }
        if start > at || ended.is_none() {
            masked.push_str(&text[at..start.max(at)]);
            if ended != Some(start) {
                masked.push_str(MASK);
            }
        }
        (at, ended) = (end, Some(end));
    }
    masked.push_str(&text[at..]);
    Cow::Owned(masked)
}

/// A byte of a text, decoded or not, with its position in the text.
#[derive(Clone, Copy)]
struct SourceByte {
    byte: u8,
    start: usize,
    end: usize,
}

impl KnownSecrets {
    /// Appends the ranges of secrets in a text.
    fn find_secrets(&self, units: &[SourceByte], found: &mut Vec<Range<usize>>) {
        let mut at = 0;
        while at < units.len() {
            match self.longest_match_at(units, at) {
                0 => at += 1,
                length => {
                    found.push(units[at].start..units[at + length - 1].end);
                    at += length;
                }
            }
        }
    }

    /// Returns the length of the secret, or of its prefix, that starts at a position; 0 if there is none.
    fn longest_match_at(&self, units: &[SourceByte], at: usize) -> usize {
        let bytes = &units[at..];
        let Some([first, second]) = bytes.get(..2).map(|two| [two[0].byte, two[1].byte]) else { return 0 };
        // A space may be written as `+`.
        let readings = |byte: u8| [Some(byte.to_ascii_lowercase()), (byte == b'+').then_some(b' ')];
        let keys = readings(first)
            .into_iter()
            .flatten()
            .flat_map(|first| readings(second).into_iter().flatten().map(move |second| [first, second]));
        let secrets = keys.filter_map(|key| self.live.get(&key)).flatten().filter_map(Weak::upgrade);
        let is_word = |unit: Option<&SourceByte>| unit.is_some_and(|unit| unit.byte.is_ascii_alphanumeric());
        secrets
            .map(|secret| {
                let pairs = bytes.iter().zip(secret.as_bytes());
                let same = pairs.take_while(|(unit, wanted)| bytes_match(unit.byte, **wanted)).count();
                let stands_alone = || !is_word(at.checked_sub(1).map(|at| &units[at])) && !is_word(bytes.get(same));
                match same {
                    same if same == secret.len() && (same >= MIN_SUBSTRING_BYTES || stands_alone()) => same,
                    same if same < secret.len() && same >= MIN_PREFIX_BYTES => same,
                    _ => 0,
                }
            })
            .max()
            .unwrap_or(0)
    }

    /// Appends the ranges of base64 runs that contain a secret at any offset.
    fn find_in_base64(&self, units: &[SourceByte], found: &mut Vec<Range<usize>>) {
        let mut at = 0;
        while at < units.len() {
            let length = units[at..].iter().take_while(|unit| base64_value(unit.byte).is_some()).count();
            if length >= MIN_BASE64_CHARS {
                let run = &units[at..at + length];
                let padding = units[at + length..].iter().take(2).take_while(|unit| unit.byte == b'=').count();
                if (0..4).any(|skip| self.contains_secret(&decode_base64(&run[skip..]))) {
                    found.push(run[0].start..units[at + length + padding - 1].end);
                }
            }
            at += length.max(1);
        }
    }

    fn contains_secret(&self, bytes: &[u8]) -> bool {
        let units: Vec<SourceByte> = bytes.iter().map(|&byte| SourceByte { byte, start: 0, end: 0 }).collect();
        (0..units.len()).any(|at| self.longest_match_at(&units, at) > 0)
    }
}

fn bytes_match(found: u8, wanted: u8) -> bool {
    found.eq_ignore_ascii_case(&wanted) || (found == b'+' && wanted == b' ')
}

/// Returns the value of a base64 character, in either alphabet.
fn base64_value(byte: u8) -> Option<u32> {
    Some(match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

fn decode_base64(run: &[SourceByte]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(run.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for unit in run {
        bits = (bits << 6) | base64_value(unit.byte).unwrap_or_default();
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

/// Decodes the escapes of a text; `None` if it has none.
fn decode_escapes(units: &[SourceByte]) -> Option<Vec<SourceByte>> {
    let mut all = Vec::with_capacity(units.len());
    let (mut at, mut any) = (0, false);
    while at < units.len() {
        let rest = &units[at..];
        let escape = match rest[0].byte {
            b'%' => unescape_percent(rest),
            b'\\' => unescape_json(rest),
            b'&' => unescape_html(rest),
            _ => None,
        };
        match escape {
            Some((c, length)) => {
                any = true;
                let (start, end) = (rest[0].start, rest[length - 1].end);
                match c {
                    Unescaped::Byte(byte) => all.push(SourceByte { byte, start, end }),
                    Unescaped::Char(c) => {
                        let mut buffer = [0; 4];
                        all.extend(c.encode_utf8(&mut buffer).bytes().map(|byte| SourceByte { byte, start, end }));
                    }
                }
                at += length;
            }
            None => {
                all.push(rest[0]);
                at += 1;
            }
        }
    }
    any.then_some(all)
}

enum Unescaped {
    Byte(u8),
    Char(char),
}

fn parse_hex(units: &[SourceByte]) -> Option<u32> {
    units.iter().try_fold(0_u32, |value, unit| Some(value.checked_mul(16)? + char::from(unit.byte).to_digit(16)?))
}

/// Decodes `%2F` (RFC 3986).
fn unescape_percent(units: &[SourceByte]) -> Option<(Unescaped, usize)> {
    let byte = parse_hex(units.get(1..3)?)?;
    Some((Unescaped::Byte(u8::try_from(byte).ok()?), 3))
}

/// Decodes `\"`, `\\`, `\/`, `\u0026` (RFC 8259).
fn unescape_json(units: &[SourceByte]) -> Option<(Unescaped, usize)> {
    match units.get(1)?.byte {
        byte @ (b'"' | b'\\' | b'/') => Some((Unescaped::Byte(byte), 2)),
        b'u' => Some((Unescaped::Char(char::from_u32(parse_hex(units.get(2..6)?)?)?), 6)),
        _ => None,
    }
}

/// Decodes `&amp;`, `&#39;`, `&#x27;` (HTML).
fn unescape_html(units: &[SourceByte]) -> Option<(Unescaped, usize)> {
    const MAX_ENTITY_CHARS: usize = 10;
    let length = units.iter().take(MAX_ENTITY_CHARS).position(|unit| unit.byte == b';')?;
    let name = &units[1..length];
    let c = match name.iter().map(|unit| unit.byte).collect::<Vec<_>>().as_slice() {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x' | b'X', ..] => char::from_u32(parse_hex(&name[2..])?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        _ => return None,
    };
    Some((Unescaped::Char(c), length + 1))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn a_secret_is_masked_however_it_is_written() {
        let secret = Secret::new("p@ss/w#rd? &\"\\ü%41+x");
        let text = secret.expose().to_owned();
        let form: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
        let json = serde_json::to_string(&text).unwrap();
        let html = text.replace('&', "&amp;").replace('"', "&quot;").replace('+', "&#43;");
        let percent: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let twice = percent.replace('%', "%25");
        let in_base64 = ["", "a", "ab", "user:", "{\"password\":\""].map(|before| {
            [STANDARD.encode(format!("{before}{text}!")), URL_SAFE_NO_PAD.encode(format!("{before}{text}!"))]
        });
        let mut written = vec![text.clone(), text.to_uppercase(), form, json, html, percent, twice];
        written.extend(in_base64.into_iter().flatten());
        written.push(STANDARD.encode(format!("user:{text}")).replace('=', "%3D").replace('+', "%2B"));
        for written in written {
            let said = format!("invalid login \u{1f511} {written}, go away");
            let shown = mask(&said);
            assert!(shown.contains("***") && shown.contains("go away"), "{said}: {shown}");
            for part in ["ss/w", "w#rd", "ss%2f", &written] {
                assert!(!shown.to_lowercase().contains(&part.to_lowercase()), "{said}: {shown}");
            }
        }
        drop(secret);
        assert_eq!(mask(&text), text, "what nobody holds any more is not watched for");
    }

    #[test]
    fn a_beginning_that_was_cut_off_is_masked() {
        let secret = Secret::new("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl");
        assert_eq!(mask("bad token eyJhbGciOiJSUzI1NiJ9.eyJzd"), "bad token ***");
        assert_eq!(mask("bad token eyJhbGci"), "bad token eyJhbGci", "which says nothing");
        drop(secret);
    }

    #[test]
    fn a_short_secret_is_masked_as_a_whole_word_and_a_shorter_one_never() {
        let (short, shorter) = (Secret::new("12/34"), Secret::new("abc"));
        assert_eq!(mask("Bearer 12/34, or (12/34)"), "Bearer ***, or (***)");
        assert_eq!(mask("112/345 abc"), "112/345 abc");
        drop((short, shorter));
    }

    #[test]
    fn secrets_side_by_side_and_within_each_other_leave_nothing() {
        let secrets = [Secret::new("first-secret"), Secret::new("second-secret"), Secret::new("first-secret-and-more")];
        assert_eq!(mask("first-secretsecond-secret"), "***");
        assert_eq!(mask("<first-secret-and-more>"), "<***>");
        assert_eq!(mask("first-secret first-secret"), "*** ***");
        drop(secrets);
    }

    #[test]
    fn retired_tokens_are_kept_within_a_bound() {
        let mut first = Secret::new("the-first-token");
        first.keep_masked();
        first = Secret::new("another-token");
        assert_eq!(mask("the-first-token"), "***");
        for number in 0..MAX_RETIRED_SECRETS {
            Secret::new(format!("token-number-{number}")).keep_masked();
        }
        assert_eq!(mask("the-first-token"), "the-first-token");
        Secret::new("x".repeat(MAX_RETIRED_BYTES + 1)).keep_masked();
        let watched = known_secrets();
        let watched = watched.as_ref().unwrap();
        assert!(watched.retired.is_empty() && watched.retired_bytes == 0);
        drop(first);
    }

    proptest! {
        #[test]
        fn what_holds_no_secret_stays_and_nothing_panics(text in "\\PC{0,80}|[%&\\\\a-f0-9;#xu+/=-]{0,80}", secret in "\\PC{0,20}") {
            let secret = Secret::new(secret);
            let masked = mask(&text).into_owned();
            if secret.expose().len() >= MIN_SUBSTRING_BYTES {
                let said = format!("a {} b", secret.expose());
                let masked = mask(&said).into_owned();
                prop_assert!(!masked.contains(secret.expose()), "{}", masked);
            }
            drop(secret);
            prop_assert_eq!(mask(&text).into_owned(), text.clone());
            prop_assert!(masked == text || masked.contains(MASK));
        }
    }
}
