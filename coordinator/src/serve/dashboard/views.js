// Rendering. Strings from registries become text nodes, never markup.

/// Creates an element. `on…` attributes are listeners; a `key` keeps the focus when the section is rendered again.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "key") element.dataset.key = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/// Replaces the content of a section; keeps focus and scroll positions.
export function show(id, ...children) {
  const part = document.getElementById(id);
  const focused = part.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = [...part.querySelectorAll(".list, .scroll")].map((list) => list.scrollTop);
  part.replaceChildren(...children.filter(Boolean));
  part.querySelectorAll(".list, .scroll").forEach((list, at) => (list.scrollTop = scrolled[at] ?? 0));
  if (focused) [...part.querySelectorAll("[data-key]")].find((one) => one.dataset.key === focused)?.focus();
}

export const number = (value) => value.toLocaleString("en");

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
  value = Math.round(value);
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${value % 60} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

/// Formats a time as relative text, with the exact time as title.
export function when(time) {
  const off = (Date.parse(time) - Date.now()) / 1000;
  const words = off >= 0 ? `in ${seconds(off)}` : `${seconds(-off)} ago`;
  return h("time", { datetime: time, title: new Date(time).toLocaleString() }, words);
}

export function bar(counts) {
  const parts = [["copied", "copied"], ["unchanged", "unchanged"], ["failed", "failed-fill"], ["cancelled", "cancelled-fill"], ["running", "running-fill"]];
  const done = counts.copied + counts.unchanged + counts.failed + counts.cancelled;
  const bar = h("div", { class: "bar", role: "img", "aria-label": `${number(done)} of ${number(counts.total)} images finished` });
  for (const [outcome, style] of parts) {
    const part = h("i", { class: style });
    part.style.flexGrow = counts[outcome];
    bar.append(part);
  }
  const rest = h("i");
  rest.style.flexGrow = counts.waiting;
  bar.append(rest);
  return bar;
}

export const hasFailed = (batch) => batch.counts.failed + batch.unlisted > 0;

export function chip(batch) {
  const failed = batch.state === "done" && hasFailed(batch);
  const listing = batch.state === "running" && !batch.planned;
  const words = failed ? "done, with failures" : listing ? "listing" : batch.state;
  return h("span", { class: `chip ${failed ? "failed" : batch.state}` }, words);
}

export function batchList(batches, selectedId, selectBatch) {
  const items = batches.map((batch) =>
    h("li", {},
      h("button", { type: "button", key: batch.batch, "aria-current": String(batch.batch === selectedId), onclick: () => selectBatch(batch.batch) },
        h("span", { class: "name", title: batch.title }, batch.title || batch.batch),
        h("span", { class: "name dim", title: batch.to.join(", ") }, "to ", batch.to.join(", ")),
        bar(batch.counts),
        h("span", { class: "row" }, chip(batch), h("span", { class: "dim" }, when(batch.started))))));
  return [
    h("h2", {}, "Batches"),
    items.length === 0 ? h("p", { class: "dim" }, "No batches yet: start a rule, or wait for its schedule.") : h("ol", { class: "list" }, ...items),
  ];
}

/// Counters of a batch.
export function counts(batch) {
  const one = (name, value, bad = false) => h("div", { class: bad && value !== "0" ? "bad" : false }, h("dt", {}, name), h("dd", {}, value));
  const { counts } = batch;
  return h("dl", { class: "counts" },
    one("total", number(counts.total)),
    one("waiting", number(counts.waiting)),
    one("running", number(counts.running)),
    one("copied", number(counts.copied)),
    one("unchanged", number(counts.unchanged)),
    one("failed", number(counts.failed), true),
    counts.cancelled > 0 ? one("cancelled", number(counts.cancelled)) : null,
    batch.unlisted > 0 ? one("listing failed", number(batch.unlisted), true) : null,
    one("bytes copied", bytes(batch.bytes.copied)),
    one("requests", number(batch.requests.source + batch.requests.target)));
}

