//! CPU and memory usage from /proc.

use std::fs;

/// CPU time since boot, summed over all processors.
#[derive(Clone, Copy, Debug)]
pub struct CpuTimes {
    idle: u64,
    all: u64,
}

impl CpuTimes {
    /// Reads the current values.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks: Vec<u64> =
            stat.lines().next().unwrap_or_default().split_whitespace().filter_map(|ticks| ticks.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; the remaining fields are included in the first two.
        Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().take(8).sum() }
    }

    /// Returns the idle share since a snapshot, from 0 to 1.
    pub fn idle_since(then: Self) -> f64 {
        let now = Self::now();
        let all = now.all.saturating_sub(then.all).max(1);
        now.idle.saturating_sub(then.idle) as f64 / all as f64
    }
}

/// Returns the CPU time of a process in seconds; 0 if it does not exist.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain anything. After it comes the state; utime and stime are fields 12 and 13.
    let fields: Vec<_> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Returns the resident memory of a process in bytes; 0 if it does not exist.
pub fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    line.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// Returns the CPU time, in seconds, of the children of this process that have ended and were waited for. The kernel adds
/// exact times, so the difference over several children is finer than a clock tick for each.
pub fn children_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // As above; cutime and cstime follow utime and stime.
    let fields: Vec<_> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or_default();
    (ticks(13) + ticks(14)) as f64 / rustix::param::clock_ticks_per_second() as f64
}
