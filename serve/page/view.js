// Parts of the page, made from answers. Text goes in as text, never as HTML.

import { fill, nameIn, number, quantity, say } from "./language.js";

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const nameOf = (row) => row.title || row.item_id;

export function tagsOf(row) {
  const parts = row.title && row.title !== row.item_id ? [row.item_id] : [];
  for (const [column, value] of Object.entries(row)) {
    if (column === "item_id" || column === "title" || value === null) continue;
    if (Array.isArray(value)) parts.push(...value);
    else parts.push(`${column} ${typeof value === "number" ? quantity(value) : value}`);
  }
  return parts.join(" \u00b7 ");
}

const NOTHING = 0.005; // what is nearer to zero is written as 0.00
const signed = (value) => (value >= NOTHING ? "+" : value <= -NOTHING ? "\u2212" : "") + number(Math.abs(value), 2);

// A list item of a recommendation; `before` is its place in the list shown before, if any.
export function recommendation(item, row, rank, top, before, hadList) {
  const element = byId("item-template").content.firstElementChild.cloneNode(true);
  fill(element);
  const part = (name) => element.querySelector(`.${name}`);
  element.dataset.item = item.item_id;
  part("rank").textContent = rank;
  part("title").textContent = nameOf(row);
  part("tags").textContent = tagsOf(row);
  part("tags").title = tagsOf(row);
  part("meter").firstElementChild.style.width = `${Math.max(0, Math.min(1, item.score / top)) * 100}%`;
  part("score").querySelector(".number").textContent = number(item.score, 2);
  part("score").querySelector(".number").title = item.score;
  for (const name of ["why", "similar"]) part(name).setAttribute("aria-label", say("named", { what: say(name), name: nameOf(row) }));
  if (hadList) mark(part("move"), element, rank, before);
  return element;
}

function mark(move, element, rank, before) {
  if (before === undefined) {
    move.textContent = say("move.new");
    move.dataset.way = "new";
    element.classList.add("fresh");
  } else if (before !== rank) {
    const way = before > rank ? "up" : "down";
    move.dataset.way = way;
    move.textContent = `${way === "up" ? "\u25b2" : "\u25bc"} ${number(Math.abs(before - rank))}`;
    move.setAttribute("aria-label", say(`move.${way}`, { n: Math.abs(before - rank) }));
  }
}

// Effects with bars to both sides of zero, all on one scale.
function effects(title, pairs, scale) {
  const rows = pairs.map(([name, value]) => {
    const width = `${Math.min(1, Math.abs(value) / scale) * 100}%`;
    const [less, more] = [make("span"), make("span")];
    (value < 0 ? less : more).style.width = width;
    return make(
      "tr", {},
      make("th", { scope: "row", textContent: name }),
      make("td", {}, make("div", { className: "two-sided", ariaHidden: "true" }, less, more)),
      make("td", { className: "number", textContent: signed(value) }),
    );
  });
  return [make("h3", { textContent: title }), make("table", { className: "effects" }, make("tbody", {}, ...rows))];
}

export function reasons(why, rows) {
  const counted = (effects) => Object.entries(effects).filter(([, value]) => Math.abs(value) >= NOTHING);
  const largestFirst = (effects) => counted(effects).sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
  const history = largestFirst(why.history);
  const context = largestFirst(why.context).map(([name, value]) => [nameIn("time", name), value]);
  const user = largestFirst(why.user);
  const sources = counted(why.sources).map(([name, value]) => [nameIn("source", name), value]);
  const scale = (pairs) => Math.max(1e-9, ...pairs.map(([, value]) => Math.abs(value)));
  const both = Math.max(scale(history), scale(context), scale(user));
  const titled = history.map(([id, value]) => [nameOf(rows.get(id)), value]);
  const made = [];
  if (titled.length) made.push(...effects(say("why.history"), titled, both));
  if (context.length) made.push(...effects(say("why.context"), context, both));
  if (user.length) made.push(...effects(say("why.user"), user, both));
  made.push(...effects(say("why.sources"), sources, scale(sources)));
  return made;
}

export function plainList(items, rows) {
  return make(
    "ol", { className: "plain" },
    ...items.map((item) =>
      make("li", {}, make("span", { textContent: nameOf(rows.get(item.item_id)) }), make("span", { className: "number", textContent: number(item.score, 3) })),
    ),
  );
}

const unbroken = (text) => text.replaceAll(" ", "\u00a0"); // lines break between parts alone

export function event(told, when) {
  const shown = (value) => (typeof value === "number" ? quantity(value) : value);
  const about = [when, told.action, ...Object.entries(told.context).map(([name, value]) => `${name} ${shown(value)}`)];
  return make(
    "li", {},
    make("span", { textContent: told.title || told.item_id }),
    make("span", { className: "meta", textContent: about.filter(Boolean).map(unbroken).join(" \u00b7 ") }),
  );
}

export function stageRows(stages) {
  const most = Math.max(...stages.map(([, ms]) => ms), 1e-9);
  return stages.map(([stage, ms]) => {
    const bar = make("span");
    bar.style.width = `${(ms / most) * 100}%`;
    return make(
      "tr", {},
      make("th", { scope: "row", textContent: nameIn("stage", stage) }),
      make("td", { textContent: number(ms, 2) }),
      make("td", { className: "bar" }, make("div", { className: "meter", ariaHidden: "true" }, bar)),
    );
  });
}

// A labelled field for a context feature or a filter. The label is the column's name, or the text of a key about it.
export function field(id, column, control, key) {
  control.id = id;
  const label = make("label", { htmlFor: id, textContent: column });
  if (key) Object.assign(label.dataset, { text: key, column });
  return [label, control];
}

// A choice of values; the first one stands for none, and is said by a key.
export function choice(values, nothing) {
  const options = values.map((value) => make("option", { value, textContent: value }));
  const none = make("option", { value: "" });
  none.dataset.text = nothing;
  return make("select", {}, none, ...options);
}
