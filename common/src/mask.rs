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
pub(crate) const MIN_BYTES: usize = 4;
/// Minimum length of a secret that is masked inside a word, in bytes. Shorter ones are masked as whole words only.
pub(crate) const STANDS_ALONE: usize = 8;
/// Minimum length of a truncated secret that is masked, in bytes.
const BEGINNING: usize = 12;
/// Maximum depth of nested encodings that is searched.
const LEVELS: usize = 3;
/// Minimum length of a run of base64 that is searched, in characters.
const MIN_BASE64: usize = 6;
/// Maximum number of retired tokens that stay masked, and of their bytes.
pub(crate) const KEPT: usize = 1024;
const KEPT_BYTES: usize = 4 << 20;
/// Number of latest retired secrets that are checked for duplicates.
const SAME: usize = 64;

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

#[derive(Default)]
struct Watched {
    /// Live secrets, by their first two bytes in lower case.
    live: HashMap<[u8; 2], Vec<Weak<str>>>,
    kept: VecDeque<Arc<str>>,
    kept_bytes: usize,
}

fn watched() -> MutexGuard<'static, Option<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Masks a secret for as long as it is alive.
pub(crate) fn watch(secret: &Arc<str>) {
    let Some(key) = key(secret.as_bytes()).filter(|_| secret.len() >= MIN_BYTES) else { return };
    let mut watched = watched();
    let bucket = watched.get_or_insert_default().live.entry(key).or_default();
    // Drops the secrets that are gone.
    bucket.retain(|other| other.strong_count() > 0);
    bucket.push(Arc::downgrade(secret));
}

/// Keeps masking a secret for some time after its last use: a replaced token may still be valid.
pub(crate) fn keep(secret: &Arc<str>) {
    let mut watched = watched();
    let watched = watched.get_or_insert_default();
    // A secret that is used repeatedly is kept once.
    if watched.kept.iter().rev().take(SAME).any(|other| other == secret) {
        return;
    }
    watched.kept_bytes += secret.len();
    watched.kept.push_back(secret.clone());
    while watched.kept.len() > KEPT || watched.kept_bytes > KEPT_BYTES {
        let Some(oldest) = watched.kept.pop_front() else { break };
        watched.kept_bytes -= oldest.len();
    }
}

fn key(bytes: &[u8]) -> Option<[u8; 2]> {
    Some([bytes.first()?.to_ascii_lowercase(), bytes.get(1)?.to_ascii_lowercase()])
}

