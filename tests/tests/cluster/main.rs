//! The cluster: RabbitMQ and Redis, coordinators and workers, and the guarantees when any of them fails.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod acknowledgement;
mod acl;
mod broker;
mod broker_nodes;
mod chaos;
mod coordinators;
mod fairness;
mod invalid_options;
mod leases;
mod lost_writes;
mod messages;
mod moving_tags;
mod notifications;
mod outages;
mod overlapping_runs;
mod passwords;
mod provenance;
mod prune;
mod queue;
mod rate_limits;
mod referrers;
mod repeated_calls;
mod routes;
mod scale;
mod sentinel;
mod server_restarts;
mod shared_batch;
mod single_flight;
mod store_contract;
mod store_faults;
mod store_startup;
mod support;
mod tampering;
mod throttling;
mod workers;
