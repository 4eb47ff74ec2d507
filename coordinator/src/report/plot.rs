//! Plots outcomes over time as SVG: copied and failed images above, unchanged ones below on a scale of their own,
//! because there may be a thousand times as many.
//!
//! It needs no script and no network. Colours are CSS variables (`--copied`, `--unchanged`, `--failed`, `--cancelled`,
//! `--line`, `--soft`) with defaults for pages that do not set them.

use std::fmt::Write as _;

use imgsync_oci::humanize::group_digits;
use serde::Deserialize;

use super::units::{bytes, duration};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 10.0;
const MAIN: f64 = 150.0;
const STRIP: f64 = 44.0;
const GAP: f64 = 18.0;

/// A [`Timeline`](super::view::Timeline), as passed back by a template.
#[derive(Debug, Deserialize)]
pub(super) struct PlotTimeline {
    width: f64,
    length: u32,
    buckets: Vec<PlotBucket>,
}

#[derive(Debug, Deserialize)]
struct PlotBucket {
    at: f64,
    copied: u64,
    unchanged: u64,
    failed: u64,
    cancelled: u64,
    bytes: u64,
}

/// Renders the plot; empty if nothing happened.
pub(super) fn svg(timeline: &PlotTimeline) -> String {
    let above = timeline.buckets.iter().map(|part| part.copied + part.failed + part.cancelled).max().unwrap_or(0);
    let below = timeline.buckets.iter().map(|part| part.unchanged).max().unwrap_or(0);
    if above + below == 0 || timeline.width <= 0.0 {
        return String::new();
    }
    let length = f64::from(timeline.length.max(1));
    let step = (WIDTH - LEFT - RIGHT) / length;
    let bar = (step * 0.82).clamp(0.6, 40.0);
    let main = if above > 0 { MAIN } else { 0.0 };
    let strip = if below > 0 { STRIP } else { 0.0 };
    let gap = if above > 0 && below > 0 { GAP } else { 0.0 };
    let bottom = TOP + main + gap + strip;
    let height = bottom + 24.0;
    let mut svg = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Completed images over time\" \
         font-size=\"11\" font-family=\"inherit\">"
    );
    if above > 0 {
        axis(&mut svg, TOP, main, above);
    }
    if below > 0 {
        axis(&mut svg, TOP + main + gap, strip, below);
    }
    for part in &timeline.buckets {
        let x = LEFT + (part.at / timeline.width) * step + (step - bar) / 2.0;
        // Writing to a `String` cannot fail.
        let _ = write!(svg, "<g><title>{}</title>", tip(part, timeline.width));
        let mut base = TOP + main;
        for (count, colour) in [
            (part.copied, "var(--copied,#2f8f6b)"),
            (part.cancelled, "var(--cancelled,#8a8f98)"),
            (part.failed, "var(--failed,#c8463c)"),
        ] {
            if count > 0 {
                let tall = (count as f64 / axis_maximum(above) * main).max(1.5);
                base -= tall;
                rect(&mut svg, x, base, bar, tall, colour);
            }
        }
        if part.unchanged > 0 {
            let tall = (part.unchanged as f64 / axis_maximum(below) * strip).max(1.5);
            rect(&mut svg, x, bottom - tall, bar, tall, "var(--unchanged,#9db4c8)");
        }
        svg.push_str("</g>");
    }
    let whole = length * timeline.width;
    for (share, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let x = LEFT + share * (WIDTH - LEFT - RIGHT);
        let text = if share == 0.0 { "0".to_owned() } else { duration(whole * share) };
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"var(--soft,#777)\">{text}</text>",
            bottom + 17.0
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Draws lines at zero, half and maximum, with their values.
fn axis(svg: &mut String, top: f64, tall: f64, most: u64) {
    let top_value = axis_maximum(most);
    let marks: &[f64] = if tall > 100.0 { &[0.0, 0.5, 1.0] } else { &[0.0, 1.0] };
    for share in marks {
        let value = top_value * share;
        let y = top + tall * (1.0 - share);
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"var(--line,#ddd)\" stroke-width=\"1\"/>",
            WIDTH - RIGHT
        );
        if value.fract() == 0.0 {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"var(--soft,#777)\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                group_digits(value as u64)
            );
        }
    }
}

/// Returns the maximum of an axis: round, and not below the largest value.
fn axis_maximum(most: u64) -> f64 {
    let most = most.max(1) as f64;
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= most).unwrap_or(most)
}

fn rect(svg: &mut String, x: f64, y: f64, wide: f64, tall: f64, colour: &str) {
    let round = (wide / 4.0).min(tall / 2.0).min(1.5);
    let _ = write!(
        svg,
        "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{wide:.2}\" height=\"{tall:.2}\" rx=\"{round:.2}\" fill=\"{colour}\"/>"
    );
}

/// Returns the tooltip of a bar.
fn tip(part: &PlotBucket, width: f64) -> String {
    let mut tip =
        format!("{} to {}", if part.at == 0.0 { "0".to_owned() } else { duration(part.at) }, duration(part.at + width));
    for (count, what) in
        [(part.copied, "copied"), (part.unchanged, "unchanged"), (part.failed, "failed"), (part.cancelled, "cancelled")]
    {
        if count > 0 {
            let _ = write!(tip, ", {} {what}", group_digits(count));
        }
    }
    if part.bytes > 0 {
        let _ = write!(tip, ", {}", bytes(part.bytes));
    }
    tip
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: f64, copied: u64, unchanged: u64, failed: u64) -> PlotBucket {
        PlotBucket { at, copied, unchanged, failed, cancelled: 0, bytes: 5 << 20 }
    }

    #[test]
    fn a_batch_is_drawn_within_its_frame() {
        let parts = vec![part(0.0, 0, 120_000, 0), part(2.0, 33, 5, 1), part(6.0, 1, 0, 0)];
        let svg = svg(&PlotTimeline { width: 2.0, length: 5, buckets: parts });
        assert_eq!(svg.matches("<rect").count(), 5);
        assert!(svg.contains("<title>2.0 s to 4.0 s, 33 copied, 5 unchanged, 1 failed, 5.0 MiB</title>"), "{svg}");
        for number in svg.split('"').filter_map(|text| text.parse::<f64>().ok()) {
            assert!((0.0..=WIDTH).contains(&number), "{number} in {svg}");
        }
        assert_eq!(super::svg(&PlotTimeline { width: 1.0, length: 0, buckets: Vec::new() }), "");
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        let tops = [1, 3, 7, 12, 99, 120_000].map(axis_maximum);
        assert_eq!(tops, [1.0, 4.0, 8.0, 20.0, 100.0, 200_000.0]);
    }
}
