//! Names of repositories, as discovery collects them.

use std::collections::BTreeSet;

use imgsync_model::select::RepositoryPattern;
use imgsync_oci::RepositoryName;
use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::sanitize::sanitize_within;

use super::DiscoveryFailure;
use super::order::HierarchicalName;

/// Upper limit for the invalid names reported.
const MAX_INVALID_NAMES: usize = 100;
/// Upper limit for the characters shown of an invalid name.
const MAX_SHOWN_NAME_CHARS: usize = 300;

/// Names of repositories to list.
#[derive(Debug, Default)]
pub(super) struct RepositoryNames {
    /// Valid names in order.
    pub(super) valid: BTreeSet<HierarchicalName>,
    /// Matching names that are invalid.
    pub(super) invalid: Vec<DiscoveryFailure>,
}

impl RepositoryNames {
    /// Adds a name given by a registry.
    pub(super) fn add(&mut self, pattern: &RepositoryPattern, name: &str) {
        match name.parse::<RepositoryName>() {
            Ok(name) => _ = self.valid.insert(HierarchicalName(name)),
            // Each is kept until the end, so their number is limited.
            Err(_) if self.invalid.len() > MAX_INVALID_NAMES => {}
            Err(_) if self.invalid.len() == MAX_INVALID_NAMES => {
                let repository = format!("{}/…", pattern.registry());
                let detail = "there are more invalid repository names";
                let error = Error::new(ErrorKind::InvalidResponse, format!("listing {pattern}"), detail);
                self.invalid.push(DiscoveryFailure { repository, error });
            }
            Err(error) => {
                let name = sanitize_within(name, MAX_SHOWN_NAME_CHARS);
                let operation = format!("listing {}/{name}", pattern.registry());
                let error = Error::new(ErrorKind::InvalidResponse, operation, error.to_string());
                self.invalid.push(DiscoveryFailure { repository: format!("{}/{name}", pattern.registry()), error });
            }
        }
    }
}
