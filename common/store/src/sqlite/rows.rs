//! Conversion of values to and from columns.

use jiff::Timestamp;

use super::error::{SqliteError, corrupt_store};
use imgsync_model::batch::RepositoryLocator;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::{Algorithm, Digest};

/// Converts from milliseconds since 1970.
pub(super) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or_default()
}

/// Converts to an SQLite integer.
pub(super) fn to_sql_integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Returns a deadline in milliseconds since 1970.
pub(super) fn deadline_ms(now: i64, wait: std::time::Duration) -> i64 {
    now.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the minimum fencing token at a time, in microseconds: a store restored from a backup does not issue a token
/// twice.
pub(super) fn min_token(now: i64) -> i64 {
    now.saturating_mul(1000)
}

pub(super) fn duration_ms(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn parse_error_kind(text: &str) -> Result<ErrorKind, SqliteError> {
    serde_json::from_value(text.into()).map_err(|_| corrupt_store("unknown error kind").into())
}

pub(super) fn parse_repository(end: &str, repository: &str) -> Result<RepositoryLocator, SqliteError> {
    let end = end.parse().map_err(|_| corrupt_store("invalid registry name"))?;
    RepositoryLocator::new(end, repository).map_err(|_| corrupt_store("invalid repository name").into())
}

/// Returns the bytes of a digest: 32 for SHA-256, 64 for SHA-512.
pub(super) fn digest_bytes(digest: &Digest) -> Vec<u8> {
    hex::decode(digest.hex()).unwrap_or_default()
}

pub(super) fn parse_digest(bytes: &[u8]) -> Result<Digest, SqliteError> {
    let algorithm = match bytes.len() {
        32 => Algorithm::Sha256,
        64 => Algorithm::Sha512,
        _ => return Err(corrupt_store("a digest has an unexpected length").into()),
    };
    format!("{}:{}", algorithm.as_str(), hex::encode(bytes))
        .parse()
        .map_err(|_| corrupt_store("a digest cannot be read").into())
}
