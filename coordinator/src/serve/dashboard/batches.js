// Batches in pages, newest first; the first page is live.

import { bar, batchMark, batchPath, bytes, button, field, h, link, number, plural, seconds, show, when } from "./dom.js";
import { get, query } from "./server.js";

const ROWS = 50;
const STATES = ["running", "paused", "interrupted", "done", "cancelled", "superseded"];

export function batchesPage({ main, parameters, known, setParameters, setTitle, say }) {
  setTitle("Batches");
  const filter = { state: parameters.state ?? "" };
  let older = [];
  let next = null;
  let first = null;
  // The newest batch at the last read: the ones before it are in `first` and `older`.
  let covered = "";
  // Answers to an earlier filter are ignored.
  let reads = 0;
  const list = h("section", { id: "batches", "aria-label": "Batches" });
  main.append(
    h("div", { class: "title" }, h("h1", {}, "Batches")),
    h("div", { class: "filters" }, field("State", h("select", { key: "state", "aria-label": "State", onchange: (event) => { filter.state = event.target.value; setParameters(filter); read(); } },
      h("option", { value: "" }, "all"), ...STATES.map((state) => h("option", { value: state, selected: state === filter.state }, state))))),
    list);

  async function read() {
    const turn = ++reads;
    try {
      const page = await get(`batches${query({ ...filter, limit: ROWS })}`);
      if (turn !== reads) return;
      [first, older, next] = [page.batches, [], page.next];
      covered = [...known.batches.keys(), ...first.map((batch) => batch.batch)].reduce((a, b) => (a > b ? a : b), "");
      render();
    } catch (error) {
      if (error.status !== 401) say(error.message);
    }
  }

  async function more() {
    const turn = ++reads;
    try {
      const page = await get(`batches${query({ ...filter, limit: ROWS, before: next })}`);
      if (turn !== reads) return;
      older = [...older, ...page.batches];
      next = page.next;
      render();
    } catch (error) {
      say(error.message);
    }
  }

  function rows() {
    const found = new Map([...(first ?? []), ...older].map((batch) => [batch.batch, batch]));
    for (const batch of known.batches.values()) {
      if (!filter.state || found.has(batch.batch) || batch.state === filter.state) found.set(batch.batch, batch);
    }
    return [...found.values()].filter((batch) => !filter.state || batch.state === filter.state).sort((a, b) => (a.batch < b.batch ? 1 : -1));
  }

  function render() {
    const batches = rows();
    if (batches.length === 0) {
      return show(list, first ? h("p", { class: "empty" }, filter.state ? "No batch is in this state." : ["No batches yet: start a rule on the ", link("/", "overview"), ", or wait for its schedule."]) : h("p", { class: "dim" }, "Loading…"));
    }
    const head = [["State"], ["Batch"], ["Images"], ["Failed", "number"], ["Bytes copied", "number"], ["Duration", "number"], ["Started"]];
    show(list,
      h("div", { class: "scroll" }, h("table", { class: "stack batches" },
        h("thead", {}, h("tr", {}, ...head.map(([words, style]) => h("th", { scope: "col", class: style ?? false }, words)))),
        h("tbody", {}, ...batches.map(row)))),
      next ? h("p", { class: "buttons" }, button("older", "Older batches", more)) : null);
  }

  render();
  read();
  return {
    batch: () => {
      // Batches between the last read and the oldest one that is kept may be missing.
      if (known.dropped > 0 && [...known.batches.keys()].every((id) => id > covered)) read();
      render();
    },
  };
}

function row(batch) {
  const failed = batch.counts.failed + batch.unlisted;
  const span = ((batch.ended ? Date.parse(batch.ended) : Date.now()) - Date.parse(batch.started)) / 1000;
  const done = batch.counts.total - batch.counts.waiting - batch.counts.running;
  return h("tr", {},
    h("td", { class: "state" }, batchMark(batch)),
    h("td", { class: "name" }, link(batchPath(batch.batch), batch.title || batch.batch, { key: batch.batch, title: batch.batch }), h("span", { class: "route", title: batch.to.join(", ") }, "→ ", batch.to.join(", "))),
    h("td", { class: "tags", "data-label": "Images" }, bar(batch.counts), h("span", { class: "count" }, batch.ended ? plural(batch.counts.total, "image", "images") : `${number(done)} of ${number(batch.counts.total)}`)),
    h("td", { class: `number ${failed > 0 ? "bad" : "zero"}`, "data-label": "Failed" }, number(failed)),
    h("td", { class: "number", "data-label": "Bytes copied" }, bytes(batch.bytes.copied)),
    h("td", { class: "number", "data-label": "Duration" }, batch.run > 0 ? `${seconds(batch.worker_seconds)} of work` : seconds(span)),
    h("td", { class: "time", "data-label": "Started" }, when(batch.started)));
}
