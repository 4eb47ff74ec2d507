// The overview: problems first, then a row for each rule.

import { batchPath, button, debounce, field, h, link, mark, number, pager, plural, prose, ruleMark, rulePath, ruleStates, ruleStateWords, segments, show, since, when, workerPath } from "./dom.js";
import { get, query } from "./server.js";

const ROWS = 100;
/// Minimum time between two reads of the rules.
const READ_INTERVAL = 2000;

export function overviewPage({ main, parameters, known, change, setParameters, setTitle, say }) {
  setTitle("");
  const filter = { state: parameters.state ?? "", text: parameters.text ?? "", registry: parameters.registry ?? "", from: Number(parameters.from ?? 0) || 0 };
  let rules = null;
  let reading = false;
  let again = false;
  let lastRead = 0;

  const problems = h("section", { id: "problems", "aria-label": "Problems" });
  const totals = h("section", { id: "totals", "aria-label": "Totals" });
  const table = h("section", { id: "rules", "aria-label": "Rules" });
  const input = (name, label, placeholder) =>
    field(label, h("input", { type: "search", value: filter[name], placeholder, key: name, spellcheck: "false", oninput: debounce(250, (event) => apply({ [name]: event.target.value.trim() })) }));
  const filters = h("div", { class: "filters", id: "rule-filters", hidden: true },
    input("text", "Rule, source or target", "team/api"),
    input("registry", "Registry", "gcr.io"));
  main.append(h("h1", { class: "hidden" }, "Overview"), problems, totals, filters, table);

  function apply(changed) {
    Object.assign(filter, { from: 0 }, changed);
    setParameters({ ...filter, from: filter.from || "" });
    read(true);
  }

  async function read(now = false) {
    if (reading) {
      again = true;
      return;
    }
    reading = true;
    try {
      const wait = now ? 0 : lastRead + READ_INTERVAL - Date.now();
      if (wait > 0) await new Promise((later) => setTimeout(later, wait));
      lastRead = Date.now();
      rules = await get(`rules${query({ ...filter, limit: ROWS })}`);
      render();
    } catch (error) {
      if (error.status !== 401) say(error.message);
    }
    reading = false;
    if (again) {
      again = false;
      read();
    }
  }

  async function start(rule) {
    if (await change(`rules/${encodeURIComponent(rule.rule)}/start`, {}, () => `${rule.name} started.`)) read(true);
  }

  function render() {
    renderTotals();
    if (!rules) return;
    const all = Object.values(rules.states).reduce((sum, count) => sum + count, 0);
    filters.hidden = all < 2;
    if (all === 0) return show(table, firstStep());
    show(table,
      all > 0 && rules.states.never_run === all ? h("p", { class: "note" }, "No rule has run yet. Start one to copy its images now, or wait for its schedule.") : null,
      rules.rules.length === 0 ? h("p", { class: "empty" }, "No rule matches the filter.") : ruleTable(rules.rules, start, rules.runs_searched),
      rules.total > ROWS ? pager(`${number(filter.from + 1)}–${number(filter.from + rules.rules.length)} of ${plural(rules.total, "rule", "rules")}`,
        filter.from > 0 && (() => apply({ from: Math.max(filter.from - ROWS, 0) })), rules.next !== null && (() => apply({ from: rules.next }))) : null);
  }

  function renderTotals() {
    const { overview } = known;
    if (!overview) return;
    const { totals: sums } = overview;
    if (sums.rules === 0) return show(totals);
    const chips = ruleStates.filter((state) => sums.states[state] > 0 || filter.state === state).map((state) =>
      button(`state ${state}`, [mark(state, ruleStateWords(state)), h("b", {}, number(sums.states[state]))],
        () => apply({ state: filter.state === state ? "" : state }), { class: "chip", "aria-pressed": String(filter.state === state) }));
    show(totals,
      h("div", { class: "chips", role: "group", "aria-label": "Rules by state" }, h("span", { class: "all" }, plural(sums.rules, "rule", "rules")), ...chips,
        filter.state ? button("all", "Show all", () => apply({ state: "" }), { class: "plain" }) : null),
      h("p", { class: "sums" },
        h("span", {}, h("b", {}, number(sums.tags_in_sync)), ` of ${plural(sums.tags, "tag", "tags")} in sync`),
        h("span", {}, link("/workers", [h("b", {}, number(sums.busy_slots)), ` of ${plural(sums.slots, "slot", "slots")} busy`]), ` on ${plural(sums.workers, "worker", "workers")}`),
        overview.hooks.configured > 0 ? hookSums(overview.hooks) : null));
  }

  function hookSums({ last, pending, outcomes }) {
    const sum = (...names) => names.reduce((all, name) => all + (outcomes[name] ?? 0), 0);
    const refused = sum("secret", "malformed", "too_large", "foreign_host", "invalid_name", "store", "timed_out", "unknown_hook", "host");
    return h("span", { id: "hooks" }, h("b", {}, number(sum("accepted", "coalesced"))), " pushes by hooks",
      pending > 0 ? `, ${number(pending)} pending` : "",
      refused > 0 ? `, ${number(refused)} refused` : "",
      last ? [", last ", when(last)] : "");
  }

  function renderProblems() {
    const { overview } = known;
    if (!overview) return;
    show(problems, ...overview.problems.map(problem), overview.more_problems > 0 ? h("p", { class: "dim" }, `and ${plural(overview.more_problems, "more problem", "more problems")}`) : null);
  }

  renderProblems();
  render();
  read(true);
  let version = known.rulesVersion;
  return {
    overview: () => {
      renderProblems();
      renderTotals();
      if (version !== known.rulesVersion) {
        version = known.rulesVersion;
        read();
      }
    },
  };
}

