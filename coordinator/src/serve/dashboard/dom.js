// Elements and formats. Strings from registries become text nodes, never markup.

/// Creates an element. `on…` attributes are listeners; a `key` keeps the focus when its section is rendered again.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "key") element.dataset.key = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/// Replaces the content of a section; keeps the focus and open details.
export function show(section, ...children) {
  const focused = section.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const open = new Set([...section.querySelectorAll("details[open]")].map((one) => one.dataset.key));
  section.replaceChildren(...children.flat().filter(Boolean));
  section.querySelectorAll("details[data-key]").forEach((one) => (one.open = one.open || open.has(one.dataset.key)));
  if (focused) [...section.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus();
}

/// A link to a page of the dashboard.
export function link(path, words, attributes = {}) {
  return h("a", { href: `#${path}`, ...attributes }, words);
}

export const rulePath = (rule) => `/rules/${encodeURIComponent(rule)}`;
export const batchPath = (batch) => `/batches/${encodeURIComponent(batch)}`;
export const workerPath = (worker) => `/workers/${encodeURIComponent(worker)}`;

export const number = (value) => value.toLocaleString("en");
export const plural = (value, one, several) => `${number(value)} ${value === 1 ? one : several}`;

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${at === 0 ? Math.round(value) : value.toFixed(value < 10 ? 2 : 1)} ${units[at]}`;
}

export function seconds(value) {
  if (value > 0 && value < 10) return `${value.toFixed(1)} s`;
  value = Math.round(value);
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${value % 60} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

/// One unit is enough for how long ago something was.
function distance(value) {
  value = Math.abs(Math.round(value));
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  if (value < 2 * 86400) return `${Math.floor(value / 3600)} h`;
  return `${Math.floor(value / 86400)} d`;
}

function relative(time) {
  const off = (Date.parse(time) - Date.now()) / 1000;
  return off >= 0 ? `in ${distance(off)}` : `${distance(off)} ago`;
}

/// A time relative to now, with the exact time as title.
export function when(time) {
  return h("time", { datetime: time, title: new Date(time).toLocaleString("en"), "data-relative": true }, relative(time));
}

/// A time of the day, the weekday, or the date: what is shortest and clear.
export function since(time) {
  const at = new Date(time);
  const age = (Date.now() - at) / 86400000;
  const words = at.toDateString() === new Date().toDateString()
    ? at.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })
    : age < 6 ? at.toLocaleDateString("en", { weekday: "long" }) : at.toLocaleDateString("en", { day: "numeric", month: "long" });
  return h("time", { datetime: time, title: at.toLocaleString("en") }, words);
}

/// Updates the relative times of the page.
export function refreshTimes() {
  document.querySelectorAll("time[data-relative]").forEach((one) => (one.textContent = relative(one.dateTime)));
}

const RULE_STATES = {
  failing: "failing",
  interrupted: "interrupted",
  paused: "paused",
  running: "running",
  cancelled: "cancelled",
  nothing_selected: "nothing selected",
  never_run: "never run",
  no_recent_run: "no recent run",
  in_sync: "in sync",
};
export const ruleStates = Object.keys(RULE_STATES);
export const ruleStateWords = (state) => RULE_STATES[state] ?? state;

/// A state: a coloured mark and a word.
export function mark(style, words) {
  return h("span", { class: `mark ${style}` }, words);
}

export const ruleMark = (rule) => mark(rule.state, ruleStateWords(rule.state));

export const hasFailed = (batch) => batch.counts.failed + batch.unlisted > 0;

export function batchMark(batch) {
  if (batch.state === "done" && hasFailed(batch)) return mark("failing", batch.counts.copied + batch.counts.unchanged > 0 ? "incomplete" : "failed");
  if (batch.state === "running" && !batch.planned) return mark("running", "listing");
  return mark(batch.state, batch.state);
}

/// A bar of the images of a batch by result.
export function bar(counts) {
  const parts = [["copied", "copied"], ["unchanged", "unchanged"], ["failed", "failed"], ["cancelled", "cancelled"], ["running", "running"], ["waiting", "waiting"]];
  const done = counts.total - counts.waiting - counts.running;
  return segments(parts.map(([name, style]) => [counts[name], style]), `${number(done)} of ${plural(counts.total, "image", "images")} finished`);
}

export function segments(parts, label) {
  const bar = h("span", { class: "bar", role: "img", "aria-label": label });
  for (const [value, style] of parts) {
    if (value <= 0) continue;
    const part = h("i", { class: style });
    part.style.flexGrow = value;
    bar.append(part);
  }
  return bar;
}

/// A button that is no submit button.
export function button(key, words, onclick, attributes = {}) {
  return h("button", { type: "button", key, onclick, ...attributes }, words);
}

/// Text in which parts between backticks are code.
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 === 1 ? h("code", {}, part) : part));
}

/// A labelled field of a filter.
export function field(label, control) {
  return h("label", { class: "field" }, h("span", {}, label), control);
}

/// Buttons to turn pages: what is shown, and where the others are.
export function pager(words, back, next) {
  return h("div", { class: "pager" },
    h("span", { class: "dim" }, words),
    button("back", "Back", back || (() => {}), { disabled: !back }),
    button("next", "Next", next || (() => {}), { disabled: !next }));
}

/// Calls a function once its callers have been quiet for a moment.
export function debounce(wait, call) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
}
