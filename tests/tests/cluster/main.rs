//! The cluster: RabbitMQ and Redis, coordinators and workers, and the guarantees when any of them fails.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod altered;
mod broker;
mod coordinators;
mod fair;
mod fleet;
mod flight;
mod keep;
mod lanes;
mod leases;
mod messages;
mod moves;
mod outages;
mod overlap;
mod pace;
mod passwords;
mod provenance;
mod queue;
mod referrers;
mod repeated;
mod rights;
mod scale;
mod scene;
mod store;
mod store_faults;
mod store_start;
mod stores;
mod storm;
mod taking;
mod throttle;
mod told;
mod unreadable;
mod workers;
