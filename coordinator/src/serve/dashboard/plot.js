// Plots as SVG: results and bytes of a batch over time, and the runs of a rule.

import { batchPath, bytes, h, number, plural, seconds } from "./dom.js";

/// Width of a plot in its own units: text stays readable on a phone.
const plotWidth = () => (window.innerWidth < 760 ? 380 : 960);
const HEIGHT = 170;
const LEFT = 52;
const BOTTOM = 22;
const TOP = 8;
const OUTCOMES = [
  ["unchanged", "unchanged"],
  ["copied", "copied"],
  ["cancelled", "cancelled"],
  ["failed", "failed"],
];

function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const ended = (bucket) => OUTCOMES.reduce((sum, [outcome]) => sum + bucket[outcome], 0);

/// Bars of results with a line of bytes per second; null while there is no data.
export function plot(timeline) {
  const width = plotWidth();
  const buckets = timeline.buckets;
  if (buckets.length === 0) return null;
  const last = buckets[buckets.length - 1].number;
  const columns = Math.max(last + 1, Math.round(width / 40));
  const most = Math.max(1, ...buckets.map(ended));
  const fastest = Math.max(0, ...buckets.map((bucket) => bucket.bytes)) / timeline.bucket_seconds;
  const wide = (width - LEFT) / columns;
  const high = HEIGHT - BOTTOM - TOP;
  const svg = s("svg", { class: "plot", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const total = buckets.reduce((sum, bucket) => sum + ended(bucket), 0);
  const summary = `${plural(total, "image", "images")} finished in ${seconds(columns * timeline.bucket_seconds)}; peak ${number(most)} per ${seconds(timeline.bucket_seconds)}`;
  svg.setAttribute("aria-label", fastest > 0 ? `${summary}, and ${bytes(fastest)}/s` : summary);
  svg.append(s("line", { class: "axis", x1: LEFT, x2: width, y1: TOP + high, y2: TOP + high }));
  svg.append(s("text", { x: LEFT - 6, y: TOP + 9, "text-anchor": "end" }, number(most)));
  svg.append(s("text", { x: LEFT - 6, y: TOP + high, "text-anchor": "end" }, "0"));
  svg.append(s("text", { x: LEFT, y: HEIGHT - 6 }, "0 s"));
  svg.append(s("text", { x: width, y: HEIGHT - 6, "text-anchor": "end" }, seconds(columns * timeline.bucket_seconds)));
  for (const bucket of buckets) {
    let y = TOP + high;
    const group = s("g");
    const words = OUTCOMES.filter(([outcome]) => bucket[outcome] > 0).map(([outcome]) => `${number(bucket[outcome])} ${outcome}`);
    group.append(s("title", {}, `${seconds(bucket.number * timeline.bucket_seconds)}: ${words.join(", ")}; ${bytes(bucket.bytes)}`));
    for (const [outcome, style] of OUTCOMES) {
      const height = (bucket[outcome] / most) * high;
      if (height <= 0) continue;
      y -= height;
      group.append(s("rect", { class: style, x: LEFT + bucket.number * wide, y, width: Math.max(wide - 1, 0.6), height }));
    }
    svg.append(group);
  }
  if (fastest > 0) {
    const by = new Map(buckets.map((bucket) => [bucket.number, bucket.bytes / timeline.bucket_seconds]));
    const points = [];
    for (let column = 0; column <= last; column++) {
      points.push(`${LEFT + (column + 0.5) * wide},${TOP + high - ((by.get(column) ?? 0) / fastest) * high}`);
    }
    svg.append(s("polyline", { class: "rate", points: points.join(" ") }));
  }
  const key = OUTCOMES.map(([outcome, style]) => h("span", {}, h("i", { class: style }), outcome));
  if (fastest > 0) key.push(h("span", {}, h("i", { class: "line" }), `throughput, up to ${bytes(fastest)}/s`));
  return h("div", { class: "plot-box" }, svg, h("p", { class: "key" }, ...key));
}

const RUN_HEIGHT = 64;
const RUN_GAP = 22;

/// Runs of a rule from the oldest on: copied and failed images, bytes and duration, one bar a run. Each bar is a link.
export function historyPlot(runs) {
  if (runs.length < 2) return null;
  const width = plotWidth();
  const rows = [
    ["images", [["copied", (run) => run.copied], ["failed", (run) => run.failed + run.unlisted]], number],
    ["bytes", [["bytes", (run) => run.bytes]], bytes],
    ["duration", [["time", (run) => run.seconds]], seconds],
  ];
  const columns = Math.max(runs.length, Math.round(width / 40));
  const wide = (width - LEFT - 8) / columns;
  const height = rows.length * (RUN_HEIGHT + RUN_GAP);
  const svg = s("svg", { class: "plot history", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `The last ${plural(runs.length, "run", "runs")}` });
  rows.forEach(([label, parts, format], row) => {
    const bottom = row * (RUN_HEIGHT + RUN_GAP) + RUN_GAP + RUN_HEIGHT - 6;
    const most = Math.max(0, ...runs.map((run) => parts.reduce((sum, [, value]) => sum + value(run), 0)));
    svg.append(s("line", { class: "axis", x1: LEFT, x2: width, y1: bottom, y2: bottom }));
    svg.append(s("text", { x: 0, y: bottom }, label));
    svg.append(s("text", { x: LEFT, y: bottom - RUN_HEIGHT + 8 }, most > 0 ? `up to ${format(most)}` : "none"));
    runs.forEach((run, at) => {
      const x = LEFT + (columns - runs.length + at) * wide;
      let y = bottom;
      for (const [style, value] of parts) {
        const part = value(run);
        if (part <= 0) continue;
        const tall = Math.max((part / most) * (RUN_HEIGHT - 14), 1.5);
        y -= tall;
        svg.append(s("rect", { class: style, x, y, width: Math.max(wide - 2, 1), height: tall }));
      }
    });
  });
  runs.forEach((run, at) => {
    const x = LEFT + (columns - runs.length + at) * wide;
    const words = `${new Date(run.started).toLocaleString("en")}${run.pushed ? " by a push" : ""}: ${number(run.copied)} copied, ${number(run.failed)} failed, ${number(run.unlisted)} not listed, ${bytes(run.bytes)}, ${seconds(run.seconds)}`;
    const anchor = s("a", { href: `#${batchPath(run.batch)}`, "aria-label": words });
    anchor.append(s("title", {}, words), s("rect", { class: "hit", x, y: 0, width: wide, height }));
    svg.append(anchor);
  });
  const key = (style, words) => h("span", {}, h("i", { class: style }), words);
  return h("div", { class: "plot-box" }, svg, h("p", { class: "key" }, key("copied", "copied"), key("failed", "failed or not listed"), h("span", { class: "dim" }, "oldest on the left; each bar leads to its batch")));
}
