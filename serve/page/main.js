// The page: what is asked is read from the form, at each change of it.

import { call, findUsers, history, itemRows, key, similar, stages } from "./api.js";
import { instant, useZone, wall } from "./clock.js";
import { choose as chooseLanguage, dateTime, fill, languages, nameIn, number, say, tag, weekdays } from "./language.js";
import { byId, choice, event, field, make, plainList, reasons, recommendation, stageRows } from "./view.js";

const DAY = 86400;
const state = { about: null, zone: "UTC", context: [], filters: [], shown: new Map(), times: [], number: 0, why: null };

start();

async function start() {
  byId("asked").addEventListener("input", changed);
  byId("asked").addEventListener("change", (done) => done.target.matches("select") && changed(done)); // not every browser says input there
  byId("asked").addEventListener("submit", (submitted) => submitted.preventDefault());
  byId("asked").addEventListener("reset", () => setTimeout(startOver));
  byId("key").addEventListener("change", () => {
    key.set(byId("key").value);
    load();
  });
  byId("list").addEventListener("click", (clicked) => {
    const button = clicked.target.closest("button");
    if (button) toggle(button);
  });
  speak();
  await load();
  setInterval(health, 10000);
}

// Says all that stands still on the page in its language.
function speak() {
  document.documentElement.lang = tag();
  fill(document);
  byId("languages").replaceChildren(
    ...languages().map(({ code, name, tag: lang, chosen }) =>
      make("button", { type: "button", textContent: name, lang, ariaPressed: String(chosen), onclick: () => switchTo(code) }),
    ),
  );
  const day = byId("weekday").value;
  byId("weekday").replaceChildren(...weekdays().map((textContent, value) => make("option", { value, textContent })));
  byId("weekday").value = day || "0";
  if (state.about) byId("num-items").textContent = number(state.about.num_items);
}

// The rest of the page is asked for again.
async function switchTo(code) {
  chooseLanguage(code);
  speak();
  byId("languages").querySelector("[aria-pressed=true]").focus();
  health();
  if (!state.about) return load();
  await someUsers();
  await showUser();
}

async function load() {
  health();
  try {
    state.about = (await call("v1/catalogue")).answer;
  } catch (error) {
    return fail(error);
  }
  const about = state.about;
  byId("key-section").hidden = !key.get();
  byId("data-name").textContent = about.name;
  byId("num-items").textContent = number(about.num_items);
  state.zone = useZone(about.timezone);
  byId("zone").textContent = state.zone;
  byId("clock").hidden = !about.clock;
  document.title = `ctxrec \u2013 ${about.name}`;
  makeFields(about);
  await startOver();
}

function makeFields(about) {
  const made = [];
  const add = (name, control) => made.push({ name, control, parts: field(`context-${made.length}`, name, control) });
  for (const [name, values] of Object.entries(about.context.categorical)) add(name, choice(values, "context.unset"));
  for (const name of about.context.numeric) add(name, make("input", { type: "number", step: "any" }));
  for (const name of about.context.text) add(name, make("input", { type: "text" }));
  state.context = made;
  byId("context").replaceChildren(...made.flatMap(({ parts }) => parts));
  byId("context-section").hidden = made.length === 0;
  const columns = Object.entries(about.item_columns.categorical);
  state.filters = columns.map(([name, values], n) => {
    const control = choice(values, "filter.any");
    return { name, control, parts: field(`filter-${n}`, name, control, "filter") };
  });
  byId("filters").replaceChildren(...state.filters.flatMap(({ parts }) => parts));
  for (const id of ["context", "filters"]) fill(byId(id));
}

async function startOver() {
  const latest = state.about?.latest_event ?? 0;
  const now = Date.now() / 1000;
  setMoment(now - latest < 30 * DAY ? now : latest + 60); // an old log is asked at its end
  await someUsers();
  if (!byId("user").value) byId("user").value = byId("some-users").firstElementChild?.textContent ?? "";
  await showUser();
}

