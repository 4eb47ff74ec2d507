//! The distribution client: what registries say, and how they are spoken to.

pub mod challenge;
pub mod link;
pub mod range;
