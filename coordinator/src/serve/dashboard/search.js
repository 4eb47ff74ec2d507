// Results of an image in the newest batches of each rule.

import { batchPath, h, link, mark, number, plural, prose, rulePath, show, when } from "./dom.js";
import { get, query } from "./server.js";

const MARKS = { failed: "failing", not_listed: "failing", copied: "in_sync", unchanged: "in_sync", running: "running", cancelled: "cancelled", removed: "cancelled", left: "paused", refused: "failing" };
const WORDS = { not_listed: "not listed", new: "waiting", queued: "queued", retry: "waiting for a retry", removed: "pruned", left: "not pruned", refused: "prune refused" };
const WHY = {
  copied: "The batch copied it.",
  unchanged: "The target already had the digest of the source.",
  running: "A worker is copying it now.",
  new: "It is planned, and not queued yet.",
  queued: "It waits for a free worker.",
  retry: "It failed with a transient error, and is retried.",
  cancelled: "The batch was cancelled or superseded before it was copied.",
};

export function searchPage({ main, parameters, setTitle, say }) {
  const text = (parameters.text ?? "").trim();
  setTitle(text ? `Search: ${text}` : "Search");
  document.getElementById("search-text").value = text;
  const results = h("section", { id: "results", "aria-label": "Results", "aria-live": "polite" }, h("p", { class: "dim" }, "Searching…"));
  main.append(h("div", { class: "title" }, h("h1", {}, "Search"), text ? h("code", {}, text) : null), results);
  if (text.length < 2) {
    show(results, h("p", { class: "empty" }, "Write at least two characters of an image or tag, such as ", h("code", {}, "team/api:v1.2"), "."));
    return {};
  }
  let isOpen = true;
  get(`search${query({ text })}`).then((found) => isOpen && show(results, ...render(found)), (error) => {
    if (!isOpen) return;
    if (error.status === 401) show(results, h("p", { class: "empty" }, "Sign in to search."));
    else show(results, h("p", { class: "note bad" }, error.message));
    if (error.status >= 500) say(error.message);
  });
  return { close: () => { isOpen = false; } };
}

function render(found) {
  const { searched, results, read_by: readBy } = found;
  const scope = `Searched the newest ${searched.runs_per_rule} batches of each rule: ${plural(searched.tasks, "image", "images")} in ${plural(searched.batches, "batch", "batches")}.`;
  return [
    h("p", { class: "scope" }, scope, searched.complete ? null : h("span", { class: "warning" }, ` Not complete: ${searched.stopped}.`)),
    results.length === 0 ? nothing(found) : h("ol", { class: "results" }, ...byTarget(results).map(result)),
    results.length > 0 && readBy.length > 0 ? h("p", { class: "scope" }, "Read by ", ...rules(readBy), ".") : null,
  ];
}

const rules = (list) => list.slice(0, 10).flatMap((rule, at) => [at > 0 ? ", " : "", link(rulePath(rule.rule), rule.name)]);

function nothing({ query: text, read_by: readBy }) {
  return h("div", { class: "first" },
    h("h2", {}, "Not found in these batches"),
    readBy.length > 0
      ? h("p", {}, plural(readBy.length, "rule reads", "rules read"), " this repository: ", ...rules(readBy), ". The source did not list the tag, or the rule does not select it.")
      : h("p", {}, "No batch contains it. It may be in an older batch, or no rule reads it."),
    h("p", {}, "This asks the source, and says which part of a rule drops the tag:"),
    h("pre", {}, `imgsync explain ${/^[\w./:@-]+$/.test(text) ? text : "REGISTRY/REPOSITORY:TAG"}`));
}

/// The newest result of each image, with the earlier ones.
function byTarget(results) {
  const groups = new Map();
  for (const one of results) {
    const key = `${one.source} ${one.target}`;
    groups.set(key, [...(groups.get(key) ?? []), one]);
  }
  return [...groups.values()];
}

function result([one, ...earlier]) {
  const why = one.error ?? WHY[one.state] ?? "";
  return h("li", { class: "result" },
    h("div", { class: "row" }, h("span", {}, mark(MARKS[one.state] ?? "never_run", WORDS[one.state] ?? one.state), one.kind ? h("span", { class: "kind" }, one.kind) : null), link(batchPath(one.batch), ["batch started ", when(one.started)])),
    h("p", { class: "wide" }, h("code", {}, one.source), one.target ? h("span", { class: "route" }, "→ ", one.target) : null),
    why ? h("p", { class: `why ${one.error ? "detail" : "dim"}` }, ...prose(why)) : null,
    one.advice ? h("p", { class: "advice" }, ...prose(one.advice)) : null,
    h("p", { class: "meta" },
      h("span", {}, "rule ", one.rule ? link(rulePath(one.rule), one.rule_name || one.rule) : one.rule_name),
      one.attempts > 1 ? h("span", {}, plural(one.attempts, "attempt", "attempts")) : null,
      one.digest ? h("span", {}, h("code", { title: one.digest }, one.digest.slice(0, 19)), " seen at the target ", when(one.seen_at)) : null,
      earlier.length > 0 ? h("span", {}, "earlier: ", ...earlier.flatMap((run, at) => [at > 0 ? ", " : "", link(batchPath(run.batch), [`${WORDS[run.state] ?? run.state} `, when(run.started)])])) : null));
}