/// Replaces all known secrets in `text` by `***`. Borrows if there are none.
pub fn mask(text: &str) -> Cow<'_, str> {
    let watched = watched();
    let Some(watched) = watched.as_ref().filter(|watched| !watched.live.is_empty()) else { return Cow::Borrowed(text) };
    let mut found = Vec::new();
    let mut units: Vec<Unit> = text.bytes().enumerate().map(|(at, byte)| Unit { byte, from: at, to: at + 1 }).collect();
    for _ in 0..LEVELS {
        watched.search(&units, &mut found);
        watched.search_base64(&units, &mut found);
        match decoded(&units) {
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
struct Unit {
    byte: u8,
    from: usize,
    to: usize,
}

impl Watched {
    /// Appends the ranges of secrets in a text.
    fn search(&self, units: &[Unit], found: &mut Vec<Range<usize>>) {
        let mut at = 0;
        while at < units.len() {
            match self.longest_at(units, at) {
                0 => at += 1,
                length => {
                    found.push(units[at].from..units[at + length - 1].to);
                    at += length;
                }
            }
        }
    }

    /// Returns the length of the secret, or of its prefix, that starts at a position; 0 if there is none.
    fn longest_at(&self, units: &[Unit], at: usize) -> usize {
        let bytes = &units[at..];
        let Some([first, second]) = bytes.get(..2).map(|two| [two[0].byte, two[1].byte]) else { return 0 };
        // A space may be written as `+`.
        let readings = |byte: u8| [Some(byte.to_ascii_lowercase()), (byte == b'+').then_some(b' ')];
        let keys = readings(first)
            .into_iter()
            .flatten()
            .flat_map(|first| readings(second).into_iter().flatten().map(move |second| [first, second]));
        let secrets = keys.filter_map(|key| self.live.get(&key)).flatten().filter_map(Weak::upgrade);
        let is_word = |unit: Option<&Unit>| unit.is_some_and(|unit| unit.byte.is_ascii_alphanumeric());
        secrets
            .map(|secret| {
                let pairs = bytes.iter().zip(secret.as_bytes());
                let same = pairs.take_while(|(unit, wanted)| is_same(unit.byte, **wanted)).count();
                let stands_alone = || !is_word(at.checked_sub(1).map(|at| &units[at])) && !is_word(bytes.get(same));
                match same {
                    same if same == secret.len() && (same >= STANDS_ALONE || stands_alone()) => same,
                    same if same < secret.len() && same >= BEGINNING => same,
                    _ => 0,
                }
            })
            .max()
            .unwrap_or(0)
    }

    /// Appends the ranges of base64 runs that contain a secret at any offset.
    fn search_base64(&self, units: &[Unit], found: &mut Vec<Range<usize>>) {
        let mut at = 0;
        while at < units.len() {
            let length = units[at..].iter().take_while(|unit| value(unit.byte).is_some()).count();
            if length >= MIN_BASE64 {
                let run = &units[at..at + length];
                let padding = units[at + length..].iter().take(2).take_while(|unit| unit.byte == b'=').count();
                if (0..4).any(|skip| self.is_in(&from_base64(&run[skip..]))) {
                    found.push(run[0].from..units[at + length + padding - 1].to);
                }
            }
            at += length.max(1);
        }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let units: Vec<Unit> = bytes.iter().map(|&byte| Unit { byte, from: 0, to: 0 }).collect();
        (0..units.len()).any(|at| self.longest_at(&units, at) > 0)
    }
}

fn is_same(found: u8, wanted: u8) -> bool {
    found.eq_ignore_ascii_case(&wanted) || (found == b'+' && wanted == b' ')
}

/// Returns the value of a base64 character, in either alphabet.
fn value(byte: u8) -> Option<u32> {
    Some(match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

fn from_base64(run: &[Unit]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(run.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for unit in run {
        bits = (bits << 6) | value(unit.byte).unwrap_or_default();
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
fn decoded(units: &[Unit]) -> Option<Vec<Unit>> {
    let mut all = Vec::with_capacity(units.len());
    let (mut at, mut any) = (0, false);
    while at < units.len() {
        let rest = &units[at..];
        let escape = match rest[0].byte {
            b'%' => percent(rest),
            b'\\' => backslash(rest),
            b'&' => entity(rest),
            _ => None,
        };
        match escape {
            Some((c, length)) => {
                any = true;
                let (from, to) = (rest[0].from, rest[length - 1].to);
                match c {
                    Decoded::Byte(byte) => all.push(Unit { byte, from, to }),
                    Decoded::Char(c) => {
                        let mut buffer = [0; 4];
                        all.extend(c.encode_utf8(&mut buffer).bytes().map(|byte| Unit { byte, from, to }));
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

enum Decoded {
    Byte(u8),
    Char(char),
}

fn hex(units: &[Unit]) -> Option<u32> {
    units.iter().try_fold(0_u32, |value, unit| Some(value.checked_mul(16)? + char::from(unit.byte).to_digit(16)?))
}

/// Decodes `%2F` (RFC 3986).
fn percent(units: &[Unit]) -> Option<(Decoded, usize)> {
    let byte = hex(units.get(1..3)?)?;
    Some((Decoded::Byte(u8::try_from(byte).ok()?), 3))
}

/// Decodes `\"`, `\\`, `\/`, `\u0026` (RFC 8259).
fn backslash(units: &[Unit]) -> Option<(Decoded, usize)> {
    match units.get(1)?.byte {
        byte @ (b'"' | b'\\' | b'/') => Some((Decoded::Byte(byte), 2)),
        b'u' => Some((Decoded::Char(char::from_u32(hex(units.get(2..6)?)?)?), 6)),
        _ => None,
    }
}

/// Decodes `&amp;`, `&#39;`, `&#x27;` (HTML).
fn entity(units: &[Unit]) -> Option<(Decoded, usize)> {
    const LONGEST: usize = 10;
    let length = units.iter().take(LONGEST).position(|unit| unit.byte == b';')?;
    let name = &units[1..length];
    let c = match name.iter().map(|unit| unit.byte).collect::<Vec<_>>().as_slice() {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x' | b'X', ..] => char::from_u32(hex(&name[2..])?)?,
        [b'#', digits @ ..] => char::from_u32(std::str::from_utf8(digits).ok()?.parse().ok()?)?,
        _ => return None,
    };
    Some((Decoded::Char(c), length + 1))
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
    fn a_short_one_is_masked_where_it_stands_alone_and_a_shorter_one_nowhere() {
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
    fn tokens_of_lately_are_kept_within_a_bound() {
        let mut first = Secret::new("the-first-token");
        first.remember();
        first = Secret::new("another-token");
        assert_eq!(mask("the-first-token"), "***");
        for number in 0..KEPT {
            Secret::new(format!("token-number-{number}")).remember();
        }
        assert_eq!(mask("the-first-token"), "the-first-token");
        Secret::new("x".repeat(KEPT_BYTES + 1)).remember();
        let watched = watched();
        let watched = watched.as_ref().unwrap();
        assert!(watched.kept.is_empty() && watched.kept_bytes == 0);
        drop(first);
    }

    proptest! {
        #[test]
        fn what_holds_no_secret_stays_and_nothing_panics(text in "\\PC{0,80}|[%&\\\\a-f0-9;#xu+/=-]{0,80}", secret in "\\PC{0,20}") {
            let secret = Secret::new(secret);
            let masked = mask(&text).into_owned();
            if secret.expose().len() >= STANDS_ALONE {
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