// The moment, and the hour and weekday that it has: one changes with the other. Epoch seconds; shown in the zone of the log.
function moment() {
  const text = byId("moment").value;
  return text ? instant(Date.parse(`${text}Z`) / 1000) : Math.floor(Date.now() / 1000);
}

const hourOf = (shown) => new Date(shown * 1000).getUTCHours();
const weekdayOf = (shown) => (new Date(shown * 1000).getUTCDay() + 6) % 7;

function setMoment(seconds) {
  setShown(wall(Math.floor(seconds)));
}

function setShown(shown) {
  byId("moment").value = new Date(shown * 1000).toISOString().slice(0, 16);
  byId("hour").value = hourOf(shown);
  byId("hour-text").textContent = `${String(hourOf(shown)).padStart(2, "0")}:00`;
  byId("weekday").value = weekdayOf(shown);
}

let waiting;
function changed({ target }) {
  if (target.id === "key") return;
  const shown = wall(moment());
  if (target.id === "moment" && byId("moment").value) setShown(shown);
  if (target.id === "hour") setShown(shown + 3600 * (target.value - hourOf(shown)));
  if (target.id === "weekday") setShown(shown + DAY * (target.value - weekdayOf(shown)));
  clearTimeout(waiting);
  if (target.id === "user") suggest();
  waiting = setTimeout(target.id === "user" || target.id === "moment" ? showUser : ask, 150);
}

async function suggest() {
  const found = await quietly(() => findUsers(byId("user").value, 20));
  if (found) byId("users").replaceChildren(...found.answer.users.map((u) => make("option", { value: u.user_id })));
}

async function someUsers() {
  const found = await quietly(() => findUsers("", 100));
  const users = (found?.answer.users ?? []).filter((user) => user.events >= 3).slice(0, 8);
  const buttons = users.map(({ user_id, events }) =>
    make("button", { type: "button", textContent: user_id, title: say("users.events", { n: events }), onclick: () => choose(user_id) }),
  );
  byId("some-users").replaceChildren(...buttons);
}

function choose(user) {
  byId("user").value = user;
  showUser();
}

async function showUser() {
  const user = byId("user").value.trim();
  for (const button of byId("some-users").children) button.setAttribute("aria-pressed", String(button.textContent === user));
  await Promise.all([ask(), showHistory(user)]);
}

async function showHistory(user) {
  let hint = user ? "" : say("history.nobody");
  let events = [];
  if (user) {
    try {
      const { answer } = await history(user, moment());
      events = answer.events;
      hint = answer.known ? say(events.length === 100 ? "history.latest" : "history.count", { n: events.length }) : say("history.none");
    } catch (error) {
      hint = error.status === 401 ? "" : error.message;
    }
  }
  if (user !== byId("user").value.trim()) return; // another one was named meanwhile
  byId("history-hint").textContent = hint;
  byId("history").replaceChildren(...events.map((told) => event(told, dateTime(told.timestamp, state.zone))));
}

function body() {
  const context = { timestamp: moment() };
  for (const { name, control } of state.context) {
    if (control.value !== "") context[name] = control.type === "number" ? Number(control.value) : control.value;
  }
  const filter = {};
  for (const { name, control } of state.filters) if (control.value !== "") filter[name] = [control.value];
  const user = byId("user").value.trim();
  const count = Math.min(50, Math.max(1, Math.round(Number(byId("count").value)) || 12));
  const words = byId("query").value.trim();
  return { ...(user ? { user_id: user } : { history: [] }), ...(words ? { query: words } : {}), k: count, context, filter };
}

async function ask() {
  const number = ++state.number;
  try {
    const asked = body();
    const { ms, answer } = await call("v1/recommend", asked);
    const rows = await itemRows(answer.items.map((item) => item.item_id));
    if (number !== state.number) return; // a later question is on its way
    state.why = null;
    state.asked = asked;
    show(answer, rows, ms);
  } catch (error) {
    if (number === state.number) fail(error);
  }
}

