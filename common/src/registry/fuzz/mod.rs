//! Fuzzing of all that reads what the network brings: no panic, no hang, no memory without a bound.
//!
//! Each target is fed its corpus (`common/fuzz/NAME`, a file an input), then mutations of it, for `IMGSYNC_FUZZ_SECONDS`
//! (1 by default). What gives an answer of a new shape joins the corpus of the run; with `IMGSYNC_FUZZ_KEEP=1` it is written
//! there. `IMGSYNC_FUZZ_SEED` repeats a run. An input that fails is written to `common/fuzz/failures` and named.

mod mutate;
mod targets;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use self::mutate::mutate;

/// The longest that one input may take of a processor, which others use too.
const LONGEST: Duration = Duration::from_secs(2);
/// The largest input, in bytes.
const LARGEST: usize = 256 << 10;
/// Inputs that are mutated further, at the most.
const MOST: usize = 4000;
/// The most memory that this process may have had in the end, in KiB.
const MEMORY_KIB: u64 = 512 << 10;

/// What reads; what it found, as a text whose shape tells one way through it from another.
type Target = fn(&[u8]) -> String;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The shape of an answer: its words and marks, however long each is.
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

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs one input. A failure is kept, so that it can be run again.
fn run(name: &str, target: Target, input: &[u8], seed: u64) -> String {
    let began = processor_time();
    let answer = std::panic::catch_unwind(|| target(input));
    let took = processor_time() - began;
    let failed = match &answer {
        Ok(_) if took <= LONGEST => return answer.unwrap_or_default(),
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

fn fuzz(name: &str, target: Target) {
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
        let input = mutate(&mut rng, &inputs[from], &inputs[other], LARGEST);
        runs += 1;
        let answer = run(name, target, &input, seed);
        if shapes.len() < MOST && shapes.insert(shape(&answer)) {
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
    let told = format!("{name}: {runs} inputs, {} shapes, {} MiB at the most, seed {seed}", shapes.len(), peak >> 10);
    assert!(peak <= MEMORY_KIB, "{told}");
    // Shown by those who ask for a test's output.
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{told}");
}
