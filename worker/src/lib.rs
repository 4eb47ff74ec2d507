//! The worker of imgsync: moves manifests and blobs from registry to registry.

pub mod copy;
pub mod runner;
