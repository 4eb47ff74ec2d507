//! Parses docker-registry's access log.

use std::collections::HashMap;

/// A request in docker-registry's access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// Response status.
    pub status: u16,
    /// Bytes of the response body.
    pub sent: u64,
}

/// Parses the requests of a log in the Common Log Format.
pub(super) fn parse(log: &str) -> Vec<LoggedRequest> {
    log.lines().filter_map(parse_line).collect()
}

/// `127.0.0.1 - - [25/Nov/2026:03:04:05 +0000] "GET /v2/ HTTP/1.1" 200 2 "" "skopeo/1.9"`
fn parse_line(line: &str) -> Option<LoggedRequest> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut request = request.split(' ');
    let (method, uri) = (request.next()?, request.next()?);
    request.next().filter(|protocol| protocol.starts_with("HTTP/"))?;
    let mut numbers = rest.split(' ');
    let status = numbers.next()?.parse().ok()?;
    let sent = numbers.next()?.parse().ok()?;
    Some(LoggedRequest { method: method.to_owned(), uri: uri.to_owned(), status, sent })
}

/// Counts each `METHOD status`.
pub(super) fn count_by_method_and_status(requests: &[LoggedRequest]) -> HashMap<String, u64> {
    let mut tally = HashMap::new();
    for request in requests {
        *tally.entry(format!("{} {}", request.method, request.status)).or_default() += 1;
    }
    tally
}
