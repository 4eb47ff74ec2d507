// A batch: progress, failures with what to do, results over time, and its images in pages.

import { bar, batchMark, bytes, button, debounce, field, h, link, number, pager, plural, prose, rulePath, seconds, show, when } from "./dom.js";
import { failureGroups } from "./failures.js";
import { plot } from "./plot.js";
import { get, query } from "./server.js";

const ROWS = 50;
const STATES = ["failed", "running", "new", "queued", "retry", "copied", "unchanged", "cancelled"];
const KINDS = ["not_found", "denied", "token_expired", "rate_limited", "unreachable", "timed_out", "server_error", "corrupt", "refused", "incomplete", "unsupported", "outdated", "invalid_response", "insecure", "invalid", "local", "collision", "immutable", "refused_by_policy", "differs", "cancelled"];

export function batchPage({ main, name: id, parameters, known, change, confirm, download, setParameters, setTitle, say }) {
  let details = null;
  let asked = false;
  const filter = { images: parameters.images ?? "", kind: parameters.kind ?? "", registry: parameters.registry ?? "", text: parameters.text ?? "" };
  const pages = { from: [0], rows: null, next: null };
  // Answers to an earlier filter or page are ignored.
  let reads = 0;
  const path = `batches/${encodeURIComponent(id)}`;
  const progress = h("section", { id: "progress", "aria-label": "Progress" }, h("p", { class: "dim" }, "Loading…"));
  const failures = h("section", { id: "failures", "aria-label": "Failures" });
  const timeline = h("section", { id: "timeline", "aria-label": "Results over time" });
  const select = (key, label, options, apply) => field(label, h("select", { key, "aria-label": label, onchange: (event) => apply(event.target.value) },
    ...options.map(([value, words]) => h("option", { value, selected: value === filter[key] }, words))));
  const input = (key, label, placeholder) => field(label, h("input", { type: "search", key, value: filter[key], placeholder, spellcheck: "false",
    oninput: debounce(250, (event) => apply({ [key]: event.target.value.trim() })) }));
  const kindSelect = select("kind", "Kind of error", [["", "all"], ...KINDS.map((kind) => [kind, kind])], (kind) => apply({ kind, images: "failed" }));
  const stateSelect = select("images", "State of the images", [["", "choose"], ["all", "all"], ...STATES.map((state) => [state, state])], (images) => apply({ images }));
  const rows = h("div", { id: "rows" });
  const images = h("section", { id: "images", "aria-label": "Images", hidden: true },
    h("h2", {}, "Images"),
    h("div", { class: "filters" }, stateSelect, kindSelect, input("registry", "Registry", "gcr.io"), input("text", "Source or target", "team/api:v1")), rows);
  main.append(progress, failures, timeline, images);

  const batch = () => known.batches.get(id) ?? details;

  // What the event stream does not carry: batches that are older or ended before the page was opened, and what holds
  // a batch up.
  async function read() {
    try {
      details = await get(path);
      if (!known.timelines.has(id)) known.timelines.set(id, await get(`${path}/timeline`));
      if (!known.failures.has(id)) known.failures.set(id, await get(`${path}/failures/groups`));
      render();
      renderFailures();
      renderTimeline();
      if (filter.images && !pages.rows) readRows();
    } catch (error) {
      if (error.status === 404) show(progress, h("h1", {}, "There is no such batch"), h("p", {}, "It may have been removed. ", link("/batches", "Show all batches"), "."));
      else if (error.status !== 401) say(error.message);
    }
  }

  const act = (key, words, done, style = false) =>
    button(key, words, async () => { if (await change(`${path}/${key}`, {}, () => done)) read(); }, { class: style });

  async function cancel() {
    if (await confirm("Cancel this batch?", "Unfinished images count as cancelled, and copies in progress are stopped. The batch cannot be resumed; its rules can be run again.")) {
      await change(`${path}/cancel`, {}, () => "Cancelled.");
      read();
    }
  }

  async function requeue(which) {
    const answer = await change(`${path}/requeue`, which, ({ requeued }) => `${plural(requeued, "failed image", "failed images")} requeued.`);
    if (answer) read();
  }

  function buttons(one) {
    return h("span", { class: "buttons" },
      one.state === "running" ? act("pause", "Pause", "Paused. Images in progress are finished.") : null,
      one.state === "paused" ? act("resume", "Resume", "Resumed.", "main") : null,
      ["running", "paused", "interrupted"].includes(one.state) ? button("cancel", "Cancel", cancel, { class: "danger" }) : null,
      button("report", "Save the report", () => download(`${path}/report`, `imgsync-${id}.html`)));
  }

  function render() {
    const one = batch();
    if (!one) return;
    const title = one.title || one.batch;
    setTitle(title);
    const { counts } = one;
    const fact = (term, value, style = false) => h("div", { class: style }, h("dt", {}, term), h("dd", {}, value));
    const notes = [...(details?.problems ?? []).map((words) => h("p", { class: "note bad" }, words)), ...(details?.rate_limit_messages ?? []).map((words) => h("p", { class: "note" }, words))];
    show(progress,
      h("p", { class: "crumbs" }, link("/batches", "Batches"), " /"),
      h("div", { class: "title" }, h("h1", {}, one.rule ? link(rulePath(one.rule), title) : title), batchMark(one), buttons(one)),
      h("p", { class: "route" }, "to ", h("code", {}, one.to.join(", "))),
      one.resume && !details ? h("p", { class: "note bad" }, "Interrupted: no process runs it. Resume it with ", h("code", {}, one.resume), ".") : null,
      ...(one.ended ? [] : notes),
      h("p", { class: "meta" }, h("code", {}, one.batch), h("span", {}, "started ", when(one.started)), ...durations(one)),
      bar(counts),
      h("dl", { class: "counts" },
        fact("images", number(counts.total)),
        counts.waiting > 0 ? fact("waiting", number(counts.waiting)) : null,
        counts.running > 0 ? fact("running", number(counts.running)) : null,
        fact("copied", number(counts.copied), "copied"), fact("unchanged", number(counts.unchanged), "unchanged"),
        fact("failed", number(counts.failed), counts.failed > 0 ? "failed" : false),
        counts.cancelled > 0 ? fact("cancelled", number(counts.cancelled), "cancelled") : null,
        one.unlisted > 0 ? fact("not listed", number(one.unlisted), "failed") : null,
        fact("bytes copied", bytes(one.bytes.copied)), fact("requests", number(one.requests.source + one.requests.target))));
    images.hidden = counts.total === 0;
  }

  function renderFailures() {
    const one = batch();
    const groups = known.failures.get(id);
    if (!one || !groups) return;
    const may = one.counts.failed > 0 && ["running", "paused", "done"].includes(one.state);
    const content = failureGroups(groups, may ? requeue : null).filter(Boolean);
    const helps = groups.by_kind.filter((group) => group.next_step !== "change_and_run");
    show(failures, content.length > 0 ? [
      h("div", { class: "title" }, h("h2", {}, "Failures"),
        may && helps.length > 1 ? h("span", { class: "buttons" }, button("all", "Requeue all failures", () => requeue({}))) : null),
      ...content] : null);
  }

  function renderTimeline() {
    const found = known.timelines.get(id);
    show(timeline, found && found.buckets.length > 0 ? [h("h2", {}, "Results over time"), plot(found)] : null);
  }

  // Images change only when the user turns a page or changes the filter.

  function apply(changed) {
    Object.assign(filter, changed);
    if (!filter.images && (filter.registry || filter.text)) filter.images = "all";
    if (filter.images !== "failed") filter.kind = "";
    stateSelect.querySelector("select").value = filter.images;
    kindSelect.querySelector("select").value = filter.kind;
    setParameters(filter);
    Object.assign(pages, { from: [0], rows: null, next: null });
    readRows();
  }

  async function readRows() {
    const turn = ++reads;
    if (!filter.images) return show(rows);
    const failed = filter.images === "failed";
    const from = pages.from[pages.from.length - 1];
    const shared = { registry: filter.registry, text: filter.text, from, limit: ROWS };
    try {
      const answer = await get(failed ? `${path}/failures${query({ ...shared, kind: filter.kind })}` : `${path}/tasks${query({ ...shared, state: filter.images === "all" ? "" : filter.images })}`);
      if (turn !== reads) return;
      pages.rows = failed ? answer.failures : answer.tasks;
      pages.next = answer.next;
      renderRows();
    } catch (error) {
      say(error.message);
    }
  }

  function renderRows() {
    const turn = (turned) => () => {
      turned();
      readRows();
    };
    const list = pages.rows.map((row) => h("tr", {},
      h("td", { class: "wide" }, h("code", {}, row.source), h("span", { class: "route" }, "→ ", row.target), row.error ? h("p", { class: "detail" }, ...prose(row.error)) : null),
      h("td", { class: "kind" }, row.kind ?? row.state),
      h("td", { class: "number" }, row.attempts > 0 ? plural(row.attempts, "attempt", "attempts") : "")));
    const more = pages.next !== null;
    show(rows,
      list.length > 0 ? h("table", { class: "stack images" }, h("tbody", {}, ...list)) : h("p", { class: "empty" }, more ? "None so far. There are more images to look through." : "None."),
      more || pages.from.length > 1 ? pager(`Page ${pages.from.length}`, pages.from.length > 1 && turn(() => pages.from.pop()), more && turn(() => pages.from.push(pages.next))) : null);
  }

  render();
  renderFailures();
  renderTimeline();
  read();
  return {
    batch: (value) => {
      if (value.batch !== id) return;
      render();
      renderFailures();
    },
    timeline: (value) => value.batch === id && renderTimeline(),
    failures: (value) => value.batch === id && renderFailures(),
  };
}

/// How long it took. After a requeue the time between start and end includes a pause that nobody worked in: the time of
/// the workers is shown instead, which grows with work only.
function durations(one) {
  if (one.run > 0) {
    return [
      h("span", {}, `requeued ${plural(one.run, "time", "times")}`),
      one.ended ? h("span", {}, "ended ", when(one.ended)) : null,
      h("span", {}, `${seconds(one.worker_seconds)} of work`),
    ];
  }
  const span = ((one.ended ? Date.parse(one.ended) : Date.now()) - Date.parse(one.started)) / 1000;
  const rate = span > 1 && one.bytes.copied > 0 ? `${bytes(one.bytes.copied / span)}/s` : null;
  return [h("span", {}, one.ended ? `took ${seconds(span)}` : `${seconds(span)} so far`), rate ? h("span", {}, rate) : null];
}
