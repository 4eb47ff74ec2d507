// A rule: its state, its history as a plot and a table, and the failures of its last run.

import { batchMark, batchPath, bytes, button, h, link, number, plural, prose, ruleMark, seconds, segments, show, when } from "./dom.js";
import { failureGroups } from "./failures.js";
import { failureWords } from "./overview.js";
import { historyPlot } from "./plot.js";
import { get, query } from "./server.js";

const RUNS = 30;

export function rulePage({ main, name, known, change, setTitle, say }) {
  let rule = null;
  let runs = [];
  let next = null;
  let groups = null;
  const path = `rules/${encodeURIComponent(name)}`;
  const head = h("section", { id: "rule", "aria-label": "Rule" }, h("p", { class: "dim" }, "Loading…"));
  const failures = h("section", { id: "failures", "aria-label": "Failures of the last run" });
  const history = h("section", { id: "history", "aria-label": "History" });
  main.append(head, failures, history);

  async function read() {
    try {
      const [found, page] = await Promise.all([get(path), get(`${path}/history${query({ limit: RUNS })}`)]);
      rule = found;
      const old = runs.filter((run) => !page.runs.some((one) => one.batch === run.batch) && (page.runs.length === 0 || run.batch < page.runs[page.runs.length - 1].batch));
      runs = [...page.runs, ...old];
      if (old.length === 0) next = page.next;
      groups = rule.state === "failing" && rule.last_failure ? await get(`batches/${rule.last_failure.batch}/failures/groups`) : null;
      render();
    } catch (error) {
      if (error.status === 404) show(head, h("h1", {}, "There is no such rule"), h("p", {}, "The configuration may have changed. ", link("/", "Show all rules"), "."));
      else if (error.status !== 401) say(error.message);
    }
  }

  async function older() {
    try {
      const page = await get(`${path}/history${query({ limit: RUNS, before: next })}`);
      runs = [...runs, ...page.runs];
      next = page.next;
      render();
    } catch (error) {
      say(error.message);
    }
  }

  async function start() {
    if (await change(`${path}/start`, {}, () => "Started.")) read();
  }

  function render() {
    setTitle(rule.name);
    const { tags, last_failure: failure } = rule;
    const fact = (term, ...words) => h("div", {}, h("dt", {}, term), h("dd", {}, ...words));
    show(head,
      h("p", { class: "crumbs" }, link("/", "Rules"), " /"),
      h("div", { class: "title" }, h("h1", {}, rule.name), ruleMark(rule),
        h("span", { class: "buttons" }, rule.running ? link(batchPath(rule.running), "Progress", { class: "button main" }) : button("start", "Start", start, { class: "main" }))),
      h("p", { class: "route" }, h("code", {}, rule.from), " → ", h("code", {}, rule.to.join(", "))),
      h("dl", { class: "facts" },
        fact("Tags in sync", tags ? [h("b", {}, number(tags.in_sync)), ` of ${number(tags.total)}`, segments([[tags.in_sync, "copied"], [tags.total - tags.in_sync, rule.state === "failing" ? "failed" : "waiting"]], "Tags in sync")] : rule.shared ? "ran with all rules" : "never listed"),
        fact("Schedule", rule.schedule ?? "manual"),
        fact("Next run", rule.next ? when(rule.next) : "when it is started"),
        fact("Last good run", rule.last_good ? when(rule.last_good) : "none known"),
        fact("Last failure", failure ? [when(failure.at), " ", link(batchPath(failure.batch), failureWords(failure))] : "none known"),
        rule.skipped > 0 ? fact("Skipped runs", `${number(rule.skipped)} in a row: the batch before had not ended`) : null),
      rule.state === "nothing_selected" ? h("p", { class: "note" }, ...prose("Its last run selected no tag. `imgsync tags` shows which part of the rule drops each tag.")) : null,
      rule.state === "never_run" ? h("p", { class: "note" }, rule.schedule ? "It has not run yet: start it, or wait for its schedule." : "It has not run yet, and has no schedule: start it here.") : null,
      rule.state === "no_recent_run" ? h("p", { class: "note" }, ...prose("Its last run is older than `keep:` and is not stored any more.")) : null);
    show(failures, groups ? [h("h2", {}, "Failures of the last run"), ...failureGroups(groups, null)] : null);
    show(history,
      runs.length > 0 ? h("h2", {}, "History") : null,
      historyPlot([...runs].reverse()),
      runs.length > 0 ? runTable(runs) : null,
      next ? h("p", { class: "buttons" }, button("older", "Older runs", older)) : null);
  }

  let version = known.rulesVersion;
  read();
  return {
    overview: () => {
      if (version === known.rulesVersion) return;
      version = known.rulesVersion;
      read();
    },
  };
}

function runTable(runs) {
  const head = [["Run"], ["State"], ["Copied", "number"], ["Unchanged", "number"], ["Failed", "number"], ["Not listed", "number"], ["Bytes copied", "number"], ["Duration", "number"]];
  const amount = (label, value, style = "") => h("td", { class: `number ${value > 0 ? style : "zero"}`, "data-label": label }, number(value));
  const row = (run) => h("tr", {},
    h("td", { class: "name" }, link(batchPath(run.batch), when(run.started), { key: run.batch }), run.shared ? h("span", { class: "dim" }, " all rules") : null, run.pushed ? h("span", { class: "dim" }, " by a push") : null),
    h("td", { class: "state" }, batchMark({ state: run.state, planned: run.total > 0 || run.ended, unlisted: run.unlisted, counts: run })),
    amount("Copied", run.copied), amount("Unchanged", run.unchanged), amount("Failed", run.failed, "bad"), amount("Not listed", run.unlisted, "bad"),
    h("td", { class: "number", "data-label": "Bytes copied" }, bytes(run.bytes)),
    h("td", { class: "number", "data-label": "Duration" }, seconds(run.seconds)));
  return h("div", { class: "scroll" }, h("table", { class: "stack runs", "aria-label": plural(runs.length, "run", "runs") },
    h("thead", {}, h("tr", {}, ...head.map(([words, style]) => h("th", { scope: "col", class: style ?? false }, words)))),
    h("tbody", {}, ...runs.map(row))));
}
