//! Numbers in messages.

pub(crate) use imgsync_oci::humanize::{group_digits, pluralize};
