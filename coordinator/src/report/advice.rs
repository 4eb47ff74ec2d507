//! Titles of the error kinds, and advice on each.

use imgsync_common::error::Class;

/// Returns the title of an error kind.
pub(crate) fn title(class: Class) -> &'static str {
    match class {
        Class::NotFound => "Not found",
        Class::Denied => "Denied",
        Class::TokenExpired => "Token expired",
        Class::RateLimited => "Rate limited",
        Class::Unreachable => "Unreachable",
        Class::TimedOut => "Timed out",
        Class::ServerError => "Server error",
        Class::Corrupt => "Corrupt",
        Class::Refused => "Refused",
        Class::Incomplete => "Incomplete",
        Class::Unsupported => "Unsupported",
        Class::Outdated => "Outdated (Docker schema 1)",
        Class::BadAnswer => "Bad answer",
        Class::Insecure => "Insecure",
        Class::Invalid => "Invalid",
        Class::Local => "On this machine",
        Class::Collision => "Collision of names",
        Class::Immutable => "Immutable",
        Class::Differs => "Different at the target",
        Class::Cancelled => "Cancelled",
    }
}

/// Returns the advice on an error kind.
pub(crate) fn on(class: Class) -> &'static str {
    match class {
        Class::NotFound => {
            "The source does not have it any more, or never had: run again, which lists afresh; exclude the tag if it stays away."
        }
        Class::Denied => {
            "Log in, or check the credentials of the registry that the error names: it wants to be pulled from, or pushed to, by somebody else."
        }
        Class::TokenExpired => {
            "The token ran out while bytes were moving: requeue; with slow lines give images more time (--timeout)."
        }
        Class::RateLimited => {
            "Requeue later. Log in for a higher limit, and set `requests_per_second` for the registry so that it is not asked too fast."
        }
        Class::Unreachable => "Check name, port, proxy and network of the registry that the error names; then requeue.",
        Class::TimedOut => {
            "Requeue; if it happens again, give images more time (--timeout) or copy fewer at a time (--concurrency)."
        }
        Class::ServerError => "The registry itself failed: requeue; if it stays so, ask those who run it.",
        Class::Corrupt => {
            "What the source sent is not what its digest says, and nothing of it was published: the image is broken there, or something between changes bytes."
        }
        Class::Refused => {
            "The target does not take this: its quota, its rules for names or for content. Its words are in the error."
        }
        Class::Incomplete => "The target lost something that it had said it has: requeue, and it is sent again.",
        Class::Unsupported => {
            "Content that cannot be copied as it is, or a platform that the image lacks: see the error; choose other `platforms`, or exclude its tag."
        }
        Class::Outdated => {
            "An image of an old kind (Docker schema 1) that nobody takes any more: exclude its tag, or build it again."
        }
        Class::BadAnswer => {
            "Something that is no registry answered, such as a proxy or a login page: check address and `endpoint`."
        }
        Class::Insecure => {
            "A certificate or an address is not to be trusted: set `ca` for the registry, or `allow_private` if it is meant so. Or the store was altered: docs/security.md."
        }
        Class::Invalid => "Something in the configuration cannot be meant so: `imgsync config check` says more.",
        Class::Local => "A file, a disk or a program on this machine: the error says which.",
        Class::Collision => "Two sources want the same target: give one of the rules another `naming` or another `to`.",
        Class::Immutable => {
            "The tag is not to be moved, by the target's settings or by `immutable`, and the source has something else under it by now: find out why it was moved; exclude the tag, or copy it once with `imgsync sync`."
        }
        Class::Differs => {
            "The target lacks something that the source has, or has something else: `imgsync run --force` brings it."
        }
        Class::Cancelled => "It was stopped on request; run again to go on.",
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
    fn the_page_for_operators_explains_all_classes() {
        let mut table = String::from("\n| class | | what to do |\n|---|---|---|\n");
        for class in Class::ALL {
            let _ = writeln!(table, "| `{}` | {} | {} |", class.as_str(), title(class), on(class));
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
