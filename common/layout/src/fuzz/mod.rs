//! Fuzzing of archives and of the files of layouts. The engine is that of `imgsync-registry`.

#[macro_use]
#[path = "../../../registry/src/fuzz/engine.rs"]
mod engine;
#[path = "../../../registry/src/fuzz/mutate.rs"]
mod mutate;
mod tar_checksums;
mod targets;
