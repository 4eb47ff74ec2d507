//! Test data: a batch in which everything happened, with texts from hostile registries.

use imgsync_model::batch::{BlobBytes, RequestCounts, TaskCounts};

use super::view::*;

/// Text from a hostile registry.
pub(super) const HOSTILE: &str = "</title><script>alert(1)</script>`code` | <img src=x onerror=\"alert(2)\"> [x](javascript:alert(3)) &amp; *b* @all";

/// Returns the report data.
pub(super) fn view() -> ReportData {
    let ends = OutcomeCounts { total: 100_000, copied: 10, unchanged: 99_000, failed: 30, cancelled: 900, open: 60 };
    let image = || ReportFailedImage {
        source: format!("evil.example/{HOSTILE}:1"),
        target: "docker.io/m/a:1".to_owned(),
        error: format!("reading x: {HOSTILE}"),
        attempts: 3,
    };
    ReportData {
        version: "3.0.0".to_owned(),
        name: format!("nightly {HOSTILE}"),
        batch: "0190a1b2-0000-7000-8000-000000000001".to_owned(),
        url: "https://sync.example/#/batches/0190a1b2-0000-7000-8000-000000000001".to_owned(),
        state: "done".to_owned(),
        outcome: "incomplete".to_owned(),
        headline: "30 of 100,000 images failed".to_owned(),
        ok: false,
        next: "imgsync batch requeue 0190a1b2".to_owned(),
        verification: false,
        level: 3,
        started: "2026-11-25T15:20:00Z".to_owned(),
        ended: "2026-11-25T15:21:00Z".to_owned(),
        written: "2026-11-25T15:22:00Z".to_owned(),
        seconds: 60.0,
        work_seconds: 600.0,
        counts: TaskCounts {
            total: 100_000,
            waiting: 50,
            running: 10,
            copied: 10,
            unchanged: 99_000,
            failed: 30,
            cancelled: 900,
        },
        bytes: BlobBytes { copied: 123_456_789, mounted: 1_000_000, reused: 5_000_000 },
        requests: RequestCounts { source: 1_234, target: 5_678 },
        timeline: ReportTimeline {
            width: 1.0,
            length: 60,
            buckets: vec![ReportTimelineBucket {
                at: 3.0,
                copied: 10,
                unchanged: 99_000,
                failed: 30,
                cancelled: 900,
                bytes: 9,
            }],
        },
        failures: ReportFailures {
            total: 30,
            groups: vec![ReportFailureGroup {
                kind: "refused".to_owned(),
                title: "Refused".to_owned(),
                advice: "Ask.".to_owned(),
                next: "imgsync batch requeue 0190a1b2 --kind refused".to_owned(),
                registry: "docker.io".to_owned(),
                source: HOSTILE.to_owned(),
                target: "docker.io".to_owned(),
                count: 30,
                images: vec![image(), image(), image(), image(), image(), image(), image()],
                more: 23,
            }],
            more: 2,
        },
        unlisted: Truncated {
            total: 2,
            items: vec![ReportUnlisted {
                repository: format!("evil.example/{HOSTILE}"),
                kind: "denied".to_owned(),
                error: HOSTILE.to_owned(),
                advice: "Log in.".to_owned(),
            }],
            more: 1,
        },
        empty_rules: Truncated {
            total: 2,
            items: vec![ReportEmptyRule {
                number: 4,
                name: HOSTILE.to_owned(),
                from: HOSTILE.to_owned(),
                repositories: 2,
                tags: 9,
                reason: HOSTILE.to_owned(),
            }],
            more: 1,
        },
        pruned: Truncated {
            total: 2,
            items: vec![ReportPrunedTag {
                source: format!("evil.example/{HOSTILE}:2"),
                target: "docker.io/m/a:2".to_owned(),
                outcome: "left".to_owned(),
                digest: HOSTILE.to_owned(),
                reason: HOSTILE.to_owned(),
            }],
            more: 1,
        },
        slowest: vec![ReportSlowTask {
            source: HOSTILE.to_owned(),
            target: HOSTILE.to_owned(),
            state: "copied".to_owned(),
            seconds: 12.5,
            bytes: 77,
            worker: HOSTILE.to_owned(),
        }],
        rules: Truncated {
            total: 2,
            items: vec![ReportRule {
                number: 1,
                name: HOSTILE.to_owned(),
                from: HOSTILE.to_owned(),
                to: vec![HOSTILE.to_owned()],
                counts: ends,
            }],
            more: 1,
        },
        routes: Truncated {
            total: 1,
            items: vec![ReportRoute { source: HOSTILE.to_owned(), target: "docker.io".to_owned(), counts: ends }],
            more: 0,
        },
        workers: Truncated {
            total: 1,
            items: vec![ReportWorker { name: HOSTILE.to_owned(), ended: 5, failed: 1, bytes: 6, seconds: 7.5 }],
            more: 0,
        },
        images: Truncated {
            total: 100_000,
            items: vec![ReportImage {
                source: HOSTILE.to_owned(),
                target: HOSTILE.to_owned(),
                state: "failed".to_owned(),
            }],
            more: 99_999,
        },
    }
}
