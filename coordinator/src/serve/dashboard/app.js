// The dashboard: pages by the fragment of the URL, dialogs, and the event stream. `known` holds the last state from the
// event stream; the page that is shown is told of each change.

import { batchPage } from "./batch.js";
import { batchesPage } from "./batches.js";
import { h, refreshTimes } from "./dom.js";
import { overviewPage } from "./overview.js";
import { rulePage } from "./rule.js";
import { searchPage } from "./search.js";
import { follow, forgetToken, hasToken, post, query, save, setToken, takeToken, tokenWasAnswered } from "./server.js";
import { workerPage, workersPage } from "./workers.js";

const known = {
  status: null,
  line: "connecting",
  overview: null,
  rulesVersion: null,
  batches: new Map(),
  /// Number of old batches that were removed from `batches`.
  dropped: 0,
  timelines: new Map(),
  failures: new Map(),
  workers: null,
  routes: null,
};

// Pages: the pattern of the path, the entry of the navigation, and the function that builds the page. It returns
// functions that render what changed.

const PAGES = [
  [/^\/$/, "overview", overviewPage],
  [/^\/rules\/([^/]+)$/, "overview", rulePage],
  [/^\/batches$/, "batches", batchesPage],
  [/^\/batches\/([^/]+)$/, "batches", batchPage],
  [/^\/workers$/, "workers", workersPage],
  [/^\/workers\/([^/]+)$/, "workers", workerPage],
  [/^\/search$/, "search", searchPage],
];

let page = {};
let pagePath = null;

function readLocation() {
  const [path, parameters = ""] = (location.hash.replace(/^#/, "") || "/").split("?");
  return { path, parameters: Object.fromEntries(new URLSearchParams(parameters)) };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function openPage() {
  const { path, parameters } = readLocation();
  const main = document.getElementById("main");
  const found = PAGES.map(([pattern, entry, build]) => ({ match: pattern.exec(path), entry, build })).find(({ match }) => match);
  page.close?.();
  page = {};
  main.replaceChildren();
  document.querySelectorAll("nav a").forEach((one) => {
    if (one.dataset.page === found?.entry) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  });
  if (found) page = found.build({ main, name: decode(found.match[1] ?? ""), parameters, known, change, confirm, say, setParameters, setTitle, download }) ?? {};
  else main.append(h("h1", {}, "There is no such page"));
  if (pagePath !== null && pagePath !== path) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
  pagePath = path;
  refreshTimes();
}

/// Changes the parameters of the page's URL without opening it again.
function setParameters(parameters) {
  const { path } = readLocation();
  history.replaceState(null, "", `#${path}${query(parameters)}`);
}

function setTitle(words) {
  document.title = words ? `${words} · imgsync` : "imgsync";
}

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
  if (hasToken()) openPage();
});

function confirm(what, why) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-what").textContent = what;
  document.getElementById("ask-why").textContent = why;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((later) => dialog.addEventListener("close", () => later(dialog.returnValue === "yes"), { once: true }));
}

/// Shows an error; asks for the token if that is what is missing.
function report(error) {
  if (error.status === 401) {
    forgetToken(error.sent);
    askForToken(error.message);
  } else say(error.message);
}

/// Sends a change, and shows the result.
async function change(path, body, words) {
  try {
    const answer = await post(path, body);
    say(words(answer));
    return answer;
  } catch (error) {
    report(error);
    return null;
  }
}

async function download(path, name) {
  try {
    await save(path, name);
  } catch (error) {
    report(error);
  }
}

function showStatus() {
  const { status, line } = known;
  const words = [line];
  if (status) {
    words.push(status.mode === "cluster" ? (status.leader ? "cluster, leader" : "cluster, standby") : "single process");
    document.getElementById("version").textContent = `imgsync ${status.version}`;
    const docs = document.getElementById("docs");
    docs.href = status.docs;
    docs.hidden = false;
  }
  const element = document.getElementById("status");
  element.textContent = words.join(" · ");
  element.dataset.line = line;
  document.getElementById("token-button").textContent = hasToken() ? "Sign out" : "Sign in";
}

// Events. Each changes `known`, and the page renders once per frame what it shows of it.

const on = {
  status: (value) => { known.status = value; showStatus(); },
  overview: (value) => { known.overview = value.overview; known.rulesVersion = value.rules_version; },
  workers: (value) => { known.workers = value.workers; },
  routes: (value) => { known.routes = value; },
  batch: (value) => { known.batches.set(value.batch, value); dropOldBatches(); },
  timeline: (value) => { known.timelines.set(value.batch, value); },
  failures: (value) => { known.failures.set(value.batch, value); },
};

/// Limit of batches that a page keeps: it may stay open for weeks.
const MAX_BATCHES = 200;

function dropOldBatches() {
  while (known.batches.size > MAX_BATCHES) {
    const oldest = [...known.batches.keys()].reduce((a, b) => (a < b ? a : b));
    known.batches.delete(oldest);
    known.timelines.delete(oldest);
    known.failures.delete(oldest);
    known.dropped += 1;
  }
}

const due = new Map();

function later(topic, value) {
  if (due.size === 0) {
    requestAnimationFrame(() => {
      const changes = [...due.values()];
      due.clear();
      changes.forEach(([topic, value]) => page[topic]?.(value));
    });
  }
  due.set(`${topic} ${value.batch ?? ""}`, [topic, value]);
}

takeToken();
document.getElementById("token-button").addEventListener("click", () => {
  if (hasToken()) {
    setToken(null);
    showStatus();
  } else askForToken("Sign in to make changes.");
});
document.getElementById("api").addEventListener("click", () => download("openapi.json", "imgsync-openapi.json"));
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = document.getElementById("search-text").value.trim();
  if (text) location.hash = `/search${query({ text })}`;
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea, dialog");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  document.getElementById("search-text").focus();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
addEventListener("hashchange", openPage);
showStatus();
openPage();
setInterval(refreshTimes, 5000);
follow(
  (name, value) => {
    on[name]?.(value);
    later(name, value);
  },
  (line, error) => {
    known.line = line;
    showStatus();
    if (error?.status === 401) askForToken(error.message);
  },
);
