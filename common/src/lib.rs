//! Code shared by the imgsync programs: OCI types, the registry client, configuration, batches, queue and store, and
//! common errors and events.

pub mod batch;
pub(crate) mod canonical;
pub mod caught;
pub mod config;
pub mod error;
pub mod event;
pub mod generational;
pub mod image;
pub mod layout;
pub mod limits;
pub mod mask;
pub mod naming;
pub mod outage;
pub mod printable;
pub mod private;
pub mod queue;
pub mod registry;
pub mod repeated;
pub mod retry;
pub mod schedule;
pub mod secret;
pub mod select;
pub mod store;
pub mod vendor;
pub mod wait;
