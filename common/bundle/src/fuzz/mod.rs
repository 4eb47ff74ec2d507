//! Fuzzing of bundles, their indexes and lists of parts, and inventories. The engine is that of `imgsync-registry`.

#[path = "../../../registry/src/fuzz/engine.rs"]
mod engine;
#[path = "../../../registry/src/fuzz/mutate.rs"]
mod mutate;
mod targets;
