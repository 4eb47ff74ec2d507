//! Documented limits of configurations.

use imgsync_oci::limits::{DocsPage, Limit};

/// Returns the documented limits of configurations.
pub fn limits() -> Vec<Limit> {
    use DocsPage::Security;
    vec![
        Limit::bytes(Security, "a configuration", crate::MAX_FILE_BYTES as u64, "the configuration is refused"),
        Limit::count(Security, "values in a configuration", crate::MAX_VALUES as u64, "the configuration is refused"),
        Limit::bytes(
            Security,
            "bytes added to a configuration by aliases and variables",
            crate::MAX_ADDED_BYTES as u64,
            "the configuration is refused",
        ),
        Limit::count(
            Security,
            "problems shown for a configuration",
            crate::MAX_SHOWN_PROBLEMS as u64,
            "the rest are counted",
        ),
        Limit::count(
            Security,
            "characters of a rule's name",
            crate::MAX_RULE_NAME as u64,
            "the configuration is refused",
        ),
        Limit::count(
            Security,
            "public keys of a `policy`",
            crate::MAX_POLICY_KEYS as u64,
            "the configuration is refused",
        ),
    ]
}
