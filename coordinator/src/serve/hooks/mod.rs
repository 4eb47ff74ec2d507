//! Hooks: `POST /hooks/NAME` stores what registries say was pushed (`receive`), and the leader copies it (`service`). A
//! notification says where to look, never what to copy.

mod debounce;
mod image_reader;
mod proof;
mod receive;
mod service;

pub(super) use image_reader::watch_named_images;
#[cfg(test)]
pub(crate) use receive::MAX_HOOK_BYTES;
pub(super) use receive::{BODY_PERMITS, UNPROVED_BODY_PERMITS, routes};
pub(super) use service::PushService;
