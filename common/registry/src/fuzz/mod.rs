//! Fuzzing of all parsers of network input.

#[macro_use]
mod engine;
mod mutate;
mod targets;