// In an A/B test with the test and the arm from which the list comes.
function versionOf({ model_version, experiment }) {
  return experiment ? `${model_version} (${experiment.name}: ${experiment.arm})` : model_version;
}

function show(answer, rows, ms) {
  const before = state.shown;
  const top = answer.items[0]?.score || 1;
  state.shown = new Map(answer.items.map((item, n) => [item.item_id, n + 1]));
  byId("list").replaceChildren(
    ...answer.items.map((item, n) =>
      recommendation(item, rows.get(item.item_id), n + 1, Math.max(top, 1e-9), before.get(item.item_id), before.size > 0),
    ),
  );
  const says = [say("status.items", { n: answer.items.length })];
  if (answer.fallback) says.push(say("status.fallback"));
  if (answer.degraded) says.push(say("status.degraded", { part: nameIn("part", answer.degraded) }));
  for (const warning of answer.warnings ?? []) says.push(warning.msg);
  status(says.join(say("separator")), "");
  byId("version").textContent = versionOf(answer);
  state.times = [...state.times, ms].slice(-50);
  const sorted = [...state.times].sort((a, b) => a - b);
  byId("latency").textContent = say("ms", { n: ms });
  byId("median").textContent = say("ms", { n: sorted[Math.floor(sorted.length / 2)] });
  showStages();
}

// Opens or closes what a button of an item shows; only one of the two at a time.
async function toggle(button) {
  const item = button.closest("li");
  const detail = item.querySelector(".detail");
  const opens = button.getAttribute("aria-expanded") === "false";
  for (const other of item.querySelectorAll("button")) other.setAttribute("aria-expanded", "false");
  detail.hidden = true;
  if (!opens) return;
  button.setAttribute("aria-expanded", "true");
  try {
    const parts = button.classList.contains("why") ? await whyOf(item.dataset.item) : await similarTo(item.dataset.item);
    detail.replaceChildren(...parts);
  } catch (error) {
    detail.replaceChildren(make("p", { className: "hint", textContent: error.message }));
  }
  detail.hidden = button.getAttribute("aria-expanded") === "false";
}

async function whyOf(id) {
  state.why ??= call("v1/recommend", { ...state.asked, explain: true }); // once for all items of the list
  const { answer } = await state.why;
  const item = answer.items.find((other) => other.item_id === id);
  if (!item) return [make("p", { className: "hint", textContent: say("why.changed") })];
  return reasons(item.why, await itemRows(Object.keys(item.why.history)));
}

async function similarTo(id) {
  const { answer } = await similar(id, 8);
  return [make("h3", { textContent: say("similar.title") }), plainList(answer.items, await itemRows(answer.items.map((i) => i.item_id)))];
}

async function health() {
  try {
    const { answer } = await call("readyz");
    byId("health").textContent = nameIn("service", answer.status);
    byId("health").dataset.state = "ready";
    if (!state.shown.size) byId("version").textContent = answer.model_version; // else that of the list stands there
  } catch {
    byId("health").textContent = say("service.down");
    byId("health").dataset.state = "down";
  }
}

async function showStages() {
  const found = await quietly(stages);
  if (found) byId("stages").tBodies[0].replaceChildren(...stageRows(found));
}

async function quietly(call_) {
  try {
    return await call_();
  } catch {
    return null; // what it would have shown stays empty; the list tells what is wrong
  }
}

function fail(error) {
  if (error.status === 401) {
    byId("key-section").hidden = false;
    byId("key-hint").textContent = say(key.get() ? "key.refused" : "key.kept");
    byId("key").focus();
  }
  status(error.message, "error");
}

function status(text, kind) {
  byId("status").textContent = text;
  byId("status").dataset.kind = kind;
}
