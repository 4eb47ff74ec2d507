// Requests to the server. The token is stored until the tab is closed, and only sent in a header.

const KEY = "imgsync-token";

/// Moves the token from the URL, where `imgsync serve` printed it, into the session, so that it stays out of the
/// history.
export function takeToken() {
  const found = /^#token=([\x21-\x7e]+)$/.exec(location.hash);
  if (found) {
    setToken(found[1]);
    history.replaceState(null, "", `${location.pathname}#/`);
  }
}

export function setToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
}

/// Removes a token that the server rejected, unless another one was set since.
export function forgetToken(sent) {
  if (sessionStorage.getItem(KEY) === sent) setToken(null);
}

export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

/// An error response: status, message, and the token that the request was sent with.
export class Refused extends Error {
  constructor(status, error, sent) {
    super(error.hint ? `${error.message} (${error.hint})` : error.message);
    this.status = status;
    this.sent = sent;
  }
}

async function ask(path, init = {}) {
  const headers = { ...init.headers };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(`/api/v1/${path}`, { ...init, headers, cache: "no-store", credentials: "omit" });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error ?? { message: `the server answered ${response.status}` }, token);
}

export async function get(path) {
  return (await ask(path)).json();
}

/// Saves a response as a file: a link could not send the token.
export async function save(path, name) {
  const url = URL.createObjectURL(await (await ask(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/// Encodes the parameters of a query that are set.
export function query(parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return set.length > 0 ? `?${new URLSearchParams(set)}` : "";
}

export async function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/// Follows the event stream: `on(name, value)` for each event, `state(words, error)` when the connection opens or
/// closes. A tab in the background is disconnected: browsers open few connections to a server, over all tabs.
export async function follow(on, state) {
  let wait = 500;
  for (;;) {
    await visible();
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    const leave = () => stop.abort();
    addEventListener("pagehide", leave);
    try {
      const response = await ask("events", { signal: stop.signal });
      state("live", null);
      wait = 500;
      await read(response.body.getReader(), on);
      state("reconnecting", null);
    } catch (error) {
      if (!stop.signal.aborted) {
        state("not connected", error);
        if (error.status === 401) await asked();
      }
    }
    document.removeEventListener("visibilitychange", hide);
    removeEventListener("pagehide", leave);
    if (stop.signal.aborted) continue;
    await new Promise((later) => setTimeout(later, wait));
    wait = Math.min(wait * 2, 10000);
  }
}

/// Waits until the tab is in the foreground.
function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((later) => {
    const check = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", check);
      later();
    };
    document.addEventListener("visibilitychange", check);
  });
}

let answered = null;

/// Continues after the sign-in dialog was closed, with or without a token.
export function tokenWasAnswered() {
  answered?.();
  answered = null;
}

function asked() {
  return new Promise((later) => {
    answered = later;
  });
}

async function read(reader, on) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      const name = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (name && data) on(name[1], JSON.parse(data[1]));
    }
  }
}
