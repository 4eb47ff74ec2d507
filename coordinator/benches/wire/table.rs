//! The tables of docs/explanation/performance.md, in Markdown.

use crate::measure::{Aims, Measurement, Row};

/// Prints all rows.
pub(crate) fn print(rows: &[Row]) {
    println!("\nMedians; requests to source + target; × is times the floor.\n");
    println!(
        "| | imgsync: wall, CPU, peak | requests | floor: wall, CPU, peak | requests | wall ×, CPU × | goal | skopeo: wall, CPU, \
         peak |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let (imgsync, floor) = (Measurement::median(&row.imgsync), Measurement::median(&row.floor));
        println!(
            "| {} | {} | {} + {} | {} | {} + {} | {}, {} | {} | {} |",
            row.name,
            describe(&imgsync),
            imgsync.source,
            imgsync.target,
            describe(&floor),
            floor.source,
            floor.target,
            times(row.ratio(|run| run.wall)),
            times(row.ratio(|run| run.cpu)),
            goal(row, &imgsync),
            row.skopeo.as_ref().map(describe).unwrap_or_default()
        );
    }
}

fn describe(run: &Measurement) -> String {
    format!("{} s, {} s, {:.1} MiB", seconds(run.wall), seconds(run.cpu), run.peak_mib)
}

/// Formats a ratio; to a CPU time below the resolution of the clock there is none.
fn times(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.2}") } else { "–".to_owned() }
}

fn seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{seconds:.3}") } else { format!("{seconds:.2}") }
}

/// Describes the goals, and which are missed.
fn goal(row: &Row, imgsync: &Measurement) -> String {
    let Aims { wall, wall_ratio, cpu, peak_mib } = row.aims;
    let goals = [
        wall.map(|goal| (format!("wall {goal} s"), imgsync.wall <= goal)),
        wall_ratio.map(|goal| (format!("wall {goal} ×"), row.ratio(|run| run.wall) <= goal)),
        cpu.map(|goal| (format!("CPU {goal} s"), imgsync.cpu <= goal)),
        peak_mib.map(|goal| (format!("{goal} MiB"), imgsync.peak_mib <= goal)),
    ];
    let described = goals.into_iter().flatten().map(|(goal, met)| if met { goal } else { format!("{goal} (missed)") });
    described.collect::<Vec<_>>().join(", ")
}
