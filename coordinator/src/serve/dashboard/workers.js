// Workers with their load and throughput, the routes that they serve, and the limits of registries.

import { batchPath, bytes, h, link, mark, number, plural, segments, show, when, workerPath } from "./dom.js";

export function workersPage({ main, known, setTitle }) {
  setTitle("Workers");
  const workers = h("section", { id: "workers", "aria-label": "Workers" });
  const routes = h("section", { id: "routes", "aria-label": "Routes" });
  const registries = h("section", { id: "registries", "aria-label": "Registries" });
  main.append(h("div", { class: "title" }, h("h1", {}, "Workers")), workers, routes, registries);
  const renderWorkers = () => {
    if (!known.workers) return show(workers, h("p", { class: "dim" }, "Loading…"));
    show(workers, known.workers.length > 0 ? workerTable(known.workers) : noWorkers(known.status));
  };
  const renderRoutes = () => {
    if (!known.routes) return;
    show(routes, h("h2", {}, "Routes"), routeTable(known.routes.routes));
    show(registries, known.routes.registries.length > 0 ? [h("h2", {}, "Registries"), registryTable(known.routes.registries)] : null);
  };
  renderWorkers();
  renderRoutes();
  return { workers: renderWorkers, routes: renderRoutes, status: renderWorkers };
}

function noWorkers(status) {
  return status?.mode === "cluster"
    ? h("div", { class: "first" }, h("h2", {}, "No worker is running"), h("p", {}, "Start one with the same broker and store: ", h("code", {}, "imgsync-worker"), ". It appears here within seconds."))
    : h("p", { class: "empty" }, "No active workers.");
}

function load(worker) {
  const busy = worker.running.length;
  return [segments([[busy, "running"], [Math.max(worker.slots - busy, 0), "waiting"]], `${busy} of ${plural(worker.slots, "slot", "slots")} busy`), h("span", { class: "count" }, h("b", {}, number(busy)), ` of ${plural(worker.slots, "slot", "slots")}`)];
}

function workerMark(worker) {
  if (worker.draining) return mark("paused", "draining");
  return worker.running.length > 0 ? mark("running", "busy") : mark("idle", "idle");
}

const rate = (value, words) => (value === null ? "–" : words(value));
const perMinute = (worker) => rate(worker.images_per_minute, (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : number(Math.round(value))));
const perSecond = (worker) => rate(worker.bytes_per_second, (value) => `${bytes(value)}/s`);

function notes(worker) {
  return [
    worker.config_differs ? h("span", { class: "warning" }, "another configuration than this coordinator") : null,
    worker.refused > 0 ? h("span", { class: "bad" }, `rejected ${plural(worker.refused, "message", "messages")}: ${worker.refusal_reason ?? "no reason given"}`) : null,
    worker.unserved.length > 0 ? h("span", { class: "dim" }, `does not serve ${plural(worker.unserved.length, "route", "routes")}`) : null,
  ].filter(Boolean);
}

function workerTable(workers) {
  const head = [["State"], ["Worker"], ["Load"], ["Images a minute", "number"], ["Throughput", "number"], ["Version"], ["Running since"]];
  return h("div", { class: "scroll" }, h("table", { class: "stack workers" },
    h("thead", {}, h("tr", {}, ...head.map(([words, style]) => h("th", { scope: "col", class: style ?? false }, words)))),
    h("tbody", {}, ...workers.map((worker) => h("tr", {},
      h("td", { class: "state" }, workerMark(worker)),
      h("td", { class: "name" }, link(workerPath(worker.worker), worker.worker, { key: worker.worker }), h("span", { class: "notes" }, ...notes(worker))),
      h("td", { class: "tags", "data-label": "Load" }, ...load(worker)),
      h("td", { class: "number", "data-label": "Images a minute" }, perMinute(worker)),
      h("td", { class: "number", "data-label": "Throughput" }, perSecond(worker)),
      h("td", { class: "time", "data-label": "Version" }, worker.version),
      h("td", { class: "time", "data-label": "Running since" }, when(worker.started_at)))))));
}

const hold = (one) => one.throttled_until
  ? h("span", { class: "warning" }, "held until ", h("time", { datetime: one.throttled_until }, new Date(one.throttled_until).toLocaleTimeString("en", { hourCycle: "h23" })), one.throttle_reason ? `: ${one.throttle_reason}` : "") : null;

