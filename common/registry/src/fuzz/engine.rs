//! Fuzzing of parsers: no panic, no hang, no unbounded memory. Other crates include this file for their own parsers.
//!
//! Each target gets its corpus (`fuzz/NAME` in the folder of the crate, one file per input), then mutations of it, for
//! `IMGSYNC_FUZZ_SECONDS` (1 by default). Inputs whose result has a new shape join the corpus of the run; with
//! `IMGSYNC_FUZZ_KEEP=1` they are written there. `IMGSYNC_FUZZ_SEED` repeats a run. A failing input is written to
//! `fuzz/failures` there and named.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::mutate::mutate;

/// Limit of processor time for one input.
const MAX_INPUT_TIME: Duration = Duration::from_secs(2);
/// Size limit of an input in bytes.
const MAX_INPUT_BYTES: usize = 256 << 10;
/// Limit of inputs that are mutated further.
const MAX_INPUTS: usize = 4000;
/// Limit of this process's peak memory, in KiB.
const MAX_MEMORY_KIB: u64 = 512 << 10;

/// Makes a test of each fuzz target.
macro_rules! targets {
    ($($name:ident = $target:expr;)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name), $target);
        })*
    };
}

/// Parses an input and describes the result; the shape of the text identifies the code path.
pub(super) type FuzzTarget = fn(&[u8]) -> String;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Hashes the shape of a result: its words and punctuation, regardless of their length.
fn shape(answer: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut last = ' ';
    for c in answer.chars().take(4096) {
        let kind = match c {
            'a'..='z' | 'A'..='Z' => 'a',
            '0'..='9' => '0',
            _ => c,
        };
        if kind != last {
            kind.hash(&mut hasher);
        }
        last = kind;
    }
    hasher.finish()
}

/// Processor time used by this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs one input. A failing input is saved, so that it can be run again.
fn run(name: &str, target: FuzzTarget, input: &[u8], seed: u64) -> String {
    let began = processor_time();
    let answer = std::panic::catch_unwind(|| target(input));
    let took = processor_time() - began;
    let failed = match &answer {
        Ok(_) if took <= MAX_INPUT_TIME => return answer.unwrap_or_default(),
        Ok(_) => format!("it took {took:?}"),
        Err(_) => "it panicked".to_owned(),
    };
    let failures = folder().join("failures");
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let file = failures.join(format!("{name}-{:016x}", hasher.finish()));
    let written = std::fs::create_dir_all(&failures).and_then(|()| std::fs::write(&file, input));
    panic!("{name}: {failed}; seed {seed}, the input is in {} ({written:?})", file.display());
}

pub(super) fn fuzz(name: &str, target: FuzzTarget) {
    let seed = number("IMGSYNC_FUZZ_SEED").unwrap_or_else(|| rand::rng().random());
    let limit = Duration::from_secs(number("IMGSYNC_FUZZ_SECONDS").unwrap_or(1));
    let keep = std::env::var_os("IMGSYNC_FUZZ_KEEP").is_some();
    let corpus = folder().join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no corpus");
    let mut inputs: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let mut shapes: HashSet<u64> = inputs.iter().map(|input| shape(&run(name, target, input, seed))).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let (began, mut runs, mut kept) = (Instant::now(), 0_u64, 0);
    while began.elapsed() < limit {
        let from = rng.random_range(0..inputs.len());
        let other = rng.random_range(0..inputs.len());
        let input = mutate(&mut rng, &inputs[from], &inputs[other], MAX_INPUT_BYTES);
        runs += 1;
        let answer = run(name, target, &input, seed);
        if shapes.len() < MAX_INPUTS && shapes.insert(shape(&answer)) {
            // Small ones are worth keeping between runs.
            if keep && input.len() <= 512 && kept < 24 {
                kept += 1;
                std::fs::write(corpus.join(format!("found-{:016x}", shape(&answer))), &input).unwrap();
            }
            inputs.push(input);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.and_then(|peak| peak.trim().parse().ok()).unwrap_or_default();
    let summary =
        format!("{name}: {runs} inputs, {} shapes, {} MiB at the most, seed {seed}", shapes.len(), peak >> 10);
    assert!(peak <= MAX_MEMORY_KIB, "{summary}");
    // Shown when a test's output is requested.
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{summary}");
}
