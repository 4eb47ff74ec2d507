// The dashboard. `known` holds the last state from the event stream; a section of the page is rendered again when its
// state changes.

import { follow, forgetToken, get, hasToken, post, setToken, takeToken, tokenWasAnswered } from "./server.js";
import { plot } from "./plot.js";
import { bar, batchList, bytes, chip, counts, groups, h, routes, schedules, seconds, show, when, workers } from "./views.js";

const MAX_BATCHES = 50;
const ROWS = 50;
const STATES = ["failed", "running", "new", "queued", "retry", "copied", "unchanged", "cancelled"];

const known = { status: null, line: "connecting", batches: new Map(), timelines: new Map(), failures: new Map(), schedules: [], workers: [], routes: { routes: [], registries: [] } };
let selectedId = null;
let isSelectedByUser = false;
const table = { batch: null, state: "failed", from: [0], rows: null, next: null };

// Messages and dialogs.

function say(words) {
  const line = h("p", {}, words);
  document.getElementById("messages").append(line);
  setTimeout(() => line.remove(), 6000);
}

function askForToken(why) {
  const dialog = document.getElementById("ask-token");
  document.getElementById("ask-token-why").textContent = why;
  if (!dialog.open) dialog.showModal();
}

// Read on submit: when `close` fires, code behind the dialog may already have used the token.
document.querySelector("#ask-token form").addEventListener("submit", (event) => {
  if (event.submitter?.value === "yes") setToken(document.getElementById("token").value.trim());
});

document.getElementById("ask-token").addEventListener("close", () => {
  document.getElementById("token").value = "";
  showStatus();
  tokenWasAnswered();
});

function sure(what, why) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-what").textContent = what;
  document.getElementById("ask-why").textContent = why;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((later) => dialog.addEventListener("close", () => later(dialog.returnValue === "yes"), { once: true }));
}

/// Sends a change, and shows the result.
async function change(path, body, words) {
  try {
    const answer = await post(path, body);
    say(words(answer));
    return answer;
  } catch (error) {
    if (error.status === 401) {
      forgetToken(error.sent);
      askForToken(error.message);
    } else say(error.message);
    return null;
  }
}

// Sections of the page.

function showStatus() {
  const { status, line } = known;
  const words = [line];
  if (status) {
    words.push(status.mode === "cluster" ? (status.leader ? "cluster, leader" : "cluster, standby") : "single process");
    words.push(`version ${status.version}`);
    const { error } = status.configuration;
    document.getElementById("attention").textContent = error ? `Cannot reload the configuration; the previous one stays in use.\n${error}` : "";
  }
  document.getElementById("status").textContent = words.join(" · ");
  document.getElementById("token-button").textContent = hasToken() ? "Sign out" : "Sign in";
}

const sorted = () => [...known.batches.values()].sort((a, b) => (a.batch < b.batch ? 1 : -1)).slice(0, MAX_BATCHES);

function showBatches() {
  const batches = sorted();
  const before = selectedId;
  if (!isSelectedByUser || !known.batches.has(selectedId)) selectedId = batches[0]?.batch ?? null;
  if (selectedId !== before) showImages();
  show("batches", ...batchList(batches, selectedId, selectBatch));
}

function selectBatch(batch) {
  selectedId = batch;
  isSelectedByUser = true;
  showBatches();
  showBatch();
  showImages();
  document.getElementById("batch").focus({ preventScroll: true });
  document.getElementById("batch").scrollIntoView({ block: "nearest" });
}

/// Fetches timeline and failures of a batch that ended before the page was opened, once.
async function fetchDetails(id) {
  if (known.timelines.has(id)) return;
  known.timelines.set(id, null);
  try {
    const [timeline, failures] = await Promise.all([get(`batches/${id}/timeline`), get(`batches/${id}/failures/groups`)]);
    known.timelines.set(id, timeline);
    known.failures.set(id, failures);
  } catch (error) {
    known.timelines.delete(id);
    if (error.status !== 401) say(error.message);
  }
  if (selectedId === id) showBatch();
}

function buttons(batch) {
  const id = batch.batch;
  const act = (key, words, path, done, style = false) =>
    h("button", { type: "button", key, class: style, onclick: () => change(`batches/${id}/${path}`, {}, () => done) }, words);
  const list = [];
  if (batch.state === "running") list.push(act("pause", "Pause", "pause", "Paused. Images in progress are finished."));
  if (batch.state === "paused") list.push(act("resume", "Resume", "resume", "Resumed.", "main"));
  if (["running", "paused", "interrupted"].includes(batch.state)) {
    const cancel = async () => {
      if (await sure("Cancel this batch?", "Unfinished images count as cancelled, and copies in progress are stopped. The batch cannot be resumed; its rules can be run again.")) {
        change(`batches/${id}/cancel`, {}, () => "Cancelled.");
      }
    };
    list.push(h("button", { type: "button", key: "cancel", class: "danger", onclick: cancel }, "Cancel"));
  }
  if (batch.counts.failed > 0 && (batch.state === "running" || batch.state === "paused" || batch.state === "done")) {
    list.push(h("button", { type: "button", key: "requeue", class: "main", onclick: () => requeue({}) }, "Requeue all failures"));
  }
  return list.length > 0 ? h("p", { class: "buttons" }, ...list) : null;
}

function requeue(filter) {
  return change(`batches/${selectedId}/requeue`, filter, ({ requeued }) => `${requeued} failed images requeued.`);
}

