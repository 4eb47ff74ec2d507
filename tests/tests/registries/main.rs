//! Images between registries: what arrives, at what cost.

mod cost;
mod login;
mod real;
mod referrers;