/// Failure groups, each with a button that requeues it.
export function groups(batch, groups, requeue) {
  const may = batch.state !== "cancelled" && batch.state !== "superseded";
  const button = (key, label, filter, count) =>
    h("button", { type: "button", key, "aria-label": `Requeue ${count} failures: ${label}`, disabled: !may, onclick: () => requeue(filter) }, "Requeue");
  const kinds = groups.by_kind.map((group) =>
    h("div", { class: "item" },
      h("span", { class: "row" }, h("span", {}, h("strong", {}, `${number(group.failed)} ${group.title.toLowerCase()}`), " ", group.kind === group.title.toLowerCase() ? null : h("code", { class: "dim" }, group.kind)),
        button(`kind ${group.kind}`, group.title, { kind: group.kind }, group.failed)),
      h("p", { class: "error" }, group.example.error),
      h("p", { class: "dim" }, group.advice)));
  const registries = groups.by_registry.map((group) =>
    h("tr", {},
      h("td", {}, h("code", {}, group.registry)),
      h("td", { class: "number" }, number(group.failed)),
      h("td", { class: "act" }, button(`registry ${group.registry}`, group.registry, { registry: group.registry }, group.failed))));
  const unlisted = groups.unlisted.map((one) =>
    h("div", { class: "item" }, h("span", { class: "row" }, h("code", {}, one.repository), h("code", { class: "dim" }, one.kind)), h("span", { class: "error" }, one.error)));
  return [
    kinds.length > 0 && h("h3", {}, "Failures by kind"),
    ...kinds,
    registries.length > 0 && h("h3", {}, "Failures by registry (source or target)"),
    registries.length > 0 && h("table", {}, h("tbody", {}, ...registries)),
    unlisted.length > 0 && h("h3", {}, "Listing failed"),
    ...unlisted,
  ];
}

export function schedules(entries, start) {
  const items = entries.map((entry) =>
    h("div", { class: "item" },
      h("span", { class: "row" }, h("code", {}, entry.name),
        h("button", { type: "button", key: entry.rule, "aria-label": `Start ${entry.name}`, disabled: entry.running !== null, onclick: () => start(entry) }, entry.running ? "Running" : "Start")),
      h("span", { class: "dim" }, ...(entry.name === entry.from ? [] : [h("code", {}, entry.from), " "]), "to ", h("code", {}, entry.to.join(", "))),
      h("span", { class: "row" }, entry.schedule ?? h("span", { class: "dim" }, "manual"), entry.next ? h("span", { class: "dim" }, "next ", when(entry.next)) : null),
      entry.skipped > 0 ? h("span", { class: "dim" }, `skipped ${number(entry.skipped)} scheduled runs: a batch of it was running or paused`) : null));
  return [h("h2", {}, "Schedules"), ...(items.length === 0 ? [h("p", { class: "dim" }, "The configuration has no rules.")] : items)];
}

const MAX_RUNNING = 8;

export function workers(workers) {
  const items = workers.map((worker) => {
    const doing = worker.running.slice(0, MAX_RUNNING).map((one) => h("li", {}, h("code", {}, one.source), h("span", { class: "dim name", title: one.target }, "to ", one.target)));
    const more = worker.running.length - doing.length;
    return h("div", { class: "item" },
      h("span", { class: "row" }, h("code", {}, worker.worker), h("span", { class: "dim" }, `${worker.running.length} of ${worker.slots} slots`)),
      worker.draining ? h("span", { class: "chip wait" }, "draining") : null,
      worker.refused > 0 ? h("span", { class: "error" }, `rejected ${number(worker.refused)} messages, last reason: ${worker.refusal_reason ?? "no reason given"}`) : null,
      h("ul", { class: "doing" }, ...doing, more > 0 ? h("li", { class: "dim" }, `and ${number(more)} more`) : null));
  });
  return [h("h2", {}, "Workers"), ...(items.length === 0 ? [h("p", { class: "dim" }, "No active workers.")] : items)];
}

export function routes({ routes, registries }) {
  const held = (one) => one.throttled_until
    ? h("span", { class: "chip wait", title: one.throttle_reason ?? "" }, "rate limited until ", when(one.throttled_until).getAttribute("title")) : null;
  const items = routes.map((route) =>
    h("div", { class: "item" },
      h("span", { class: "row" }, h("code", {}, route.source.endpoint, route.source.user ? ` as ${route.source.user}` : "", " to ", route.target.endpoint, route.target.user ? ` as ${route.target.user}` : ""),
        h("span", { class: "dim" }, route.waiting === null ? "" : `${number(route.waiting)} waiting`)),
      held(route),
      route.throttle_reason ? h("span", { class: "dim" }, route.throttle_reason) : null,
      ...route.unserved_reasons.map((why) => h("span", { class: "error" }, why))));
  const rates = registries.map((one) => {
    const limits = [];
    if (one.requests_per_second !== null) limits.push(`${one.requests_per_second} requests/s`);
    if (one.learned_requests_per_second !== null) limits.push(`${one.learned_requests_per_second} requests/s learned from rejections`);
    if (one.concurrency !== null) limits.push(`${one.concurrency} concurrent requests`);
    return h("div", { class: "item" }, h("code", {}, one.registry), h("span", { class: "dim" }, limits.join(", ") || "no known limit"), held(one));
  });
  return [
    h("h2", {}, "Routes"),
    ...(items.length === 0 ? [h("p", { class: "dim" }, "No tasks queued yet.")] : items),
    rates.length > 0 && h("h3", {}, "Registries and limits"),
    ...rates,
  ];
}
