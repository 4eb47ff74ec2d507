//! Fuzzing of all parsers of network input.

mod engine;
mod mutate;
mod targets;
