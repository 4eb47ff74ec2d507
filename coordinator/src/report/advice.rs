//! Titles of the error kinds, and advice on each.

use imgsync_common::error::ErrorKind;

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
        ErrorKind::InvalidResponse => "Bad answer",
        ErrorKind::Insecure => "Insecure",
        ErrorKind::Invalid => "Invalid",
        ErrorKind::Local => "On this machine",
        ErrorKind::Collision => "Collision of names",
        ErrorKind::Immutable => "Immutable",
        ErrorKind::Differs => "Different at the target",
        ErrorKind::Cancelled => "Cancelled",
    }
}

/// Returns the advice on an error kind.
pub(crate) fn for_kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => {
            "The source does not have it any more, or never had: run again, which lists afresh; exclude the tag if it stays away."
        }
        ErrorKind::Denied => {
            "Log in, or check the credentials of the registry that the error names: it wants to be pulled from, or pushed to, by somebody else."
        }
        ErrorKind::TokenExpired => {
            "The token ran out while bytes were moving: requeue; with slow lines give images more time (--timeout)."
        }
        ErrorKind::RateLimited => {
            "Requeue later. Log in for a higher limit, and set `requests_per_second` for the registry so that it is not asked too fast."
        }
        ErrorKind::Unreachable => {
            "Check name, port, proxy and network of the registry that the error names; then requeue."
        }
        ErrorKind::TimedOut => {
            "Requeue; if it happens again, give images more time (--timeout) or copy fewer at a time (--concurrency)."
        }
        ErrorKind::ServerError => "The registry itself failed: requeue; if it stays so, ask those who run it.",
        ErrorKind::Corrupt => {
            "What the source sent is not what its digest says, and nothing of it was published: the image is broken there, or something between changes bytes."
        }
        ErrorKind::Refused => {
            "The target does not take this: its quota, its rules for names or for content. Its words are in the error."
        }
        ErrorKind::Incomplete => "The target lost something that it had said it has: requeue, and it is sent again.",
        ErrorKind::Unsupported => {
            "Content that cannot be copied as it is, or a platform that the image lacks: see the error; choose other `platforms`, or exclude its tag."
        }
        ErrorKind::Outdated => {
            "An image of an old kind (Docker schema 1) that nobody takes any more: exclude its tag, or build it again."
        }
        ErrorKind::InvalidResponse => {
            "Something that is no registry answered, such as a proxy or a login page: check address and `endpoint`."
        }
        ErrorKind::Insecure => {
            "A certificate or an address is not to be trusted: set `ca` for the registry, or `allow_private` if it is meant so. Or the store was altered: docs/security.md."
        }
        ErrorKind::Invalid => "Something in the configuration cannot be meant so: `imgsync config check` says more.",
        ErrorKind::Local => "A file, a disk or a program on this machine: the error says which.",
        ErrorKind::Collision => {
            "Two sources want the same target: give one of the rules another `naming` or another `to`."
        }
        ErrorKind::Immutable => {
            "The tag is not to be moved, by the target's settings or by `immutable`, and the source has something else under it by now: find out why it was moved; exclude the tag, or copy it once with `imgsync sync`."
        }
        ErrorKind::Differs => {
            "The target lacks something that the source has, or has something else: `imgsync run --force` brings it."
        }
        ErrorKind::Cancelled => "It was stopped on request; run again to go on.",
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const BEGIN: &str = "<!-- The table is written by a test: UPDATE_DOCS=1 cargo nextest run classes -->";
    const END: &str = "<!-- The end of the table -->";

    /// Rewritten by `UPDATE_DOCS=1 cargo nextest run classes`.
    #[test]
    fn the_operating_page_explains_all_error_kinds() {
        let mut table = String::from("\n| class | | what to do |\n|---|---|---|\n");
        for kind in ErrorKind::ALL {
            let _ = writeln!(table, "| `{}` | {} | {} |", kind.as_str(), title(kind), for_kind(kind));
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
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
