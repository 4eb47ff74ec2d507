//! Documented limits of the store.

use imgsync_oci::limits::{DocsPage, Limit};

use crate::{
    CLOCK_TOLERANCE, MAX_ALL_PUSHES, MAX_DEADLINE_AHEAD, MAX_PENDING_PUSHES, MAX_PUSH_IDS, PROOF_TTL, PUSH_ID_TTL,
    log_throttle,
};

/// Returns the documented limits of the store.
pub fn limits() -> Vec<Limit> {
    vec![
        Limit::time(
            DocsPage::Operating,
            "interval between repeated log messages of one kind",
            log_throttle::MIN_INTERVAL,
            "messages in between are suppressed; the next one gives their number",
        ),
        Limit::time(
            DocsPage::Operating,
            "clock skew tolerated for timestamps in the store",
            CLOCK_TOLERANCE,
            "a timestamp further in the future is ignored: the tag is checked again, the rule is due again",
        ),
        Limit::time(
            DocsPage::Operating,
            "longest lease or rate-limit hold accepted from the store",
            MAX_DEADLINE_AHEAD,
            "a longer one counts as expired",
        ),
        Limit::time(
            DocsPage::Security,
            "validity of a source's proof that it has a blob",
            PROOF_TTL,
            "the source is asked again",
        ),
        Limit::count(
            DocsPage::Operating,
            "pending pushes of a rule",
            MAX_PENDING_PUSHES as u64,
            "beyond it, the whole rule runs once",
        ),
        Limit::count(
            DocsPage::Operating,
            "pending pushes of a rule, with those that are tried again later",
            MAX_ALL_PUSHES as u64,
            "beyond it, the whole rule runs once",
        ),
        Limit::count(
            DocsPage::Operating,
            "ids of notifications that are remembered",
            MAX_PUSH_IDS as u64,
            "the oldest are forgotten",
        ),
        Limit::time(
            DocsPage::Operating,
            "time for which the ids of notifications are remembered",
            PUSH_ID_TTL,
            "a notification that arrives again later is acted on again",
        ),
    ]
}
