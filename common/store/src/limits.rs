//! Documented limits of the store.

use imgsync_oci::limits::{DocsPage, Limit};

use crate::{CLOCK_TOLERANCE, MAX_DEADLINE_AHEAD, PROOF_TTL, log_throttle};

/// Returns the documented limits of the store.
pub fn limits() -> Vec<Limit> {
    vec![
        Limit::time(
            DocsPage::Operating,
            "interval between repeated log messages of one kind",
            log_throttle::MIN_INTERVAL,
            "messages are counted, and the next one gives the number suppressed",
        ),
        Limit::time(
            DocsPage::Operating,
            "clock skew tolerated for timestamps in the store",
            CLOCK_TOLERANCE,
            "the timestamp is ignored: the tag is verified again, the rule is due again",
        ),
        Limit::time(
            DocsPage::Operating,
            "longest lease or rate-limit hold accepted from the store",
            MAX_DEADLINE_AHEAD,
            "it counts as expired",
        ),
        Limit::time(
            DocsPage::Security,
            "validity of a source's proof that it holds a blob",
            PROOF_TTL,
            "the source is asked again",
        ),
    ]
}
