//! Titles of the error kinds, and advice on each.

use imgsync_oci::error::ErrorKind;
use serde::Serialize;

/// What to do with images that failed with an error kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NextStep {
    /// Requeue them: the error may pass by itself.
    Requeue,
    /// Remove the cause, then requeue them.
    FixAndRequeue,
    /// Change the rule or the source, then run again: the plan itself is outdated, and requeuing repeats the error.
    ChangeAndRun,
}

/// Returns what to do with images that failed with an error kind.
pub(crate) fn next_step(kind: ErrorKind) -> NextStep {
    match kind {
        ErrorKind::TokenExpired
        | ErrorKind::RateLimited
        | ErrorKind::Unreachable
        | ErrorKind::TimedOut
        | ErrorKind::ServerError
        | ErrorKind::Incomplete => NextStep::Requeue,
        ErrorKind::Denied
        | ErrorKind::Refused
        | ErrorKind::RefusedByPolicy
        | ErrorKind::Corrupt
        | ErrorKind::InvalidResponse
        | ErrorKind::Insecure
        | ErrorKind::Local => NextStep::FixAndRequeue,
        ErrorKind::NotFound
        | ErrorKind::Unsupported
        | ErrorKind::Outdated
        | ErrorKind::Invalid
        | ErrorKind::Collision
        | ErrorKind::Immutable
        | ErrorKind::Differs
        | ErrorKind::Cancelled => NextStep::ChangeAndRun,
    }
}

/// Returns the title of an error kind.
pub(crate) fn title(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "Not found",
        ErrorKind::Denied => "Denied",
        ErrorKind::TokenExpired => "Token expired",
        ErrorKind::RateLimited => "Rate limited",
        ErrorKind::Unreachable => "Unreachable",
        ErrorKind::TimedOut => "Timed out",
        ErrorKind::ServerError => "Server error",
        ErrorKind::Corrupt => "Corrupt",
        ErrorKind::Refused => "Refused",
        ErrorKind::Incomplete => "Incomplete",
        ErrorKind::Unsupported => "Unsupported",
        ErrorKind::Outdated => "Outdated (Docker schema 1)",
        ErrorKind::InvalidResponse => "Invalid response",
        ErrorKind::Insecure => "Insecure",
        ErrorKind::Invalid => "Invalid",
        ErrorKind::Local => "Local error",
        ErrorKind::Collision => "Name collision",
        ErrorKind::Immutable => "Immutable",
        ErrorKind::RefusedByPolicy => "Refused by policy",
        ErrorKind::Differs => "Different at the target",
        ErrorKind::Cancelled => "Cancelled",
    }
}

/// Returns the advice on an error kind.
pub(crate) fn for_kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => {
            "The source no longer has it, or never did: run again to list afresh; exclude the tag if the error \
             persists."
        }
        ErrorKind::Denied => {
            "Log in, or check the credentials of the registry named in the error: they lack pull or push permission."
        }
        ErrorKind::TokenExpired => {
            "The token expired during a transfer: requeue; on slow links give images more time (--timeout)."
        }
        ErrorKind::RateLimited => {
            "Requeue later. Log in for a higher limit, or set `requests_per_second` for the registry to stay below it."
        }
        ErrorKind::Unreachable => {
            "Check name, port, proxy and network of the registry named in the error; then requeue."
        }
        ErrorKind::TimedOut => {
            "Requeue; if it happens again, give images more time (--timeout) or copy fewer at a time (--concurrency)."
        }
        ErrorKind::ServerError => {
            "The registry returned a server error: requeue; if it persists, ask the registry's operator."
        }
        ErrorKind::Corrupt => {
            "The data from the source does not match its digest, and nothing was published: the image is corrupt \
             there, or a proxy alters bytes."
        }
        ErrorKind::Refused => {
            "The target rejected the request: a quota, or a policy for names or content. Its message is in the error."
        }
        ErrorKind::Incomplete => "The target lost a blob or manifest that it had confirmed: requeue to send it again.",
        ErrorKind::Unsupported => {
            "The image cannot be copied unchanged, or lacks a platform: see the error; choose other `platforms`, or \
             exclude its tag."
        }
        ErrorKind::Outdated => {
            "The image is Docker schema 1, which current registries reject: exclude its tag, or rebuild it."
        }
        ErrorKind::InvalidResponse => {
            "The response is not from a registry but, for example, from a proxy or a login page: check address and \
             `endpoint`."
        }
        ErrorKind::Insecure => {
            "A certificate or an address is not trusted: set `ca` for the registry, or `allow_private` if this is \
             intended. Or the store was tampered with: docs/explanation/security.md."
        }
        ErrorKind::Invalid => "The configuration is invalid: `imgsync config check` shows details.",
        ErrorKind::Local => "A file, disk or program on this machine failed: see the error.",
        ErrorKind::Collision => {
            "Two sources map to the same target: set a different `naming` or `to` for one of the rules."
        }
        ErrorKind::Immutable => {
            "The tag is immutable, by the target's settings or by `immutable`, and the source tag has moved: find out \
             why; exclude the tag, or copy it once with `imgsync sync`."
        }
        ErrorKind::RefusedByPolicy => {
            "The rule's `policy` does not allow the image, and nothing was copied: the error says why. Once it is signed, \
             requeue it; every later run checks it again."
        }
        ErrorKind::Differs => {
            "The target lacks content of the source, or has other content: `imgsync run --force` copies it."
        }
        ErrorKind::Cancelled => "Cancelled on request; run again to continue.",
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const BEGIN: &str = "<!-- The table is written by a test: UPDATE_DOCS=1 cargo nextest run -p imgsync advice -->";
    const END: &str = "<!-- The end of the table -->";

    /// Rewritten by `UPDATE_DOCS=1 cargo nextest run -p imgsync advice`.
    #[test]
    fn the_page_of_errors_explains_all_error_kinds() {
        let mut table = String::from("\n| kind | | what to do |\n|---|---|---|\n");
        for kind in ErrorKind::ALL {
            let _ = writeln!(table, "| `{}` | {} | {} |", kind.as_str(), title(kind), for_kind(kind));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/errors.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page says where the table begins");
        let (_, after) = rest.split_once(END).expect("the page says where the table ends");
        let current = format!("{before}{BEGIN}\n{table}\n{END}{after}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), current, "run the tests with UPDATE_DOCS=1");
    }
}
