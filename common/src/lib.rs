//! Code shared by the imgsync programs: OCI types, the registry client, configuration, batches, queue and store, and
//! common errors and events.

pub mod batch;
pub(crate) mod canonical;
pub mod config;
pub mod error;
pub mod event;
pub mod generational;
pub mod image;
pub mod layout;
pub mod limits;
pub mod log_throttle;
pub mod mask;
pub mod naming;
pub mod outage;
pub mod panics;
pub mod private_files;
pub mod queue;
pub mod registry;
pub mod retry;
pub mod sanitize;
pub mod schedule;
pub mod secret;
pub mod select;
pub mod store;
pub mod vendor;
pub mod wait;
