// Calls of the service, each timed. The key, where one is asked for, stays in this tab.

import { say } from "./language.js";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const KEY = "ctxrec-key";
export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

// Relative addresses, so that the page also works under a route prefix.
export async function call(path, body) {
  const headers = key.get() ? { Authorization: `Bearer ${bytesOf(key.get())}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  const start = performance.now();
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, say("error.silent"));
  }
  const text = await response.text();
  const ms = performance.now() - start;
  if (!response.ok) throw new Refused(response.status, detail(text) || say("error.status", { status: String(response.status) }));
  const isJson = (response.headers.get("Content-Type") || "").includes("json");
  return { ms, answer: isJson ? JSON.parse(text) : text };
}

// A text as its UTF-8 bytes, a character for each byte: fetch takes no other characters in a header.
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));

function detail(text) {
  try {
    const found = JSON.parse(text).detail;
    if (typeof found === "string") return found;
    return found.map((error) => `${error.loc.slice(1).join(" > ")}: ${error.msg}`).join(say("separator"));
  } catch {
    return "";
  }
}

const known = new Map(); // rows of items that were asked for once

export async function itemRows(ids) {
  const missing = [...new Set(ids)].filter((id) => !known.has(id));
  for (let start = 0; start < missing.length; start += 100) {
    const query = missing.slice(start, start + 100).map((id) => `id=${encodeURIComponent(id)}`).join("&");
    const { answer } = await call(`v1/items?${query}`);
    for (const row of answer.items) known.set(row.item_id, row);
  }
  return new Map(ids.map((id) => [id, known.get(id) || { item_id: id, title: "" }]));
}

export const similar = (id, k) => call(`v1/items/${encodeURIComponent(id)}/similar?k=${k}`);
export const findUsers = (prefix, limit) => call(`v1/users?limit=${limit}&prefix=${encodeURIComponent(prefix)}`);
export const history = (user, before) => call(`v1/users/${encodeURIComponent(user)}/history?limit=100&before=${before}`);

const STAGES = ["parse", "wait", "history", "filter", "tower", "memory", "search", "rerank", "arrange", "explain", "serialise"];

// Mean milliseconds of each stage, from the Prometheus text, in the order in which a request passes them.
export async function stages() {
  const { answer } = await call("metrics");
  const made = new Map();
  for (const [, kind, stage, value] of answer.matchAll(/^ctxrec_stage_seconds_(sum|count)\{stage="([\w ]+)"\} (\S+)$/gm)) {
    made.set(stage, { ...made.get(stage), [kind]: Number(value) });
  }
  const place = (stage) => (STAGES.includes(stage) ? STAGES.indexOf(stage) : STAGES.length);
  const passed = [...made].filter(([, s]) => s.count).sort(([a], [b]) => place(a) - place(b));
  return passed.map(([stage, s]) => [stage, (1000 * s.sum) / s.count]);
}