const endpoint = (one) => (one.user ? `${one.endpoint} as ${one.user}` : one.endpoint);

function routeTable(routes) {
  if (routes.length === 0) return h("p", { class: "empty" }, "No tasks queued yet.");
  const row = (route) => h("tr", {},
    h("td", { class: "name" }, h("code", {}, endpoint(route.source), " → ", endpoint(route.target)),
      h("span", { class: "notes" }, hold(route),
        !route.served && route.unserved_reasons.length > 0 ? h("span", { class: "bad" }, "No worker serves it.") : null,
        ...route.unserved_reasons.map((why) => h("span", { class: "dim" }, route.served ? `not served by ${why}` : why)))),
    h("td", { class: "number", "data-label": "Waiting" }, route.waiting === null ? "–" : number(route.waiting)));
  return h("table", { class: "routes" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Source → target"), h("th", { scope: "col", class: "number" }, "Waiting"))), h("tbody", {}, ...routes.map(row)));
}

function registryTable(registries) {
  const limits = (one) => [
    one.requests_per_second !== null ? `${one.requests_per_second} requests/s` : null,
    one.learned_requests_per_second !== null ? `${one.learned_requests_per_second} requests/s learned from rejections` : null,
    one.concurrency !== null ? plural(one.concurrency, "concurrent request", "concurrent requests") : null,
  ].filter(Boolean).join(", ");
  return h("table", { class: "registries" }, h("tbody", {}, ...registries.map((one) => h("tr", {},
    h("td", { class: "name" }, h("code", {}, one.registry), h("span", { class: "notes" }, hold(one))),
    h("td", { class: "dim" }, limits(one) || "no known limit")))));
}

export function workerPage({ main, name, known, setTitle }) {
  setTitle(name);
  const section = h("section", { id: "worker", "aria-label": "Worker" });
  main.append(section);
  function render() {
    const head = h("p", { class: "crumbs" }, link("/workers", "Workers"), " /");
    const worker = known.workers?.find((one) => one.worker === name);
    if (!worker) {
      return show(section, head, h("div", { class: "title" }, h("h1", {}, name)),
        h("p", { class: "empty" }, known.workers ? "It is not running: its last heartbeat has expired." : "Loading…"));
    }
    const fact = (term, ...words) => h("div", {}, h("dt", {}, term), h("dd", {}, ...words));
    show(section, head,
      h("div", { class: "title" }, h("h1", {}, worker.worker), workerMark(worker)),
      h("dl", { class: "facts" },
        fact("Load", ...load(worker)), fact("Images a minute", perMinute(worker)), fact("Throughput", perSecond(worker)),
        fact("Host", worker.host), fact("Version", worker.version), fact("Running since", when(worker.started_at)),
        worker.broker_nodes?.length > 0 ? fact("Broker", worker.broker_nodes.join(", ")) : null,
        worker.store_master ? fact("Store", worker.store_master) : null),
      worker.config_differs ? h("p", { class: "note" }, "Its registry settings or targets differ from those of this coordinator. Give both the same file, and restart the worker after a change.") : null,
      worker.refused > 0 ? h("p", { class: "note bad" }, `It rejected ${plural(worker.refused, "message", "messages")}: ${worker.refusal_reason ?? "no reason given"}`) : null,
      h("h2", {}, "Running tasks"),
      worker.running.length > 0 ? h("table", { class: "stack images" }, h("tbody", {}, ...worker.running.map((task) => h("tr", {},
        h("td", { class: "wide" }, link(batchPath(task.batch), h("code", {}, task.source)), h("span", { class: "route" }, "→ ", task.target)),
        h("td", { class: "time" }, when(task.since)))))) : h("p", { class: "empty" }, "None."),
      worker.unserved.length > 0 ? h("h2", {}, "Routes that it does not serve") : null,
      worker.unserved.length > 0 ? h("ul", { class: "plain-list" }, ...worker.unserved.map((one) => h("li", {}, h("code", {}, routeName(one.route)), h("p", { class: "detail" }, one.reason)))) : null);
  }
  render();
  return { workers: render };
}

const routeName = (route) => `${route.source} → ${route.target}`;
