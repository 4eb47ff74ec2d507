//! Mutations of inputs.

use rand::Rng as _;
use rand::rngs::StdRng;

/// Tokens that often break parsers of HTTP and JSON.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"[]",
    b"{}",
    b"\"\"",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"1e400",
    b"NaN",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{\"a\":",
    b"[[[[[[[[",
    b",",
    b":",
    b";",
    b"=",
    b"<",
    b">",
    b"..",
    b"/../",
    b"%2e%2e",
    b"%00",
    b"\0",
    b"\r\n",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"bytes ",
    b"bytes=",
    b"0-",
    b"-0",
    b"*/",
    b"rel=\"next\"",
    b"Bearer ",
    b"Basic ",
    b"realm=\"",
    b"scope=\"",
    b"sha256:",
    b"sha512:",
    b"://",
    b"http://",
    b"https://",
    b"@",
    b"[::1]",
    b"169.254.169.254",
    b"Thu, 01 Jan 1970 00:00:00 GMT",
    b"Fri, 31 Dec 9999 23:59:59 GMT",
    b"<html><title>",
    b"</title>",
    b"\"errors\":[",
    b"\"mediaType\":",
    b"\"manifests\":",
    b"\"digest\":",
    b"\"size\":",
    b"\"tags\":",
    b"\"child\":",
];

/// Applies one to a few mutations to `input`; `other` is used for crossover.
pub(super) fn mutate(rng: &mut StdRng, input: &[u8], other: &[u8], largest: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..=5) {
        change(rng, &mut bytes, other);
        bytes.truncate(largest);
    }
    bytes
}

fn change(rng: &mut StdRng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.random_range(0..=bytes.len());
    let end = (at + rng.random_range(1..=16)).min(bytes.len());
    match rng.random_range(0..9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => _ = bytes.drain(at..end),
        3 => {
            let token = TOKENS[rng.random_range(0..TOKENS.len())];
            _ = bytes.splice(at..at, token.iter().copied());
        }
        4 => {
            let token = TOKENS[rng.random_range(0..TOKENS.len())];
            _ = bytes.splice(at..end, token.iter().copied());
        }
        5 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let to = rng.random_range(from..=other.len());
            _ = bytes.splice(at..end, other[from..to].iter().copied());
        }
        // Repetition exposes quadratic time and deep nesting.
        6 => {
            let piece = match bytes[at..end].is_empty() {
                true => TOKENS[rng.random_range(0..TOKENS.len())].to_vec(),
                false => bytes[at..end].to_vec(),
            };
            let times = 1 << rng.random_range(1..=14);
            _ = bytes.splice(at..at, piece.repeat(times));
        }
        7 => bytes.truncate(at),
        _ => {
            let digits = rng.random::<u64>() >> rng.random_range(0..64);
            _ = bytes.splice(at..end, digits.to_string().into_bytes());
        }
    }
}
