//! imgsync compared with a floor: a bare HTTP client that sends the same requests. Both run in turn; prints wall and CPU
//! time, memory and requests of each, ratios, and a table for docs/explanation/performance.md. skopeo does the same once,
//! where it can. The registries store in /dev/shm, if that exists: a disk would be measured instead of a program.
//!
//! `cargo bench --bench wire [-- ROW … pairs=5]`; all rows but `growth` where none is named:
//! - `cold`: 400 tags of small images to an empty docker-registry;
//! - `unchanged`: the same 400 tags again, by one rule with a pattern and by 40 rules;
//! - `one`: one unchanged tag, by `imgsync sync` and `imgsync run`;
//! - `line`, `line-cold`: 200 tags over a line with a round trip of 50 ms, unchanged and cold;
//! - `large`: 1.5 GB in six layers;
//! - `growth`: 10 to 1,000 rules, 1 to 100 layers, 1 to 200 slots.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and fails where it cannot go on")]

mod floor;
mod images;
mod layers;
mod line;
mod measure;
mod registry;
mod rules;
mod server;
mod small_images;
mod table;
mod work_list;

const ROWS: [&str; 7] = ["cold", "unchanged", "one", "line", "line-cold", "large", "growth"];

fn main() {
    if std::env::args().any(|argument| argument == "--floor") {
        return floor::main();
    }
    // Cargo adds an argument that starts with dashes.
    let mut asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let pairs =
        asked.iter().find_map(|argument| argument.strip_prefix("pairs=")).map_or(5, |pairs| pairs.parse().unwrap());
    asked.retain(|argument| !argument.starts_with("pairs="));
    for name in &asked {
        assert!(ROWS.contains(&name.as_str()), "there is no row `{name}`, but: {ROWS:?}");
    }
    if cfg!(debug_assertions) {
        println!("a debug build: these numbers mean little");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rows = Vec::new();
        for name in ROWS {
            let is_asked = if asked.is_empty() { name != "growth" } else { asked.iter().any(|row| row == name) };
            if !is_asked {
                continue;
            }
            match name {
                "cold" => rows.push(small_images::cold(pairs).await),
                "unchanged" => rows.extend(small_images::unchanged(pairs).await),
                "one" => rows.extend(small_images::one(pairs).await),
                "line" => rows.push(line::unchanged(pairs).await),
                "line-cold" => rows.push(line::cold(pairs).await),
                "large" => rows.push(layers::large(pairs).await),
                _ => {
                    rows.extend(rules::unchanged(pairs).await);
                    rows.extend(layers::many(pairs).await);
                    rows.extend(small_images::slots(pairs).await);
                }
            }
        }
        table::print(&rows);
    });
}
