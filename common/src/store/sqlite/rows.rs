//! Conversion of values to and from columns.

use jiff::Timestamp;

use super::fault::{Fault, damaged};
use crate::batch::Home;
use crate::error::Class;
use crate::image::{Algorithm, Digest};

/// Converts from milliseconds since 1970.
pub(super) fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or_default()
}

/// Converts to an SQLite integer.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Returns a deadline in milliseconds since 1970.
pub(super) fn after(now: i64, wait: std::time::Duration) -> i64 {
    now.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the minimum fencing token at a time, in microseconds: a store restored from a backup does not issue a token
/// twice.
pub(super) fn token_floor(now: i64) -> i64 {
    now.saturating_mul(1000)
}

pub(super) fn millis(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn class(text: &str) -> Result<Class, Fault> {
    serde_json::from_value(text.into()).map_err(|_| damaged("it names a class of failure that there is not").into())
}

pub(super) fn home(end: &str, repository: &str) -> Result<Home, Fault> {
    let end = end.parse().map_err(|_| damaged("it names a registry that cannot be"))?;
    Home::new(end, repository).map_err(|_| damaged("it names a repository that cannot be").into())
}

/// Returns the bytes of a digest: 32 for SHA-256, 64 for SHA-512.
pub(super) fn digest_bytes(digest: &Digest) -> Vec<u8> {
    hex::decode(digest.hex()).unwrap_or_default()
}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Fault> {
    let algorithm = match bytes.len() {
        32 => Algorithm::Sha256,
        64 => Algorithm::Sha512,
        _ => return Err(damaged("a digest has another length").into()),
    };
    format!("{}:{}", algorithm.as_str(), hex::encode(bytes))
        .parse()
        .map_err(|_| damaged("a digest cannot be read").into())
}
