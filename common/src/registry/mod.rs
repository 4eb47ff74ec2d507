//! The distribution client: what registries say, and how they are spoken to.

pub mod api_error;
pub mod challenge;
pub mod credentials;
pub mod link;
pub mod range;
pub mod ratelimit;
pub mod retry_after;
