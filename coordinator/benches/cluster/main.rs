//! Benchmarks of a cluster with the real programs, RabbitMQ and Redis, as shown in docs/explanation/performance.md.
//!
//! `cargo build --release --bins && cargo bench --bench cluster [-- PART[=SIZE] …]`; all parts where none is named:
//! - `queue=100000`: tasks per second through plan → dispatch → consume → finish with nothing to copy;
//! - `memory=1000000`: memory of the coordinator, and of store and broker per task, for up to so many tasks;
//! - `latency=60`: speedup by more workers with 100 ms latency; tasks per worker;
//! - `unchanged=100000`: unchanged tags;
//! - `traffic=1000`: requests and bytes for this number of tags.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

mod latency;
mod memory;
mod queue;
mod setup;
mod traffic;
mod unchanged;

const PARTS: [(&str, usize); 5] =
    [("queue", 100_000), ("memory", 1_000_000), ("latency", 60), ("unchanged", 100_000), ("traffic", 1_000)];

#[tokio::main]
async fn main() {
    // Cargo adds an argument that starts with dashes.
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let size_of = |name: &str, usual: usize| {
        if asked.is_empty() {
            return Some(usual);
        }
        let (_, size) =
            asked.iter().map(|part| part.split_once('=').unwrap_or((part, ""))).find(|(its, _)| *its == name)?;
        Some(if size.is_empty() { usual } else { size.parse().unwrap() })
    };
    for part in &asked {
        let name = part.split_once('=').map_or(part.as_str(), |(name, _)| name);
        assert!(PARTS.iter().any(|(known, _)| *known == name), "there is no part `{name}`, but: {PARTS:?}");
    }
    setup::describe_machine();
    for (name, usual) in PARTS {
        let Some(size) = size_of(name, usual) else { continue };
        match name {
            "queue" => queue::run(size).await,
            "memory" => memory::run(size).await,
            "latency" => latency::run(size).await,
            "unchanged" => unchanged::run(size).await,
            _ => traffic::run(size).await,
        }
    }
}