function problem(one) {
  const names = one.rules.map((rule) => link(rulePath(rule.rule), rule.name));
  const words = names.flatMap((name, at) => (at > 0 ? [", ", name] : [name]));
  return h("article", { class: `problem ${one.severity}` },
    h("h2", {}, one.title, one.since ? h("span", { class: "since" }, " since ", since(one.since)) : null,
      words.length > 0 ? h("span", { class: "names" }, ...words, one.more_rules > 0 ? ` and ${number(one.more_rules)} more` : "") : null),
    one.detail ? h("p", { class: "detail" }, ...prose(one.detail)) : null,
    h("p", { class: "advice" }, ...prose(one.advice),
      one.batch ? [" ", link(batchPath(one.batch), "Show the batch")] : null,
      one.worker ? [" ", link(workerPath(one.worker), "Show the worker")] : null));
}

function ruleTable(rules, start, runs) {
  const head = ["State", "Rule", "Tags in sync", "Last good run", "Next run", "Last failure", ""];
  return h("div", { class: "scroll" }, h("table", { class: "rules stack" },
    h("thead", {}, h("tr", {}, ...head.map((words) => h("th", { scope: "col", "aria-label": words ? false : "Actions" }, words)))),
    h("tbody", {}, ...rules.map((rule) => ruleRow(rule, start, runs)))));
}

function ruleRow(rule, start, runs) {
  const { tags, last_failure: failure } = rule;
  const isBusy = rule.running !== null;
  const copies = rule.name === rule.from ? [] : [rule.from, " "];
  return h("tr", { class: `rule ${rule.state}` },
    h("td", { class: "state" }, ruleMark(rule)),
    h("td", { class: "name" }, link(rulePath(rule.rule), rule.name, { key: `rule ${rule.rule}` }),
      h("span", { class: "route", title: `${rule.from} → ${rule.to.join(", ")}` }, ...copies, "→ ", rule.to.join(", "))),
    h("td", { class: "tags", "data-label": "Tags in sync" }, tags
      ? [segments([[tags.in_sync, "copied"], [tags.total - tags.in_sync, rule.state === "failing" ? "failed" : "waiting"]], `${number(tags.in_sync)} of ${plural(tags.total, "tag", "tags")} in sync`),
        h("span", { class: "count" }, h("b", {}, number(tags.in_sync)), ` of ${number(tags.total)}`)]
      : h("span", { class: "dim" }, rule.shared ? "ran with all rules" : "–")),
    rule.last_good ? h("td", { class: "time", "data-label": "Last good run" }, when(rule.last_good))
      : h("td", { class: "time dim", "data-label": "Last good run", title: `None of its newest ${runs} runs was good.` }, rule.last ? "none" : "–"),
    h("td", { class: "time", "data-label": "Next run", title: rule.schedule ?? "" }, rule.next ? when(rule.next) : h("span", { class: "dim" }, rule.schedule ? "–" : "manual")),
    h("td", { class: `failure ${failure ? "" : "none"}`, "data-label": "Last failure" }, failure ? [when(failure.at), " ", link(batchPath(failure.batch), failureWords(failure))] : h("span", { class: "dim" }, "–")),
    h("td", { class: "act" }, isBusy ? link(batchPath(rule.running), "Progress", { class: "button" })
      : button(`start ${rule.rule}`, "Start", () => start(rule), { "aria-label": `Start ${rule.name}` })));
}

export function failureWords(failure) {
  const parts = [];
  if (failure.failed > 0) parts.push(plural(failure.failed, "image", "images"));
  if (failure.unlisted > 0) parts.push(plural(failure.unlisted, "listing", "listings"));
  return `${parts.join(", ") || "prune"}${failure.title ? `: ${failure.title.toLowerCase()}` : ""}`;
}

function firstStep() {
  const example = "rules:\n- name: alpine\n  from: docker.io/library/alpine\n  tags: {newest: 3}\n  to: registry.example.com/mirror\n  schedule: {every: 6h}\n";
  return h("div", { class: "first" },
    h("h2", {}, "No rules yet"),
    h("p", {}, "A rule says which tags to copy, where to, and when. Add one to the configuration with which ", h("code", {}, "imgsync serve"), " was started:"),
    h("pre", {}, example),
    h("ol", {},
      h("li", {}, "Check it: ", h("code", {}, "imgsync config check"), "."),
      h("li", {}, "See what it selects: ", h("code", {}, "imgsync run --dry-run"), "."),
      h("li", {}, "Save the file. The server reads it within a second, and the rule appears here.")));
}
