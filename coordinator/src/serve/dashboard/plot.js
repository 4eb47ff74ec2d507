// Results and bytes of a batch over time, as SVG.

import { bytes, h, number, seconds } from "./views.js";

const WIDTH = 640;
const HEIGHT = 170;
const LEFT = 52;
const BOTTOM = 22;
const TOP = 8;
const OUTCOMES = [
  ["unchanged", "unchanged"],
  ["copied", "copied"],
  ["cancelled", "cancelled-fill"],
  ["failed", "failed-fill"],
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
  const buckets = timeline.buckets;
  if (buckets.length === 0) return null;
  const last = buckets[buckets.length - 1].number;
  const columns = Math.max(last + 1, 12);
  const most = Math.max(1, ...buckets.map(ended));
  const fastest = Math.max(0, ...buckets.map((bucket) => bucket.bytes)) / timeline.bucket_seconds;
  const wide = (WIDTH - LEFT) / columns;
  const high = HEIGHT - BOTTOM - TOP;
  const svg = s("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const total = buckets.reduce((sum, bucket) => sum + ended(bucket), 0);
  const summary = `${number(total)} images finished in ${seconds(columns * timeline.bucket_seconds)}; peak ${number(most)} per ${seconds(timeline.bucket_seconds)}`;
  svg.setAttribute("aria-label", fastest > 0 ? `${summary}, and ${bytes(fastest)}/s` : summary);
  svg.append(s("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: TOP + high, y2: TOP + high }));
  svg.append(s("text", { x: LEFT - 6, y: TOP + 9, "text-anchor": "end" }, number(most)));
  svg.append(s("text", { x: LEFT - 6, y: TOP + high, "text-anchor": "end" }, "0"));
  svg.append(s("text", { x: LEFT, y: HEIGHT - 6 }, "0 s"));
  svg.append(s("text", { x: WIDTH, y: HEIGHT - 6, "text-anchor": "end" }, seconds(columns * timeline.bucket_seconds)));
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
  return h("div", {}, svg, h("p", { class: "key" }, ...key));
}
