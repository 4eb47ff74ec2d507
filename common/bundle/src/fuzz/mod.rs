//! Fuzzing of bundles, their indexes and lists of parts, and inventories. The engine is that of `imgsync-registry`.

#[macro_use]
#[path = "../../../registry/src/fuzz/engine.rs"]
mod engine;
#[path = "../../../registry/src/fuzz/mutate.rs"]
mod mutate;
#[path = "../../../layout/src/fuzz/tar_checksums.rs"]
mod tar_checksums;
mod targets;