function showBatch() {
  const batch = known.batches.get(selectedId);
  if (!batch) return show("progress", h("p", { class: "dim" }, "No batch selected."));
  fetchDetails(selectedId);
  const timeline = known.timelines.get(selectedId);
  const failures = known.failures.get(selectedId);
  const span = ((batch.ended ? Date.parse(batch.ended) : Date.now()) - Date.parse(batch.started)) / 1000;
  const { copied } = batch.bytes;
  const rate = span > 1 && copied > 0 ? ` · ${bytes(copied / span)}/s` : "";
  show("progress",
    h("div", { class: "row" }, h("h2", {}, batch.title || batch.batch), chip(batch)),
    batch.resume ? h("p", { class: "error" }, "Interrupted: no process runs it. Resume it with ", h("code", {}, batch.resume), ".") : null,
    h("p", { class: "dim" }, "to ", h("code", {}, batch.to.join(", "))),
    h("p", { class: "dim" }, h("code", {}, batch.batch), " · started ", when(batch.started), ` · ${batch.ended ? "took" : "for"} ${seconds(span)}${rate}`),
    bar(batch.counts),
    counts(batch),
    buttons(batch),
    timeline && timeline.buckets.length > 0 && h("h3", {}, "Results over time"),
    timeline && plot(timeline),
    ...(failures ? groups(batch, failures, requeue) : []));
}

// Single images, page by page, on request.

async function fetchRows() {
  const id = table.batch;
  const from = table.from[table.from.length - 1];
  try {
    const failed = table.state === "failed";
    const answer = await get(failed ? `batches/${id}/failures?from=${from}&limit=${ROWS}` : `batches/${id}/tasks?state=${table.state}&from=${from}&limit=${ROWS}`);
    if (table.batch !== id) return;
    table.rows = failed ? answer.failures : answer.tasks;
    table.next = answer.next;
  } catch (error) {
    say(error.message);
  }
  showImages();
}

/// Rendered apart from live data: it changes only when the user turns a page.
function showImages() {
  const batch = known.batches.get(selectedId);
  show("images", ...(batch ? images(batch) : []));
}

function images(batch) {
  const isOpen = table.batch === batch.batch;
  const open = () => {
    Object.assign(table, { batch: batch.batch, from: [0], rows: null, next: null });
    fetchRows();
  };
  const options = STATES.map((state) => h("option", { value: state, selected: state === table.state }, state));
  const pick = h("select", { key: "state", "aria-label": "State of the images", onchange: (event) => { table.state = event.target.value; open(); } }, ...options);
  const head = [h("h3", {}, "Images"), h("p", { class: "buttons" }, pick, h("button", { type: "button", key: "rows", onclick: open }, isOpen ? "Refresh" : "Show"))];
  if (!isOpen || !table.rows) return head;
  const rows = table.rows.map((row) =>
    h("tr", {},
      h("td", { class: "number dim" }, String(row.index)),
      h("td", { class: "wide" }, h("code", {}, row.source), h("br"), h("span", { class: "dim" }, "to ", h("code", {}, row.target)),
        row.error ? h("p", { class: "error" }, row.error) : null),
      h("td", { class: "dim" }, row.kind ?? row.state, row.attempts > 0 ? ` · ${row.attempts} ${row.attempts === 1 ? "attempt" : "attempts"}` : "")));
  const turn = (change) => () => {
    change();
    fetchRows();
  };
  const pages = h("p", { class: "buttons" },
    h("button", { type: "button", key: "back", disabled: table.from.length < 2, onclick: turn(() => table.from.pop()) }, "Back"),
    h("button", { type: "button", key: "next", disabled: table.next === null, onclick: turn(() => table.from.push(table.next)) }, "Next"));
  return [...head, rows.length > 0 ? h("table", { class: "stack" }, h("tbody", {}, ...rows)) : h("p", { class: "dim" }, "None."), pages];
}

async function start(entry) {
  const started = await change(`schedules/${entry.rule}/start`, {}, () => "Started.");
  if (started) {
    selectedId = started.batch;
    isSelectedByUser = true;
  }
}

// Handlers of the event stream.

const on = {
  status: (value) => { known.status = value; showStatus(); },
  schedules: (value) => { known.schedules = value; show("schedules", ...schedules(value, start)); },
  workers: (value) => { known.workers = value; show("workers", ...workers(value)); },
  routes: (value) => { known.routes = value; show("routes", ...routes(value).filter(Boolean)); },
  batch: (value) => {
    known.batches.set(value.batch, value);
    later("batches", showBatches);
    later("batch", showBatch);
  },
  timeline: (value) => { known.timelines.set(value.batch, value); if (value.batch === selectedId) later("batch", showBatch); },
  failures: (value) => { known.failures.set(value.batch, value); if (value.batch === selectedId) later("batch", showBatch); },
};

const due = new Set();

/// Renders once per frame for all events of that frame.
function later(what, draw) {
  if (due.has(what)) return;
  due.add(what);
  requestAnimationFrame(() => {
    due.delete(what);
    draw();
  });
}

takeToken();
document.getElementById("token-button").addEventListener("click", () => {
  if (hasToken()) {
    setToken(null);
    showStatus();
  } else askForToken("Sign in to make changes.");
});
showStatus();
showBatches();
showBatch();
show("schedules", ...schedules([], start));
show("workers", ...workers([]));
show("routes", ...routes(known.routes).filter(Boolean));
setInterval(() => { later("batches", showBatches); show("schedules", ...schedules(known.schedules, start)); }, 10000);
follow(
  (name, value) => on[name]?.(value),
  (line, error) => {
    known.line = line;
    showStatus();
    if (error?.status === 401) askForToken(error.message);
  },
);
