//! Numbers of a copy, as `imgsync sync` prints them.

use imgsync_oci::Digest;
use imgsync_oci::humanize::{group_digits, pluralize};
use imgsync_registry::TrafficSnapshot;
use imgsync_worker::copy::TransferStats;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct CopyStats<'a> {
    pub(super) digest: &'a Digest,
    pub(super) bytes: TransferStats,
    pub(super) blobs: TransferStats,
    pub(super) manifests: u64,
    pub(super) referrers: u64,
    /// All requests sent; `traffic` counts them by kind.
    pub(super) requests: EndpointRequests,
    pub(super) traffic: EndpointTraffic,
    pub(super) seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct EndpointRequests {
    pub(super) source: u64,
    pub(super) target: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct EndpointTraffic {
    pub(super) source: TrafficSnapshot,
    pub(super) target: TrafficSnapshot,
}

/// Formats the number of requests sent, by endpoint, and how many of them were for referrers and digest tags, for
/// tokens, or redirected.
pub(crate) fn format_requests(source: &TrafficSnapshot, target: &TrafficSnapshot) -> String {
    let (to_source, to_target) = (source.total_requests(), target.total_requests());
    let parts = [
        (source.referrers + target.referrers, "for referrers and digest tags"),
        (source.tokens + target.tokens, "for tokens"),
        (source.redirects + target.redirects, "redirected"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, what)| format!("{} {what}", group_digits(count))).collect();
    let parts = if parts.is_empty() { String::new() } else { format!("; of these, {}", parts.join(", ")) };
    format!(
        "{} ({} to the source, {} to the target{parts})",
        pluralize(to_source + to_target, "request", "requests"),
        group_digits(to_source),
        group_digits(to_target)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_referrers_tokens_and_redirects_are_counted_and_named() {
        let source = TrafficSnapshot { requests: 1, referrers: 2, tokens: 1, ..TrafficSnapshot::default() };
        let target = TrafficSnapshot { requests: 1_000, referrers: 2, redirects: 1, ..TrafficSnapshot::default() };
        assert_eq!(
            format_requests(&source, &target),
            "1,007 requests (4 to the source, 1,003 to the target; of these, 4 for referrers and digest tags, 1 for \
             tokens, 1 redirected)"
        );
        let one = TrafficSnapshot { requests: 1, ..TrafficSnapshot::default() };
        assert_eq!(format_requests(&one, &TrafficSnapshot::default()), "1 request (1 to the source, 0 to the target)");
    }
}
